import numpy as np
import pytest

from fixtures.readers import (
    TRUST,
    convert,
    embedded,
    numbers,
    positions,
    real,
    recognised,
    smiles_of,
)
from msde.chem.record import Origin
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert as convert_files
from msde.data_tools.readers import Label, Options, get_reader
from msde.data_tools.verify import verify
from msde.errors import MsdeError


def test_molecules_agree_with_the_arrays():
    path = real("md17/toluene.npz")
    facts, parsed, _ = convert(path, limit=20)
    assert facts.labels == (Label("energy", "kcal/mol"),)
    assert facts.forces_unit == "kcal/mol/A"
    arrays = np.load(path)
    for frame, one in parsed.items():
        assert smiles_of(one) == "Cc1ccccc1"
        assert one.origin == Origin.BONDS_PERCEIVED
        assert one.y[0] == arrays["E"][frame - 1]
        assert np.array_equal(one.forces[0], arrays["F"][frame - 1])
        assert np.array_equal(positions(one.mol)[0], arrays["R"][frame - 1])


def test_other_layouts(tmp_path):
    mol = embedded("CCO", 3)
    fields = {
        "nuclear_charges": numbers(mol),
        "coords": positions(mol) / 0.529177210903,
        "energies": np.arange(3.0),
        "forces": -positions(mol),
        "r_unit": np.array("bohr"),
        "e_unit": np.array(b"eV"),
    }
    np.savez(tmp_path / "rmd17.npz", **fields)
    facts, parsed, _ = convert(tmp_path / "rmd17.npz")
    assert (facts.labels, facts.forces_unit) == ((Label("energy", "eV"),), "eV/a0")
    assert np.allclose(positions(parsed[2].mol)[0], positions(mol)[1])
    assert np.array_equal(parsed[3].forces[0], -positions(mol)[2])
    np.savez(tmp_path / "bare.npz", z=numbers(mol), R=positions(mol))
    facts, parsed, _ = convert(tmp_path / "bare.npz")
    assert (facts.labels, facts.forces_unit, len(parsed)) == ((), None, 3)


def test_bonds_come_from_the_first_frame_that_has_them(tmp_path):
    mol = embedded("CCO", 2)
    place = positions(mol)
    place[0, 0] += 50  # an atom far away
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=place, E=np.zeros(2))
    _, parsed, _ = convert(tmp_path / "a.npz")
    assert [smiles_of(one) for one in parsed.values()] == ["CCO", "CCO"]
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=place[:1], E=np.zeros(1))
    with pytest.raises(MsdeError, match="several fragments"):
        list(get_reader("md17").read(tmp_path / "a.npz"))


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", z=np.array([1, None], object), R=np.zeros((1, 2, 3)))
    assert recognised(tmp_path / "a.npz") == "md17"
    with pytest.raises(MsdeError, match="cannot be read"):
        get_reader("md17", TRUST).facts([tmp_path / "a.npz"])


def trajectory(path, smiles="CCO", **arrays):
    mol = embedded(smiles, 2)
    np.savez(path, z=numbers(mol), R=positions(mol), **arrays)
    return path


ENERGY, FORCES = np.array([1.5, 2.5]), np.arange(54.0).reshape(2, 9, 3)


@pytest.mark.parametrize(
    ("energy", "forces", "label"),
    [("E", "F", "energy"), ("energies", "forces", "energy"), ("Energy", "Forces", "energy"),
     ("REF_energy", "REF_forces", "REF_energy"), ("dft_energies", "dft_gradient", "dft_energies")],
)  # fmt: skip
def test_energies_and_forces_are_found_under_any_name(tmp_path, energy, forces, label):
    facts, parsed, _ = convert(trajectory(tmp_path / "a.npz", **{energy: ENERGY, forces: FORCES}))
    assert facts.labels == (Label(label, "kcal/mol"),) and facts.forces_unit == "kcal/mol/A"
    assert facts.taken == (("energy", label), ("forces", forces))
    assert (f"{energy} is the label energy" in facts.notes) == (label != energy)
    assert [one.y for one in parsed.values()] == [(1.5,), (2.5,)]
    assert np.array_equal(parsed[2].forces[0], FORCES[1] * (-1 if "grad" in forces else 1))


def test_the_older_values_of_rmd17_are_no_candidates(tmp_path):
    old = {"old_energies": ENERGY - 1, "old_forces": -FORCES, "old_indices": np.arange(2)}
    path = trajectory(tmp_path / "a.npz", energies=ENERGY, forces=FORCES, **old)
    facts, parsed, _ = convert(path)
    assert np.array_equal(parsed[1].forces[0], FORCES[0]) and parsed[1].y == (1.5,)
    assert [name for name, _ in facts.left_out] == list(old)


