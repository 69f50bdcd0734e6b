"""The results of benchmarks/gpu.sh in one table: python benchmarks/gpu_table.py FOLDER"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msde.files import markdown_table


def figures_of_step(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what benchmarks/step.py has found."""
    name = f"{found['preset']}, batches of {found['batch_size']}"
    ours = found["msde"]
    yield f"{name}: molecules/s, waiting after each part", f"{ours['molecules_per_s']:,.0f}"
    yield f"{name}: memory", f"{ours['memory_mb']:,.0f} MB"
    for side, ratio in found["times_faster"].items():
        yield f"{name}: times as fast as {side}", f"{ratio:.2f}"
    if found["model_flops_utilisation"]:
        yield f"{name}: share of the peak FLOPs", f"{found['model_flops_utilisation']:.1%}"


def figures_of_training(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what benchmarks/training.py has found."""
    graphs = ", CUDA graphs" if found["cuda_graphs"] else ""
    for run in found["runs"]:
        settings = "".join(f", {setting}" for setting in found["overrides"])
        name = f"{found['preset']}{graphs}{settings}, a run with {run['batch_size']} a step"
        yield f"{name}: molecules/s", f"{run['throughput/molecules_per_s']:,.0f}"
        yield f"{name}: time of a step", f"{1000 * run['time/step_s']:.2f} ms"
        if run["host_waits_a_step"] is not None:
            yield f"{name}: host waits in a step", f"{run['host_waits_a_step']:g}"


def figures_of_kernels(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what benchmarks/kernels.py has found."""
    kind = "kernels" if "kernels" in found else "operators"
    yield f"{kind} of a step of the model and Adam", f"{found[kind]:,}"
    yield "host waits of the model and Adam", str(found["host_waits"])


READERS = {
    "step": figures_of_step,
    "training": figures_of_training,
    "kernels": figures_of_kernels,
}

TESTS = {
    "tests of ops, graphs and streams": "tests.txt",
    "test that compiled steps equal plain ones": "compiled.txt",
}


def rows(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the figures of all parts, in the order of their files' names; failed ones say so."""
    for name, file in TESTS.items():
        if (folder / file).exists():
            yield name, ((folder / file).read_text().splitlines() or ["none"])[-1].strip("= ")
    for path in sorted(folder.glob("*.json")):
        reader = READERS.get(path.stem.split("-")[0])
        text = path.read_text()
        if not text.strip():
            yield path.stem, f"failed: {path.name}.log"
        elif reader:
            yield from reader(json.loads(text))


def main() -> None:
    """Print the table as Markdown."""
    print(markdown_table(("what", "figure"), rows(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
