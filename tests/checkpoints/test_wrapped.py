"""Published state dicts in the files that training loops write."""

import argparse
import random
import re

import pytest
import torch

import msde
from fixtures.models import make_small
from fixtures.parity import DIR
from msde.checkpoints import published
from msde.checkpoints.published_files import from_published
from msde.checkpoints.wrapped import read_published
from msde.errors import MsdeError

FILE = DIR / "model_complete.pth"
CHECKPOINT = torch.load(FILE, weights_only=True)
WRAPPERS = ["model", "state_dict", "model_state_dict", "model_state"]


def renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def each(change):
    return {part: change(state) for part, state in CHECKPOINT.items()}


def flat(prefix=""):
    return {
        f"{prefix}{part}.{name}": t
        for part, state in CHECKPOINT.items()
        for name, t in state.items()
    }


FORMS = {
    "plain": CHECKPOINT,
    **{f"in {name}": {name: CHECKPOINT} for name in WRAPPERS},
    "in two dicts": {"model": {"state_dict": CHECKPOINT}},
    "each part in a dict": each(lambda state: {"state_dict": state}),
    "trained in parallel": each(lambda state: renamed(state, "module.")),
    "trained in parallel twice": each(lambda state: renamed(state, "module.module.")),
    "in one dict": flat(),
    "in one dict, in parallel": {"model_state_dict": flat("module.")},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_tensors_are_found_in_every_form(form, tmp_path):
    torch.save(FORMS[form], tmp_path / "a.pth")
    parts, left_out = read_published(tmp_path / "a.pth")
    assert parts.keys() == CHECKPOINT.keys() and not left_out
    for part, state in CHECKPOINT.items():
        assert parts[part].keys() == state.keys()
        assert all(torch.equal(parts[part][name], t) for name, t in state.items())


def test_what_is_not_taken_is_said(tmp_path):
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    around = {"epoch": 7, "state_dict": CHECKPOINT | {"step": 3}, "optimizer": optimizer}
    torch.save(around, tmp_path / "a.pth")
    said = from_published(tmp_path / "a.pth", tmp_path / "out", [])
    assert f"left out of {tmp_path / 'a.pth'}: epoch, optimizer, step\n" in said
    assert msde.load(tmp_path / "out").embed(["CCO"]).shape[0] == 1
    torch.save(CHECKPOINT, tmp_path / "b.pth")
    assert "left out" not in from_published(tmp_path / "b.pth", tmp_path / "out2", [])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["paper", "paper, PaiNN"])
def test_a_part_alone_is_named(kind, prefix, tmp_path):
    model = make_small(kind)
    checkpoint = published.export_checkpoint(model.state_dict(), model.config, {}, {})
    for part, state in checkpoint.items():
        for form in (renamed(state, prefix), {"model": renamed(state, prefix)}):
            torch.save(form, tmp_path / "a.pth")
            with pytest.raises(MsdeError, match=f"holds {part} alone; expected .* all parts"):
                read_published(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(2)}, "tensors of another network, conv1.weight; expected"),
        ({"epoch": 3, "lr": 0.1}, "holds epoch, lr; expected model_2D"),
        ({}, "holds nothing; expected model_2D"),
        ([1, 2], "holds list, expected a dict"),
        (
            {"args": argparse.Namespace(), "model": CHECKPOINT},
            "holds objects of argparse.Namespace",
        ),
        (b"hello world", "torch.save has not written it, or it is damaged"),
        (b"", "torch.save has not written it, or it is damaged"),
    ],
    ids=["another network", "numbers", "nothing", "a list", "arguments", "text", "empty"],
)
def test_other_files_are_one_line_that_advises_nothing_unsafe(content, message, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(MsdeError, match=re.escape(message)) as error:
        from_published(path, tmp_path / "out", [])
    text = str(error.value)
    assert "\n" not in text and "weights_only" not in text and str(path) in text
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_a_folder_says_how_to_convert_it():
    with pytest.raises(MsdeError, match=r"is a file, expected a folder.*convert_checkpoint"):
        msde.load(FILE)


def test_flipped_bits_are_named_or_change_nothing(tmp_path):
    whole, path = FILE.read_bytes(), tmp_path / "flipped.pth"
    rng, named = random.Random(0), 0
    for at in [len(whole) // 2, *(rng.randrange(len(whole)) for _ in range(100))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            found, _ = read_published(path)
        except MsdeError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            named += 1
        else:  # a bit between the entries of the archive
            assert all(
                torch.equal(found[part][n], t)
                for part, s in CHECKPOINT.items()
                for n, t in s.items()
            )
    assert named > 50