def test_of_several_forces_the_user_chooses(tmp_path):
    arrays = {"E": ENERGY, "F": FORCES, "dft_energy": -ENERGY, "dft_forces": -FORCES}
    path = trajectory(tmp_path / "a.npz", **arrays)
    with pytest.raises(MsdeError, match="F, dft_forces; choose one with --forces-key"):
        convert(path)
    facts, parsed, _ = convert(path, Options(forces_key="dft_forces"))
    assert np.array_equal(parsed[1].forces[0], -FORCES[0])
    assert facts.taken == (
        ("label", "energy"), ("energy", "dft_energy"), ("forces", "dft_forces")
    )  # fmt: skip


@pytest.mark.parametrize(
    "charge", [-1, np.array([-1]), np.array([-1, -1]), np.array([[-1.0], [-1.0]])]
)
@pytest.mark.parametrize("name", ["charge", "Q", "total_charge"])
def test_ions_have_the_charge_of_the_file(tmp_path, name, charge):
    facts, parsed, _ = convert(trajectory(tmp_path / "a.npz", "CC(=O)[O-]", **{name: charge}))
    assert [smiles_of(one) for one in parsed.values()] == ["CC(=O)[O-]"] * 2
    assert facts.taken == (("charge", name),)


def test_ions_may_have_the_charge_of_the_user(tmp_path):
    path = trajectory(tmp_path / "a.npz", "CC(=O)[O-]", Q=np.zeros(7))  # one for each atom
    with pytest.raises(MsdeError, match="C2H3O2 with charge 0; --charge"):
        convert(path)
    facts, parsed, _ = convert(path, Options(charge=-1))
    assert smiles_of(parsed[1]) == "CC(=O)[O-]" and "Q" in dict(facts.left_out)
    path = trajectory(tmp_path / "b.npz", "CC(=O)[O-]", charge=0.5)
    with pytest.raises(MsdeError, match="charge holds charges that are not whole numbers"):
        convert(path)


def test_stated_units_are_converted_and_others_are_the_users(tmp_path):
    stated = trajectory(tmp_path / "a.npz", E=ENERGY, F=FORCES, e_unit="Ha")
    facts, parsed, _ = convert(stated, Options(label_columns=("energy=eV",)))
    assert facts.labels == (Label("energy", "eV"),) and facts.forces_unit == "Ha/A"
    assert parsed[1].y[0] == pytest.approx(1.5 * 27.211386246)
    assert "energy is converted from Ha to eV" in facts.notes
    silent = trajectory(tmp_path / "b.npz", E=ENERGY, F=FORCES)
    facts, parsed, _ = convert(silent, Options(label_columns=("energy=eV",)))
    assert facts.labels == (Label("energy", "eV"),) and facts.forces_unit == "eV/A"
    assert parsed[1].y == (1.5,)
    assert "the unit of energies is not stated: eV is taken, as --label-columns says" in facts.notes
    for name in ("e_unit", "r_unit"):
        with pytest.raises(MsdeError, match="are in 'furlong'"):
            convert(trajectory(tmp_path / "c.npz", E=ENERGY, **{name: "furlong"}))


def test_numbers_for_each_frame_can_be_chosen(tmp_path):
    path = trajectory(tmp_path / "a.npz", E=ENERGY, gap=-ENERGY, dipole=np.zeros((2, 3)))
    assert [name for name, _ in convert(path)[0].left_out] == ["gap", "dipole"]
    facts, parsed, _ = convert(path, Options(label_columns=("gap=eV",)))
    assert facts.labels == (Label("gap", "eV"),) and parsed[2].y == (-2.5,)


def test_a_single_array_is_no_trajectory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 9, 3)))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    assert recognised(tmp_path / "a.npz") is None
    with pytest.raises(MsdeError, match="a single NumPy array, expected an .npz"):
        get_reader("md17").facts([tmp_path / "a.npz"])


def test_labels_that_are_infinite_are_a_reason_to_reject(tmp_path):
    mol = embedded("CCO", 3)
    energies = np.array([0, np.inf, np.nan])
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=positions(mol), E=energies)
    assert convert_files([tmp_path / "a.npz"], tmp_path / "out")["converted"] == 2
    reasons = read_manifest(tmp_path / "out")["rejects_by_reason"]
    assert reasons == {"a label that is not a finite number": 1}
    assert list(verify(tmp_path / "out")) == []


def test_charges_may_miss_whole_numbers_by_rounding(tmp_path):
    mol = embedded("CC(=O)[O-]")
    np.savez(tmp_path / "a.npz", z=numbers(mol), R=positions(mol), charge=-0.9999999)
    assert smiles_of(convert(tmp_path / "a.npz")[1][1]) == "CC(=O)[O-]"
