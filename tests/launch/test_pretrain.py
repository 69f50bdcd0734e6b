"""What users see of launch/pretrain.py: dry runs, and one line for each mistake."""

import json

import pytest

from fixtures.launching import ENVIRONMENT, PAPER, launch


def assert_one_line(result, message):
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_no_arguments_name_the_shortest_command():
    result = launch(ranks=0)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "deepspeed launch/pretrain.py --data DIR --output DIR" in result.stderr


@pytest.mark.launcher
def test_only_one_rank_speaks():
    assert_one_line(launch(ranks=2), "deepspeed launch/pretrain.py --data DIR --output DIR")


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, shard_dir, tmp_path):
    monkeypatch.setitem(ENVIRONMENT, "SLURM_STEP_NUM_TASKS", "8")
    result = launch("--data", shard_dir, "--output", tmp_path / "run", ranks=0)
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
    result = launch("--help", ranks=0)
    assert result.returncode == 0
    options = "--data --deepspeed_config --resume --dry-run --save-every --profile"
    for option in options.split():
        assert option in result.stdout


def test_dry_run_says_what_would_be_done(shard_dir, tmp_path):
    result = launch("--data", shard_dir, "--output", tmp_path / "run", "--dry-run",
                    "--preset=paper", "data.molecules_per_step=32", ranks=0)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "4,668,591 parameters" in result.stdout
    assert "1 slots of at most 32 molecules, 29.4 on average" in result.stdout
    assert "steps: about 5 an epoch, 250 in all" in result.stdout
    assert not (tmp_path / "run").exists()


def test_data_elsewhere_are_read_by_way_of_a_folder_for_copies(shard_dir, tmp_path):
    arguments = ["--data", f"file://{shard_dir}", "--output", tmp_path / "run", "--dry-run"]
    result = launch(*arguments, f"data.stage_dir={tmp_path / 'copies'}", ranks=0)
    assert result.returncode == 0, result.stderr
    assert_one_line(launch(*arguments, ranks=0), "data.stage_dir=")


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
    result = launch(*arguments, "--output", tmp_path / "run", ranks=0)
    if message == "no valid checkpoint":
        assert result.returncode == 3
        assert message in result.stderr and "Traceback" not in result.stderr
    else:
        assert_one_line(result, message)
    assert not (tmp_path / "run").exists()
