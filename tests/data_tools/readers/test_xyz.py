import collections

import numpy as np
import pytest

from fixtures.readers import convert, embedded, numbers, positions, real, recognised, smiles_of
from msde.chem.vocabulary import MoleculeError
from msde.data_tools.parsing.frames import GDB_VALUES
from msde.data_tools.readers import Label, Options, get_reader
from msde.errors import MsdeError


def test_a_missing_unit_can_be_given():
    path = real("md17/ethanol_raw_2000.xyz.gz")
    facts, parsed, _ = convert(path, Options(label_columns=("energy=kcal/mol",)), 1)
    assert facts.labels == (Label("energy", "kcal/mol"),)
    assert facts.forces_unit == "kcal/mol/A"
    assert parsed[1].y[0] == -97195.01189948035
    assert get_reader("xyz").facts([path]).forces_unit == ""


def xyz_frame(mol, comment, more=None, symbols=None):
    symbols = symbols or [atom.GetSymbol() for atom in mol.GetAtoms()]
    rows = np.concatenate([positions(mol)[0], *([] if more is None else [more])], axis=1)
    lines = (
        f"{s} {' '.join(f'{v:.6f}' for v in row)}\n" for s, row in zip(symbols, rows, strict=True)
    )
    return f"{mol.GetNumAtoms()}\n{comment}\n{''.join(lines)}"


def test_plain_xyz(tmp_path):
    frames = [
        xyz_frame(embedded("CCO"), "ethanol"),
        xyz_frame(embedded("CC(=O)[O-]"), "charge=-1"),
        xyz_frame(embedded("O.O"), ""),
        xyz_frame(embedded("CO"), 'Lattice="9 0 0 0 9 0 0 0 9"'),
        "1\n\nXx 0 0 0\n",
    ]
    path = tmp_path / "a.xyz"
    path.write_text("\n".join(frames))
    assert recognised(path) == "xyz"
    facts, parsed, rejected = convert(path)
    assert (facts.labels, facts.forces_unit) == ((), None)
    assert [smiles_of(one) for one in parsed.values()] == ["CCO", "CC(=O)[O-]"]
    assert rejected == {
        "perceived bonds leave several fragments": 1,
        "periodic": 1,
        "cannot be parsed": 1,
    }
    path.write_text("3\n\nH 0 0 0\n")
    with pytest.raises(MsdeError, match="line 1 is cut off"):
        get_reader("xyz").facts([path])


def test_xyz_that_ase_writes(tmp_path):
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    mol = embedded("CCO")
    atoms = ase.Atoms(numbers(mol), positions(mol)[0])
    atoms.info["dipole_norm"] = 1.5
    forces = np.arange(27.0).reshape(9, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-2.5, forces=forces)
    write(tmp_path / "a.extxyz", [atoms, atoms])
    facts, parsed, _ = convert(tmp_path / "a.extxyz")
    assert {label.name for label in facts.labels} == {"dipole_norm", "energy"}
    assert facts.forces_unit == ""
    assert np.array_equal(parsed[12].forces[0], forces)
    assert set(parsed[12].y) == {1.5, -2.5}


ETHANOL = embedded("CCO")
VECTORS = np.arange(27.0).reshape(9, 3) - 5
PROPERTIES = "Properties=species:S:1:pos:R:3:"


def written(tmp_path, *frames):
    path = tmp_path / "a.xyz"
    path.write_text("".join(frames))
    return path


@pytest.mark.parametrize(
    ("energy", "forces"),
    [("energy", "forces"), ("Energy", "Forces"), ("REF_energy", "REF_forces"), ("E", "F"),
     ("dft_energy", "dft_force"), ("DFT_ENERGY", "DFT_FORCES"), ("free_energy", "MACE_forces")],
)  # fmt: skip
def test_energies_and_forces_are_found_under_any_name(tmp_path, energy, forces):
    comment = f'{PROPERTIES}{forces}:R:3:charges:R:1:velo:R:3 {energy}=-1.5 tag=x pbc="F F F"'
    more = np.concatenate([VECTORS, np.zeros((9, 1)), -VECTORS], axis=1)
    facts, parsed, _ = convert(written(tmp_path, xyz_frame(ETHANOL, comment, more)))
    assert (facts.labels, facts.forces_unit) == ((Label(energy),), "")
    assert np.array_equal(parsed[1].forces[0], VECTORS) and parsed[1].y == (-1.5,)
    assert facts.taken == (("energy", energy), ("forces", forces))
    assert [name for name, _ in facts.left_out] == ["tag", "pbc", "velo", "charges"]


