"""Gradient checkpointing: blocks that keep their input alone, and are computed again in the backward pass.

Of a network of N blocks the backward pass then needs the activations of one block and the inputs of all, instead of the
activations of all; it costs one more forward pass, a third of a step.  Dropout masks are the same the second time
(`dropout`), so the gradients are the same numbers.

T. Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def use(net: nn.Module, again: bool) -> None:
    """Let every block of a network that can be computed again be so, or none; ValueError if none can."""
    blocks = [module for module in net.modules() if hasattr(module, "again")]
    if again and not blocks:
        raise ValueError(
            f"gradient_checkpointing came for a network of kind {type(net).__name__}, whose blocks are too small for "
            "it; leave it out"
        )
    for block in blocks:
        block.again = again  # type: ignore[assignment]


def perhaps(again: bool, block: Callable[..., Tensor], *given: Tensor | None) -> Tensor:
    """block(*given), computed again in the backward pass if there is one and `again` says so."""
    if again and torch.is_grad_enabled():
        found: Tensor = checkpoint(block, *given, use_reentrant=False)
        return found
    return block(*given)
