"""A flipped bit in any file that is read again is named, and nothing damaged is loaded."""

import shutil

import numpy as np
import pytest

import msde
from fixtures.models import make_small
from msde.checkpoints.weights import save_weights
from msde.data_tools.verify import verify
from msde.errors import MsdeError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    model = make_small("paper")
    save_weights(model.state_dict(), model.config, folder)
    msde.load(folder)
    return folder


def data_set_problem(folder):
    return next(verify(folder), "")


def weights_problem(folder):
    msde.load(folder)
    return ""


def flips(source, target, count, seed, problem):
    """Flip single bits of a copy, one after another; each has to be named."""
    shutil.copytree(source, target)
    assert problem(target) == ""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(count):
        path = files[number % len(files)]
        path.chmod(0o644)
        data = path.read_bytes()
        bit = int(rng.integers(8 * len(data)))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = problem(target)
        except MsdeError as error:
            found = str(error)
        assert path.stem in found, f"bit {bit} of {path.name}: {found!r}"
        path.write_bytes(data)


def test_of_a_data_set(shard_dir, tmp_path):
    flips(shard_dir, tmp_path / "data", 60, 1, data_set_problem)


def test_of_exported_weights(exported, tmp_path):
    flips(exported, tmp_path / "model", 30, 2, weights_problem)


@pytest.mark.slow
def test_of_a_data_set_500_times(shard_dir, tmp_path):
    flips(shard_dir, tmp_path / "data", 500, 3, data_set_problem)


@pytest.mark.slow
def test_of_exported_weights_500_times(exported, tmp_path):
    flips(exported, tmp_path / "model", 500, 4, weights_problem)
