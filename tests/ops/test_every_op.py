"""Properties of every op: gradients, errors, bits, strides, and the backends' agreement."""

import pytest
import torch

from fixtures.ops import NAMES, Recorder, cases, every_op, results, sizes_of_all_kinds, threads
from fixtures.triton import TRITONS, use_triton
from msde.ops.dispatch import OPERATORS, no_second_derivative


@sizes_of_all_kinds
@every_op
def test_gradients(fused, name, sizes):
    case = cases(name, sizes)
    fast = sum(sizes) > 20  # along one direction, not along each
    tolerances = {"eps": 1e-6, "atol": 1e-5, "rtol": 1e-4}
    assert torch.autograd.gradcheck(case.op, case.inputs, fast_mode=fast, **tolerances)


@sizes_of_all_kinds
@every_op
def test_second_gradients(fused, name, sizes):
    case = cases(name, sizes)
    if case.twice:
        assert torch.autograd.gradgradcheck(case.op, case.inputs, fast_mode=sum(sizes) > 20)
        return
    (grad, *_) = torch.autograd.grad(case.op(*case.inputs).sum(), case.inputs, create_graph=True)
    if grad.requires_grad:
        with pytest.raises(Exception, match="first derivatives only"):
            grad.sum().backward()


@every_op
@pytest.mark.parametrize("sizes", [[3, 1, 14, 18, 9, 2], [64, 40]], ids=["small", "large"])
def test_errors_in_float32_are_at_most_twice_those_of_torch(fused, monkeypatch, name, sizes):
    case = cases(name, sizes, width=40)
    weight = torch.randn_like(case.op(*case.inputs))
    narrow = [x.detach().float() for x in case.inputs]
    exact = [x.float().double() for x in case.inputs]
    monkeypatch.setenv("MSDE_OPS", "reference")
    exact, theirs = results(case, exact, weight), results(case, narrow, weight)
    monkeypatch.setenv("MSDE_OPS", "fused")
    for truth, torchs, found in zip(exact, theirs, results(case, narrow, weight), strict=True):
        size = truth.norm()
        assert found.dtype == torch.float32
        assert (found - truth).norm() / size <= max(2 * (torchs - truth).norm() / size, 1e-6)


@every_op
def test_bits_are_the_same_in_every_run_and_for_every_number_of_threads(fused, name):
    case = cases(name, [3, 1, 14, 18, 9, 2] * 4, width=70)
    narrow = [x.detach().float() for x in case.inputs]
    weight = torch.randn_like(case.op(*narrow))
    first = results(case, narrow, weight)
    for run in range(10):
        with threads(1 + run % 4):
            for one, other in zip(first, results(case, narrow, weight), strict=True):
                assert torch.equal(one, other)


def transposed(x):
    """Return x with its last two dimensions the other way round in memory."""
    return x if x.dim() < 2 else x.detach().mT.contiguous().mT.requires_grad_(x.requires_grad)


def expanded(x):
    """Return the first row of x as often as x has rows."""
    return x if x.dim() < 2 or not len(x) else x.detach()[:1].expand_as(x)


@every_op
@pytest.mark.parametrize("change", [transposed, expanded])
def test_strides_do_not_matter(fused, name, change):
    case = cases(name, [3, 1, 14])
    weight = torch.randn_like(case.op(*case.inputs))
    inputs = [change(x) for x in case.inputs]
    found = results(case, inputs, change(weight))
    expected = results(case, [x.contiguous() for x in inputs], change(weight).contiguous())
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, 1e-12, 1e-12)


@every_op
def test_operators_are_as_registered(fused, name):
    case = cases(name, [3, 4])
    with Recorder() as recorder:
        case.op(*map(transposed, case.inputs)).sum().backward()
    assert len(recorder.calls) > 1
    for operator, arguments in recorder.calls:
        gradient = OPERATORS[operator._opname].gradient
        differentiable = gradient not in (None, no_second_derivative)
        checked = [
            x.detach().requires_grad_(differentiable and x.requires_grad)
            if isinstance(x, torch.Tensor)
            else x
            for x in arguments
        ]
        torch.library.opcheck(operator, checked)


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_triton_kernels(gpu, fused, monkeypatch, name, dtype):
    with torch.device(TRITONS):
        case = cases(name, [1, 2, 5, 9], width=12)
    inputs = [x.detach().to(dtype) for x in case.inputs]
    weight = torch.randn_like(case.op(*inputs))
    monkeypatch.setenv("MSDE_OPS", "reference")
    by_torch = results(case, inputs, weight)
    monkeypatch.setenv("MSDE_OPS", "fused")
    use_triton(gpu, monkeypatch)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for one, other in zip(by_torch, results(case, inputs, weight), strict=True):
        assert one.dtype == other.dtype and torch.allclose(one, other, tolerance, tolerance)


EDGE_OPS = NAMES[NAMES.index("sum_over_edges") :]


@pytest.mark.parametrize("by", ["C++", "Triton"])
@pytest.mark.parametrize("name", EDGE_OPS)
def test_molecules_without_edges(gpu, fused, monkeypatch, name, by):
    with torch.device(TRITONS if by == "Triton" else "cpu"):
        case = cases(name, [3, 1, 4], share=0)
    weight = torch.randn_like(case.op(*case.inputs))
    monkeypatch.setenv("MSDE_OPS", "reference")
    by_torch = results(case, case.inputs, weight)
    monkeypatch.setenv("MSDE_OPS", "fused")
    if by == "Triton":
        use_triton(gpu, monkeypatch)
    for one, other in zip(by_torch, results(case, case.inputs, weight), strict=True):
        assert torch.allclose(one, other)


@pytest.mark.parametrize("by", ["C++", "Triton"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "interpolated_conv"])
def test_nan_stays_nan(gpu, fused, monkeypatch, name, by):
    with torch.device(TRITONS if by == "Triton" else "cpu"):
        case = cases(name, [3, 5])
    inputs = [x.detach().float() for x in case.inputs]
    inputs[0][..., 1, :] = float("nan")
    weight = torch.randn_like(case.op(*inputs))
    monkeypatch.setenv("MSDE_OPS", "reference")
    by_torch = results(case, inputs, weight)
    monkeypatch.setenv("MSDE_OPS", "fused")
    if by == "Triton":
        use_triton(gpu, monkeypatch)
    found = results(case, inputs, weight)
    assert by_torch[0].isnan().any() and torch.equal(by_torch[0].isnan(), found[0].isnan())
    for theirs, ours in zip(by_torch, found, strict=True):
        assert theirs.isnan().any() <= ours.isnan().any()  # torch's elu loses some


@every_op
def test_compiled_ops_have_no_breaks(fused, name):
    case = cases(name, [3, 4])
    explained = torch.compile(case.op, backend="aot_eager", fullgraph=True)
    assert torch.allclose(explained(*case.inputs), case.op(*case.inputs))
