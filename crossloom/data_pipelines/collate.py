"""From decoded examples to a batch: views are shown, aims are taken, arrays laid end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossloom.batch import AimBatch, Batch, Stream, ViewBatch
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Objective
from crossloom.objectives.view import Laid, Shown, View, draw_fates, draw_relaid, follow
from crossloom.units import Array, Fate, Units, keyed_rng


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example, decoded and clean."""

    key: str  #: ``shard/sample`` or ``shard/sample#item``: unique in its component
    sample: str  #: ``shard/sample``: pairs of one sample are never mismatched with each other
    epoch: int
    units: Mapping[str, Units]
    labels: Mapping[str, Any]


@dataclass(frozen=True)
class Exhibit:
    """An example as shown by a view: the clean side, and the arrays a corrupted view holds."""

    shown: Shown
    content: Mapping[str, Mapping[str, Array]]  #: by stream


def exhibit(
    example: Example,
    view: View,
    modalities: Mapping[str, Modality],
    seed: int,
    others: Sequence[Example],
) -> Exhibit:
    """Show one example: perhaps mismatch or mix streams, draw fates, substitute content.

    A pure function of (seed, epoch, example key, view name) and of the micro-batch's examples,
    which are themselves a function of (seed, micro-batch).
    """
    rng = keyed_rng(seed, example.epoch, example.key, view.name)
    units = {s: example.units[s] for s in view.streams}
    strangers = [o for o in others if o.sample != example.sample]
    taken, may_take = "", view.mismatched
    if may_take and rng.random() < view.mismatch_rate and strangers:
        partner = strangers[int(rng.integers(len(strangers)))]
        taken = may_take[int(rng.integers(len(may_take)))] if len(may_take) > 1 else may_take[0]
        units[taken] = partner.units[taken]
    if view.mixed and strangers:
        partner = strangers[int(rng.integers(len(strangers)))]
        for stream in view.mixed:
            both = [units[stream], partner.units[stream]]
            # what lies beyond the stream's limit is cut off
            (_, units[stream]), *_ = modalities[stream].packed(both[:: rng.choice((1, -1))])
    matched = not taken and bool(example.labels.get("matched", True))
    fate: dict[str, Array] = {}
    content: dict[str, Mapping[str, Array]] = {}
    laid: dict[str, Laid] = {}
    for stream, these in units.items():
        hide = view.hide.get(stream)
        if hide is None:
            fate[stream] = np.zeros(len(these), np.int8)
            content[stream] = these.content
        else:
            some = these
            if hide.relaid:
                fate[stream], laid[stream] = draw_relaid(these, hide, rng)
                some, seen = _pick(these, laid[stream]), laid[stream].fate
            else:
                fate[stream] = seen = draw_fates(these, hide, rng)
            content[stream] = modalities[stream].substitute(some, seen, rng)
            if modalities[stream].swapped and (seen == Fate.SWAP).any():
                names, theirs = modalities[stream].swapped, [o.units[stream] for o in strangers]
                content[stream] = _swap(content[stream], seen, names, theirs, rng)
    for stream, other in view.follow.items():
        if len(units[stream]) != len(units[other]):
            raise ValueError(
                f"view {view.name!r}: {stream!r} follows {other!r}, but of {example.key} one has "
                f"{len(units[stream])} units, the other {len(units[other])}; let the reader give "
                "both one text, and both streams one limit"
            )
        fate[stream] = fate[other]
        laid[stream] = follow(fate[other], units[stream].position)
        content[stream] = _pick(units[stream], laid[stream]).content
    shown = Shown(
        key=example.key,
        units=units,
        fate=fate,
        matched=matched,
        taken=taken,
        labels=example.labels,
        laid=laid,
    )
    return Exhibit(shown, content)


def _pick(units: Units, laid: Laid) -> Units:
    """The clean units that those laid out stand for, in their new positions."""
    place = laid.place
    return replace(
        units,
        content={k: v[place] for k, v in units.content.items()},
        targets={k: v[place] for k, v in units.targets.items()},
        position=laid.position,
        maskable=units.maskable[place],
        group=units.group[place],
    )


