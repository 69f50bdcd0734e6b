"""benchmarks/join.py: the 2D encoder of one run and the 3D encoder of another."""

import dataclasses
import subprocess
import sys

import torch

from fixtures.models import make_small
from fixtures.paths import ROOT
from msde.checkpoints.weights import load_weights, save_weights
from msde.inference.pretrained import trained_views
from msde.model import MoleculeSDE


def test_each_encoder_is_that_of_its_run(tmp_path):
    models = {}
    for seed, (name, loss) in enumerate(
        {"2d": {"coefficient_3d_to_2d": 0.0}, "3d": {"coefficient_2d_to_3d": 0.0}}.items()
    ):
        config = make_small("base").config
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, **loss))
        torch.manual_seed(seed)
        models[name] = MoleculeSDE(config)
        save_weights(models[name].state_dict(), config, tmp_path / name)
    command = [sys.executable, ROOT / "benchmarks/join.py", tmp_path / "2d", tmp_path / "3d"]
    subprocess.run([*command, "--output", tmp_path / "joined"], check=True, cwd=ROOT)
    joined = load_weights(tmp_path / "joined")
    assert trained_views(joined.config) == ["2d", "3d"]
    assert joined.config.loss.coefficient_contrastive == 0
    for view, score in (("2d", "score_2d_to_3d"), ("3d", "score_3d_to_2d")):
        for part in (f"encoder_{view}", score):
            found = getattr(joined, part).state_dict()
            expected = getattr(models[view], part).state_dict()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
