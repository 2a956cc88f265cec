"""Folders of diffusers, both ways: what its ``DDPMPipeline`` saves as a model of ours, and a model of ours as that.

    unet/config.json  unet/diffusion_pytorch_model.safetensors      a ``UNet2DModel``: what builds it, and its weights
    scheduler/scheduler_config.json                                 its betas, and what the network predicts
    model_index.json                                                the names of these two
    sfumato.json                                                    ours: all that theirs cannot say, and the card

The folder of the network alone is read too, then with DDPM's betas.  Theirs is the function of our UNet with

    W h + b             q, k, v are one map of ours, all that the embedding says to the blocks another: theirs, stacked
    flip_sin_to_cos     features [cos, sin] where ours are [sin, cos]: the halves of a matrix's columns change places

`diffusers_keys` names the tensors, `diffusers_options` the options.  Neither way needs diffusers installed: all of it
is JSON and safetensors.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, whose CIFAR-10 network this is
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoints import diffusers_keys as keys
from sfumato.checkpoints import diffusers_options as options
from sfumato.checkpoints import native
from sfumato.nn import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def recognised(folder: Path) -> bool:
    """Whether a folder is a pipeline of diffusers, or one of its networks alone."""
    if (folder / "model_index.json").exists():
        return True
    try:
        return "_class_name" in native.read_json(folder / "config.json")
    except ValueError:
        return False


# theirs as ours -------------------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, config and card of diffusers' folder, as `native.read_model` gives those of ours.

    Raises ValueError that says which file or option is in the way.
    """
    folder = Path(folder)
    try:
        return _read(*_parts(folder))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder} does not read as diffusers': {type(error).__name__} {error}; a file of it was edited"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder}, of diffusers: {error}") from error


def _read(root: Path, network: Path, schedule: Path | None) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    told = options.UNET | _json(network / "config.json")
    noise = options.SCHEDULE | (_json(schedule) if schedule else {})
    theirs = {keys.renamed(key): x for key, x in native.read_tensors(_weights(network)).items()}
    if (root / "sfumato.json").exists():
        document = native.read_json(root / "sfumato.json")
        card = str(document.pop("card", ""))
        net = options.network(document)
        _check_beside(document, net, told, noise)
    else:
        document = options.document(told, noise)
        card = _card(root, document, schedule is not None)
        net = options.network(document)
        if "class_embedding.weight" in theirs:  # one row more: "no label" adds nothing
            theirs["class_embedding.weight"] = F.pad(theirs["class_embedding.weight"], (0, 0, 0, 1))
    _check_tensors(theirs, net)
    if told["flip_sin_to_cos"]:
        columns = theirs["time_embedding.linear_1.weight"]
        theirs["time_embedding.linear_1.weight"] = columns.roll(columns.shape[1] // 2, 1)
    return keys.from_theirs(theirs, net.config), document, card


def _parts(folder: Path) -> tuple[Path, Path, Path | None]:
    """The folder of all, that of the network, and the schedule's file or None; looked for where diffusers does."""
    if folder.name == "unet" and (folder.parent / "model_index.json").exists():
        folder = folder.parent
    if not (folder / "model_index.json").exists():
        return folder, folder, None
    index = native.read_json(folder / "model_index.json")
    parts = {name: part[-1] for name, part in index.items() if isinstance(part, list) and part[-1:] != [None]}
    if "unet" not in parts or parts.keys() - {"unet", "scheduler"}:
        raise ValueError(
            f"model_index.json names {' and '.join(sorted(parts)) or 'nothing'}, allowed are a unet and a scheduler; "
            f"{options.IN}"
        )
    network, schedule = (folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler"))
    return folder, network, schedule / "scheduler_config.json" if "scheduler" in parts else None


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} is missing; take the whole folder that diffusers' save_pretrained wrote")
    return native.read_json(path)


def _weights(network: Path) -> Path:
    """The safetensors file of a network's folder; ValueError says what is there instead."""
    path = network / WEIGHTS
    if not path.exists():
        there = sorted(file.name for file in network.iterdir() if file.name.startswith("diffusion_pytorch_model"))
        mend = "write the folder again by diffusers' save_pretrained, in one file and without a variant"
        if any(name.endswith(".bin") for name in there):
            mend = (
                "a .bin is a pickle, which can run code when read, so it is refused: write the folder again by "
                "diffusers' save_pretrained(FOLDER, safe_serialization=True)"
            )
        raise ValueError(f"{path} is missing, there is {' and '.join(there) or 'nothing like it'}; {mend}")
    return path


def _card(root: Path, document: Mapping[str, Any], has_schedule: bool) -> str:
    """What is known of a model of others: our notes, then its own README."""
    lines = [f"# {root.resolve().name}", "", "A UNet2DModel read from a folder of diffusers."]
    if not has_schedule:
        lines.append("The folder does not say its noise: DDPM's 1,000 linear betas and the target eps are assumed.")
    if document["conditions"]["classes"]:
        lines.append("Its classes have no names there, nor is it known to have learned without a label (guidance).")
    readme = root / "README.md"
    return "\n".join(lines) + "\n" + (f"\n{readme.read_text()}" if readme.exists() else "")


def _check_beside(document: Mapping[str, Any], net: UNet, told: Mapping[str, Any], noise: Mapping[str, Any]) -> None:
    """ValueError unless sfumato.json says of network and noise what diffusers' files say."""
    schedule = options.schedule_config(document)
    written = options.unet_config(document, net) | {option: schedule[option] for option in options.SCHEDULE}
    for option, value in json.loads(json.dumps(written)).items():
        found = (noise if option in options.SCHEDULE else told)[option]
        if found != value:
            raise ValueError(
                f"{option} = {found!r} came, allowed is {value!r}, with which sfumato.json beside it was written; "
                "delete sfumato.json to read what diffusers' files alone say"
            )


def _check_tensors(theirs: Mapping[str, Tensor], net: UNet) -> None:
    """ValueError unless names and shapes are those of this network."""
    wanted = {key: tuple(x.shape) for key, x in keys.to_theirs(net.state_dict(), net).items()}
    found = {key: tuple(x.shape) for key, x in theirs.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        raise ValueError(
            f"the weights do not fit their config.json: {wrong[0]} is {found.get(wrong[0], 'missing')}, wanted is "
            f"{wanted.get(wrong[0], 'nothing')} ({len(wrong)} such in all); take the pair that was saved together"
        )


# ours as theirs -------------------------------------------------------------------------------------------------------


def write(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str = "") -> None:
    """A model of ours (its config's document, its weights) as a new folder that ``DDPMPipeline.from_pretrained`` reads.

    Written whole or not at all.  Raises ValueError for what diffusers has not, or if something is at `folder` already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, allowed is a new folder; give another name, or delete it")
    net = options.network(document)
    files = {
        "unet/config.json": options.unet_config(document, net),
        "scheduler/scheduler_config.json": options.schedule_config(document),
        "sfumato.json": {**document, "card": card},
        "model_index.json": INDEX,
    }
    theirs = keys.to_theirs(tensors, net)
    _check_tensors(theirs, net)
    fresh = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for file, said in files.items():
            native.write_json(fresh / file, said)
        weights = fresh / "unet" / WEIGHTS
        save_file({key: x.detach().cpu().clone() for key, x in theirs.items()}, weights, {"format": "pt"})
        weights.chmod(0o644)
        fresh.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write {folder}: {reason}; free space or choose another folder") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
