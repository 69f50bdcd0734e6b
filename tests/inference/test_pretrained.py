import pickle
import sys

import numpy as np
import pytest
import torch
from rdkit import Chem
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

import msde
from fixtures.commands import run_here
from fixtures.models import make_small
from fixtures.molecules import SMILES, make_record
from msde.checkpoints.weights import save_weights
from msde.data.batch import MoleculeBatch
from msde.data.codec import columns_from_records
from msde.data_tools.convert import convert
from msde.data_tools.options import Options
from msde.errors import MsdeError
from msde.inference.pretrained import Pretrained
from msde.launch import embed as embed_command
from msde.sklearn import MoleculeEmbedding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = make_small("base")
    save_weights(model.state_dict(), model.config, path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return msde.load(folder)


def close(one, other):
    return np.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_kinds_of_input_agree(model, records):
    batch = MoleculeBatch.from_columns(columns_from_records(records))
    mols = [Chem.MolFromSmiles(smiles) for smiles in SMILES]
    h = model.embed(SMILES, "2d")
    assert h.shape == (len(SMILES), 32) and h.dtype == np.float32
    assert close(model.embed(mols, "2d"), h)
    assert close(model.embed(batch.to_pyg(), "2d"), h)
    assert close(model.embed([mols[0], *SMILES[1:9], batch.to_pyg()[9]], "2d"), h)
    both = model.embed(batch.to_pyg(), "both")
    assert both.shape == (len(SMILES), 64)
    assert close(both[:, 32:], model.embed(batch.to_pyg(), "3d"))
    with torch.no_grad():
        encoder = model.model.encoder_3d
        assert close(both[:, 32:], encoder.readout(encoder(batch), batch).numpy())


def test_a_folder_of_shards(model, shard_dir):
    from msde.data.mixture import Mixture
    from msde.data.shards import ShardDataset

    h = model.embed(shard_dir, "both")
    dataset = ShardDataset(shard_dir)
    assert h.shape == (len(dataset), 64) and np.isfinite(h).all()
    columns = Mixture([dataset]).fetch(np.array([140, 3]))
    some = MoleculeBatch.from_columns(columns).to_pyg()
    assert close(model.embed(some, "both"), h[[140, 3]])


def test_shards_without_geometry_have_no_3d_view(model, tmp_path):
    (tmp_path / "some.smi").write_text("CCO\nc1ccccc1\n")
    convert([tmp_path / "some.smi"], tmp_path / "data", options=Options(conformers=0))
    found = model.encode(tmp_path / "data", "both")
    assert np.isfinite(found.h["2d"]).all() and np.isnan(found.h["3d"]).all()
    assert found.notes[1] == "no 3D view: the shards hold no geometry" and not found.reasons
    assert model.encode(tmp_path / "data", "3d").reasons.keys() == {0, 1}


def test_nodes_and_order(model):
    """Batches go by size; the order of the input comes back."""
    whole = model.embed(SMILES, "2d", "node")
    assert [len(part) for part in whole] == [Chem.MolFromSmiles(s).GetNumAtoms() for s in SMILES]
    means = np.stack([part.mean(0) for part in whole])
    assert close(means, model.embed(SMILES, "2d"))
    back = model.embed(SMILES[::-1], "2d", "node")
    assert all(close(one, other) for one, other in zip(whole, back[::-1], strict=True))
    many = model.embed(SMILES * 150, "2d")  # several chunks
    assert close(many, np.tile(model.embed(SMILES, "2d"), (150, 1)))


def test_renumbering_changes_nothing_in_base(model):
    rng = np.random.default_rng(0)
    smiles = ["C[C@H](N)C(=O)O", "F/C=C/Cl", "O[C@H]1CC[C@@H](C)CC1", "CC(=O)[O-].[Na+]", SMILES[7]]
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        orders = [rng.permutation(mol.GetNumAtoms()).tolist() for _ in range(4)]
        others = [Chem.MolToSmiles(Chem.RenumberAtoms(mol, o), canonical=False) for o in orders]
        h = model.embed([text, *others], "2d")
        assert np.abs(h - h[0]).max() < 1e-4 * np.abs(h).max(), text
        renumbered = [Chem.RenumberAtoms(mol, order) for order in orders]
        nodes, h = model.embed(renumbered, "2d", "node"), model.embed([mol], "2d", "node")[0]
        for order, part in zip(orders, nodes, strict=True):
            assert close(part, h[order])


def test_conformers_are_used_or_made_where_there_is_none(model):
    mol = Chem.MolFromSmiles("CCO")
    made, again = model.embed(["CCO"], "3d"), model.embed(["CCO"], "3d")
    assert np.array_equal(made, again)
    conformer = Chem.Conformer(3)
    conformer.Set3D(True)
    for atom in range(3):
        conformer.SetAtomPosition(atom, (2.0 * atom, 0.0, 0.0))
    mol.AddConformer(conformer)
    before = mol.ToBinary()
    assert not close(model.embed([mol], "3d"), made)
    assert mol.ToBinary() == before  # the caller's molecule is left alone


def test_hydrogens(model):
    with_h = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    assert len(model.embed([with_h], "2d", "node")[0]) == 3
    kept = model.embed([with_h, "CCO"], "2d", "node", keep_hydrogens=True)
    assert [len(part) for part in kept] == [9, 9]
    both = model.embed([with_h, "CCO"], "both", "node", keep_hydrogens=True)
    assert [len(part) for part in both] == [9, 9]


BAD = ["CCO", "not a molecule", "C(C)(C)(C)(C)C", "CO", ""]


def test_unreadable_molecules_are_marked_in_their_places(model, caplog):
    h = model.embed(BAD, "both")
    assert np.isnan(h[[1, 2, 4]]).all() and np.isfinite(h[[0, 3]]).all()
    assert "molecule 1 could not be embedded: cannot be parsed: SMILES syntax" in caplog.text
    assert "molecule 2 could not be embedded: cannot be parsed: Explicit valence" in caplog.text
    nodes = model.embed(BAD, "2d", "node")
    assert [part is None for part in nodes] == [False, True, True, False, True]
    assert len(nodes[0]) == 3 and len(nodes[3]) == 2
    assert np.isnan(model.embed(["x"], "2d")).all() and model.embed([], "2d").shape == (0, 32)
    assert model.embed([], "2d", "node") == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [("CC C", "white space inside the SMILES: 'CC C'"), ("CCO |$a|x", "white space"),
     *((value, "no SMILES") for value in ("", " ", "NA", "n/a", "-", None, float("nan")))],
)  # fmt: skip
def test_rows_without_one_molecule_have_a_reason(model, value, reason):
    found = model.encode(["CCO", value, "CO"], "both")
    assert list(found.reasons) == [1] and found.reasons[1].startswith(reason)
    assert np.isnan(found.h["2d"][1]).all() and np.isfinite(found.h["2d"][[0, 2]]).all()


