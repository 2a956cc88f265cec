"""The digits again, each time with one assumption of the demo changed: what is predicted, along which path, told what.

digits-flow       the straight path and its velocity, logit-normal times
digits-edm        EDM: variance exploding, preconditioned, log-normal noise, a learned weight, Heun on Karras' grid
digits-meanflow   average velocities, for samples in one or two steps
digits-x0         x_0 is predicted, and weighed as the error of v
digits-blind      a network that is not told t
digits-blur       blurring diffusion: every frequency has its own alpha
digits-cold       cold diffusion: no noise, pictures are blurred and restored
digits-dit        a DiT in the UNet's place
bridge            from emoji to digits: the other data lie where noise does
"""

from __future__ import annotations

from dataclasses import replace

from sfumato.data import Data
from sfumato.model import Sampling
from sfumato.nn import DiTConfig, UNetConfig
from sfumato.recipes.digits import digits
from sfumato.train import Loss, Optimiser, Run

STRAIGHT = UNetConfig(channels=32, multipliers=(1, 1), blocks=1, groups=8, dropout=0.15, time_scale=1000)


def flow() -> Run:
    """The demo as flow matching: rectified path, velocity target, logit-normal times."""
    return replace(
        digits(),
        network=STRAIGHT,
        schedule="rectified",
        target="flow",
        time="unit",
        loss=Loss(weighting="velocity", times="logit_normal", coupling="auto"),
        sampling=Sampling(sampler="heun", steps=25, grid="trailing"),
    )


def edm() -> Run:
    """The demo as EDM: preconditioning, log-normal noise, a learned weight; Heun in 18 steps."""
    return replace(
        digits(),
        network=replace(STRAIGHT, time_scale=100),
        schedule="edm",
        target="edm",
        time="c_noise",
        loss=Loss(weighting="edm", times="log_normal", learned_weight=True),
        sampling=Sampling(sampler="heun", steps=18, grid="karras"),
    )


def meanflow() -> Run:
    """The demo in one step: MeanFlow's average velocities; twice the time a training step."""
    return replace(
        digits(),
        network=replace(STRAIGHT, dropout=0.0),
        schedule="rectified",
        target="flow",
        time="unit",
        loss=Loss(kind="meanflow", times="logit_normal:mean=-0.4", average_share=0.5),
        sampling=Sampling(sampler="meanflow", steps=2),
        steps=2400,
    )


def x0() -> Run:
    """The demo with x_0 predicted and weighed as the error of v."""
    return replace(digits(), target="x0", loss=Loss(weighting="v", times="stratified"))


def blind() -> Run:
    """The demo with a network that is not told t, on the straight path."""
    return replace(flow(), time="none")


def blur() -> Run:
    """The demo as blurring diffusion: a schedule of frequencies behind a DCT."""
    return replace(
        digits(),
        network=STRAIGHT,
        schedule="blurring:height=8,width=8,sigma_blur_max=4.0",
        codec="dct",
        time="unit",
        loss=Loss(weighting="x0", times="stratified"),
        sampling=Sampling(sampler="ddim", steps=50, grid="trailing"),
    )


def cold() -> Run:
    """Cold diffusion: digits blurred without noise, and restored; samples start from blurred held-out digits."""
    return replace(
        digits(),
        network=STRAIGHT,
        schedule="cold:degradation=blur",
        target="x0",
        time="unit",
        loss=Loss(weighting="x0", times="stratified"),
        sampling=Sampling(sampler="cold", steps=20, grid="trailing"),
    )


def dit() -> Run:
    """The demo with a DiT: patches of 2x2, adaLN-Zero."""
    network = DiTConfig(patch=2, width=96, depth=4, heads=4, dropout=0.1)
    return replace(digits(), network=network, optimiser=Optimiser(learning_rate=1e-3, warmup=100), steps=2400)


def bridge() -> Run:
    """From emoji to MNIST along straight paths: a digit for every emoji, 16x16 grey."""
    return Run(
        data=Data("mnist", size=16),
        source=Data("emoji", size=16, channels=1),
        network=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, groups=8, time_scale=1000),
        schedule="rectified",
        target="flow",
        time="unit",
        loss=Loss(weighting="velocity", times="uniform", coupling="auto"),
        optimiser=Optimiser(learning_rate=1e-3, warmup=200),
        sampling=Sampling(sampler="heun", steps=20),
        steps=5000,
        batch=64,
    )
