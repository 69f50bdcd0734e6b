"""The DeepSpeed engine on two gloo ranks; the real launcher starts some of them."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fixtures.jobs import TINY, finish
from fixtures.launching import ENVIRONMENT, OVERRIDES, PAPER, deepspeed, ds_config, launch, run
from fixtures.paths import PARITY, PRETRAIN, ROOT
from fixtures.seeds import mostly_slow
from msde.checkpoints import engine_state, weights
from msde.checkpoints.snapshots import newest_manifest
from msde.config import make_config
from msde.model import MoleculeSDE
from msde.monitor.writer import read_metrics
from msde.philox import Stream, seed_for
from msde.training.optimizer import parameter_groups
from msde.training.plan import make_plan


def losses(output):
    rows = read_metrics(output / "metrics.jsonl")
    return [row["loss/total"] for row in rows if "loss/total" in row]


# Where a gradient is zero but for rounding, Adam turns other rounding into a step the other way. At
# this rate noise of 1e-7 in the gradients changes the losses of five steps by up to 1e-4.
SMALL_STEPS = ["optim.lr=2e-5", "optim.schedule=constant", "optim.warmup_steps=0"]


def plain_loop(data, preset, slots=2):
    """The same training in plain PyTorch, in one process, with one thread as the ranks have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = make_config(preset, overrides=[*OVERRIDES, *SMALL_STEPS])
    model = MoleculeSDE.from_seed(config).train()
    optimizer = torch.optim.Adam(parameter_groups(model))
    stream = make_plan(config, data, slots).stream
    means = []
    for number, step in enumerate(stream, start=1):
        total, molecules = 0.0, 0
        for batch in step:
            torch.manual_seed(seed_for(batch.key, Stream.DROPOUT, batch.slot))
            loss, terms = model(batch)
            (loss / slots).backward()
            total += terms["total"].sum().item()
            molecules += batch.num_graphs
        optimizer.step()
        optimizer.zero_grad()
        means.append(total / molecules)
        if number == config.run.steps:
            torch.set_num_threads(threads)
            return means


MAIN = """
import runpy, sys
def main():
    sys.argv[:] = sys.argv[1:]
    runpy.run_path(sys.argv[0])["main"]()
"""


def pretrain_with(script, *arguments):
    """Run a script that calls main() of launch/pretrain.py, alone in a process."""
    command = [sys.executable, "-c", MAIN + script, PRETRAIN, *arguments]
    env = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "tests")}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=env, timeout=400
    )
    assert result.returncode == 0, result.stderr[-3000:]


NO_PICKLE = """
import threading, traceback
found = []
def listen(event, arguments):
    if event == "pickle.find_class":
        files = [frame.filename for frame in traceback.extract_stack()]
        ours = [f for f in files if f.endswith(DATA_PATH)]
        if ours or threading.current_thread().name.startswith(("window", "batches")):
            found.append((arguments, ours))
DATA_PATH = tuple(f"msde/data/{name}.py" for name in
    "shards codec mixture partition stream resident staging packed".split())
sys.addaudithook(listen)
main()
assert not found, found
"""


@pytest.mark.slow
def test_no_pickle_comes_from_the_data_path_during_training(shard_dir, tmp_path):
    overrides = [*OVERRIDES, "data.workers=2", "data.validation_fraction=0.2", "run.steps=3"]
    arguments = ["--data", shard_dir, "--output", tmp_path / "run", "--preset=paper", *overrides]
    pretrain_with(NO_PICKLE, *arguments)


# Of host waits the model is left out, whose operators on a GPU are others:
# tests/training/test_cuda_graphs.py.
READY_FOR_GRAPHS = """
from fixtures.host_waits import HostWaits
from fixtures.models import count_marked_accumulators, mark_accumulators
from msde.model import MoleculeSDE
from msde.monitor.flops import FlopsCounter
from msde.training.flat_parameters import model_of
from msde.training.run import Run
from msde.training.step_guard import HostCopy
terms, take_step, waits = MoleculeSDE.terms, Run.take_step, HostWaits()

def marking(model, *arguments):
    found = terms(model, *arguments)
    mark_accumulators(model)
    return found

def watched(run, *arguments):
    with waits:
        stop = take_step(run, *arguments)
    alive = count_marked_accumulators(model_of(run.engine.module))
    assert not alive, f"{alive} nodes outlive the step"
    return stop

FlopsCounter.forward = waits.ignoring(FlopsCounter.forward)
HostCopy.read = waits.ignoring(HostCopy.read)  # of the step before
MoleculeSDE.terms, Run.take_step = marking, watched
main()
assert not waits.found, waits.found
"""


