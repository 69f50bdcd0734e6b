"""Folders of checkpoints: damage is noticed, former manifests are read, full disks reported."""

import logging
import shutil

import pytest
import torch

from fixtures.blocks import flip
from fixtures.jobs import (
    saved_steps,
)
from msde.checkpoints import snapshots
from msde.errors import DiskFull


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def unlink(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, truncate, unlink, empty])
def test_every_damaged_file_is_detected_and_named(checkpoints, tmp_path, caplog, harm):
    names = [path.name for path in (checkpoints[1] / "checkpoints/step-000000003").iterdir()]
    names.remove("README.md")  # the model card, which users may edit
    assert {"MANIFEST.json", "config.json", "model.safetensors", "ema.safetensors"} < set(names)
    assert any("optim_states" in n for n in names) and any("model_states" in n for n in names)
    for name in names:
        root = tmp_path / name
        shutil.copytree(checkpoints[1] / "checkpoints", root)
        harm(root / "step-000000003" / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            folder, found = snapshots.newest_valid(root)
        assert folder.name == "step-000000002" and found["step"] == 2
        (warning,) = caplog.messages
        assert name in warning and "step-000000003" in warning
        assert saved_steps(tmp_path / "none") == [] and not (root / "step-000000003").exists()


def test_copies_under_other_names_are_no_checkpoints(checkpoints, tmp_path):
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints[1] / "checkpoints", root)
    shutil.copytree(root / "step-000000001", root / "step-000000009.bak")
    snapshots.prune(root, 2, None)
    assert snapshots.newest_valid(root)[1]["step"] == 3
    assert (root / "step-000000009.bak").exists() and not (root / "step-000000001").exists()


def test_a_manifest_with_a_flipped_bit_is_refused(checkpoints, tmp_path):
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints[1] / "checkpoints", root)
    shutil.rmtree(root / "step-000000001")
    shutil.rmtree(root / "step-000000002")
    path = root / "step-000000003/MANIFEST.json"
    whole = path.read_bytes()
    expected = snapshots.newest_valid(root)[1]
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = snapshots.newest_valid(root)
        assert found is None or found[1] == expected, place


def test_manifests_written_before_a_key_was_renamed_are_read_under_the_new_key(tmp_path):
    temporary, final = tmp_path / ".step-000000001.tmp", tmp_path / "step-000000001"
    temporary.mkdir()
    snapshots.publish(temporary, final, {"step": 1, "left_out_in_a_row": 2, "files": {}})
    folder, manifest = snapshots.newest_valid(tmp_path)
    assert folder == final and manifest["skipped_in_a_row"] == 2
    assert "left_out_in_a_row" not in manifest
    assert snapshots.newest_manifest(tmp_path) == manifest


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_text(str(state))])
def test_a_rank_whose_folder_another_rank_has_removed_reports_the_full_disk(tmp_path, write):
    temporary = tmp_path / ".step-000000004.tmp"
    disk_full = pytest.raises(DiskFull, match="disk full: .*step-000000004 needs 9 bytes")
    with disk_full, snapshots.undo_if_disk_full(tmp_path / "step-000000004", temporary, 9):
        write({}, temporary / "state.pt")
