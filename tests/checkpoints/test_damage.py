"""Single flipped bits in all that lies on disk: each is named, none is read and none a traceback.

The seed and the number of bits are those of a property test: other bits have to fare the same.
"""

import logging
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file

import msde
from fixtures.blocks import flip
from fixtures.models import make_small
from msde.checkpoints import card, published, snapshots, weights
from msde.checkpoints.published_files import from_published, to_published
from msde.data_tools.convert import convert
from msde.data_tools.verify import verify
from msde.errors import MsdeError
from msde.files import check_file
from msde.monitor.writer import read_metrics

QUICK, FULL = 60, 500
HOW_MANY = [QUICK, pytest.param(FULL, marks=pytest.mark.slow)]


def random_bits(folder, count, seed, skip=()):
    """Flip one bit after another, of a random file each, and yield the file before it is mended."""
    skip = (*skip, card.NAME)  # which users edit
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in skip)
    rng = random.Random(seed)
    for number in range(count):
        # Every file in turn, since most bits are in few large ones.
        path = files[number % len(files)]
        path.chmod(0o644)
        at, bit = rng.randrange(path.stat().st_size or 1), rng.randrange(8)
        if path.stat().st_size:
            flip(path, at, bit)
            yield path, f"bit {bit} of byte {at} of {path.name}"
            flip(path, at, bit)


def said(error):
    """The message of an error, which is one line."""
    assert "\n" not in str(error), error
    return str(error)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A data set with labels, rejects and notes."""
    folder = tmp_path_factory.mktemp("damage")
    rows = "".join(f"{'C' * n}O,chain {n},{n / 10}\n" for n in range(1, 25))
    (folder / "m.csv").write_text(f"smiles,name,gap\n{rows}CC C,wrapped,1\n[Fe+6],iron,2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msde.data.shards.BLOCK_MOLECULES", 16)
        convert([folder / "m.csv"], folder / "data", "smiles", limit=None)
    assert {"rejects.jsonl", "notes.jsonl"} < {path.name for path in (folder / "data").iterdir()}
    assert all((folder / "data" / name).stat().st_size for name in ("rejects.jsonl", "notes.jsonl"))
    return folder / "data"


@pytest.mark.parametrize("count", HOW_MANY)
def test_every_flipped_bit_of_a_data_set_is_named(data_set, count):
    assert list(verify(data_set)) == []
    for path, where in random_bits(data_set, count, seed=1):
        try:
            problems = list(verify(data_set))
        except MsdeError as error:
            problems = [said(error)]
        assert problems and path.name in problems[0], where
    assert list(verify(data_set)) == []


def test_every_bit_of_a_manifest_counts(data_set):
    path = data_set / "manifest.json"
    for at in range(0, path.stat().st_size, 2):
        flip(path, at, at // 2 % 8)
        with pytest.raises(MsdeError, match=r"manifest\.json"):
            msde.data.shards.read_manifest(data_set)
        flip(path, at, at // 2 % 8)


@pytest.fixture(scope="module")
def run(checkpoints, tmp_path_factory):
    """The folder of a run, with the best weights, which are read from it as well."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    shutil.copytree(checkpoints[1], folder)
    newest = folder / "checkpoints/step-000000003"
    config = weights.read_config(newest)
    weights.save_weights(weights.read_state(newest), config, folder / "best")
    for older in ("step-000000001", "step-000000002"):
        shutil.rmtree(folder / "checkpoints" / older)
    return folder


def problem_when_read(path, run, caplog):
    """What a resumed run and `msde.load` say of a file of a run."""
    caplog.clear()
    if path.parent.name.startswith("step-"):
        assert snapshots.newest_valid(run / "checkpoints") is None
        return caplog.text
    if path.name.endswith(".jsonl"):
        read_metrics(path)
        return caplog.text
    if path.parent.name == "best":
        with pytest.raises(MsdeError) as caught:
            msde.load(run)
    else:
        with pytest.raises(MsdeError) as caught:
            for name in ("config.json", "deepspeed.json"):
                check_file(run / name)
    return said(caught.value)


@pytest.mark.parametrize("count", HOW_MANY)
def test_every_flipped_bit_of_a_run_is_named(run, count, caplog):
    assert list(verify(run)) == []
    skip = ("zero_to_fp32.py", "zero_to_torch.py")  # DeepSpeed's, read by nobody here
    with caplog.at_level(logging.WARNING, "msde"):
        for path, where in random_bits(run, count, seed=2, skip=skip):
            problems = list(verify(run))
            assert problems and path.name in problems[0], where
            if path.name != "DONE" and path.parent.name != "tensorboard":  # read by people only
                assert path.name in problem_when_read(path, run, caplog), where
    assert list(verify(run)) == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A published checkpoint, converted: weights and the tensors that our model does not use."""
    import torch

    folder = tmp_path_factory.mktemp("damage")
    model = make_small("paper")
    checkpoint = published.export_checkpoint(model.state_dict(), model.config, {}, {})
    torch.save(checkpoint, folder / "model.pth")
    readout = f"model.gin.readout={model.config.model.gin.readout}"
    from_published(folder / "model.pth", folder / "converted", [readout])
    return folder / "converted"


@pytest.mark.parametrize("count", HOW_MANY)
def test_every_flipped_bit_of_exported_weights_is_named(exported, count, tmp_path):
    msde.load(exported)
    for path, where in random_bits(exported, count, seed=3):
        (problem, *_) = verify(exported)
        assert path.name in problem, where
        with pytest.raises(MsdeError) as caught:
            if path.name != "published.safetensors":
                msde.load(exported)
            to_published(exported, tmp_path / "back.pth")
        assert path.name in said(caught.value) and not (tmp_path / "back.pth").exists(), where


def test_folders_of_earlier_releases_load_with_a_line(exported, tmp_path, caplog):
    old = shutil.copytree(exported, tmp_path / "old")
    (old / "MANIFEST.json").unlink()
    for _ in range(2):
        msde.load(old)
    assert [f"{old} has no MANIFEST.json" in line for line in caplog.messages] == [True]
    # What a process that ended between two files has left.
    state = load_file(old / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in state.items()}, old / "model.safetensors")
    msde.load(old)


def test_a_run_stands_for_its_best_weights_or_the_newest(run, tmp_path):
    assert weights.find_weights(run) == run / "best"
    assert weights.find_weights(run / "best") == run / "best"
    copied = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copied / "best")
    assert weights.find_weights(copied) == copied / "checkpoints/step-000000003"
    assert weights.find_weights(tmp_path) == tmp_path
