"""Pretraining: builds the DeepSpeed engine and runs the loop over optimizer steps."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from msde import checkpoint, engine_config
from msde.batch import MoleculeBatch
from msde.config import Config, OptimConfig, to_dict
from msde.ema import ExponentialMovingAverage
from msde.model import MoleculeSDE, parameter_groups
from msde.monitor import Monitor, peak_memory_mb, summary
from msde.philox import Key, Stream, seed_for
from msde.plan import RunPlan, make_plan
from msde.stream import MoleculeReader

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


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, base: list[float]) -> None:
    """Set every group's learning rate to its base times `factor`.

    Done anew in every step, so that no state of a scheduler has to be saved or can be lost.
    """
    for group, lr in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = lr * factor


def start_process_group() -> None:
    """Join the other ranks; without a launcher, be the only one."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), verbose=False)


def make_engine(config: Config, ds_config: dict[str, Any]) -> deepspeed.DeepSpeedEngine:
    """Build the model, Adam with its four groups, and the engine around them."""
    model = MoleculeSDE.from_seed(config)
    optim = config.optim
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

    NAMES = ("total", "contrastive", "2d_to_3d", "3d_to_2d", "contrastive_accuracy")

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
        rounds = -(-len(slots) // world_size)
        # All ranks make the same number of forward passes; ZeRO-3 would hang otherwise.
        self._numbers = [(r * world_size + rank) for r in range(rounds)]
        self._slots = slots
        self._reader = MoleculeReader(plan.stream.dataset)

    @torch.no_grad()
    def __call__(self, engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
        """Return the mean of each term; every rank must call it."""
        average_buffers(engine.module)
        sums = TermSums(engine.device)
        engine.eval()
        for number in self._numbers:
            positions = self._slots[number % len(self._slots)]
            columns = self._reader.fetch(positions)
            batch = MoleculeBatch.from_columns(columns, VALIDATION_KEY, slot=number)
            _, terms = engine(batch.to(engine.device))
            if number < len(self._slots):
                sums.add(terms)
        engine.train()
        return sums.read()[0]


def pretrain(
    config: Config, data: Path, output: Path, ds_config: dict[str, Any], resume: str = "auto"
) -> None:
    """Pretrain to the end of the configured run; every rank calls it.

    Args:
        data: a folder of shards.
        output: folder of the run: configuration, metrics, TensorBoard, checkpoints.
        ds_config: DeepSpeed's configuration with its batch sizes filled in.
        resume: see `checkpoint.find`.

    Raises:
        MsdeError: something the user can mend, found before anything is written.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    plan = make_plan(config, data, ds_config["train_batch_size"], rank, world_size)
    stream, root = plan.stream, output / "checkpoints"
    start_process_group()
    found = checkpoint.find(root, resume)
    if found:
        stage = engine_config.zero_stage(ds_config)
        checkpoint.check_compatible(*found, config, world_size, stage)
        stream.load_state_dict(found[1]["stream"])
    engine = make_engine(config, ds_config)
    ema, step, best = None, 0, math.inf
    if found:
        if config.run.ema_decay:
            ema = checkpoint.load_ema(engine, found[0], config.run.ema_decay)
        checkpoint.load(engine, found[0])
        step, best = found[1]["step"], found[1]["best_validation"]
        log.info("resuming from %s", found[0])
    elif config.run.ema_decay:
        ema = ExponentialMovingAverage(engine, config.run.ema_decay)
    base_rates = [group["lr"] for group in parameter_groups(engine.module)]
    validator = Validator(plan, rank, world_size) if len(plan.validation) else None
    monitor = None
    if rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        resolved = json.dumps(to_dict(config), indent=2) + "\n"
        (output / "config.json").write_text(resolved)
        (output / "deepspeed.json").write_text(json.dumps(ds_config, indent=2) + "\n")
        monitor = Monitor(output, step, plan.total_steps)
        monitor.text("config", to_dict(config))
        monitor.text("deepspeed", ds_config)
        log.info("%s", plan.describe())

    def validate() -> None:
        nonlocal best
        if validator is None:
            return
        if ema is None:
            terms = validator(engine)
        else:
            with ema.swapped_in():
                terms = validator(engine)
        if monitor is not None:
            monitor.scalars(step, named_scalars(terms, "validation/"))
        if step and terms["total"] < best:
            best = terms["total"]
            with ema.swapped_in() if ema else contextlib.nullcontext():
                checkpoint.export_weights(engine.module, config, output / "best")

    def save() -> None:
        average_buffers(engine.module)
        facts = {
            "stream": stream.state_dict(),
            "best_validation": best,
            "data_digest": stream.dataset.digest,
        }
        checkpoint.save(engine, root, step, config, ema, facts)

    if step == 0:
        validate()
    sums, seconds = TermSums(engine.device), 0.0
    steps = iter(stream)
    while step < plan.total_steps:
        begin = time.perf_counter()
        factor = learning_rate_factor(step, plan.total_steps, config.optim)
        set_learning_rates(engine.optimizer, factor, base_rates)
        for batch in next(steps):
            torch.manual_seed(seed_for(batch.key, Stream.DROPOUT, batch.slot))
            loss, terms = engine(batch.to(engine.device))
            engine.backward(loss)
            engine.step()
            sums.add(terms)
        if ema is not None:
            ema.update()
        step += 1
        seconds += time.perf_counter() - begin

        if monitor is not None:
            monitor.advance()
        if step == 1 or step % config.run.log_every == 0 or step == plan.total_steps:
            means, molecules = sums.read()
            if monitor is not None:
                row = named_scalars(means)
                row["throughput/molecules_per_s"] = molecules / seconds
                row["optim/lr_factor"] = factor
                row["data/epoch"] = stream.epoch + (stream.step + 1) / stream.plan.num_steps
                row["memory/peak_mb"] = peak_memory_mb()
                monitor.scalars(step, row)
            seconds = 0.0
        if step % config.run.validate_every == 0 or step == plan.total_steps:
            validate()
        if step % config.run.save_every == 0 or step == plan.total_steps:
            save()

    dist.barrier()
    if monitor is not None:
        monitor.close()
        log.info("finished\n%s", summary(output))
    dist.destroy_process_group()