def test_extensions_of_smiles_are_read(model):
    racemic = "C[C@H](F)Cl |&1:1|"
    mol = Chem.MolFromSmiles(racemic)
    found = model.encode([" C[C@H](F)Cl\n", racemic, mol, "CC |^1:0|", "[CH2]C"], "2d")
    assert not found.reasons and list(found.notes) == [1, 2]
    assert "racemic" in found.notes[1] and found.notes[1] == found.notes[2]
    h = found.h["2d"]
    assert close(h[0], h[1]) and close(h[1], h[2]) and close(h[3], h[4])


def test_elements_and_charges_outside_the_vocabulary_are_noted(model):
    found = model.encode(["CCO", "*C", "[Fe+6]"], "2d")
    assert not found.reasons and list(found.notes) == [1, 2]
    assert found.notes[1] == "not seen by the model: atomic_num of atom 0 (Z = 0)"
    assert found.notes[2] == "not seen by the model: formal_charge of atom 0 (Z = 26)"


def test_broken_data_are_marked_and_named(model, records):
    good = MoleculeBatch.from_columns(columns_from_records(records)).to_pyg()[2]

    def broken(**changes):
        return good.clone().update({k: v for k, v in changes.items()})

    wide = torch.cat([good.x, good.x[:, :2]], dim=1)
    far = good.edge_index + 65536
    one_way = good.edge_index[:, ::2]
    for data, reason in [
        (broken(x=good.x + 300), "x holds a value that is out of range"),
        (broken(x=wide), "x has shape (6, 11), expected (6, 9)"),
        (broken(edge_index=far), "edge_index holds a value that is out of range"),
        (broken(edge_index=one_way, edge_attr=good.edge_attr[::2]), "once in each direction"),
        (broken(pos=good.pos * torch.nan), "coordinates that are not finite"),
        (broken(pos=good.pos * 0), "two atoms closer than"),
        (broken(pos=good.pos[:3]), "pos has shape (3, 3)"),
        (type(good)(), "its data lack z, x, edge_index, edge_attr, pos"),
        (None, "it is None"),
    ]:
        found = model.encode([data, good], "both")
        only_2d = "pos" in reason or "atoms" in reason or "coordinates" in reason
        said = found.notes if only_2d and data is not None and "z" in data else found.reasons
        assert reason in said[0]
        assert np.isnan(found.h["3d"][0]).all() and np.isfinite(found.h["3d"][1]).all()
        assert reason in model.encode([data], "3d").reasons[0]


