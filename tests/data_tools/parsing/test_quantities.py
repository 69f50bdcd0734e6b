import pytest

from msde.chem.vocabulary import MoleculeError
from msde.data_tools.parsing.quantities import (
    Quantities,
    charge_of,
    choose_quantities,
    is_energy,
    is_forces,
)
from msde.data_tools.readers import Options
from msde.errors import MsdeError

ENERGIES = (
    "energy Energy REF_energy dft_energy DFT_ENERGY E energies free_energy total_energy energy_U0 "
    "TotEnergy MACE_energy E_ref wb97x_dz.energy"
).split()
FORCES = (
    "forces Forces force F REF_forces dft_force DFT_Forces mace_mp_forces gradient grad gradients "
    "dft_total_gradient neg_gradient wb97x_dz.forces"
).split()
OTHERS = (
    "mu gap pos velocities momenta e_unit F_var forces_std old_forces fmax force_constants "
    "energy_per_atom energy_error smiles x y"
).split()


def choose(scalars, vectors, **options):
    return choose_quantities("a.xyz", Options(**options), scalars, vectors)


def test_names_tell_energies_and_forces_from_others():
    assert [name for name in ENERGIES + FORCES + OTHERS if is_energy(name)] == ENERGIES
    assert [name for name in ENERGIES + FORCES + OTHERS if is_forces(name)] == FORCES


@pytest.mark.parametrize("name", FORCES)
def test_gradients_have_the_other_sign(name):
    found = choose(["energy"], [name, "velocities"])
    is_gradient = "grad" in name and "neg" not in name
    assert found == Quantities("energy", name, -1 if is_gradient else 1)
    assert bool(found.notes()) == is_gradient


def test_the_energy_that_goes_with_forces_has_the_same_words_around():
    energies = ["energy", "free_energy", "REF_energy", "MACE_energy"]
    assert choose(energies, ["REF_forces"]).energy == "REF_energy"
    assert choose(energies, ["Forces"]).energy == "energy"
    assert choose(energies, ["forces", "REF_forces"], forces_key="REF_forces") == Quantities(
        "REF_energy", "REF_forces"
    )
    assert choose(energies, ["forces"], energy_key="MACE_energy").energy == "MACE_energy"


def test_several_candidates_are_an_error_that_lists_them():
    with pytest.raises(MsdeError, match="a.xyz .*forces, REF_forces; .*--forces-key"):
        choose(["energy", "REF_energy"], ["forces", "REF_forces"])
    with pytest.raises(MsdeError, match="forces, gradient; .*--forces-key"):
        choose(["energy"], ["forces", "gradient"])
    with pytest.raises(MsdeError, match="a_energy, b_energy; .*--energy-key"):
        choose(["a_energy", "b_energy"], ["forces"])
    assert choose(["a_energy", "b_energy"], []) == Quantities()  # all are labels, none is needed


def test_a_key_that_is_absent_is_an_error_that_lists_what_is_there():
    with pytest.raises(MsdeError, match="no forces 'f' .*--forces-key.*found forces, velocities"):
        choose(["energy"], ["forces", "velocities"], forces_key="f")
    with pytest.raises(MsdeError, match="no energy 'e' .*--energy-key.*found energy"):
        choose(["energy"], ["forces"], energy_key="e")


def test_a_key_may_name_what_is_not_named_like_it():
    found = choose(["PBE0", "gap"], ["totFOR", "vdwFOR"], forces_key="totFOR", energy_key="PBE0")
    assert found == Quantities("PBE0", "totFOR")


def test_charges_are_whole_numbers():
    assert charge_of({"Charge": "-1.0"}, 0) == -1
    assert charge_of({"charge": None}, 2) == 2
    assert charge_of({"charge": -0.9999999}, 0) == -1
    for value in ("x", 0.5, 1.00001, "nan", [1, 2]):
        with pytest.raises(MoleculeError, match="expected a whole number"):
            charge_of({"charge": value}, 0)
