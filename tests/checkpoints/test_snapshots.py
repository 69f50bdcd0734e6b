"""Folders of checkpoints, without an engine."""

from msde.checkpoints import snapshots


def test_manifests_written_before_a_key_was_renamed_are_read_under_the_new_key(tmp_path):
    temporary, final = tmp_path / ".step-000000001.tmp", tmp_path / "step-000000001"
    temporary.mkdir()
    snapshots.publish(temporary, final, {"step": 1, "left_out_in_a_row": 2, "files": {}})
    folder, manifest = snapshots.newest_valid(tmp_path)
    assert folder == final and manifest["skipped_in_a_row"] == 2
    assert "left_out_in_a_row" not in manifest
    assert snapshots.newest_manifest(tmp_path) == manifest
