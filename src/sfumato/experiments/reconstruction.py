"""reconstruction: pictures walked up to their latents and back, and how near they come, by steps.

    x_1 = encode(x_0),   x_0' = decode(x_1),   error = sqrt(mean |x_0' - x_0|^2 / D)     in [-1, 1] units

A deterministic sampler solves the probability-flow ODE, so the way up and the way down would meet if steps were small
enough: the error is that of two walks.  On the digits only it is known.  On a mixture of Gaussians, whose denoiser is
exact, the latent x_1 itself is known as well (`testbed.flow`, by scipy), and the errors of both fall as steps^-order:
there the walks go over an interval that ends before sigma = 0, in equal steps of log(sigma/alpha), in float64.

Latents have a geometry: N(0, I) lies near the sphere of radius sqrt(D), so that half-way between two latents
(a + b)/2 has only half their variance, and slerp goes along the sphere (`samplers.latent` (2)).

J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502, secs. 4.3, 5.3, 5.4, table 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import samplers, schedules
from sfumato.denoiser import Cond, Denoiser, Prediction
from sfumato.experiments import figures
from sfumato.experiments.report import Report, Request, remembered
from sfumato.experiments.trained import Trained, trained
from sfumato.metrics import NearestNeighbour
from sfumato.samplers import lerp, slerp
from sfumato.tasks.doctor import MIXTURE, between
from sfumato.testbed.flow import flow
from sfumato.testbed.moments import fitted_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "data",
    "sampler",
    "grid",
    "steps",
    "tolerance",
    "calls_up",
    "error",
    "exact_pixels",
    "latent_std",
    "latent_error",
)
# the most steps that each is measured with: where the others have long stopped to improve, DDIM still does
WALKS: dict[str, int] = {"ddim": 1000, "heun": 200, "dpmpp-2m": 200, "unipc-2": 200}
GRIDS = ("quadratic", "logsnr")
STRIP = ("dpmpp-2m", 100, "logsnr")  # how the interpolated pictures are encoded and decoded
WEIGHTS = tuple(round(0.1 * k, 1) for k in range(11))
PATHS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"slerp": slerp, "lerp": lerp}
SHOWN = 6  # pictures whose reconstructions are shown
EXACT = "linear_continuous"  # the schedule of the mixture
FITTED = 3  # an order is fitted to so many of the largest steps on the mixture
EXACT_ROWS = 64

SEE = """\
A coarse DDIM loses the picture that it encoded; ten times the steps bring it ten times nearer, as its first order says,
and methods of second order need far fewer calls for the same.  On the digits these stop at about two thousandths, far
below a bin's width (0.125), so that every pixel has long come back: what is left is the first step up, from t = 0 to
the first time that the network knows, which the adaptive rk45 does not take apart from the others, and goes on falling.
On the mixture each latent falls as declared, UniPC as a method of third order; there and back, Heun's leading errors
cancel.  Half-way between two latents the straight line is too short: what is decoded from there is paler (its pixels
vary less from picture to picture) than what slerp gives, and so a little nearer to everything.
"""


@dataclass(frozen=True)
class Size:
    """Held-out rows, their steps and tolerances; pairs of rows that are interpolated; steps on the mixture."""

    rows: int
    steps: tuple[int, ...]
    tolerances: tuple[float, ...]
    pairs: int
    exact: tuple[int, ...] = (8, 16, 32, 64, 128, 256)


QUICK = Size(8, (5, 10, 20, 50, 100), (1e-1, 1e-2, 1e-3), 8)
FULL = Size(32, (5, 10, 20, 50, 100, 200, 500, 1000), (1e-1, 1e-2, 1e-3, 1e-4), 64)


@dataclass(frozen=True)
class Way:
    """How it is walked: a sampler, a grid, so many steps; or an adaptive sampler to a tolerance."""

    sampler: str
    grid: str
    steps: int
    tolerance: float | None = None

    @property
    def asked(self) -> str:
        return self.sampler if self.tolerance is None else f"{self.sampler}:tolerance={self.tolerance:g}"

    @property
    def block(self) -> str:
        return f"{self.sampler}-{self.grid}-{self.steps if self.tolerance is None else f'{self.tolerance:g}'}"

    @property
    def cells(self) -> list[Any]:
        adaptive = self.tolerance is not None
        return [self.sampler, None if adaptive else self.grid, None if adaptive else self.steps, self.tolerance]


@final
class Counted(Denoiser):
    """Another Denoiser, and how often it was called."""

    def __init__(self, of: Denoiser):
        self.of, self.schedule, self.null_cond, self.calls = of, of.schedule, of.null_cond, 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        self.calls += 1
        return self.of(x_t, t, cond)


def run(request: Request) -> Report:
    size = QUICK if request.quick else FULL
    subject = trained(request)
    walked = {way: round_trip(request, subject, size, way) for way in ways(size, subject.model.denoiser.schedule.steps)}
    strip = interpolated(request, subject, size)
    exact = on_the_mixture(size.exact)
    x_0 = subject.held_out(size.rows)[0].cpu()
    rows = [*table(subject, x_0, walked), *exact]
    orders = exact_orders(exact)
    near = nearest(subject, strip)
    return Report(
        title="Encoded and decoded",
        shown=(__doc__ or "").partition("\n\n")[2],
        see=SEE,
        basis=[
            *subject.basis,
            f"{len(x_0)} held-out rows with their labels, x_0 clipped as in sampling, grids {' and '.join(GRIDS)}",
            f"{strip['slerp'].shape[1]} pairs of held-out rows without labels for the paths between latents, "
            f"{STRIP[0]} with {STRIP[1]} steps of grid {STRIP[2]}",
            f"mixture: that of `sfumato doctor`, three Gaussians in 2-D, {EXACT_ROWS} rows, schedule {EXACT}, float64",
        ],
        numbers=[*_best(rows), *_order_lines(orders), *near],
        columns=COLUMNS,
        rows=rows,
        figure=_draw(subject, rows, x_0, walked, strip),
    )


def ways(size: Size, most: int | None) -> list[Way]:
    """Every walk that is measured, of a model of `most` steps."""
    fixed = [
        Way(sampler, grid, steps)
        for sampler, limit in WALKS.items()
        for grid in GRIDS
        for steps in size.steps
        if steps <= min(limit, most or limit)
    ]
    return [*fixed, *(Way("rk45", "trailing", 1, tolerance) for tolerance in size.tolerances)]


def round_trip(request: Request, subject: Trained, size: Size, way: Way) -> dict[str, Tensor]:
    """x_1 and x_0' of the held-out rows, (N, C, H, W), and how often the network was called on the way up."""
    x_0, labels = subject.held_out(size.rows)
    cond = None if labels is None else {"label": labels.to(x_0.device)}

    def there_and_back() -> dict[str, Tensor]:
        denoiser = Counted(subject.model.in_float32().guided())
        x_1 = samplers.encode(denoiser, x_0, way.asked, way.steps, way.grid, cond)
        up = denoiser.calls
        back = samplers.sample(denoiser, x_1, way.asked, way.steps, way.grid, cond=cond)
        return {"x_1": x_1.cpu(), "x_0": back.cpu(), "calls": torch.tensor([up])}

    found = remembered(request, {**subject.key, "rows": size.rows, **asdict(way)}, way.block, there_and_back)
    request.say(f"{way.block}: error {rmse(found['x_0'] - x_0.cpu()):.4f}")
    return found


