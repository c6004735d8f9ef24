"""Names in tagged sentences: chunks of words, and the F1 of finding them (CoNLL-2000 and later).

The rules are those of ``conlleval`` (Tjong Kim Sang & Buchholz 2000), which seqeval follows: tags
are ``O``, or a prefix (``B``, ``I``; also ``E``, ``S``) and a kind after a hyphen. A chunk ends
where the kind changes, so that an ``I`` after another kind, or after ``O``, begins one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Kind, first word, last word.
Chunk = tuple[str, int, int]


def chunks(tags: Sequence[str]) -> set[Chunk]:
    """The chunks of one sentence.

    >>> sorted(chunks(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 3), ('LOC', 4, 4), ('PER', 0, 1)]
    """
    found: set[Chunk] = set()
    begin, before, kind = -1, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        fresh = prefix in ("B", "S") or before in ("E", "S", "O") or now != kind
        if begin >= 0 and (prefix == "O" or fresh):
            found.add((kind, begin, place - 1))
            begin = -1
        if prefix != "O" and begin < 0:
            begin = place
        before, kind = prefix, now
    return found


def are_chunks(tags: Iterable[str]) -> bool:
    """Whether tags tell chunks: there is an ``O``, and all others have a prefix."""
    known = set(tags)
    return "O" in known and all(t == "O" or t[:2] in ("B-", "I-", "E-", "S-") for t in known)


def chunk_scores(
    right: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> dict[str, float]:
    """``precision``, ``recall`` and ``f1`` over all chunks of all sentences; 0 where none are.

    Args:
        right: tags of each sentence. predicted: as many for each.
    """
    there = found = shared = 0
    for mine, theirs in zip(right, predicted, strict=True):
        a, b = chunks(mine), chunks(theirs)
        there, found, shared = there + len(a), found + len(b), shared + len(a & b)
    precision, recall = shared / max(1, found), shared / max(1, there)
    total = precision + recall
    f1 = 2 * precision * recall / total if total else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
