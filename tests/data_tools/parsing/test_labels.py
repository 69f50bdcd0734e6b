from pathlib import Path

import numpy as np
import pytest

from msde.data_tools.parsing import labels
from msde.data_tools.parsing.types import Label
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
    found = labels.survey(
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
    names = ["gap [meV]", "gap [MeV]", "gap [mev]", "gap [MHZ]"]
    assert [*labels.units_in(names).values()] == ["meV", "MeV", "MHZ"]
    with pytest.raises(MsdeError, match="gap in eV, which cannot be converted to 'mev'"):
        labels.with_units(Path("a"), (Label("gap", "mev"),), {"gap": "eV"})
