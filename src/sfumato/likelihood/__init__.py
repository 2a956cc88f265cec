"""What a model says of given data: bits a dimension by the variational bound, log-likelihood by the ODE.

Both bits/dim are upper bounds on the same quantity, -log2 of the probability of the data's levels, and may be compared.
"""

from sfumato.likelihood.bound import Bound, bits_per_dim
from sfumato.likelihood.flow import DIVERGENCES, FlowBits, bits_per_dim_flow, log_likelihood

__all__ = ["DIVERGENCES", "Bound", "FlowBits", "bits_per_dim", "bits_per_dim_flow", "log_likelihood"]
