"""Checkpoints converted for another number of ranks: how large they are, and what may fail."""

import shutil
import sys

import pytest

from msde.checkpoints import conversion, snapshots
from msde.errors import DiskFull, MsdeError


@pytest.fixture
def folder(tmp_path):
    """What a conversion looks at of a checkpoint, before DeepSpeed's tool does."""
    temporary, final = tmp_path / ".step-000000003.tmp", tmp_path / "step-000000003"
    temporary.mkdir()
    (temporary / "optim_states.pt").write_bytes(bytes(1000))
    snapshots.publish(temporary, final, {"step": 3, "world_size": 8, "files": {}})
    return final


@pytest.mark.parametrize(
    "said, kind, message",
    [
        ("OSError: [Errno 28] No space left on device", DiskFull, "needs 3,000 bytes, .* are free"),
        ("Killed", MsdeError, "cannot be converted .*: Killed; resume with the 8 that"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing_and_says_why(
    folder, monkeypatch, said, kind, message
):
    tool = folder.parent / "python"
    # Called as DeepSpeed's tool: the fourth of its arguments after -m NAME is the target.
    tool.write_text(
        f'#!/bin/sh\nmkdir -p "$6/zero"\necho half > "$6/zero/a"\necho {said!r} >&2\nexit 1'
    )
    tool.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tool))
    target = folder.parent / ".step-000000003.universal"
    with pytest.raises(kind, match=message) as error:
        conversion.convert(folder, target)
    assert error.value.exit_code == 2 and not target.exists()


def test_room_for_a_conversion_is_looked_for_first(folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=2999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=r"universal needs 3,000 bytes, 2,999 are free"):
        conversion.convert(folder, folder.parent / ".step-000000003.universal")
