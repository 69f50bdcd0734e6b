"""The C++ library: what its functions refuse, and machines that cannot have it."""

from pathlib import Path

import pytest
import torch

from fixtures.ops import cases, edges_of
from msde.ops import cpp, dispatch


def test_tensors_that_a_function_would_misread_are_refused(fused):
    edges, x = edges_of([3, 4]), torch.randn(7, 6)
    with pytest.raises(ValueError, match="contiguous"):
        cpp.call("sum_over_edges", x, edges.row_ptr, edges.index.t(), 7, x.clone(), 6)
    with pytest.raises(ValueError, match="not torch.int32"):
        torch.ops.msde.sum_over_edges(x, edges.index.int(), edges.row_ptr)


def test_strides_of_indices_do_not_matter(fused):
    """Columns of a table of edges, as they come from files, are not contiguous."""
    edges, x = edges_of([3, 4]), torch.randn(7, 6)
    index = edges.index.t().contiguous().t()
    assert not index.is_contiguous()
    found = torch.ops.msde.sum_over_edges(x, index, edges.row_ptr)
    assert torch.equal(found, torch.ops.msde.sum_over_edges(x, edges.index, edges.row_ptr))


def test_without_a_compiler_torch_does_it_with_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.delenv("MSDE_OPS", raising=False)
    cpp.load.cache_clear()
    try:
        case = cases("gin_message", [3, 4])
        for _ in range(2):
            assert case.op(*case.inputs).isfinite().all()
    finally:
        cpp.load.cache_clear()
    assert len(caplog.records) == 1 and "without C++" in caplog.text


def test_without_a_home_folder_torch_does_it(monkeypatch, caplog):
    def no_home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    cpp.load.cache_clear()
    try:
        assert not dispatch.available()
    finally:
        cpp.load.cache_clear()
    assert "without C++" in caplog.text


def test_without_torchs_openmp_there_is_one_thread(monkeypatch):
    taken = []
    monkeypatch.setattr(cpp.build, "compiled", lambda *arguments: taken.extend(arguments))
    for found in (["/torch.libs/libgomp.so.1"], []):
        monkeypatch.setattr(cpp, "_torch_openmp", lambda found=found: found)
        cpp.load.__wrapped__()
        assert ("-fopenmp" in taken[-2]) == bool(found) and taken[-1] == found
