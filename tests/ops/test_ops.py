import contextlib
import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fixtures.models import KINDS, make_small
from fixtures.paths import ROOT
from fixtures.triton import TRITONS, use_triton
from msde import ops, philox
from msde.data.ragged import complete_pairs
from msde.model import geometry
from msde.model.encoders.gin import GINLayer
from msde.model.encoders.schnet import Filters
from msde.model.layers import Sequential
from msde.ops import Interpolation, Pairs, PairWeights, build, library, normalisation, registered
from msde.ops.groups import PaddedLayout
from msde.philox import Key, Stream
from msde.training.optimizer import parameter_groups

SIZES = {
    "molecules of 1, 2, 5 and 9 atoms": [1, 2, 5, 9],
    "one atom": [1],
    "two atoms": [2],
    "larger than a vector": [20, 3],
    "without pairs": [1, 1, 1],
}
sizes_of_all_kinds = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@pytest.fixture(params=["reference", "fused"])
def way(request, monkeypatch):
    """Run a test by plain torch and by the fused ops."""
    monkeypatch.setenv("MSDE_OPS", request.param)
    if request.param == "fused" and not library.available():
        pytest.skip("no C++ compiler")
    return request.param


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setenv("MSDE_OPS", "fused")
    if not library.available():
        pytest.skip("no C++ compiler")


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def offsets(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def pairs_of(sizes):
    counts = [n * (n - 1) // 2 for n in sizes]
    index = complete_pairs(torch.tensor(sizes), sum(sizes), sum(counts))
    graph = torch.repeat_interleave(torch.tensor(sizes))
    return Pairs(index, offsets(sizes), offsets(counts), graph, max(sizes))


def edges_of(sizes, share=0.6):
    """Some of the pairs, both ways; with more than two atoms the last of a molecule has none."""
    pairs = pairs_of(sizes)
    ends = pairs.ptr[1:][pairs.graph[pairs.index[1]]]
    kept = torch.rand(pairs.index.shape[1]) < share
    kept &= (pairs.index[1] < ends - 1) | (pairs.graph.bincount()[pairs.graph[pairs.index[1]]] < 3)
    index = torch.cat([pairs.index[:, kept], pairs.index[:, kept].flip(0)], dim=1)
    return ops.sort_edges(index, pairs.ptr, sum(sizes))[0]


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def knots(pairs, num_rows=11):
    """Knots in each precision, the weights of one rounded to the other."""
    position = torch.rand(pairs.index.shape[1], dtype=torch.float64) * (num_rows - 3)
    double = Interpolation(position, position < num_rows - 3.5, num_rows)
    single = copy.copy(double)
    single.weight = double.weight.float()
    return {torch.float64: double, torch.float32: single}


@dataclass
class Case:
    """An op on inputs for one set of molecules, and how often it can be differentiated."""

    op: object
    inputs: list
    twice: bool = False


def codes_of(edges):
    a, b = edges.index
    return ops.group_codes((torch.minimum(a, b) * 7 + torch.maximum(a, b)) % 4, 4)


class Norm:
    """BatchNorm with weights that a module would not take."""

    eps, momentum, training = 1e-5, 0.1, True

    def __init__(self, weight, bias, buffers):
        self.weight, self.bias = weight, bias
        self.running_mean, self.running_var, self.num_batches_tracked = buffers


def cases(name, sizes, width=6, share=0.6):
    """Make the named op's case for molecules of these sizes."""
    torch.manual_seed(0)
    pairs, edges, n = pairs_of(sizes), edges_of(sizes, share), sum(sizes)
    num_pairs, num_edges = pairs.index.shape[1], edges.index.shape[1]
    kind, _, rest = name.partition(" ")
    if name == "linear of channels":
        op = lambda x, weight: ops.linear(ops.linear(x, weight, None, "elu"), weight)  # noqa: E731
        return Case(op, [rand(n, 5), rand(3, 5, 5)], twice=True)
    if name == "linear plus":
        op = lambda x, weight, plus: ops.linear(x, weight, plus=plus)  # noqa: E731
        return Case(op, [rand(n, 5), rand(width, 5), rand(n, width)], twice=True)
    if kind == "linear":
        op = lambda *layer: ops.linear(*layer, rest or None)  # noqa: E731
        return Case(op, [rand(n, 5), rand(width, 5), rand(width)], twice=True)
    if kind == "batch_norm":
        precisions = (torch.float32, torch.float64)
        buffers = {dtype: nn.BatchNorm1d(width, dtype=dtype).buffers() for dtype in precisions}
        buffers = {dtype: list(found) for dtype, found in buffers.items()}

        def op(x, weight, bias):
            return ops.batch_norm(x, Norm(weight, bias, buffers[x.dtype]), rest == "relu")

        return Case(op, [rand(n, width), rand(width), rand(width)], twice=True)
    if name == "edge_norm":

        def edge_norm(a, b, weight, bias):
            buffers = [torch.zeros_like(bias.detach()), torch.ones_like(bias.detach()), 0]
            return torch.cat(ops.edge_norm(a, b, Norm(weight, bias, buffers), edges))

        inputs = [rand(n, width), rand(n, width), rand(width), rand(width)]
        return Case(edge_norm, inputs, twice=True)
    if name == "row_dot":
        at = torch.randint(n + 2, (n, 3))
        op = lambda x, y: ops.row_dot(x, y, at)  # noqa: E731
        return Case(op, [rand(n, width), rand(n + 2, width)], twice=True)
    if name == "fourier_linear":
        frequency = torch.randn(3, dtype=torch.float64)
        v = torch.randn(n, 2, dtype=torch.float64)

        def fourier_linear(*layer):
            return ops.fourier_linear(v.to(layer[0]), frequency.to(layer[0]), *layer)

        return Case(fourier_linear, [rand(width, 12), rand(width)], twice=True)
    if name == "frame_mean":
        frames = torch.randn(num_edges, 3, 3, dtype=torch.float64)
        op = lambda b: ops.frame_mean(b, frames.to(b), edges)  # noqa: E731
        return Case(op, [rand(num_edges, 3)], twice=True)
    if name == "interpolated_conv":
        at = knots(pairs)
        conv = lambda x, table: ops.interpolated_conv(x, table, at[x.dtype], pairs)  # noqa: E731
        return Case(conv, [rand(n, width), rand(11, width)], twice=True)
    if name == "pair_sum":
        op = lambda weight, x: ops.pair_sum(PairWeights(weight, pairs), x)  # noqa: E731
        return Case(op, [rand(num_pairs, 3), rand(3, n, width)], twice=True)
    if name == "pair_attention":
        op = lambda q, k: ops.pair_attention(q, k, 3, pairs)  # noqa: E731
        return Case(op, [rand(2, n, 6), rand(2, n, 6)])
    if name == "sum_over_edges":
        return Case(lambda x: ops.sum_over_edges(x, edges), [rand(n, width)], twice=True)
    if name == "gin_message":
        codes = codes_of(edges)
        op = lambda x, table, eps: ops.gin_message(x, table, eps, codes, edges)  # noqa: E731
        return Case(op, [rand(n, width), rand(4, width), rand(1)])
    if name == "edge_attention":
        keep = (torch.rand(num_edges, 2, dtype=torch.float64) < 0.8) / 0.8

        def op(q, k, v, e):
            return ops.edge_attention(q, k, v, e, keep.to(q.dtype), edges, 2)

        return Case(op, [rand(n, 6), rand(n, 6), rand(n, 6), rand(num_edges, 6)])
    activation, with_attr = name.split()[1], "attr" in name

    def edge_mlp(a, b, weight, bias, *attr):
        return ops.edge_mlp(a, b, weight, bias, edges, activation, *attr)

    attr = [rand(num_edges, 3), rand(width, 3)] if with_attr else []
    return Case(edge_mlp, [rand(n, width), rand(n, width), rand(2, width), rand(2), *attr])


NAMES = [
    "linear",
    "linear relu",
    "linear silu",
    "linear shifted_softplus",
    "linear tanh",
    "linear elu",
    "linear of channels",
    "linear plus",
    "batch_norm",
    "batch_norm relu",
    "edge_norm",
    "row_dot",
    "fourier_linear",
    "interpolated_conv",
    "pair_sum",
    "pair_attention",
    "sum_over_edges",
    "gin_message",
    "edge_attention",
    "edge_mlp relu",
    "edge_mlp silu attr",
    "frame_mean",
]
every_op = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def small_work(monkeypatch):
    """Test the products of the C++ code on every processor; small tensors need one thread."""
    monkeypatch.setattr(library, "own_products", lambda: True)
    with threads(1):
        yield


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


def results(case, inputs, weight):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = case.op(*inputs)
    return [out.detach(), *torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs)]


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


class Recorder:
    """torch.ops.msde with a list of the calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            return getattr(torch.ops.msde, name)(*arguments)

        return call


@every_op
def test_operators_are_as_registered(fused, monkeypatch, name):
    case, recorder = cases(name, [3, 4]), Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(ops, "_ops", recorder)
        patch.setattr(registered, "ops", recorder)
        case.op(*map(transposed, case.inputs)).sum().backward()
    assert len(recorder.calls) > 1
    for operator, arguments in recorder.calls:
        differentiable = operator in registered.GRADIENTS
        checked = [
            x.detach().requires_grad_(differentiable and x.requires_grad)
            if isinstance(x, torch.Tensor)
            else x
            for x in arguments
        ]
        torch.library.opcheck(getattr(torch.ops.msde, operator).default, checked)


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


LAYERS = [
    (0, 3, 4),
    (1, 0, 2),
    (7, 1, 1),
    (61, 800, 33),
    (130, 65, 64),
    (500, 130, 110),
    (1100, 130, 110),
    (70, 10_001, 1),
]


@pytest.mark.parametrize("activation", [None, "silu", "tanh"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("shape", LAYERS)
def test_layers_of_every_shape(fused, monkeypatch, shape, channels, wide, activation):
    """Small and large ones, weights that are a part of wider ones, any number of threads."""
    rows, inputs, outputs = shape
    torch.manual_seed(0)
    of_channels = [] if channels is None else [channels]
    x = torch.randn(rows, inputs, requires_grad=True)
    weight = torch.randn(*of_channels, outputs, inputs + wide, requires_grad=True)
    bias = torch.randn(*of_channels, outputs, requires_grad=True)
    g = torch.randn(*of_channels, rows, outputs)

    def run(way, num_threads=1):
        monkeypatch.setenv("MSDE_OPS", way)
        with threads(num_threads):
            y = ops.linear(x, weight[..., :inputs], bias, activation)
            return [y, *torch.autograd.grad(y, [x, weight, bias], g)]

    found = run("fused")
    for ours, theirs in zip(found, run("reference"), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    for num_threads in (2, 3, 4):
        assert all(map(torch.equal, found, run("fused", num_threads)))


def test_products_that_do_not_fit_are_refused(fused):
    x, weight = torch.randn(4, 5), torch.randn(3, 5)
    for misfit in ((x[:, :4], weight), (x, weight, torch.randn(2)), (x, weight[0, :4])):
        with pytest.raises(RuntimeError):
            ops.linear(*misfit)
    with pytest.raises(RuntimeError):
        ops.linear(x, weight, plus=torch.randn(3, 3))
    with pytest.raises(ValueError, match="not both"):
        ops.linear(x, weight, None, "relu", torch.randn(4, 3))


@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 3, 5), (2, 0, 5), (4, 2, 3, 5)])
def test_rows_of_any_shape_are_multiplied_by_own_code(fused, monkeypatch, shape):
    recorder, weight, bias = Recorder(), torch.randn(4, 5), torch.randn(4)
    monkeypatch.setattr(ops, "_ops", recorder)
    x = torch.randn(shape)
    assert torch.allclose(ops.linear(x, weight, bias), nn.functional.linear(x, weight, bias))
    assert [name for name, _ in recorder.calls] == ["linear"]


def test_tensors_that_a_function_would_misread_are_refused(fused):
    edges, x = edges_of([3, 4]), torch.randn(7, 6)
    index = edges.index.t().contiguous().t()
    with pytest.raises(ValueError, match="contiguous"):
        torch.ops.msde.sum_over_edges(x, index, edges.row_ptr)
    with pytest.raises(ValueError, match="not torch.int32"):
        torch.ops.msde.sum_over_edges(x, edges.index.int(), edges.row_ptr)


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
def test_what_is_not_a_number_stays_so(gpu, fused, monkeypatch, name, by):
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


def test_without_a_compiler_torch_does_it_with_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.delenv("MSDE_OPS", raising=False)
    library._load.cache_clear()
    try:
        case = cases("gin_message", [3, 4])
        for _ in range(2):
            assert case.op(*case.inputs).isfinite().all()
    finally:
        library._load.cache_clear()
    assert len(caplog.records) == 1 and "without C++" in caplog.text


def test_without_a_home_folder_torch_does_it(monkeypatch, caplog):
    def no_home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    library._load.cache_clear()
    try:
        assert not library.available()
    finally:
        library._load.cache_clear()
    assert "without C++" in caplog.text


def test_without_torchs_openmp_there_is_one_thread(monkeypatch):
    taken = []
    monkeypatch.setattr(build, "compiled", lambda *arguments: taken.extend(arguments))
    for found in (["/torch.libs/libgomp.so.1"], []):
        monkeypatch.setattr(library, "_torch_openmp", lambda found=found: found)
        library._load.__wrapped__()
        assert ("-fopenmp" in taken[-2]) == bool(found) and taken[-1] == found


@pytest.fixture
def on_a_gpu(gpu, monkeypatch):
    """Let the check of a GPU of some capability run on a CPU."""

    def pretend(capability):
        monkeypatch.setenv("MSDE_OPS", "fused")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        for name in ("zeros", "ones", "arange"):
            make = getattr(torch, name)
            monkeypatch.setattr(
                torch, name, lambda *a, make=make, **k: make(*a, **(k | {"device": TRITONS}))
            )
        return gpu

    library._gpu_works.cache_clear()
    yield pretend
    library._gpu_works.cache_clear()


def test_a_gpu_is_tried_once_before_it_is_used(on_a_gpu, monkeypatch, caplog):
    gpu, tried = on_a_gpu((8, 0)), []
    kernel = gpu.sum_over_edges
    monkeypatch.setattr(gpu, "sum_over_edges", lambda *a: tried.append(1) or kernel(*a))
    assert library.available("cuda") and library.available("cuda")
    assert len(tried) == 1 and not caplog.records


@pytest.mark.parametrize("capability", [(6, 1), (8, 0)])
def test_a_gpu_that_triton_cannot_use_is_left_to_torch(on_a_gpu, monkeypatch, caplog, capability):
    def fail(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(on_a_gpu(capability), "sum_over_edges", fail)
    assert not library.available("cuda") and not library.available("cuda")
    assert len(caplog.records) == 1 and "without Triton" in caplog.text


def test_kernels_are_launched_on_the_device_of_the_tensors(monkeypatch):
    entered = []
    monkeypatch.setattr(
        torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext()
    )
    x = torch.ones(1)
    assert registered._on_its_device(lambda number, x: x)(3, x) is x
    assert entered == [x.device]


def test_attention_keeps_the_weights_for_its_gradient_and_not_the_result(fused):
    case, kept = cases("edge_attention", [3, 4]), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = case.op(*case.inputs)
    shapes = [t.shape for t in kept]
    assert shapes.count(out.shape) == 3 and all(t.data_ptr() != out.data_ptr() for t in kept)


def trained(batch, steps=15):
    """Train a small model and return the losses."""
    model = make_small("paper", "model.conformer.dropout=0").train()
    optimizer = torch.optim.Adam(parameter_groups(model))
    losses = []
    for _ in range(steps):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_training_is_that_of_torch_but_for_rounding(batch, monkeypatch, fused):
    monkeypatch.setenv("MSDE_OPS", "reference")
    with threads(2):
        two_threads = trained(batch)
    with threads(1):
        plain = trained(batch)
        monkeypatch.setenv("MSDE_OPS", "fused")
        difference = (trained(batch) - plain).abs().mean()
    assert difference <= max(2 * (two_threads - plain).abs().mean(), 1e-4 * plain.abs().mean())


def test_messages_under_autocast_are_made_and_summed_in_float32(way):
    torch.manual_seed(0)
    edges, layer = edges_of([3, 1, 14, 18, 9, 2]), GINLayer(40)
    layer.mlp = Sequential()
    codes, h = codes_of(edges), torch.randn(47, 40).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(h, edges, codes)
    assert found.dtype == torch.float32
    assert torch.allclose(found, layer(h.float(), edges, codes))


@pytest.mark.parametrize("kind", ["paper", "base"])
def test_under_autocast_every_op_is_fused(batch, fused, monkeypatch, kind):
    monkeypatch.setattr(Filters, "KNOTS_PER_GAUSSIAN", 1)  # so that few pairs are interpolated
    found, is_fused = [], ops._fused
    monkeypatch.setattr(ops, "_fused", lambda *t: found.append(is_fused(*t)) or found[-1])
    with torch.autocast("cpu", torch.bfloat16):
        make_small(kind).train()(batch)[0].backward()
    assert len(found) == 35 and all(found)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_fused_and_torch_agree(batch, fused, monkeypatch, kind):
    monkeypatch.setattr(Filters, "KNOTS_PER_GAUSSIAN", 1)

    def losses_and_representations(way, enabled=True):
        monkeypatch.setenv("MSDE_OPS", way)
        model = make_small(kind)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, terms = model(batch)
            found = [model.encoder_2d(batch), model.encoder_3d(batch)]
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [*terms.values(), *found, torch.cat([grad.flatten() for grad in grads])]

    exact = losses_and_representations("reference", enabled=False)
    for ours, theirs, truth in zip(
        losses_and_representations("fused"),
        losses_and_representations("reference"),
        exact,
        strict=True,
    ):
        size = truth.norm()
        assert (ours - truth).norm() / size <= max(2 * (theirs - truth).norm() / size, 1e-2)


def test_weights_are_padded_once(monkeypatch):
    monkeypatch.setenv("MSDE_OPS", "reference")
    pairs, padded = pairs_of([3, 4]), []
    pad = PaddedLayout.pad_pairs
    monkeypatch.setattr(PaddedLayout, "pad_pairs", lambda *a: padded.append(1) or pad(*a))
    weight = PairWeights(rand(9, 2), pairs)
    for _ in range(3):
        ops.pair_sum(weight, rand(2, 7, 5))
    assert len(padded) == 1


@pytest.mark.parametrize("count", [1, 3, 119, 5000])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_normals_are_those_of_philox(fused, rows, count):
    uid, item = torch.randint(-(2**62), 2**62, (rows,)), torch.randint(2**31, (rows,))
    key, stream = Key(2**40 + 77, 9), Stream.ATOM_TYPE_NOISE
    found = ops.normals(key, stream, uid, item, count)
    assert torch.allclose(found, philox.normal(key, stream, uid, item, count), 1e-5, 1e-5)
    for row in range(0, rows, 99):
        alone = ops.normals(key, stream, uid[row : row + 1], item[row : row + 1], count)
        assert torch.equal(alone[0], found[row])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("counted", [2, 9, 50])
def test_rows_that_do_not_count_on_a_gpu(gpu, counted, relu):
    torch.manual_seed(0)
    with torch.device(TRITONS):
        x, weight, bias = rand(50, 70), rand(70), rand(70)
        counted, g = torch.tensor(counted), torch.randn(50, 70, dtype=torch.float64)
    inputs = (x, weight, bias, relu, 1e-5, counted)
    expected = normalisation.normalised_over_first_rows(*inputs)
    found = gpu.batch_norm(*inputs)
    assert all(map(torch.allclose, found, expected))
    gradients = torch.autograd.grad(expected[0], inputs[:3], g)
    assert all(map(torch.allclose, gpu.batch_norm_grad(g, *inputs, *found[1:]), gradients))


def test_every_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path):
    pytest.importorskip("triton")
    script = ROOT / "benchmarks/compile_kernels.py"
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, script, "--capability=90"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)["kernels"]
    launched = {
        name
        for path in Path(ops.__file__).parent.glob("triton/*.py")
        for name in re.findall(r"^def ([a-z]\w+)\(", path.read_text(), re.M)
    }
    assert {kernel["kernel"] for kernel in compiled} == launched
    assert max(kernel["shared_bytes"] for kernel in compiled) < 99 * 1024  # that of small GPUs


@pytest.mark.parametrize("count", [1, 3, 119])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_random_numbers_by_triton(gpu, rows, count):
    with torch.device(TRITONS):
        uid, item = torch.randint(-(2**62), 2**62, (rows,)), torch.randint(2**32, (rows,))
    stream = Stream.BOND_NOISE
    for key in (Key(2**40 + 77, 9), Key(2**63 + 5, 2**31)):
        for items in (item, None):
            expected = philox.words(key, stream, uid, 0 if items is None else items, count)
            found = gpu.words(uid, items, count, int(stream), key.words)
            assert torch.equal(found, expected)
        found = gpu.normals(uid, item, count, int(stream), key.words)
        assert torch.allclose(found, philox.normal(key, stream, uid, item, count), 1e-5, 1e-5)


@pytest.mark.parametrize("size", [(0, 8), (5, 3), (3000, 8)])
def test_dropout_is_the_same_in_cpp_and_torch(fused, monkeypatch, size):
    found = []
    for way in ("fused", "reference"):
        monkeypatch.setenv("MSDE_OPS", way)
        torch.manual_seed(3)
        found.append([ops.dropout_factors(size, 0.1, torch.ones(1)) for _ in range(2)])
    (one, other), reference = found
    assert one.shape == size and all(map(torch.equal, found[0], reference))
    if len(one) > 100:
        assert not torch.equal(one, other)
        assert abs((one == 0).float().mean() - 0.1) < 0.01
        assert torch.isclose(one.max(), torch.tensor(1 / 0.9)) and len(one.unique()) == 2


@pytest.mark.parametrize("by", ["C++", "Triton"])
@pytest.mark.parametrize("collinear", [0.0, 1e-4])
@sizes_of_all_kinds
def test_edge_geometry(gpu, fused, monkeypatch, sizes, collinear, by):
    with torch.device(TRITONS if by == "Triton" else "cpu"):
        edges = edges_of(sizes, share=1)
        pos = torch.randn(sum(sizes), 3, dtype=torch.float64)
    if by == "Triton":
        use_triton(gpu, monkeypatch)
    found = geometry.edge_geometry(pos, edges.index, collinear)
    turned = geometry.edge_geometry(pos, edges.index.flip(0), collinear)
    broken = geometry.edge_geometry(pos * torch.nan, edges.index, collinear)
    monkeypatch.setenv("MSDE_OPS", "reference")
    expected = geometry.edge_geometry(pos, edges.index, collinear)
    for ours, theirs, nothing in zip(found, expected, broken, strict=True):
        assert torch.allclose(ours, theirs, 1e-7, 1e-7)
        assert nothing.isnan().all()
    assert torch.equal(found.frames[:, :2], -turned.frames[:, :2])  # to the bit


@sizes_of_all_kinds
def test_filter_conv(sizes):
    pairs, num_atoms = pairs_of(sizes).index, sum(sizes)
    torch.manual_seed(0)
    x, weight = rand(num_atoms, 3), rand(pairs.shape[1], 3)
    dense = torch.zeros(num_atoms, num_atoms, 3, dtype=torch.float64)
    dense[pairs[0], pairs[1]] = weight
    dense[pairs[1], pairs[0]] = weight
    assert torch.allclose(ops.filter_conv(x, weight, pairs), torch.einsum("ijf,jf->if", dense, x))
    if num_atoms < 20:
        assert torch.autograd.gradcheck(ops.filter_conv, (x, weight, pairs))
        assert torch.autograd.gradgradcheck(ops.filter_conv, (x, weight, pairs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [[1, 1], [2], [9, 1, 5, 12]])
def test_edge_norm(way, training, sizes, monkeypatch):
    monkeypatch.setattr("msde.ops.reference.CHUNK_ROWS", 16)  # several chunks
    torch.manual_seed(0)
    edges, n = edges_of(sizes, share=1), sum(sizes)
    source, target = edges.index
    norm, project = nn.BatchNorm1d(5).double(), nn.Linear(5, 4).double()
    plain = nn.BatchNorm1d(5).double()
    for name in ("weight", "bias"):
        nn.init.normal_(getattr(norm, name))
        getattr(plain, name).data.copy_(getattr(norm, name))
    norm.train(training)
    plain.train(training and len(source) > 1)
    a, b = rand(n, 5), rand(n, 5)
    inputs = [a, b, norm.weight, norm.bias, *project.parameters()]
    normed = ops.edge_norm(a, b, norm, edges)
    ours = ops.edge_mlp(*normed, project.weight, project.bias, edges, "relu")
    expected = project(torch.relu(plain(a[source] + b[target])))
    assert torch.allclose(ours, expected)
    assert torch.allclose(norm.running_mean, plain.running_mean)
    assert torch.allclose(norm.running_var, plain.running_var)
    assert norm.num_batches_tracked == plain.num_batches_tracked
    gradient = torch.randn_like(ours)
    plain_inputs = [a, b, plain.weight, plain.bias, *project.parameters()]
    for g, e in zip(
        torch.autograd.grad(ours, inputs, gradient),
        torch.autograd.grad(expected, plain_inputs, gradient),
        strict=True,
    ):
        assert torch.allclose(g, e)


def test_complete_pairs():
    assert pairs_of([1, 3, 2]).index.tolist() == [[1, 1, 2, 4], [2, 3, 3, 5]]


@pytest.mark.parametrize("key", [[], [2, 0, 2, 4, 0]])
def test_sort_groups(way, key):
    ptr, order = ops.sort_groups(torch.tensor(key, dtype=torch.int64), 5)
    assert ptr.tolist() == ([0] * 6 if not key else [0, 2, 2, 4, 4, 5])
    assert order.tolist() == ([] if not key else [1, 4, 0, 2, 3])


def test_edges_know_their_reverses(way):
    torch.manual_seed(0)
    whole = edges_of([9, 1, 5, 12])
    mixed = torch.randperm(whole.index.shape[1])
    edges, order = ops.sort_edges(whole.index[:, mixed], whole.ptr, 27)
    assert torch.equal(edges.index, whole.index) and torch.equal(edges.row_ptr, whole.row_ptr)
    assert torch.equal(mixed[order], torch.arange(len(mixed)))
    assert torch.equal(edges.index[:, edges.reverse], edges.index.flip(0))


def test_segment_ops_with_an_empty_segment():
    rows = rand(5, 2)
    segment = torch.tensor([0, 0, 2, 2, 2])
    total = ops.segment_sum(rows, segment, 4)
    assert torch.allclose(total[2], rows[2:].sum(0))
    assert (total[[1, 3]] == 0).all()
    mean = ops.segment_mean(rows, segment, torch.tensor([2, 0, 3, 0]))
    assert torch.allclose(mean[0], rows[:2].mean(0)) and (mean[1] == 0).all()
    soft = ops.segment_softmax(rows, segment, 4)
    assert torch.allclose(soft[2:], torch.softmax(rows[2:], 0))
    assert torch.autograd.gradcheck(lambda r: ops.segment_softmax(r, segment, 4), (rows,))


def test_softmax_of_huge_logits_is_finite():
    soft = ops.segment_softmax(torch.tensor([[1e4], [-1e4], [3e38]]), torch.tensor([0, 0, 1]), 2)
    assert soft.tolist() == [[1.0], [0.0], [1.0]]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_edge_mlp_is_what_it_says(way, activation, monkeypatch):
    monkeypatch.setattr("msde.ops.reference.CHUNK_ROWS", 8)
    torch.manual_seed(0)
    edges = edges_of([7])
    source, target = edges.index
    output = nn.Linear(5, 3).double()
    a, b, edge_attr, edge_weight = rand(7, 5), rand(7, 5), rand(len(source), 4), rand(5, 4)
    hidden = a[source] + b[target] + edge_attr @ edge_weight.T
    expected = output(getattr(nn.functional, activation)(hidden))
    parameters = (output.weight, output.bias)
    ours = ops.edge_mlp(a, b, *parameters, edges, activation, edge_attr, edge_weight)
    assert torch.allclose(ours, expected)


def test_interpolation_is_exact_for_cubics_and_linear_in_the_table():
    position = torch.tensor([0.0, 0.3, 4.0, 7.99, 8.0, 2.5], dtype=torch.float64)
    keep = torch.tensor([True, True, True, True, True, False])
    at = ops.Interpolation(position, keep, num_rows=11)
    knots = torch.arange(-1, 10, dtype=torch.float64)
    table = torch.stack([knots**3 - knots, knots**2, torch.ones_like(knots)], dim=-1)
    expected = torch.stack([position**3 - position, position**2, torch.ones(6)], dim=-1)
    assert torch.allclose(at(table), expected * keep.unsqueeze(-1))
    assert torch.autograd.gradcheck(at, (table.requires_grad_(),))
