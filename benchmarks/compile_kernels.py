"""Compile the Triton kernels of a training step for a GPU, which does not have to be there.

python benchmarks/compile_kernels.py --preset xl --json > compiled.json

The step runs on the CPU with small molecules and the network of a preset, so that kernels get the
types and sizes of a real step; where it would launch a kernel, the kernel is compiled instead.
Their results are then whatever was in memory, which nothing depends on. What the step would launch
is counted: Triton's kernels, and torch's operators that are more than another view of a tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

# Before Triton is imported: with its interpreter there is nothing to compile.
os.environ["TRITON_INTERPRET"] = "0"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from step import make_task  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import get_ptxas  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from msde.cluster import process  # noqa: E402
from msde.config import make_config  # noqa: E402
from msde.data.batch import MoleculeBatch  # noqa: E402
from msde.data.packed import PackedMolecules  # noqa: E402
from msde.data.padding import pad  # noqa: E402
from msde.data_tools.pipeline.chunks import convert_chunk  # noqa: E402
from msde.data_tools.readers import RawMolecule  # noqa: E402
from msde.model import MoleculeSDE  # noqa: E402
from msde.ops import dispatch  # noqa: E402
from msde.philox import Key  # noqa: E402

SMILES = ["C[C@H](N)C(=O)O", "C#C", *["O=C(O)c1ccccc1-c1c2ccc(=O)c(Br)c-2oc2ccccc12"] * 4]
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}


class Compiler:
    """Compiles what is launched, once for each kind of arguments and each compute capability."""

    def __init__(self, capabilities: list[int]) -> None:
        """Compile for GPUs of some compute capabilities, as 90 for 9.0."""
        self.targets = [GPUTarget("cuda", capability, 32) for capability in capabilities]
        self.compiled: dict[str, list[dict[str, Any]]] = {}
        self.launches = 0

    def launch(self, kernel: JITFunction, *arguments: Any, **named: Any) -> None:
        """Take the place of JITFunction.run."""
        self.launches += 1
        values = dict(zip(kernel.arg_names, arguments, strict=False))
        values |= {name: named[name] for name in kernel.arg_names if name in named}
        constant = {p.name for p in kernel.params if p.is_constexpr}
        signature = {
            name: "constexpr" if name in constant else _type(values[name])
            for name in kernel.arg_names
        }
        constants = {(kernel.arg_names.index(name),): values[name] for name in constant}
        key = f"{kernel.__name__} {signature} {constants}"
        if key in self.compiled:
            return
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        self.compiled[key] = []
        for target in self.targets:
            began = time.perf_counter()
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            made = triton.compile(source, target=target, options=options)
            self.compiled[key].append(
                {
                    "name": kernel.__name__,
                    "capability": target.arch,
                    "constants": {name: values[name] for name in sorted(constant)},
                    "shared_bytes": made.metadata.shared,
                    "spilled_bytes": spilled_bytes(made.asm["ptx"], target.arch),
                    "machine_code_bytes": len(made.asm["cubin"]),
                    "seconds": round(time.perf_counter() - began, 2),
                }
            )


def spilled_bytes(ptx: str, capability: int) -> int:
    """Return how many bytes of registers a thread stores in memory and loads again."""
    name = re.search(r"^\.target (\w+)", ptx, re.M)[1]
    assembler = get_ptxas(capability).path
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name={name}", source, "-o", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    return sum(map(int, found))


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Operators(TorchDispatchMode):
    """Counts torch's operators that do something, those within the fused ops too."""

    NOTHING = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view")
    NOTHING += ("_record_function_enter_new", "_record_function_exit")  # of profilers

    def __init__(self) -> None:
        """Start at none."""
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        """Count one."""
        name = function.overloadpacket.__name__
        if function.namespace == "msde" and dispatch.OPERATORS[name].triton:
            with self:
                return dispatch.OPERATORS[name].triton(*dispatch.contiguous(arguments))
        self.count += not (function.is_view or name in self.NOTHING)
        return function(*arguments, **(named or {}))


def make_batch(copies: int = 1, padded: bool = False) -> MoleculeBatch:
    """Return a batch of a few molecules, so many times, perhaps with padding behind them."""
    task = make_task("smiles", keep_hydrogens=False)
    raws = [RawMolecule("", n, "", smiles) for n, smiles in enumerate(SMILES)]
    columns = convert_chunk(task, raws).columns.take(np.tile(np.arange(len(raws)), copies))
    packed = PackedMolecules.from_columns(columns)
    return MoleculeBatch.expand(pad(packed) if padded else packed, Key(0, 0))


def train_a_step(preset: str) -> int:
    """Run one training step with every op sent where it would be sent on a GPU.

    Returns:
        How many operators of torch's it has.
    """
    batch = make_batch()
    model = MoleculeSDE.from_seed(make_config(preset)).train()
    with dispatch.cpu_as_gpu(), Operators() as operators:
        loss, _ = model(batch)
        loss.backward()
    return operators.count


def main() -> None:
    """Compile and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--capability", type=int, nargs="+", default=[80, 90], help="80 for A100, 90 for H100, H200"
    )
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    process.prepare()
    compiler = Compiler(arguments.capability)
    JITFunction.run = lambda kernel, *a, grid, warmup, **named: compiler.launch(kernel, *a, **named)
    operators = train_a_step(arguments.preset)
    kernels = [found for each in compiler.compiled.values() for found in each]
    counts = {"operators_of_torch": operators, "launches_of_triton": compiler.launches}
    if arguments.json:
        print(json.dumps({"preset": arguments.preset, **counts, "kernels": kernels}, indent=1))
        return
    print(f"{'kernel':32}{'capability':>12}{'shared bytes':>14}{'spilled bytes':>15}")
    for each in kernels:
        row = (each[key] for key in ("capability", "shared_bytes", "spilled_bytes"))
        print("{:32}{:>12}{:>14}{:>15}".format(each["name"], *row))
    print(*(f"{name}: {count}" for name, count in counts.items()), sep="\n")


if __name__ == "__main__":
    main()
