"""Weights on disk for use elsewhere: model.safetensors and config.json in one folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from msde.config import Config, from_dict, read_json, to_dict
from msde.files import write_atomically
from msde.model import MoleculeSDE


def save_weights(state: dict[str, Tensor], config: Config, folder: Path) -> None:
    """Write weights and configuration to `folder`; each file appears in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path))
    write_atomically(folder / "config.json", lambda path: path.write_text(text))


def load_weights(folder: Path | str) -> MoleculeSDE:
    """Rebuild the model of a run's `best/` or of one of its checkpoints, in evaluation mode.

    Raises:
        MsdeError: the folder holds no configuration that can be read.
    """
    folder = Path(folder)
    model = MoleculeSDE(from_dict(read_json(folder / "config.json")))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
