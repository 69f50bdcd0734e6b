"""Errors that are collected, so that the user sees all of them at once."""

import pytest

from msde.errors import ErrorList, MsdeError


def test_one_error_is_raised_as_it_is_and_several_as_a_list():
    errors = ErrorList()
    errors.raise_if_any()
    with errors.collect():
        raise MsdeError("the only one")
    with pytest.raises(MsdeError, match="^the only one$"):
        errors.raise_if_any()
    with errors.collect():
        inner = ErrorList()
        inner.add("another")
        inner.add("a third")
        inner.raise_if_any()
    with pytest.raises(MsdeError, match="3 problems:\n  the only one\n  another\n  a third"):
        errors.raise_if_any()
