"""Prefetching: threads that prepare windows and batches ahead, and copies beside a GPU's work."""

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
    """The batches of a step, which a GPU still makes on a stream of their own."""

    slots: list[MoleculeBatch]
    done: torch.cuda.Event  # after the last kernel that makes them

    def wait(self) -> list[MoleculeBatch]:
        """Return the batches; the current stream waits for them and keeps their memory alive."""
        current = torch.cuda.current_stream(self.slots[0].pos.device)
        current.wait_event(self.done)
        for batch in self.slots:
            for tensor in batch.tensors().values():
                tensor.record_stream(current)
        return self.slots


class SideStream:
    """A CUDA stream on which batches are copied and expanded while the current stream computes."""

    def __init__(self, device: torch.device) -> None:
        """Create the stream; its work starts after the work queued so far."""
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def send(self, make: Callable[[], list[MoleculeBatch]]) -> PrefetchedSlots:
        """Queue the kernels of `make` on the stream and return without waiting for them."""
        # A new thread is on GPU 0, to which leaving the stream would return: every rank of a
        # machine would then take memory there.
        torch.cuda.set_device(self._stream.device)
        with torch.cuda.stream(self._stream):
            return PrefetchedSlots(make(), self._stream.record_event())


def map_in_threads(
    function: Callable[..., T], tasks: Iterator[tuple[int, int]], workers: int
) -> Generator[T, None, None]:
    """Yield function(*task) for each task in order; `workers` threads compute them ahead."""
    # Threads, not processes: NumPy, zlib and LMDB release the GIL in all that takes time, nothing
    # is copied or pickled, and no signal ends a single worker.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="window")
    pending: collections.deque[Future[T]] = collections.deque()
    try:
        while True:
            while len(pending) <= workers:
                pending.append(pool.submit(function, *next(tasks)))
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield the items; a thread computes up to `depth` of them ahead."""
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
        except BaseException as error:  # raised again in the training thread
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
