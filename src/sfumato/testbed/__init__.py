"""Distributions whose denoiser is known exactly: the truth everything else is measured against.

They are Denoisers like any other, and public: whoever writes a sampler, a loss or a guidance can prove it here.
"""

from sfumato.testbed.empirical import Empirical
from sfumato.testbed.mixture import GaussianMixture

__all__ = ["Empirical", "GaussianMixture"]
