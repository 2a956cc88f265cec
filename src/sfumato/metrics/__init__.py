"""Metrics: update / compute / reset, in one pass over samples.

A metric knows arrays and nothing of models: what it needs of a network (features, a judge) comes in as a callable.
"""

from sfumato.metrics.agreement import LabelAgreement, fit_judge
from sfumato.metrics.energy import EnergyDistance
from sfumato.metrics.histogram import HistogramBits
from sfumato.metrics.nearest import NearestNeighbour

METRICS = {
    "agreement": LabelAgreement,
    "energy": EnergyDistance,
    "histogram": HistogramBits,
    "nearest": NearestNeighbour,
}

__all__ = ["METRICS", "EnergyDistance", "HistogramBits", "LabelAgreement", "NearestNeighbour", "fit_judge"]
