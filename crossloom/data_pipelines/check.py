"""Reading every sample of shards, and counting what is wrong with them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from crossloom.data_pipelines.read import sample_json
from crossloom.data_pipelines.shards import Shard, open_shards
from crossloom.modalities.modality import Modality
from crossloom.modalities.patches import EXTENSIONS as PICTURES
from crossloom.modalities.patches import decode_image
from crossloom.modalities.regions import read_npz
from crossloom.modalities.speech import EXTENSIONS as SOUNDS
from crossloom.modalities.speech import decode_sound
from crossloom.units import BadSample, keyed_rng


@dataclass(frozen=True)
class CheckReport:
    """What was found."""

    samples: int
    defects: Mapping[str, int]  #: samples by kind of defect


Found = tuple[str, str, str, str]  #: shard, key, kind, message


def check_shards(
    patterns: str | Sequence[str],
    modalities: Mapping[str, Modality] | None = None,
    quarantine: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    processes: int | None = None,
) -> CheckReport:
    """Decode every sample, several shards at a time.

    Args:
        patterns: of shards, see :func:`~crossloom.data_pipelines.shards.open_shards`.
        modalities: decode with these (all but text, which a reader chooses); when None, every
            member is decoded by its extension.
        quarantine: JSON lines of what is bad: shard, key, kind, message.
        progress: called with (samples done, all).
        processes: at a time; as many as there are cores when None.

    Raises:
        ShardError: shards are missing or no tars.
    """
    shards = open_shards(patterns)
    total, done = sum(len(s.entries) for s in shards), 0
    bad: list[Found] = []
    jobs = [(s.path, dict(modalities) if modalities else None) for s in shards]
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for shard, found in zip(shards, pool.map(_check_shard, jobs), strict=True):
            bad += found
            done += len(shard.entries)
            if progress:
                progress(done, total)
    if quarantine and bad:
        names = ("shard", "key", "kind", "message")
        lines = (json.dumps(dict(zip(names, b, strict=True)), ensure_ascii=False) for b in bad)
        quarantine.write_text("\n".join(lines) + "\n", "utf-8")
    return CheckReport(total, Counter(kind for _, _, kind, _ in bad))


def _check_shard(job: tuple[str, dict[str, Modality] | None]) -> list[Found]:
    path, modalities = job
    (shard,) = open_shards(path)
    found: list[Found] = []
    keys: set[str] = set()
    for number, entry in enumerate(shard.entries):
        if entry.key in keys:
            found.append((path, entry.key, "duplicate key", "another sample has the same key"))
        keys.add(entry.key)
        try:
            _check_sample(shard, number, modalities)
        except BadSample as error:
            found.append((path, entry.key, error.kind, str(error)))
    return found


def _check_sample(shard: Shard, number: int, modalities: Mapping[str, Modality] | None) -> None:
    members = shard.read(number)
    if modalities is not None:
        for modality in modalities.values():
            modality.steady().decode(members, keyed_rng("check"))
    for name, data in members.items():
        if name == "json":
            sample_json(members)
        elif name == "txt":
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadSample("not UTF-8", f"{name}: {error}") from None
        elif name.rpartition(".")[2] in PICTURES:  # also 0.jpg, 1.jpg
            decode_image(data, name, 100_000_000)
        elif name in SOUNDS:
            decode_sound(data, name, 16_000, 3600)
        elif name.endswith("npz"):
            for array, value in read_npz(members, name).items():
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise BadSample("NaN features", f"{name}: {array} is not all finite")
