"""The presets, and the tables of their sizes and memory in docs/operations.md."""

import re

import pytest
import torch

from fixtures.paths import ROOT
from msde.config import deepspeed, from_dict, make_config, read_json, to_dict
from msde.config.presets import PRESETS
from msde.model import MoleculeSDE
from msde.training.memory import state_memory
from msde.training.optimizer import parameter_groups

OPERATIONS = (ROOT / "docs/operations.md").read_text()
SIZES = {
    "paper": (4.668591e6, 0),
    "base": (10e6, 0.1),
    "large": (100e6, 0.1),
    "xl": (1e9, 0.1),
    "conformers": (2.4e6, 0.1),
    "bonds": (547_088, 0),
}


def on_meta(preset):
    with torch.device("meta"):
        return MoleculeSDE(make_config(preset))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_stated_sizes(preset):
    """Built without memory or arithmetic, the largest of them, too."""
    model = on_meta(preset)
    count = sum(p.numel() for p in model.parameters())
    expected, tolerance = SIZES[preset]
    assert abs(count / expected - 1) <= tolerance
    assert len(parameter_groups(model)) == 4
    row = next(line for line in OPERATIONS.splitlines() if line.startswith(f"| `{preset}` |"))
    assert f"{count:,}" in row


def test_base_is_the_default():
    assert make_config() == make_config("base")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_stored_configuration_comes_back(preset):
    config = make_config(preset)
    assert from_dict(to_dict(config)) == config


def test_the_memory_in_the_table_is_that_of_the_formula():
    """Each figure of the table: GB of model states a rank, by stage and number of ranks."""
    lines = OPERATIONS.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("| model states"))
    columns = [cell.strip() for cell in lines[head].strip("|").split("|")][1:]
    rows = [line for line in lines[head + 2 : head + 8] if line.startswith("| ")]
    assert len(rows) >= 5
    for line in rows:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        file, ranks = re.fullmatch(r"`(\w+)`, (\d+) GPUs?", name).groups()
        ds_config = read_json(deepspeed.shipped_config(file))
        for column, cell in zip(columns, cells, strict=True):
            count = sum(p.numel() for p in on_meta(column.strip("`")).parameters())
            memory = state_memory(count, int(ranks), ds_config)
            expected = f"{memory.device / 1e9:.2f}"
            if memory.host:
                expected += f" + {memory.host / 1e9:.2f} host"
            assert cell == expected, (line, column)
