"""Model cards: the header is YAML, the figures are those of the weights, nothing is invented."""

import json
import re
import shutil

import pytest
import yaml

from fixtures.models import make_small
from msde.checkpoints.weights import load_weights, save_weights
from msde.data_tools.verify import verify


def header_and_text(folder):
    """The YAML header of a card and the text below it."""
    empty, header, text = (folder / "README.md").read_text().split("---\n", 2)
    assert not empty
    return yaml.safe_load(header), text


def sizes(text):
    """Parameters of each network as the card lists them."""
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| ([\d,]+) \|$", text, re.MULTILINE)
    return {name: int(size.replace(",", "")) for name, size in rows}


@pytest.mark.parametrize("kind", ["paper", "paper, PaiNN", "base, concat"])
def test_a_card_has_a_header_for_the_hub_and_the_sizes_of_the_networks(kind, tmp_path):
    model = make_small(kind)
    save_weights(model.state_dict(), model.config, tmp_path)
    header, text = header_and_text(tmp_path)
    assert header["library_name"] == "msde" and header["pipeline_tag"] == "graph-ml"
    assert all(isinstance(tag, str) for tag in header["tags"])
    found = sizes(text)
    assert found == {
        name: sum(p.numel() for p in getattr(model, name).parameters()) for name in found
    }
    assert len(found) == (5 if "concat" in kind else 4)
    for path in tmp_path.iterdir():
        assert path.name == "README.md" or f"| `{path.name}` |" in text


def test_a_card_names_no_licence_and_no_data_that_are_not_known(tmp_path):
    model = make_small("paper")
    save_weights(model.state_dict(), model.config, tmp_path)
    header, text = header_and_text(tmp_path)
    assert not {"license", "datasets", "metrics"} & header.keys()
    assert "not recorded which data" in text and "names no licence" in text


def test_the_card_of_a_run_says_what_it_was_trained_on(checkpoints, shard_dir):
    _, output = checkpoints
    manifest = json.loads((shard_dir / "manifest.json").read_text())
    _, text = header_and_text(output / "checkpoints/step-000000003")
    assert manifest["digest"] in text and f"{manifest['molecules']:,} molecules" in text
    assert "`first_5K.smi`" in text and "Optimizer steps: 3 of 3 planned" in text
    assert str(shard_dir) not in text  # a card is published, the machine's folders are not


def test_an_edited_card_damages_nothing(checkpoints, tmp_path):
    output = shutil.copytree(checkpoints[1], tmp_path / "run")
    newest = output / "checkpoints/step-000000003"
    (newest / "README.md").write_text("---\nlicense: mit\n---\n")
    assert list(verify(output)) == []
    load_weights(newest)
