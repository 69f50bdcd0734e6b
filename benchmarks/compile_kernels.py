"""Compile the Triton kernels of a training step for a GPU, which does not have to be there.

python benchmarks/compile_kernels.py --capability 90 > compiled.json

The step runs on the CPU with small molecules and the network of a preset, so that kernels get the
types and sizes of a real step; where it would launch a kernel, the kernel is compiled instead.
Their results are then whatever was in memory, which nothing depends on. What the step would launch
is counted: Triton's kernels, and torch's operators that are more than another view of a tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

# Before Triton is imported: with its interpreter there is nothing to compile.
os.environ["TRITON_INTERPRET"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402
from step import make_task  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from msde.cluster import process  # noqa: E402
from msde.config import make_config  # noqa: E402
from msde.data.batch import MoleculeBatch  # noqa: E402
from msde.data.codec import columns_from_records  # noqa: E402
from msde.data_tools.pipeline.chunks import convert_one  # noqa: E402
from msde.data_tools.readers import RawMolecule  # noqa: E402
from msde.model import MoleculeSDE  # noqa: E402
from msde.ops import dispatch  # noqa: E402
from msde.philox import Key  # noqa: E402

SMILES = ["C[C@H](N)C(=O)O", "C#C", *["O=C(O)c1ccccc1-c1c2ccc(=O)c(Br)c-2oc2ccccc12"] * 4]
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}


class Compiler:
    """Compiles what is launched, once for each kind of arguments."""

    def __init__(self, capability: int) -> None:
        """Compile for GPUs of a compute capability, as 90 for 9.0."""
        self.target = GPUTarget("cuda", capability, 32)
        self.compiled: dict[str, dict[str, Any]] = {}
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
        began = time.perf_counter()
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        made = triton.compile(source, target=self.target, options=options)
        self.compiled[key] = {
            "kernel": kernel.__name__,
            "constants": {name: values[name] for name in sorted(constant)},
            "shared_bytes": made.metadata.shared,
            "machine_code_bytes": len(made.asm["cubin"]),
            "seconds": round(time.perf_counter() - began, 2),
        }


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Operators(TorchDispatchMode):
    """Counts torch's operators that do something, those within the fused ops too."""

    NOTHING = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view")

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


def train_a_step(preset: str) -> int:
    """Run one training step with every op sent where it would be sent on a GPU.

    Returns:
        How many operators of torch's it has.
    """
    task = make_task("smiles", keep_hydrogens=False)
    records = [convert_one(RawMolecule("", n, "", smiles), task) for n, smiles in enumerate(SMILES)]
    batch = MoleculeBatch.from_columns(columns_from_records(records), Key(0, 0))
    dispatch.BACKENDS["cpu"] = "triton"
    model = MoleculeSDE.from_seed(make_config(preset)).train()
    with Operators() as operators:
        loss, _ = model(batch)
        loss.backward()
    return operators.count


def main() -> None:
    """Compile and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90, help="90 for H100 and H200")
    parser.add_argument("--preset", default="paper")
    arguments = parser.parse_args()
    process.prepare()
    compiler = Compiler(arguments.capability)
    JITFunction.run = lambda kernel, *a, grid, warmup, **named: compiler.launch(kernel, *a, **named)
    operators = train_a_step(arguments.preset)
    result = {
        "capability": arguments.capability,
        "preset": arguments.preset,
        "operators_of_torch": operators,
        "launches_of_triton": compiler.launches,
        "kernels": [*compiler.compiled.values()],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
