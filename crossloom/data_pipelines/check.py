"""Reading every sample of shards, and counting what is wrong with them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from crossloom.data_pipelines import index, remote, summary
from crossloom.data_pipelines.errors import ShardError, WorkerError
from crossloom.data_pipelines.reader import Reader, sample_json
from crossloom.data_pipelines.shards import Shard, open_shards
from crossloom.data_pipelines.source import defect, visit
from crossloom.data_pipelines.summary import Totals
from crossloom.modalities.arrays import read_npz
from crossloom.modalities.modality import Modality
from crossloom.modalities.pictures import EXTENSIONS as PICTURES
from crossloom.modalities.pictures import decode_image
from crossloom.modalities.speech import EXTENSIONS as SOUNDS
from crossloom.modalities.speech import decode_sound
from crossloom.units import BadSample, Defect, keyed_rng

_AT_ONCE = 64  # samples of one piece of work


@dataclass(frozen=True)
class CheckReport:
    """What was found."""

    samples: int
    defects: Mapping[str, int]  #: samples (and shards) by kind of defect


@dataclass(frozen=True)
class Use:
    """What is done with the samples of some shards."""

    shards: tuple[Shard, ...]
    modalities: Mapping[str, Modality] = field(default_factory=dict)
    """By stream; none: every member is decoded by its extension."""
    reader: Reader | None = None
    """Chooses what the modalities decode; None: the members as they are."""


@dataclass(frozen=True)
class _Piece:
    use: int
    shard: int
    first: int
    last: int  #: -1: the shard as a whole


def check_shards(
    patterns: str | Sequence[str],
    modalities: Mapping[str, Modality] | None = None,
    quarantine: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    processes: int | None = None,
) -> CheckReport:
    """Decode every sample with modalities, or every member by its extension.

    Args:
        patterns: of shards, see :func:`~crossloom.data_pipelines.shards.open_shards`.
        modalities: decode with these (all but text, which a reader chooses); when None, every
            member is decoded by its extension.
        quarantine: see :func:`check`.
        progress: see :func:`check`.
        processes: see :func:`check`.

    Raises:
        ShardError: shards are missing or no tars.
        WorkerError: a process was killed.
    """
    uses = [Use(open_shards(patterns), modalities or {})]
    return check(uses, quarantine, progress, processes)


def check(
    uses: Sequence[Use],
    quarantine: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    processes: int | None = None,
) -> CheckReport:
    """Read every sample as it will be used, on all cores; list what is bad, each once.

    Args:
        uses: shards and what is done with them.
        quarantine: JSON lines of what is bad: shard, key, kind, message.
        progress: called with (samples done, all).
        processes: at a time; as many as there are cores when None.

    Raises:
        ShardError: a shard cannot be had.
        WorkerError: a process was killed.
    """
    pieces = list(_pieces(uses))
    total, done = sum(p.last - p.first for p in pieces if p.last >= 0), 0
    bad: dict[tuple[str, str, str], Defect] = {}
    count = min(processes or os.cpu_count() or 1, max(1, len(pieces)))
    try:
        for piece, found in zip(pieces, _map(uses, pieces, count), strict=True):
            for one in found:
                bad.setdefault(one[:3], one)
            done += piece.last - piece.first if piece.last >= 0 else 0
            if progress:
                progress(done, total)
    except BrokenProcessPool:
        raise WorkerError(
            "a process that checked samples was ended by the system, most often because memory ran "
            f"out (after {done} of {total} samples); check fewer shards at a time"
        ) from None
    if quarantine and (bad or quarantine.exists()):  # an older list must not look like this one
        lines = (json.dumps(b._asdict(), ensure_ascii=False) + "\n" for b in bad.values())
        quarantine.write_text("".join(lines), "utf-8", "replace")
    samples = sum({s.path: s.samples for u in uses for s in u.shards}.values())
    return CheckReport(samples, Counter(kind for _, _, kind in bad))


def _pieces(uses: Sequence[Use]) -> Iterator[_Piece]:
    for number, use in enumerate(uses):
        for which, shard in enumerate(use.shards):
            yield _Piece(number, which, 0, -1)
            for first in range(0, shard.samples, _AT_ONCE):
                yield _Piece(number, which, first, min(first + _AT_ONCE, shard.samples))


def _map(uses: Sequence[Use], pieces: Sequence[_Piece], count: int) -> Iterator[list[Defect]]:
    """What is wrong in each piece, in order; in this process when one is enough."""
    if count == 1:
        yield from (_check_piece(uses, piece) for piece in pieces)
        return
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_begin, initargs=(tuple(uses),)
    ) as pool:
        yield from pool.map(_check, pieces)


_uses: tuple[Use, ...] = ()  # of a checking process, set once when it starts


def _begin(uses: tuple[Use, ...]) -> None:
    global _uses
    _uses = uses


def _check(piece: _Piece) -> list[Defect]:
    return _check_piece(_uses, piece)


def _check_piece(uses: Sequence[Use], piece: _Piece) -> list[Defect]:
    use = uses[piece.use]
    shard = use.shards[piece.shard]
    if piece.last < 0:
        return [*shard.defects, *_whole(shard)]
    found: list[Defect] = []
    for number in range(piece.first, piece.last):
        members: Mapping[str, bytes] = {}
        try:
            members = shard.read(number)
            _sample(use, shard, number, members)
        except BadSample as error:
            found.append(defect(shard, shard.entries[number].key, error, members))
    return found


def _whole(shard: Shard) -> Iterator[Defect]:
    """The tar's own checksum, where it is known."""
    if not shard.sha256:
        return
    if (now := index.sha256_of(shard.file())) != shard.sha256:
        message = f"sha256 is {now[:16]}…, was {shard.sha256[:16]}… when it was indexed"
        yield Defect(shard.shown, "", "checksum mismatch", message)


