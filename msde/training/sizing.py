"""The memory, time and disk of a run on given GPUs, calculated from two small batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from msde.chem.record import record_from
from msde.config import Config, deepspeed
from msde.config.choices import GPU_MEMORY
from msde.data.batch import NO_KEY, MoleculeBatch
from msde.data.codec import columns_from_records
from msde.errors import MsdeError
from msde.model import MoleculeSDE
from msde.monitor.flops import PEAKS, counting
from msde.ops import dispatch
from msde.training.activation_checkpointing import checkpoint_activations
from msde.training.memory import LiveMemory, state_memory
from msde.training.plan import make_plan, slot_size

SHARES = (0.1, 0.35)  # of the peak, that a run may reach
# From the least to the most that is exchanged between GPUs.
CONFIGURATIONS = ("zero1", "zero2", "zero3", "zero3_offload")
# Molecules of the two batches that activations are measured with.
SAMPLE = (16, 32)
# Without data: a drug-like molecule of 14 heavy atoms, one less than PCQM4Mv2 has on average.
TYPICAL = "COc1ccc(C(=O)NCCO)cc1"
# CUDA's context, the libraries' workspaces and what the allocator cannot use. Not measured.
RESERVED = 0.1


@dataclass(frozen=True)
class Needs:
    """What the training steps of a model need, measured on a CPU."""

    num_parameters: int
    fixed: float  # bytes at the peak of forward and backward pass, for any batch
    per_molecule: float  # and for each molecule of a slot
    flops_per_molecule: float  # of matrix products, forward and backward

    def activations(self, molecules: float) -> float:
        """Return the peak of activations in bytes for a slot of so many molecules."""
        return self.fixed + self.per_molecule * molecules

    def checkpoint_bytes(self, ema: bool) -> int:
        """Return the size of a checkpoint: weights twice, ZeRO's own and Adam's two moments."""
        return (24 if ema else 20) * self.num_parameters


@dataclass(frozen=True)
class Peak:
    """The peak memory of a rank under a DeepSpeed configuration, in bytes."""

    name: str
    device: float
    host: float

    def fits(self, memory: float) -> bool:
        """Return whether a GPU with so many bytes has room for it."""
        return self.device <= (1 - RESERVED) * memory


def measure(config: Config, batches: Sequence[MoleculeBatch]) -> Needs:
    """Run forward and backward pass on two batches; note their peak of memory, and count FLOPs.

    Args:
        batches: two of different sizes, of molecules like those of the run.
    """
    model = MoleculeSDE.from_seed(config).train()
    if config.run.activation_checkpointing:
        checkpoint_activations(model)
    sizes = [batch.num_graphs for batch in batches]
    found = [_measure_batch(model, batch) for batch in batches]
    num_molecules, num_flops = sum(sizes), sum(flops for _, flops in found)
    peaks = [peak for peak, _ in found]
    if sizes[0] == sizes[1]:  # the data have fewer molecules than a batch may have
        peaks[0] = sizes[0] = 0
    per_molecule = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    return Needs(
        num_parameters=sum(p.numel() for p in model.parameters()),
        fixed=max(0.0, peaks[1] - per_molecule * sizes[1]),
        per_molecule=per_molecule,
        flops_per_molecule=3 * num_flops / num_molecules,
    )


def _measure_batch(model: MoleculeSDE, batch: MoleculeBatch) -> tuple[int, int]:
    """Return the peak of the passes' memory without gradients of parameters, and forward FLOPs."""
    with LiveMemory([*model.parameters(), *model.buffers(), *batch.tensors().values()]) as live:
        with counting() as counter:
            loss, _ = model(batch)
        # `state_memory` counts the gradients.
        hooks = [
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
            for p in model.parameters()
            if p.requires_grad
        ]
        loss.backward()
    for hook in hooks:
        hook.remove()
    return live.peak, counter.get_total_flops()


def sample(config: Config, data: Sequence[str]) -> tuple[list[MoleculeBatch], int | None]:
    """Return two batches for `measure`, and the number of training molecules.

    Args:
        data: folders of shards; without any, the batches are of one typical molecule.
    """
    if not data:
        record = record_from(TYPICAL, topology_only=False)
        columns = [columns_from_records([record] * number) for number in SAMPLE]
        return [MoleculeBatch.from_columns(each, NO_KEY) for each in columns], None
    batches = []
    for number in SAMPLE:
        sized = replace(config.data, molecules_per_slot=number, atoms_per_slot=None)
        plan = make_plan(replace(config, data=sized), data, slots_per_step=1)
        batches.append(next(iter(plan.stream))[0])
    partition = plan.stream.partition
    share = 1 - partition.validation_fraction
    return batches, round(plan.stream.data.molecules_per_epoch * share)


