"""Pretraining: the parts of a run are built in the order they are needed; then it steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msde.checkpoints import conversion, engine_state
from msde.cluster import ranks
from msde.cluster.launcher import Launcher
from msde.cluster.preemption import StopRequest
from msde.cluster.watchdog import STARTING, Watchdog, limit_waiting
from msde.config import Config, deepspeed
from msde.errors import MsdeError
from msde.model.ema import ExponentialMovingAverage
from msde.monitor.flops import FlopsCounter
from msde.monitor.profiling import profiled
from msde.training.engine import make_engine, make_model, start_process_group
from msde.training.flat_parameters import LAYOUT, model_of
from msde.training.metrics import Interval
from msde.training.optimizer import learning_rate_factor, parameter_groups, set_hyper_parameters
from msde.training.plan import RunPlan, make_plan
from msde.training.run import Run, only_run_in, open_monitor, prepare_output
from msde.training.state import MeanLoss, RunState
from msde.training.step_guard import StepGuard
from msde.training.validation import Validator, sampled_conformers

log = logging.getLogger("msde")


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
        init_from: folder of weights to start from if there is no checkpoint to resume.
        profile_steps: number of steps to write a trace of.
        launcher: the launcher that the process must not outlive, looked up as early as possible.

    Raises:
        MsdeError: an error the user can fix, found before anything is written.
        NotFinite: too many steps in a row had losses or gradients that are not finite.
        CommunicationFailed: another rank is dead, hangs or cannot be reached.
    """
    deepspeed.check_together(config, ds_config)
    slots_per_step = ds_config["train_batch_size"]
    plan = make_plan(config, data, slots_per_step, ranks.rank(), ranks.world_size())
    stop = StopRequest(output)
    watchdog = Watchdog(longest_step(config), stop, launcher or Launcher())
    if ranks.world_size() > 1:
        log.info("waiting for all %d ranks to join", ranks.world_size())
    with watchdog.explaining_failures():
        # Until `build_run` has finished: ranks wait while the first one converts a checkpoint.
        start_process_group(max(config.run.comm_timeout, STARTING))
        stop.listen()
        watchdog.joined()
        with only_run_in(output):
            run = build_run(config, plan, output, ds_config, resume, init_from, stop, watchdog)
            try:
                train(run, profile_steps)
            finally:
                run.close()


def build_run(
    config: Config,
    plan: RunPlan,
    output: Path,
    ds_config: dict[str, Any],
    resume: str,
    init_from: Path | None,
    stop: StopRequest,
    watchdog: Watchdog,
) -> Run:
    """Check everything, then build the engine and load the checkpoint to go on from."""
    rank, world_size, stage = ranks.rank(), ranks.world_size(), deepspeed.zero_stage(ds_config)
    state, universal = RunState(), False
    checkpoint = engine_state.find(output / "checkpoints", resume)
    if checkpoint is not None:
        changes = engine_state.changed_settings(checkpoint, config)
        universal = engine_state.check_compatible(checkpoint, changes, world_size, stage)
        state = RunState.from_manifest(checkpoint.manifest)
        if any(map(decides_validation, changes)):
            log.warning(
                "held-out losses cannot be compared with earlier ones: best/ is chosen anew"
            )
            state.best_validation = math.inf
        if any(key.startswith("loss.") for key in changes):
            state.mean_loss = MeanLoss()  # that of other losses would make spikes of all steps
        plan.stream.load_state_dict(checkpoint.manifest["stream"])
    log.info("building the model and DeepSpeed's engine")
    model = make_model(config, init_from if checkpoint is None else None)
    engine_state.on_first_rank(lambda: prepare_output(output, config, ds_config))

    flat = has_flat_parameters(checkpoint) if checkpoint else None
    used = conversion.for_universal(ds_config) if universal else ds_config
    engine = make_engine(model, used, flat)
    if config.data.resident:
        plan.stream.keep_on(engine.device)
    else:
        plan.stream.send_to(engine.device)
    ema = None
    if checkpoint is not None:
        ema = engine_state.load(engine, model, checkpoint.folder, universal, config.run.ema_decay)
    elif config.run.ema_decay:
        ema = ExponentialMovingAverage(engine, config.run.ema_decay)

    guard = StepGuard(engine, ds_config["train_batch_size"], config.run, state)
    validator = Validator(plan, config.loss, rank, world_size) if len(plan.validation) else None
    monitor = open_monitor(output, config, ds_config, plan, state) if rank == 0 else None
    counter = FlopsCounter(world_size, deepspeed.in_bfloat16(ds_config))
    samples = sampled_conformers(config, plan)
    run = Run(
        config, plan, output, stop, watchdog, engine, ema, state, guard, validator, samples,
        counter, monitor,
    )  # fmt: skip
    limit_waiting(longest_step(config))
    watchdog.progress()
    return run


def decides_validation(key: str) -> bool:
    """Return whether losses on held-out molecules with another value cannot be compared."""
    return key.startswith("loss.") or key in ("run.ema_decay", "data.max_validation_molecules")


def has_flat_parameters(checkpoint: engine_state.Checkpoint) -> bool:
    """Return whether a checkpoint has moments of flat parameters, with which its run goes on.

    Raises:
        MsdeError: their weights have another order.
    """
    layout = checkpoint.manifest.get("flat_parameters", False)
    if layout not in (False, LAYOUT):
        raise MsdeError(
            f"{checkpoint.folder} was written by another version of msde, which ordered the "
            "optimizer's moments otherwise; start a new run from its weights with --init-from"
        )
    return bool(layout)


def longest_step(config: Config) -> float:
    """Return the seconds that ranks wait for each other in a step, in which some may compile."""
    return max(config.run.comm_timeout, STARTING if config.run.compile else 0)


def train(run: Run, profile_steps: int) -> None:
    """Step, log, validate, save, stop: to the last step, or until a rank was asked to stop."""
    config, state, total_steps = run.config, run.state, run.plan.total_steps
    base_rates = [group["lr"] for group in parameter_groups(model_of(run.engine.module))]
    stop = run.validate() if state.validation_due else False
    steps = iter(run.plan.stream)
    interval = Interval(run.engine.device, state.step, config.loss)
    with profiled(run.output / "profile", profile_steps, ranks.rank()) as profile:
        while state.step < total_steps and not stop:
            factor = learning_rate_factor(state.step, total_steps, config.optim)
            set_hyper_parameters(run.engine.optimizer, factor, base_rates, config.optim)
            with interval.watch.phase("data_wait"):
                slots = run.next_slots(steps)
            stop = run.take_step(slots, interval)
            profile.step()

            last = state.step == total_steps
            validating = last or state.step % config.run.validate_every == 0
            saving = last or stop or state.step % config.run.save_every == 0
            logging = state.step == 1 or state.step % config.run.log_every == 0
            if logging or validating or saving:
                stop = run.conclude(newest=True) or stop
                run.report_steps(interval)
            with interval.paused():
                if validating:
                    state.validation_due = run.validator is not None
                    stop = stop or run.validate()
                if saving or stop:
                    run.save()
    steps.close()
    run.finish()
