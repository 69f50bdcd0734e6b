"""Pickled molecules; readers load them only from files that the user trusts."""

from __future__ import annotations

import pickle
from typing import Any

from msde.chem.vocabulary import MoleculeError


def load_pickle(data: bytes) -> Any:
    """Load a pickle.

    Raises:
        MoleculeError: it cannot be loaded.
    """
    try:
        return pickle.loads(data)
    except ModuleNotFoundError as error:
        raise MoleculeError(f"cannot be unpickled: it needs the package {error.name}") from error
    except Exception as error:  # a pickle can raise anything
        raise MoleculeError(f"cannot be unpickled: {type(error).__name__}") from error


def load_dict(data: bytes) -> dict[str, Any]:
    """Load a pickled dict.

    Raises:
        MoleculeError: it cannot be loaded, or is something else.
    """
    loaded = load_pickle(data)
    if not isinstance(loaded, dict):
        raise MoleculeError(f"is a {type(loaded).__name__}, expected a dict")
    return loaded


def graph_fields(data: Any) -> dict[str, Any]:
    """Return the fields of a graph of any version of PyTorch Geometric, or of a dict.

    Raises:
        MoleculeError: it is something else.
    """
    if isinstance(data, dict):
        return data
    # Graphs that old versions pickled keep their fields in the object, and lack newer methods.
    fields = getattr(data, "__dict__", None)
    if fields is None:
        raise MoleculeError(f"is a {type(data).__name__}, expected a graph")
    return dict(fields["_store"]._mapping) if "_store" in fields else dict(fields)
