"""Weights & Biases and MLflow, behind the interface that TensorBoard has here, too.

Each start of a run is a run of its own there, in one group: points after the checkpoint that a run
resumes from cannot be taken back.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msde.errors import MsdeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("msde")

PROJECT = "msde"
PARAMETERS = 100  # that MLflow takes in one request


class WeightsAndBiases:
    """A run of Weights & Biases; its environment variables, such as WANDB_MODE, apply."""

    def __init__(self, output: Path) -> None:
        """Begin a run, with local files in `output`."""
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(project=PROJECT, group=output.name, dir=str(output))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the points of one step."""
        self._run.log(values, step=step)

    def text(self, name: str, value: Any) -> None:
        """Keep a JSON value in the run's configuration."""
        self._run.config.update({name: value})

    def hyper_parameters(self, values: dict[str, Any]) -> None:
        """Keep values in the run's configuration."""
        self._run.config.update(values)

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Show a picture."""
        self._run.log({name: self._image(figure)}, step=step)

    def close(self, done: bool = False) -> None:
        """End the run there."""
        self._run.finish()


class MLflow:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names."""

    def __init__(self, output: Path) -> None:
        """Begin a run that has the name of the folder `output`."""
        # The run waits for its answers: two minutes and seven times again would end it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        mlflow.start_run(run_name=output.name, tags={"output": str(output)})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the points of one step."""
        self._mlflow.log_metrics(values, step=step)

    def text(self, name: str, value: Any) -> None:
        """Keep a JSON value as a file."""
        self._mlflow.log_dict(value, f"{name}.json")

    def hyper_parameters(self, values: dict[str, Any]) -> None:
        """Keep values as parameters."""
        names = list(values)
        for first in range(0, len(names), PARAMETERS):
            part = names[first : first + PARAMETERS]
            self._mlflow.log_params({name: values[name] for name in part})

    def picture(self, step: int, name: str, figure: Figure) -> None:
        """Keep a picture as a file."""
        self._mlflow.log_figure(figure, f"{name}/step-{step:09d}.png")

    def close(self, done: bool = False) -> None:
        """End the run there."""
        self._mlflow.end_run("FINISHED" if done else "KILLED")


TRACKERS = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check_installed(name: str) -> None:
    """Check that a tracker's package is there, before a run starts.

    Raises:
        MsdeError: it is not.
    """
    if name in TRACKERS and importlib.util.find_spec(name) is None:
        raise MsdeError(f"run.tracker={name} needs a package: pip install 'msde[trackers]'")


class Guarded:
    """A tracker that a run does not depend on: its first failure ends it, with a warning."""

    def __init__(self, name: str, output: Path) -> None:
        """Open the tracker of a name; of one that is not in TRACKERS, such as `none`, nothing."""
        self._name, self._tracker = name, None
        if name in TRACKERS:
            self._tracker = self._attempt(lambda: TRACKERS[name](output))

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of the tracker."""
        if self._tracker is not None:
            self._attempt(lambda: getattr(self._tracker, method)(*arguments))

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a service of others raises
            self._tracker = None
            log.warning("%s failed and gets nothing more of this run: %s", self._name, error)
            return None
