"""Layers that more than one network uses.

A parameter is used only in the forward of the module that holds it, here and in all networks,
because ZeRO-3 gathers a module's parameters for its own forward and backward passes only.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msde import ops


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it is in bfloat16 or float16, else unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def gaussians(distance: Tensor, centres: Tensor) -> Tensor:
    """Expand distances, (rows,), in Gaussians as wide as their spacing, (rows, num_gaussians)."""
    spacing = centres[1] - centres[0]  # () A
    return torch.exp(-0.5 * ((distance.unsqueeze(-1) - centres) / spacing).square())


def cosine_envelope(distance: Tensor, cutoff: Tensor) -> Tensor:
    """Return (cos(pi d / cutoff) + 1) / 2, (rows,): one at zero, zero at the cutoff, not beyond."""
    return 0.5 * (torch.cos(distance * (math.pi / cutoff)) + 1)


def index_rows(table: Tensor, index: Tensor) -> Tensor:
    """Return table[index], (rows, width), for a table (entries, width) and an index (rows,)."""
    # On a CPU the gradient of table[index] depends on the order in which threads add it up.
    return nn.functional.embedding(index, table)


def init_xavier(*layers: nn.Linear) -> None:
    """Give layers xavier-uniform weights and zero biases."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Linear(nn.Linear):
    """nn.Linear and the activation after it, by `ops.linear`."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, activation: str | None = None
    ) -> None:
        """Make the layer; for the activations see `ops.ACTIVATIONS`."""
        super().__init__(inputs, outputs, bias)
        self.activation = activation

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Map (..., inputs) to (..., outputs), and add `plus` of that shape if it is given."""
        return ops.linear(x, self.weight, self.bias, self.activation, plus)


class Dropout(nn.Dropout):
    """nn.Dropout by `ops.dropout_factors`."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements with probability p and scale the others by 1 / (1 - p), in training."""
        if not (self.training and self.p):
            return x
        return x * ops.dropout_factors(x.shape, self.p, x)


class MLP(nn.Module):
    """Linear layers with an activation between them; xavier-uniform weights, zero biases."""

    def __init__(self, sizes: Sequence[int], activation: str) -> None:
        """Chain layers of the given input, hidden and output sizes."""
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(i, o, activation=activation)
            for i, o in zip(sizes[:-2], sizes[1:-1], strict=True)
        )
        self.layers.append(Linear(*sizes[-2:]))
        init_xavier(*self.layers)

    def forward(self, h: Tensor, plus: Tensor | None = None) -> Tensor:
        """Map (..., sizes[0]) to (..., sizes[-1]), and add `plus` of that shape if it is given."""
        for layer in self.layers[:-1]:
            h = layer(h)
        return self.layers[-1](h, plus=plus)


class FourierLinear(nn.Linear):
    """A linear map of random Fourier features of scalars (Tancik et al. 2020).

    The features are [sin(2 pi v w), cos(2 pi v w)] of each scalar v. The frequencies w are drawn
    once and frozen. As in the published checkpoints they are a parameter, not a buffer.
    """

    def __init__(self, num_scalars: int, num_frequencies: int, output_dim: int) -> None:
        """Draw the frequencies from N(0, 1)."""
        frequency = torch.randn(num_frequencies)  # drawn first: the order decides a seed's weights
        super().__init__(num_scalars * 2 * num_frequencies, output_dim)
        self.frequency = nn.Parameter(frequency, requires_grad=False)

    def forward(self, v: Tensor) -> Tensor:
        """Map scalars (rows, num_scalars) to vectors (rows, output_dim)."""
        return ops.fourier_linear(v, self.frequency, self.weight, self.bias)


class TimeEmbedding(nn.Module):
    """An embedding of the time: an MLP of random Fourier features (Song et al. 2021)."""

    def __init__(self, num_features: int, output_dim: int) -> None:
        """Map times to `output_dim`-vectors through `num_features` Fourier features."""
        super().__init__()
        self.input = FourierLinear(1, num_features // 2, output_dim)
        self.output = Linear(output_dim, output_dim)
        init_xavier(self.input, self.output)

    def forward(self, t: Tensor) -> Tensor:
        """Map times (rows,) to vectors (rows, output_dim)."""
        return self.output(nn.functional.silu(self.input(t.unsqueeze(-1))))


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d and, if asked for, the ReLU after it, by `ops.batch_norm`.

    A batch of fewer than two rows has no variance. Then the running statistics are used, where
    PyTorch raises an error in training.
    """

    def __init__(self, width: int, relu: bool = False) -> None:
        """Make the layer for rows of `width` numbers."""
        super().__init__(width)
        self.relu = relu

    def forward(self, x: Tensor, num_valid: Tensor | None = None) -> Tensor:
        """Normalise (rows, width).

        Args:
            num_valid: () the first rows, which enter batch statistics; None: all of them.
        """
        return ops.batch_norm(x, self, self.relu, num_valid)


def numbered(layers: dict[int, nn.Module]) -> nn.Sequential:
    """Chain layers under their numbers in published checkpoints, where activations count too."""
    return nn.Sequential(OrderedDict((str(number), layer) for number, layer in layers.items()))


class CategoricalEmbedding(nn.Module):
    """The sum over columns of one embedding table a column; xavier-uniform tables.

    The tables are stacked in one matrix, so that one op looks up all columns.
    """

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        """Make a table of `dim`-vectors for each column, with `sizes` categories."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(sizes), dim))  # (sum of sizes, dim)
        first_row = torch.tensor([0, *sizes[:-1]]).cumsum(0)  # (columns,)
        self.register_buffer("first_row", first_row, persistent=False)
        for table in self.weight.data.split(list(sizes)):
            nn.init.xavier_uniform_(table)

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes (rows, columns) to vectors (rows, dim)."""
        return nn.functional.embedding_bag(codes + self.first_row, self.weight, mode="sum")


class EveryCombination(CategoricalEmbedding):
    """The vectors of all combinations of categories, (product of sizes, dim), the last fastest."""

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        """Make the tables, and the codes of all combinations."""
        super().__init__(sizes, dim)
        every = torch.cartesian_prod(*map(torch.arange, sizes))  # (combinations, columns)
        self.register_buffer("every", every, persistent=False)

    def forward(self) -> Tensor:  # type: ignore[override]
        """Return all vectors."""
        if not torch.compiler.is_compiling():
            return super().forward(self.every)
        # Few enough to be made without lookups, which the compiler cannot join with other kernels.
        rows = nn.functional.one_hot(self.every + self.first_row, len(self.weight)).sum(1)
        return (rows.to(self.weight.dtype).unsqueeze(-1) * self.weight).sum(1)


class SplitLinear(nn.Linear):
    """A linear map of a concatenation, as one product for each part.

    Linear([a, b]) = W_a a + W_b b + bias. For edge features [h_i, h_j] the products are computed
    once an atom instead of once an edge.
    """

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Map parts (rows, width_k) to their products (rows, outputs); the first has the bias."""
        widths = [part.shape[-1] for part in parts]
        weights = self.weight.split(widths, dim=1)  # (outputs, width_k) each
        biases = (self.bias, *[None] * (len(parts) - 1))
        return tuple(map(ops.linear, parts, weights, biases))
