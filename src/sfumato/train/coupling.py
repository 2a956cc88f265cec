"""Which noise goes with which row: couplings of a batch of data with a batch of noise (or of a bridge's other data).

    independent   as drawn
    ot            the permutation p that makes sum_i |x_0,i - eps_p(i)|^2 least: straighter paths, which cross less
    auto          ot where the data have no conditions, independent where they have

Noise is permuted and rows keep their labels.  A conditional model with ot learns, within a class, from noise that is
not N(0, I) (what a class gets depends on its batch-mates), which is why auto leaves it out.

A. Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
arXiv:2302.00482; A. Pooladian et al., "Multisample Flow Matching", arXiv:2304.14772
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def independent(x_0: Tensor, eps: Tensor, conditional: bool) -> Tensor:
    return torch.arange(len(x_0))


def ot(x_0: Tensor, eps: Tensor, conditional: bool) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(x_0.flatten(1).double(), eps.flatten(1).double()).square()
    return torch.from_numpy(linear_sum_assignment(distances.cpu().numpy())[1])


def auto(x_0: Tensor, eps: Tensor, conditional: bool) -> Tensor:
    return (independent if conditional else ot)(x_0, eps, conditional)


# x_0 and eps (B, ...), whether rows have conditions -> the row of eps for each row of x_0, (B,)
COUPLINGS: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {"independent": independent, "ot": ot, "auto": auto}
