"""Classifier guidance: along the gradient of what a classifier says of x_t.

By Bayes' rule the score of p(x_t | y) is that of p(x_t) plus g = grad log p(y | x_t), for a classifier that looks at
noisy x_t.  The paper has two ways, with a scale s on g:

    Algorithm 1   the mean of a reverse step is moved by its variance times s g        `classifier_mean`     (1)
    Algorithm 2   eps <- eps - sigma s g,   x0 <- x0 + (sigma^2/alpha) s g             `classifier_eps`      (2)

(1) is told to the sampler as `Prediction.tilt` = s g; only ancestral sampling has such a step, and for others it is
refused.  (2) keeps x_t = alpha x0 + sigma eps, and serves every sampler.  s is cond["classifier"], (B,), one value a
row; rows of s = 0 are not shown to the classifier, and where all are, nothing is asked.  At s = 1 both sample p(x | y),
as the steps grow small, if model and classifier are exact.  At other s, but 0, neither samples p(x) p(y|x)^s
(`testbed.guided` knows what they sample on Gaussians).

Where alpha -> 0, g vanishes with it and (2) divides the one by the other.  Nearer to pure noise than
alpha = sigma/1000 (on many schedules t = 1 alone) x0 is therefore moved as much as there.

Put it around `cfg`, not inside: the unconditional half has no label to look for.

P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, Algorithms 1 and 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.asking import NEUTRAL, Query
from sfumato.denoiser import Denoiser, Prediction
from sfumato.gaussian import expand
from sfumato.guidance.guided import Guidance, Guided, without

Logits = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> logits (B, K), differentiable in x_t

FARTHEST = 2 * math.log(1e-3)  # logsnr


def strength(query: Query) -> Tensor | None:
    """s of each row, (B,); None where it is 0 for all."""
    s = (query.cond or {}).get("classifier")
    return None if s is None or not bool((s != 0).any()) else s.to(query.x.device)


def gradient(classifier: Logits, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """grad_x log p(label | x) at x (B, ...) and t (B,), without a graph; label (B,), each one of the classes."""
    with torch.inference_mode(False), torch.enable_grad():
        at, t, label = x.detach().clone().requires_grad_(), t.detach().clone(), label.detach().clone()
        logits = classifier(at, t)
        if logits.ndim != 2 or len(logits) != len(at):
            raise ValueError(f"a classifier says logits ({len(at)}, K) for {len(at)} rows; got {tuple(logits.shape)}")
        if bool(((label < 0) | (label >= logits.shape[1])).any()):
            raise ValueError(
                f"labels from {int(label.min())} to {int(label.max())}, the classifier knows 0..{logits.shape[1] - 1}; "
                "give a class to rows under classifier guidance, and put it around classifier-free guidance, not inside"
            )
        log_p = logits.log_softmax(1).gather(1, label[:, None].long())
        return torch.autograd.grad(log_p.sum(), at)[0]


def pull(classifier: Logits, query: Query, s: Tensor, t: Tensor) -> Tensor:
    """s g at the query's x and these times t, (B, ...); 0 for rows of s = 0, which the classifier is not shown."""
    label = (query.cond or {}).get("label")
    if label is None:
        raise ValueError('classifier guidance asks for cond["label"], one class a row; give labels, or scale 0')
    asked = s != 0
    g = torch.zeros_like(query.x)
    g[asked] = gradient(classifier, query.x[asked], t[asked], label[asked])
    return expand(s, g) * g


def classifier_mean(inner: Denoiser, classifier: Logits) -> Guided:
    """`inner` under Algorithm 1 (1): for ancestral sampling alone."""

    def expand(query: Query) -> Sequence[Query]:
        s = strength(query)
        if s is not None:
            tilts = (query.cond or {}).get("tilt", torch.full_like(s, NEUTRAL["tilt"])).to(s)
            if bool(((s != 0) & (tilts != 1)).any()):
                raise ValueError(
                    "classifier guidance by Algorithm 1 moves the mean of a reverse step, which only the sampler "
                    "'ancestral' has; take that, or Algorithm 2, which every sampler can"
                )
        return [without(query, "classifier")]

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        s = strength(query)
        return predictions[0] if s is None else replace(predictions[0], tilt=pull(classifier, query, s, query.t))

    return Guided(inner, Guidance(expand, combine))


def classifier_eps(inner: Denoiser, classifier: Logits) -> Guided:
    """`inner` under Algorithm 2 (2): for every sampler."""
    schedule = inner.schedule
    last = schedule.path.time_of_logsnr(FARTHEST)

    def combine(query: Query, predictions: Sequence[Prediction]) -> Prediction:
        s, p = strength(query), predictions[0]
        if s is None:
            return p
        t = torch.minimum(query.t, last.to(query.t))
        moved = expand(schedule.sigma(t).square() / schedule.alpha(t), p.x0) * pull(classifier, query, s, t)
        ratio = schedule.alpha(query.t) / schedule.sigma(query.t)
        return replace(p, x0=p.x0 + moved, eps=p.eps - expand(ratio, p.eps) * moved)

    return Guided(inner, Guidance(lambda query: [without(query, "classifier")], combine))