def test_gradients_become_forces_with_the_other_sign(tmp_path):
    comment = f"{PROPERTIES}dft_gradient:R:3 dft_energy=-1.5"
    path = written(tmp_path, xyz_frame(ETHANOL, comment, VECTORS))
    facts, parsed, _ = convert(path, Options(label_columns=("dft_energy=Ha",)))
    assert np.array_equal(parsed[1].forces[0], -VECTORS)
    assert facts.forces_unit == "Ha/A"
    assert facts.notes == ("dft_gradient is a gradient of the energy: forces are its negative",)


def test_of_several_forces_the_user_chooses(tmp_path):
    comment = f"{PROPERTIES}forces:R:3:REF_forces:R:3 energy=1.5 REF_energy=2.5"
    path = written(tmp_path, xyz_frame(ETHANOL, comment, np.hstack([VECTORS, -VECTORS])))
    with pytest.raises(MsdeError, match="forces, REF_forces; choose one with --forces-key"):
        convert(path)
    facts, parsed, _ = convert(path, Options(forces_key="REF_forces"))
    assert np.array_equal(parsed[1].forces[0], -VECTORS)
    assert facts.taken == (("label", "energy"), ("energy", "REF_energy"), ("forces", "REF_forces"))
    assert ("forces", "not the forces chosen") in facts.left_out


def test_names_of_columns_are_read_without_regard_to_case(tmp_path):
    comment = 'properties=SPECIES:S:1:POS:R:3 Energy=1.5 PBC="F F F" Charge=0'
    facts, parsed, _ = convert(written(tmp_path, xyz_frame(ETHANOL, comment)))
    assert smiles_of(parsed[1]) == "CCO" and facts.labels == (Label("Energy"),)


def test_frames_without_forces_are_kept_and_counted(tmp_path):
    with_forces = xyz_frame(ETHANOL, f"{PROPERTIES}forces:R:3 energy=1.5", VECTORS)
    without = xyz_frame(ETHANOL, f"{PROPERTIES[:-1]} energy=2.5")
    reader = get_reader("xyz")
    path = written(tmp_path, with_forces, without, with_forces)
    parsed = [reader.parse(raw) for raw in reader.read(path)]
    assert reader.facts([path]).forces_unit == ""
    assert [one.forces is None for one in parsed] == [False, True, False]
    assert [one.notes for one in parsed][1] == ("no forces: other molecules of the file have them",)


def test_a_number_alone_is_the_energy_and_columns_after_it_are_forces(tmp_path):
    facts, parsed, _ = convert(written(tmp_path, xyz_frame(ETHANOL, "-154.25", VECTORS)))
    assert (facts.labels, facts.forces_unit) == ((Label("energy"),), "")
    assert np.array_equal(parsed[1].forces[0], VECTORS) and parsed[1].y == (-154.25,)
    assert facts.notes == ("forces are read from columns 5 to 7, which have no name",)


@pytest.mark.parametrize("comment", ["ethanol", "17", ""])
def test_columns_without_an_energy_are_no_forces(tmp_path, comment):
    path = written(tmp_path, xyz_frame(ETHANOL, comment, VECTORS))
    facts, parsed, _ = convert(path)
    assert (facts.labels, facts.forces_unit) == ((), None)
    left = dict(facts.left_out)
    assert "no energy" in left["columns 5 to 7"]
    assert (("name", "comment") in facts.taken, "comment" in left) == {
        "ethanol": (True, False), "17": (False, True), "": (False, False)
    }[comment]  # fmt: skip
    facts, parsed, _ = convert(path, Options(forces_key="columns 5 to 7"))
    assert np.array_equal(parsed[1].forces[0], VECTORS)


@pytest.mark.parametrize(
    ("comment", "label", "y"),
    [
        ("Coordinates from ORCA-job x E -154.25", "E", -154.25),
        ("energy: -20.5 gnorm: 0.0003 xtb: 6.4.1", "energy", -20.5),
        ("Energy = -3.5 Hartree", "Energy", -3.5),
    ],
)
def test_energies_of_programs_are_found(tmp_path, comment, label, y):
    facts, parsed, _ = convert(written(tmp_path, xyz_frame(ETHANOL, comment)))
    assert facts.labels == (Label(label),) and parsed[1].y == (y,)


