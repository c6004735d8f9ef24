"""Rules between their names and layouts of weights and ours, each usable in both directions.

Nothing is computed: values are renamed, joined, parted, turned and reshaped, so that reading and
writing back gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Rule:
    """Some of our tensors and some of theirs that hold the same numbers."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[[Tensors], Tensors]  #: theirs to ours, in the order of the names
    write: Callable[[Tensors], Tensors]


class Noted(Mapping[str, Tensor]):
    """Weights by name that remember which of them were looked at."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        value = self._weights[name]
        self._used.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def unused(self) -> list[str]:
        """Names that nobody asked for."""
        return sorted(set(self._weights) - self._used)


def read_all(rules: Iterable[Rule], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights from theirs.

    Raises:
        ValueError: one is missing, or has another shape than the rule needs.
    """
    return {k: v for r in rules for k, v in _apply(r.theirs, r.ours, r.read, theirs).items()}


def write_all(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights from ours.

    Raises:
        ValueError: one is missing, or has another shape than the rule needs.
    """
    return {k: v for r in rules for k, v in _apply(r.ours, r.theirs, r.write, ours).items()}


def _apply(
    names: tuple[str, ...],
    into: tuple[str, ...],
    change: Callable[[Tensors], Tensors],
    weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    if missing := [n for n in names if n not in weights]:
        raise ValueError(
            f"weights: no {missing[0]!r}; the checkpoint is incomplete, or its configuration is "
            "another model's"
        )
    try:
        found = change([weights[n] for n in names])
    except RuntimeError as error:
        raise ValueError(f"weights: {names[0]!r} does not fit: {error}") from None
    return dict(zip(into, (x.contiguous() for x in found), strict=True))


def same(ours: str, theirs: str) -> Rule:
    """One tensor as it is."""
    return Rule((ours,), (theirs,), list, list)


def both(ours: str, theirs: str) -> list[Rule]:
    """Weight and bias of a linear layer or a norm."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def joined(ours: str, theirs: Sequence[str]) -> Rule:
    """Several of theirs of one size, one below the other in ours."""
    return Rule(
        (ours,), tuple(theirs), lambda x: [torch.cat(list(x))], lambda x: x[0].chunk(len(theirs))
    )


def parted(ours: Sequence[str], theirs: str, shares: Sequence[int]) -> Rule:
    """One of theirs whose rows are divided, in the proportion of ``shares``, among ours."""

    def read(x: Tensors) -> Tensors:
        unit = len(x[0]) // sum(shares)
        return x[0].split([unit * s for s in shares])

    return Rule(tuple(ours), (theirs,), read, lambda x: [torch.cat(list(x))])


def stacked(ours: Sequence[str], theirs: str) -> Rule:
    """Vectors of ours that are the rows of a table of theirs."""
    return Rule(tuple(ours), (theirs,), lambda x: x[0].unbind(0), lambda x: [torch.stack(list(x))])


def turned(ours: str, theirs: str) -> Rule:
    """A matrix, transposed: they write ``x @ matrix``."""
    return Rule((ours,), (theirs,), lambda x: [x[0].T], lambda x: [x[0].T])


def wrapped(ours: str, theirs: str, leading: int = 1) -> Rule:
    """A tensor that has ``leading`` further dimensions of size one before it with them."""

    def write(x: Tensors) -> Tensors:
        return [x[0].reshape(*[1] * leading, *x[0].shape)]

    return Rule((ours,), (theirs,), lambda x: [x[0].reshape(x[0].shape[leading:])], write)


def scalar(ours: str, theirs: str) -> Rule:
    """One number, which we keep as a vector of one element."""
    return Rule((ours,), (theirs,), lambda x: [x[0].reshape(1)], lambda x: [x[0].reshape(())])


def pixels(ours: str, theirs: str, patch: int) -> Rule:
    """A convolution over patches ``[width, 3, patch, patch]``; ours reads channels last."""

    def read(x: Tensors) -> Tensors:
        return [x[0].permute(0, 2, 3, 1).flatten(1)]

    def write(x: Tensors) -> Tensors:
        return [x[0].unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)]

    return Rule((ours,), (theirs,), read, write)
