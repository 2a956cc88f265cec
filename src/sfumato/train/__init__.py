"""Training: a Run, its state, and a generator of steps."""

from sfumato.train.run import Loss, Optimiser, Run
from sfumato.train.trainer import DECAYS, Step, Training, held_out_loss, train

__all__ = ["DECAYS", "Loss", "Optimiser", "Run", "Step", "Training", "held_out_loss", "train"]