def _swap(
    content: Mapping[str, Array],
    fate: Array,
    names: tuple[str, ...],
    strangers: Sequence[Units],
    rng: np.random.Generator,
) -> Mapping[str, Array]:
    """Content in which swapped units take theirs from random units of other examples.

    Where there is no other example to take from, they stay as they are.
    """
    new = {name: content[name].copy() for name in names}
    for place in np.flatnonzero(fate == Fate.SWAP) if strangers else ():
        other = strangers[int(rng.integers(len(strangers)))]
        unit = int(rng.choice(np.flatnonzero(other.maskable))) if other.maskable.any() else 0
        for name in names:
            new[name][place] = other.content[name][unit]
    return {**content, **new}


def exhibits(
    example: Example,
    view: View,
    modalities: Mapping[str, Modality],
    seed: int,
    others: Sequence[Example],
) -> tuple[Exhibit, ...]:
    """All rows in which a view shows one example: as it is, then ``twice`` or ``against`` others.

    Where no other example is on hand the rows against others repeat the example, and ``rivals`` of
    what is shown is False.
    """
    first = exhibit(example, view, modalities, seed, others)

    def again(units: Mapping[str, Units]) -> Exhibit:
        shown = replace(example, units={**example.units, **units})
        return exhibit(shown, view, modalities, seed, ())

    if view.twice:
        return (first, *(again({s: example.units[o] for s, o in x.items()}) for x in view.places))
    if not view.against:
        return (first,)
    rivals = [o for o in others if o.sample != example.sample]
    first = replace(first, shown=replace(first.shown, rivals=bool(rivals)))
    if not rivals:
        return (first,) * view.rows
    rng = keyed_rng(seed, example.epoch, example.key, view.name, "against")
    rows = []
    for stream in dict.fromkeys(view.against):
        # others are met again only when there are fewer of them than rows
        count = view.against.count(stream)
        chosen = [rivals[int(n)] for n in np.resize(rng.permutation(len(rivals)), count)]
        rows += [again({stream: rival.units[stream]}) for rival in chosen]
    return (first, *rows)


