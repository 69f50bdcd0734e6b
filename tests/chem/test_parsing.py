import subprocess
import sys

import numpy as np
import pytest
from ogb.utils.features import (
    allowable_features,
    atom_to_feature_vector,
    bond_to_feature_vector,
    get_atom_feature_dims,
    get_bond_feature_dims,
)
from rdkit import Chem
from rdkit.Chem import rdCIPLabeler

from fixtures.molecules import NCI, SMILES, make_record
from msde.chem import features, native, parsing
from msde.chem.parsing import MoleculeError
from msde.ops import build


def test_vocabulary_sizes_are_those_of_ogb():
    assert get_atom_feature_dims() == parsing.ATOM_SIZES
    assert get_bond_feature_dims() == parsing.BOND_SIZES
    assert allowable_features["possible_chirality_list"] == parsing.ATOM_VOCABULARY["chirality"]


# What real molecules lack: metals, dative bonds, radicals, charges and geometries out of the
# ordinary, dummies, aromatic rings so large that they have double bonds with stereo before.
UNUSUAL = [
    "[NH3]->[Pt](Cl)(Cl)<-[NH3]",
    "[Fe+2]",
    "[U+6]",
    "[O][O]",
    "[CH3]",
    "*",
    "FS(F)(F)(F)(F)F",
    "F[P@SP1](Cl)(Br)I",
    "[H][H]",
    "C1=C/C=C/C=C\\C=C\\C=C/C=C/C=C/C=C/C=C\\1",
    "CC=CC |w:1.0|",
]


def real_molecules(every=5):
    parsing.silence_rdkit()
    lines = NCI.read_text().splitlines()[:1000:every]
    mols = [Chem.MolFromSmiles(line.split()[0]) for line in [*lines, *SMILES]]
    return [*filter(None, mols), *map(Chem.MolFromSmiles, UNUSUAL)]


def topology(mol):
    return parsing.record_from_mol(mol, uid=0, topology_only=True)


def assert_ogb(mol):
    record = topology(mol)
    assert record.z.tolist() == [a.GetAtomicNum() for a in mol.GetAtoms()]
    assert record.x.tolist() == [atom_to_feature_vector(a) for a in mol.GetAtoms()]
    assert record.bond_attr.tolist() == [bond_to_feature_vector(b) for b in mol.GetBonds()]
    ends = [sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()]
    assert record.bond_index.tolist() == ends


def test_features_are_those_of_ogb_on_real_molecules():
    for mol in real_molecules():
        assert_ogb(mol)
        assert_ogb(Chem.AddHs(mol))


@pytest.mark.parametrize("stereo", ["STEREOATROPCW", "STEREOATROPCCW"])
def test_axes_of_atropisomers_have_the_last_code(stereo):  # OGB fails on them
    mol = Chem.MolFromSmiles("Cc1cccc(F)c1-c1c(Cl)cccc1Br")
    axis = mol.GetBondBetweenAtoms(7, 8)
    axis.SetStereo(Chem.BondStereo.names[stereo])
    codes = topology(mol).bond_attr[:, 1]
    assert codes[axis.GetIdx()] == parsing.BOND_SIZES[1] - 1
    assert np.count_nonzero(codes) == 1


def test_an_atom_with_too_many_neighbours_is_refused():
    with pytest.raises(MoleculeError, match="degree above 255"):
        topology(Chem.MolFromSmiles("*" + "(C)" * 300))


def test_cip_labels_are_those_of_the_new_algorithm():
    seen = set()
    pseudo = ["C[C@H](O)[C@@H](O)[C@@H](C)O", "O[C@H]1CC[C@@H](C)CC1", "O[C@H]1CC[C@H](C)CC1"]
    centres = ["C[C@H](N)O", "C[C@@H](N)O"]
    for mol in [*real_molecules(), *map(Chem.MolFromSmiles, pseudo + centres)]:
        labelled = Chem.Mol(mol)
        rdCIPLabeler.AssignCIPLabels(labelled)
        props = [atom.GetPropsAsDict(autoConvertStrings=False) for atom in labelled.GetAtoms()]
        labels = [p.get("_CIPCode", "") for p in props]
        assert [parsing.CIP_LABELS[code] for code in topology(mol).cip] == labels
        seen.update(labels)
    assert seen == set(parsing.CIP_LABELS)


