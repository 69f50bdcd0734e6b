"""One run: what happens in and around its optimizer steps."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from msde.checkpoints import card, engine_state, snapshots
from msde.cluster import preemption, ranks
from msde.cluster.preemption import StopRequest
from msde.cluster.watchdog import Watchdog
from msde.config import Config, read_json, to_dict
from msde.config.schema import leaves
from msde.data.batch import MoleculeBatch
from msde.errors import MsdeError
from msde.files import (
    LOCK,
    MANIFEST,
    hash_files,
    locked,
    make_output,
    write_folder_manifest,
    write_json,
)
from msde.model.ema import ExponentialMovingAverage
from msde.monitor.flops import FlopsCounter
from msde.monitor.writer import NOT_FINITE_HELD_OUT, Monitor, peak_memory_mb, summary
from msde.philox import Stream, seed_for
from msde.training.flat_parameters import LAYOUT, FlatParameters
from msde.training.memory import SMALLER_STATES, explain_out_of_memory
from msde.training.metrics import Interval
from msde.training.norms import norms_by_part
from msde.training.plan import RunPlan
from msde.training.state import RunState
from msde.training.step_guard import StepGuard
from msde.training.validation import SampledConformers, Validator

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

log = logging.getLogger("msde")


@contextlib.contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Make the run's folder and keep other runs out of it; every rank must call it.

    A folder in which nothing was written is removed again.

    Raises:
        InUse: another process trains there.
        MsdeError: the folder cannot be made.
    """
    with contextlib.ExitStack() as held:

        def lock() -> None:
            is_new = not output.exists()
            make_output(output)
            message = f"another process trains in {output}; wait for its end, or stop it"
            held.enter_context(locked(output / LOCK, message))
            if is_new:
                held.callback(_remove_unused, output)

        engine_state.on_first_rank(lock)
        yield


def _remove_unused(output: Path) -> None:
    if os.listdir(output) == [LOCK]:
        (output / LOCK).unlink()
        output.rmdir()


def prepare_output(output: Path, config: Config, ds_config: dict[str, Any]) -> None:
    """Make the run's folder and write its configuration there; first rank only.

    Raises:
        MsdeError: the folder cannot be made or written to.
    """
    make_output(output)
    _say_what_changed(output / "deepspeed.json", ds_config)
    try:
        preemption.clear_marks(output)
        (output / MANIFEST).unlink(missing_ok=True)
        names = {"config.json": to_dict(config), "deepspeed.json": ds_config}
        for name, values in names.items():
            write_json(output / name, values)
        write_folder_manifest(output, {"files": hash_files(output, names)})
    except OSError as error:
        raise MsdeError(f"--output {output} cannot be written: {error.strerror}") from error


def _say_what_changed(former: Path, ds_config: dict[str, Any]) -> None:
    """Warn of DeepSpeed's settings that were others when the run was started before."""
    try:
        there = read_json(former) if former.exists() else ds_config
    except MsdeError as error:  # a start before this one was killed
        log.warning("%s; it is written anew", error)
        return
    for key in ("gradient_clipping", "torch_autocast"):
        if there.get(key) != ds_config.get(key):
            log.warning("DeepSpeed's %s was %s, is %s", key, there.get(key), ds_config.get(key))


def open_monitor(
    output: Path, config: Config, ds_config: dict[str, Any], plan: RunPlan, state: RunState
) -> Monitor:
    """Open the files of metrics and describe the run there and in the log; first rank only."""
    monitor = Monitor(
        output, state.step, plan.total_steps, state.validation_due, config.run.tracker
    )
    described = plan.describe()
    texts = {
        "config": to_dict(config),
        "deepspeed": ds_config,
        "versions": _versions(),
        "data": {"digest": plan.stream.data.digest, "plan": described.splitlines()},
    }
    for name, value in texts.items():
        monitor.text(name, value)
    monitor.hyper_parameters(leaves(config))
    monitor.tensorboard.layout()
    log.info("%s", described)
    if config.loss.negatives == "ranks":
        log.warning(
            "loss.negatives=ranks: the contrastive loss depends on the number of ranks, and so "
            "will the results"
        )
    return monitor


def _versions() -> dict[str, str]:
    """Return what the numbers of a run may depend on: releases, device and number of ranks."""
    names = ("msde", "torch", "deepspeed", "rdkit", "numpy")
    cpu = platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "ranks": str(ranks.world_size()),
    }