def test_data_without_cip_are_noted(model, records):
    data = MoleculeBatch.from_columns(columns_from_records(records)).to_pyg()[2]
    assert not model.encode([data], "2d").notes
    del data.cip
    assert "chirality, since its data lack cip" in model.encode([data], "2d").notes[0]


def test_a_molecule_without_a_conformer_keeps_its_topology(model, caplog):
    strained = "C1#CC#C1"  # RDKit finds no conformer
    found = model.encode([strained, "CO"], "both")
    assert not found.reasons and found.notes[0].startswith("no 3D view: ")
    assert close(found.h["2d"][0], model.embed([strained], "2d")[0])
    assert np.isnan(found.h["3d"][0]).all() and np.isfinite(found.h["3d"][1]).all()
    nodes = model.embed([strained, "CO"], "both", "node")
    assert nodes[0].shape == (4, 64) and np.isnan(nodes[0][:, 32:]).all()
    assert "molecule 0: no 3D view" in caplog.text
    assert "conformer" in model.encode([strained], "3d").reasons[0]


def test_the_search_for_cip_labels_is_bounded(model):
    cage = (
        "C[C@]12[C@@H]3[C@H]4[C@H]5[C@H]6[C@H]7[C@@H]8[C@@H]5[C@H]3[C@@H]3[C@@H]8[C@H]5[C@H]7"
        "[C@H]7[C@@H]6[C@H]4[C@@H]1[C@@H]7[C@@H]5[C@H]32"
    )
    found = model.encode([cage], "2d")
    assert not found.reasons and np.isfinite(found.h["2d"]).all()
    assert "CIP labels take too long" in found.notes[0]


def test_models_and_pipelines_can_be_pickled(model, folder):
    again = pickle.loads(pickle.dumps(model))
    assert close(again.embed(["CCO"]), model.embed(["CCO"]))
    pickle.dumps(make_pipeline(MoleculeEmbedding(folder), Ridge()).fit(["CCO", "C"], [1, 2]))


def test_readouts_are_the_layers_that_pretraining_has_and_the_others(model, folder):
    last, every = (msde.load(folder, readout=name) for name in ("last", "concat"))
    width, layers = model.width("2d"), model.config.model.gin.num_layers + 1
    h = every.embed(SMILES[:3])
    assert h.shape == (3, layers * width) and every.width("2d") == layers * width
    assert close(h[:, -width:], last.embed(SMILES[:3]))
    assert close(model.embed(SMILES[:3]), last.embed(SMILES[:3]))  # as in pretraining
    with pytest.raises(MsdeError, match="readout is 'all', expected one of pretrained, last"):
        msde.load(folder, readout="all")


def test_wrong_arguments(model, tmp_path):
    for wrong, message in [
        ("CCO", "CCO is not a folder of shards; give several molecules as a list"),
        (tmp_path / "none", "is not a folder of shards"),
    ]:
        with pytest.raises(MsdeError, match=message):
            model.embed(wrong)
    with pytest.raises(MsdeError, match="view is '4d'"):
        model.embed(["C"], "4d")
    with pytest.raises(TypeError, match="of type int, expected a SMILES string"):
        model.embed([7])
    with pytest.raises(MsdeError, match=r"config.json cannot be read"):
        msde.load(tmp_path)


