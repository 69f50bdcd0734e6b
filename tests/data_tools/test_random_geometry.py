"""Random SD and XYZ files against what was written into them, RDKit and ASE: nothing differs."""

import io

import numpy as np
import pytest
from rdkit import Chem

from fixtures.data_sets import molecules
from fixtures.readers import ALL_HYDROGENS, SMILES, embedded, numbers, positions
from fixtures.seeds import seeds
from msde.chem.parsing import MISSING
from msde.chem.rebuild import mol_from_record
from msde.data.shards import read_manifest
from msde.data_tools.convert import convert

POOL = [embedded(smiles) for smiles in [*SMILES, "C", "O", "C#N", "CS(=O)(=O)C", "Nc1ncc[nH]1"]]
TITLES = ["", "x", "Ä 2", "  padded  ", "a;b, c", "1e5", "M  END", "> <gap>", "$$$", "naïve|é", "-"]
PROPERTIES = ["gap", "logD, pH=7.4", "IC50 [nM]", "é_tot", "a b", "x=y", "<mu>", "E(0)", "2", "α>β"]
NUMBERS = ["1.5", "-3", " 2.50 ", "1e-7", "+4.0", "NA", "", "nan", "None", "n/a", "-"]
TEXTS = ["good", ">100", "two\nlines", "Ä", "1,5", "12 mg", "<5", "> <fake>"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "latin-1"]
ENDS = ["\n", "\r\n", "\r"]


def number(text):
    return np.nan if text.strip().lower() in MISSING else float(text)


def is_label(values):
    try:
        list(map(number, values))
    except ValueError:
        return False
    return True


def same_molecule(record, mol):
    """The record is the molecule: SMILES, charges, positions about their mean."""
    found, expected = (
        Chem.CanonSmiles(Chem.MolToSmiles(m)) for m in (mol_from_record(record), mol)
    )
    assert found == expected
    place = positions(mol)[0]
    assert np.array_equal(record.z, numbers(mol))
    assert np.abs(record.pos[0] - (place - place.mean(0))).max() < 1e-4


def write_sdf(rng, path):
    """Write a random SD file; return title and properties of each record."""
    encoding, end = rng.choice(ENCODINGS), rng.choice(ENDS)
    names = rng.choice(PROPERTIES, rng.integers(0, 5), replace=False).tolist()
    if encoding == "latin-1":
        names = [name for name in names if name != "α>β"]
    has_text = {name for name in names if rng.random() < 0.3}
    records, text = [], []
    for mol in rng.choice(len(POOL), rng.integers(1, 8)):
        title = str(rng.choice(TITLES))
        values = {}
        for name in names:
            if rng.random() < 0.8:
                pool = TEXTS if name in has_text and rng.random() < 0.7 else NUMBERS
                values[name] = str(rng.choice(pool))
        head = rng.choice([">  <{}>", "> <{}>", "> 25 <{}> (7)", ">  <{}>  "])
        lines = [title, *Chem.MolToMolBlock(POOL[mol]).split("\n")[1:-1]]
        for name, value in values.items():
            lines += [head.format(name), *value.split("\n"), *([] if not value.strip() else [""])]
        records.append((POOL[mol], title, values))
        text += [*lines, "$$$$"]
    path.write_bytes((end.join(text) + end * (rng.random() < 0.8)).encode(encoding))
    return records, "\n".join(text)


def check_sdf(seed, folder):
    rng = np.random.default_rng([11, seed])
    path = folder / "m.sdf"
    records, text = write_sdf(rng, path)
    counts = convert([path], folder / "out", options=ALL_HYDROGENS)
    assert counts["converted"] == counts["read"] == len(records)
    manifest = read_manifest(folder / "out")
    labels = [label["name"] for label in manifest["labels"]]
    names = dict.fromkeys(name for _, _, values in records for name in values)
    wanted = [n for n in names if is_label([v[n] for _, _, v in records if n in v])]
    assert labels == wanted
    assert set(names) == {*labels, *manifest["fields"]["left_out"]}
    independent = Chem.ForwardSDMolSupplier(io.BytesIO(text.encode()), removeHs=False)
    for record, (mol, title, values) in zip(molecules(folder / "out"), records, strict=True):
        assert record.name == title.strip()
        y = [number(values.get(name, "")) for name in labels]
        assert np.array_equal(record.y, y, equal_nan=True)
        same_molecule(record, mol)
        other = next(independent)
        assert other.GetProp("_Name").strip() == record.name
        for name, value in zip(labels, record.y, strict=True):
            if not np.isnan(value) and ">" not in name:
                assert float(other.GetProp(name)) == value


def write_xyz(rng, path):
    """Write a random extended XYZ file; return molecules, energies, forces."""
    neutral = [mol for mol in POOL if not any(a.GetFormalCharge() for a in mol.GetAtoms())]
    energy = rng.choice(["energy", "REF_energy", "dft_energy", None])
    force = rng.choice(["forces", "REF_forces", "dft_forces", None])
    gap, end, frames, text = str(rng.choice([" ", "\t", "   "])), rng.choice(ENDS), [], []
    for place in rng.choice(len(neutral), rng.integers(1, 6)):
        mol = neutral[place]
        forces = rng.normal(size=(mol.GetNumAtoms(), 3)) if force else None
        value = rng.normal()
        pairs = [f"Properties=species:S:1:pos:R:3{f':{force}:R:3' if force else ''}"]
        pairs += [f"{energy}={value!r}"] if energy else []
        pairs += ['comment="two words, ü"', 'pbc="F F F"']
        text += [str(mol.GetNumAtoms()), " ".join(pairs)]
        for i, atom in enumerate(mol.GetAtoms()):
            cells = positions(mol)[0][i].tolist() + ([] if forces is None else forces[i].tolist())
            text.append(gap.join([atom.GetSymbol(), *map(repr, cells)]))
        frames.append((mol, value if energy else None, forces))
    path.write_bytes((end.join(text) + end).encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))
    return frames, "\n".join(text) + "\n", energy


def check_xyz(seed, folder):
    from ase.io import read

    rng = np.random.default_rng([13, seed])
    path = folder / "m.xyz"
    frames, text, energy = write_xyz(rng, path)
    counts = convert([path], folder / "out", "xyz")
    assert counts["converted"] == counts["read"] == len(frames)
    manifest = read_manifest(folder / "out")
    labels = [label["name"] for label in manifest["labels"]]
    assert len(labels) == (energy is not None)
    everything = read(io.StringIO(text), ":", format="extxyz")
    for record, atoms, frame in zip(molecules(folder / "out"), everything, frames, strict=True):
        mol, value, forces = frame
        same_molecule(record, mol)
        assert np.array_equal(record.z, atoms.numbers)
        assert record.y.tolist() == ([] if value is None else [value])
        if forces is None:
            assert len(record.forces) == 0
        else:
            assert np.abs(record.forces[0] - forces).max() < 1e-6


@pytest.mark.parametrize("seed", seeds(15, 135))
def test_sd_files_agree_with_rdkit(tmp_path, seed):
    check_sdf(seed, tmp_path)


@pytest.mark.parametrize("seed", seeds(15, 125))
def test_xyz_files_agree_with_ase(tmp_path, seed):
    check_xyz(seed, tmp_path)
