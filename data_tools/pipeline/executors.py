"""Where work is done: in this process, in local ones, on a Dask cluster or under MPI."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from msde.cluster.launcher import end_with_the_parent
from msde.errors import MsdeError

from ..parsing.types import RawMolecule
from .chunks import Converted, Task, convert_chunk

AHEAD = 4  # chunks under way for each worker: none waits, and memory stays bounded
ASSUMED_WORKERS = 64  # of an executor that the caller opened
CONNECT_SECONDS = 10  # that a cluster's scheduler may take to answer


@dataclass(frozen=True)
class Workers:
    """An executor and the number of its workers; without an executor, this process."""

    executor: Executor | None
    count: int


def _start_worker() -> None:
    """Prepare a local worker: signals go to the main process, and it ends with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_the_parent(signal.SIGKILL)
    main_process = multiprocessing.parent_process()
    if main_process is not None and not main_process.is_alive():
        os._exit(1)  # it was killed before the line above


@contextlib.contextmanager
def open_workers(
    executor: Executor | str, processes: int = 1, start_method: str | None = None
) -> Iterator[Workers]:
    """Start or reach the workers of `local`, `dask:ADDRESS` or `mpi`, or of an open executor.

    Args:
        processes: how many, for `local`; one means that this process does the work.
        start_method: of local processes; by default that of the platform. Those that train need
            "spawn": threads of torch do not live in a fork.

    Raises:
        MsdeError: a package is missing, or the cluster cannot be reached.
    """
    if not isinstance(executor, str):
        yield Workers(executor, ASSUMED_WORKERS)
        return
    scheme, _, address = executor.partition(":")
    if executor == "local":
        opened = _local(processes, start_method)
    elif scheme == "dask" and address:
        opened = _dask(address)
    elif executor == "mpi":
        opened = _mpi()
    else:
        raise MsdeError(f"--executor {executor}: expected local, dask:ADDRESS or mpi")
    with opened as workers:
        yield workers


@contextlib.contextmanager
def _local(processes: int, start_method: str | None) -> Iterator[Workers]:
    if processes == 1:
        yield Workers(None, 1)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context(start_method)
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker)
    try:
        yield Workers(pool, processes)
        pool.shutdown()
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # its work may take minutes, and the user has stopped it
        # The rest of a half-sent result never comes; the pool notices when the pipe is closed.
        pool._result_queue._writer.close()  # type: ignore[attr-defined]
        pool.shutdown(cancel_futures=True)
        raise


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Workers]:
    try:
        import distributed
    except ImportError as error:
        raise MsdeError("--executor dask needs a package: pip install 'msde[dask]'") from error
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise MsdeError(f"no Dask scheduler answers at {address}: {_first_line(error)}") from error
    with client:
        count = sum(client.nthreads().values())
        if not count:
            raise MsdeError(f"the Dask scheduler at {address} has no workers; start some")
        with _shut_down(client.get_executor(pure=False)) as executor:
            yield Workers(executor, count)


@contextlib.contextmanager
def _shut_down(executor: Any) -> Iterator[Any]:
    """Shut an executor down at the end, at once after an error."""
    try:
        yield executor
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False)
        raise


@contextlib.contextmanager
def _mpi() -> Iterator[Workers]:
    try:
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise MsdeError(
            "--executor mpi needs a package and an MPI library: pip install 'msde[mpi]' mpich"
        ) from error
    with _shut_down(MPIPoolExecutor()) as executor:
        if executor.num_workers < 1:
            raise MsdeError(
                "--executor mpi found no workers; start it with "
                "'mpiexec -n N python -m mpi4py.futures -m msde.data_tools.convert ...', N >= 2"
            )
        yield Workers(executor, executor.num_workers)


def converted(
    chunks: Iterable[tuple[int, list[RawMolecule]]], task: Task, workers: Workers
) -> Iterator[tuple[int, list[RawMolecule], Converted]]:
    """Convert numbered chunks; results come in the order of the input.

    Raises:
        MsdeError: a worker died.
    """
    if workers.executor is None:
        for first, raws in chunks:
            yield first, raws, convert_chunk(task, raws)
        return
    chunks = iter(chunks)
    pending: collections.deque[tuple[int, list[RawMolecule], Future]] = collections.deque()
    while True:
        while len(pending) < AHEAD * workers.count:
            chunk = next(chunks, None)
            if chunk is None:
                break
            with worker_failure_as_error(_place(chunk[1])):
                pending.append((*chunk, workers.executor.submit(convert_chunk, task, chunk[1])))
        if not pending:
            return
        first, raws, future = pending.popleft()
        with worker_failure_as_error(_place(raws)):
            result = future.result()
        yield first, raws, result


def _place(raws: list[RawMolecule]) -> str:
    return f"near line {raws[0].line} of {raws[0].source}"


@contextlib.contextmanager
def worker_failure_as_error(where: str) -> Iterator[None]:
    """Say in one line what became of a worker.

    Raises:
        MsdeError: it died or failed; or its own.
    """
    try:
        yield
    except BrokenExecutor as error:
        raise MsdeError(
            f"a worker process died, perhaps for lack of memory, {where}; try fewer --processes"
        ) from error
    except MsdeError:
        raise
    except Exception as error:  # each executor has its own for workers that are lost
        raise MsdeError(
            f"a worker failed {where}: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
