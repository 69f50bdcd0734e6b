import pytest

from msde.chem.units import factor, parse

SAME = [
    ("kcal/mol", "kcal mol-1", "kcal mol^-1", "KCAL/MOL"),
    ("Ha", "Hartree", "hartree", "Eh"),
    ("A", "Ang", "Angstrom", "angstrom", "Å", "\u212b"),
    ("a0", "Bohr", "bohr"),
    ("Ha/a0", "Hartree/Bohr", "Eh bohr^-1"),
    ("cal/mol/K", "cal/mol K", "cal/(mol*K)", "cal mol-1 K-1"),
    ("a0^3", "a0**3", "a0 a0 a0", "Bohr3"),
    ("cm-1", "cm^-1", "1/cm", "cm**-1"),
    ("D", "Debye"),
]


@pytest.mark.parametrize("names", SAME, ids=lambda names: names[0])
def test_spellings_of_a_unit_are_one_unit(names):
    assert {factor(names[0], name) for name in names} == {1.0}


@pytest.mark.parametrize(
    ("known", "wanted", "expected"),
    [
        ("Ha", "eV", 27.211386),
        ("Ha", "kcal/mol", 627.50947),
        ("Ha", "kJ/mol", 2625.49964),
        ("eV", "meV", 1000),
        ("eV", "cm-1", 8065.544),
        ("GHz", "cm-1", 0.0333564),
        ("Ha/a0", "eV/A", 51.422067),
        ("kcal/mol/A", "eV/A", 0.0433641),
        ("D", "e*a0", 0.393430),
        ("a0^3", "A^3", 0.148184711),
        ("a0", "A", 0.529177211),
    ],
)
def test_factors_are_those_of_codata(known, wanted, expected):
    assert factor(known, wanted) == pytest.approx(expected, rel=1e-6)
    assert factor(wanted, known) == pytest.approx(1 / expected, rel=1e-6)


def test_factors_agree_with_those_of_ase():
    units = pytest.importorskip("ase.units")
    for name, size in [
        ("Ha", units.Hartree), ("kcal/mol", units.kcal / units.mol), ("a0", units.Bohr),
        ("kJ/mol", units.kJ / units.mol), ("cm-1", units.invcm), ("D", units.Debye),
    ]:  # fmt: skip
        assert parse(name)[0] == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize(
    ("known", "wanted"),
    [("eV", "A"), ("eV", "K"), ("eV", "eV/A"), ("furlong", "A"), ("eV", ""), ("au", "eV")],
)
def test_units_of_other_dimensions_or_unknown_ones_have_no_factor(known, wanted):
    assert factor(known, wanted) is None


def test_case_tells_milli_from_mega():
    assert factor("MeV", "meV") == pytest.approx(1e9)
