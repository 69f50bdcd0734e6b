"""Pretraining: builds the DeepSpeed engine and runs the loop over optimizer steps."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from msde import checkpoint, cpu, engine_config, weights
from msde.batch import MoleculeBatch
from msde.config import Config, OptimConfig, to_dict
from msde.ema import ExponentialMovingAverage
from msde.errors import MsdeError, NotFinite
from msde.model import MoleculeSDE, parameter_groups
from msde.monitor import OBJECTIVES, Monitor, peak_memory_mb, summary
from msde.philox import Key, Stream, seed_for
from msde.plan import RunPlan, make_plan

log = logging.getLogger("msde")

# Validation sees the same noise and times whatever the run's seed and step.
VALIDATION_KEY = Key(seed=0, epoch=2**32 - 1)


def learning_rate_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Return what the learning rates are multiplied by in step 0, 1, ...; a pure function."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if optim.schedule == "linear":
        return max(0.0, 1 - progress)
    return 1.0


def set_hyper_parameters(
    optimizer: torch.optim.Optimizer, factor: float, base_rates: list[float], optim: OptimConfig
) -> None:
    """Set what the optimizer's groups are configured to, learning rates times `factor`.

    Done anew in every step: no state of a scheduler has to be saved or can be lost, and a resumed
    run has its own configuration, not the checkpoint's.
    """
    for group, lr in zip(optimizer.param_groups, base_rates, strict=True):
        group["lr"] = lr * factor
        group["betas"] = (optim.beta1, optim.beta2)
        group["weight_decay"] = optim.weight_decay


def start_process_group() -> None:
    """Join the other ranks; without a launcher, be the only one."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    # Before the first collective: DeepSpeed itself chooses the device only with the engine.
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), verbose=False)


def make_model(config: Config, init_from: Path | None) -> MoleculeSDE:
    """Build the model with random weights or those in a folder.

    Raises:
        MsdeError: the folder's weights do not fit; the first wrong tensor is named.
    """
    model = MoleculeSDE.from_seed(config)
    if init_from is not None:
        weights.fill(model, init_from)
        log.info("weights from %s", init_from)
    cpu.set_memory_policy(sum(p.nbytes for p in model.parameters()))
    return model


