"""Time every fused op beside its composition in plain torch, in turn, at the sizes of `paper`.

python benchmarks/ops.py --input pcqm4mv2-2k.csv > ops.json

Each op: seconds forward and forward with backward, fused and by torch; the floor measured in the
same run (bytes of inputs, results and their gradients / copy rate, or FLOPs / matrix-product rate,
whichever is longer) and the fraction of it; errors against float64 relative to the norm, the worst
of the result and all gradients.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from floor import DEVICE, best, product_rate, rates
from shared import NCI
from step import make_batches
from torch import Tensor

from msde import ops
from msde.cli import report_errors
from msde.cluster import process
from msde.data.batch import MoleculeBatch
from msde.data_tools.reading import choose_format
from msde.model import geometry
from msde.ops import Interpolation, PairWeights

HIDDEN, FILTERS, WIDTH, BASIS, HEADS, CODES, ROWS = 300, 128, 32, 128, 8, 60, 1003


@dataclass
class Case:
    """An op on the molecules of one batch."""

    op: Callable[..., Tensor]
    inputs: list[Tensor]
    flops: float  # of the matrix products, forward


def norms_of(width: int) -> dict[torch.dtype, torch.nn.BatchNorm1d]:
    """Make a BatchNorm of each precision."""
    return {t: torch.nn.BatchNorm1d(width, dtype=t) for t in (torch.float32, torch.float64)}


def atom_cases(n: int) -> dict[str, Case]:
    """Make the cases that need atoms only."""

    def layer(i: int, o: int, activation: str | None) -> Case:
        return Case(
            lambda x, weight, bias: ops.linear(x, weight, bias, activation),
            [torch.randn(n, i), torch.randn(o, i) / i**0.5, torch.randn(o)],
            2 * n * i * o,
        )

    norms = norms_of(2 * HIDDEN)
    places = torch.stack([torch.arange(n), torch.randperm(n)], dim=-1)
    return {
        "linear 300 to 600": layer(300, 600, None),
        "linear 300 to 128": layer(300, 128, None),
        "linear 728 to 728 silu": layer(728, 728, "silu"),
        "linear 300 to 300 shifted_softplus": layer(300, 300, "shifted_softplus"),
        "linear 32 to 32 silu": layer(32, 32, "silu"),
        "linear of 8 channels 32 to 32 tanh": Case(
            lambda x, weight, bias: ops.linear(x, weight, bias, "tanh"),
            [torch.randn(8, n, 32), torch.randn(8, 32, 32) / 32**0.5, torch.randn(8, 32)],
            2 * n * 8 * 32 * 32,
        ),
        "batch_norm relu": Case(
            lambda x: ops.batch_norm(x, norms[x.dtype], relu=True),
            [torch.randn(n, 2 * HIDDEN)],
            0,
        ),
        "row_dot": Case(
            lambda x, y: ops.row_dot(x, y, places),
            [torch.randn(n, HIDDEN), torch.randn(n, HIDDEN)],
            0,
        ),
    }


def pair_cases(batch: MoleculeBatch) -> dict[str, Case]:
    """Make the cases over the pairs of atoms."""
    n, num_pairs, pairs = batch.num_atoms, batch.pair_index.shape[1], batch.pairs
    distance = geometry.distances(batch.pos, batch.pair_index)
    knots = {
        dtype: Interpolation(distance.to(dtype) * 100, distance <= 10, ROWS)
        for dtype in (torch.float32, torch.float64)
    }
    knots[torch.float64].weight = knots[torch.float32].weight.double()
    knots[torch.float64].first = knots[torch.float32].first
    return {
        "interpolated_conv": Case(
            lambda x, table: ops.interpolated_conv(x, table, knots[x.dtype], pairs),
            [torch.randn(n, FILTERS), torch.randn(ROWS, FILTERS)],
            0,
        ),
        "pair_attention": Case(
            lambda q, k: ops.pair_attention(q, k, 4, pairs),
            [torch.randn(8, n, WIDTH), torch.randn(8, n, WIDTH)],
            0,
        ),
        "pair_sum": Case(
            lambda weight, x: ops.pair_sum(PairWeights(weight, pairs), x),
            [torch.randn(num_pairs, 8), torch.randn(8, n, 16)],
            0,
        ),
    }


def edge_cases(batch: MoleculeBatch) -> dict[str, Case]:
    """Make the cases over bonds and extended edges."""
    n, edges = batch.num_atoms, batch.extended_edges
    num_edges = edges.index.shape[1]
    bonds, order = ops.sort_edges(batch.edge_index, batch.ptr, n)
    codes = ops.group_codes(batch.edge_attr[order, 0] * 12, CODES)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape) / shape[-1] ** 0.5

    scalars, frequency = torch.randn(num_edges, 2), torch.randn(WIDTH)
    keep = (torch.rand(num_edges, HEADS) < 0.9) / 0.9
    norms = norms_of(HIDDEN)
    atoms = [torch.randn(n, WIDTH) for _ in range(3)]
    return {
        "linear of edges 16 to 16 elu": Case(
            lambda x, weight, bias: ops.linear(x, weight, bias, "elu"),
            [torch.randn(num_edges, 16), torch.randn(16, 16) / 4, torch.randn(16)],
            2 * num_edges * 16 * 16,
        ),
        "fourier_linear": Case(
            lambda weight, bias: ops.fourier_linear(
                *(t.to(weight.dtype) for t in (scalars, frequency)), weight, bias
            ),
            [rand(WIDTH, 4 * WIDTH), rand(WIDTH)],
            2 * num_edges * 4 * WIDTH * WIDTH,
        ),
        "gin_message": Case(
            lambda x, table, eps: ops.gin_message(x, table, eps, codes, bonds),
            [torch.randn(n, HIDDEN), torch.randn(CODES, HIDDEN), torch.randn(1)],
            0,
        ),
        "sum_over_edges": Case(
            lambda x: ops.sum_over_edges(x, edges), [torch.randn(n, HIDDEN)], 0
        ),
        "edge_norm": Case(
            lambda a, b: torch.stack(ops.edge_norm(a, b, norms[a.dtype], edges)),
            [torch.randn(n, HIDDEN), torch.randn(n, HIDDEN)],
            0,
        ),
        "edge_attention": Case(
            lambda q, k, v, e: ops.edge_attention(q, k, v, e, keep.to(q.dtype), edges, HEADS),
            [*atoms, torch.randn(num_edges, WIDTH)],
            0,
        ),
        "edge_mlp relu": Case(
            lambda a, b, w, c: ops.edge_mlp(a, b, w, c, edges, "relu"),
            [torch.randn(n, HIDDEN), torch.randn(n, HIDDEN), rand(WIDTH, HIDDEN), rand(WIDTH)],
            2 * num_edges * HIDDEN * WIDTH,
        ),
        "edge_mlp silu attr": Case(
            lambda a, b, w, c, e, v: ops.edge_mlp(a, b, w, c, edges, "silu", e, v),
            [
                *(torch.randn(n, BASIS) for _ in range(2)), rand(3, BASIS), rand(3),
                torch.randn(num_edges, WIDTH), rand(BASIS, WIDTH),
            ],
            2 * num_edges * BASIS * (WIDTH + 3),
        ),
    }  # fmt: skip


def run(case: Case, dtype: torch.dtype, upper: Tensor | None, backward: bool = True) -> list:
    """Return the result and, for the gradient `upper` of it, those of the inputs."""
    inputs = [x.detach().to(dtype).requires_grad_(backward) for x in case.inputs]
    out = case.op(*inputs)
    if not backward:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, inputs, upper)]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the worst relative error of some tensors."""
    return max(float((f - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True))


def measure(case: Case, speed: dict[str, float], repeats: int) -> dict:
    """Time the case fused and by torch, in turn, and compare both with float64."""
    os.environ["MSDE_OPS"] = "reference"
    upper = torch.randn_like(case.op(*case.inputs))
    exact = run(case, torch.float64, upper.double())
    rows: dict[str, dict[str, float]] = {way: {} for way in ("fused", "reference")}
    for way, row in rows.items():
        os.environ["MSDE_OPS"] = way
        found = run(case, torch.float32, upper)
        row |= {"forward_s": float("inf"), "both_s": float("inf"), "error": error(found, exact)}
    for _ in range(repeats):
        for way, row in rows.items():
            os.environ["MSDE_OPS"] = way
            for name, backward in (("forward_s", False), ("both_s", True)):
                work = lambda backward=backward: run(case, torch.float32, upper, backward)  # noqa: E731
                row[name] = min(row[name], best(work, 2))
    size = sum(x.nbytes for x in case.inputs) + upper.nbytes
    rate = product_rate(speed)
    floors = {
        # Backward reads the inputs and the upper gradient, and writes a gradient for each input.
        "forward_s": max(size / speed["copy_bytes_per_s"], case.flops / rate),
        "both_s": max(3 * size / speed["copy_bytes_per_s"], 3 * case.flops / rate),
    }
    gain = {k: rows["reference"][k] / rows["fused"][k] for k in floors}
    of_floor = {k: floors[k] / rows["fused"][k] for k in floors}
    return rows | {"times_faster": gain, "floor": floors, "fraction_of_floor": of_floor}


def main() -> None:
    """Parse the command line, measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=NCI, help="default: rdkit's NCI SMILES")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    process.prepare()
    process.set_memory_policy(0)
    torch.manual_seed(0)
    speed = rates(arguments.repeats)
    format = choose_format([arguments.input])
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    result: dict = {"torch": torch.__version__, "device": device, **speed}
    result["threads"] = torch.get_num_threads()
    torch.set_default_device(DEVICE)
    for name, hydrogens in (("heavy", False), ("with_hydrogens", True)):
        batch = make_batches(arguments.input, format, arguments.batch_size, 1, hydrogens)[0].to(
            DEVICE
        )
        cases = atom_cases(batch.num_atoms) | pair_cases(batch) | edge_cases(batch)
        result[name] = {k: measure(c, speed, arguments.repeats) for k, c in cases.items()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    report_errors(main)