@dataclass(frozen=True)
class Collator:
    """Makes batches for a recipe's objectives."""

    modalities: Mapping[str, Modality]
    objectives: Mapping[str, Objective]
    seed: int
    languages: tuple[str, ...] = ()
    """Those whose losses are told apart."""

    def of_units(self) -> dict[str, str]:
        """What each objective's aim indexes, as :func:`crossloom.batch.fuse` wants it."""
        return {n: f"{o.view.name}/{o.scored}" for n, o in self.objectives.items()}

    def batch(
        self, examples: Sequence[Example], drawn: Sequence[str], slots: int, others: bool = True
    ) -> Batch:
        """One micro-batch.

        Args:
            examples: decoded examples, perhaps fewer than planned (bad ones are left out).
            drawn: the component's objectives; all others get a blank view and a blank aim.
            slots: examples planned for, which fixes the slots of objectives that gather.
            others: False keeps every stream matched and shows none against others (evaluation).
        """
        views: dict[str, ViewBatch] = {}
        rows: dict[str, list[tuple[Exhibit, ...]]] = {}
        fill = dict.fromkeys(self.modalities, (0, 0))
        for name, objective in self.objectives.items():
            view = objective.view
            if name not in drawn or not examples or view.name in rows:
                continue
            pool = examples if others else ()
            seen = view if others else replace(view, against=())
            rows[view.name] = [
                exhibits(e, seen, self.modalities, self.seed, pool) for e in examples
            ]
            flat = [one for some in rows[view.name] for one in some]
            views[view.name] = self._view(view, flat)
            for stream, those in views[view.name].streams.items():
                units, room = fill[stream]
                most = self.modalities[stream].longest() * len(flat)
                fill[stream] = (units + len(those.position), room + most)
        aims, counts = {}, {}
        for name, objective in self.objectives.items():
            view = objective.view
            if view.name not in views:
                views[view.name] = self._blank_view(view)
            active = name in drawn and view.name in rows
            aims[name] = self._aim(objective, rows[view.name] if active else [], slots)
            counts[name] = float(aims[name].weight.sum())
        ordered = {o.view.name: views[o.view.name] for o in self.objectives.values()}
        return Batch(
            views=ordered,
            aims=aims,
            counts=counts,
            keys=tuple(e.key for e in examples),
            units=sum(units for units, _ in fill.values()),
            fill=fill,
        )

    def show(self, view: View, examples: Sequence[Example]) -> ViewBatch:
        """Examples as one view shows them, nothing mismatched."""
        return self._view(
            view, [exhibit(e, view, self.modalities, self.seed, ()) for e in examples]
        )

    def _view(self, view: View, exhibits: Sequence[Exhibit]) -> ViewBatch:
        streams = {}
        for stream in view.streams:
            units = [e.shown.units[stream] for e in exhibits]
            contents = [e.content[stream] for e in exhibits]
            laid = [e.shown.layout(stream) for e in exhibits]
            streams[stream] = Stream.build(
                {k: np.concatenate([c[k] for c in contents]) for k in contents[0]},
                {k: np.stack([u.whole[k] for u in units]) for k in units[0].whole},
                np.concatenate([x.position for x in laid]),
                np.concatenate([x.fate for x in laid]) == Fate.HIDE,
                np.array([len(x.place) for x in laid], np.int64),
            )
        return ViewBatch(
            streams=streams,
            apart=view.apart,
            across=view.across,
            causal=view.causal,
            reads=dict(view.reads),
            unseen=view.unseen,
        )

    def _blank_view(self, view: View) -> ViewBatch:
        """One example of blank units: every module takes part in every step."""
        units = {s: self.modalities[s].blank() for s in view.streams}
        fate = {s: np.zeros(len(u), np.int8) for s, u in units.items()}
        shown = Shown(key="", units=units, fate=fate, matched=True, labels={})
        exhibit = Exhibit(shown, {s: u.content for s, u in units.items()})
        return self._view(view.clean, [exhibit] * view.rows)

    def _aim(
        self, objective: Objective, rows: Sequence[tuple[Exhibit, ...]], slots: int
    ) -> AimBatch:
        # an example's aim is taken from, and points at, its first row
        index, value, trust, language, begin = [], [], [], [], 0
        scored = objective.scored
        told = bool(scored and self.languages)
        for some in rows:
            aim: Aim = objective.aim(some[0].shown)
            index.append(aim.index + begin)
            value.append(aim.value)
            trust += [] if aim.trust is None else [aim.trust]
            language += [self._language(some[0].shown, scored, aim.index)] if told else []
            sizes = (len(x.shown.layout(scored).place) if scored else 1 for x in some)
            begin += sum(sizes)
        count = sum(len(i) for i in index)
        fixed = objective.slots(slots)
        blanks = (fixed - count if fixed is not None else 0) or (1 if count == 0 else 0)
        if blanks:
            index.append(np.zeros(blanks, np.int64))
            value.append(np.repeat(objective.blank(self.modalities), blanks, axis=0))
        weight = np.concatenate([np.ones(count, np.float32), np.zeros(blanks, np.float32)])
        if trust:
            trust.append(np.ones(blanks, np.float32))
        if told:
            language.append(np.zeros(blanks, np.int64))
        return AimBatch(
            index=np.concatenate(index).astype(np.int64),
            value=np.concatenate(value),
            weight=weight,
            trust=np.concatenate(trust).astype(np.float32) if trust else None,
            language=np.concatenate(language) if told else None,
            languages=len(self.languages),
        )

    def _language(self, shown: Shown, stream: str, index: Array) -> Array:
        """The number of the language that each of some shown units is in, ``[K]`` int64, from 1."""
        passages = shown.units[stream].languages or (("", 0),)
        numbers = [
            self.languages.index(code) + 1 if code in self.languages else 0 for code, _ in passages
        ]
        if len(passages) == 1:
            return np.full(len(index), numbers[0], np.int64)
        begins = [begin for _, begin in passages]
        which = np.searchsorted(begins, shown.layout(stream).place[index], side="right") - 1
        return np.array(numbers, np.int64)[which]