def test_extended_edges_are_those_up_to_four_bonds_apart():
    for mol in real_molecules(every=50):
        record = topology(mol)
        distance = Chem.GetDistanceMatrix(mol)
        near = (distance > 0) & (distance <= 4)
        assert np.array_equal(record.extended_source, np.nonzero(near)[1])
        assert np.array_equal(record.extended_degree, near.sum(axis=1))


def test_extended_edges_are_the_published_ones():
    from fixtures.parity import arrays

    data = arrays("batch")
    num_atoms = len(data["batch"])
    source, degree = parsing.extended_edges(data["edge_index"].T.numpy(), num_atoms)
    edges = zip(source.tolist(), np.repeat(np.arange(num_atoms), degree).tolist(), strict=True)
    assert sorted(edges) == sorted(map(tuple, data["extended_edge_index"].T.tolist()))


def test_features_of_a_published_batch():
    from fixtures.parity import DIR, arrays

    data = arrays("batch")
    with np.load(DIR / "batch.npz", allow_pickle=False) as file:
        blocks = file["molblock"]
    mols = [parsing.mol_from_molblock(str(block)) for block in blocks]
    made = [parsing.record_from_mol(mol, uid) for uid, mol in enumerate(mols)]
    assert np.array_equal(np.concatenate([r.x for r in made]), data["x"])
    pos = np.concatenate([r.pos[0] for r in made])
    assert np.abs(pos - data["pos"].numpy()).max() < 1e-3


def test_positions_are_centred_and_conformers_seeded():
    one, again = make_record(SMILES[2], line=7), make_record(SMILES[2], line=7)
    other = make_record(SMILES[2], line=8)
    assert np.abs(one.pos.mean(axis=1)).max() < 1e-5
    assert np.array_equal(one.pos, again.pos)
    assert not np.allclose(one.pos, other.pos)


def test_hydrogens_are_removed_unless_kept():
    assert len(make_record("CO").z) == 2
    assert sorted(make_record("CO", keep_hydrogens=True).z) == [1, 1, 1, 1, 6, 8]


def test_cip_labels_do_not_depend_on_the_order_of_atoms():
    one, other = make_record("C[C@H](N)C(=O)O"), make_record("OC(=O)[C@@H](N)C")
    assert one.cip.max() > 0
    assert sorted(zip(one.z, one.cip, strict=True)) == sorted(zip(other.z, other.cip, strict=True))


@pytest.mark.parametrize(
    ("block_edit", "reason"),
    [
        (lambda m: m.GetConformer().Set3D(False), "no 3D conformer"),
        (lambda m: m.GetConformer().SetAtomPosition(0, [float("nan")] * 3), "not finite"),
        (
            lambda m: m.GetConformer().SetAtomPosition(0, m.GetConformer().GetAtomPosition(1)),
            "closer than",
        ),
    ],
)
def test_broken_geometries_are_refused(block_edit, reason):
    mol = parsing.embed_conformer(Chem.MolFromSmiles("CCO"), seed=1)
    block_edit(mol)
    with pytest.raises(MoleculeError, match=reason):
        parsing.record_from_mol(mol, uid=0)


@pytest.mark.parametrize("num_atoms", [12, 1200])  # all pairs at once, and sorted
@pytest.mark.parametrize(("gap", "broken"), [(0.009, True), (0.011, False), (0.2, False)])
def test_close_atoms_are_found_in_any_conformer(num_atoms, gap, broken):
    pos = np.random.default_rng(0).permuted(np.arange(3.0 * num_atoms)).reshape(-1, 3)
    pos = np.stack([pos, pos])
    pos[1, 5] = pos[1, num_atoms - 2] + [0, 0, gap]
    for shifted in (pos, pos + 1e4, pos.astype(np.float32)):
        if broken:
            with pytest.raises(MoleculeError, match="closer than"):
                parsing.check_geometry(shifted)
        else:
            parsing.check_geometry(shifted)


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C(C", "SMILES syntax"), ("CN(C)(C)(C)C", "valence"), ("c1cccc1C", "kekul")],
)
def test_unparsable_smiles_say_why(smiles, reason):
    parsing.silence_rdkit()
    with pytest.raises(MoleculeError, match=f"(?i){reason}"):
        parsing.mol_from_smiles(smiles)


def test_uid_is_stable():
    assert parsing.molecule_uid("a.smi", 1) == 0x0D52B1CAF095992D
    assert parsing.molecule_uid("a.smi", 1) != parsing.molecule_uid("a.smi", 11)


