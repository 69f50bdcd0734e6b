"""The weights that come with the package do what their card says."""

import subprocess
import sys

import numpy as np
import pytest
from rdkit import Chem

import msde
from fixtures.conformers import atropisomer
from msde.chem.stereo import count_stereo
from msde.evaluation.bonds import graph_smiles

SMILES = ["CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "OCCc1ccncc1"]


@pytest.fixture(scope="module")
def model():
    return msde.load()


def test_they_fit_into_the_package():
    files = list(msde.shipped_checkpoint().parent.rglob("*"))
    assert sum(path.stat().st_size for path in files) < 60e6
    assert (msde.shipped_checkpoint().parent / "README.md").exists()


@pytest.mark.slow
def test_they_load_without_a_network():
    alone = ["unshare", "--map-root-user", "--net"]  # a process that sees no network
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let unshare make a network namespace")
    script = "import msde; print(msde.load().embed(['CCO']).shape)"
    done = subprocess.run([*alone, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip().endswith("(1, 300)"), done.stderr


def test_encoders_tell_molecules_apart_and_see_geometry(model):
    h = model.embed(SMILES, view="both")
    assert h.shape == (3, model.width("2d") + model.width("3d")) and np.isfinite(h).all()
    assert np.linalg.norm(h[0] - h[1]) > 1e-2


def test_conformers_from_noise_have_the_bonds_and_the_chirality_of_the_molecule(model):
    for text, found in zip(SMILES, model.conformers(SMILES, num=2, start="noise"), strict=True):
        mol = Chem.RemoveHs(found.mol)
        for conformer in mol.GetConformers():
            lengths = [
                np.linalg.norm(np.subtract(*conformer.GetPositions()[list(ends)]))
                for ends in ((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds())
            ]
            assert 1.1 < min(lengths) and max(lengths) < 1.7
        Chem.AssignStereochemistryFrom3D(mol)
        assert Chem.MolToSmiles(mol) == Chem.CanonSmiles(text)


def test_bonds_of_its_own_conformers_are_the_molecules(model):
    for text, found in zip(SMILES, model.conformers(SMILES, num=1), strict=True):
        z = [atom.GetAtomicNum() for atom in found.mol.GetAtoms()]
        again = model.bonds(z, found.mol.GetConformer().GetPositions())
        assert graph_smiles(again.mol) == graph_smiles(Chem.AddHs(Chem.MolFromSmiles(text)))


def test_hindered_bonds_of_samples_from_etkdg_are_as_labelled(model):
    given = {"num": 30, "seed": 0}
    found, as_sampled = (
        next(model.conformers([atropisomer()], repair=repair, **given)) for repair in (True, False)
    )
    right, once = (
        [count_stereo(f.mol, c.GetId()).is_right for c in f.mol.GetConformers()]
        for f in (found, as_sampled)
    )
    assert all(right) and not all(once)
    assert len(found.notes) == once.count(False)
