"""Batches that reach a GPU on a stream of their own, while it computes the steps before."""

from __future__ import annotations

import collections
import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, NoReturn, TypeVar

import torch

from msde.data.batch import MoleculeBatch

T = TypeVar("T")


class PrefetchedSlots(NamedTuple):
    """The slots of a step, and what has to have happened on the GPU before they are there."""

    slots: list[MoleculeBatch]
    done: torch.cuda.Event

    def wait(self) -> list[MoleculeBatch]:
        """Have the current stream wait for them, and the GPU keep their memory until it is done."""
        current = torch.cuda.current_stream(self.slots[0].pos.device)
        current.wait_event(self.done)
        for batch in self.slots:
            for tensor in batch.tensors().values():
                tensor.record_stream(current)
        return self.slots


class SideStream:
    """Has a GPU copy or make batches beside the work of its current stream."""

    def __init__(self, device: torch.device) -> None:
        """Begin when all is done that the GPU has been told so far."""
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def send(self, make: Callable[[], list[MoleculeBatch]]) -> PrefetchedSlots:
        """Have `make` tell the GPU what to copy and to compute; wait for none of it."""
        with torch.cuda.stream(self._stream):
            return PrefetchedSlots(make(), self._stream.record_event())


def map_in_threads(
    prepare: Callable[..., T], tasks: Iterator[tuple[int, int]], workers: int
) -> Generator[T, None, None]:
    """Yield prepare(*task) for each task in order, worked out by `workers` threads ahead."""
    # Threads, not processes: NumPy, zlib and LMDB release the interpreter for all that takes time,
    # nothing has to be copied or pickled, and no signal can end a worker alone.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="window")
    pending: collections.deque[Future[T]] = collections.deque()
    try:
        while True:
            while len(pending) <= workers:
                pending.append(pool.submit(prepare, *next(tasks)))
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield the items, of which a thread works out up to `depth` ahead."""
    ready: queue.Queue[Callable[[], T]] = queue.Queue(depth)
    stop = threading.Event()

    def offer(item: Callable[[], T]) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            while not stop.is_set():
                item = next(items)
                offer(lambda item=item: item)  # type: ignore[misc]
        except BaseException as error:  # the training thread raises it
            offer(functools.partial(_raise, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            yield ready.get()()
    finally:
        stop.set()
        thread.join()


def _raise(error: BaseException) -> NoReturn:
    raise error