def rmse(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def table(subject: Trained, x_0: Tensor, walked: dict[Way, dict[str, Tensor]]) -> list[list[Any]]:
    """The CSV's rows of the held-out rows."""
    decode, rows = subject.model.codec.decode, []
    for way, found in walked.items():
        same = (decode(found["x_0"]) == decode(x_0)).double().mean().item()
        error, std = rmse(found["x_0"] - x_0), found["x_1"].std().item()
        rows.append(["held-out rows", *way.cells, int(found["calls"]), error, same, std, None])
    return rows


def on_the_mixture(steps_of: Sequence[int]) -> list[list[Any]]:
    """The CSV's rows of the mixture: error there and back, and of the latent against the ODE's own."""
    schedule, rows = schedules.from_spec(EXACT), []
    for sampler in WALKS:
        for steps in steps_of:
            times = between(schedule, "logsnr", steps)
            denoiser = Counted(MIXTURE.denoiser(schedule))
            ends = float(times[-1]), float(times[0])
            x, truth = _exact(*ends)
            latent = samplers.sample(denoiser, x, sampler, grid=times.flip(0))
            up = denoiser.calls
            error = rmse(samplers.sample(denoiser, latent, sampler, grid=times) - x)
            rows.append(
                ["mixture", sampler, "logsnr", steps, None, up, error, None, latent.std().item(), rmse(latent - truth)]
            )
    return rows


@lru_cache(maxsize=1)
def _exact(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Rows of the mixture at time `low`, and where the ODE leads them by time `high`."""
    schedule = schedules.from_spec(EXACT)
    x = schedule.alpha(torch.tensor(low)) * MIXTURE.sample(EXACT_ROWS)
    return x, flow(MIXTURE, schedule, x, low, high)


def exact_orders(rows: list[list[Any]]) -> dict[str, tuple[float, float]]:
    """Each sampler's fitted orders on the mixture: there and back, and of the latent."""
    orders = {}
    for sampler in WALKS:
        own = [dict(zip(COLUMNS, row, strict=True)) for row in rows if row[1] == sampler][-FITTED:]
        steps = [row["steps"] for row in own]
        orders[sampler] = tuple(fitted_order(steps, [row[e] for row in own]) for e in ("error", "latent_error"))
    return orders  # type: ignore[return-value]


def interpolated(request: Request, subject: Trained, size: Size) -> dict[str, Tensor]:
    """Pictures along each of PATHS between the latents of two held-out rows: (weights, P, C, H, W), codec units."""
    x_0, _ = subject.held_out(2 * size.pairs)
    pairs = len(x_0) // 2
    if not pairs:
        raise ValueError(f"{request.model} holds out {len(x_0)} row; two are needed to mix; take data with more rows")
    ends = torch.cat([x_0[0 : 2 * pairs : 2], x_0[1 : 2 * pairs : 2]])
    denoiser = subject.model.in_float32().guided()
    sampler, steps, grid = STRIP
    steps = min(steps, denoiser.schedule.steps or steps)

    def between_latents(path: str) -> dict[str, Tensor]:
        a, b = samplers.encode(denoiser, ends, sampler, steps, grid).chunk(2)
        latents = torch.stack([PATHS[path](a, b, w) for w in WEIGHTS])
        x = samplers.sample(denoiser, latents.flatten(0, 1), sampler, steps, grid)
        return {"x": x.cpu().view_as(latents), "x_1": latents.cpu()}

    key = {**subject.key, "pairs": size.pairs}
    return {path: remembered(request, key, path, partial(between_latents, path))["x"] for path in PATHS}


def nearest(subject: Trained, strip: dict[str, Tensor]) -> list[tuple[str, str]]:
    """How far pictures half-way lie from training rows (median, data units), beside those at the ends."""
    near, lines = NearestNeighbour(subject.training_rows()), []
    middle = len(WEIGHTS) // 2
    named = {"the ends, decoded": strip["slerp"][[0, -1]].flatten(0, 1)}
    named |= {f"half-way by {path}": x[middle] for path, x in strip.items()}
    for name, x in named.items():
        near.reset()
        near.update(subject.model.codec.decode(x).numpy())
        lines.append(
            (
                f"{name}: distance to the nearest training row (median); standard deviation of pixels",
                f"{np.median(near.compute()):.2f}; {x.std(0).mean().item():.3f}",
            )
        )
    return lines


def _best(rows: list[list[Any]]) -> list[tuple[str, str]]:
    """For each sampler its better grid's error at about 10, 20, 50, 100 calls and at most."""
    lines = []
    own = [dict(zip(COLUMNS, row, strict=True)) for row in rows if row[0] == "held-out rows"]
    for sampler in [*WALKS, "rk45"]:
        mine = [row for row in own if row["sampler"] == sampler]
        wanted = [20, 50, 100, 10**9]
        found = []
        for calls in wanted:
            below = [row for row in mine if row["calls_up"] <= 1.05 * calls]
            best = min(below, key=lambda row: row["error"], default=None)
            found.append("-" if best is None else f"{best['error']:.4f}")
        lines.append((f"{sampler}: least error with 20, 50, 100, any number of calls up", ", ".join(found)))
    return lines


def _order_lines(orders: dict[str, tuple[float, float]]) -> list[tuple[str, str]]:
    return [
        (
            f"mixture, {sampler} (declared {samplers.SAMPLERS[sampler].order:g}): fitted order there and back, latent",
            text,
        )
        for sampler, found in orders.items()
        if (text := ", ".join(f"{order:.2f}" for order in found))
    ]


def _draw(
    subject: Trained,
    rows: list[list[Any]],
    x_0: Tensor,
    walked: dict[Way, dict[str, Tensor]],
    strip: dict[str, Tensor],
) -> Figure:
    drawn = figures.figure(12, 8.5)
    axes = drawn.subplot_mosaic([["a", "b"], ["c", "d"]], height_ratios=(1, 1))
    named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    for sampler, colour in zip([*WALKS, "rk45"], ("C0", "C1", "C2", "C3", "C4"), strict=True):
        for grid, style in zip([*GRIDS, None], ("o--", "s-", "d-"), strict=True):
            own = [r for r in named if (r["data"], r["sampler"], r["grid"]) == ("held-out rows", sampler, grid)]
            if own:
                label = sampler if grid is None else f"{sampler}, {grid}"
                x, y = [r["calls_up"] for r in own], [r["error"] for r in own]
                axes["a"].loglog(x, y, style, color=colour, markersize=4, linewidth=1, label=label)
        own = [r for r in named if (r["data"], r["sampler"]) == ("mixture", sampler)]
        if own:
            x = [r["calls_up"] for r in own]
            axes["b"].loglog(x, [r["error"] for r in own], "s-", color=colour, markersize=4, label=sampler)
            axes["b"].loglog(x, [r["latent_error"] for r in own], "x:", color=colour, markersize=4)
    if subject.model.codec.bin_width:
        half = subject.model.codec.bin_width / 2
        axes["a"].axhline(half, color="grey", linewidth=0.8, linestyle=":", label="half a bin")
    axes["a"].set(title="held-out rows, there and back", xlabel="calls up", ylabel="root mean square, [-1, 1] units")
    axes["b"].set(title="mixture: there and back (full), latent (dotted)", xlabel="calls up", ylabel="root mean square")
    for key in "ab":
        axes[key].legend(fontsize=7)
    shown = [way for way in walked if (way.sampler, way.grid) == ("ddim", GRIDS[0])][:5]
    back = [walked[way]["x_0"][:SHOWN] for way in shown]
    latents = walked[shown[-1]]["x_1"][:SHOWN]
    columns = ["x_0", "x_1 / 2", *(f"{way.steps}" for way in shown)]
    sheet = torch.stack([x_0[:SHOWN], latents / 2, *back], 1)
    figures.pictures(axes["c"], sheet, [""] * len(sheet), columns, "decoded again, DDIM, by steps")
    pairs = min(3, strip["slerp"].shape[1])
    tiles = torch.stack([x[:, pair] for pair in range(pairs) for x in strip.values()])
    names = [f"{path}" for _ in range(pairs) for path in strip]
    figures.pictures(axes["d"], tiles, names, [f"{w:g}" for w in WEIGHTS], "between two latents, by weight")
    return drawn
