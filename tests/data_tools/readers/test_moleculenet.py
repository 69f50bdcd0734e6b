import csv
import gzip

import numpy as np
import pytest

from fixtures.readers import convert, real
from msde.chem.record import Origin
from msde.data_tools.readers import Label, Options


@pytest.mark.parametrize(
    ("name", "labels", "unit", "bad"),
    [
        ("bbbp.csv", ["p_np"], "", 11),
        pytest.param("tox21.csv", 12, "", 8, marks=pytest.mark.slow),
        pytest.param("sider.csv", 27, "", 20, marks=pytest.mark.slow),
        ("clintox.csv", ["FDA_APPROVED", "CT_TOX"], "", 0),
        ("esol.csv", ["measured log solubility in mols per litre"], "log10(mol/L)", 0),
        ("freesolv.csv", ["expt"], "kcal/mol", 0),
        ("toxcast.csv.gz", 617, "", 0),
        pytest.param("muv.csv.gz", 17, "", 0, marks=pytest.mark.slow),
        ("hiv.csv.gz", ["HIV_active"], "", 1),
        ("malaria.csv", ["activity"], "", 0),
        ("cep.csv.gz", ["PCE"], "%", 0),
    ],
)
def test_labels_of_moleculenet(name, labels, unit, bad):
    path = real(f"moleculenet/{name}")
    whole = name in ("bbbp.csv", "tox21.csv", "sider.csv", "esol.csv", "freesolv.csv")
    facts, parsed, rejected = convert(path, Options(conformers=0), None if whole else 400)
    names = [label.name for label in facts.labels]
    assert len(names) == labels if isinstance(labels, int) else names == labels
    assert {label.unit for label in facts.labels} == {unit}
    assert sum(rejected.values()) == bad
    assert all(p.origin == Origin.NO_GEOMETRY for p in parsed.values())
    with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as file:
        rows = dict(enumerate(csv.DictReader(file), start=2))
    for line, one in list(parsed.items())[:50]:
        texts = [rows[line][label] for label in names]
        assert [np.isnan(y) for y in one.y] == [text == "" for text in texts]
        assert [y for y in one.y if not np.isnan(y)] == [float(text) for text in texts if text]


def test_units_of_qm9_and_of_a_database():
    facts, parsed, _ = convert(real("qm9/micro_qm9.csv"), Options(conformers=0), 10)
    units = {label.name: label.unit for label in facts.labels}
    assert len(units) == 19
    assert (units["mu"], units["r2"], units["u0_atom"]) == ("D", "a0^2", "kcal/mol")
    assert parsed[2].y[3:5] == (0, 13.21)
    facts, parsed, _ = convert(real("qm9/qm9_500.db"), limit=3)
    # The file does not say that it is eV; that it is tells the table above, in Hartree.
    assert facts.labels == (Label("energy_U0", ""),)
    assert parsed[1].y[0] == pytest.approx(-40.47893 * 27.211386, abs=1e-3)
    assert parsed[1].mol.GetNumAtoms() == 5


def test_values_are_converted_to_the_unit_of_the_user(tmp_path):
    path = tmp_path / "freesolv.csv"
    path.write_text("iupac,smiles,expt,calc\nmethane,C,2.0,1.0\nethane,CC,,1.0\n")
    facts, parsed, _ = convert(path, Options(conformers=0, label_columns=("expt=kJ/mol",)))
    assert facts.labels == (Label("expt", "kJ/mol"),)
    assert parsed[2].y[0] == pytest.approx(8.368) and np.isnan(parsed[3].y[0])
    assert "expt is converted from kcal/mol to kJ/mol" in facts.notes
