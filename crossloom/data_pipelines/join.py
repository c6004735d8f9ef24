"""The packer of documents and sentences: a micro-batch's texts laid end to end and cut anew.

Its buffer is the micro-batch, which is a function of its number alone; so is what comes out, and a
run resumes exactly through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossloom.data_pipelines.collate import Example
from crossloom.modalities.modality import Modality


def join(
    examples: Sequence[Example], modalities: Mapping[str, Modality], streams: frozenset[str]
) -> list[Example]:
    """Uncut examples joined, language by language, to examples that fill the stream's limit.

    Args:
        examples: decoded by :meth:`~crossloom.modalities.modality.Modality.loose`.
        modalities: by stream.
        streams: those that they have, all of the same text.

    Returns:
        Examples in place of those given, each with the key and labels of the one that it begins
        in: ``KEY~0``, ``KEY~1``, …
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(str(example.labels.get("language", "")), []).append(example)
    made: Counter[str] = Counter()
    out = []
    for group in groups.values():
        packed = {s: modalities[s].packed([e.units[s] for e in group]) for s in sorted(streams)}
        for parts in zip(*packed.values(), strict=True):
            first = group[parts[0][0]]
            key = f"{first.key}~{made[first.key]}"
            made[first.key] += 1
            units = {s: units for s, (_, units) in zip(packed, parts, strict=True)}
            out.append(replace(first, key=key, units=units))
    return out
