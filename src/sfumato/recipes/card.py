"""A model's card: by which command it was trained, how long, on what, and its measured scores."""

from __future__ import annotations

from typing import Any

from sfumato.model import Model
from sfumato.recipes import curve
from sfumato.tasks.evaluate import table


def card(model: Model) -> str:
    """Markdown, made from the config alone."""
    config, facts = model.config, dict(model.config.training)
    scores: dict[str, Any] | None = facts.get("scores")
    parameters = sum(p.numel() for p in model.net.parameters())
    words = str(facts.get("command", "")).split()
    recipe = words[2] if words[:2] == ["sfumato", "train"] and len(words) > 2 else config.data.get("name", "model")
    lines = [
        f"# {recipe}",
        "",
        f"A {config.network} of {parameters:,} parameters that denoises {config.kind}s of shape {tuple(config.shape)}"
        + (f", told one of {config.conditions.classes} classes." if config.conditions.classes else "."),
        "",
        f"- command: `{facts.get('command', 'unknown')}`",
        f"- trained for {facts.get('seconds', 0) / 60:.1f} minutes, {facts.get('step', 0)} steps",
        f"- data: {config.data.get('source', 'unknown')}",
        f"- held out: {config.data.get('rule', 'unknown')}",
        f"- schedule {config.schedule['name']}, target {config.target}, EMA length {facts.get('ema')}",
    ]
    if scores:
        lines += ["", "| measured | value |", "|---|---|"]
        lines += [f"| {what.strip()} | {value} |" for what, value in table(scores)]
        lines += [
            "",
            f"n = {scores['reference']['n']} samples, seed {scores['sampling']['seed']}, "
            "`sfumato evaluate` measures it again.",
        ]
    if scores and "curve" in scores:
        lines += ["", *curve.lines(scores["curve"])]
    return "\n".join(lines) + "\n"