# Each of them has something that few others have in RDKit's binary form, or is left to getters.
SPECIAL = [
    *("[13CH4]", "[2H]O[2H]", "[CH3]", "C[O]", "[O-][n+]1ccccc1", "[Na+].[Cl-].O", "[2H]C(F)Cl"),
    *("*", "*C*", "[*:1]CC[*:300]", "[CH3:7]O", "[1*]C[2*]", "[nH]1cccc1", "c1ccc2ccccc2c1"),
    *("F/C=C/F", r"F/C=C\F", "CC=NO", "C[C@H](N)[C@@H](C)O", "F[P@SP1](Cl)(Br)I", "C=[Si]=C"),
    *("F[As@TB1](Cl)(Br)(N)O", "C[Co@OH1](F)(Cl)(Br)(I)N", "OC(Cl)=[C@AL1]=C(C)F", "[Fe]", "[U+6]"),
    *("[NH3]->[Pt](Cl)(Cl)<-[NH3]", "[Fe+2].[CH-]1C=CC=C1", "C1CC1~C", "F[S](F)(F)(F)(F)F"),
    *("CC=CC |w:1.0|", "C" * 255, "C" * 256, "C" * 300 + "/C=C/[C@H](N)O", "*" + "(C)" * 300),
    *("C1" + "C" * 260 + "1", "[C-]#[O+]", "[Cu+5]", "[C-4]", "C[N+](C)(C)C.[I-]", "C$C", "[H][H]"),
    *("CC[C@H](C)O |&1:2|", "Cc1cccc(F)c1-c1c(Cl)cccc1Br |wU:7.7|", "CCCC |Sg:n:1,2:2:ht|"),
    "C1=C/C=C/C=C\\C=C\\C=C/C=C/C=C/C=C/C=C\\1",
]


def special_molecules():
    mols = [Chem.MolFromSmiles(smiles) for smiles in [*SPECIAL, *SMILES, *UNUSUAL]]
    axis = Chem.MolFromSmiles("Cc1cccc(F)c1-c1c(Cl)cccc1Br")
    axis.GetBondBetweenAtoms(7, 8).SetStereo(Chem.BondStereo.STEREOATROPCW)
    ends = Chem.MolFromSmiles("*CO")  # of a bond to several atoms, and a label
    ends.GetBondWithIdx(0).SetProp("_MolFileBondEndPts", "(2 2 3)")
    ends.GetAtomWithIdx(0).SetProp("dummyLabel", "R1")
    assert None not in mols
    return [
        *mols,
        axis,
        ends,
        Chem.MolFromSequence("GAC"),
        Chem.MolFromSmiles("CO", sanitize=False),
    ]


def both_ways(mol, topology_only):
    """Return what the library and what the getters say, the latter as a message if they raise."""
    flags = parsing._NO_CONFORMERS if topology_only else parsing._IN_DOUBLE
    try:
        expected = features.features_by_getters(mol, topology_only)
    except (MoleculeError, RuntimeError) as error:
        expected = str(error)
    return native.features(mol.ToBinary(flags)), expected


def assert_same(found, expected):
    for field, one, other in zip(expected._fields, found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), field
        assert one.tobytes() == other.tobytes(), field


@pytest.fixture
def library():
    if native._library() is None:
        pytest.skip("there is no C++ compiler")


def test_library_and_getters_agree_on_real_molecules(library):
    parsing.silence_rdkit()
    lines = NCI.read_text().splitlines()[::5]
    mols = [mol for line in lines if (mol := Chem.MolFromSmiles(line.split()[0]))]
    assert len(mols) > 900
    for mol in mols:
        for each in (mol, Chem.AddHs(mol)):
            assert_same(*both_ways(each, topology_only=True))


def test_library_and_getters_agree_on_positions(library):
    mols = [parsing.embed_conformer(Chem.MolFromSmiles(s), 1, True) for s in SMILES[:7]]
    mols += [parsing.embed_conformers(Chem.MolFromSmiles("CC(O)CC"), 3, 5)]
    assert mols[-1].GetNumConformers() > 1
    for mol in mols[:7]:
        for keep in (False, True):  # as an SD file holds them
            mols.append(parsing.mol_from_molblock(Chem.MolToMolBlock(mol), keep))
    drawn = Chem.Mol(mols[-1])
    drawn.AddConformer(Chem.Conformer(drawn.GetNumAtoms()), assignId=True)
    drawn.GetConformer(1).Set3D(False)
    for mol in [*mols, drawn]:
        found, expected = both_ways(mol, topology_only=False)
        assert_same(found, expected)
        assert found.pos.any() or mol.GetNumAtoms() == 1


