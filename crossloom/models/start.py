"""Weights of one plan for another: what plays the same part in both is taken over.

A text model's layers can start the text stream of a two-stream model, a single stream can start
from either. Published systems do so: ViLBERT and UNITER start from BERT (arXiv 1908.02265, section
3.1; 1909.11740, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from crossloom.models.plan import Attend, Feed, Plan


@dataclass(frozen=True)
class Site:
    """One set of weights of a block."""

    prefix: str  #: of the names of its parameters
    owner: str  #: the stream (or ``shared``) whose weights they are
    block: Attend | Feed
    read: tuple[str, ...]  #: streams that the stream reads there

    def name(self, part: str, kind: str) -> str:
        """Name of a parameter: ``part`` as in ``query``, ``kind`` ``weight`` or ``bias``."""
        return f"{self.prefix}.{part}.{self.owner}.{kind}"


def sites(plan: Plan, stream: str) -> Iterator[Site]:
    """The weights that a stream passes through, first to last; tied ones each time."""
    for place, block in plan.blocks.items():
        if stream in block.changes:
            layer, number = plan.home[place]
            owner = "shared" if block.shared else stream
            read = block.reads[stream] if isinstance(block, Attend) else ()
            yield Site(f"fusion.layers.{layer}.blocks.{number}", owner, block, read)


def parts(plan: Plan, stream: str) -> dict[tuple[str, ...], list[Site]]:
    """The same by the part they play: reading itself, reading others, and feeding after either.

    A part's sites are in order, so that the i-th of one plan answers to the i-th of another.
    """
    found: dict[tuple[str, ...], list[Site]] = {}
    before: tuple[str, ...] = ()
    for site in sites(plan, stream):
        if isinstance(site.block, Attend):
            before = ("itself",) if stream in site.read else ("others", *sorted(site.read))
            part = before
        else:
            part = ("feed", *before)
        found.setdefault(part, []).append(site)
    return found


def transplant(
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    source: Plan,
    target: Plan,
    streams: Mapping[str, str],
) -> dict[str, Tensor]:
    """What a model takes from another's weights, by the model's own names.

    Embedders are taken by stream, layers by part (:func:`parts`), as many as both have. A decoder's
    feed-forward, which comes after it has read others, takes after a source that has no decoder
    too. Of position tables of different length the rows that both have are taken, and nothing of
    layers when one plan norms before and the other after: such weights mean something else.

    Args:
        weights: of the source, by name.
        own: of the target, by name, as they stand; not changed.
        source, target: the plans.
        streams: by the target's stream, the source's that it takes after.
    """
    taken: dict[str, Tensor] = {}
    for mine, name in counterparts(own, source, target, streams):
        if name in weights and mine not in taken:
            value = _fit(weights[name], own[mine], rows=mine.endswith(".position.weight"))
            if value is not None:
                taken[mine] = value
    return taken


def counterparts(
    own: Mapping[str, Tensor], source: Plan, target: Plan, streams: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Names of the target's weights, each with the source's that plays its part.

    Args:
        own: of the target, by name.
        source, target: the plans.
        streams: by the target's stream, the source's that it takes after.
    """
    pairs = list(_embedders(own, streams))
    if source.norm == target.norm:
        for stream, before in streams.items():
            there = parts(source, before)
            here = parts(target, stream)
            for part, new in here.items():
                old = there.get(tuple(streams.get(p, p) for p in part), ())
                if not old and part[0] == "feed" and ("feed", "itself") not in here:
                    old = there.get(("feed", "itself"), ())
                for site, other in zip(new, old, strict=False):
                    pairs += _site(site, other, streams)
            into = "shared" if target.last == "shared" else stream
            name = "shared" if source.last == "shared" else before
            pairs += [(f"fusion.last.{into}.{k}", f"fusion.last.{name}.{k}") for k in _KINDS]
    return [(mine, name) for mine, name in pairs if mine in own]


_KINDS = ("weight", "bias")


def _embedders(own: Mapping[str, Tensor], streams: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in own:
        for stream, before in streams.items():
            if name.startswith(f"embed.{stream}."):
                yield name, f"embed.{before}.{name.removeprefix(f'embed.{stream}.')}"


def _site(into: Site, site: Site, streams: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of one site's weights, the target's and the source's."""
    owners = [(into, site)]  # its own, then those of what it reads: their keys, values and norms
    for stream, before in streams.items():
        if stream in into.read and before in site.read:
            owners += [
                (
                    replace(into, owner="shared" if into.block.shared else stream),
                    replace(site, owner="shared" if site.block.shared else before),
                )
            ]
    for part in ("query", "output", "up", "down", "after"):
        yield from ((into.name(part, kind), site.name(part, kind)) for kind in _KINDS)
    for part in ("keyvalue", "norm"):
        for mine, theirs in owners:
            yield from ((mine.name(part, kind), theirs.name(part, kind)) for kind in _KINDS)


def _fit(value: Tensor, own: Tensor, rows: bool) -> Tensor | None:
    if value.shape == own.shape:
        return value
    if not rows or value.shape[1:] != own.shape[1:]:
        return None
    out, both = own.clone(), min(len(value), len(own))
    out[:both] = value[:both].to(own)
    return out
