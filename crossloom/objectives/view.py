"""Views: what of an example one forward pass is shown, and what is hidden from it.

All decisions are made here, on the data side, from clean units and randomness keyed on
(seed, epoch, example, view name): the same in every process, testable and resumable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from crossloom.units import Array, Fate, Units


@dataclass(frozen=True, kw_only=True)
class Hide:
    """Which units of a stream are selected for prediction, and what becomes of them.

    Of the selected units (or groups), a share ``show`` stays visible, a share ``swap`` takes a
    random value (an id; another image's region), a share ``drop`` is not shown at all, the rest is
    hidden (BERT: 0.15, 0.1, 0.1, 0).
    """

    rate: float = 0.15
    """Probability that a maskable unit (group, share covered by spans) is selected, 0..1."""
    show: float = 0.1
    swap: float = 0.1
    drop: float = 0.0
    """Token deletion (BART, section 2.2), word dropout (XLM). One unit at least is shown. Nothing
    of such a stream can be scored."""
    by: Literal["unit", "group", "span", "segment"] = "unit"
    """``group``: units of a group are selected together and share their fate (whole words,
    overlapping boxes). ``span``: runs of units, each of one fate (SpanBERT, section 3.1).
    ``segment``: one run of ``rate`` of the units, each with a fate of its own; it starts at the
    first unit or ends at the last in a fifth of the cases each (MASS, ``restricted_mask_sent``)."""
    span: float = 3.8
    """Mean length of a run before clipping."""
    law: Literal["geometric", "poisson", "parted"] = "geometric"
    """Of the runs' lengths (SpanBERT; BART, section 2.2). ``parted``: what is selected and what is
    left are each parted at random into as many runs, which take turns, the first being left, so
    that no two selected ones meet (T5, section 3.1.4 and ``random_spans_noise_mask``); there are
    as many as make ``span`` their mean, and ``longest`` is not looked at."""
    longest: int = 10
    """Units of a run at most."""
    whole: bool = False
    """Runs are of whole groups, ``rate``, ``span`` and ``longest`` count groups (mBART)."""
    merge: bool = False
    """A hidden run shows as one mask, a swapped one as one random unit: text infilling (BART).
    Nothing of such a stream can be scored; a second stream holds what is to be said."""
    insert: bool = False
    """With ``merge``, a run of length zero puts a mask between units, as long as no more units are
    shown than there are; without it, such runs are not drawn."""
    alone: bool = False
    """Of the stream show the selected units only, hidden, in their positions: places that a head
    fills (ERNIE-M's pseudo tokens). Nothing of such a stream can be scored."""
    shuffle: float = 0.0
    """Maskable units are laid in the order of their place plus a random number from 0 to this, so
    that none moves as far as that (XLM's ``word_shuffle``: 3). Nothing of such a stream can be
    scored."""
    permute: str = ""
    """Name of a target whose runs of one value change places as wholes before anything is hidden:
    ``sentence`` for sentence permutation (BART, section 2.2; mBART). A special between two of them
    moves with the one before it; those at either end stay. Nothing of such a stream can be
    scored."""
    last: bool = False
    """The last unit may be selected too (``</s>``: who says a text has to learn to end it)."""
    at_least: int = 1
    """Selected units (groups) at the least, where there are as many (BERT, UNITER: 1; ViLBERT,
    LXMERT: 0)."""

    def __post_init__(self) -> None:
        shares = (self.show, self.swap, self.drop)
        if not 0 <= self.rate <= 1 or min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(
                f"rate, show, swap, drop and the sum of these three must lie in 0..1: {self}"
            )
        if self.shuffle < 0:
            raise ValueError(f"shuffle must be at least 0: {self}")
        if not self.span > 0 or (self.law == "geometric" and self.span < 1) or self.longest < 1:
            raise ValueError(f"span must be above 0 (geometric: at least 1), longest too: {self}")
        if (self.merge or self.whole) and self.by != "span":
            raise ValueError(f"merge and whole are of runs: set by to span, not {self.by}")
        if self.insert and not (self.merge and self.law == "poisson"):
            raise ValueError("insert needs merge, and law: poisson: else no run has length zero")
        others = self.show, self.swap, self.drop, self.merge, self.shuffle, self.permute
        if self.alone and any(others):
            raise ValueError("alone: places to be filled: show and swap are 0, and nothing else")
        if self.drop and self.merge:
            raise ValueError("drop and merge: what is selected is either not shown or one mask")

    @property
    def relaid(self) -> bool:
        """Other units may be shown than the clean ones, one by one and in their order."""
        moved = self.shuffle > 0 or bool(self.permute)
        return self.merge or self.drop > 0 or self.alone or moved


@dataclass(frozen=True, kw_only=True)
class View:
    """Streams, corruption and pairing shown to one forward pass.

    Objectives with equal views share the pass. The name seeds the corruption and is part of a
    run's identity: renaming a view reshuffles its masks.
    """

    name: str
    streams: tuple[str, ...]
    hide: Mapping[str, Hide] = field(default_factory=dict)
    follow: Mapping[str, str] = field(default_factory=dict)
    """``{target: text}``: of ``target``, which holds the same units as ``text``, show only those
    that stand before a unit selected in ``text``, in their own positions: what a decoder is fed
    to say the segment hidden from the encoder (MASS, section 3.2)."""
    mismatch: str | tuple[str, ...] = ""
    """Stream that is taken from another example with probability ``mismatch_rate``; of several, one
    is, each as often as the others (Oscar+: tags or text)."""
    mismatch_rate: float = 0.5
    mixed: tuple[str, ...] = ()
    """Streams shown end to end with those of one other example of the micro-batch, if there is
    another sample; which comes first is drawn for each stream (InfoXLM's mix-up contrast)."""
    apart: bool = False
    """Streams do not read each other: two encoders in one pass, whatever the plan."""
    across: bool = False
    """Hidden units read the visible units of the other streams, and themselves; all others read the
    visible units of their own stream. What is predicted of one side is then known from the other
    alone, through any number of layers (ERNIE-M's CAMLM). The plan's streams must read themselves
    and each other in one block."""
    causal: tuple[str, ...] = ()
    """Streams read left to right in this view."""
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By stream, what it may read at most, whatever the plan says; all for those not named. With
    ``causal``, a prefix: the caption reads the image and its own past, the image itself alone
    (UniLM, section 2.2; VLP)."""
    unseen: tuple[str, ...] = ()
    """Streams whose hidden units no other stream reads; swapped ones and those left visible are
    read (MASS: the decoder does not read what the encoder is not shown)."""
    twice: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Show each example a second time, with other streams in these streams' places
    (``{image: second}``: a text with each of two pictures, the same weights for both). With several
    in one's place, it is shown once more for each: ``{text: (choice1, choice2, choice3)}`` shows a
    picture with each of four texts."""
    against: tuple[str, ...] = ()
    """For each entry show each example once more in training, with this stream taken from another
    example: what a matching pair must be preferred to."""

    def __post_init__(self) -> None:
        read = (s for names in self.reads.values() for s in names)
        named = {*self.hide, *self.causal, *self.reads, *read, *self.mismatched}
        named |= {*self.mixed, *self.follow, *self.follow.values(), *self.twice, *self.against}
        named |= {*self.unseen}
        if strange := sorted(named - set(self.streams)):
            raise ValueError(f"view {self.name!r} shows {self.streams}, not {', '.join(strange)}")
        for stream, other in self.follow.items():
            if other not in self.hide or stream in self.hide or self.hide[other].relaid:
                raise ValueError(
                    f"view {self.name!r}: {stream!r} follows {other!r}: hide units of {other!r}, "
                    f"unmerged and in their places, and none of {stream!r}"
                )
        if self.across:
            self._check_across()
        if self.apart and self.reads:
            raise ValueError(f"view {self.name!r}: streams apart read themselves; drop `reads`")
        if self.twice and (self.against or self.mismatch):
            raise ValueError(f"view {self.name!r}: twice goes with neither against nor mismatch")
        if len({len(_several(others)) for others in self.twice.values()}) > 1:
            raise ValueError(
                f"view {self.name!r}: twice: a row has one stream in each place; name as many in "
                "each"
            )

    def _check_across(self) -> None:
        if self.apart or self.causal or self.reads or len(self.streams) < 2:
            raise ValueError(
                f"view {self.name!r}: across is for two streams or more, "
                "without apart, causal and reads"
            )
        for stream, hide in self.hide.items():
            if hide.show or hide.swap:
                raise ValueError(
                    f"view {self.name!r}: across: units of {stream!r} that are predicted but shown "
                    "would be read by their own side; set show and swap to 0"
                )

    @property
    def rows(self) -> int:
        """How often the view shows each example, one after the other."""
        return 1 + len(self.places or self.against)

    @property
    def places(self) -> tuple[Mapping[str, str], ...]:
        """For each row that ``twice`` adds, the stream that takes each one's place."""
        others = zip(*map(_several, self.twice.values()), strict=True)
        return tuple(dict(zip(self.twice, row, strict=True)) for row in others)

    @property
    def decoded(self) -> tuple[str, ...]:
        """All streams that examples must have for this view."""
        return (*self.streams, *(other for row in self.places for other in row.values()))

    @property
    def clean(self) -> View:
        """The same, with nothing hidden."""
        return replace(self, hide={}, follow={})

    @property
    def mismatched(self) -> tuple[str, ...]:
        """The streams that ``mismatch`` names."""
        return _several(self.mismatch) if self.mismatch else ()


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


@dataclass(frozen=True)
class Laid:
    """What a view lays out of a stream where it does not show each unit in its place."""

    place: Array  #: [M] int64, the clean unit that each shown one stands for
    fate: Array  #: [M] int8
    position: Array  #: [M] int64


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
    laid: Mapping[str, Laid] = field(default_factory=dict)
    """By stream, where other units are shown than the clean ones, one by one."""

    def layout(self, stream: str) -> Laid:
        """The shown units of any stream."""
        units = self.units[stream]
        plain = Laid(np.arange(len(units)), self.fate[stream], units.position)
        return self.laid.get(stream, plain)

    def label(self, name: str) -> Any:
        """What the reader knows of the example under a name.

        Raises:
            ValueError: the reader does not tell it.
        """
        if name not in self.labels:
            raise ValueError(
                f"{self.key}: an objective needs label {name!r}; the component's reader tells "
                f"{', '.join(self.labels) or 'none'}: give the component another reader, or the "
                "objective another label"
            )
        return self.labels[name]


def draw_fates(units: Units, hide: Hide, rng: np.random.Generator) -> Array:
    """The fate of each unit, ``[N]`` int8.

    ``by="unit"`` draws each maskable unit independently, ``by="group"`` each group that has a
    maskable unit; units that are not maskable are always kept.
    """
    return _draw(units, hide, rng)[0]


def draw_relaid(units: Units, hide: Hide, rng: np.random.Generator) -> tuple[Array, Laid]:
    """Fates ``[N]``, and what is shown when parts of the text move, shrink or are left out.

    Positions close up: shown units stand as close as the clean ones do.

    Raises:
        ValueError: the units do not have the target whose runs are to change places.
    """
    order = np.arange(len(units))
    if hide.permute:
        if hide.permute not in units.targets:
            raise ValueError(
                f"hide: permute: units have no {hide.permute!r}; of a text, set `sentences` and "
                "permute: sentence"
            )
        order = _permuted(units.targets[hide.permute], rng)
    if hide.shuffle:
        order = order[_shuffled(units.maskable[order], hide.shuffle, rng)]
    if hide.permute or hide.shuffle:
        group = units.group[order]
        begins = np.append([False], group[1:] != group[:-1])
        units = replace(units, maskable=units.maskable[order], group=np.cumsum(begins))
    fate, lots, empty = _draw(units, hide, rng)
    if hide.alone:
        place = np.flatnonzero(fate == Fate.HIDE)
        return fate, Laid(place, fate[place], units.position[place])
    goes_on = np.zeros(len(units), bool)
    if hide.merge:
        changed = (fate == Fate.HIDE) | (fate == Fate.SWAP)
        goes_on[1:] = changed[1:] & changed[:-1] & (lots[1:] == lots[:-1])
    elif hide.drop:
        if (fate == Fate.DROP).all():
            fate[0] = Fate.SHOW
        goes_on = fate == Fate.DROP
    place = np.flatnonzero(~goes_on)
    shown = fate[place]
    inserts = min(empty, len(units) - len(place))
    if inserts:
        # a mask goes before a maskable unit, never before <s> or after </s>
        before = rng.choice(np.flatnonzero(units.maskable[place]), size=inserts)
        before.sort()
        place = np.insert(place, before, place[before])
        shown = np.insert(shown, before, np.int8(Fate.HIDE))
    clean = np.empty_like(fate)
    clean[order] = fate
    return clean, Laid(order[place], shown, _closed_up(units.position, place))


def _permuted(value: Array, rng: np.random.Generator) -> Array:
    """The order in which units are laid when runs of one value, 0 or above, change places."""
    inside = np.flatnonzero(value >= 0)
    if len(inside) == 0:
        return np.arange(len(value))
    first, end = int(inside[0]), int(inside[-1]) + 1
    body = value[first:end]
    begins = np.flatnonzero((body[1:] != body[:-1]) & (body[1:] >= 0)) + 1
    runs = np.split(np.arange(first, end), begins)
    moved = [runs[n] for n in rng.permutation(len(runs))]
    return np.concatenate([np.arange(first), *moved, np.arange(end, len(value))])


def _shuffled(maskable: Array, reach: float, rng: np.random.Generator) -> Array:
    """The order in which units are laid when those that are maskable move less than ``reach``."""
    order, places = np.arange(len(maskable)), np.flatnonzero(maskable)
    score = np.arange(len(places)) + rng.uniform(0, reach, len(places))
    order[places] = places[score.argsort()]
    return order


def follow(fate: Array, positions: Array) -> Laid:
    """The units that stand before a selected one; the first alone where none is selected."""
    place = np.flatnonzero(fate[1:] != Fate.KEEP)
    place = place if len(place) else np.zeros(1, np.int64)
    return Laid(place, np.zeros(len(place), np.int8), positions[place])


def _closed_up(position: Array, place: Array) -> Array:
    """Positions that go up by one, and restart where the clean ones do (a second passage)."""
    stretch = np.zeros(len(position), np.int64)
    stretch[1:] = np.cumsum(position[1:] != position[:-1] + 1)
    mine = stretch[place]
    rank = np.arange(len(place))
    first = np.searchsorted(mine, mine)
    begins = np.searchsorted(stretch, mine)
    return position[begins] + rank - first


def _draw(units: Units, hide: Hide, rng: np.random.Generator) -> tuple[Array, Array, int]:
    """Fates ``[N]``, the lot (unit, group, run) each unit was drawn with, and empty runs drawn."""
    fate, lot, empty = np.zeros(len(units), np.int8), np.full(len(units), -1, np.int64), 0
    maskable = units.maskable
    if hide.last and maskable.any():
        maskable = maskable.copy()
        maskable[-1] = True
    places = np.flatnonzero(maskable)
    if len(places) == 0:
        return fate, lot, empty
    if hide.by == "unit":
        lots = np.arange(len(places))
    elif hide.by == "group":
        lots = np.unique(units.group[places], return_inverse=True)[1]
    elif hide.by == "segment":
        lots = _segment(len(places), hide, rng)
    elif hide.whole:
        words = np.unique(units.group[places], return_inverse=True)[1]
        lots, empty = _spans(int(words.max()) + 1, hide, rng)
        lots = lots[words]
    else:
        lots, empty = _spans(len(places), hide, rng)
    count = int(lots.max()) + 1
    if hide.by in ("span", "segment"):
        # lot 0 is what no run covers; runs are numbered from 1
        selected = np.arange(count) > 0
    else:
        selected = rng.random(count) < hide.rate
        lacking = min(hide.at_least, count) - int(selected.sum())
        if lacking > 0:
            selected[rng.choice(np.flatnonzero(~selected), lacking, replace=False)] = True
    ends = np.cumsum([hide.show, hide.swap, hide.drop])
    fates = np.array([Fate.SHOW, Fate.SWAP, Fate.DROP, Fate.HIDE], np.int8)
    chosen = fates[np.searchsorted(ends, rng.random(count), side="right")]
    fate[places] = np.where(selected, chosen, Fate.KEEP)[lots]
    lot[places] = lots
    return fate, lot, empty


def _budget(n: int, hide: Hide) -> int:
    return max(min(hide.at_least, n), round(hide.rate * n))


def _segment(n: int, hide: Hide, rng: np.random.Generator) -> Array:
    """One run over ``rate`` of n places: 0 outside, then a number for each unit of it."""
    lots = np.zeros(n, np.int64)
    size = _budget(n, hide)
    where = rng.random()
    start = 0 if where < 0.2 else n - size if where < 0.4 else int(rng.integers(n - size + 1))
    lots[start : start + size] = np.arange(1, size + 1)
    return lots


def _spans(n: int, hide: Hide, rng: np.random.Generator) -> tuple[Array, int]:
    """Number of the run that covers each of n places, 0 for none, and how many runs were empty.

    The runs cover ``rate`` of the places; the last is cut to fit.
    """
    if hide.law == "parted":
        return _parted(n, hide, rng), 0
    lots = np.zeros(n, np.int64)
    budget = _budget(n, hide)
    covered = run = empty = 0
    while covered < budget:
        size = min(_length(hide, rng), hide.longest, budget - covered)
        if size == 0:
            empty += hide.insert
            continue
        start = int(rng.integers(0, n - size + 1))
        free = np.flatnonzero(lots[start : start + size] == 0) + start
        if len(free):
            run += 1
            lots[free] = run
            covered += len(free)
    return lots, empty


def _parted(n: int, hide: Hide, rng: np.random.Generator) -> Array:
    """The same where runs and what is left between them are random parts of what there is."""
    size = _budget(n, hide)
    if size in (0, n):
        return np.full(n, size // n, np.int64)
    runs = min(max(1, round(size / hide.span)), size, n - size)
    number = np.zeros(2 * runs, np.int64)
    number[1::2] = np.arange(1, runs + 1)
    lengths = np.empty(2 * runs, np.int64)
    lengths[1::2], lengths[::2] = _parts(size, runs, rng), _parts(n - size, runs, rng)
    return np.repeat(number, lengths)


def _parts(n: int, count: int, rng: np.random.Generator) -> Array:
    """Lengths, at least 1, of ``count`` random parts of n places; all partings are as likely."""
    cuts = np.sort(rng.choice(n - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [n]]))


def _length(hide: Hide, rng: np.random.Generator) -> int:
    return int(rng.geometric(1 / hide.span) if hide.law == "geometric" else rng.poisson(hide.span))
