"""Joining the other ranks and building the DeepSpeed engine."""

from __future__ import annotations

import datetime
import os
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from msde.model import MoleculeSDE
from msde.training.optimizer import parameter_groups


def start_process_group(timeout: float) -> None:
    """Join the other ranks, which `ranks.map_environment` knows of.

    Args:
        timeout: seconds that the ranks wait for each other.
    """
    # Of these DeepSpeed asks here for its reduction in shared memory, which only inference calls.
    # It takes a minute to compile on a CPU and keeps 69 MB a rank, which outlive the run.
    deepspeed.ops.__compatible_ops__ = {}
    # Before the first collective: DeepSpeed itself chooses the device only with the engine.
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(
        get_accelerator().communication_backend_name(),
        verbose=False,
        timeout=datetime.timedelta(seconds=timeout),
    )


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
    if engine.zero_optimization_partition_weights():
        _clear_padding(engine.optimizer)
    return engine


@torch.no_grad()
def _clear_padding(optimizer: Any) -> None:
    """Zero what ZeRO-3 appends to the last parts of weights.

    It is memory that nobody has written. No weight depends on it, but it goes through Adam and into
    checkpoints, which should hold neither chance nor what is not finite.
    """
    groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    for parameters, flat in groups:
        end = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            end += size
            used = min(max(parameter.ds_numel - dist.get_rank() * size, 0), size)
            flat[end - size + used : end] = 0
