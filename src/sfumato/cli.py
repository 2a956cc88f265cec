"""The command `sfumato`.

    sfumato train RECIPE [--out DIR] [any field of the run]
    sfumato sample MODEL [-n 64] [--sampler NAME] [--steps S] [--seed K] [--label L] [--guidance W] [--out FILE]
    sfumato evaluate MODEL     sfumato models     sfumato export MODEL FOLDER
    sfumato reproduce NAME     sfumato doctor

COMMANDS is the whole table; a command is a function of its arguments that imports what it needs, so that
`sfumato --help` answers at once.  Flags are derived from typed dataclasses by tyro.  A user's mistake is one line.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.console import first_line, listing, name_first, parse, progress, show, value_of

if TYPE_CHECKING:
    from sfumato.train import Run
    from sfumato.train.classifier import ClassifierRun


# train ----------------------------------------------------------------------------------------------------------------


def train(args: Sequence[str]) -> None:
    """train a recipe; to resume, give the same command again"""
    from sfumato import data, grids, nn, parameterization, samplers, times
    from sfumato.corruptions import PROCESSES
    from sfumato.losses import WEIGHTINGS
    from sfumato.options import unknown
    from sfumato.recipes import CLASSIFIER_RECIPES, RECIPES
    from sfumato.train import DECAYS
    from sfumato.train.objectives import OBJECTIVES

    tables = "\n".join(
        [
            "sfumato train RECIPE [--out DIR] [--init MODEL] [--dry-run] [any field of the run]\n",
            listing("recipes", {name: first_line(recipe.__doc__) for name, recipe in RECIPES.items()}),
            listing("classifiers", {name: first_line(recipe.__doc__) for name, recipe in CLASSIFIER_RECIPES.items()}),
            listing("data sets", {row: first_line(f.__doc__) for row, f in data.DATASETS.items()}),
            listing("networks", {row: network.summary for row, network in nn.NETWORKS.items()}),
            listing("schedules", list(PROCESSES)),
            listing("targets", list(parameterization.TARGETS)),
            listing("losses", list(OBJECTIVES)),
            listing("weightings", list(WEIGHTINGS)),
            listing("times", list(times.TIMES)),
            listing("learning rate decays", list(DECAYS)),
            listing("samplers", {name: row.summary for name, row in samplers.SAMPLERS.items()}),
            listing("grids", list(grids.GRIDS)),
        ]
    )
    if not args or args[0] in ("-h", "--help"):
        print(tables + "\nsfumato train RECIPE --help lists the fields of that recipe's run.")
        return
    name, rest = name_first(args, "a RECIPE", "sfumato train RECIPE")
    if name in CLASSIFIER_RECIPES:
        _train_classifier(name, CLASSIFIER_RECIPES[name](), rest)
        return
    if name not in RECIPES:
        raise unknown("recipe", name, [*RECIPES, *CLASSIFIER_RECIPES])
    _train(name, RECIPES[name](), rest, tables)


def _train(name: str, run: Run, rest: list[str], tables: str) -> None:
    from sfumato.model import load
    from sfumato.recipes import finish, fit, plan
    from sfumato.recipes.arguments import TrainArguments, run_like
    from sfumato.tasks import cost
    from sfumato.tasks.evaluate import table

    start = value_of(rest, "--init")
    init = load(start) if start else None
    if init is not None:
        run = run_like(run, init.config)
    given = parse(TrainArguments, f"train {name}", tables, rest, TrainArguments(run, Path("runs") / name, start))
    if given.dry_run:
        here, elsewhere = plan(given.run, init)
        if os.environ.get("RANK", "0") == "0":
            show(f"sfumato train {name}, planned", here)
            show(f"on GPUs by the cost model, at {cost.EFFICIENCY:.0%} of their rate", elsewhere, cost.HEADS)
        return
    command = shlex.join(["sfumato", "train", name, *rest])
    with _stopping(given.out), progress(given.run.steps, given.run.batch) as (say, report):
        training = fit(given.run, given.out, init, command, say, report)
    with _stopping(given.out):
        scores = finish(training, command, given.samples, say)
    if training.is_main:
        show(f"{given.out}: trained in {training.seconds:.0f} s", table(scores))
        say(f"samples.png, film.gif, loss.png, scores.json and model/ lie in {given.out}")
    training.accelerator.end_training()


@contextlib.contextmanager
def _stopping(out: Path) -> Iterator[None]:
    """A training that is stopped within says from which step the same command goes on."""
    from sfumato.train import state

    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(state.goes_on(out)) from None


def _train_classifier(name: str, run: ClassifierRun, rest: list[str]) -> None:
    from sfumato.recipes.arguments import ClassifierArguments
    from sfumato.recipes.classifiers import fit_classifier

    about = f"sfumato train {name} [--out DIR] [any field of the run]"
    given = parse(ClassifierArguments, f"train {name}", about, rest, ClassifierArguments(run, Path("runs") / name))
    with _stopping(given.out), progress(given.run.steps, given.run.batch) as (say, report):
        command = shlex.join(["sfumato", "train", name, *rest])
        scores = fit_classifier(given.run, given.out, command, say, report)
    by_t = scores.get("accuracy_by_t", {})
    rows = [("clean", scores["accuracy"]), *((f"x_t at t = {t}", share) for t, share in by_t.items())]
    title = f"{given.out}: accuracy on {scores['n']:,} held-out rows"
    show(title, [(what, f"{100 * share:.2f} %") for what, share in rows])


# sample, evaluate, models, reproduce ----------------------------------------------------------------------------------


def _sampling_tables(usage: str) -> str:
    from sfumato import grids, samplers
    from sfumato.model import zoo

    return "\n".join(
        [
            usage + "\n",
            listing("samplers", {name: row.summary for name, row in samplers.SAMPLERS.items()}),
            listing("grids", list(grids.GRIDS)),
            listing("models in the zoo", list(zoo())),
        ]
    )


def sample(args: Sequence[str]) -> None:
    """sample a model into a PNG grid, a folder or an .npz"""
    from sfumato.recipes.arguments import SampleArguments

    usage = (
        "sfumato sample MODEL [-n 64] [--sampler NAME] [--steps S] [--seed K] [--label L] [--guidance W] [--out FILE]"
    )
    if not args or args[0] in ("-h", "--help"):
        parse(SampleArguments, "sample MODEL", _sampling_tables(usage), ["--help"])
    name, rest = name_first(args, "a MODEL (a zoo name, a model folder or a run)", "sfumato sample MODEL")
    given = parse(SampleArguments, "sample MODEL", _sampling_tables(usage), rest)

    from sfumato.model import load
    from sfumato.processes import launched
    from sfumato.tasks import Draw, stream

    share = launched()
    model = load(name, ema=given.ema, precision=given.precision)
    draw = Draw(
        model,
        given.n,
        sampler=given.sampler,
        steps=given.steps,
        grid=given.grid,
        seed=given.seed,
        label=given.label,
        guidance=given.guide.guide(model),
        schedule=given.schedule,
        reuse=given.reuse,
        batch=given.batch,
        share=share,
    )
    start = time.perf_counter()
    stream(draw, given.out, {"model": str(name), "ema": given.ema, "precision": given.precision})
    if share.is_main:
        print(f"{given.n} samples of {name} in {time.perf_counter() - start:.3g} s: {given.out}")


def evaluate(args: Sequence[str]) -> None:
    """score a model, or a folder or .npz of pictures, and write a page that a person can read"""
    from sfumato.recipes.arguments import EvaluateArguments, GuideArguments

    usage = (
        "sfumato evaluate MODEL [-n 1000] [--reference test] [--features NAME] [--compare OTHER ...] [--page DIR]"
        " [--sampler NAME] [--steps S] [--guidance W] [--out FILE.json]"
    )
    if not args or args[0] in ("-h", "--help"):
        from sfumato.metrics import METRICS

        about = {name: first_line(sys.modules[row.__module__].__doc__) for name, row in METRICS.items()}
        tables = _sampling_tables(usage) + "\n" + listing("metrics", about)
        parse(EvaluateArguments, "evaluate MODEL", tables, ["--help"])
    what = "a MODEL (a zoo name, a model folder, a run) or pictures (a folder or .npz)"
    name, rest = name_first(args, what, "sfumato evaluate MODEL")
    given = parse(EvaluateArguments, "evaluate MODEL", usage, rest)

    from sfumato.checkpoints import native
    from sfumato.processes import launched
    from sfumato.tasks import examine, page
    from sfumato.tasks.asked import Asked

    asked = Asked(
        n=given.n,
        seed=given.seed,
        sampler=given.sampler,
        steps=given.steps,
        guide=None if given.guide == GuideArguments() else given.guide.guide,
        ode=given.ode,
        ema=given.ema,
        reference=given.reference,
        features=given.features,
        weights=given.weights,
        by_steps=given.by_steps,
    )
    names, share = [name, *given.compare], launched()
    where = given.page or page.folder_of(names)
    try:
        page.check_folder(where)
        found = examine.examine_all(
            names, asked, share=share, say=lambda text: print(f"measuring {text} ...") if share.is_main else None
        )
    except ValueError:
        if share.is_main:
            raise
        sys.exit(2)  # the first process says it
    if share.is_main:
        told = page.printed(found)
        show(told.title, told.rows, told.heads)
        for line in told.notes:
            print(f"note: {line}")
        page.write(where, found, shlex.join(["sfumato", "evaluate", *args]))
        if given.out:
            native.write_json(given.out, page.document(found))
        print(f"the page index.html and scores.json lie in {where}")


def models(args: Sequence[str]) -> None:
    """list the models and classifiers of the zoo, or print the card of one"""
    if args and args[0] in ("-h", "--help"):
        print("sfumato models [MODEL]\n\nThe models and classifiers of the zoo; of one MODEL, its card.")
        return
    if len(args) > 1:
        raise ValueError(f"sfumato models takes one MODEL at most; got {' '.join(args)}")
    from sfumato.classifier import classifiers, load_classifier
    from sfumato.model import load, zoo

    if args:
        classifier = args[0] in classifiers() and args[0] not in zoo()
        print((load_classifier(args[0]) if classifier else load(args[0])).card.strip())
        return

    rows = []
    for name, folder in zoo().items():
        config = load(folder).config
        size = (folder / "model.safetensors").stat().st_size / 2**20
        scores = config.training.get("scores", {})
        told = f"{scores['bits_per_dim']['value']:.3f} bits/dim" if "bits_per_dim" in scores else ""
        if "agreement" in scores:
            told += f", {100 * scores['agreement']['value']:.1f} % agreement"
        rows.append((name, f"{config.kind} {config.shape}", f"{size:.2f} MiB", told))
    show("models in the zoo", rows, ("name", "makes", "size", "measured"))
    rows = []
    for name, folder in classifiers().items():
        about = load_classifier(name).config
        size = (folder / "model.safetensors").stat().st_size / 2**20
        kind = "clean" if about.schedule is None else "noise-aware"
        told = f"{100 * about.training['scores']['accuracy']:.2f} % right"
        rows.append((name, f"{kind} {about.shape}", f"{size:.2f} MiB", told))
    show("classifiers in the zoo", rows, ("name", "sees", "size", "measured"))
    print("sfumato models NAME prints a card: the data and their licence, the command, all scores")


def export(args: Sequence[str]) -> None:
    """write a model as a folder that diffusers reads"""
    if not args or args[0] in ("-h", "--help"):
        print("sfumato export MODEL FOLDER\n\nMODEL as a new FOLDER that diffusers' DDPMPipeline reads, and sfumato.")
        return
    if len(args) != 2:
        raise ValueError(f"sfumato export takes a MODEL and a FOLDER; got {' '.join(args)}")
    from sfumato.model import load

    load(args[0]).export(args[1])
    print(f"{args[0]} lies in {args[1]}: diffusers.DDPMPipeline.from_pretrained({args[1]!r}) reads it")


def reproduce(args: Sequence[str]) -> None:
    """rebuild a table or figure of the literature into reports/NAME"""
    from sfumato.experiments import EXPERIMENTS
    from sfumato.experiments import reproduce as compute
    from sfumato.recipes.arguments import ReproduceArguments

    usage = "sfumato reproduce NAME [--quick] [--model MODEL] [--out DIR] [--seed K]\n\n" + listing(
        "experiments", {name: row.summary for name, row in EXPERIMENTS.items()}
    )
    if not args or args[0] in ("-h", "--help"):
        parse(ReproduceArguments, "reproduce NAME", usage, ["--help"])
    name, rest = name_first(args, "the NAME of an experiment", "sfumato reproduce NAME")
    given = parse(ReproduceArguments, f"reproduce {name}", usage, rest)
    say = lambda text: print(text, flush=True)  # noqa: E731
    try:
        where = compute(name, quick=given.quick, model=given.model, out=given.out, seed=given.seed, say=say)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on with what is not finished") from None
    print(f"the page README.md, {name}.png and {name}.csv lie in {where}")


def doctor(args: Sequence[str]) -> None:
    """measure every sampler's declared order against exact solutions; exit status 1 if one falls short"""
    from sfumato.recipes.arguments import DoctorArguments

    usage = "sfumato doctor [--schedule NAME] [--out FILE.json]"
    given = parse(DoctorArguments, "doctor", usage, args)

    from sfumato import engine
    from sfumato.checkpoints import native
    from sfumato.tasks import doctor as measure

    print(engine.here())
    found = []
    for finding in measure.findings(given.schedule):
        print(f"measured {finding.sampler}", file=sys.stderr)
        found.append(finding)
    show(f"samplers on exact solutions, schedule {given.schedule}", measure.table(found), measure.HEADS)
    print(measure.LEGEND)
    density = measure.likelihood(given.schedule)
    print(density)
    if given.out:
        native.write_json(given.out, measure.document(given.schedule, found, density))
    if not (density.passes and all(finding.passes for finding in found)):
        sys.exit(1)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "models": models,
    "export": export,
    "reproduce": reproduce,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 2 and one line on stderr for a user's mistake."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print("sfumato: denoising diffusion, from the first equation to a trained model\n")
        print(
            listing(
                "sfumato COMMAND --help tells more; commands", {k: first_line(f.__doc__) for k, f in COMMANDS.items()}
            )
        )
        return 0
    if args[0] == "--version":
        from sfumato import __version__

        print(__version__)
        return 0
    from sfumato.options import unknown

    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], COMMANDS)
        COMMANDS[args[0]](args[1:])
    except ValueError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # the disk or the rights, where no closer message was found
        where = f" {error.filename}" if error.filename else ""
        print(
            f"sfumato: cannot read or write{where}: {error.strerror or error}; mend that and try again", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt as stop:
        print("; ".join(["sfumato: stopped", *map(str, stop.args)]), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
