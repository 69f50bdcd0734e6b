"""Features of molecules that were made lately: the runs of a suite share them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from msde.downstream.labels import TaskData

KEPT = 12  # of 2,000 molecules in all layers of the shipped 2D encoder each has 14 MB
Features = TypeVar("Features")
_recent: dict[str, Any] = {}


def remembered(source: bytes, data: TaskData, make: Callable[[], Features]) -> Features:
    """Return the features of molecules; they are made unless this process did so lately.

    Args:
        source: what they depend on besides uid and positions of the molecules.
    """
    columns = (data.columns.uid, data.columns.pos)
    parts = [source, *(np.ascontiguousarray(column).tobytes() for column in columns)]
    key = hashlib.sha256(b"".join(parts)).hexdigest()
    found = _recent.pop(key) if key in _recent else make()
    _recent[key] = found  # the newest is the last
    while len(_recent) > KEPT:
        del _recent[next(iter(_recent))]
    return found
