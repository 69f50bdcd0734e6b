"""The reports of a run: TensorBoard, metrics.jsonl, a progress bar or log lines, and a summary."""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from msde.files import sync, write_text
from msde.monitor.meshes import molecule_mesh
from msde.monitor.pictures import Cell, draw_structures, has_matplotlib
from msde.monitor.tensorboard import TensorBoard
from msde.monitor.trackers import Guarded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("msde")

MESHES = 3  # of a row of structures; each takes about 0.1 MB
NOT_FINITE_HELD_OUT = "held-out losses that are not finite"  # an event of validations
OBJECTIVES = ("total", "contrastive", "2d_to_3d", "3d_to_2d", "displacements")


class Monitor:
    """Writes the scalars and events of one run, on its first rank.

    A resumed run computes the steps after its checkpoint again. Their rows are dropped first, so
    that no file has a gap or a duplicate.
    """

    def __init__(
        self,
        output: Path,
        first_step: int,
        total_steps: int,
        validation_due: bool = False,
        tracker: str = "none",
    ) -> None:
        """Continue the files in `output` after step `first_step`.

        Args:
            validation_due: whether the validation of that step runs again.
            tracker: a name in TRACKERS, for what also gets scalars, text and pictures.
        """
        self.path = output / "metrics.jsonl"
        kept = _keep_rows(self.path, first_step, validation_due)
        _keep_rows(output / "events.jsonl", first_step, validation_due)
        self._file = open(self.path, "a", buffering=1)
        last = {name for row in kept if row["step"] == first_step for name in row}
        self.tensorboard = TensorBoard(
            output / "tensorboard", first_step, lambda tag: tag in last or not validation_due
        )
        self._tracker = Guarded(tracker, output)
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit=" steps", disable=None, file=sys.stderr
        )

    def advance(self) -> None:
        """Move the progress bar on by one step."""
        self._bar.update()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one row of scalars."""
        row = {"step": step, **values}
        self._file.write(_line(row))
        self.tensorboard.scalars(step, values)
        self._tracker.call("scalars", step, values)
        held_out = _is_validation(row)
        prefix = "loss/validation/" if held_out else "loss/"
        known = [name for name in OBJECTIVES if prefix + name in values]
        text = "  ".join(f"{name} {values[prefix + name]:.4f}" for name in known)
        if not known:  # of a fine-tuning
            text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if "throughput/molecules_per_s" in values:
            text += f"  {values['throughput/molecules_per_s']:.0f} molecules/s"
        line = f"step {step}  {'validation  ' if held_out else ''}{text}"
        if self._bar.disable:
            log.info("%s", line)
        elif held_out:
            self._bar.write(line, file=sys.stderr)
        else:
            self._bar.set_postfix_str(text, refresh=False)

    def event(self, step: int, name: str, facts: dict[str, Any]) -> None:
        """Write an unusual event, such as a skipped step, to events.jsonl and the log."""
        with open(self.path.with_name("events.jsonl"), "a") as file:
            file.write(_line({"step": step, "event": name, **facts}))
        log.warning("step %d: %s: %s", step, name, json.dumps(facts)[:500])

    def sync(self) -> None:
        """Write all rows to the disk, before a checkpoint that a later run may continue from."""
        self.tensorboard.flush()
        self._file.flush()
        folder = self.path.parent
        for path in (self.path, folder / "events.jsonl", *self.tensorboard.folder.iterdir()):
            if path.is_file():
                sync(path)

    def text(self, name: str, value: Any) -> None:
        """Show a JSON value as text."""
        self.tensorboard.text(name, value)
        self._tracker.call("text", name, value)

    def hyper_parameters(self, values: dict[str, Any]) -> None:
        """Describe the run by the values that runs are compared by."""
        self.tensorboard.hyper_parameters(values)
        self._tracker.call("hyper_parameters", values)

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show a picture."""
        self._tracker.call("picture", step, name, figure)
        self.tensorboard.picture(step, name, figure)  # closes the figure

    def structures(self, step: int, name: str, cells: Sequence[Cell]) -> None:
        """Show structures over references: all in a picture, the first ones as meshes, too."""
        if has_matplotlib():
            self.picture(step, f"{name}/2d_to_3d", draw_structures(cells, len(cells)))
        for number, cell in enumerate(cells[:MESHES], start=1):
            mesh = molecule_mesh(cell.structure, cell.reference)
            self.tensorboard.mesh(step, f"{name}/molecule_{number}", mesh)

    def close_files(self, done: bool = False) -> None:
        """Flush and close the files.

        Args:
            done: whether the run is at its end.
        """
        self._done = done
        self._bar.close()
        self._file.close()
        self.tensorboard.close(done)

    def close(self) -> None:
        """Close the files, unless they are, and the tracker.

        A tracker may upload for longer than ranks wait for each other.
        """
        if not self._file.closed:
            self.close_files()
        self._tracker.call("close", self._done)