@dataclass
class Run:
    """The parts of a run, built by `loop.pretrain`, and what it does with them in each step."""

    config: Config
    plan: RunPlan
    output: Path
    stop: StopRequest
    watchdog: Watchdog
    engine: DeepSpeedEngine
    ema: ExponentialMovingAverage | None
    state: RunState
    guard: StepGuard
    validator: Validator | None
    samples: SampledConformers | None
    counter: FlopsCounter
    monitor: Monitor | None  # of the first rank
    checkpoint_time: dict[str, float] = field(default_factory=dict)  # of the newest checkpoint

    def __post_init__(self) -> None:
        """Note that there is nothing new to save."""
        self.saved_step = self.state.step
        self._has_slots = False

    def next_slots(self, steps: Iterator[list[MoleculeBatch]]) -> list[MoleculeBatch]:
        """Return the slots of the next step; every rank must call it.

        Before the first one ranks wait longer: shards may be copied to data.stage_dir.

        Raises:
            OutOfMemory: their batches do not fit the device's memory.
        """
        with explain_out_of_memory("making the batches of a step"):
            if self._has_slots:
                return next(steps)
            with self.watchdog.patient():
                slots = next(steps)
                dist.barrier()
        self._has_slots = True
        return slots

    def take_step(self, slots: list[MoleculeBatch], interval: Interval) -> bool:
        """Make one optimizer step, unless all ranks agree to skip it.

        The host does not wait for the device: what is returned and raised is of the step before.

        Returns:
            Whether some rank was asked to stop.

        Raises:
            NotFinite: too many steps in a row were skipped.
            OutOfMemory: a slot is too large, or the optimizer's state.
        """
        first, phase = self.plan.stream.own_slots.start, interval.watch.phase
        for number, batch in enumerate(slots):
            with explain_out_of_memory(batch):
                torch.manual_seed(seed_for(batch.key, Stream.DROPOUT, batch.slot))
                with phase("forward"):
                    loss, terms = self.counter.forward(self.engine, batch)
                self.guard.observe(batch, terms["total"], first + number)
                with phase("backward"):
                    if number == len(slots) - 1:
                        loss = self.guard.agree(loss, self.stop.asked)
                    self.engine.backward(loss)
                with phase("optimizer"), explain_out_of_memory("Adam's step", SMALLER_STATES):
                    if number == len(slots) - 1:
                        self.guard.before_step()
                    self.engine.step()
            interval.sums.add(terms, batch)
            del loss, terms  # they would keep the slot's autograd graph during the next one
        self.state.step += 1
        skipped = self.guard.after_step(self.state.step)
        if self.ema is not None:
            self.ema.update(skipped)
        self.watchdog.progress()
        if self.monitor is not None:
            self.monitor.advance()
        return self.conclude(newest=False)

    def conclude(self, newest: bool) -> bool:
        """Report the steps that were skipped; every rank must call it.

        Args:
            newest: the newest step, too, for which the device is waited for.

        Returns:
            Whether some rank was asked to stop.

        Raises:
            NotFinite: too many steps in a row were skipped.
        """
        stop = False
        for concluded in self.guard.conclude(newest):
            stop = stop or concluded.stop
            if concluded.skipped is not None:
                if self.monitor is not None:
                    facts = dataclasses.asdict(concluded.skipped)
                    self.monitor.event(concluded.step, "step skipped", facts)
                self.guard.raise_if_stuck(concluded.skipped)
        return stop

    def report(self, scalars: dict[str, float]) -> None:
        """Write one row of metrics for the present step."""
        if self.monitor is not None:
            self.monitor.scalars(self.state.step, scalars)

    def report_steps(self, interval: Interval) -> None:
        """Report the steps since the last such row and begin a new interval."""
        row = interval.scalars(self.state.step)
        row |= self.counter.scalars(row["throughput/molecules_per_s"]) | self.checkpoint_time
        row |= {f"optim/lr/{g['name']}": g["lr"] for g in self.engine.optimizer.param_groups}
        row |= norms_by_part(self.engine)
        row["optim/skipped_steps"] = self.engine.skipped_steps
        row["data/epoch"] = self.plan.stream.epochs_done
        row["memory/peak_mb"] = peak_memory_mb()
        self.report(row)
        interval.restart(self.state.step)

    def validate(self) -> bool:
        """Report the losses on held-out molecules and keep the best weights.

        Returns:
            Whether some rank was asked to stop meanwhile; then validation stays due.
        """
        if self.validator is None:
            self.state.validation_due = False
            return False
        with self.ema.swapped_in() if self.ema else contextlib.nullcontext():
            found = self.validator(self.engine, self._agree_to_go_on)
            if found is None:
                return True
            terms, left_out = found
            self.state.validation_due = False
            total = terms.get("loss/validation/total", math.nan)
            if terms:
                self.report(terms)
            if left_out and self.monitor is not None:
                facts = {"molecules": left_out, "of": self.validator.num_molecules}
                self.monitor.event(self.state.step, NOT_FINITE_HELD_OUT, facts)
            if self.state.step:
                with self.watchdog.patient():
                    if not left_out and total < self.state.best_validation:
                        self.state.best_validation = total
                        engine_state.replace_weights(
                            self.engine.module, self.config, self.output / "best",
                            self.origin(bool(self.ema)),
                        )  # fmt: skip
                    self._show_samples()
                    dist.barrier()
        return False

    def _show_samples(self) -> None:
        """Show conformers of held-out molecules; every rank must call it."""
        if self.samples is None:
            return
        samples = self.samples(self.engine)
        if self.monitor is not None and samples:
            self.monitor.structures(self.state.step, "samples", samples)

    def origin(self, averaged: bool = False) -> list[str]:
        """Return what the model card says of the training so far.

        Args:
            averaged: whether the weights are the moving average.
        """
        stream, state = self.plan.stream, self.state
        held_out = stream.partition.validation_fraction
        taken = f"{state.step:,} of {self.plan.total_steps:,} planned"
        versions = ", ".join(f"{name} {value}" for name, value in _versions().items())
        best = f"Lowest loss on held-out molecules so far: {state.best_validation:.4g}."
        average = f"The weights are a moving average, of decay {self.config.run.ema_decay:g}."
        return [
            *card.describe_data(stream.data),
            f"Held out of training: {held_out:.1%} of the molecules.",
            f"Optimizer steps: {taken}, {stream.epochs_done:.4g} epochs.",
            *[best] * math.isfinite(state.best_validation),
            *[average] * averaged,
            f"Made with {versions}.",
        ]

    def _agree_to_go_on(self) -> bool:
        """Return whether no rank was asked to stop; every rank must call it."""
        self.watchdog.progress()
        asked = torch.tensor(float(self.stop.asked), device=self.engine.device)
        dist.all_reduce(asked)
        return not asked.item()

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one, and remove old ones.

        Raises:
            DiskFull: there is no room for it; earlier checkpoints are intact.
        """
        if self.saved_step == self.state.step:
            return
        began = time.perf_counter()
        with self.watchdog.patient():
            self._write_checkpoint()
        self.saved_step = self.state.step
        self.checkpoint_time = {"time/checkpoint_s": time.perf_counter() - began}

    def _write_checkpoint(self) -> None:
        """Write one, and remove old ones; every rank must call it."""
        if self.monitor is not None:
            self.monitor.sync()
        stream, folder = self.plan.stream, self.output / "checkpoints"
        facts = self.state.to_manifest() | {
            "slots": stream.partition.slots_per_step,
            "stream": stream.state_dict(),
            "flat_parameters": isinstance(self.engine.module, FlatParameters) and LAYOUT,
        }
        engine_state.save(self.engine, folder, self.config, self.ema, facts, self.origin())
        keep = self.config.run.keep_last, self.config.run.keep_every
        engine_state.on_first_rank(lambda: snapshots.prune(folder, *keep))

    def finish(self) -> None:
        """Leave the marker DONE or PREEMPTED, close the files and part from the other ranks."""
        done = self.state.step >= self.plan.total_steps and not self.state.validation_due
        with self.watchdog.patient():
            if self.watchdog.any_orphaned(self.engine.device):
                self.stop.ask(preemption.LAUNCHER_GONE)
            if self.monitor is not None:
                self.monitor.close_files(done)
                if done:
                    log.info("finished\n%s", summary(self.output))
                    preemption.mark(self.output, preemption.DONE, {"step": self.state.step})
                    self.stop.settle()
                else:
                    self.stop.fulfil(self.state.step)
            dist.barrier()
        self.watchdog.stop()
        dist.destroy_process_group()

    def close(self) -> None:
        """Close the files and the tracker, however the run ends."""
        if self.monitor is not None:
            with contextlib.suppress(OSError):  # the error that ends the run comes first
                self.monitor.close()
