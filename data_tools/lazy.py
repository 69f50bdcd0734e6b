"""Names of modules that take long to import, imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def offers(module: str, *names: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that offers `names` of another one.

    So a command's --help and wrong paths do not wait for libraries, and programs import from it.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"there is no {name!r} here; there are {', '.join(names)}")
        return getattr(importlib.import_module(module), name)

    return find
