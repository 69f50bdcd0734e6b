"""Features are made once for the same molecules and weights, and anew for any others."""

import dataclasses

import numpy as np
import pytest
import torch

from fixtures.downstream import save_checkpoint, write_table
from msde.data_tools.convert import convert
from msde.data_tools.options import Options
from msde.downstream import features, training
from msde.downstream.baselines import features_of
from msde.downstream.finetune import prepare
from msde.downstream.heads import make_model
from msde.downstream.settings import make_settings
from msde.downstream.tasks import get_task


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function that makes the network of a view, its data, and a list of what was made."""
    monkeypatch.setattr(features, "_recent", {})
    write_table(tmp_path / "t.csv", 30)
    convert([tmp_path / "t.csv"], tmp_path / "data", options=Options(conformers=1))
    save_checkpoint(tmp_path / "checkpoint")
    task, times = get_task("custom", ["logp"]), []
    plain = training._represent_all
    monkeypatch.setattr(training, "_represent_all", lambda *a: times.append(1) or plain(*a))

    def make(*given, seed=0):
        settings = make_settings(task, ["split=random", *given])
        output = tmp_path / "-".join(given)
        output.mkdir(exist_ok=True)
        job = prepare(task, tmp_path / "data", output, tmp_path / "checkpoint", settings)
        return make_model(job.network, job.facts, job.weights, seed), job.data

    return make, times


def test_the_same_weights_and_molecules_are_represented_once(made):
    make, times = made
    first, again = (training.represent_all(*make("view=2d", seed=seed)) for seed in (0, 1))
    assert torch.equal(first, again) and len(times) == 1  # the seed draws the head alone


@pytest.mark.parametrize("other", ["init=random", "readout=concat", "view=3d"])
def test_other_weights_readouts_and_views_are_others(made, other):
    make, times = made
    first = training.represent_all(*make("view=2d"))
    given = [other] if "view" in other else ["view=2d", other]
    second = training.represent_all(*make(*given, seed=1))
    assert len(times) == 2
    assert first.shape != second.shape or not torch.equal(first, second)


def test_other_positions_are_other_molecules(made):
    make, times = made
    model, data = make("view=3d")
    moved = dataclasses.replace(data.columns, pos=1.1 * data.columns.pos)
    first = training.represent_all(model, data)
    second = training.represent_all(model, dataclasses.replace(data, columns=moved))
    assert len(times) == 2 and not torch.equal(first, second)


def test_a_part_has_the_rows_of_the_whole_and_few_results_are_kept(made, monkeypatch):
    make, _ = made
    _, data = make("view=2d")
    monkeypatch.setattr(features, "KEPT", 1)
    whole, part = (features_of(each, "ecfp") for each in (data, data.take(np.arange(3, 9))))
    np.testing.assert_array_equal(part, whole[3:9])
    features_of(data, "descriptors")
    assert len(features._recent) == 1


def test_other_molecules_of_the_same_ids_and_sizes_are_others(made):
    """As the lines of a file of the same name in another folder."""
    make, _ = made
    _, data = make("view=2d")
    x = data.columns.x.copy()
    x[:, 0] = 6 - (x[:, 0] == 6)  # carbon becomes boron, all others carbon
    z = np.where(data.columns.z == 6, 5, 6).astype(data.columns.z.dtype)
    other = dataclasses.replace(data, columns=dataclasses.replace(data.columns, x=x, z=z))
    assert not np.array_equal(features_of(data, "ecfp"), features_of(other, "ecfp"))
