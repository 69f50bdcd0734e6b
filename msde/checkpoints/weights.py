"""Weights as files for other uses, in one folder.

model.safetensors   the weights
config.json         the configuration of their model
MANIFEST.json       sizes and hashes of both, checked whenever one is read
README.md           the model card
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msde.checkpoints.card import write_pretrained_card
from msde.config import Config, from_dict, read_json, to_dict
from msde.data.manifest import NAME as SHARDS
from msde.errors import MsdeError
from msde.files import MANIFEST, check_file, hash_files, write_atomically, write_folder_manifest
from msde.model import MoleculeSDE

log = logging.getLogger("msde")

FORMAT = "msde-weights/1"
MODEL = "model.safetensors"
CONFIG = "config.json"
FINE_TUNED = ("task", "facts")  # in the CONFIG of a fine-tuning, and of a model that it leaves


def save_weights(
    state: dict[str, Tensor], config: Config, folder: Path, origin: Sequence[str] = ()
) -> None:
    """Write weights, configuration, card and MANIFEST to `folder`, each file as a whole.

    Args:
        origin: what is known of the training, for the card.
    """
    # Without it the folder can be read even if this process ends between two files.
    (folder / MANIFEST).unlink(missing_ok=True)
    write_weights(state, config, folder, origin)
    seal(folder, [MODEL, CONFIG])


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the MANIFEST of files of weights."""
    write_folder_manifest(folder, {"format": FORMAT, "files": hash_files(folder, names)})


def write_weights(
    state: dict[str, Tensor], config: Config, folder: Path, origin: Sequence[str] = ()
) -> None:
    """Write weights, configuration and card to `folder`, each file as a whole, without MANIFEST."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_atomically(folder / MODEL, lambda path: save_file(state, path))
    write_atomically(folder / CONFIG, lambda path: path.write_text(text))
    write_pretrained_card(folder, state, config, origin)


def read_config(folder: Path) -> Config:
    """Return the configuration of the weights in a folder.

    Raises:
        MsdeError: the file cannot be read, is not as it was written, or is not one of weights.
    """
    if folder.is_file():
        raise MsdeError(
            f"{folder} is a file, expected a folder of weights or a run; of a published checkpoint "
            "'python -m msde.launch.convert_checkpoint --from-published' makes one"
        )
    if not (folder / CONFIG).exists() and (folder / SHARDS).exists():
        raise MsdeError(
            f"{folder} is a folder of shards, expected weights or a run; give the data set as "
            "--data or --input"
        )
    is_sealed, values = check_file(folder / CONFIG), read_json(folder / CONFIG)
    if not values.keys().isdisjoint(FINE_TUNED):
        raise MsdeError(
            f"{folder} holds a fine-tuned model, expected pretrained weights; "
            f"'python launch/predict.py --model {folder}' predicts with it, in Python "
            "msde.downstream.prediction.FineTuned.load"
        )
    if not is_sealed:
        _warn_unsealed(folder)
    return from_dict(values, str(folder / CONFIG))


def read_state(folder: Path) -> dict[str, Tensor]:
    """Return the stored tensors of a folder.

    Raises:
        MsdeError: the file cannot be read, or is not as it was written.
    """
    path = folder / MODEL
    _check(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MsdeError(f"{path} cannot be read: {error}") from error


def _check(path: Path) -> None:
    """Check a file that MANIFEST names; say once of a folder that it has none."""
    if not check_file(path) and path.exists():
        _warn_unsealed(path.parent)


@functools.cache
def _warn_unsealed(folder: Path) -> None:
    log.warning(
        "%s has no %s, as folders that earlier releases wrote: its files cannot be checked",
        folder,
        MANIFEST,
    )


def find_weights(folder: Path) -> Path:
    """Return the folder of the weights that a folder stands for.

    Of a run these are the best ones, or those of its newest complete checkpoint.
    """
    complete = sorted((folder / "checkpoints").glob(f"step-*/{MANIFEST}"), reverse=True)
    candidates = [folder, folder / "best", *(path.parent for path in complete)]
    return next((path for path in candidates if (path / MODEL).exists()), folder)


def fill(model: MoleculeSDE, folder: Path) -> None:
    """Load the weights in a folder into a model.

    Raises:
        MsdeError: the file cannot be read, or a tensor is missing, extra or of another shape; the
            first one is named.
    """
    path, found = folder / MODEL, read_state(folder)
    expected = model.state_dict()
    for name in expected:
        if name not in found:
            raise MsdeError(f"{path}: {name} is missing")
        if found[name].shape != expected[name].shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            raise MsdeError(f"{path}: {name} has shape {shapes}")
    for name in found.keys() - expected.keys():
        raise MsdeError(f"{path}: {name} is not a tensor of this model")
    model.load_state_dict(found)


def load_weights(folder: Path | str) -> MoleculeSDE:
    """Rebuild the model of a run, its `best/`, a checkpoint or a converted one, for evaluation.

    Raises:
        MsdeError: the weights or their configuration cannot be read.
    """
    folder = find_weights(Path(folder))
    model = MoleculeSDE.from_seed(read_config(folder))  # leaves torch's generator alone
    fill(model, folder)
    return model.eval()
