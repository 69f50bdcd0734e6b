"""Pretraining: one run's state, and the loop over optimizer steps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from msde.checkpoints import engine_state, snapshots, weights
from msde.cluster import preemption, process, ranks
from msde.cluster.launcher import Launcher
from msde.cluster.preemption import StopRequest
from msde.cluster.watchdog import Watchdog, limit_waiting
from msde.config import Config, deepspeed, to_dict
from msde.data.batch import MoleculeBatch
from msde.errors import MsdeError
from msde.model import MoleculeSDE
from msde.model.ema import ExponentialMovingAverage
from msde.monitor.flops import FlopsCounter
from msde.monitor.profiling import profiled
from msde.monitor.writer import Monitor, peak_memory_mb, summary
from msde.philox import Stream, seed_for
from msde.training.activation_checkpointing import checkpoint_activations
from msde.training.cuda_graphs import GraphedMoleculeSDE
from msde.training.engine import make_engine, start_process_group
from msde.training.optimizer import (
    learning_rate_factor,
    parameter_groups,
    set_hyper_parameters,
)
from msde.training.plan import RunPlan, make_plan
from msde.training.step_guard import MeanLoss, StepGuard, explain_out_of_memory
from msde.training.validation import TermSums, Validator, named_scalars

log = logging.getLogger("msde")


def make_model(config: Config, init_from: Path | None) -> MoleculeSDE:
    """Build the model with random weights or those in a folder.

    Raises:
        MsdeError: the folder's weights do not fit; the first wrong tensor is named.
    """
    graphed = config.run.cuda_graphs and torch.cuda.is_available()
    model = (GraphedMoleculeSDE if graphed else MoleculeSDE).from_seed(config)
    if config.run.activation_checkpointing:
        checkpoint_activations(model)
    if init_from is not None:
        weights.fill(model, init_from)
        log.info("weights from %s", init_from)
    process.set_memory_policy(sum(p.nbytes for p in model.parameters()))
    return model


def prepare_output(output: Path, config: Config, ds_config: dict[str, Any]) -> None:
    """Make the run's folder and write its configuration there; first rank only.

    Raises:
        MsdeError: the folder cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        preemption.clear_marks(output)
        for name, values in (("config", to_dict(config)), ("deepspeed", ds_config)):
            (output / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise MsdeError(f"--output {output} cannot be written: {error.strerror}") from error


class Run:
    """One run: the engine, where it stands, and what happens around its steps."""

    def __init__(
        self,
        config: Config,
        plan: RunPlan,
        output: Path,
        ds_config: dict[str, Any],
        resume: str,
        init_from: Path | None,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        """Check everything, then build the engine and load the checkpoint to go on from."""
        self.config, self.plan, self.output = config, plan, output
        self.stop, self.watchdog = stop, watchdog
        self.rank, self.world_size = ranks.rank(), ranks.world_size()
        self.checkpoints = output / "checkpoints"
        found = engine_state.find(self.checkpoints, resume)
        universal = False
        if found:
            stage = deepspeed.zero_stage(ds_config)
            universal = engine_state.check_compatible(*found, config, self.world_size, stage)
            self.plan.stream.load_state_dict(found[1]["stream"])
        model = make_model(config, None if found else init_from)
        engine_state.on_first_rank(lambda: prepare_output(output, config, ds_config))

        if universal:
            ds_config = engine_state.for_universal(ds_config)
        self.engine = make_engine(model, ds_config)
        if config.data.resident:
            self.plan.stream.keep_on(self.engine.device)
        else:
            self.plan.stream.send_to(self.engine.device)
        self.ema: ExponentialMovingAverage | None = None
        self.step, self.best, self.validation_due = 0, math.inf, True
        mean_loss, in_a_row = MeanLoss(), 0
        if found:
            mean_loss, in_a_row = self._go_on(*found, universal)
        elif config.run.ema_decay:
            self.ema = ExponentialMovingAverage(self.engine, config.run.ema_decay)
        self.saved = self.step
        self.checkpoint_time: dict[str, float] = {}  # of the last one
        self.guard = StepGuard(
            self.engine,
            ds_config["train_batch_size"],
            config.run.spike_factor,
            config.run.max_skipped_steps,
            mean_loss,
            in_a_row,
        )
        held_out = len(self.plan.validation)
        self.validator = Validator(self.plan, self.rank, self.world_size) if held_out else None
        self.monitor = self._open_monitor(ds_config)
        self.counter = FlopsCounter(self.world_size, deepspeed.in_bfloat16(ds_config))
        limit_waiting(config.run.comm_timeout)
        self.watchdog.progress()

    def _go_on(
        self, folder: Path, manifest: dict[str, Any], universal: bool
    ) -> tuple[MeanLoss, int]:
        """Load a checkpoint into the engine; return what the guard has to know."""
        decay = self.config.run.ema_decay
        if decay:
            self.ema = engine_state.load_ema(self.engine, folder, decay)
        engine_state.load(self.engine, folder, universal)
        self.step = manifest["step"]
        self.best = manifest["best_validation"] or math.inf
        self.validation_due = manifest["validation_due"]
        log.info("resuming from %s", folder)
        return MeanLoss(**manifest["mean_loss"]), manifest["skipped_in_a_row"]

    def _open_monitor(self, ds_config: dict[str, Any]) -> Monitor | None:
        if self.rank:
            return None
        monitor = Monitor(self.output, self.step, self.plan.total_steps, self.validation_due)
        monitor.text("config", to_dict(self.config))
        monitor.text("deepspeed", ds_config)
        log.info("%s", self.plan.describe())
        if self.config.loss.negatives == "ranks":
            log.warning(
                "loss.negatives=ranks: the contrastive loss depends on the number of ranks, and so "
                "will the results"
            )
        return monitor

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Let the engine's weights be their moving average for a while, if one is kept."""
        return self.ema.swapped_in() if self.ema else contextlib.nullcontext()

    def report(self, scalars: dict[str, float]) -> None:
        """Write one row of metrics for the present step."""
        if self.monitor is not None:
            self.monitor.scalars(self.step, scalars)

    def take_step(self, slots: list[MoleculeBatch], sums: TermSums) -> bool:
        """Make one optimizer step, unless all ranks agree to leave it out.

        Returns:
            Whether some rank was asked to stop.

        Raises:
            NotFinite: too many steps in a row were skipped.
            OutOfMemory: a slot is too large.
        """
        skipped_before = self.engine.skipped_steps
        first = self.plan.stream.own_slots.start
        for number, batch in enumerate(slots):
            with explain_out_of_memory(batch):
                torch.manual_seed(seed_for(batch.key, Stream.DROPOUT, batch.slot))
                loss, terms = self.counter.forward(self.engine, batch)
                self.guard.see(batch, terms["total"], first + number)
                if number == len(slots) - 1:
                    loss = self.guard.agree(loss, self.stop.asked)
                self.engine.backward(loss)
                self.engine.step()
            sums.add(terms)
        taken = self.engine.skipped_steps == skipped_before
        if taken and self.ema is not None:
            self.ema.update()
        stop, skipped = self.guard.conclude(taken)
        self.step += 1
        if skipped is not None:
            if self.monitor is not None:
                self.monitor.event(self.step, "step skipped", dataclasses.asdict(skipped))
            self.guard.raise_if_stuck(skipped)
        self.watchdog.progress()
        if self.monitor is not None:
            self.monitor.advance()
        return stop

    def validate(self) -> bool:
        """Report the losses on held-out molecules and keep the best weights.

        Returns:
            Whether some rank was asked to stop meanwhile; then it is still due.
        """
        if self.validator is None:
            self.validation_due = False
            return False

        def go_on() -> bool:
            self.watchdog.progress()
            asked = torch.tensor(float(self.stop.asked), device=self.engine.device)
            dist.all_reduce(asked)
            return not asked.item()

        with self.averaged_weights():
            terms = self.validator(self.engine, go_on)
            if terms is None:
                return True
            self.validation_due = False
            self.report(named_scalars(terms, "validation/"))
            if self.step and terms["total"] < self.best:
                self.best = terms["total"]
                engine_state.export_weights(self.engine.module, self.config, self.output / "best")
        return False

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one, and remove old ones.

        Raises:
            DiskFull: there is no room for it; what is there is as it was.
        """
        if self.saved == self.step:
            return
        began = time.perf_counter()
        if self.monitor is not None:
            self.monitor.sync()
        facts = {
            "slots": self.plan.stream.partition.slots_per_step,
            "stream": self.plan.stream.state_dict(),
            "best_validation": self.best if math.isfinite(self.best) else None,
            "validation_due": self.validation_due,
            "mean_loss": dataclasses.asdict(self.guard.mean_loss),
            "skipped_in_a_row": self.guard.in_a_row,
            "data_digest": self.plan.stream.data.digest,
        }
        engine_state.save(self.engine, self.checkpoints, self.step, self.config, self.ema, facts)
        self.saved = self.step
        self.watchdog.progress()
        if self.rank == 0:
            run = self.config.run
            snapshots.prune(self.checkpoints, run.keep_last, run.keep_every)
        self.checkpoint_time = {"time/checkpoint_s": time.perf_counter() - began}

    def finish(self, stopped: bool) -> None:
        """Leave DONE or PREEMPTED behind, close the files and part from the other ranks."""
        self.watchdog.progress()
        dist.barrier()
        if self.monitor is not None:
            self.monitor.close()
            if stopped:
                if self.watchdog.orphaned:
                    self.stop.ask(preemption.LAUNCHER_GONE)
                self.stop.fulfil(self.step)
            else:
                log.info("finished\n%s", summary(self.output))
                preemption.mark(self.output, preemption.DONE, {"step": self.step})
        dist.barrier()
        self.watchdog.stop()
        dist.destroy_process_group()

    def close(self) -> None:
        """Leave complete files behind, however the run ends."""
        if self.monitor is not None:
            with contextlib.suppress(OSError):  # what ends the run is told of already
                self.monitor.close()


def pretrain(
    config: Config,
    data: Sequence[str | Path],
    output: Path,
    ds_config: dict[str, Any],
    resume: str = "auto",
    init_from: Path | None = None,
    profile_steps: int = 0,
    launcher: Launcher | None = None,
) -> None:
    """Pretrain to the end of the configured run, or until asked to stop; every rank calls it.

    Args:
        data: folders of shards, or URLs; see `plan.open_data`.
        output: folder of the run, seen by all ranks: configuration, metrics, checkpoints.
        ds_config: DeepSpeed's configuration with its batch sizes filled in.
        resume: see `engine_state.find`.
        init_from: folder of weights to start from where there is no checkpoint to resume.
        profile_steps: how many steps to write a trace of.
        launcher: what the process must not outlive, found as early as possible.

    Raises:
        MsdeError: something the user can mend, found before anything is written.
        NotFinite: too many steps in a row had losses or gradients that are not finite.
        CommunicationFailed: another rank is dead, hangs or cannot be reached.
    """
    deepspeed.check_together(config, ds_config)
    slots_per_step = ds_config["train_batch_size"]
    plan = make_plan(config, data, slots_per_step, ranks.rank(), ranks.world_size())
    stop = StopRequest(output)
    start_process_group(config.run.comm_timeout)
    watchdog = Watchdog(config.run.comm_timeout, stop, launcher or Launcher())
    with watchdog.explaining_failures():
        run = Run(config, plan, output, ds_config, resume, init_from, stop, watchdog)
        try:
            _train(run, profile_steps)
        finally:
            run.close()


def _train(run: Run, profile_steps: int) -> None:
    """Run the loop: step, log, validate, save, stop."""
    config, engine, stream = run.config, run.engine, run.plan.stream
    total_steps = run.plan.total_steps
    base_rates = [group["lr"] for group in parameter_groups(engine.module)]
    sums, waited, stop = TermSums(engine.device), 0.0, False
    if run.validation_due:
        stop = run.validate()
    steps = iter(stream)
    since, reported = time.perf_counter(), run.step
    with profiled(run.output / "profile", profile_steps, run.rank) as profile:
        while run.step < total_steps and not stop:
            factor = learning_rate_factor(run.step, total_steps, config.optim)
            set_hyper_parameters(engine.optimizer, factor, base_rates, config.optim)
            asked = time.perf_counter()
            slots = next(steps)
            waited += time.perf_counter() - asked
            stop = run.take_step(slots, sums)
            profile.step()

            last = run.step == total_steps
            validating = last or run.step % config.run.validate_every == 0
            saving = last or stop or run.step % config.run.save_every == 0
            if run.step == 1 or validating or saving or run.step % config.run.log_every == 0:
                means, molecules = sums.read()  # with the step's facts, all that waits
                seconds = time.perf_counter() - since
                row = named_scalars(means) if molecules else {}
                row["throughput/molecules_per_s"] = molecules / seconds
                row |= run.counter.scalars(molecules / seconds)
                row["time/data_wait_share"] = waited / seconds
                row["time/step_s"] = seconds / (run.step - reported)
                row |= run.checkpoint_time
                row |= {f"optim/lr/{g['name']}": g["lr"] for g in engine.optimizer.param_groups}
                row["optim/skipped_steps"] = engine.skipped_steps
                row["data/epoch"] = stream.epochs_done
                row["memory/peak_mb"] = peak_memory_mb()
                run.report(row)
                since, waited, reported = time.perf_counter(), 0.0, run.step
            if validating or saving:
                paused = time.perf_counter()
                if validating:
                    run.validation_due = True
                    stop = stop or run.validate()
                if saving or stop:
                    run.save()
                since += time.perf_counter() - paused
    steps.close()
    run.finish(stopped=stop)
