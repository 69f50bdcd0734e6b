"""Fixtures of the tests of the ops: the backends, and one thread."""

import importlib

import pytest

from fixtures.ops import threads
from msde.ops import dispatch


@pytest.fixture(params=["reference", "fused"])
def way(request, monkeypatch):
    """Run a test by plain torch and by the fused ops."""
    monkeypatch.setenv("MSDE_OPS", request.param)
    if request.param == "fused" and not dispatch.available():
        pytest.skip("no C++ compiler")
    return request.param


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setenv("MSDE_OPS", "fused")
    if not dispatch.available():
        pytest.skip("no C++ compiler")


@pytest.fixture(autouse=True)
def small_work(monkeypatch):
    """Test the products of the C++ code on every processor; small tensors need one thread."""
    # Not by attributes of the package: its `linear` is the function.
    linear = importlib.import_module("msde.ops.linear")
    monkeypatch.setattr(linear, "_is_faster_than_torch", lambda: True)
    with threads(1):
        yield
