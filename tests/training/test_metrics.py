"""Scalars of steps: what they are means of, and norms against the weights themselves."""

import math

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from fixtures.jobs import TINY, finish
from fixtures.launching import ds_config
from fixtures.models import make_small
from fixtures.molecules import both
from msde.monitor.writer import read_metrics
from msde.training.metrics import QUARTERS, Interval, TermSums
from msde.training.plan import make_plan
from msde.training.validation import Validator

CPU = torch.device("cpu")


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_losses_by_time_are_means_over_the_molecules_of_that_time(alone, small_model, batch):
    loss = small_model.config.loss
    _, terms = small_model(batch)
    t = small_model.draw_noise(batch).t_2d_to_3d
    sums = TermSums(CPU, loss)
    sums.add(terms, batch)
    found, molecules, atoms = sums.read("validation/")
    assert (molecules, atoms) == (batch.num_graphs, batch.num_atoms)
    assert math.isclose(found["loss/validation/total"], terms["total"].mean(), rel_tol=1e-5)
    seen = 0
    for number, quarter in enumerate(QUARTERS):
        chosen = (t >= number / 4) & (t < (number + 1) / 4)
        name = f"loss_by_time/validation/2d_to_3d/{quarter}"
        assert (name in found) == bool(chosen.any())
        if name in found:
            assert math.isclose(found[name], terms["2d_to_3d"][chosen].mean(), rel_tol=1e-5)
            seen += int(chosen.sum())
    assert seen == molecules and sums.read() == ({}, 0, 0)


def test_molecules_without_a_finite_loss_and_padding_do_not_count(alone, small_model, records):
    batch, padded = both(records)
    assert padded.num_padding
    _, terms = small_model(padded)
    terms["2d_to_3d"][0] = math.nan
    sums = TermSums(CPU, small_model.config.loss)
    sums.add(terms, padded)
    found, molecules, atoms = sums.read()
    assert molecules == batch.num_graphs - 1
    assert atoms == batch.num_atoms - int(batch.atoms_per_graph[0])
    assert all(map(math.isfinite, found.values()))


def test_objectives_that_are_off_have_no_curve(alone, batch):
    """Their terms are zero, which would look like a perfect loss, or an accuracy below chance."""
    model = make_small("paper", "loss.coefficient_contrastive=0", "loss.coefficient_2d_to_3d=0")
    _, terms = model(batch)
    sums = TermSums(CPU, model.config.loss)
    sums.add(terms, batch)
    found = {name for name in sums.read()[0] if not name.startswith("loss_by_time")}
    assert found == {"loss/total", "loss/3d_to_2d"}


class Diverging(torch.nn.Module):
    """A model whose loss of the first molecule of a slot is infinite, in place of the engine."""

    device = CPU

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        loss, terms = self.model(batch)
        terms["2d_to_3d"][0] = math.inf
        return loss, terms


def test_held_out_molecules_without_a_finite_loss_are_counted(alone, shard_dir):
    model = make_small("paper", "data.validation_fraction=0.1", "data.molecules_per_step=8")
    plan = make_plan(model.config, [shard_dir], 1)
    validator = Validator(plan, model.config.loss, 0, 1)
    means, left_out = validator(Diverging(model), lambda: True)
    slots = max(1, round(len(plan.validation) / plan.molecules_per_slot))
    assert left_out == slots < len(plan.validation) == validator.num_molecules
    assert math.isfinite(means["loss/validation/total"])


def test_the_phases_of_a_step_are_timed(alone, small_model):
    interval = Interval(CPU, 0, small_model.config.loss)
    with interval.watch.phase("forward"):
        sum(range(100_000))
    row = interval.scalars(2)
    assert 0 < row["time/forward_s"] <= row["time/step_s"] and row["time/backward_s"] == 0
    assert row["time/slowest_rank_over_median"] == 1 and row["time/slowest_rank"] == 0
    assert interval.watch.read()["forward"] == 0


@pytest.mark.launcher
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_update_norms_are_those_of_the_weights(shard_dir, tmp_path, stage):
    """Weights of successive checkpoints differ by the reported norms, at every ZeRO stage."""
    output = tmp_path / "run"
    path = ds_config(tmp_path, stage, threshold=2000)
    arguments = ["--data", shard_dir, "--deepspeed_config", path, *TINY, "--output", output]
    finish(tmp_path, *arguments, "run.steps=3", "run.save_every=1")
    before, after = (
        load_file(output / f"checkpoints/step-{step:09d}/model.safetensors") for step in (2, 3)
    )
    row = read_metrics(output / "metrics.jsonl")[-1]
    buffers = ("running_mean", "running_var", "num_batches_tracked", "frequency")
    for part in ("encoder_2d", "encoder_3d", "score_2d_to_3d", "score_3d_to_2d"):
        own = [n for n in after if n.startswith(f"{part}.") and not n.endswith(buffers)]
        moved = math.sqrt(sum(float((after[n] - before[n]).double().square().sum()) for n in own))
        size = math.sqrt(sum(float(after[n].double().square().sum()) for n in own))
        assert math.isclose(row[f"optim/update_norm/{part}"], moved, rel_tol=1e-2)
        assert math.isclose(row[f"optim/update_ratio/{part}"], moved / size, rel_tol=1e-2)
        assert row[f"optim/gradient_norm/{part}"] > 0
