import subprocess
import sys

import numpy as np
import pytest
from rdkit import Chem

from fixtures.molecules import NCI, SMILES, UNUSUAL
from msde.chem import features, native, record
from msde.chem.conformers import embed_conformer, embed_conformers
from msde.chem.parsing import mol_from_molblock, silence_rdkit
from msde.chem.record import record_from_mol
from msde.chem.vocabulary import MoleculeError
from msde.ops import build

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
    flags = record._NO_CONFORMERS if topology_only else record._IN_DOUBLE
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
    silence_rdkit()
    lines = NCI.read_text().splitlines()[::5]
    mols = [mol for line in lines if (mol := Chem.MolFromSmiles(line.split()[0]))]
    assert len(mols) > 900
    for mol in mols:
        for each in (mol, Chem.AddHs(mol)):
            assert_same(*both_ways(each, topology_only=True))


def test_library_and_getters_agree_on_positions(library):
    mols = [embed_conformer(Chem.MolFromSmiles(s), 1, True) for s in SMILES[:7]]
    mols += [embed_conformers(Chem.MolFromSmiles("CC(O)CC"), 3, 5)]
    assert mols[-1].GetNumConformers() > 1
    for mol in mols[:7]:
        for keep in (False, True):  # as an SD file holds them
            mols.append(mol_from_molblock(Chem.MolToMolBlock(mol), keep))
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
    assert native.features(mol.ToBinary(record._IN_DOUBLE)) is None


def test_damaged_binaries_are_left(library):
    mol = embed_conformer(Chem.MolFromSmiles("C[C@H](N)/C=C/c1ccccc1"), 1)
    whole = mol.ToBinary(record._IN_DOUBLE)
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
    mol = embed_conformer(Chem.MolFromSmiles(SMILES[2]), 1)
    expected = record_from_mol(mol, uid=1, name="one")
    native._library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh.parent / "other"))
    monkeypatch.setenv(variable, value)
    for _ in range(2):
        record = record_from_mol(mol, uid=1, name="one")
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
