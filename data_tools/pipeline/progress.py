"""Progress of a conversion: a bar on a terminal, a line every half minute in a log."""

from __future__ import annotations

import collections
import logging
import time

from tqdm import tqdm

SECONDS = 30.0  # between two lines in a log

log = logging.getLogger(__name__)


class Progress:
    """Counts molecules and rejects by reason, and shows both with the rate."""

    def __init__(self, total: int | None = None, done: int = 0) -> None:
        """Start the clock.

        Args:
            total: how many molecules there are, if that is known.
            done: how many an earlier conversion has done.
        """
        self.read, self._total, self._done = 0, total, done
        self.rejects: collections.Counter[str] = collections.Counter()
        self._bar = tqdm(total=total, initial=done, unit=" molecules", disable=None)
        self._began = self._said = time.monotonic()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def add(self, read: int, reasons: list[str]) -> None:
        """Count a chunk and the reasons of its rejects."""
        self.read += read
        self.rejects.update(kind_of(reason) for reason in reasons)
        if reasons:
            self._bar.set_postfix_str(self._rejects(), refresh=False)
        self._bar.update(read)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= SECONDS:
            self._said = now
            rate = self.read / (now - self._began)
            of_all = "" if self._total is None else f" of {self._total:,}"
            said = f"{self._done + self.read:,}{of_all} molecules, {rate:,.0f}/s"
            log.info(said + self._rejects("; rejected: "))

    def _rejects(self, before: str = "rejected: ") -> str:
        said = ", ".join(f"{count:,} {kind}" for kind, count in self.rejects.most_common(3))
        return f"{before}{said}" if said else ""


def kind_of(reason: str) -> str:
    """Return the kind of a reason: its text without the details of the molecule."""
    return reason.partition(":")[0]
