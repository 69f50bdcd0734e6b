"""Published checkpoints to ours and back; the one under tests/parity is of the published code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

import msde
from fixtures.models import make_small
from fixtures.parity import DIR, TOLERANCE, arrays
from fixtures.paths import LAUNCH
from msde.checkpoints import published
from msde.errors import MsdeError
from msde.launch import convert_checkpoint

CONVERT = LAUNCH / "convert_checkpoint.py"
FILES = sorted(DIR.glob("model_complete*.pth"))


def convert(*arguments):
    command = [sys.executable, str(CONVERT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def convert_here(monkeypatch, *arguments):
    """Convert in this process: a new one takes seconds to start."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    convert_checkpoint.main()


def error_of(monkeypatch, *arguments):
    with pytest.raises(MsdeError) as error:
        convert_here(monkeypatch, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for part in one:
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            assert tensor.dtype == other[part][name].dtype
            assert torch.equal(tensor, other[part][name]), name


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.name)
def converted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    result = convert("--from-published", request.param, "--output", folder)
    assert result.returncode == 0, result.stderr
    for key in published.UNDETERMINED:
        assert f"  {key}=" in result.stdout
    return request.param, folder


def test_the_round_trip_of_a_file_is_bit_for_bit(converted, tmp_path, monkeypatch):
    path, folder = converted
    back = tmp_path / "back.pth"
    convert_here(monkeypatch, "--to-published", folder, "--output", back)
    assert_same(read(path), read(back))


def test_sizes_and_variants_follow_from_the_tensors(converted):
    path, folder = converted
    theirs = read(path)
    config = msde.load(folder).config
    assert config.model.encoder_3d == ("painn" if "painn" in path.name else "schnet")
    has_distance = "dist_gaussian_fourier.W" in theirs["SDE_2Dto3D_model"]
    assert config.model.conformer.edges == ("frame_distance" if has_distance else "frame")
    assert config.model.conformer.sde.sigma_min == 0.2
    assert config.model.topology.sde.sigma_min == 0.1


def test_an_imported_checkpoint_embeds_the_published_molecules(converted):
    """From their mol blocks, to the outputs of the published encoders."""
    path, folder = converted
    model = msde.load(folder)
    with np.load(DIR / "batch.npz") as data:
        mols = [Chem.MolFromMolBlock(str(block)) for block in data["molblock"]]
        batch = data["batch"]
    of_3d = arrays("painn" if "painn" in path.name else "schnet")
    found = model.encode(mols, "both", "node")
    assert not found.reasons
    assert np.array_equal(np.repeat(np.arange(len(mols)), np.diff(found.ptr)), batch)
    for ours, theirs in ((found.h["2d"], arrays("gin")["h_eval"]), (found.h["3d"], of_3d["h"])):
        theirs = theirs.numpy()
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < TOLERANCE
    graph = model.embed(mols, "3d", "graph")
    expected = of_3d["graph_repr"].numpy()
    assert np.linalg.norm(graph - expected) / np.linalg.norm(expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["paper", "paper, frame", "paper, PaiNN"])
def test_the_round_trip_of_our_weights_is_bit_for_bit(kind):
    model = make_small(kind, "model.topology.num_linears=2", "model.gin.num_layers=3")
    checkpoint = published.export_checkpoint(model.state_dict(), model.config, {}, {})
    readout = f"model.gin.readout={model.config.model.gin.readout}"
    state, config, kept, notes = published.import_checkpoint(checkpoint, [readout])
    assert config.model == model.config.model
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert_same(published.export_checkpoint(state, config, kept, notes), checkpoint)


def test_chirality_tables_of_four_rows(tmp_path):
    checkpoint = read(FILES[0])
    table = "atom_encoder.atom_embedding_list.1.weight"
    checkpoint["model_2D"][table] = checkpoint["model_2D"][table][:4].clone()
    state, config, kept, notes = published.import_checkpoint(checkpoint, [])
    rows = state["encoder_2d.atom_embedding.weight"][119:124]
    assert torch.equal(rows[:4], checkpoint["model_2D"][table]) and torch.equal(rows[4], rows[3])
    assert_same(published.export_checkpoint(state, config, kept, notes), checkpoint)


