"""State dicts of published checkpoints as training loops save them: in dicts, with prefixes."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from msde.checkpoints.published import State
from msde.errors import DataDamaged, MsdeError

# The published parts, and a tensor that each alone has, whatever its sizes.
PARTS = {
    "model_2D": "gnns.0.eps",
    "model_3D": "embedding.weight",
    "SDE_2Dto3D_model": "node_emb.layers.0.weight",
    "SDE_3Dto2D_model": "embedding_3D.weight",
}
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")  # names of dicts around them
MAX_WRAPPERS = 2  # one in the other
PARALLEL = "module."
SHOWN = 3  # names in an error


def read_published(path: Path) -> tuple[dict[str, State], list[str]]:
    """Read a published checkpoint; only tensors are unpickled.

    The four state dicts may lie in another dict, of their own or of the whole, as training loops
    save them; their names may start with `module.`, as those of models that were trained in
    parallel, or with the names of the parts.

    Returns:
        The state dicts, and the names of what else is in the file.

    Raises:
        MsdeError: the file cannot be read, or does not hold the state dicts.
    """
    checkpoint, left_out = _unwrapped(_load(path))
    if checkpoint and _is_state(checkpoint):
        checkpoint = _split(path, _without_module(checkpoint))
    parts: dict[str, State] = {}
    for name, value in checkpoint.items():
        state, others = _unwrapped(value) if isinstance(value, dict) else (value, [])
        if isinstance(state, dict) and _is_state(state):
            parts[name] = _without_module(state)
            left_out += [f"{name}.{other}" for other in others]
        elif name in PARTS:
            raise MsdeError(f"{path}: {name} is not a dict of tensors")
        else:
            left_out.append(str(name))
    if not parts.keys() & set(PARTS):
        raise MsdeError(f"{path} holds {_listed(checkpoint)}; expected {', '.join(PARTS)}")
    return parts, left_out


def _load(path: Path) -> dict[Any, Any]:
    try:
        if zipfile.is_zipfile(path):  # torch does not compare its checksums
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
            if damaged:
                raise DataDamaged(f"{path} is damaged (CRC32 of {damaged!r} differs)")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MsdeError(f"{path} cannot be read: {error.strerror}") from error
    except DataDamaged:
        raise
    except Exception as error:  # the unpickler fails on bytes of other kinds in many ways
        objects = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = "torch.save has not written it, or it is damaged"
        if objects:
            reason = f"it holds objects of {objects[1]}; save the state dicts without them"
        raise MsdeError(f"{path} is not a checkpoint of tensors alone: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise MsdeError(f"{path} holds {type(checkpoint).__name__}, expected a dict of state dicts")
    return checkpoint


def _is_state(value: dict[Any, Any]) -> bool:
    return all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _unwrapped(checkpoint: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """Return the dict inside the dicts of a training loop, and the names of what lies beside."""
    left_out: list[str] = []
    for _ in range(MAX_WRAPPERS):
        key = next((key for key in WRAPPERS if isinstance(checkpoint.get(key), dict)), None)
        if key is None:
            break
        left_out += [str(other) for other in checkpoint if other != key]
        checkpoint = checkpoint[key]
    return checkpoint, left_out


def _without_module(state: State) -> State:
    while state and all(name.startswith(PARALLEL) for name in state):
        state = {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    return state


def _split(path: Path, state: State) -> dict[str, State]:
    """Divide one state dict whose names start with those of the parts.

    Raises:
        MsdeError: it is a part alone, or of another network.
    """
    if not all(name.partition(".")[0] in PARTS for name in state):
        part = next((part for part, name in PARTS.items() if name in state), None)
        found = f"{part} alone" if part else f"tensors of another network, {_listed(state)}"
        raise MsdeError(
            f"{path} holds {found}; expected the state dicts of all parts, {', '.join(PARTS)}"
        )
    parts: dict[str, State] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _listed(names: Iterable[Any]) -> str:
    names = list(map(str, names))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"
