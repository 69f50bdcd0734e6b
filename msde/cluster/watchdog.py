"""Detecting ranks that are dead or hang, and ending when the launcher has ended.

Most collectives fail by themselves after a timeout; where one does not, a thread ends the process.
Every rank sends a heartbeat once a second, so that a rank that fails can name the silent ones.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from msde.cluster import ranks
from msde.cluster.launcher import Launcher
from msde.cluster.preemption import LAUNCHER_GONE, StopRequest
from msde.errors import MsdeError

BEAT = 1.0  # seconds between two heartbeats
SILENT = 3.5  # seconds without a heartbeat after which a rank is called silent
GRACE = 6.0  # seconds for a checkpoint when the launcher is gone
STARTING = 1800.0  # seconds that ranks wait for each other at least outside of steps
_EXIT_CODE = 4
T = TypeVar("T")


class CommunicationFailed(MsdeError):
    """Ranks cannot reach each other any more."""

    exit_code = _EXIT_CODE
    report_immediately = True


def limit_waiting(seconds: float) -> None:
    """Set the timeout of the collectives of all groups that there are.

    DeepSpeed's groups are clones of the world's group, but with the default timeout of half an hour
    instead of the one that the world's was made with.
    """
    timeout = datetime.timedelta(seconds=seconds)
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def is_communication_failure(error: BaseException) -> bool:
    """Return whether an error comes from a collective without one of its ranks."""
    text = str(error)
    parts = ("gloo", "Connection closed by peer", "Connection reset", "Timed out waiting", "NCCL")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(part in text for part in parts)
    )


class Watchdog:
    """Threads that send this rank's heartbeat, and watch its progress and the launcher."""

    def __init__(self, timeout: float, stop: StopRequest, launcher: Launcher) -> None:
        """Start watching the launcher.

        Args:
            timeout: seconds that may pass between two calls of `progress`.
            stop: request that is made when the launcher is gone.
        """
        self._timeout, self._stop_request, self._launcher = timeout, stop, launcher
        self._limit, self._last = math.inf, time.monotonic()
        self._orphan_since: float | None = None
        self._stalled: tuple[float, list[bytes | None] | None] | None = None  # when, heartbeats
        self._stopped = threading.Event()
        self._store: dist.Store | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def joined(self) -> None:
        """Watch the ranks, too, from now on; until the first progress `STARTING` may pass."""
        self._wait_for(max(self._timeout, STARTING))
        if ranks.world_size() > 1:
            self._store = _connect()
            # In another thread, because it blocks with the network.
            threading.Thread(
                target=self._beat, args=[self._store], name="heartbeat", daemon=True
            ).start()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Let ranks wait for each other for `STARTING` inside, as for a checkpoint.

        Every rank must enter it, and a collective must be the last thing inside. After an error
        nothing is set back: the run is over.
        """
        longer = max(self._timeout, STARTING)
        limit_waiting(longer)
        self._wait_for(longer)
        yield
        limit_waiting(self._timeout)
        self.progress()

    def progress(self) -> None:
        """Note that this rank makes progress."""
        self._wait_for(self._timeout)

    def _wait_for(self, seconds: float) -> None:
        self._limit, self._last, self._stalled = seconds, time.monotonic(), None

    def any_orphaned(self, device: torch.device) -> bool:
        """Return whether the launcher of some rank is gone; every rank must call it."""
        orphaned = torch.tensor(float(self._launcher.gone), device=device)
        dist.all_reduce(orphaned)
        return orphaned.item() > 0

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    @contextlib.contextmanager
    def explaining_failures(self) -> Iterator[None]:
        """Turn a failed collective into one line that names the silent ranks; then stop watching.

        Raises:
            CommunicationFailed: a collective has failed inside.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_communication_failure(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise CommunicationFailed(
                f"communication in the group of all {ranks.world_size()} ranks failed; "
                f"{self.silent_ranks()} ({(lines or ['no message'])[0][:200]}); the checkpoints "
                "are intact: resume"
            ) from error
        finally:
            self.stop()

    def _beat(self, store: dist.Store) -> None:
        while not self._stopped.wait(BEAT):
            try:
                store.set(f"msde/alive/{ranks.rank()}", str(time.time()))
            except RuntimeError:
                return  # the first rank, which hosts the store, is gone

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(BEAT):
            now = time.monotonic()
            if now - looked > SILENT:  # the process was paused, as by SIGSTOP, and so was its work
                self._last += now - looked
            looked = now
            if self._orphan_since is None and self._launcher.gone:
                self._orphan_since = now
                self._stop_request.ask(LAUNCHER_GONE)
            if self._orphan_since is not None and now - self._orphan_since > GRACE:
                _leave(LAUNCHER_GONE)
            quiet = now - self._last
            if quiet > self._limit - SILENT and self._stalled is None and self._store is not None:
                self._stalled = (now, self._heartbeats())
            if quiet > self._limit:
                silent = self.silent_ranks()
                faulthandler.dump_traceback(sys.stderr)
                _leave(f"no progress for {quiet:.0f} s; {silent}")

    def silent_ranks(self) -> str:
        """Say which ranks have sent no heartbeat lately."""
        if self._store is None:
            return "there are no other ranks"
        # The heartbeats that the watching thread saw when this rank stalled, or those of now.
        since, before = self._stalled or (time.monotonic(), self._heartbeats())
        time.sleep(max(0.0, since + SILENT - time.monotonic()))
        after = self._heartbeats()
        if before is None or after is None:
            return "silent: rank 0, whose store cannot be reached"
        silent = [str(r) for r, (b, a) in enumerate(zip(before, after, strict=True)) if a == b]
        return f"silent: rank{'s' * (len(silent) != 1)} {', '.join(silent) or 'none'}"

    def _heartbeats(self) -> list[bytes | None] | None:
        """Return the last heartbeat of each rank, or None if the store cannot be reached."""
        keys = [f"msde/alive/{rank}" for rank in range(ranks.world_size())]

        def ask() -> list[bytes | None]:
            store = self._store
            assert store is not None
            return [store.get(key) if store.check([key]) else None for key in keys]

        return _within(1.0, ask)


def _within(seconds: float, function: Callable[[], T]) -> T | None:
    """Return what a function returns, or None if it fails or takes too long."""
    outcome: list[T] = []

    def work() -> None:
        with contextlib.suppress(RuntimeError):
            outcome.append(function())

    thread = threading.Thread(target=work, name="store", daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else None


def _connect() -> dist.Store:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(
        address,
        port,
        is_master=False,
        timeout=datetime.timedelta(seconds=5),
        wait_for_workers=False,
    )


def _leave(reason: str) -> None:
    sys.stderr.write(f"error on rank {ranks.rank()}: {reason}; exiting\n")
    sys.stderr.flush()
    os._exit(_EXIT_CODE)