def test_the_first_files_of_md17_have_forces_in_the_comment(tmp_path):
    text = f"-97000.1;{VECTORS.tolist()}"
    facts, parsed, _ = convert(written(tmp_path, xyz_frame(ETHANOL, text)))
    assert facts.labels == (Label("energy"),) and facts.forces_unit == ""
    assert np.array_equal(parsed[1].forces[0], VECTORS) and parsed[1].y == (-97000.1,)
    broken = f"-97000.1;{VECTORS[:5].tolist()}"
    assert convert(written(tmp_path, xyz_frame(ETHANOL, broken)))[2] == {"cannot be parsed": 1}


def deuterated(symbol="D"):
    return [symbol if atom.GetSymbol() == "H" else atom.GetSymbol() for atom in ETHANOL.GetAtoms()]


@pytest.mark.parametrize(("symbol", "listed"), [("D", "6 D"), ("T", "6 T"), ("2H", "6 D")])
def test_deuterium_and_tritium_are_hydrogens(tmp_path, symbol, listed):
    path = written(tmp_path, xyz_frame(ETHANOL, "-1.5", VECTORS, deuterated(symbol)))
    kept = convert(path)[1][1]
    assert kept.notes == (f"isotopes are not stored: {listed}",)
    assert np.array_equal(numbers(kept.mol), numbers(ETHANOL))
    removed = convert(path, Options(keep_hydrogens=False))[1][1]
    assert removed.notes == (f"hydrogen isotopes are removed like hydrogens: {listed}",)
    assert np.array_equal(removed.forces[0], VECTORS[:3])
    assert smiles_of(removed) == "CCO" and removed.mol.GetNumAtoms() == 3


@pytest.mark.parametrize(
    "label", ["{}{}", "{}_{}", "{}({})", "{}{}A", "{}-{}"], ids=lambda label: label
)
def test_labels_of_atoms_are_elements(tmp_path, label):
    symbols = [label.format(a.GetSymbol(), a.GetIdx() + 1) for a in ETHANOL.GetAtoms()]
    _, parsed, _ = convert(written(tmp_path, xyz_frame(ETHANOL, "", None, symbols)))
    assert smiles_of(parsed[1]) == "CCO"


@pytest.mark.parametrize("label", ["Xx", "Q7", "CA1", "0", "?", "Xe_"])
def test_what_is_no_element_is_rejected_with_line_and_label(tmp_path, label):
    symbols = ["C", label, *deuterated("H")[2:]]
    path = written(tmp_path, xyz_frame(ETHANOL, ""), xyz_frame(ETHANOL, "", None, symbols))
    reader = get_reader("xyz")
    second = list(reader.read(path))[1]
    if label == "Xe_":  # an element, whose bonds cannot be found
        with pytest.raises(MoleculeError, match="^(perceived )?bonds"):
            reader.parse(second)
        return
    with pytest.raises(MoleculeError, match=rf"line 15: atom '{label.replace('?', '.')}'"):
        reader.parse(second)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [("O x 0 0", "line 5 has 'x', expected a number"), ("O 0 0", "line 5 has 3 columns")],
)
def test_broken_lines_are_named(tmp_path, cells, reason):
    lines = xyz_frame(ETHANOL, "").splitlines()
    lines[4] = cells
    reader = get_reader("xyz")
    (raw,) = reader.read(written(tmp_path, "\n".join(lines)))
    with pytest.raises(MoleculeError, match=reason):
        reader.parse(raw)


def gdb(mol, index, values):
    rows = zip(mol.GetAtoms(), positions(mol)[0], strict=True)
    atoms = "".join(
        f"{a.GetSymbol()}\t" + "\t".join(f"{v:.6f}" for v in p) + "\t1.3*^-6\n" for a, p in rows
    )
    numbers = "\t".join(map(str, values))
    after = "1.0\t2.0\nC\tC\t\nInChI=1S\tInChI\t\n"
    return f"{mol.GetNumAtoms()}\ngdb {index}\t{numbers}\t\n{atoms}{after}"


