"""Properties of docs/howto/questions.md that no other test holds."""

import re

import numpy as np
import pytest

import msde
from fixtures.commands import run_here
from fixtures.paths import ROOT

FINETUNE = ["msde.launch.finetune", "--data=m.csv", "--output=out"]
CUSTOM = [*FINETUNE, "--task=custom", "--targets=y"]
PRETRAIN = ["msde.launch.pretrain", "--data=m.csv", "--output=out"]
WRONG = {
    "task": ([*FINETUNE, "--task=nothing"], "qm9-gap"),
    "setting": ([*CUSTOM, "training=nothing"], "full, frozen, staged, layerwise"),
    "metric": ([*CUSTOM, "--metric=nothing"], "roc_auc, rmse, mae"),
    "target": ([*FINETUNE, "--task=custom", "--targets=z"], "'smiles', 'y'"),
    "encoder": ([*PRETRAIN, "model.encoder_3d=nothing"], "schnet, painn"),
    "SDE": ([*PRETRAIN, "model.conformer.sde.kind=nothing"], "VE, VP, subVP"),
    "preset": ([*PRETRAIN, "--preset=nothing"], "paper, base, large, xl"),
    "format": (["msde.data_tools.convert", "m.csv", "--output=out", "--format=no"], "smiles"),
    "view": (["msde.launch.embed", "--input=m.csv", "--output=m.npz", "--view=no"], "2d"),
    "sampler": (
        ["msde.launch.sample", "conformers", "--input=m.csv", "--output=m.sdf", "--sampler=no"],
        "euler_maruyama, reverse_diffusion",
    ),
}


@pytest.mark.parametrize(("command", "allowed"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_an_error_that_lists_the_allowed_ones(
    command, allowed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text("smiles,y\nCCO,1\nCCN,2\n")
    done = run_here(*command)
    assert done.returncode == 2 and allowed in done.stderr, done.stderr


def test_every_question_has_a_page_with_the_heading_that_it_names():
    page = ROOT / "docs/howto/questions.md"
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    for row in rows[1:]:
        links = re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", row[2])
        assert links, row[0]
        for file, anchor in links:
            text = (page.parent / file).read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}
            assert not anchor or anchor in slugs, f"{file}#{anchor}"


@pytest.mark.parametrize("pair", [("C[C@H](F)Cl", "C[C@@H](F)Cl"), ("F/C=C/F", "F/C=C\\F")])
def test_stereoisomers_have_other_vectors(pair):
    one, other = msde.load().embed(list(pair))
    assert np.isfinite(one).all() and abs(one - other).max() > 0.01 * abs(one).max()
