"""Layers that more than one network uses.

Here and in the networks a parameter is used only in the forward of the module that holds it: ZeRO-3
gathers a module's parameters around its forward and backward, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from msde import ops


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it is in a shorter format, else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def gaussians(distance: Tensor, centres: Tensor) -> Tensor:
    """Expand distances (rows,) in Gaussians as wide as their spacing, (rows, num_centres)."""
    spacing = centres[1] - centres[0]
    return torch.exp(-0.5 * ((distance.unsqueeze(-1) - centres) / spacing).square())


def cosine_envelope(distance: Tensor, cutoff: Tensor) -> Tensor:
    """Return what falls from one at zero to zero at the cutoff; beyond it grows again."""
    return 0.5 * (torch.cos(distance * (math.pi / cutoff)) + 1)


class Linear(nn.Linear):
    """nn.Linear by `ops.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return ops.linear(x, self.weight, self.bias)


class MLP(nn.Module):
    """Linear layers with an activation between them; xavier-uniform weights, zero biases."""

    def __init__(self, sizes: Sequence[int], activation: Callable[[Tensor], Tensor]) -> None:
        """Chain layers of the given input, hidden and output sizes."""
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.activation = activation
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Map (..., sizes[0]) to (..., sizes[-1])."""
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)


class GaussianFourier(nn.Module):
    """Random Fourier features [sin(2 pi v w), cos(2 pi v w)] of scalars (Tancik et al. 2020).

    `w` is drawn once and frozen. It stays a parameter, not a buffer, as in the published layout.
    """

    def __init__(self, num_frequencies: int) -> None:
        """Draw the frequencies from N(0, 1)."""
        super().__init__()
        self.w = nn.Parameter(torch.randn(num_frequencies), requires_grad=False)

    def forward(self, v: Tensor) -> Tensor:
        """Map scalars (...,) to features (..., 2 * num_frequencies)."""
        angle = v.unsqueeze(-1) * (2 * math.pi * self.w)  # (..., num_frequencies)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """An embedding of the time: Gaussian Fourier features and an MLP (Song et al. 2021)."""

    def __init__(self, num_features: int, output_dim: int) -> None:
        """Map times to `output_dim`-vectors through `num_features` Fourier features."""
        super().__init__()
        self.fourier = GaussianFourier(num_features // 2)
        self.mlp = MLP([num_features, output_dim, output_dim], nn.functional.silu)

    def forward(self, t: Tensor) -> Tensor:
        """Map times (rows,) to vectors (rows, output_dim)."""
        return self.mlp(self.fourier(t))


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d that falls back on its running statistics where a batch has none.

    Fewer than two rows have no variance; PyTorch would raise an error in training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (rows, width)."""
        if len(x) > 1:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class CategoricalEmbedding(nn.Module):
    """The sum over columns of one embedding table a column; xavier-uniform tables.

    The tables lie in one matrix, so that a lookup of all columns is one op.
    """

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        """Hold one table of `dim`-vectors for each column's number of categories."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(sizes), dim))
        first_row = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("first_row", first_row, persistent=False)
        for table in self.weight.data.split(list(sizes)):
            nn.init.xavier_uniform_(table)

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes (rows, columns) to vectors (rows, dim)."""
        return nn.functional.embedding_bag(codes + self.first_row, self.weight, mode="sum")


class SplitLinear(nn.Linear):
    """A linear map of a concatenation, as one product for each part.

    Linear([a, b]) = W_a a + W_b b + bias: with a and b known at the atoms, the products are made
    there instead of at the many more edges.
    """

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Map parts (rows, width_k) to their products (rows, outputs); the first has the bias."""
        weights = self.weight.split([part.shape[-1] for part in parts], dim=1)
        biases = (self.bias, *[None] * (len(parts) - 1))
        return tuple(map(ops.linear, parts, weights, biases))
