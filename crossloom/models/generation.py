"""Continuing a stream unit by unit: searched (greedy, beams), or sampled.

What is said, and how its keys are kept, is :mod:`~crossloom.models.speaker`'s.

Legend: E examples, B beams, R = E * B rows, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import ViewBatch
from crossloom.models.model import CrossloomModel
from crossloom.models.speaker import Speaker
from crossloom.units import keyed_rng


@dataclass(frozen=True, kw_only=True)
class Search:
    """How units are chosen."""

    beams: int = 1
    """Continuations followed at a time; 1 is greedy."""
    longest: int = 20
    """New units at most, the end counted."""
    shortest: int = 0
    """New units before the end may come."""
    penalty: float = 1.0
    """A finished row scores its summed log probability over its length to this power, the end
    counted: above 0 favours long ones, 0 is the plain sum."""
    best: int = 1
    """Continuations returned for each example, at most ``beams``; samples, any number."""
    early: bool = True
    """Stop when ``beams`` rows have finished; else when none that goes on can win any more."""
    temperature: float = 0.0
    """Above 0, units are drawn, not searched for: from probabilities whose logarithms are divided
    by this."""
    top_k: int = 0
    """Drawn from so many likeliest units; 0 for all."""
    top_p: float = 1.0
    """Of those, from the likeliest that make up this share (nucleus; Holtzman et al. 2020)."""
    seed: int = 0
    """Of what is drawn, beside the place of the example and of its sample."""

    def __post_init__(self) -> None:
        most = self.best if self.temperature else self.beams
        if not 1 <= self.best <= most or self.longest < 1:
            raise ValueError(f"longest, and best in 1..beams, must be at least 1: {self}")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature and top_k from 0, top_p above 0 up to 1: {self}")
        if self.temperature and self.beams > 1:
            raise ValueError("beams are searched for; with a temperature, say how many by `best`")


class Said(NamedTuple):
    """One continuation."""

    units: tuple[int, ...]  #: without opening and end
    score: float  #: log probability (of the model, at no temperature), as the search scores it


@torch.inference_mode()
def generate(
    model: CrossloomModel,
    objective: str,
    view: ViewBatch,
    *,
    end: int | None,
    search: Search | None = None,
    never: Sequence[int] = (),
    forced: Tensor | None = None,
) -> list[list[Said]]:
    """Continue the units of a stream, example by example.

    Args:
        model: set to evaluation mode.
        objective: whose head predicts, and whose stream is continued.
        view: everything the stream reads, and its opening: one unit or more of each example.
        end: the class that ends a continuation; None where all are as long as the search says.
        search: greedy when None.
        never: classes that are not said (specials).
        forced: ``[E]`` or ``[E, F]`` int64, classes that are said first (a language token);
            they are not part of what is returned, nor of its score and length.

    Returns:
        For each example its best continuations, best first.

    Raises:
        ValueError: the objective predicts no classes, or a unit could know a later one.
    """
    search = search or Search()
    model.eval()
    speaker = Speaker(model, objective, view, room=search.longest + _columns(forced))
    logits = speaker.begin()
    for column in range(_columns(forced)):
        assert forced is not None
        logits = speaker.say(forced.view(len(forced), -1)[:, column].to(logits.device))
    last = -1 if end is None else end
    if search.temperature:
        return _sample(speaker, speaker.spread(search.best, logits), last, search, never)
    return _beam(speaker, speaker.spread(search.beams, logits), last, search, never)


def _columns(forced: Tensor | None) -> int:
    return 0 if forced is None else forced.view(len(forced), -1).shape[1]


def _sample(
    speaker: Speaker, logits: Tensor, end: int, search: Search, never: Sequence[int]
) -> list[list[Said]]:
    """Independent continuations, ``best`` of each example, all at a time."""
    rows, device = len(logits), logits.device
    keys = (divmod(row, search.best) for row in range(rows))
    drawn = [keyed_rng("sample", search.seed, *key).random(search.longest) for key in keys]
    lots = torch.from_numpy(np.stack(drawn)).to(device)
    barred = torch.tensor([n for n in never if n != end], dtype=torch.long, device=device)
    total = torch.zeros(rows, device=device)
    length = torch.zeros(rows, dtype=torch.long, device=device)
    over = torch.zeros(rows, dtype=torch.bool, device=device)
    said: list[Tensor] = []
    for place in range(search.longest):
        logits = logits.index_fill(1, barred, -math.inf)
        if place < search.shortest and end >= 0:
            logits[:, end] = -math.inf
        unit = choose(logits, search, lots[:, place])
        total += logits.gather(1, unit[:, None])[:, 0].masked_fill(over, 0.0)
        length += ~over
        over |= unit == end
        said.append(unit)
        if len(said) == search.longest or (end >= 0 and bool(over.all())):
            break
        logits = speaker.say(unit)
    scores = (total / length**search.penalty).tolist()
    ended = (length - over.long()).tolist()
    lists = torch.stack(said, 1).tolist()
    found = [Said(tuple(u[:n]), s) for u, n, s in zip(lists, ended, scores, strict=True)]
    parts = [found[n : n + search.best] for n in range(0, rows, search.best)]
    return [sorted(some, key=lambda s: -s.score) for some in parts]


def choose(logits: Tensor, search: Search, lots: Tensor) -> Tensor:
    """A unit for each row, ``[R]``, as temperature, ``top_k`` and ``top_p`` say.

    Args:
        logits: ``[R, V]``.
        search: with a temperature.
        lots: ``[R]`` in 0..1: where in the distribution, the likeliest units first.
    """
    chance, order = (
        (logits.double() / search.temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    )
    if search.top_k:
        chance[:, search.top_k :] = 0
    before = chance.cumsum(1) - chance
    chance = chance.masked_fill(before >= search.top_p * chance.sum(1, keepdim=True), 0)
    reach = chance.cumsum(1)
    place = (reach <= lots[:, None] * reach[:, -1:]).sum(1)
    last = (chance > 0).sum(1) - 1  # what rounding would put past the last
    return order.gather(1, torch.minimum(place, last)[:, None])[:, 0]


def _beam(
    speaker: Speaker, logits: Tensor, end: int, search: Search, never: Sequence[int]
) -> list[list[Said]]:
    """Beam search, all examples at a time."""
    beams, device = search.beams, logits.device
    examples, classes = len(logits) // beams, logits.shape[1]
    barred = torch.tensor([n for n in never if n != end], dtype=torch.long, device=device)
    # all rows of an example are alike at first: only one of them may go on
    total = torch.full((examples, beams), -math.inf, device=device)
    total[:, 0] = 0
    said = torch.zeros(examples, beams, 0, dtype=torch.long, device=device)
    done: list[list[Said]] = [[] for _ in range(examples)]
    begin = torch.arange(examples, device=device)[:, None] * beams
    for length in range(1, search.longest + 1):
        logits = logits.index_fill(1, barred, -math.inf)
        if length <= search.shortest and end >= 0:
            logits[:, end] = -math.inf
        scores = (total.view(-1, 1) + logits).view(examples, -1)
        # enough that `beams` rows go on even if every row could end
        best, where = scores.topk(min(2 * beams, scores.shape[1]), dim=1)
        row, unit = where // classes, where % classes
        ends = unit == end
        _finish(done, best, row, ends, said, search, length)
        # rows that go on: the best that do not end, in order
        order = (best.masked_fill(ends, -math.inf)).argsort(stable=True, dim=1, descending=True)
        order = order[:, :beams]
        if order.shape[1] < beams:
            order = F.pad(order, (0, beams - order.shape[1]), value=int(order.shape[1]) - 1)
        total = best.masked_fill(ends, -math.inf).gather(1, order)
        row, unit = row.gather(1, order), unit.gather(1, order)
        past = said.gather(1, row[:, :, None].expand(-1, -1, said.shape[2]))
        said = torch.cat([past, unit[:, :, None]], 2)
        if length == search.longest or _settled(done, total, search, length):
            break
        speaker.pick((begin + row).view(-1))
        logits = speaker.say(unit.view(-1))
    _cut_short(done, total, said, search)
    return [sorted(some, key=lambda s: -s.score)[: search.best] for some in done]


def _finish(
    done: list[list[Said]],
    best: Tensor,
    row: Tensor,
    ends: Tensor,
    said: Tensor,
    search: Search,
    length: int,
) -> None:
    """Take in rows that end, if they are among the best ``beams`` of their example."""
    if not bool(ends.any()):
        return
    lists = (x.tolist() for x in (best, row, ends, said))
    for found, scores, rows, over, past in zip(done, *lists, strict=True):
        if _full(found, search):
            continue
        for place in range(min(search.beams, len(scores))):
            if over[place] and scores[place] > -math.inf:
                found.append(Said(tuple(past[rows[place]]), scores[place] / length**search.penalty))
        found.sort(key=lambda s: -s.score)
        del found[search.beams :]


def _full(found: Sequence[Said], search: Search) -> bool:
    return search.early and len(found) >= search.beams


def _settled(done: Sequence[Sequence[Said]], total: Tensor, search: Search, length: int) -> bool:
    """Whether no example has anything to gain by going on."""
    if any(len(found) < search.beams for found in done):
        return False
    if search.early:
        return True
    # sums only fall; a positive penalty divides them by more the longer they get
    reach = search.longest if search.penalty > 0 else length + 1
    hope = (total.max(1).values / reach**search.penalty).tolist()
    return all(found[-1].score >= h for found, h in zip(done, hope, strict=True))


def _cut_short(done: Sequence[list[Said]], total: Tensor, said: Tensor, search: Search) -> None:
    """Rows that were still going on at the length's limit compete as they are."""
    length = said.shape[2]
    for found, scores, rows in zip(done, total.tolist(), said.tolist(), strict=True):
        if length < search.longest or _full(found, search):
            continue
        found.extend(
            Said(tuple(units), score / length**search.penalty)
            for units, score in zip(rows, scores, strict=True)
            if score > -math.inf
        )
