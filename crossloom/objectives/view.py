"""Views: what of an example one forward pass is shown, and what is hidden from it.

All decisions are made here, on the data side, from clean units and randomness keyed on
(seed, epoch, example, view name): the same in every process, testable and resumable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from crossloom.units import Array, Fate, Units


@dataclass(frozen=True, kw_only=True)
class Hide:
    """Which units of a stream are selected for prediction, and what becomes of them.

    Of the selected units (or groups), a share ``show`` stays visible, a share ``swap`` takes a
    random value (an id; another image's region), the rest is hidden (BERT: 0.15, 0.1, 0.1).
    """

    rate: float = 0.15
    """Probability that a maskable unit (group, share covered by spans) is selected, 0..1."""
    show: float = 0.1
    swap: float = 0.1
    by: Literal["unit", "group", "span"] = "unit"
    """``group``: units of a group are selected together and share their fate (whole words,
    overlapping boxes). ``span``: runs of units with geometric lengths (SpanBERT, section 3.1)."""
    span: float = 3.8
    """Mean length of a run before clipping to ten units."""
    at_least: int = 1
    """Selected units (groups) at the least, where there are as many (UNITER: 1; BERT: 0)."""

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.show < 0 or self.swap < 0 or self.show + self.swap > 1:
            raise ValueError(f"rate, show, swap and show + swap must lie in 0..1: {self}")


@dataclass(frozen=True, kw_only=True)
class View:
    """Streams, corruption and pairing shown to one forward pass.

    Objectives with equal views share the pass. The name seeds the corruption and is part of a
    run's identity: renaming a view reshuffles its masks.
    """

    name: str
    streams: tuple[str, ...]
    hide: Mapping[str, Hide] = field(default_factory=dict)
    mismatch: str | tuple[str, ...] = ""
    """Stream that is taken from another example with probability ``mismatch_rate``; of several, one
    is, each as often as the others (Oscar+: tags or text)."""
    mismatch_rate: float = 0.5
    apart: bool = False
    """Streams do not read each other: two encoders in one pass, whatever the plan."""
    causal: tuple[str, ...] = ()
    """Streams read left to right in this view."""
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By stream, what it may read at most, whatever the plan says; all for those not named. With
    ``causal``, a prefix: the caption reads the image and its own past, the image itself alone
    (UniLM, section 2.2; VLP)."""
    twice: Mapping[str, str] = field(default_factory=dict)
    """Show each example a second time, with other streams in these streams' places
    (``{image: second}``: a text with each of two pictures, the same weights for both)."""
    against: tuple[str, ...] = ()
    """For each entry show each example once more in training, with this stream taken from another
    example: what a matching pair must be preferred to."""

    def __post_init__(self) -> None:
        read = (s for names in self.reads.values() for s in names)
        named = {*self.hide, *self.causal, *self.reads, *read, *self.mismatched}
        named |= {*self.twice, *self.against}
        if strange := sorted(named - set(self.streams)):
            raise ValueError(f"view {self.name!r} shows {self.streams}, not {', '.join(strange)}")
        if self.apart and self.reads:
            raise ValueError(f"view {self.name!r}: streams apart read themselves; drop `reads`")
        if self.twice and (self.against or self.mismatch):
            raise ValueError(f"view {self.name!r}: twice goes with neither against nor mismatch")

    @property
    def rows(self) -> int:
        """How often the view shows each example, one after the other."""
        return 2 if self.twice else 1 + len(self.against)

    @property
    def decoded(self) -> tuple[str, ...]:
        """All streams that examples must have for this view."""
        return (*self.streams, *self.twice.values())

    @property
    def mismatched(self) -> tuple[str, ...]:
        """The streams that ``mismatch`` names."""
        if isinstance(self.mismatch, tuple):
            return self.mismatch
        return (self.mismatch,) if self.mismatch else ()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One example as one view shows it; what objectives take their aims from."""

    key: str
    units: Mapping[str, Units]  #: clean, by stream, after mismatching
    fate: Mapping[str, Array]  #: by stream, [N] int8 of :class:`~crossloom.units.Fate`
    matched: bool  #: False when a stream was taken from another example
    taken: str = ""  #: the stream that was
    labels: Mapping[str, Any]  #: what the reader knows of the example (answers, a class)
    rivals: bool = False  #: the view's rows ``against`` others do show other examples


def draw_fates(units: Units, hide: Hide, rng: np.random.Generator) -> Array:
    """The fate of each unit, ``[N]`` int8.

    ``by="unit"`` draws each maskable unit independently, ``by="group"`` each group that has a
    maskable unit; units that are not maskable are always kept.
    """
    fate = np.zeros(len(units), np.int8)
    places = np.flatnonzero(units.maskable)
    if len(places) == 0:
        return fate
    if hide.by == "unit":
        lots = np.arange(len(places))
    elif hide.by == "group":
        lots = np.unique(units.group[places], return_inverse=True)[1]
    else:
        lots = _spans(len(places), hide, rng)
    count = int(lots.max()) + 1
    if hide.by == "span":
        # lot 0 is what no run covers; runs are numbered from 1
        selected = np.arange(count) > 0
    else:
        selected = rng.random(count) < hide.rate
        lacking = min(hide.at_least, count) - int(selected.sum())
        if lacking > 0:
            selected[rng.choice(np.flatnonzero(~selected), lacking, replace=False)] = True
    draw = rng.random(count)
    chosen = np.where(
        draw < hide.show, Fate.SHOW, np.where(draw < hide.show + hide.swap, Fate.SWAP, Fate.HIDE)
    )
    fate[places] = np.where(selected, chosen, Fate.KEEP)[lots]
    return fate


def _spans(n: int, hide: Hide, rng: np.random.Generator) -> Array:
    """Number of the run that covers each of n places, 0 for none; covers ``rate`` of them."""
    lots = np.zeros(n, np.int64)
    budget = max(min(hide.at_least, n), round(hide.rate * n))
    covered = run = 0
    while covered < budget:
        size = min(int(rng.geometric(1 / hide.span)), 10, budget - covered)
        start = int(rng.integers(0, n - size + 1))
        free = np.flatnonzero(lots[start : start + size] == 0) + start
        if len(free):
            run += 1
            lots[free] = run
            covered += len(free)
    return lots
