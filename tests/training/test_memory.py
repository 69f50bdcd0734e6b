"""The memory of model states, as calculated and as used."""

import json
import math
import shutil

import pytest
import torch

from fixtures.jobs import finish
from msde.config import deepspeed, make_config
from msde.model import MoleculeSDE
from msde.monitor.writer import read_metrics
from msde.training.memory import state_memory


@pytest.mark.large
def test_a_large_model_trains_in_the_calculated_memory(shard_dir, tmp_path):
    """204 million parameters for three steps under ZeRO-3 with everything offloaded."""
    values = json.loads(deepspeed.shipped_config("zero3_offload").read_text())
    values["torch_autocast"]["enabled"] = False  # CPUs emulate bfloat16, very slowly
    for what in ("offload_optimizer", "offload_param"):
        values["zero_optimization"][what]["pin_memory"] = False
    path = tmp_path / "offload.json"
    path.write_text(json.dumps(values))
    common = ["--data", shard_dir, "--preset=xl", "--deepspeed_config", path]
    common += ["data.validation_fraction=0", "data.molecules_per_slot=2"]
    common += ["run.steps=3", "run.log_every=1"]
    large = ["model.hidden_dim=1200", "model.schnet.num_filters=1200"]
    small = ["model.hidden_dim=32", "model.schnet.num_filters=32", "model.topology.node_dim=16"]
    small += ["model.conformer.hidden_dim=32", "model.conformer.basis_dim=32"]
    peaks, counts = {}, {}
    for name, size in (("large", large), ("small", small)):
        finish(tmp_path, *common, *size, "--output", tmp_path / name)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3]
        assert all(math.isfinite(row["loss/total"]) for row in rows)
        peaks[name] = rows[-1]["memory/peak_mb"] * 2**20
        with torch.device("meta"):
            model = MoleculeSDE(make_config("xl", overrides=size))
        counts[name] = sum(p.numel() for p in model.parameters())
        shutil.rmtree(tmp_path / name)  # gigabytes of checkpoint
    assert counts["large"] > 200e6
    calculated = state_memory(counts["large"], 2, values)
    used = peaks["large"] - peaks["small"]  # without libraries and buffers of the process
    assert abs(used / (calculated.device + calculated.host) - 1) < 0.15