@pytest.mark.parametrize("slots", mostly_slow([1, 2], [2]))
@pytest.mark.parametrize("stage", mostly_slow([0, 1, 2], [2]))
def test_a_step_leaves_no_node_of_autograd_and_makes_no_host_wait(
    shard_dir, tmp_path, stage, slots
):
    """No CUDA graph is captured while a node lives: it is tied to the stream it was made on.

    Numbers of a step are read after the next one.
    """
    no_dropout = ["model.gin.dropout=0", "model.conformer.dropout=0"]
    arguments = ["--data", shard_dir, "--output", tmp_path / "run", *PAPER, *no_dropout]
    arguments += ["--deepspeed_config", ds_config(tmp_path, stage, slots), "run.ema_decay=0.9"]
    arguments += ["run.steps=3", "run.log_every=100", "run.spike_factor=10"]
    pretrain_with(READY_FOR_GRAPHS, *arguments)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "conformers"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stages_equal_a_plain_loop(shard_dir, tmp_path, stage, preset):
    expected = torch.tensor(plain_loop(shard_dir, preset))
    output = tmp_path / "run"
    path = ds_config(tmp_path, stage)
    launcher = deepspeed() if stage == 2 else None
    before = set(Path("/dev/shm").glob("deepspeed_*"))
    again = f"run.activation_checkpointing={str(stage == 3).lower()}"
    common = ["--data", shard_dir, "--output", output, "--deepspeed_config", path]
    options = [f"--preset={preset}", *OVERRIDES, *SMALL_STEPS, again]
    finish(tmp_path, *common, *options, launcher=launcher)
    found = torch.tensor(losses(output))
    assert found[0] != found[-1]
    # ZeRO-3 adds up gradients in another order, which is other rounding: felt after three steps.
    for count, rtol in ((3, 1e-5), (5, 3e-4)) if stage == 3 else ((5, 1e-6),):
        assert torch.allclose(found[:count], expected[:count], rtol=rtol), found / expected - 1
    assert set(Path("/dev/shm").glob("deepspeed_*")) <= before


def plain_moments(data, slots, overrides):
    """Adam's first moments after two steps of plain PyTorch at a rate that moves nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = make_config("paper", overrides=overrides)
    model = MoleculeSDE.from_seed(config).train()
    optimizer = torch.optim.Adam(parameter_groups(model))
    for _, step in zip(range(2), make_plan(config, data, slots).stream, strict=False):
        for batch in step:
            torch.manual_seed(seed_for(batch.key, Stream.DROPOUT, batch.slot))
            (model(batch)[0] / slots).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[p]}.exp_avg": state["exp_avg"] for p, state in optimizer.state.items()}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_equal_those_of_plain_pytorch(shard_dir, tmp_path, ranks, accumulation):
    """By Adam's moments, which are linear in them; losses hardly feel a wrong factor."""

    slots = ranks * accumulation
    options = [*TINY[1:], "optim.lr=1e-30", "run.steps=3"]
    expected = plain_moments(shard_dir, slots, options)
    for stage in (0, 1, 2, 3):
        path = ds_config(tmp_path, stage, slots, threshold=2000)
        file = str(tmp_path / f"state-{stage}-")
        arguments = ["--data", shard_dir, "--deepspeed_config", path, "--preset=paper", *options]
        harm = {"what": "dump", "rank": "all", "step": 3, "file": file}
        output = tmp_path / f"run-{stage}"
        finish(tmp_path, *arguments, "--output", output, ranks=ranks, harm=harm)
        found = torch.load(file + "0", weights_only=True)["moments"]
        errors, size = [], 0.0
        for name, moment in expected.items():
            errors.append((found[name] - moment).square().sum())
            size += moment.square().sum()
        assert (sum(errors) / size).sqrt() < 1e-6, stage
        compared = [found[name] for name in expected]
        assert len(compared) > 100


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_equals_an_uninterrupted_run(shard_dir, tmp_path, stage):
    """To the bit, with gradient accumulation and a moving average of the weights."""
    extra = [*PAPER, "run.ema_decay=0.9", "run.save_every=2", "run.validate_every=2"]
    extra += ["data.validation_fraction=0.2"]
    path = ds_config(tmp_path, stage, slots=4, threshold=2000)
    common = ["--data", shard_dir, "--deepspeed_config", path, *extra]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(tmp_path, *common, "--output", whole, "run.steps=4")
    finish(tmp_path, *common, "--output", stopped, "run.steps=2")
    finish(tmp_path, *common, "--output", stopped, "run.steps=4", "--resume", "required")
    assert losses(stopped) == losses(whole)
    total = "loss/validation/total"
    held_out = [
        [r[total] for r in read_metrics(folder / "metrics.jsonl") if total in r]
        for folder in (stopped, whole)
    ]
    assert held_out[0] == held_out[1] and len(held_out[0]) == 3
    final = f"checkpoints/{engine_state.folder_name(4)}"
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = load_file(whole / final / name), load_file(stopped / final / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    last = weights.load_weights(whole / final).state_dict()
    average = load_file(whole / final / "ema.safetensors")
    moved = "score_2d_to_3d.node_embedding.layers.0.weight"
    assert not torch.equal(last[moved], average[moved])


def test_without_a_launcher(shard_dir, tmp_path):
    """One process, with validation, on filled batches; the weights it leaves can be loaded."""
    output = tmp_path / "run"
    overrides = [*PAPER, "data.validation_fraction=0.2", "run.validate_every=2"]
    overrides.append("run.cuda_graphs=true")
    result = run("--data", shard_dir, "--output", output, *overrides, ranks=0)
    assert "cpu_debug.json" in result.stderr
    rows = read_metrics(output / "metrics.jsonl")
    names = ("loss/total", "loss/contrastive", "loss/2d_to_3d", "loss/3d_to_2d")
    trained = [row for row in rows if "loss/total" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4, 5]
    assert all(name in row for row in trained for name in names)
    assert all(row["throughput/molecules_per_s"] > 0 for row in trained)
    assert [r["step"] for r in rows if "loss/validation/total" in r] == [0, 2, 4, 5]
    assert (output / "config.json").exists()
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("samples/2d_to_3d")] == [2, 4, 5]
    for folder in (output / "best", output / "checkpoints/step-000000005"):
        model = weights.load_weights(folder)
        assert model.config.model.hidden_dim == 64


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_base_with_negatives_of_all_ranks_trains(shard_dir, tmp_path, stage):
    """Under ZeRO: every module that the published network lacks, and collectives in the loss."""
    output = tmp_path / "run"
    small = ["--preset=base", *OVERRIDES, "model.conformer.hidden_dim=32"]
    options = ["data.validation_fraction=0.1", "run.ema_decay=0.9", "run.steps=2"]
    options += ["loss.contrastive=info_nce", "loss.negatives=ranks", "data.masking_ratio=0.1"]
    options += ["model.gin.readout=concat", "model.encoder_3d=painn"][: 2 * (stage == 3)]
    path = ds_config(tmp_path, stage)
    common = ["--data", shard_dir, "--output", output, "--deepspeed_config", path]
    printed = finish(tmp_path, *common, *small, *options)
    assert "loss.negatives=ranks: the contrastive loss depends on the number" in printed
    found = losses(output)
    assert len(found) == 2 and all(map(math.isfinite, found))
    assert weights.load_weights(output / "best").config.loss.negatives == "ranks"


