"""What a new head takes of another run's heads, whatever they are called: poolers and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossloom.objectives.classify import Classify
from crossloom.objectives.pooled import Pooled
from crossloom.training.recipe import Recipe

_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Weights:
    """What a model's heads may take."""

    own: Mapping[str, Tensor]  #: the model's, by name
    source: Mapping[str, Tensor]
    taken: Mapping[str, Tensor]  #: of the model, what is the source's by name already


def carry(recipe: Recipe, before: Recipe, given: Weights) -> tuple[dict[str, Tensor], set[str]]:
    """What heads take of the source's that read alike, where they find none of their own name.

    A classifier goes on with the one that knows most of its classes, one at least: its pooler, its
    hidden layer, and rows by the classes' names. Classes that it does not know score 0
    (airsplay/lxmert: ``src/pretrain/qa_answer_table.py``, ``load_lxmert_qa``). All others go on
    with the first pooler that summarises the same streams alike.

    Args:
        recipe, before: of the model, and of the source.
        given: their weights.

    Returns:
        What is taken, and the names of the source's weights that gave rows.
    """
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, head in recipe.objectives.items():
        if not isinstance(head, Pooled):
            continue
        lender = _lender(name, head, before, given) if isinstance(head, Classify) else ""
        if isinstance(head, Classify) and lender:
            out |= _classes_of(name, head, lender, before, given)
            used |= {f"heads.{lender}.{head.last}.{kind}" for kind in _KINDS}
        alike = [
            n for n, o in before.objectives.items() if isinstance(o, Pooled) and _same(o, head)
        ]
        # what it reads its classes from is best read as it was; it may have been borrowed
        first = [lender, before.objectives[lender].shares] if lender else []
        out |= _pooler(name, [*first, *alike], given)
    return out, used


def _pooler(name: str, lenders: Sequence[str], given: Weights) -> dict[str, Tensor]:
    """The pooler of the first of these heads that has one, if none is taken."""
    prefix = f"heads.{name}."
    new = [k.removeprefix(prefix) for k in given.own if k.startswith(f"{prefix}pooler.")]
    if any(prefix + part in given.taken for part in new):
        return {}
    found = (_fitting(name, other, new, given) for other in lenders)
    return next(filter(None, found), {})


def _lender(name: str, head: Classify, before: Recipe, given: Weights) -> str:
    """The source's classifier that a new one goes on with; none if its classes are taken."""
    table = f"{head.last}.weight"
    if f"heads.{name}.{table}" in given.taken:
        return ""
    width = given.own[f"heads.{name}.{table}"].shape[1]
    wanted = set(_classes(head))
    common = {
        other: len(wanted & set(_classes(o)))
        for other, o in before.objectives.items()
        if isinstance(o, Classify)
        and _same(o, head)
        and (o.hidden, o.view.rows) == (head.hidden, head.view.rows)
        and (lent := given.source.get(f"heads.{other}.{table}")) is not None
        and lent.shape[1] == width
    }
    lender = max(common, key=lambda n: (common[n], n == name), default="")
    return lender if lender and common[lender] else ""


def _classes_of(
    name: str, head: Classify, lender: str, before: Recipe, given: Weights
) -> dict[str, Tensor]:
    """A classifier's layers, with the lender's rows where it knows the class."""
    rows = [f"{head.last}.{kind}" for kind in _KINDS]
    prefix, known = f"heads.{name}.", before.objectives[lender]
    assert isinstance(known, Classify)
    parts = [k.removeprefix(prefix) for k in given.own if k.startswith(f"{prefix}mlp.")]
    out = _fitting(name, lender, [p for p in parts if p not in rows], given)
    place = {c: n for n, c in enumerate(_classes(known))}
    both = [(n, place[c]) for n, c in enumerate(_classes(head)) if c in place]
    into, of = (torch.tensor(x) for x in zip(*both, strict=True))
    for part in rows:
        value = given.source[f"heads.{lender}.{part}"]
        empty = torch.zeros_like(given.own[prefix + part])
        out[prefix + part] = empty.index_copy(0, into, value[of].to(empty))
    return out


def _fitting(name: str, other: str, parts: Sequence[str], given: Weights) -> dict[str, Tensor]:
    """These parts of another head, by the names that they have in this one; all, or none."""
    found = {p: v for p in parts if (v := given.source.get(f"heads.{other}.{p}")) is not None}
    own = {p: given.own[f"heads.{name}.{p}"] for p in parts}
    if any(p not in found or found[p].shape != own[p].shape for p in parts):
        return {}
    return {f"heads.{name}.{p}": found[p] for p in parts}


def other_classes(recipe: Recipe, before: Recipe | None) -> set[str]:
    """Names of classifiers' weights whose rows mean other classes than the source's of one name."""
    found = set()
    for name, head in recipe.objectives.items():
        old = before.objectives.get(name) if before is not None else None
        if isinstance(head, Classify) and isinstance(old, Classify):
            mine, theirs = _classes(head, bare=True), _classes(old, bare=True)
            if mine and theirs and mine != theirs:
                found |= {f"heads.{name}.{head.last}.{kind}" for kind in _KINDS}
    return found


def _same(one: Pooled, other: Pooled) -> bool:
    """Whether heads summarise streams alike, but for what training alone knows."""
    return {**one.pooling, "dropout": 0} == {**other.pooling, "dropout": 0}


def _classes(head: Classify, bare: bool = False) -> tuple[str, ...]:
    """A classifier's classes; none where their file is not here, or (``bare``) they are numbers."""
    try:
        names = head.names()
    except ValueError:
        return ()
    # of checkpoints that do not name their answers: 7 is then the eighth, not the number
    unnamed = names == tuple(map(str, range(len(names))))
    return () if unnamed and not bare else names
