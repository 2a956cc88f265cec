"""Metrics: update / compute / reset, in one pass over samples.

A metric knows arrays and nothing of models: what it needs of a network (features, a judge) comes in as a callable.
"""

from sfumato.metrics.agreement import LabelAgreement, fit_judge
from sfumato.metrics.bits import BitsPerDim
from sfumato.metrics.density_coverage import DensityCoverage
from sfumato.metrics.energy import EnergyDistance
from sfumato.metrics.features import FeatureNetwork, Seen
from sfumato.metrics.frechet import FrechetDistance
from sfumato.metrics.histogram import HistogramBits
from sfumato.metrics.inception_score import InceptionScore
from sfumato.metrics.kernel import KernelDistance
from sfumato.metrics.nearest import NearestNeighbour
from sfumato.metrics.precision_recall import PrecisionRecall

METRICS = {
    "agreement": LabelAgreement,
    "bits-per-dim": BitsPerDim,
    "density-coverage": DensityCoverage,
    "energy": EnergyDistance,
    "frechet": FrechetDistance,
    "histogram": HistogramBits,
    "inception-score": InceptionScore,
    "kernel": KernelDistance,
    "nearest": NearestNeighbour,
    "precision-recall": PrecisionRecall,
}

__all__ = [
    "METRICS",
    "BitsPerDim",
    "DensityCoverage",
    "EnergyDistance",
    "FeatureNetwork",
    "FrechetDistance",
    "HistogramBits",
    "InceptionScore",
    "KernelDistance",
    "LabelAgreement",
    "NearestNeighbour",
    "PrecisionRecall",
    "Seen",
    "fit_judge",
]