@pytest.mark.dist
@pytest.mark.slow
def test_warm_start_from_weights_of_ours_and_published_ones(shard_dir, tmp_path):
    converted = tmp_path / "converted"
    command = [sys.executable, ROOT / "launch/convert_checkpoint.py", "--output", converted]
    command += ["--from-published", PARITY / "model_complete.pth"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env=ENVIRONMENT)
    output = tmp_path / "run"
    common = ["--data", shard_dir, "--output", output, "--init-from", converted, *OVERRIDES[1:]]
    result = run(*common, "optim.lr=1e-12", "run.steps=1", ranks=0)
    assert f"weights from {converted}" in result.stderr
    before, after = (
        load_file(converted / "model.safetensors"),
        load_file(output / "checkpoints/step-000000001/model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.allclose(tensor, after[name], atol=1e-9), name
    # From there the run goes on by itself, and its own weights start another one.
    result = run(*common, "run.steps=2", ranks=0)
    assert "resuming from" in result.stderr and "weights from" not in result.stderr
    other = ["--data", shard_dir, "--output", tmp_path / "other", *OVERRIDES[1:], "run.steps=1"]
    run(*other, "--init-from", output / "checkpoints/step-000000002", ranks=0)
    wrong = ["--init-from", converted, "model.schnet.num_filters=8"]
    result = launch("--data", shard_dir, "--output", tmp_path / "third", *wrong, ranks=0)
    assert result.returncode == 2 and not (tmp_path / "third").exists()
    assert "encoder_3d.interactions.0.filter.0.weight has shape (32, 51), expected (8, 51)" in (
        result.stderr
    )


@pytest.mark.slow
def test_the_plain_loop_of_the_examples_runs(shard_dir):
    command = [sys.executable, ROOT / "examples/plain_loop.py", shard_dir]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 20


@pytest.mark.dist
@pytest.mark.slow
def test_damaged_checkpoints_are_skipped_and_named(shard_dir, tmp_path):
    output = tmp_path / "run"
    common = ["--data", shard_dir, "--output", output, *PAPER, "run.save_every=2"]
    run(*common, "run.steps=4", ranks=0)
    newest = output / "checkpoints" / engine_state.folder_name(4)
    damaged = newest / "mp_rank_00_model_states.pt"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    result = run(*common, "run.steps=5", ranks=0)
    assert f"{newest}: {damaged.name} is damaged" in result.stderr
    assert engine_state.folder_name(2) in result.stderr
    assert [r["step"] for r in read_metrics(output / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_run_is_not_mixed_with_another(shard_dir, tmp_path):
    output = tmp_path / "run"
    common = ["--data", shard_dir, "--output", output, *PAPER]
    run(*common, "run.steps=1", ranks=0)
    assert newest_manifest(output / "checkpoints")["slots"] == 1
    for extra, message in [
        (["--resume", "never"], "holds checkpoints of an earlier run"),
        (["model.hidden_dim=32"], "model.hidden_dim = 64, this run has 32"),
        (["run.seed=1"], "another run.seed"),
    ]:
        result = launch(*common, *extra, ranks=0)
        assert result.returncode == 2
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and message in errors[0]
        assert "Traceback" not in result.stderr
