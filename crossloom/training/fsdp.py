"""Parameters, gradients and moments in parts by their first axis: FSDP2.

Each layer of the plan is gathered when its turn comes and let go of after it. What layers lend to
others, embedders and heads are gathered once a pass, as one group: parts that are lent
(``Embedder.borrow``, tied blocks and vocabularies) are then whole wherever they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossloom.models.model import CrossloomModel
from crossloom.training.checkpoint import Piece
from crossloom.training.ddp import Whole
from crossloom.training.environment import Environment
from crossloom.training.spread import Backend, Spread

if TYPE_CHECKING:
    from crossloom.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Fsdp(Backend):
    """FSDP2 (``fully_shard``): every process keeps a part of parameters, gradients and moments.

    In bf16, layers compute with parameters gathered as bf16, norms left out; gradients are reduced
    in fp32.
    """

    def spread(self, model: CrossloomModel, recipe: Recipe, environment: Environment) -> Spread:
        """See :class:`~crossloom.training.spread.Backend`."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if environment.world == 1:
            raise ValueError("engine: fsdp shards over several processes; use ddp for one")
        half = torch.bfloat16 if recipe.precision == "bf16" else None
        layers = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        slow = model.slow.fusion.apart() if model.slow is not None else []
        for layer in (*model.fusion.apart(), *slow):
            # norms stay in fp32, as autocast has them; a group has one precision
            for norm in layer.modules() if half else ():
                if isinstance(norm, nn.LayerNorm):
                    fully_shard(norm, mp_policy=rest)
            fully_shard(layer, mp_policy=layers)
        fully_shard(model, mp_policy=rest)
        return Sharded(model, model, recipe)


class Sharded(Whole):
    """See :class:`~crossloom.training.spread.Spread`: rows of parameters on each process."""

    def turn(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged in the last batch's backward pass."""
        return self._turn(last)

    @contextmanager
    def _turn(self, last: bool) -> Iterator[None]:
        self.module.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def clip(self) -> Tensor:
        """By the norm over all parts."""
        gradients = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
        square = torch.stack([g.square().sum() for g in gradients]).sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        torch._foreach_mul_(gradients, (self.limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def rest(self) -> None:
        """The outermost group stays gathered after a forward pass."""
        self.module.reshard()  # type: ignore[operator]

    def local(self, parameter: Tensor) -> Tensor:
        """The rows that are here."""
        return local(parameter)

    def piece(self, parameter: nn.Parameter) -> Piece:
        """The rows that are here; their place follows from the order of processes."""
        rows, world = parameter.shape[0], dist.get_world_size()
        first = min(dist.get_rank() * -(-rows // world), rows)
        start = first * (parameter.numel() // rows)
        return Piece(local(parameter).view(-1), tuple(parameter.shape), start)


def local(tensor: Any) -> Tensor:
    """What of a tensor is on this process."""
    part: Tensor = tensor.detach().to_local()
    return part