def test_library_and_getters_agree_on_special_molecules_or_it_leaves_them(library):
    left = 0
    for mol in special_molecules():
        found, expected = both_ways(mol, topology_only=True)
        if found is None:
            left += 1
        else:
            assert_same(found, expected)
    assert left <= 6


@pytest.mark.parametrize(
    "mol",
    [
        Chem.MolFromSmarts("[C,N]O"),
        Chem.MolFromSmiles("CCO", sanitize=False),
        Chem.MolFromSmiles("C" * 1025),
        Chem.MolFromSequence("GAC"),
        Chem.MolFromSmiles("CC[C@H](C)O |&1:2|"),
        Chem.MolFromSmiles("CCO"),  # without the positions that are asked for
    ],
)
def test_molecules_that_the_library_leaves(library, mol):
    assert native.features(mol.ToBinary(parsing._IN_DOUBLE)) is None


def test_damaged_binaries_are_left(library):
    mol = parsing.embed_conformer(Chem.MolFromSmiles("C[C@H](N)/C=C/c1ccccc1"), 1)
    whole = mol.ToBinary(parsing._IN_DOUBLE)
    assert native.features(whole) is not None
    assert all(native.features(whole[:size]) is None for size in range(len(whole)))
    assert native.features(whole + b"\0") is None
    for at in (8, 12):  # another version of the format
        other = bytearray(whole)
        other[at] += 9
        assert native.features(bytes(other)) is None
    for at in range(len(whole)):  # whatever it makes of these
        for value in (0, 1, 127, 255):
            other = bytearray(whole)
            other[at] = value
            native.features(bytes(other))


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Start as on a machine where nothing was ever compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path / "msde"
    native._library.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value"), [("CXX", "/no/compiler"), ("CXX", "false"), ("PATH", "")]
)
def test_without_a_compiler_records_are_the_same(fresh, monkeypatch, caplog, variable, value):
    mol = parsing.embed_conformer(Chem.MolFromSmiles(SMILES[2]), 1)
    expected = parsing.record_from_mol(mol, uid=1, name="one")
    native._library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh.parent / "other"))
    monkeypatch.setenv(variable, value)
    for _ in range(2):
        record = parsing.record_from_mol(mol, uid=1, name="one")
    for field in vars(expected):
        assert np.array_equal(getattr(record, field), getattr(expected, field)), field
    assert native._library() is None
    assert len(caplog.records) == 1 and "without C++" in caplog.text


def test_library_is_compiled_once(library, fresh, monkeypatch):
    assert native._library() is not None
    assert [path.name for path in fresh.iterdir() if path.suffix != ".so"] == [".lock"]
    monkeypatch.setattr(subprocess, "run", None)
    native._library.cache_clear()
    assert native._library() is not None


@pytest.fixture
def compiler(library, tmp_path, monkeypatch):
    """A compiler that does what `command` of a shell says; "$@" are its arguments."""

    def make(command):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return make


def test_of_processes_that_need_a_library_at_the_same_time_one_compiles(compiler, fresh):
    log = fresh.parent / "log"
    compiler(f'echo compiled >> {log}\n{build._compiler()[0]} "$@"')
    code = "from msde.chem import native; assert native._library() is not None"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert log.read_text() == "compiled\n"
    assert sorted(path.suffix for path in fresh.iterdir()) == ["", ".so"]


def test_a_library_in_use_is_not_replaced(compiler, fresh):
    # Another machine with the same home, where locks do not reach, compiles it meanwhile.
    find = 'while [ "$1" != -o ]; do shift; done'
    compiler(f'{find}\necho ours > "$2"\necho theirs > {fresh}/"$(basename "$2")"')
    assert build.compiled(native.SOURCE, native.FLAGS).read_text() == "theirs\n"


def test_the_warning_says_what_the_compiler_said(compiler, fresh, caplog):
    compiler("echo no such header >&2; exit 1")
    assert native._library() is None
    assert "no such header" in caplog.text
