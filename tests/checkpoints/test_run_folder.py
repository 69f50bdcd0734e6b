"""A flipped bit in a file of a run's folder that is read again: an error or a warning names it."""

import logging
import random
import shutil

import pytest
import torch
import torch.distributed as dist

import msde
from fixtures.models import make_small
from msde.checkpoints import card, engine_state, snapshots
from msde.checkpoints.weights import find_weights, save_weights, write_weights
from msde.errors import MsdeError, NoCheckpoint
from msde.files import check_file, hash_files
from msde.monitor.writer import Monitor, read_metrics
from msde.training.run import prepare_output


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run writes, by the functions that write it, without the tables of TensorBoard."""
    output = tmp_path_factory.mktemp("run") / "run"
    model = make_small("paper")
    prepare_output(output, model.config, {"train_batch_size": 2})
    monitor = Monitor(output, first_step=0, total_steps=9)
    for step in range(1, 9):
        monitor.scalars(step, {"loss/total": 1 / step})
        monitor.event(step, "step skipped", {"reason": "loss", "slots": [{"molecules": [step]}]})
    monitor.close()
    shutil.rmtree(output / "tensorboard")
    save_weights(model.state_dict(), model.config, output / "best")
    temporary, final = output / "checkpoints/.tmp", output / "checkpoints/step-000000008"
    write_weights(model.state_dict(), model.config, temporary)
    torch.save({"moments": torch.rand(99)}, temporary / "optim_states.pt")
    names = sorted(path.name for path in temporary.iterdir() if path.name != card.NAME)
    files = hash_files(temporary, names)
    snapshots.publish(temporary, final, {"step": 8, "files": files})
    return output


def read(output, name):
    """Read a file of a run's folder in all ways in which the project does."""
    path, folder = output / name, name.rpartition("/")[0]
    if folder == "best":
        msde.load(path.parent)
    elif folder:
        assert snapshots.newest_valid(output / "checkpoints") is None
        newest = snapshots.newest_manifest(output / "checkpoints")
        assert bool(newest) == (path.name != "MANIFEST.json")
    elif path.suffix == ".jsonl":
        rows = read_metrics(path)
        assert len(rows) in (6, 7) and all("step" in row for row in rows)
    else:  # as `--config` and `--deepspeed_config`
        check_file(path if path.name != "MANIFEST.json" else path.with_name("config.json"))


def names_of(output):
    files = (path for path in output.rglob("*") if path.is_file() and path.name != card.NAME)
    return sorted(str(path.relative_to(output)) for path in files)


@pytest.mark.parametrize("number", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_any_flipped_bit_is_told_with_its_file(run_folder, tmp_path, caplog, number):
    output, draw = shutil.copytree(run_folder, tmp_path / "run"), random.Random(number)
    names = names_of(output)
    assert len(names) == 12
    for turn in range(number):
        name = names[turn % len(names)]
        intact = (output / name).read_bytes()
        data = bytearray(intact)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (output / name).write_bytes(data)
        caplog.clear()
        try:
            read(output, name)
            (said,) = caplog.messages
        except MsdeError as error:
            said = str(error)
        assert name.rpartition("/")[2] in said and str(output) in said and "\n" not in said
        (output / name).write_bytes(intact)


def test_intact_files_are_read_without_a_word(run_folder, caplog):
    with caplog.at_level(logging.WARNING):
        msde.load(run_folder / "best")
        msde.load(run_folder / "checkpoints/step-000000008")
        folder, facts = snapshots.newest_valid(run_folder / "checkpoints")
        assert folder.name == "step-000000008" and facts["step"] == 8
        for name in ("metrics.jsonl", "events.jsonl"):
            assert [row["step"] for row in read_metrics(run_folder / name)] == list(range(1, 9))
        assert check_file(run_folder / "config.json") and check_file(run_folder / "deepspeed.json")
    assert not caplog.messages


def test_weights_of_earlier_releases_load_with_a_warning(run_folder, tmp_path, caplog):
    best = shutil.copytree(run_folder / "best", tmp_path / "best")
    (best / "MANIFEST.json").unlink()
    msde.load(best)
    (said,) = caplog.messages
    assert said.startswith(str(best)) and "cannot be checked" in said
    assert not check_file(best / "config.json")


def test_rows_of_earlier_releases_are_read_and_kept(run_folder, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss/total": 2.0}\n{"step": 2, "loss/total": 1.5}\n')
    Monitor(tmp_path, first_step=2, total_steps=4).close()
    found = [(row["step"], row["loss/total"]) for row in read_metrics(path)]
    assert found == [(1, 2.0), (2, 1.5)] and path.read_text().count("crc32") == 2
    assert not caplog.messages


def test_a_resumed_run_keeps_no_damaged_row(run_folder, tmp_path, caplog):
    path = shutil.copy(run_folder / "metrics.jsonl", tmp_path / "metrics.jsonl")
    text = path.read_text()
    path.write_text(text.replace('"loss/total": 0.25', '"loss/total": 0.26'))
    Monitor(tmp_path, first_step=6, total_steps=9).close()
    assert "line 4 (CRC32 differs)" in caplog.text and str(path) in caplog.text
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 5, 6]


def test_a_checkpoint_without_manifest_is_not_taken(run_folder, tmp_path):
    output = shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(output / "best")
    complete = output / "checkpoints/step-000000008"
    unfinished = shutil.copytree(complete, output / "checkpoints/step-000000009")
    assert find_weights(output) == unfinished
    (unfinished / "MANIFEST.json").unlink()
    assert find_weights(output) == complete


@pytest.mark.parametrize("resume", ["auto", "required"])
def test_the_damaged_file_of_the_only_checkpoint_is_named(run_folder, tmp_path, resume):
    root = shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    path = root / "step-000000008/optim_states.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(NoCheckpoint, match="step-000000008: optim_states.pt is damaged"):
            engine_state.find(root, resume)
    finally:
        dist.destroy_process_group()
