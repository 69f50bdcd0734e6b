"""Weights as files for other uses, in one folder.

model.safetensors   the weights
config.json         the configuration of their model
MANIFEST.json       sizes and hashes of both, checked whenever one is read
README.md           the model card
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from msde.checkpoints.card import write_pretrained_card
from msde.config import Config, from_dict, read_json, to_dict
from msde.data.manifest import NAME as SHARDS
from msde.errors import MsdeError
from msde.files import (
    MANIFEST,
    MODEL,
    Shipped,
    check_file,
    hash_files,
    write_atomically,
    write_folder_manifest,
    write_json,
)
from msde.model import MoleculeSDE

log = logging.getLogger("msde")

FORMAT = "msde-weights/1"
CONFIG = "config.json"
HEAD = "displacements."  # tensors that loss.coefficient_displacements adds to a model
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
    write_atomically(folder / MODEL, lambda path: save_file(state, path))
    write_json(folder / CONFIG, to_dict(config))
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
    if not folder.exists():
        name = str(folder)
        path = f"; msde.shipped_checkpoint({name!r}) is the folder of those that come with msde"
        hint = path if name in get_args(Shipped) else ""
        raise MsdeError(f"{folder} cannot be read: it does not exist{hint}")
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


def check_start(config: Config, folder: Path) -> None:
    """Check that training can start from the weights in a folder, by names and shapes alone.

    Raises:
        MsdeError: there are none, or they are of another model; the first wrong tensor is named.
    """
    path = folder / MODEL
    if not path.exists():
        raise MsdeError(
            f"{folder} holds no {MODEL}; expected the folder of a run, of its best/, of a "
            "checkpoint or of a converted one"
        )
    with torch.device("meta"):
        expected = MoleculeSDE(config).state_dict()
        try:
            with safe_open(path, "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise MsdeError(f"{path} cannot be read: {error}") from error
        found = {name: torch.empty(shape) for name, shape in shapes.items()}
    try:
        _check_fit(path, _with_own_head(found, expected), expected)
    except MsdeError as error:
        raise MsdeError(
            f"{error}; leave out the settings of model.* that differ from {folder / CONFIG}"
        ) from error


def start_from(model: MoleculeSDE, folder: Path) -> None:
    """Load the weights in a folder into a model to be trained, which may add or drop the head.

    Raises:
        MsdeError: as of `fill`.
    """
    found, expected = read_state(folder), model.state_dict()
    fitted = _with_own_head(found, expected)
    _check_fit(folder / MODEL, fitted, expected)
    model.load_state_dict(fitted)
    log.info("weights from %s", folder)
    if found.keys() != fitted.keys():
        starts = any(name.startswith(HEAD) for name in expected)
        what = "starts from the seed" if starts else "is left out"
        log.info("the head that finds displacements %s", what)


def _with_own_head(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return stored tensors with the head of a model in place of one that is missing or extra."""
    own = {name: tensor for name, tensor in expected.items() if name.startswith(HEAD)}
    kept = {n: t for n, t in found.items() if n in expected or not n.startswith(HEAD)}
    return own | kept


def fill(model: MoleculeSDE, folder: Path) -> None:
    """Load the weights in a folder into a model.

    Raises:
        MsdeError: the file cannot be read, or a tensor is missing, extra or of another shape; the
            first one is named.
    """
    found = read_state(folder)
    _check_fit(folder / MODEL, found, model.state_dict())
    model.load_state_dict(found)


def _check_fit(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        if name not in found:
            raise MsdeError(f"{path}: {name} is missing")
        if found[name].shape != expected[name].shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
            raise MsdeError(f"{path}: {name} has shape {shapes}")
    for name in found.keys() - expected.keys():
        raise MsdeError(f"{path}: {name} is not a tensor of this model")


def load_weights(folder: Path | str) -> MoleculeSDE:
    """Rebuild the model of a run, its `best/`, a checkpoint or a converted one, for evaluation.

    Raises:
        MsdeError: the weights or their configuration cannot be read.
    """
    folder = find_weights(Path(folder))
    model = MoleculeSDE.from_seed(read_config(folder))  # leaves torch's generator alone
    fill(model, folder)
    return model.eval()
