"""The settings of a fine-tuning; each can be given as key=value."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from msde.config.document import explanations
from msde.config.resolve import apply_overrides, apply_values
from msde.config.schema import Readout
from msde.downstream.tasks import Task
from msde.errors import MsdeError, require

# The settings that decide which molecules a model is trained and tested on.
OF_SPLITS = ("split", "split_seed", "split_column", "train", "valid", "labels")


@dataclass
class Settings:
    """Everything that decides a fine-tuning, besides task, data and checkpoint."""

    # Encoders that the head sees; `both`: side by side.
    view: Literal["2d", "3d", "both"] = "2d"
    # Layers of the 2D encoder that the head sees, see `model.gin.readout`; `pretrained`: those that
    # pretraining had. The weights fit all of them.
    readout: Readout = "pretrained"
    # What is trained: all; the head alone; at first the head and then all; or all with rates that
    # fall towards the input.
    training: Literal["full", "frozen", "staged", "layerwise"] = "full"
    # Statistics of the 2D encoder's BatchNorm: of each `batch`, or those of pretraining, `kept`
    # (means of 0 and variances of 1 with init=random).
    norms: Literal["batch", "kept"] = "batch"
    # Epochs in which the head alone is trained, with training=staged.
    head_epochs: int = 10
    # Where the encoders' weights come from; `random`: only the network of the checkpoint is used.
    init: Literal["pretrained", "random"] = "pretrained"
    # Preset of the network where there is no checkpoint.
    preset: str = "base"
    # Passes over the training molecules.
    epochs: int = 100
    # Molecules of an optimizer step.
    batch_size: int = 128
    # Adam's learning rate at the start; it falls as a cosine, in every epoch.
    lr: float = 1e-4
    # Factor of `lr` for the head.
    head_lr_scale: float = 1.0
    # Factor of the learning rate from a layer to the one before, with training=layerwise.
    layer_decay: float = 0.7
    # L2 penalty that Adam adds to the gradient.
    weight_decay: float = 0.0
    # Dropout after each layer of the 2D encoder.
    dropout: float = 0.5
    # Loss: of classes `bce`; of numbers mean squared or mean absolute errors.
    loss: Literal["bce", "mse", "l1"] = "mse"
    # Weight of energies in the loss of energies and forces; forces have the rest.
    energy_weight: float = 0.05
    # Epochs without a better validation after which training stops. 0: never.
    patience: int = 30
    # Epochs between two validations.
    validate_every: int = 1
    # `scaffold` is that of the published code, with chirality; `deepchem` is without.
    split: Literal["scaffold", "deepchem", "random_scaffold", "random", "column"] = "scaffold"
    # Seed of the split, for `random_scaffold` and `random`, and of `labels` for all.
    split_seed: int = 0
    # Column that holds the part of each molecule, for split=column.
    split_column: str | None = None
    # Share of the molecules in the training part if below 1, else their number.
    train: float = 0.8
    # Share or number of those in the validation part.
    valid: float = 0.1
    # Train on so many molecules of the training part, drawn by the split's seed. null: on all.
    labels: int | None = None
    # Least seconds between two saved states.
    save_seconds: float = 20.0


def describe_settings() -> str:
    """Return a line for each setting: its name, allowed values, default and meaning."""
    texts = explanations(inspect.getsource(sys.modules[__name__]))["Settings"]
    lines = ["Settings, as key=value:", ""]
    for name, kind in get_type_hints(Settings).items():
        allowed = "|".join(get_args(kind)) if get_origin(kind) is Literal else ""
        default = json.dumps(getattr(Settings, name)).strip('"')
        facts = "; ".join(filter(None, (allowed, f"default: {default}")))
        lines += textwrap.wrap(f"{name}  {texts[name]} ({facts})", 96, initial_indent="  ",
                               subsequent_indent="      ")  # fmt: skip
    return "\n".join(lines)


def make_settings(task: Task, overrides: Iterable[str] = ()) -> Settings:
    """Return the settings of a task with the user's overrides.

    Raises:
        MsdeError: a key is not known, or a value is of a wrong type or out of range; all mistakes
            are listed.
    """
    settings = Settings()
    apply_values(settings, dict(task.settings), f"task {task.name}")
    apply_overrides(settings, overrides)
    check(settings, task)
    return settings


def differences(there: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Name the values that differ, such as `settings.lr (there 0.1, given 0.2)`."""
    return ", ".join(_differences(there, given, ""))


def _differences(there: Mapping[str, Any], given: Mapping[str, Any], above: str) -> list[str]:
    found: list[str] = []
    for key in {**given, **there}:
        one, other = there.get(key), given.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{above}{key}.")
        elif one != other:
            found.append(f"{above}{key} (there {one!r:.40}, given {other!r:.40})")
    return found


def check(settings: Settings, task: Task) -> None:
    """Raise an MsdeError that lists the values that are out of range or do not fit the task."""
    s = settings
    require(
        {
            "epochs, batch_size and validate_every must be at least 1": min(
                s.epochs, s.batch_size, s.validate_every
            )
            >= 1,
            "lr, head_lr_scale and layer_decay must be positive": min(
                s.lr, s.head_lr_scale, s.layer_decay
            )
            > 0,
            "dropout must be in [0, 1), energy_weight in [0, 1]": 0 <= s.dropout < 1
            and 0 <= s.energy_weight <= 1,
            "patience, weight_decay and head_epochs must be at least 0": min(
                s.patience, s.weight_decay, s.head_epochs
            )
            >= 0,
            "patience must be 0 or at least validate_every": s.patience == 0
            or s.patience >= s.validate_every,
            "training=staged needs more epochs than head_epochs": s.training != "staged"
            or s.epochs > s.head_epochs,
            "train and valid must be shares of a sum below 1, or whole numbers of molecules": (
                _are_sizes(s.train, s.valid)
            ),
            "labels must be at least 1": s.labels is None or s.labels >= 1,
            "split_seed must be at least 0 and below 2**32": 0 <= s.split_seed < 2**32,
            "split=column needs split_column=NAME, and only it does": (s.split == "column")
            == (s.split_column is not None),
        }
    )
    if (s.loss == "bce") != task.is_classification:
        expected = "bce" if task.is_classification else "mse or l1"
        raise MsdeError(f"loss={s.loss} does not fit {task.metric}, expected {expected}")
    if task.has_forces and (s.view != "3d" or s.training == "frozen"):
        raise MsdeError(
            f"{task.name} has forces, which only the 3D encoder gives: view=3d and training=full, "
            "staged or layerwise are needed"
        )


def _are_sizes(train: float, valid: float) -> bool:
    if train < 1 and valid < 1:
        return 0 < train and 0 < valid and train + valid < 1
    return train >= 1 and valid >= 1 and train == int(train) and valid == int(valid)