def test_raw_files_of_qm9_have_names_properties_and_units(tmp_path):
    values = [157.7, 157.7, 157.7, 0.0, 13.2, -0.4, 0.1, 0.5, 35.4, "4.5*^-2", *[-40.5] * 4, 6.5]
    paths = []
    for index, smiles in enumerate(("C", "CCO", "C#N"), start=1):
        paths.append(tmp_path / f"dsgdb9nsd_{index:06d}.xyz")
        paths[-1].write_text(gdb(embedded(smiles), index, values))
    reader = get_reader("xyz")
    facts = reader.facts(paths)
    assert [label.name for label in facts.labels] == GDB_VALUES
    units = {label.name: label.unit for label in facts.labels}
    assert (units["A"], units["mu"], units["homo"], units["cv"]) == ("GHz", "D", "Ha", "cal/mol/K")
    raws = [raw for path in paths for raw in reader.read(path)]
    assert [raw.name for raw in raws] == ["gdb_1", "gdb_2", "gdb_3"]
    parsed = [reader.parse(raw) for raw in raws]
    assert [smiles_of(one) for one in parsed] == ["C", "CCO", "C#N"]
    assert parsed[0].y[9] == 0.045 and facts.forces_unit is None
    together = written(tmp_path, *(path.read_text() for path in paths))
    assert [raw.name for raw in reader.read(together)] == ["gdb_1", "gdb_2", "gdb_3"]
    in_ev = get_reader("xyz", Options(label_columns=("homo=eV",)))
    assert in_ev.parse(next(in_ev.read(paths[0]))).y[0] == pytest.approx(-0.4 * 27.211386246)


def test_charges_come_from_the_comment_or_from_the_user(tmp_path):
    acetate = embedded("CC(=O)[O-]")
    for comment in ("charge=-1", "Total_Charge=-1.0", "acetate charge: -1", "charge -1"):
        facts, parsed, _ = convert(written(tmp_path, xyz_frame(acetate, comment)))
        assert smiles_of(parsed[1]) == "CC(=O)[O-]"
        assert [role for role, _ in facts.taken] == ["charge"]
    path = written(tmp_path, xyz_frame(acetate, ""), xyz_frame(ETHANOL, "charge=0"))
    assert len(convert(path, Options(charge=-1))[1]) == 2
    (raw, _) = get_reader("xyz").read(path)
    with pytest.raises(MoleculeError, match="fit C2H3O2 with charge 0; --charge"):
        get_reader("xyz").parse(raw)


def test_missing_values_are_nan_and_keys_of_later_frames_are_noted(tmp_path):
    frames = [xyz_frame(ETHANOL, f"gap={value}") for value in ("1.5", "nan", "NA")] * 40
    path = written(tmp_path, *frames, xyz_frame(ETHANOL, "gap=2.5 late=7"))
    facts, parsed, _ = convert(path)
    values = [one.y[0] for one in parsed.values()]
    assert facts.labels == (Label("gap"),) and values[0] == 1.5 and np.isnan(values[1:3]).all()
    notes = collections.Counter(note for one in parsed.values() for note in one.notes)
    assert notes == {"not read, as the first 100 frames lack it: late": 1}


def test_a_value_of_the_comment_can_be_the_name(tmp_path):
    path = written(tmp_path, xyz_frame(ETHANOL, "id=x7 energy=1.5"))
    (raw,) = get_reader("xyz", Options(name_column="id")).read(path)
    assert raw.name == "x7"


def test_words_beside_pairs_of_a_comment_are_listed(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("1\nÄthanol energy = -154.1 Ha\nHe 0 0 0\n")
    facts = get_reader("xyz").facts([path])
    assert facts.left_out == (("comment", "text, such as 'Äthanol Ha'"),)


@pytest.mark.parametrize(
    ("comment", "name"),
    [
        ("mol0", "mol0"),
        ("  ethanol, conformer 3 ", "ethanol, conformer 3"),
        ("", ""),
        ("17", ""),
        ("0 1", ""),  # charge and multiplicity
        ("-154.25", ""),
        ("acetate charge: -1", ""),
        ("energy: -20.5 xtb: 6.4.1", ""),
        ("name=x energy=1.5", ""),
        ("x" * 200, ""),
    ],
)
def test_a_comment_of_plain_text_is_the_name(tmp_path, comment, name):
    path = written(tmp_path, xyz_frame(ETHANOL, comment))
    reader = get_reader("xyz")
    assert [raw.name for raw in reader.read(path)] == [name]
    facts = reader.facts([path])
    assert (("name", "comment") in facts.taken) == bool(name)
    assert not (name and "comment" in dict(facts.left_out))


def test_a_value_that_is_chosen_as_the_name_goes_before_text(tmp_path):
    path = written(tmp_path, xyz_frame(ETHANOL, "id=x7"), xyz_frame(ETHANOL, "ethanol"))
    reader = get_reader("xyz", Options(name_column="id"))
    assert [raw.name for raw in reader.read(path)] == ["x7", ""]
    assert dict(reader.facts([path]).left_out)["comment"] == "text, such as 'ethanol'"
