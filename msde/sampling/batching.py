"""How much is sampled at a time: chunks of molecules, and batches of limited cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
CHUNK = 256  # molecules whose samples are made together, similar sizes side by side


def limited_batches(
    items: Iterable[Item], cost: Callable[[Item], int], limit: int
) -> Iterator[list[Item]]:
    """Cut items, in order, into batches whose costs add up to at most `limit`.

    An item of a larger cost is a batch of its own.
    """
    part: list[Item] = []
    total = 0
    for item in items:
        more = cost(item)
        if part and total + more > limit:
            yield part
            part, total = [], 0
        part.append(item)
        total += more
    if part:
        yield part
