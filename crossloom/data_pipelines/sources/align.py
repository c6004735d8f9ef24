r"""Word alignments of parallel text, from the sentences themselves.

Reads a folder of shards that another source made, and writes their samples again with
``alignments`` (:mod:`crossloom.data_pipelines.alignment`) of each two languages::

    crossloom shards make align shards/opus --out shards/opus-aligned

For each two languages a dictionary is learned from how often words are met in sentences that
translate each other: Model 1 of Brown et al. (1993, section 4.2), where words at like places of
their sentences are likelier to belong together (Dyer et al. 2013, section 2: the diagonal, with a
tension of 4), five rounds of expectation and maximisation in either direction. Linked are words
that choose each other: fewer links than symmetrised ones of fast_align or eflomal, and surer ones.
Those tools know more (word classes, fertilities), and are worth their trouble on large corpora; the
sources ``opus`` and ``tatoeba`` take what they write.

Words are compared in lower case. Samples are read ``at_once`` at a time, and a dictionary is
learned from those alone: some 10 KB of memory for each sentence pair. Samples with one language
only are written as they are; alignments that are there already are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.data_pipelines.alignment import Link, words, write_links
from crossloom.data_pipelines.reader import sample_json
from crossloom.data_pipelines.shards import Shard
from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
)
from crossloom.data_pipelines.sources.region_features import samples_of
from crossloom.data_pipelines.write import SHARD_SIZE
from crossloom.units import Array, BadSample

_ROUNDS, _TENSION = 5, 4.0


def convert(
    input: Path | None,
    out: Path,
    *,
    at_once: int = 20_000,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the samples of shards with alignments.

    Args:
        input: folder of shards.
        out: folder for the shards; another one.
        at_once: samples from which dictionaries are learned.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no shards.
    """
    folder = need_folder(input, "align", "shards")
    if at_once < 1:
        raise SourceError(f"at_once={at_once}: must be at least 1")
    found = samples_of(folder)
    to = Conversion("align", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = sum(shard.samples for _, shard in found)
    places = [(split, shard, n) for split, shard in found for n in range(shard.samples)]
    with to:
        for first in range(0, len(places), at_once):
            some = [(x, c) for x in places[first : first + at_once] if (c := _content(to, *x[1:]))]
            for ((split, shard, n), _), content in zip(
                some, with_alignments([c for _, c in some]), strict=True
            ):
                members = {k: v for k, v in shard.read(n).items() if k != "json"}
                to.write(split, shard.entries[n].key, content, others=members)
    return to.report


def _content(to: Conversion, shard: Shard, number: int) -> dict[str, Any] | None:
    key = shard.entries[number].key
    try:
        return sample_json(shard.read(number))
    except BadSample as error:
        to.skip(error.kind, f"{shard.name}/{key}")
        return None


def with_alignments(contents: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The json of samples with ``alignments`` of each two languages with equally many texts."""
    asked: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, content in enumerate(contents):
        texts, known = content.get("texts") or {}, content.get("alignments") or {}
        for a, b in combinations(sorted(texts), 2):
            if len(texts[a]) == len(texts[b]) and not {f"{a}-{b}", f"{b}-{a}"} & set(known):
                asked.setdefault((a, b), []).extend((number, n) for n in range(len(texts[a])))
    made: dict[int, dict[str, list[str]]] = {}
    for (a, b), places in asked.items():
        pairs = [tuple(_said(contents[i]["texts"][x][n]) for x in (a, b)) for i, n in places]
        for (number, _), links in zip(places, align(pairs), strict=True):  # type: ignore[arg-type]
            lines = made.setdefault(number, {}).setdefault(f"{a}-{b}", [])
            lines.append(write_links(links))
    for number, content in enumerate(contents):
        lines_of: Mapping[str, Any] = {**(content.get("alignments") or {}), **made.get(number, {})}
        yield {**content, "alignments": lines_of} if lines_of else content


def _said(text: str) -> list[str]:
    return [text[a:b].casefold() for a, b in words(text)]


def align(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[list[Link]]:
    """Links between the words of sentences and of their translations.

    Args:
        pairs: the words of each sentence, and of its translation.

    Returns:
        For each pair, the links on which both directions agree.
    """
    sides = [[pair[k] for pair in pairs] for k in (0, 1)]
    length = [np.array([len(s) for s in side], np.int64) for side in sides]
    cells = length[0] * length[1]
    if not cells.sum():
        return [[] for _ in pairs]
    pair = np.repeat(np.arange(len(pairs)), cells)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(cells) - cells, cells)
    place = (within // length[1][pair], within % length[1][pair])
    token = [place[k] + (np.cumsum(length[k]) - length[k])[pair] for k in (0, 1)]
    kinds = [np.unique([w for s in side for w in s], return_inverse=True)[1] for side in sides]
    word = [kinds[k][token[k]] for k in (0, 1)]
    entry, cell = np.unique(word[0] * (word[1].max() + 1) + word[1], return_inverse=True)
    parts = [entry // (word[1].max() + 1), entry % (word[1].max() + 1)]
    apart = np.abs((place[0] + 0.5) / length[0][pair] - (place[1] + 0.5) / length[1][pair])
    near = np.exp(-_TENSION * apart)
    chosen = np.ones(len(pair), bool)
    for giver, taker in ((0, 1), (1, 0)):
        chance = _learn(cell, parts[giver], token[taker], near)
        chosen &= _best(chance, token[taker])
    links: list[list[Link]] = [[] for _ in pairs]
    for at in np.flatnonzero(chosen):
        links[pair[at]].append((int(place[0][at]), int(place[1][at])))
    return links


def _learn(cell: Array, giver: Array, taker: Array, near: Array) -> Array:
    """How likely each cell is where its taking word comes from, ``[cells]``.

    Args:
        cell: the dictionary's entry that each cell (two words of a pair) is, ``[cells]``.
        giver: the giving word of each entry, ``[entries]``.
        taker: the place of the taking word of each cell, ``[cells]``.
        near: what the places make of it, ``[cells]``.
    """
    table = np.ones(len(giver))
    chance = near
    for _ in range(_ROUNDS):
        chance = table[cell] * near
        chance = chance / np.bincount(taker, chance)[taker]
        count = np.bincount(cell, chance, minlength=len(giver))
        table = count / np.bincount(giver, count)[giver]
    return table[cell] * near


def _best(chance: Array, taker: Array) -> Array:
    """Which cells are the likeliest of their taking word, ``[cells]`` bool; of equals the first."""
    order = np.lexsort((-np.arange(len(chance)), chance, taker))
    last = np.append(taker[order][1:] != taker[order][:-1], True)
    best = np.zeros(len(chance), bool)
    best[order[last]] = True
    return best
