"""Every row of SAMPLERS has the order it declares, measured against exact solutions; none declares too little."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sfumato
from sfumato import cli, grids, samplers, schedules
from sfumato.noise import PRIOR, normal
from sfumato.samplers import SAMPLERS
from sfumato.samplers.refused import why
from sfumato.tasks import doctor

ADAPTIVE = [name for name, row in SAMPLERS.items() if row.calls is None]
ORDERED = [
    (name, schedule)
    for name, row in SAMPLERS.items()
    for schedule in doctor.SCHEDULES
    if row.orders and not why(name, SAMPLERS, schedules.from_spec(schedule), torch.tensor([1.0, 0.0]))
]

# what the literature promises; ancestral and ddim-sigma-hat are first-order discretisations of the reverse SDE
PROMISED = {
    "ddim": 1,
    "euler": 1,
    "heun": 2,
    "dpmpp-2m": 2,
    "dpmpp-3m": 3,
    "unipc-2": 2,
    "unipc-3": 3,
    "deis-2": 2,
    "deis-3": 3,
    "plms": 2,
    "ancestral": 1,
    "ddim-sigma-hat": 1,
    "euler-maruyama": 1,
    "predictor-corrector": 1,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_nothing_is_declared_below_what_is_promised() -> None:
    for name, order in PROMISED.items():
        assert SAMPLERS[name].order >= order, name
    assert SAMPLERS["plms"].orders["ratio"] == 4
    assert doctor.SLACK == 0.2
    assert {name for name, row in SAMPLERS.items() if not row.orders} == {"rk45", "cold"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "schedule"), ORDERED)
def test_the_order_is_at_least_the_declared_one(name: str, schedule: str) -> None:
    """In t on every schedule.  Steps in logsnr or sigma/alpha are the same steps of the same ODE on each: on two."""
    for spacing in SAMPLERS[name].orders:
        if spacing == "t" or schedule in ("linear_continuous", "rectified"):
            fit = doctor.fit(name, schedule, spacing)
            assert fit.measured >= fit.declared - 0.2, fit
            assert fit.measured < fit.declared + 2.2, fit  # an error that falls faster than that is no error of steps


@pytest.mark.slow
@pytest.mark.parametrize("schedule", doctor.SCHEDULES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_adaptive_sampler_keeps_its_tolerance(name: str, schedule: str) -> None:
    assert doctor.over_tolerance(name, schedule) <= 10


@pytest.mark.parametrize("schedule", doctor.SCHEDULES)
def test_two_multisteps_at_10_calls_beat_ddim_at_20(schedule: str) -> None:
    rule = schedules.from_spec(schedule)
    ten, twenty = (
        doctor.errors(name, schedule, [grids.logsnr(rule, s)])[0] for name, s in (("dpmpp-2m", 10), ("ddim", 20))
    )
    assert ten < twenty


@pytest.mark.slow
def test_and_on_the_model_of_the_zoo_against_a_thousand_steps() -> None:
    """From the same x_T."""
    model, n = sfumato.load("digits"), 10
    x_T, labels = normal(range(n), (1, 8, 8), PRIOR), model.labels(n)
    assert labels is not None

    def end(sampler: str, steps: int, grid: str) -> torch.Tensor:
        return samplers.sample(model.guided(), x_T, sampler, steps, grid, cond={"label": labels})

    reference = end("dpmpp-2m", 1000, "trailing")
    for grid in ("logsnr", "quadratic"):
        assert (end("dpmpp-2m", 10, grid) - reference).norm() < (end("ddim", 20, grid) - reference).norm()


@pytest.mark.slow
def test_calls_are_counted_and_kept() -> None:
    rule = schedules.linear_continuous()
    for name in ("ddim", "heun", "dpmpp-3m", "plms", "rk45"):
        way = doctor.within(name, "linear_continuous", 50)
        assert way is None or doctor.calls_of(way[0], rule, way[1]) <= 50
    way = doctor.within("heun", "linear_continuous", 50)
    assert way is not None
    assert len(way[1]) - 1 == 25  # 2 S - 1 calls


@pytest.mark.slow
def test_the_command_prints_the_table_and_fails_if_a_row_falls_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "SAMPLERS", {name: SAMPLERS[name] for name in ("ddim", "dpmpp-2m", "cold")})
    assert cli.main(["doctor", "--out", str(tmp_path / "doctor.json")]) == 0
    told = capsys.readouterr().out
    assert "dpmpp-2m" in told
    assert "at 50" in told
    assert "log-likelihood by the ODE" in told
    assert "FALLS SHORT" not in told
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert set(document["samplers"]) == {"ddim", "dpmpp-2m"}
    assert document["log_likelihood_error"]["own_prior"] <= 1e-4 < document["log_likelihood_error"]["normal_prior"]
    assert (
        document["samplers"]["ddim"]["error_at_calls"]["10"] > document["samplers"]["dpmpp-2m"]["error_at_calls"]["10"]
    )
    boast = replace(SAMPLERS["ddim"], orders={"t": 2.0})
    monkeypatch.setattr(doctor, "SAMPLERS", {"ddim": boast})
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == 1
    assert "FALLS SHORT" in capsys.readouterr().out


def test_a_schedule_of_steps_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--schedule", "linear"]) == 2
    assert "take a continuous one" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", doctor.SCHEDULES)
def test_the_log_likelihood_of_the_ode_is_within_a_ten_thousandth_of_a_nat(schedule: str) -> None:
    assert bool((doctor.NARROW.eigenvalues >= 0.01 - 1e-12).all())
    assert doctor.likelihood(schedule).own <= 1e-4
    assert doctor.NATS == 1e-4