def _is_validation(row: dict[str, Any]) -> bool:
    return "loss/validation/total" in row or row.get("event") == NOT_FINITE_HELD_OUT


def _keep_rows(path: Path, first_step: int, validation_due: bool = False) -> list[dict[str, float]]:
    """Drop the rows after step `first_step`, all of them if it is 0, and return those that stay.

    If the validation of that step is due again, its row is dropped as well.
    """
    kept = [row for row in read_metrics(path) if 0 < first_step >= row["step"]]
    if validation_due:
        kept = [row for row in kept if row["step"] < first_step or not _is_validation(row)]
    if path.exists():
        text = "".join(map(_line, kept))
        write_text(path, text)
    return kept


def _line(row: dict[str, Any]) -> str:
    """Return a row as a line that begins with its own checksum."""
    text = json.dumps(row)
    return f'{{"crc32": "{zlib.crc32(text.encode()):08x}", {text[1:]}\n'


def _row(line: str) -> dict[str, Any]:
    """Return the row of a line; those of earlier releases have no checksum.

    Raises:
        ValueError: it is not as it was written.
    """
    if not line.startswith('{"step": '):
        found = re.fullmatch(r'\{"crc32": "([0-9a-f]{8})", (.*)', line)
        line = "{" + found[2] if found else ""
        if found is None or int(found[1], 16) != zlib.crc32(line.encode()):
            raise ValueError("CRC32 differs")
    return json.loads(line)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl or events.jsonl.

    Lines that are not as they were written, as a last one that a crash has cut short, are left out
    with a warning.
    """
    rows, damaged = _rows(path)
    if damaged:
        log.warning(
            "%s: %d damaged or incomplete lines are left out, the first is line %d (CRC32 differs)",
            path,
            len(damaged),
            damaged[0],
        )
    return rows


def damaged_lines(path: Path) -> list[int]:
    """Return the numbers of the lines of metrics.jsonl that are not as they were written."""
    return _rows(path)[1]


def _rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the rows of a file, and the numbers of damaged lines."""
    rows: list[dict[str, Any]] = []
    damaged: list[int] = []
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            rows.append(_row(line))
        except ValueError:
            damaged.append(number)
    return rows, damaged


def peak_memory_mb() -> float:
    """Return the peak memory of the device in use, or of this process on a CPU, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summary(output: Path) -> str:
    """Return a summary of a run: first and last value of each loss, accuracy and speed.

    The last value is the mean over the last tenth of the run.
    """
    rows = read_metrics(output / "metrics.jsonl")
    last_step = rows[-1]["step"] if rows else 0

    def first_and_last(name: str) -> tuple[float, float] | None:
        series = [(row["step"], row[name]) for row in rows if name in row]
        if not series:
            return None
        tail = [value for step, value in series if step > 0.9 * last_step] or [series[-1][1]]
        return series[0][1], sum(tail) / len(tail)

    lines = [f"{'':24}{'training':>20}{'held out':>20}"]
    names = [*(f"loss/{{}}{name}" for name in OBJECTIVES), "accuracy/{}contrastive"]
    for name in names:
        found = [first_and_last(name.format(part)) for part in ("", "validation/")]
        if found == [None, None]:
            continue
        cells = ("-" if pair is None else f"{pair[0]:.3f} -> {pair[1]:.3f}" for pair in found)
        lines.append(f"{name.format(''):24}" + "".join(f"{cell:>20}" for cell in cells))
    speeds = [r["throughput/molecules_per_s"] for r in rows if "throughput/molecules_per_s" in r]
    if speeds:
        lines.append(f"{sorted(speeds)[len(speeds) // 2]:.0f} molecules/s (median)")
    lines.append(f"tensorboard --logdir {output / 'tensorboard'}")
    return "\n".join(lines)