def test_damaged_weights_are_named(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    name = "encoder_2d.norms.0.weight"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for change, message in [
        ({name: None}, f"{name} is missing"),
        ({name: torch.zeros(3)}, f"{name} has shape"),
        ({"more": torch.zeros(3)}, "more is not a tensor of this model"),
    ]:
        damaged = {k: v for k, v in (state | change).items() if v is not None}
        save_file(damaged, tmp_path / "model.safetensors")
        with pytest.raises(MsdeError, match=message):
            msde.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(MsdeError, match="cannot be read"):
        msde.load(tmp_path)


def run_embed(*arguments):
    return run_here("msde.launch.embed", *arguments)


def test_the_command_on_files_and_shards(folder, model, shard_dir, tmp_path):
    smi, sdf, out = tmp_path / "some.smi", tmp_path / "some.sdf", tmp_path / "out.npz"
    smi.write_text("CCO ethanol\nnonsense\n\n*CO dummy\n")
    result = run_embed("--checkpoint", folder, "--input", smi, "--output", out, "--view", "2d")
    assert result.returncode == 0, result.stderr
    assert "2 of 3 molecules, h_2d (3, 32)" in result.stdout
    assert "line 2 not embedded: cannot be parsed" in result.stderr
    assert "line 4 (dummy) embedded, but: not seen by the model: atomic_num" in result.stderr
    with np.load(out, allow_pickle=False) as found:
        assert found["name"].tolist() == ["ethanol", "", "dummy"]
        assert found["line"].tolist() == [1, 2, 4]
        assert [bool(reason) for reason in found["reason"]] == [False, True, False]
        assert close(found["h_2d"][[0, 2]], model.embed(["CCO", "*CO"], "2d"))
        assert np.isnan(found["h_2d"][1]).all()

    writer = Chem.SDWriter(str(sdf))
    mol = Chem.MolFromSmiles("CCO")
    from rdkit.Chem import rdDistGeom

    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    writer.write(mol)
    writer.close()
    sdf.write_text(sdf.read_text() + "broken\n\n\n  no counts\nM  END\n$$$$\n")
    result = run_embed("--checkpoint", folder, "--input", sdf, "--output", out, "--level", "node")
    assert result.returncode == 0, result.stderr
    with np.load(out, allow_pickle=False) as found:
        assert found["ptr"].tolist() == [0, 3, 3] and found["h_3d"].shape == (3, 32)
        assert found["reason"][1].startswith("cannot be parsed")

    result = run_embed("--checkpoint", folder, "--input", shard_dir, "--output", out)
    assert result.returncode == 0, result.stderr
    with np.load(out, allow_pickle=False) as found:
        assert len(found["uid"]) == len(found["h_2d"]) == len(found["h_3d"])


def test_bad_calls_of_the_command(folder, tmp_path, monkeypatch):
    (tmp_path / "a.what").write_text("?\n")
    (tmp_path / "empty.smi").touch()
    good = ["--checkpoint", folder, "--output", tmp_path / "out.npz", "--input"]
    for arguments, message in [
        ([*good, tmp_path / "a.what"], "looks like no known format"),
        ([*good, tmp_path / "none.smi"], "cannot be read"),
        ([*good, tmp_path / "empty.smi"], "no molecules in"),
        ([*good, tmp_path, "--output", "x.txt"], "should end in .npz"),
        (["--checkpoint", tmp_path, *good[2:], tmp_path / "a.what"], "config.json cannot be read"),
    ]:
        monkeypatch.setattr(sys, "argv", ["embed.py", *map(str, arguments)])
        with pytest.raises(MsdeError, match=message):
            embed_command.main()
    assert not (tmp_path / "out.npz").exists()


def test_a_scikit_learn_pipeline(folder):
    smiles = [s for s in SMILES if "." not in s]
    weight = [Chem.MolFromSmiles(s).GetNumAtoms() for s in smiles]
    pipeline = make_pipeline(MoleculeEmbedding(folder, view="2d"), Ridge())
    assert clone(pipeline).get_params()["moleculeembedding__view"] == "2d"
    predicted = pipeline.fit(smiles, weight).predict(smiles)
    assert predicted.shape == (len(smiles),)
    assert np.isfinite(cross_val_score(pipeline, smiles, weight, cv=2, scoring="r2")).all()
    step = pipeline[0]
    assert step.get_feature_names_out()[:2].tolist() == ["msde_2d_0", "msde_2d_1"]
    with pytest.raises(MsdeError, match="1 molecules could not be embedded, the first is number 1"):
        step.transform(["C", "nonsense"])
    assert np.isnan(step.set_params(on_failure="nan").transform(["C", "nonsense"])[1]).all()


def test_a_molecule_without_a_conformer_is_a_failure_of_the_transformer(folder, caplog):
    step = MoleculeEmbedding(folder, view="both").fit([])
    with pytest.raises(MsdeError, match="1 molecules could not be embedded.* 1: no 3D view"):
        step.transform(["CCO", "C1#CC1"])
    vectors = step.set_params(on_failure="nan").transform(["CCO", "C1#CC1"])
    width = step.model_.width("2d")
    assert np.isfinite(vectors[0]).all() and np.isfinite(vectors[1, :width]).all()
    assert np.isnan(vectors[1, width:]).all() and "1 molecules could not" in caplog.text


def test_large_molecules_are_batched_by_pairs(model, monkeypatch):
    monkeypatch.setattr("msde.inference.inputs.BATCH_PAIRS", 50)
    seen = []
    encoder = model.model.encoder_3d
    hook = encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append((inputs[0].num_graphs, inputs[0].pair_index.shape[1]))
    )
    record = make_record(SMILES[2])
    data = MoleculeBatch.from_columns(columns_from_records([record])).to_pyg()[0]
    h = Pretrained(model.model).embed([data] * 7, "3d")
    hook.remove()
    assert all(pairs <= 50 or graphs == 1 for graphs, pairs in seen)
    assert len(seen) > 1 and close(h, np.tile(h[:1], (7, 1)))