def peaks(
    needs: Needs,
    molecules: float,
    num_gpus: int,
    names: Sequence[str] = CONFIGURATIONS,
    *,
    recorded: bool = False,
) -> list[Peak]:
    """Return the peak of each DeepSpeed configuration for slots of so many molecules.

    Args:
        recorded: steps are replayed from CUDA graphs. Those keep memory of their own for the
            activations and one gradient of each parameter, beside that of steps not recorded yet.
    """
    activations = needs.activations(molecules)
    graphs = activations + 4 * needs.num_parameters if recorded else 0
    found = []
    for name in names:
        states = state_memory(needs.num_parameters, num_gpus, read(name))
        working = max(states.working, activations)
        device = states.device - states.working + working + graphs
        found.append(Peak(name, device, states.host))
    return found


def read(name: str) -> dict[str, Any]:
    """Return a shipped DeepSpeed configuration as it is in its file."""
    return json.loads(deepspeed.shipped_config(name).read_text())


def report(config: Config, gpu: str, num_gpus: int, data: Sequence[str]) -> tuple[str, str]:
    """Return the calculated needs as text, and the name of the first configuration that fits.

    Raises:
        MsdeError: the data cannot be used, or nothing fits.
    """
    memory = GPU_MEMORY[gpu]
    size = slot_size(config, num_gpus)
    batches, num_molecules = sample(config, data)
    with dispatch.cpu_as_gpu():
        needs = measure(config, batches)
    atoms = sum(b.num_atoms for b in batches) / sum(b.num_graphs for b in batches)
    molecules = size.molecules or (size.atoms or 0) / atoms
    step = molecules * num_gpus
    flops = needs.flops_per_molecule
    twice = ", twice with run.cuda_graphs" if config.run.cuda_graphs else ""
    lines = [
        f"model: {needs.num_parameters:,} parameters, {flops / 1e9:.3g} GFLOP of a step a molecule",
        f"slots: {molecules:.0f} molecules of {atoms:.1f} atoms on each of {num_gpus} GPUs, "
        f"{step:.0f} molecules a step",
        f"activations: {needs.activations(molecules) / 1e9:.2f} GB{twice}",
        f"checkpoint: {needs.checkpoint_bytes(bool(config.run.ema_decay)) / 1e9:.2f} GB",
    ]
    if num_molecules is not None:
        epoch = num_molecules / step
        steps = config.run.steps or config.run.epochs * epoch
        lines.append(f"an epoch: {num_molecules} molecules, {epoch:.0f} steps")
        model = gpu.partition("-")[0]  # without its memory
        rate = next(tf32 for name, (_, tf32, _) in PEAKS.items() if name.startswith(model))
        for what, count in (("an epoch", epoch), (f"the run of {steps:,.0f} steps", steps)):
            seconds = count * molecules * flops / rate
            times = (f"{_duration(seconds / share)} at {share:.0%}" for share in SHARES)
            lines.append(f"time of {what}: {', '.join(times)} of the GPU's peak in TF32")
    # Those with ZeRO 3 do not go with recorded or compiled steps.
    usable = [n for n in CONFIGURATIONS if not (config.run.repeating and n.startswith("zero3"))]
    found = peaks(needs, molecules, num_gpus, usable, recorded=config.run.cuda_graphs)
    fitting = [peak.name for peak in found if peak.fits(memory)]
    for peak in found:
        host = f" + {peak.host / 1e9:.2f} GB of the host" if peak.host else ""
        fits = "fits" if peak.name in fitting else "too large"
        lines.append(f"{peak.name}: {peak.device / 1e9:.2f} GB{host}, {fits}")
    if not fitting:
        raise MsdeError(
            "\n".join(lines) + f"\nnothing fits {memory * (1 - RESERVED) / 1e9:.0f} GB of {gpu}; "
            "use more GPUs, a smaller data.molecules_per_slot or run.activation_checkpointing=true"
        )
    return "\n".join(lines), fitting[0]


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 3600 else f"{seconds / 3600:.3g} h"