def make_engine(model: MoleculeSDE, ds_config: dict[str, Any]) -> deepspeed.DeepSpeedEngine:
    """Build Adam with its four groups and the engine around model and optimizer."""
    optim = model.config.optim
    optimizer = torch.optim.Adam(
        parameter_groups(model),
        betas=(optim.beta1, optim.beta2),
        weight_decay=optim.weight_decay,
        fused=get_accelerator().device_name() == "cuda",
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    return engine


class TermSums:
    """Sums of the model's named terms over molecules, kept on the device until they are read."""

    NAMES = (*OBJECTIVES, "contrastive_accuracy")

    def __init__(self, device: torch.device) -> None:
        """Start from zero."""
        self._sums = torch.zeros(len(self.NAMES) + 1, dtype=torch.float64, device=device)

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Take in the terms of one slot."""
        stacked = torch.stack([terms[name] for name in self.NAMES]).double()
        self._sums[:-1] += stacked.sum(1)
        self._sums[-1] += stacked.shape[1]

    def read(self) -> tuple[dict[str, float], int]:
        """Return the mean of each term over all ranks' molecules and their number; start anew."""
        dist.all_reduce(self._sums)
        *sums, count = self._sums.tolist()
        self._sums.zero_()
        return {n: s / max(count, 1) for n, s in zip(self.NAMES, sums, strict=True)}, int(count)


def named_scalars(terms: dict[str, float], part: str = "") -> dict[str, float]:
    """Name the model's terms as metrics.jsonl and TensorBoard know them."""
    scalars = {f"loss/{part}{name}": value for name, value in terms.items()}
    scalars[f"accuracy/{part}contrastive"] = scalars.pop(f"loss/{part}contrastive_accuracy")
    return scalars


def average_buffers(module: torch.nn.Module) -> None:
    """Give all ranks the mean of their running statistics, which otherwise drift apart."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()


class Validator:
    """The losses on held-out molecules: fixed slots, noise and times, running statistics."""

    def __init__(self, plan: RunPlan, rank: int, world_size: int) -> None:
        """Deal the held-out slots to the ranks."""
        count = max(1, round(len(plan.validation) / plan.molecules_per_slot))
        slots = np.array_split(plan.validation, count)
        # All ranks make the same number of forward passes; ZeRO-3 would hang otherwise.
        numbers = range(rank, -(-count // world_size) * world_size, world_size)
        self._count = count
        self._slots = {n: plan.stream.data.fetch(slots[n % count]) for n in numbers}

    @torch.no_grad()
    def __call__(self, engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
        """Return the mean of each term; every rank must call it."""
        average_buffers(engine.module)
        sums = TermSums(engine.device)
        engine.eval()
        for number, columns in self._slots.items():
            batch = MoleculeBatch.from_columns(columns, VALIDATION_KEY, slot=number)
            _, terms = engine(batch.to(engine.device))
            if number < self._count:
                sums.add(terms)
        engine.train()
        return sums.read()[0]


def prepare_output(output: Path, config: Config, ds_config: dict[str, Any]) -> None:
    """Make the run's folder and write its configuration there; first rank only.

    Raises:
        MsdeError: the folder cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, values in (("config", to_dict(config)), ("deepspeed", ds_config)):
            (output / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise MsdeError(f"--output {output} cannot be written: {error.strerror}") from error


class Run:
    """One run: the engine, where it stands, and what happens around its steps."""

    def __init__(
        self,
        config: Config,
        data: Sequence[str | Path],
        output: Path,
        ds_config: dict[str, Any],
        resume: str,
        init_from: Path | None,
    ) -> None:
        """Check everything, then build the engine and load the checkpoint to go on from."""
        self.config, self.output = config, output
        rank, world_size = (int(os.environ.get(*n)) for n in (("RANK", "0"), ("WORLD_SIZE", "1")))
        self.plan = make_plan(config, data, ds_config["train_batch_size"], rank, world_size)
        start_process_group()
        self.checkpoints = output / "checkpoints"
        found = checkpoint.find(self.checkpoints, resume)
        if found:
            stage = engine_config.zero_stage(ds_config)
            checkpoint.check_compatible(*found, config, world_size, stage)
            self.plan.stream.load_state_dict(found[1]["stream"])
        model = make_model(config, None if found else init_from)
        checkpoint.on_first_rank(lambda: prepare_output(output, config, ds_config))

        self.engine = make_engine(model, ds_config)
        if config.data.resident:
            self.plan.stream.keep_on(self.engine.device)
        self.ema: ExponentialMovingAverage | None = None
        self.step, self.best = 0, math.inf
        decay = config.run.ema_decay
        if found:
            if decay:
                self.ema = checkpoint.load_ema(self.engine, found[0], decay)
            checkpoint.load(self.engine, found[0])
            self.step = found[1]["step"]
            self.best = found[1]["best_validation"] or math.inf
            log.info("resuming from %s", found[0])
        elif decay:
            self.ema = ExponentialMovingAverage(self.engine, decay)
        held_out = len(self.plan.validation)
        self.validator = Validator(self.plan, rank, world_size) if held_out else None
        self.monitor = None
        if rank == 0:
            self.monitor = Monitor(output, self.step, self.plan.total_steps)
            self.monitor.text("config", to_dict(config))
            self.monitor.text("deepspeed", ds_config)
            log.info("%s", self.plan.describe())
        if config.loss.negatives == "ranks":
            log.warning(
                "loss.negatives=ranks: the contrastive loss depends on the number of ranks, and so "
                "will the results"
            )

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Let the engine's weights be their moving average for a while, if one is kept."""
        return self.ema.swapped_in() if self.ema else contextlib.nullcontext()

    def report(self, scalars: dict[str, float]) -> None:
        """Write one row of metrics for the present step."""
        if self.monitor is not None:
            self.monitor.scalars(self.step, scalars)

    def validate(self) -> None:
        """Report the losses on held-out molecules and keep the best weights."""
        if self.validator is None:
            return
        with self.averaged_weights():
            terms = self.validator(self.engine)
            self.report(named_scalars(terms, "validation/"))
            if self.step and terms["total"] < self.best:
                self.best = terms["total"]
                checkpoint.export_weights(self.engine.module, self.config, self.output / "best")

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        average_buffers(self.engine.module)
        facts = {
            "stream": self.plan.stream.state_dict(),
            "best_validation": self.best if math.isfinite(self.best) else None,
            "data_digest": self.plan.stream.data.digest,
        }
        checkpoint.save(self.engine, self.checkpoints, self.step, self.config, self.ema, facts)


def pretrain(
    config: Config,
    data: Sequence[str | Path],
    output: Path,
    ds_config: dict[str, Any],
    resume: str = "auto",
    init_from: Path | None = None,
) -> None:
    """Pretrain to the end of the configured run; every rank calls it.

    Args:
        data: folders of shards, or URLs; see `plan.open_data`.
        output: folder of the run, seen by all ranks: configuration, metrics, checkpoints.
        ds_config: DeepSpeed's configuration with its batch sizes filled in.
        resume: see `checkpoint.find`.
        init_from: folder of weights to start from where there is no checkpoint to resume.

    Raises:
        MsdeError: something the user can mend, found before anything is written.
        NotFinite: the loss is not a finite number any more.
    """
    run = Run(config, data, output, ds_config, resume, init_from)
    engine, stream, total_steps = run.engine, run.plan.stream, run.plan.total_steps
    base_rates = [group["lr"] for group in parameter_groups(engine.module)]
    sums, waited = TermSums(engine.device), 0.0
    if run.step == 0:
        run.validate()
    steps = iter(stream)
    since = time.perf_counter()
    while run.step < total_steps:
        factor = learning_rate_factor(run.step, total_steps, config.optim)
        set_hyper_parameters(engine.optimizer, factor, base_rates, config.optim)
        asked = time.perf_counter()
        slots = next(steps)
        waited += time.perf_counter() - asked
        for batch in slots:
            torch.manual_seed(seed_for(batch.key, Stream.DROPOUT, batch.slot))
            loss, terms = engine(batch.to(engine.device))
            engine.backward(loss)
            engine.step()
            sums.add(terms)
        if run.ema is not None:
            run.ema.update()
        run.step += 1
        if run.monitor is not None:
            run.monitor.advance()

        last = run.step == total_steps
        saving = last or run.step % config.run.save_every == 0
        validating = last or run.step % config.run.validate_every == 0
        if run.step == 1 or saving or run.step % config.run.log_every == 0:
            means, molecules = sums.read()  # the only place that waits for the device
            if not math.isfinite(means["total"]):
                raise NotFinite(
                    f"the loss is {means['total']} after step {run.step}; the checkpoints before "
                    "it are kept: lower optim.lr or clip gradients, and resume"
                )
            seconds = time.perf_counter() - since
            row = named_scalars(means)
            row["throughput/molecules_per_s"] = molecules / seconds
            row["time/data_wait_share"] = waited / seconds
            row |= {f"optim/lr/{g['name']}": g["lr"] for g in engine.optimizer.param_groups}
            row["data/epoch"] = stream.epochs_done
            row["memory/peak_mb"] = peak_memory_mb()
            run.report(row)
            since, waited = time.perf_counter(), 0.0
        if validating or saving:
            paused = time.perf_counter()
            if validating:
                run.validate()
            if saving:
                run.save()
            since += time.perf_counter() - paused

    steps.close()
    dist.barrier()
    if run.monitor is not None:
        run.monitor.close()
        log.info("finished\n%s", summary(output))
    dist.destroy_process_group()
