"""TensorBoard: scalars, the layout of its first page, hyper-parameters, text, pictures, meshes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.summary import mesh as mesh_summary

from msde.files import write_atomically
from msde.monitor.meshes import CAMERA, Mesh

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("msde")

_PARTS = "(encoder_2d|encoder_3d|score_2d_to_3d|score_3d_to_2d)$"
# Category -> chart -> regular expressions of tags. A chart has one scale, so what has another size
# has a chart of its own.
LAYOUT = {
    "learning: do the held-out losses fall?": {
        "loss": ["loss/(validation/)?total$"],
        "contrastive loss": ["loss/(validation/)?contrastive$"],
        "contrastive accuracy": ["accuracy/(validation/)?contrastive$"],
        "2D to 3D loss": ["loss/(validation/)?2d_to_3d$"],
        "3D to 2D loss": ["loss/(validation/)?3d_to_2d$"],
        "held-out 2D to 3D loss by diffusion time": ["loss_by_time/validation/2d_to_3d/"],
        "held-out 3D to 2D loss by diffusion time": ["loss_by_time/validation/3d_to_2d/"],
    },
    "fast: where does the time go?": {
        "molecules a second": ["throughput/molecules_per_s$"],
        "seconds of a step": ["time/(step|data_wait|forward|backward|optimizer)_s$"],
        "share of time waiting for data": ["time/data_wait_share$"],
        "TFLOPs a second of a rank": ["throughput/tflops_per_rank$"],
        "share of the GPU's peak": ["throughput/model_flops_utilisation$"],
        "slowest rank over the median": ["time/slowest_rank_over_median$"],
    },
    "healthy: are steps sound?": {
        "gradient norms": [f"optim/gradient_norm/{_PARTS}"],
        "updates over weights": [f"optim/update_ratio/{_PARTS}"],
        "learning rates": [f"optim/lr/{_PARTS}"],
        "skipped steps": ["optim/skipped_steps$"],
        "peak memory, MiB": ["memory/peak_mb$"],
        "seconds of a checkpoint": ["time/checkpoint_s$"],
    },
}
# What the table of hyper-parameters shows beside them: the last value of each.
FINAL_METRICS = (
    "loss/validation/total", "loss/validation/contrastive", "loss/validation/2d_to_3d",
    "loss/validation/3d_to_2d", "accuracy/validation/contrastive", "throughput/molecules_per_s",
)  # fmt: skip
ANEW = ("custom_scalars", "hparams")  # plugins whose values every start of a run writes again


class TensorBoard:
    """Writes event files, in which a resumed run leaves nothing that it computes again."""

    def __init__(
        self, folder: Path, first_step: int, is_kept: Callable[[str], bool] = lambda tag: True
    ) -> None:
        """Continue the files in a folder after step `first_step`.

        Args:
            is_kept: whether a value of that step itself stays, by its tag.
        """
        drop_expired(folder, first_step, is_kept)
        self.folder = folder
        self._first_step = first_step
        self._end: Summary | None = None
        # The mark also makes a TensorBoard that runs meanwhile forget the later points.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write the points of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, value: Any) -> None:
        """Show a JSON value, as it is from `first_step` on."""
        text = f"```\n{json.dumps(value, indent=2)}\n```"
        self._writer.add_text(name, text, self._first_step)

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show a picture."""
        self._writer.add_figure(name, figure, step)

    def mesh(self, step: int, name: str, mesh: Mesh) -> None:
        """Show a body that turns with the mouse."""
        vertices, colours, faces = (
            torch.from_numpy(array).unsqueeze(0)
            for array in (mesh.vertices, mesh.colours, mesh.faces)
        )
        self._add(mesh_summary(name, vertices, colours, faces, CAMERA, display_name=name), step)

    def layout(self) -> None:
        """Arrange the curves of a pretraining on the first page."""
        self._writer.add_custom_scalars(
            {c: {n: ["Multiline", tags] for n, tags in LAYOUT[c].items()} for c in LAYOUT}
        )

    def hyper_parameters(self, values: dict[str, Any]) -> None:
        """Describe the run in the table of hyper-parameters, as this very run and no other."""
        experiment, start, self._end = hparams(values, dict.fromkeys(FINAL_METRICS, 0.0))
        for summary in (experiment, start):
            self._add(summary)

    def _add(self, summary: Summary, step: int | None = None) -> None:
        assert self._writer.file_writer is not None  # until it is closed
        self._writer.file_writer.add_summary(summary, step)

    def flush(self) -> None:
        """Write everything to the files."""
        self._writer.flush()

    def close(self, done: bool = False) -> None:
        """Flush and close the files; `done` marks the run as finished among others."""
        if done and self._end is not None:
            self._add(self._end)
            self._end = None
        self._writer.close()


def drop_expired(folder: Path, first_step: int, is_kept: Callable[[str], bool]) -> None:
    """Remove from event files what a run that goes on after step `first_step` writes again.

    Records are copied as they are, their checksums included. A file is read up to its first record
    that cannot be read, with a warning.

    Args:
        is_kept: whether a value of that step itself stays, by its tag.
    """

    def stays(event: Event) -> bool:
        if not event.HasField("summary"):
            return False  # a mark of an earlier start has done its work
        plugins = {value.metadata.plugin_data.plugin_name for value in event.summary.value}
        if plugins & set(ANEW) or not 0 < first_step >= event.step:
            return False
        if event.step < first_step:
            return True
        return "text" not in plugins and all(is_kept(v.tag) for v in event.summary.value)

    for path in folder.glob(".events.out.tfevents.*.tmp"):  # of a process killed while it did this
        path.unlink()  # TensorBoard would read it
    for path in sorted(folder.glob("events.out.tfevents.*")):
        version, *records = _records(path) or [(Event(), b"")]
        kept = [record for event, record in records if stays(event)]
        if kept:
            write_atomically(path, partial(_write, content=b"".join([version[1], *kept])))
        else:
            path.unlink()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _records(path: Path) -> list[tuple[Event, bytes]]:
    """Return the events of a file, each with its record: length, checksums and bytes."""
    content, found, at = path.read_bytes(), [], 0
    while at < len(content):
        length = content[at : at + 8]
        end = at + 16 + int.from_bytes(length, "little")
        checksum = int.from_bytes(content[at + 8 : at + 12], "little")
        try:
            if end > len(content) or checksum != masked_crc32c(length):
                raise DecodeError
            event = Event.FromString(content[at + 12 : end - 4])
        except DecodeError:
            log.warning("%s is damaged or cut short: what follows byte %d is dropped", path, at)
            break
        found.append((event, content[at:end]))
        at = end
    return found
