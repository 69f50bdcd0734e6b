"""Command lines of launch/pretrain.py: dry runs, and one line for each mistake."""

import json

import pytest
import torch.distributed as dist

from fixtures.commands import run_here
from fixtures.jobs import Job
from fixtures.launching import PAPER, launch


def refused_or_described(*arguments):
    """Start as far as the checks before the training go."""
    try:
        return run_here("msde.launch.pretrain", *arguments)
    finally:
        if dist.is_initialized():  # a checkpoint is looked for by all ranks
            dist.destroy_process_group()


def assert_one_line(result, message):
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_no_arguments_name_the_shortest_command():
    result = refused_or_described()
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "deepspeed launch/pretrain.py --data DIR --output DIR" in result.stderr


@pytest.mark.launcher
def test_only_one_rank_reports_an_error():
    assert_one_line(launch(ranks=2), "deepspeed launch/pretrain.py --data DIR --output DIR")


def test_a_process_of_several_without_a_rank_is_refused(monkeypatch, shard_dir, tmp_path):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    result = refused_or_described("--data", shard_dir, "--output", tmp_path / "run")
    assert_one_line(result, "SLURM_STEP_NUM_TASKS is 8 but RANK is not set")


def test_a_loss_that_is_not_finite_ends_the_run(shard_dir, tmp_path):
    output = tmp_path / "run"
    arguments = ["--data", shard_dir, "--output", output, *PAPER, "optim.lr=1e30"]
    result = launch(*arguments, "run.max_skipped_steps=3", ranks=0)
    assert result.returncode == 5, result.stderr
    assert "3 steps in a row were skipped" in result.stderr and "Traceback" not in result.stderr
    assert not (output / "checkpoints").exists()
    events = [json.loads(line) for line in open(output / "events.jsonl")]
    assert [event["step"] for event in events] == [2, 3, 4]


def test_an_output_that_cannot_be_made_is_named(shard_dir, tmp_path):
    (tmp_path / "file").write_text("")
    result = launch("--data", shard_dir, "--output", tmp_path / "file/run", *PAPER, ranks=0)
    assert_one_line(result, "cannot be written")


def test_help():
    result = refused_or_described("--help")
    assert result.returncode == 0
    options = "--data --deepspeed_config --resume --dry-run --save-every --profile"
    for option in (*options.split(), "--deepspeed-config"):
        assert option in result.stdout


def test_a_dry_run_describes_the_run(shard_dir, tmp_path):
    result = refused_or_described(
        "--data", shard_dir, "--output", tmp_path / "run", "--dry-run",
        "--preset=paper", "data.molecules_per_step=32",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "4,668,591 parameters" in result.stdout
    assert "1 slots of at most 32 molecules, 29.4 on average" in result.stdout
    assert "steps: about 5 an epoch, 250 in all" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_warm_up_longer_than_the_run_is_said(shard_dir, tmp_path):
    arguments = ["--data", shard_dir, "--output", tmp_path / "run", "--dry-run", "run.steps=9"]
    for warmup, said in ((9, True), (8, False)):
        result = refused_or_described(*arguments, f"optim.warmup_steps={warmup}")
        assert ("does not reach optim.lr" in result.stdout) == said, result.stderr


def test_remote_data_need_a_folder_for_copies(shard_dir, tmp_path):
    arguments = ["--data", f"file://{shard_dir}", "--output", tmp_path / "run", "--dry-run"]
    result = refused_or_described(*arguments, f"data.stage_dir={tmp_path / 'copies'}")
    assert result.returncode == 0, result.stderr
    assert_one_line(refused_or_described(*arguments), "data.stage_dir=")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "does not exist"),
        (["--data", "EMPTY"], "holds no finished data set"),
        (["--data", "OTHER_VERSION"], "msde-shards/99"),
        (["--preset", "papper"], "did you mean 'paper'"),
        (["model.hiden_dim=3"], "did you mean 'model.hidden_dim'"),
        (["--deepspeed_config", "MISSPELT"], "did you mean 'gradient_clipping'"),
        (["--deepspeed_config", "missing.json"], "cannot be read"),
        (["--deepspeed_config", "FIVE_SLOTS"], "5 slots (train_batch_size) cannot share evenly"),
        (["--save-every", "often"], "invalid int value"),
        (["--profile", "-1"], "--profile must be at least 0"),
        (["--resume", "required"], "no valid checkpoint"),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(shard_dir, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text(json.dumps({"format": "msde-shards/99"}))
    (tmp_path / "bad.json").write_text('{"gradient_cliping": 1.0}')
    (tmp_path / "five.json").write_text('{"train_batch_size": 5}')
    names = {
        "EMPTY": tmp_path / "empty",
        "OTHER_VERSION": other,
        "MISSPELT": tmp_path / "bad.json",
        "FIVE_SLOTS": tmp_path / "five.json",
    }
    arguments = [names.get(argument, argument) for argument in arguments]
    if "--data" not in arguments:
        arguments += ["--data", shard_dir]
    result = refused_or_described(*arguments, "--output", tmp_path / "run")
    if message == "no valid checkpoint":
        assert result.returncode == 3
        assert message in result.stderr and "Traceback" not in result.stderr
    else:
        assert_one_line(result, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
def test_a_dry_run_lists_all_errors_at_once(tmp_path):
    path = tmp_path / "bad.json"
    values = {"gradient_cliping": 1.0, "bf16": {"enabled": True}, "train_batch_size": 3}
    path.write_text(json.dumps(values | {"zero_optimization": {"stage": 7}}))
    arguments = ["--data", tmp_path / "nowhere", "--output", tmp_path / "run", "--dry-run"]
    arguments += ["--deepspeed_config", path, "model.hiden_dim=3", "run.log_every=0"]
    arguments += ["optim.lr=fast", "data.workers=-1"]
    job = Job(tmp_path, *arguments, ranks=2)
    assert job.wait() == [2, 2]
    printed = job.log()
    for part in [
        "9 problems",
        "unknown key 'gradient_cliping'; did you mean 'gradient_clipping'?",
        "bf16.enabled cannot be used: it casts BatchNorm's parameters",
        "3 slots, which 2 ranks cannot share evenly",
        "zero_optimization.stage is 7",
        "unknown key 'model.hiden_dim'; did you mean 'model.hidden_dim'?",
        "optim.lr is 'fast', expected float",
        "run.log_every must be positive",
        "data.workers must be at least 0",
        "nowhere does not exist",
    ]:
        assert part in printed, part
    assert "Traceback" not in printed and printed.count("error:") == 1
    assert not (tmp_path / "run").exists()
