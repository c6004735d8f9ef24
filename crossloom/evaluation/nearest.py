"""The nearest vectors of other vectors, a chunk of rows at a time: no square matrix is held."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: How candidates are scored.
Scoring = Literal["cosine", "margin"]
#: Neighbours over which a margin is taken (Artetxe & Schwenk 2019, section 3.2).
NEIGHBOURS = 4
#: Scores held at once, elements.
AT_ONCE = 2**23


def neighbours(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``y`` that score highest by inner product with each row of ``x``.

    Args:
        x: ``[n, dim]`` float32.
        y: ``[m, dim]`` float32.
        k: at most m are found.

    Returns:
        Scores ``[n, k]`` descending, and the rows' numbers ``[n, k]`` int64.
    """
    size = max(1, AT_ONCE // max(1, len(y)))
    parts = [(some @ y.T).topk(min(k, len(y)), dim=1) for some in x.split(size)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def nearest(x: Tensor, y: Tensor, scoring: Scoring = "cosine") -> tuple[Tensor, Tensor]:
    """For each row of ``x`` the best row of ``y``, and for each of ``y`` the best of ``x``.

    ``cosine`` is the highest cosine. ``margin`` divides the cosine by the mean of those of both
    sides' ``NEIGHBOURS`` nearest, and chooses among a row's own nearest: the ratio of Artetxe &
    Schwenk (2019, section 3.2), so that a row that is near to everything is not found everywhere.

    Args:
        x: ``[n, dim]``. y: ``[m, dim]``.
        scoring: how.

    Returns:
        ``[n]`` and ``[m]`` int64.
    """
    x, y = F.normalize(x.float(), dim=1), F.normalize(y.float(), dim=1)
    k = 1 if scoring == "cosine" else NEIGHBOURS
    (there, found), (back, sought) = neighbours(x, y, k), neighbours(y, x, k)
    if scoring == "margin":
        here, away = there.mean(1), back.mean(1)
        there = there / ((here[:, None] + away[found]) / 2)
        back = back / ((away[:, None] + here[sought]) / 2)
    best = [s.argmax(1, keepdim=True) for s in (there, back)]
    return found.gather(1, best[0]).squeeze(1), sought.gather(1, best[1]).squeeze(1)
