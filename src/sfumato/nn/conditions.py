"""What a network can be told beside (x, t).

A condition is a named tensor with a leading row axis, so that the rows of many requests can be joined blindly.  Each
has a null value that means "not told": classifier-free guidance trains with it and samples with it.  A condition
that is not given is null, for every row.

=========  ==========================  ==============================================  =====================
name       shape                       meaning                                         null
=========  ==========================  ==============================================  =====================
label      (B,) integers               a class, 0..classes-1                           ``classes``
vector     (B, vector)                 any numbers: a size, an embedding               zeros
context    (B, L, context)             tokens to attend to; a token of zeros is        zeros, of any L
                                       padding and is never looked at
image      (B, concat, *spatial)       a picture seen beside x                         zeros
span       (B,) floats >= 0            t - s: how far the answer carries, from t       zeros: the answer at
                                       down to s (an average velocity)                 the instant t
=========  ==========================  ==============================================  =====================

References: J. Ho, T. Salimans, "Classifier-free diffusion guidance" (arXiv 2207.12598); Z. Geng et al., "Mean flows
for one-step generative modeling" (arXiv 2505.13447), whose network is told t and t - s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The sizes of the conditions a network takes; they come from the data, and 0 means that there is none."""

    classes: int = 0
    """Number of classes of ``cond["label"]``."""
    vector: int = 0
    """Length of ``cond["vector"]``."""
    context: int = 0
    """Width of the tokens of ``cond["context"]``."""
    concat: int = 0
    """Channels of ``cond["image"]``."""
    span: int = 0
    """1 if the network is told how far its answer carries, by ``cond["span"]``."""

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 0:
                raise ValueError(f"conditions: {name} = {size} is negative; give a size, or 0 for none")
        if self.span > 1:
            raise ValueError(f"conditions: span = {self.span}; give 1 if the network is told the span, or 0 if not")

    def null(self, x: Tensor) -> dict[str, Tensor]:
        """Every condition at its null value, for the rows, the device and the dtype of x (B, C, *spatial)."""
        rows, null = len(x), {}
        if self.classes:
            null["label"] = torch.full((rows,), self.classes, device=x.device)
        if self.vector:
            null["vector"] = x.new_zeros(rows, self.vector)
        if self.context:
            null["context"] = x.new_zeros(rows, 1, self.context)
        if self.concat:
            null["image"] = x.new_zeros(rows, self.concat, *x.shape[2:])
        if self.span:  # a time, so no coarser than float32
            null["span"] = torch.zeros(rows, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return null

    def complete(self, cond: Mapping[str, Tensor] | None, x: Tensor) -> dict[str, Tensor]:
        """The conditions of cond, checked and in the dtype of x; what it lacks is null.

        Names that are no condition of this network are left alone: other readers' values travel in cond too.

        Raises ValueError if a shape does not fit, or if a label is no integer or not in 0..classes, or if a
        span is negative.  These ranges are looked at on the CPU only: elsewhere every call would wait for the device.
        """
        full = self.null(x)
        for name in full.keys() & (cond or {}).keys():
            full[name] = self._checked(name, cond[name], full[name])  # type: ignore[index]
        return full

    def _checked(self, name: str, given: Tensor, null: Tensor) -> Tensor:
        shape = list(null.shape)
        if name == "context" and given.ndim == 3 and given.shape[1]:
            shape[1] = given.shape[1]  # any number of tokens, at least one
        if list(given.shape) != shape:
            raise ValueError(
                f"condition {name!r} has shape {tuple(given.shape)}, allowed is {tuple(shape)}: a row for each row of x"
            )
        looked = given.device.type == "cpu" and not torch.compiler.is_compiling()  # on a GPU it would have to wait
        if name == "span" and looked and (given < 0).any():
            raise ValueError(f"condition 'span' is t - s >= 0, got {float(given.min()):g}: give times s <= t")
        if name != "label":
            return given.to(null)
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"condition 'label' is of {given.dtype}, allowed are integers: use label.long()")
        if looked and ((given < 0) | (given > self.classes)).any():
            raise ValueError(
                f"labels from {int(given.min())} to {int(given.max())}, allowed are 0..{self.classes - 1}, "
                f"and {self.classes} for no label"
            )
        return given.to(null)
