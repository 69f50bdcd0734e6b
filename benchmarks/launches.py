"""Count what a training step launches on a GPU, which does not have to be there.

python benchmarks/launches.py --preset paper --json > launches.json

Three parts are counted: noise; the terms of the loss and their gradients, as they are and compiled
(`run.compile`); and everything around the model: gradients, optimizer, step guard, metrics.
The first two are made of a batch on the CPU, padded for compiled steps, with every op sent where it
goes on a GPU; a compiled step is only written by torch's compiler, for compute capability 9.0, and
not run. A launch is a kernel of Triton, or an operator of torch's that is more than another view of
a tensor; torch's sort, an operator, is several kernels.
"""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compile_kernels import Operators, make_batch
from shared import ROOT, convert_nci
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from msde.cluster import process
from msde.config import make_config
from msde.config.deepspeed import shipped_config
from msde.model import MoleculeSDE
from msde.ops import dispatch

COPIES = 43  # of six molecules: about as many as in a step
SM = 132  # multiprocessors of an H100 or H200, by which the compiler splits long sums
ENGINE_STEP = 3  # the first steps of an engine build its buffers


class Launches(Operators):
    """Counts launches, and how many of them each fused op has."""

    def __init__(self) -> None:
        """Start at none."""
        super().__init__()
        self.of_op: dict[str, list[int]] = collections.defaultdict(list)
        JITFunction.run = lambda kernel, *arguments, grid, warmup, **named: self._launch()

    def _launch(self) -> None:
        self.count += 1

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        """Count one operator."""
        before = self.count
        result = super().__torch_dispatch__(function, types, arguments, named)
        if function.namespace == "msde":
            self.of_op[function.overloadpacket.__name__].append(self.count - before)
        return result


def count_as_it_is(model: MoleculeSDE, batch: Any) -> tuple[int, int, dict[str, int]]:
    """Return the launches of noise, of the terms with their gradients, and of each fused op."""
    with Launches() as launches:
        noise = model.draw_noise(batch)
        of_noise = launches.count
        (model.terms(batch, noise)["total"].mean() * batch.weight).backward()
    of_op = {name: round(sum(counts) / len(counts)) for name, counts in launches.of_op.items()}
    return of_noise, launches.count - of_noise, of_op


class _Written(Exception):
    """Raised when the code of a compiled graph has been written."""


class _Hopper:
    """Stands for the driver of a GPU of compute capability 9.0."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def write_code(function: Callable) -> tuple[Callable, list[str]]:
    """Return a function that has its forward and backward code written, and the list of both.

    Results are those of the function as it is.
    """
    import torch._inductor.compile_fx as compile_fx
    import torch._inductor.config as inductor
    import triton
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.device_interface import CpuDeviceProperties, CpuInterface
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    from msde.training.compilation import JOINED_PRODUCTS, OPTIONS, groups_of_kernels

    codes: list[str] = []

    def stop(lowering: GraphLowering) -> None:
        codes.append(lowering.codegen()[0].value)
        raise _Written

    def compiler(graph: torch.fx.GraphModule, inputs: list, is_backward: bool) -> Callable:
        try:
            compile_fx.compile_fx_inner(copy.deepcopy(graph), inputs, is_backward=is_backward)
        except Exception as error:
            if not isinstance(getattr(error, "inner_exception", error), _Written):
                raise
        return make_boxed_func(graph.forward)

    GraphLowering.compile_to_module = stop
    CpuInterface.Worker.get_device_properties = staticmethod(lambda _: CpuDeviceProperties(SM))
    # Kernels for CPUs, too, here.
    ForeachKernelSchedulerNode.set_group_algorithm_for_combo_kernels(
        lambda scheduler: groups_of_kernels(scheduler, lambda node: True)
    )
    triton.runtime.driver.set_active(_Hopper())
    here = {"cpu_backend": "triton", "force_disable_caches": True}
    for name, value in (OPTIONS | JOINED_PRODUCTS | here).items():
        setattr(inductor, name, value)
    backend = aot_autograd(
        fw_compiler=functools.partial(compiler, is_backward=False),
        bw_compiler=functools.partial(compiler, is_backward=True),
        decompositions=select_decomp_table(),
    )
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False), codes


def count_compiled(
    model: MoleculeSDE, batch: Any, of_op: dict[str, int]
) -> tuple[int, dict[str, int]]:
    """Return the launches of compiled noise, and of compiled terms by what is launched."""
    from msde.training.compilation import with_epoch_as_tensor

    draw, codes = write_code(model.draw_noise)
    noise = draw(with_epoch_as_tensor(batch))
    of_noise = 1 + sum(_by_kind(codes, of_op).values())  # one fills the tensor of the epoch
    torch._dynamo.reset()
    terms, codes = write_code(model.terms)
    found = terms(batch, noise)["total"]
    found.sum().backward()
    counts = _by_kind(codes, of_op)
    with Operators() as outside:
        (found.detach().requires_grad_().mean() * batch.weight).backward()
    counts["others"] += outside.count
    return of_noise, counts


def _by_kind(codes: list[str], of_op: dict[str, int]) -> dict[str, int]:
    """Count the launches in what torch's compiler has written."""
    counts: dict[str, int] = collections.Counter()
    for code in codes:
        body = code[code.index("def call(") :]
        counts["kernels by torch's compiler"] += len(re.findall(r"\btriton_\w+\.run\(", body))
        for kind, name in re.findall(r"(extern_kernels|torch\.ops\.\w+)\.(\w+)[\w.]*\(", body):
            if kind == "torch.ops.msde":
                counts["fused ops"] += of_op[name]
            elif kind == "extern_kernels":
                counts["products"] += 1
            else:
                counts["others"] += 1
    return counts


