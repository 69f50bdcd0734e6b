"""Measures of conformers, against molecules whose answer is known."""

import tracemalloc

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Geometry import Point3D

from fixtures.conformers import embedded, mirrored
from msde.evaluation.conformers import (
    THRESHOLDS,
    coverage,
    internal_coordinates,
    paired_interval,
    rmsd_matrix,
)


def test_rmsd_is_blind_to_motion_symmetry_and_hydrogens():
    mol = embedded("Cc1ccccc1", hydrogens=True)
    moved = Chem.Mol(mol)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    order = [0, 1, 6, 5, 4, 3, 2]  # the ring in the other direction
    pos = mol.GetConformer().GetPositions()
    moved.GetConformer().SetPositions(
        np.concatenate([pos[order], pos[7:]]) @ turn + [1.0, 2.0, 3.0]
    )
    assert rmsd_matrix(moved, mol).shape == (1, 1)
    assert rmsd_matrix(moved, mol)[0, 0] < 1e-4
    assert rmsd_matrix(embedded("Cc1ccccc1"), mol)[0, 0] < 0.1


def test_rmsd_tries_the_ten_thousand_symmetries_of_four_trifluoromethyl_groups():
    ring = "c{}cc(C(F)(F)F)cc(C(F)(F)F)c{}"
    mol = embedded(f"S=C(N{ring.format(1, 1)})N{ring.format(2, 2)}")
    moved = Chem.Mol(mol)
    pos = mol.GetConformer().GetPositions()
    for carbon in mol.GetSubstructMatches(Chem.MolFromSmarts("C(F)(F)F")):
        pos[list(carbon[1:])] = pos[[carbon[2], carbon[3], carbon[1]]]
    moved.GetConformer().SetPositions(pos)
    assert rmsd_matrix(moved, mol)[0, 0] < 1e-4


def test_rmsd_of_a_known_displacement():
    mol = embedded("C#C")
    longer = Chem.Mol(mol)
    first, last = mol.GetConformer().GetPositions()
    unit = (last - first) / np.linalg.norm(last - first)
    longer.GetConformer().SetPositions(np.array([first - 0.3 * unit, last + 0.3 * unit]))
    assert rmsd_matrix(longer, mol)[0, 0] == pytest.approx(0.3, abs=1e-6)


def test_positions_that_are_not_finite_match_nothing():
    mol = embedded("CCO")
    broken = Chem.Mol(mol)
    broken.GetConformer().SetAtomPosition(0, Point3D(float("nan"), 0, 0))
    assert rmsd_matrix(broken, mol)[0, 0] == np.inf


def test_coverage_and_matching_of_a_matrix():
    matrix = np.array([[0.3, 0.9], [2.0, 0.6]])  # two references, two samples
    found = coverage([matrix, None])
    assert found.matching[0] == pytest.approx(0.45) and np.isnan(found.matching[1])
    assert found.coverage[0, THRESHOLDS == 0.5] == 0.5
    assert (found.coverage[1] == 0).all()
    assert coverage([matrix[:, :1]]).matching[0] == pytest.approx(1.15)


def test_internal_coordinates_do_not_depend_on_the_conformer_s_place():
    mol = embedded("CC(C)CO")
    found = internal_coordinates(mol, 0)
    assert {name: len(v) for name, v in found.items()} == {"lengths": 4, "angles": 4}
    other = internal_coordinates(mirrored(mol), 0)
    for name in found:
        assert np.allclose(other[name], found[name], atol=1e-6)


def test_the_interval_of_paired_differences():
    rng = np.random.default_rng(0)
    mean, low, high = paired_interval(rng.normal(0.5, 1, 400))
    assert low < 0.5 < high and high - low == pytest.approx(4 * 1 / 20, rel=0.15)
    assert low < mean < high
    assert paired_interval(np.array([1.0, np.nan, 1.0])) == (1, 1, 1)


def test_the_interval_does_not_depend_on_blocks_and_needs_a_difference():
    values = np.random.default_rng(1).normal(size=77)
    means = np.random.default_rng(0).choice(values, (10_000, 77)).mean(axis=1)
    assert paired_interval(values)[1:] == tuple(np.percentile(means, [2.5, 97.5]))
    assert np.isnan(paired_interval(np.array([np.nan]))).all()


def test_bootstrap_samples_are_drawn_in_blocks():
    tracemalloc.start()
    paired_interval(np.zeros(2_000))
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