def _sample(use: Use, shard: Shard, number: int, members: Mapping[str, bytes]) -> None:
    if not use.modalities and use.reader is None:
        _members(members)
        return
    # augmentation draws from this; a check decodes as evaluation does
    rng = keyed_rng("check")
    items = range(use.reader.items(shard.entries[number])) if use.reader else range(1)
    for item in items:
        sample = visit(use.reader, members, item, rng)[0] if use.reader else members
        for modality in use.modalities.values():
            # what the reader did not choose is the same for every item
            if item == 0 or modality.kind == "text":
                modality.steady().decode(sample, rng)


def _members(members: Mapping[str, bytes]) -> None:
    """Every member by its extension."""
    for name, data in members.items():
        if name == "json":
            sample_json(members)
        elif name == "txt" or name.endswith(".txt"):
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


def write_indexes(
    paths: Sequence[str],
    into: str = "",
    checksums: bool = True,
    renew: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Shard, ...]:
    """Index tars one by one, damaged ones as far as they go; and write their summaries.

    Args:
        paths: tars, as :func:`~crossloom.data_pipelines.shards.expand` gives them.
        into: folder for the indexes; beside each tar when empty.
        checksums: read the tars whole and keep checksums.
        renew: make new ones whatever there is.
        progress: called with (tars done, all).

    Raises:
        ShardError: a tar cannot be had, or an index cannot be written.
    """
    from crossloom.data_pipelines.shards import load_index

    found = []
    for number, path in enumerate(paths, 1):
        found.append(load_index(path, checksums, renew, into))
        if into and not remote.is_remote(path) and not index.beside(Path(path), into).is_file():
            raise ShardError(f"{into}: an index cannot be written there; choose another --into")
        if progress:
            progress(number, len(paths))
    _summarise(found, into)
    return tuple(found)


def _summarise(shards: Sequence[Shard], into: str) -> None:
    """Write the summary of each folder; of remote shards, one to be put beside them."""
    folders: dict[str, dict[str, Totals]] = {}
    for shard in shards:
        if not shard.remote:
            rows = folders.setdefault(os.path.dirname(shard.path), {})
            rows[os.path.basename(shard.path)] = shard.totals
    for folder, rows in folders.items():
        summary.add(folder, rows, into)
    far = {f"{s.name}.tar": s.totals for s in shards if s.remote}
    if far and into:
        place = Path(into).expanduser() / summary.NAME
        summary.save(place, {**summary.load(place), **far})
