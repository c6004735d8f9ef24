"""How a model is spread over processes: what an engine asks of DDP, FSDP or DeepSpeed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from crossloom.models.model import CrossloomModel
from crossloom.training.checkpoint import Piece
from crossloom.training.environment import Environment

if TYPE_CHECKING:
    from crossloom.training.recipe import Recipe


#: Whether a step is to be taken, by the norm of its gradient before clipping.
Accept = Callable[[float], bool]


class Spread(Protocol):
    """Parameters, gradients and the optimiser's state, whole or in parts, on one process."""

    module: nn.Module
    """What forward is called on in training."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: their ``lr`` is set before each step."""

    def turn(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one batch of a step; gradients are shared on the last."""

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients. Those of a step are averaged over processes."""

    def update(self, accept: Accept | None) -> tuple[Tensor, bool]:
        """Clip, step if the gradients' norm is accepted, forget them.

        Returns:
            Their global norm before clipping, a scalar, and whether the step was taken.

        Raises:
            RunError: the step should not have been taken, and cannot be left out any more.
        """

    def rest(self) -> None:
        """Let go of what a forward pass without a backward pass has gathered."""

    def local(self, parameter: nn.Parameter) -> Tensor:
        """What of a parameter this process holds, as forward will see it."""

    def parameters(self) -> Mapping[str, Piece]:
        """What of each parameter this process trains, or holds frozen."""

    def moments(self) -> Mapping[str, Piece]:
        """What the optimiser keeps for these, by ``key/parameter``; made where it is not yet."""

    def counters(self) -> list[Tensor]:
        """The optimiser's counts of its steps, all equal."""

    def renew(self) -> None:
        """After pieces have been filled from a checkpoint: let forward see them."""


@dataclass(frozen=True, kw_only=True)
class Backend(ABC):
    """What a recipe's ``engine`` names; a kind of engine is a subclass with its settings."""

    alone: ClassVar[bool] = False
    """Whether one process holds all that forward and backward need."""

    @abstractmethod
    def spread(self, model: CrossloomModel, recipe: Recipe, environment: Environment) -> Spread:
        """Spread a model, which is on its device and has frozen what is not trained.

        Raises:
            ValueError: the recipe asks for what the backend cannot do.
        """


def passes(recipe: Recipe, environment: Environment) -> int:
    """Batches of a step on one process."""
    share = recipe.micro // environment.world
    return -(-share // recipe.fused) if recipe.fused else 1
