"""What a training step is made of on a GPU: kernels, waits of the host, memory, a trace.

python benchmarks/kernels.py --input pcqm4mv2-2k.csv --trace step.json.gz > kernels.json

On a CPU operators are counted instead of kernels.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from floor import DEVICE, waits_of_the_host
from shared import NCI
from step import Ours, Stopwatch, make_columns, make_task, memory_mb, reset_peak
from torch.profiler import ProfilerActivity, profile

from msde.cli import report_errors
from msde.cluster import process
from msde.data_tools.reading import choose_format

WARM_UP = 3  # steps
ON_GPU = DEVICE.type == "cuda"


def host_waits(side: Ours) -> int:
    """Count how often the host waits for the GPU in the model and the optimizer of one step."""
    if not ON_GPU:
        return 0
    batch = side.batch(WARM_UP)
    torch.cuda.synchronize()
    with waits_of_the_host() as waits:
        with side.autocast():
            loss, _ = side.model(batch)
        loss.backward()
        side.optimizer.step()
        side.optimizer.zero_grad()
    return len(waits)


def main() -> None:
    """Profile one step and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=NCI, help="default: rdkit's NCI SMILES")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="for Perfetto, as .json.gz")
    parser.set_defaults(cuda_graphs=False)  # a step that is replayed is one launch to the profiler
    arguments = parser.parse_args()
    process.prepare()
    torch.set_float32_matmul_precision("high")  # that of runs
    task = make_task(choose_format([arguments.input]), False)
    side = Ours(make_columns(arguments.input, task, arguments.batch_size, WARM_UP + 2), arguments)
    watch = Stopwatch()
    reset_peak()
    for number in range(WARM_UP):
        watch.start()
        side.step(number, watch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * ON_GPU
    with profile(activities=activities) as seen:
        watch.start()
        side.step(WARM_UP + 1, watch)
    if arguments.trace:
        seen.export_chrome_trace(str(arguments.trace))
    kind = torch.autograd.DeviceType.CUDA if ON_GPU else torch.autograd.DeviceType.CPU
    events = [e for e in seen.events() if e.device_type == kind and not e.is_user_annotation]
    count, micros = Counter(), Counter()
    for event in events:
        count[event.name[:80]] += 1
        micros[event.name[:80]] += (
            event.self_device_time_total if ON_GPU else event.self_cpu_time_total
        )
    result = {
        "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
        "batch_size": arguments.batch_size,
        "kernels" if ON_GPU else "operators": sum(count.values()),
        "host_waits": host_waits(side),
        "memory_mb": memory_mb(),
        "busy_ms": sum(micros.values()) / 1000,
        "longest": [
            {"name": name, "count": count[name], "ms": time / 1000}
            for name, time in micros.most_common(25)
        ],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    report_errors(main)
