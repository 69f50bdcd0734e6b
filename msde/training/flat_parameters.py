"""The trained weights of an optimizer group as one parameter, as DeepSpeed's engine sees them.

The engine does work for each parameter in every step: hooks in the backward pass, buckets, copies.
For a model of hundreds of small weights that takes longer than the step itself on a GPU. Here it
sees one parameter a group. The model's own parameters are views of it, so names, checkpoints and
everything else stay as they are. ZeRO 3 needs the parameters of each module by themselves.

Weights of a multiple of four numbers come first: so they begin at multiples of 16 bytes, as tensor
cores want them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from msde.data.batch import MoleculeBatch
from msde.model import NAMES_OF_TIMES, MoleculeSDE, names_of_terms
from msde.training.optimizer import parameter_groups

LAYOUT = 2  # of the weights in a flat parameter, which checkpoints have moments of
ALIGNED = 4  # numbers


def in_order(members: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the weights of a group in the order of a flat parameter."""
    return sorted(members, key=lambda member: member.numel() % ALIGNED != 0)


class FlatParameters(nn.Module):
    """A model with one parameter for each optimizer group. Its state has the model's names."""

    model: MoleculeSDE

    def __init__(self, model: MoleculeSDE) -> None:
        """Move the trained weights of a model, which is on its device already, to flat tensors."""
        super().__init__()
        self.__dict__["model"] = model  # not a submodule: the engine must not see its parameters
        self._members: list[list[nn.Parameter]] = []  # the model's parameters in each flat one
        self.groups: list[dict[str, Any]] = []  # as of `parameter_groups`
        for group in parameter_groups(model):
            members = in_order(group["params"])
            flat = nn.Parameter(torch.cat([member.detach().flatten() for member in members]))
            self.register_parameter(group["name"], flat)
            self._members.append(members)
            self.groups.append(group | {"params": [flat]})
        self.refresh_views()

    def refresh_views(self) -> None:
        """Make the model's parameters views of the flat ones, which the engine has moved."""
        for flat, members in zip(self.parameters(), self._members, strict=True):
            parts = flat.data.split([member.numel() for member in members])
            for member, part in zip(members, parts, strict=True):
                member.data = part.view_as(member)

    def forward(self, batch: MoleculeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the model returns."""
        if not torch.is_grad_enabled():
            return self.model(batch)
        loss, *terms = _Joined.apply(self, batch, *self.parameters())
        names = (*names_of_terms(self.model.config.loss), *NAMES_OF_TIMES)
        return loss, dict(zip(names, terms, strict=True))

    def gradients(self, loss: Tensor, upper: Tensor) -> list[Tensor]:
        """Return the gradients of the flat parameters; zero where a weight has no part in it."""
        members = [member for part in self._members for member in part]
        found = list(torch.autograd.grad(loss, members, upper, allow_unused=True))
        pairs = zip(found, members, strict=True)
        unused = max((member.numel() for grad, member in pairs if grad is None), default=0)
        zeros = upper.new_zeros(unused)
        found.reverse()  # each is given up as soon as it is copied

        def gradient(member: Tensor) -> Tensor:
            grad = found.pop()
            return zeros[: member.numel()] if grad is None else grad.flatten()

        return [torch.cat([gradient(member) for member in part]) for part in self._members]

    def train(self, mode: bool = True) -> FlatParameters:
        """Set the model's mode, too."""
        self.model.train(mode)
        return super().train(mode)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return a copy of the model's state.

        Of views, a file of one tensor alone, as of a converted checkpoint, would hold its group.
        """
        state = self.model.state_dict(*args, **kwargs)
        for name, tensor in state.items():
            state[name] = tensor.detach().clone()
        return state

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state of the model."""
        return self.model.load_state_dict(*args, **kwargs)


class _Joined(torch.autograd.Function):
    """Loss and terms of a batch as a function of the flat parameters."""

    @staticmethod
    def forward(
        ctx: Any, module: FlatParameters, batch: MoleculeBatch, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss, terms = module.model(batch)
        ctx.module, ctx.loss = module, loss
        ctx.mark_non_differentiable(*terms.values())
        ctx.set_materialize_grads(False)  # or zeros would be made for those of the terms
        return loss.detach(), *terms.values()

    @staticmethod
    def backward(ctx: Any, upper: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        loss = ctx.loss
        del ctx.loss  # with it goes the graph
        return None, None, *ctx.module.gradients(loss, upper)


def model_of(module: nn.Module) -> MoleculeSDE:
    """Return the model in what an engine wraps."""
    return module.model if isinstance(module, FlatParameters) else module  # type: ignore