class Around(Operators):
    """Counts operators but for those of the model."""

    pauses = False

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        """Count one operator."""
        if self.pauses or function.namespace == "msde":
            self.count += not self.pauses  # these fused ops are one launch each
            return function(*arguments, **(named or {}))
        return super().__torch_dispatch__(function, types, arguments, named)


ENGINE = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import launches
launches.count_engine()
"""


def count_engine() -> None:
    """Train a few steps and print the launches of one of them outside of the model."""
    from msde.training.run import Run

    take_step, steps, mode = Run.take_step, [0], Around()
    forward, grad = MoleculeSDE.forward, torch.autograd.grad

    def uncounted(function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            mode.pauses = True
            try:
                return function(*arguments, **named)
            finally:
                mode.pauses = False

        return call

    def counted(*arguments: Any) -> bool:
        steps[0] += 1
        if steps[0] != ENGINE_STEP:
            return take_step(*arguments)
        with mode:
            stop = take_step(*arguments)
        print(f"launches: {mode.count}", flush=True)
        return stop

    MoleculeSDE.forward, torch.autograd.grad = uncounted(forward), uncounted(grad)
    Run.take_step = counted
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0])["main"]()


def start(*arguments: Any) -> str:
    """Run Python with these arguments in a process of its own and return what it prints."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True,
        cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def count_around(preset: str) -> dict[str, int]:
    """Return the launches of a step outside of the model, of one rank, by ZeRO stage."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        convert_nci(Path(folder, "data"), 200)
        for stage in range(3):
            values = json.loads(shipped_config("cpu_debug").read_text())
            values["zero_optimization"]["stage"] = stage
            Path(folder, "zero.json").write_text(json.dumps(values | {"train_batch_size": 1}))
            printed = start(
                "-c", ENGINE, ROOT / "benchmarks", ROOT / "launch/pretrain.py",
                "--data", f"{folder}/data", "--output", f"{folder}/run-{stage}",
                "--preset", preset, "--deepspeed_config", f"{folder}/zero.json",
                "data.molecules_per_step=32", "data.validation_fraction=0",
                f"run.steps={ENGINE_STEP + 1}",
            )  # fmt: skip
            count = int(re.search(r"^launches: (\d+)$", printed, re.M)[1])
            found[f"around the model, ZeRO {stage}"] = count
    return found


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    process.prepare()
    around = count_around(arguments.preset)
    model = MoleculeSDE.from_seed(make_config(arguments.preset)).train()
    with dispatch.cpu_as_gpu():
        noise, terms, of_op = count_as_it_is(model, make_batch(COPIES))
        drawn, compiled = count_compiled(model, make_batch(COPIES, padded=True), of_op)
    found = {"noise": noise, "terms and gradients": terms, "compiled: noise": drawn}
    found |= {f"compiled: {name}": count for name, count in compiled.items()}
    found |= {"compiled: terms and gradients": sum(compiled.values())} | around
    of_model = {"a step": noise + terms, "a compiled step": drawn + sum(compiled.values())}
    for name, count in of_model.items():
        found[f"{name}, ZeRO 1"] = count + around["around the model, ZeRO 1"]
    if arguments.json:
        print(json.dumps({"preset": arguments.preset, **found}, indent=1))
        return
    for name, count in found.items():
        print(f"{name:40}{count:6}")


if __name__ == "__main__":
    main()
