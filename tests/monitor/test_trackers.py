"""Weights & Biases and MLflow without a network, into folders; a failure does not end a run."""

import pytest

from fixtures.jobs import wait_for
from msde.monitor import trackers
from msde.monitor.writer import Monitor, read_metrics


def report(folder, name):
    monitor = Monitor(folder / "run", 0, 2, tracker=name)
    monitor.text("config", {"lr": 0.1})
    monitor.hyper_parameters({"optim.lr": 0.1, "run.steps": None})
    for step in (1, 2):
        monitor.scalars(step, {"loss/total": 1.0 / step, "loss_by_time/2d_to_3d/0.00-0.25": 2.0})
    monitor.close_files(done=True)
    monitor.close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_mlflow_gets_the_scalars(folder, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'msde[trackers]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else only databases
    mlflow.set_tracking_uri((folder / "store").as_uri())
    report(folder, "mlflow")
    assert not [m for m in caplog.messages if "failed" in m]
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'msde'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert run.data.params["optim.lr"] == "0.1"


def test_weights_and_biases_gets_the_scalars(folder, monkeypatch, caplog):
    pytest.importorskip("wandb", reason="pip install 'msde[trackers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    report(folder, "wandb")
    assert not [m for m in caplog.messages if "failed" in m]
    (log,) = (folder / "run/wandb").glob("offline-run-*/run-*.wandb")
    # Its own process writes the file, and may still do so when the run is over.
    wait_for(lambda: all(name in log.read_bytes() for name in (b"loss/total", b"optim.lr")), 30)


class Broken:
    """A service that fails after the first points."""

    def __init__(self, output):
        self.calls = 0

    def scalars(self, step, values):
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("service is gone")
        assert self.calls < 2


def test_a_tracker_that_fails_is_left_out_with_one_warning(folder, monkeypatch, caplog):
    monkeypatch.setitem(trackers.TRACKERS, "broken", Broken)
    monitor = Monitor(folder / "run", 0, 4, tracker="broken")
    for step in (1, 2, 3, 4):
        monitor.scalars(step, {"loss/total": 1.0})
    monitor.close()
    assert len(read_metrics(folder / "run/metrics.jsonl")) == 4
    (message,) = caplog.messages
    assert message == "broken failed and gets nothing more of this run: service is gone"
