"""Features of molecules that were made lately: the runs of a suite share them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from msde.data.codec import MoleculeColumns
from msde.downstream.labels import TaskData

KEPT = 256 * 2**20  # bytes; 2,000 molecules in all layers of the shipped 2D encoder have 14 MB
# What no features depend on; all other columns are compared.
IGNORED = {"uid", "y", "name", "name_bytes", "forces", "num_forces"}
Features = TypeVar("Features")  # an array or a tensor
_recent: dict[str, Any] = {}


def remembered(source: bytes, data: TaskData, make: Callable[[], Features]) -> Features:
    """Return the features of molecules; they are made unless this process did so lately.

    Args:
        source: what they depend on besides the molecules.
    """
    digest = hashlib.sha256(source)
    for field in dataclasses.fields(MoleculeColumns):
        if field.name not in IGNORED:
            column = np.ascontiguousarray(getattr(data.columns, field.name))
            digest.update(f"{field.name} {column.dtype} {column.shape}".encode())
            digest.update(column.data)
    key = digest.hexdigest()
    found = _recent.pop(key) if key in _recent else make()
    _recent[key] = found  # the newest is the last, which stays
    while len(_recent) > 1 and sum(each.nbytes for each in _recent.values()) > KEPT:
        del _recent[next(iter(_recent))]
    return found
