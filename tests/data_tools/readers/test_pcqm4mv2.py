import gzip
import tarfile

import pytest
from rdkit import Chem

from fixtures.readers import (
    ALL_HYDROGENS,
    SMILES,
    convert,
    embedded,
    recognised,
    sd_record,
    smiles_of,
)
from msde.chem.record import Origin
from msde.data_tools.readers import Label, Options, get_reader
from msde.errors import MsdeError


def pcqm4mv2(folder, table_of=SMILES, name="pcqm4m-v2-train.sdf.gz"):
    with gzip.open(folder / name, "wt") as file:
        file.writelines(sd_record(Chem.RemoveHs(embedded(smiles))) for smiles in SMILES)
    with gzip.open(folder / "data.csv.gz", "wt") as file:
        file.write("idx,smiles,homolumogap\n")
        file.writelines(f"{i},{smiles},{i}.5\n" for i, smiles in enumerate(table_of))
        file.write(f"{len(table_of)},CCCC,\n")
    return folder / name


def test_geometry_and_gap_are_joined(tmp_path):
    path = pcqm4mv2(tmp_path)
    assert recognised(path) == recognised(tmp_path / "data.csv.gz") == "pcqm4mv2"
    facts, parsed, rejected = convert(path)
    assert facts.labels == (Label("homolumogap", "eV"),) and not rejected
    assert [one.y for one in parsed.values()] == [(i + 0.5,) for i in range(len(SMILES))]
    assert [smiles_of(one) for one in parsed.values()] == [Chem.CanonSmiles(s) for s in SMILES]
    assert all(one.origin == Origin.SOURCE for one in parsed.values())
    assert not list(get_reader("pcqm4mv2").read(tmp_path / "data.csv.gz"))
    assert sum(convert(path, ALL_HYDROGENS)[2].values()) == len(SMILES)


def test_rows_of_other_molecules_are_rejected(tmp_path):
    path = pcqm4mv2(tmp_path, [SMILES[1], SMILES[0], *SMILES[2:4]])
    _, parsed, rejected = convert(path)
    # The last record meets the row after the table's last, of another molecule.
    assert (len(parsed), rejected) == (2, {"wrong label alignment": 3})


def test_without_the_table_there_are_no_labels_and_a_note_says_so(tmp_path):
    path = pcqm4mv2(tmp_path)
    (tmp_path / "data.csv.gz").unlink()
    with pytest.raises(MsdeError, match="data.csv.gz is not beside"):
        get_reader("pcqm4mv2", Options(label_columns=("homolumogap",))).facts([path])
    facts, parsed, rejected = convert(path)
    assert facts.labels == () and facts.notes[0].startswith("data.csv.gz is not beside")
    assert len(parsed) == len(SMILES) and not rejected


def test_the_published_archive_is_read_as_it_is(tmp_path):
    path = pcqm4mv2(tmp_path)
    plain = path.with_suffix("")
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    archive = tmp_path / f"{plain.name}.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(plain, f"folder/{plain.name}")
    assert recognised(archive) == "pcqm4mv2"
    reader = get_reader("pcqm4mv2")
    assert list(reader.read(archive)) == list(reader.read(plain)) == list(reader.read(path))
