"""State dicts as training scripts wrap them: below a key, with prefixes, or one part alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from msde.checkpoints import published
from msde.errors import MsdeError

PARTS = tuple(published.PARTS.values())
# Keys under which scripts save a model beside the state of the optimizer, the epoch, ...
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network")
PREFIX = "module."  # of torch's DistributedDataParallel and DataParallel
# A tensor that only this part of the published model has.
MARKERS = {
    "atom_encoder.atom_embedding_list.0.weight": "model_2D",
    "distance_expansion.offset": "model_3D",
    "filter_net.weight": "model_3D",
    "node_emb.layers.0.weight": "SDE_2Dto3D_model",
    "embedding_3D.weight": "SDE_3Dto2D_model",
}


def unwrap(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the state dicts of a checkpoint's parts, and what was taken off, a line each.

    Raises:
        MsdeError: it is another model, or only a part of one.
    """
    lines = []
    while not checkpoint.keys() & set(PARTS):
        key = next((k for k in WRAPPERS if isinstance(checkpoint.get(k), dict)), None)
        if key is None:
            break
        others = ", ".join(sorted(map(str, checkpoint.keys() - {key})))
        lines.append(f"read from {key!r}{f', without {others}' if others else ''}")
        checkpoint = checkpoint[key]
    is_prefixed = False
    if checkpoint and all(str(name).startswith(PREFIX) for name in checkpoint):
        checkpoint, is_prefixed = _without_prefix(checkpoint), True
    tensors = {name: t for name, t in checkpoint.items() if isinstance(t, Tensor)}
    if tensors and len(tensors) == len(checkpoint):
        checkpoint = _grouped(tensors)
    for part, state in checkpoint.items():
        if isinstance(state, dict) and state and all(str(n).startswith(PREFIX) for n in state):
            checkpoint, is_prefixed = checkpoint | {part: _without_prefix(state)}, True
    if is_prefixed:
        lines.append(f"names of tensors without {PREFIX!r}")
    return checkpoint, lines


def _without_prefix(state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def _grouped(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the tensors of one state dict for all parts as one state dict for each."""
    parts: dict[str, Any] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    if parts.keys() & set(PARTS):
        return parts
    alone = next((part for name, part in MARKERS.items() if name in tensors), None)
    if alone:
        others = ", ".join(part for part in PARTS if part != alone)
        raise MsdeError(
            f"it holds {alone} alone, without {others}; give the file that holds the complete model"
        )
    if "encoder_2d" in parts:
        raise MsdeError("it holds a model of this project; give the folder it came from instead")
    raise MsdeError(
        f"it holds the tensors of another model, {next(iter(tensors))} for example; "
        f"expected state dicts of {', '.join(PARTS)}"
    )
