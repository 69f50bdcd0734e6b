import pytest

from fixtures.readers import convert, recognised
from msde.data_tools.readers import Label

WATER = "[H]O[H] |(0.96,0,;0,0,;-0.24,0.93,)|"  # as RDKit writes z = 0
AMMONIA = "[H]N([H])[H] |(1.01,0,;0,0,;-0.34,0.95,;-0.34,-0.47,0.82)|"


@pytest.mark.parametrize("cells", [[WATER, AMMONIA], [AMMONIA, WATER], [WATER, WATER, AMMONIA]])
def test_planar_molecules_in_the_plane_have_geometry(tmp_path, cells):
    path = tmp_path / "a.csv"
    rows = "".join(f'"{cell}",{place}.5\n' for place, cell in enumerate(cells))
    path.write_text(f"smiles,gap\n{rows}")
    assert recognised(path) == "cxsmiles"
    facts, parsed, rejected = convert(path)
    assert facts.labels == (Label("gap"),) and not rejected
    assert all(one.mol.GetConformer().Is3D() for one in parsed.values())


def test_drawings_are_no_geometry(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('smiles,gap\n"[H]O[H] |(0.96,0;0,0;-0.24,0.93)|",1\n')
    assert recognised(path) != "cxsmiles"
    assert convert(path, format="cxsmiles")[2] == {"no 3D conformer": 1}
