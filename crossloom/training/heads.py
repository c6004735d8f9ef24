"""What a new head takes of another run's heads, whatever they are called: poolers and classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from crossloom.objectives.classify import Classify
from crossloom.objectives.pooled import Pooled
from crossloom.training.recipe import Recipe

_KINDS = ("weight", "bias")


def poolers(
    recipe: Recipe,
    before: Recipe,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Poolers of heads that are new, from the source's that summarise the same streams alike.

    Args:
        recipe, before: of the model, and of the source.
        own, weights: the model's, and the source's, by name.
        taken: what the model has taken already.
    """
    out: dict[str, Tensor] = {}
    for name, head in recipe.objectives.items():
        prefix = f"heads.{name}."
        new = [k.removeprefix(prefix) for k in own if k.startswith(f"{prefix}pooler.")]
        if not isinstance(head, Pooled) or any(prefix + part in taken for part in new):
            continue
        for other, lender in before.objectives.items():
            if not isinstance(lender, Pooled) or _made(lender) != _made(head):
                continue
            found = {p: weights[k] for p in new if (k := f"heads.{other}.{p}") in weights}
            if all(p in found and found[p].shape == own[prefix + p].shape for p in new):
                out |= {prefix + p: value for p, value in found.items()}
                break
    return out


def classifiers(
    recipe: Recipe,
    before: Recipe,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], set[str]]:
    """Classifiers that are new, from the source's that read alike: rows go by the class's name.

    Of several that which knows most classes lends, and one at least. Classes that it does not know
    score 0 (airsplay/lxmert: ``src/pretrain/qa_answer_table.py``, ``load_lxmert_qa``).

    Args:
        recipe, before, own, weights, taken: see :func:`poolers`.

    Returns:
        What is taken, and the names of the source's weights that gave rows.
    """
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, head in recipe.objectives.items():
        if not isinstance(head, Classify) or f"heads.{name}.{head.last}.weight" in taken:
            continue
        names = _classes(head)
        knows = {n: _classes(o) for n, o in _like(head, before)}
        common = {n: len(set(names) & set(known)) for n, known in knows.items()}
        lender = max(common, key=lambda n: (common[n], n == name), default="")
        prefix, other = f"heads.{name}.", f"heads.{lender}."
        rows = [f"{head.last}.{kind}" for kind in _KINDS]
        layers = [
            k.removeprefix(prefix)
            for k in own
            if k.startswith(f"{prefix}mlp.") and k.removeprefix(prefix) not in rows
        ]
        alike = all(
            other + p in weights and weights[other + p].shape == own[prefix + p].shape
            for p in layers
        )
        if not lender or not common[lender] or not alike or other + rows[0] not in weights:
            continue
        out |= {prefix + p: weights[other + p] for p in layers}
        place = {c: n for n, c in enumerate(knows[lender])}
        both = [(n, place[c]) for n, c in enumerate(names) if c in place]
        into, of = (torch.tensor(x) for x in zip(*both, strict=True))
        for part in rows:
            value = weights[other + part]
            empty = torch.zeros(len(names), *value.shape[1:], dtype=value.dtype)
            out[prefix + part] = empty.index_copy(0, into, value[of])
            used.add(other + part)
    return out, used


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


def _made(head: Pooled) -> dict[str, object]:
    """How a head summarises streams, but for what training alone knows."""
    return {k: v for k, v in head.pooling.items() if k != "dropout"}


def _like(head: Classify, before: Recipe) -> Iterator[tuple[str, Classify]]:
    """The source's classifiers that read the same, in as many layers."""
    reads = head.hidden, head.view.rows, _made(head)
    for name, other in before.objectives.items():
        if not isinstance(other, Classify):
            continue
        if (other.hidden, other.view.rows, _made(other)) == reads:
            yield name, other


def _classes(head: Classify, bare: bool = False) -> tuple[str, ...]:
    """A classifier's classes; none where their file is not here, or (``bare``) they are numbers."""
    try:
        names = head.names()
    except ValueError:
        return ()
    # of checkpoints that do not name their answers: 7 is then the eighth, not the number
    unnamed = names == tuple(map(str, range(len(names))))
    return () if unnamed and not bare else names