def test_settings_that_the_tensors_do_not_determine_are_stored(tmp_path, monkeypatch, capsys):
    options = ["model.conformer.sde.kind=VP", "model.gin.readout=sum", "loss.anneal_power=2"]
    output = tmp_path / "model"
    convert_here(monkeypatch, "--from-published", FILES[0], "--output", output, *options)
    assert "  model.conformer.sde.kind=VP" in capsys.readouterr().out
    config = msde.load(output).config
    assert config.model.conformer.sde.kind == "VP" and config.model.gin.readout == "sum"
    assert config.loss.anneal_power == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("model_3D"), "model_3D is missing"),
        (lambda c: c.update(extra={}), "extra is not known"),
        (lambda c: c["model_2D"].pop("gnns.1.eps"), "model_2D: gnns.1.eps is missing"),
        (
            lambda c: c["model_2D"].update({"gnns.0.more": torch.zeros(1)}),
            "model_2D: gnns.0.more is not a tensor of this network",
        ),
        (
            lambda c: c["model_3D"].update({"lin1.bias": torch.zeros(3)}),
            "model_3D: lin1.bias has shape (3,), expected (40,)",
        ),
        (
            lambda c: c["model_3D"]["interactions.0.conv.nn.0.bias"].add_(1),
            "interactions.0.conv.nn.0.bias differs from its other copy",
        ),
        (
            lambda c: c["model_3D"].pop("distance_expansion.offset"),
            "model_3D: distance_expansion.offset is missing",
        ),
        (lambda c: c["model_3D"].pop("atomic_mass"), "model_3D: atomic_mass is missing"),
    ],
)
def test_errors_in_a_checkpoint_are_named(damage, message):
    checkpoint = read(DIR / "model_complete.pth")
    checkpoint = {p: {n: t.clone() for n, t in s.items()} for p, s in checkpoint.items()}
    damage(checkpoint)
    sizes = checkpoint.get("model_2D", {}).get("batch_norms.0.bias", torch.zeros(0))
    with pytest.raises(MsdeError) as error:
        published.import_checkpoint(checkpoint, [])
    message = message.replace("40", str(len(sizes)))
    assert message in str(error.value)


def test_bad_calls_get_one_line(tmp_path, monkeypatch):
    out = ["--output", tmp_path / "out"]
    assert "cannot be read" in error_of(
        monkeypatch, "--from-published", tmp_path / "none.pth", *out
    )
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    assert "not a checkpoint of tensors" in error_of(
        monkeypatch, "--from-published", tmp_path / "bad.pth", *out
    )
    torch.save({"model_2D": [1, 2]}, tmp_path / "list.pth")
    assert "model_2D is not a dict" in error_of(
        monkeypatch, "--from-published", tmp_path / "list.pth", *out
    )
    line = error_of(monkeypatch, "--from-published", FILES[0], *out, "model.hidden_dim=3")
    assert "model.hidden_dim is not an option here; options are model.gin.readout" in line
    assert "config.json cannot be read" in error_of(monkeypatch, "--to-published", tmp_path, *out)
    assert not (tmp_path / "out").exists()
    result = convert("--from-published", tmp_path / "none.pth", *out)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    assert "is not an empty folder" in error_of(monkeypatch, "--from-published", FILES[0], *out)


def test_code_in_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "attacked",))

    torch.save({"model_2D": Attack()}, tmp_path / "attack.pth")
    line = error_of(
        monkeypatch, "--from-published", tmp_path / "attack.pth", "--output", tmp_path / "out"
    )
    assert "not a checkpoint of tensors alone" in line
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "correction",
    [
        "model.conformer.positions=centred",
        "model.gin.chirality=cip",
        "model.topology.divide_by_std=false",
        "model.conformer.input_spread=1.7",
        "model.topology.time_dim=8",
    ],
)
def test_corrected_models_have_no_published_form(correction):
    model = make_small("paper", correction)
    with pytest.raises(MsdeError, match=correction.partition("=")[0]):
        published.export_checkpoint(model.state_dict(), model.config, {}, {})


def test_half_precision_comes_back_as_it_was(tmp_path, monkeypatch):
    checkpoint = read(DIR / "model_complete.pth")
    for state in checkpoint.values():
        for name in state:
            if state[name].dtype == torch.float32:
                state[name] = state[name].half()
    torch.save(checkpoint, tmp_path / "half.pth")
    folder, back = tmp_path / "model", tmp_path / "back.pth"
    convert_here(monkeypatch, "--from-published", tmp_path / "half.pth", "--output", folder)
    convert_here(monkeypatch, "--to-published", folder, "--output", back)
    assert_same(read(back), checkpoint)
