"""Joining the other ranks, and building the model and the DeepSpeed engine around it."""

from __future__ import annotations

import datetime
import logging
import os
import re
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn

from msde.checkpoints import weights
from msde.cluster import process
from msde.cluster.watchdog import CommunicationFailed, is_communication_failure
from msde.config import Config
from msde.config.deepspeed import zero_stage
from msde.errors import MsdeError
from msde.model import MoleculeSDE
from msde.training.activation_checkpointing import checkpoint_activations
from msde.training.compilation import CompiledMoleculeSDE
from msde.training.cuda_graphs import GraphedMoleculeSDE
from msde.training.flat_parameters import FlatParameters
from msde.training.optimizer import decides_to_skip, parameter_groups

log = logging.getLogger("msde")


def start_process_group(timeout: float) -> None:
    """Join the other ranks, at the address that `ranks.map_environment` has found.

    Args:
        timeout: seconds that the ranks wait for each other.

    Raises:
        MsdeError: the launcher has set RANK alone.
        CommunicationFailed: the ranks have not found each other by then.
    """
    # Of these ops, DeepSpeed compiles here its reduction in shared memory, which only inference
    # calls: a minute on a CPU, and 69 MB a rank that outlive the run.
    deepspeed.ops.__compatible_ops__ = {}
    needed = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise MsdeError(f"RANK is set but {', '.join(missing)} is not: set all five, or none")
    # Before the first collective: DeepSpeed itself chooses the device only with the engine.
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    backend = get_accelerator().communication_backend_name()
    try:
        deepspeed.init_distributed(
            backend, verbose=False, timeout=datetime.timedelta(seconds=timeout)
        )
    except RuntimeError as error:
        if not is_communication_failure(error):
            raise
        raise _not_joined(error, timeout) from error


def _not_joined(error: RuntimeError, timeout: float) -> CommunicationFailed:
    """Return the error that says how many ranks have joined, where that is known."""
    address, world_size = (os.environ[name] for name in ("MASTER_ADDR", "WORLD_SIZE"))
    at = f"{address}:{os.environ['MASTER_PORT']}"
    if joined := re.search(r"(\d+)/\d+ clients joined", str(error)):
        found = f"within {timeout:.0f} s found {joined[1]} of {world_size} ranks at {at}"
    else:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        found = f"the {world_size} ranks cannot join at {at} ({first[:200]})"
    advice = "see the logs of the other ranks, and whether all of them reach MASTER_ADDR"
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        advice = "another run has this port; give another as MASTER_PORT, or --master_port"
    return CommunicationFailed(f"{found}; {advice}")


def make_model(config: Config, init_from: Path | None) -> MoleculeSDE:
    """Build the model with random weights or those in a folder, and set the products' precision.

    Raises:
        MsdeError: the folder's weights do not fit; the first wrong tensor is named.
    """
    torch.set_float32_matmul_precision(config.run.matmul_precision)
    graphed = config.run.cuda_graphs and torch.cuda.is_available()
    model = (GraphedMoleculeSDE if graphed else CompiledMoleculeSDE).from_seed(config)
    if config.run.activation_checkpointing:
        checkpoint_activations(model)
    if init_from is not None:
        weights.start_from(model, init_from)
    process.set_memory_policy(sum(p.nbytes for p in model.parameters()))
    return model


def make_engine(
    model: MoleculeSDE, ds_config: dict[str, Any], flat: bool | None = None
) -> deepspeed.DeepSpeedEngine:
    """Build Adam with its four groups, and the engine around model and optimizer.

    Args:
        flat: whether the engine sees one parameter a group, see `FlatParameters`; by default, below
            ZeRO 3 for models that are not large: those reduce gradients during the backward pass.
    """
    if flat is None:
        num_bytes = sum(p.nbytes for p in model.parameters())
        flat = zero_stage(ds_config) < 3 and num_bytes < process.LARGE_MODEL
    module: MoleculeSDE | FlatParameters = model
    if flat:
        module = FlatParameters(model.to(get_accelerator().current_device_name()))
    optim = model.config.optim
    optimizer = torch.optim.Adam(
        module.groups if isinstance(module, FlatParameters) else parameter_groups(model),
        betas=(optim.beta1, optim.beta2),
        weight_decay=optim.weight_decay,
        fused=True,
    )
    if zero_stage(ds_config) and decides_to_skip(ds_config):
        zero = ds_config["zero_optimization"] | {"compute_grad_norm": False}
        ds_config = ds_config | {"zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
    if engine.zero_optimization_partition_weights():
        _clear_padding(engine.optimizer)
    if isinstance(module, FlatParameters):
        module.refresh_views()
    _detach_fragments(module)
    return engine


def _detach_fragments(module: nn.Module) -> None:
    """Detach ZeRO's views of the parameters from autograd.

    ZeRO 1 and 2 keep a view of each parameter that remembers how it was made. It would keep the
    nodes alive that accumulate gradients, tied to the stream of the first step; a CUDA graph can
    then not be captured on another stream.
    """
    for parameter in module.parameters():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            mapping.lp_fragment = mapping.lp_fragment.detach()


@torch.no_grad()
def _clear_padding(optimizer: Any) -> None:
    """Zero the padding that ZeRO-3 appends to the last parts of weights.

    It is uninitialised memory. No weight depends on it, but it passes through Adam and into
    checkpoints, which should hold neither random nor non-finite values.
    """
    groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    for parameters, flat in groups:
        end = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            end += size
            used = min(max(parameter.ds_numel - dist.get_rank() * size, 0), size)
            flat[end - size + used : end] = 0
