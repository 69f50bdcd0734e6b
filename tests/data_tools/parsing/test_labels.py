from pathlib import Path

import numpy as np
import pytest

from msde.data_tools.parsing import labels
from msde.data_tools.parsing.types import Label
from msde.data_tools.parsing.units import is_logarithm, units_in
from msde.errors import MsdeError


def test_numbers_and_missing_values():
    assert labels.number(" 1e-3") == 1e-3
    assert all(np.isnan(labels.number(text)) for text in ("", " ", "NaN", "n/a", "None"))
    for text in ("inf", "1.2.3", "C"):
        with pytest.raises(ValueError):
            labels.number(text)


def test_missing_values_of_any_dress_are_nan():
    for value in (None, float("nan"), np.float32("nan"), "", "NA", "n/a", "-", "None"):
        assert labels.is_missing(value) and np.isnan(labels.value_of(value))
    assert labels.value_of("1.5") == labels.value_of(np.float64(1.5)) == 1.5
    for value in ("x", float("inf"), "inf"):
        assert not labels.is_missing(value)
        with pytest.raises(ValueError):
            labels.value_of(value)


def test_a_survey_says_why_a_value_is_no_label():
    found = labels.why_no_labels(
        [
            {"a": 1.5, "b": "text", "c": np.zeros(3), "d": None, "e": True, "f": None},
            {"a": None, "b": 2.0, "d": "", "f": "2"},
        ]
    )
    assert [name for name, reason in found.items() if not reason] == ["a", "f"]
    assert found["b"] == "text, such as 'text'" and found["c"] == "an array of shape (3,)"
    assert found["d"] == "missing everywhere" and "True" in found["e"]


def test_values_are_converted_from_the_known_unit_to_that_of_the_user():
    asked = (Label("homo", "eV"), Label("mu"), Label("other", "kg"))
    units = {"homo": "Ha", "mu": "D"}
    found, factors = labels.with_units(Path("a"), asked, units)
    assert found == (Label("homo", "eV"), Label("mu", "D"), Label("other", "kg"))
    assert labels.scale((1.0, 2.0, 3.0), factors) == pytest.approx((27.211386246, 2, 3))
    assert labels.conversions(found, units) == ("homo is converted from Ha to eV",)
    assert labels.with_units(Path("a"), asked[1:], units)[1] == ()  # nothing to multiply
    with pytest.raises(MsdeError, match="a has homo in Ha, which cannot be converted to 'K'"):
        labels.with_units(Path("a"), (Label("homo", "K"),), units)


def test_a_unit_that_may_be_milli_or_mega_is_not_known():
    names = ["gap [meV]", "gap [MeV]", "gap [mev]", "gap [MHZ]", "B [mHz]"]
    assert [*units_in(names).values()] == ["meV", "MeV", "MHZ"]
    with pytest.raises(MsdeError, match="gap in eV, which cannot be converted to 'mev'"):
        labels.with_units(Path("a"), (Label("gap", "mev"),), {"gap": "eV"})


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("c [uM]", "uM"), ("c (\N{MICRO SIGN}M)", "\N{MICRO SIGN}M"), ("IC50 (ug/mL)", "ug/mL"),
        ("t1/2 (min)", "min"), ("Papp (10^-6 cm/s)", "10^-6 cm/s"), ("CL [mL/min/kg]", "mL/min/kg"),
        ("Tm (\N{DEGREE SIGN}C)", "\N{DEGREE SIGN}C"), ("S (log mol/L)", "log mol/L"),
        ("TPSA (\N{ANGSTROM SIGN}\N{SUPERSCRIPT TWO})", "\N{ANGSTROM SIGN}\N{SUPERSCRIPT TWO}"),
        ("alpha [a0**3]", "a0**3"), ("k (1/s)", "1/s"),
    ],
)  # fmt: skip
def test_units_in_brackets_are_found_whether_or_not_they_can_be_converted(name, unit):
    assert units_in([name]) == {name: unit}


@pytest.mark.parametrize(
    "name",
    ["logS (train)", "H (g)", "G (298 K)", "inhibition (10 uM)", "inhibition (1 uM)", "score (ML)",
     "logD (pH 7.4)", "IC50 (log)", "residual (% of control)", "gap (predicted)", "E (S1)",
     "charge (C2)", "yield (E)"],
)  # fmt: skip
def test_other_words_in_brackets_are_no_units(name):
    assert units_in([name]) == {}
    asked = (Label(name, "eV"),)
    assert labels.with_units(Path("a"), asked, units_in([name])) == (asked, ())


@pytest.mark.parametrize(
    ("known", "wanted", "size"),
    [("uM", "nM", 1000), ("nM", "uM", 0.001), ("M", "pM", 1e12), ("mM", "\N{MICRO SIGN}M", 1000),
     ("mmol/L", "mM", 1), ("\N{GREEK SMALL LETTER MU}M", "uM", 1), ("umol/L", "nM", 1000)],
)  # fmt: skip
def test_molar_concentrations_are_converted(known, wanted, size):
    asked = (Label("c", wanted),)
    found, factors = labels.with_units(Path("a"), asked, {"c": known})
    assert found == asked and factors == ((size,) if size != 1 else ())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("c [uM]", "eV"), ("c [nM]", "A"), ("d (nm)", "nM"), ("c (ug/mL)", "nM"), ("T (C)", "K"),
     ("t (min)", "h"), ("gap [eV]", "eV/furlong")],
)  # fmt: skip
def test_a_stated_unit_that_cannot_be_converted_is_refused(name, wanted):
    with pytest.raises(MsdeError, match=f"which cannot be converted to '{wanted}'; .*the file"):
        labels.with_units(Path("a"), (Label(name, wanted),), units_in([name]))


@pytest.mark.parametrize("name", ["pIC50 (uM)", "neg_pKi [uM]", "logS (M)", "-Log10_EC50 [M]"])
def test_logarithms_are_not_multiplied(name):
    units = units_in([name])
    with pytest.raises(MsdeError, match="a logarithm by its name, .* cannot be converted to 'nM'"):
        labels.with_units(Path("a"), (Label(name, "nM"),), units)
    same = (Label(name, units[name]),)
    assert labels.with_units(Path("a"), same, units) == (same, ())


def test_values_that_may_be_logarithms_are_known_by_their_names():
    for name in ("neglogIC50 (uM)", "logic50", "cLogP", "XLogP3", "logS", "pKi"):
        assert is_logarithm(name), name
    assert not any(map(is_logarithm, ("biology", "TOPOLOGICAL", "analog", "IC50 (uM)")))


def test_units_with_raised_minus_signs_or_behind_other_brackets_are_known():
    names = ["w [cm\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ONE}]", "E (eV) (DFT)", "E [a.u.]"]
    assert list(units_in(names)) == names
    raised = units_in(names)[names[0]]
    asked = (Label(names[0], "eV"),)
    assert labels.with_units(Path("a"), asked, {names[0]: raised})[1] == pytest.approx(
        [1.2398e-4], 1e-4
    )
    with pytest.raises(MsdeError, match="in a.u., which cannot be converted to 'eV'"):
        labels.with_units(Path("a"), (Label("E [a.u.]", "eV"),), units_in(names))
