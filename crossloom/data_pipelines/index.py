"""The index of a tar: what lies where, kept as JSON beside it or in a folder of indexes.

It holds, for each sample, its key, the offset and size of each member, and how many items its
``json`` lists; of the tar, its size and time, and its damage. With checksums it also holds a CRC-32
of each member, which every read verifies, and the tar's SHA-256, which is verified when the tar is
fetched and by ``crossloom shards check``.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from crossloom.data_pipelines import cache
from crossloom.data_pipelines.errors import ShardError
from crossloom.data_pipelines.tars import scan

FORMAT = 3
SUFFIX = ".index.json"


@dataclass(frozen=True)
class Entry:
    """One sample of a shard."""

    key: str
    members: Mapping[str, tuple[int, int]]  #: extension → (offset, size) in the tar
    items: Mapping[str, int]  #: how many of what the json lists: ``questions``, ``texts.en``, …
    sums: Mapping[str, int] = field(default_factory=dict)  #: extension → CRC-32, if known
    fault: tuple[str, str] | None = None  #: kind and message of what makes it unusable


@dataclass(frozen=True)
class Index:
    """What a tar holds."""

    size: int  #: of the tar in bytes
    entries: tuple[Entry, ...]
    modified: int = 0  #: the tar's time in nanoseconds, 0 where it has none that means anything
    sha256: str = ""  #: of the tar, if known
    damage: tuple[str, str] | None = None  #: kind and message, when the tar goes no further


def build(file: BinaryIO, checksums: bool = False) -> Index:
    """Read a tar's headers and json members (everything with ``checksums``) into an index."""
    status = os.fstat(file.fileno())
    found = scan(file, status.st_size, checksums)
    entries = tuple(
        Entry(s.key, s.members, s.items, s.sums, s.fault) for s in found.samples
    )  # fmt: skip
    whole = sha256_of(file) if checksums else ""
    return Index(status.st_size, entries, status.st_mtime_ns, whole, found.damage)


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of a whole file."""
    file.seek(0)
    total = sha256()
    while part := file.read(1 << 20):
        total.update(part)
    return total.hexdigest()


def of_file(path: Path, checksums: bool = False, renew: bool = False, into: str = "") -> Index:
    """The index of a local tar: the saved one if it fits the tar, else a new one that is saved.

    A tar of another size or layout than its index says is indexed anew. One of the same size and
    layout but another time (a copy, or changed inside) keeps its checksums: reads verify them.

    Raises:
        ShardError: the file cannot be read.
    """
    places = [beside(path, into)] if into else [beside(path), beside(path, _folder())]
    try:
        status = path.stat()
        saved = None if renew else _first(places, status)
        stamp = (status.st_size, status.st_mtime_ns)
        if (
            saved is not None
            and (saved.size, saved.modified) == stamp
            and (saved.sha256 or not checksums)
        ):
            return saved
        with open(path, "rb") as file:
            fresh = build(file, checksums)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror or error})") from None
    if saved is not None and saved.sha256 and not checksums and _alike(saved, fresh):
        fresh = replace(saved, modified=fresh.modified)
    for place in places:
        if save(place, fresh):
            break
    return fresh


def _alike(one: Index, other: Index) -> bool:
    return one.size == other.size and [(e.key, e.members) for e in one.entries] == [
        (e.key, e.members) for e in other.entries
    ]


def beside(path: Path, folder: str = "") -> Path:
    """Where a tar's index is kept: beside it, or in a folder of indexes."""
    if not folder:
        return path.with_name(path.name + SUFFIX)
    # tars of several folders may have the same name
    return Path(folder).expanduser() / f"{path.stem}-{cache.digest(str(path.resolve()))}{SUFFIX}"


def _folder() -> str:
    """Folder of indexes of read-only stores."""
    return os.environ.get("CROSSLOOM_INDEX") or str(cache.folder() / "indexes")


def _first(places: Sequence[Path], status: os.stat_result) -> Index | None:
    """The first saved index that fits the tar, else the first there is."""
    found: list[Index] = []
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            found.append(parse(place.read_bytes()))
    fits = (x for x in found if (x.size, x.modified) == (status.st_size, status.st_mtime_ns))
    return next(fits, next(iter(found), None))


def parse(data: bytes) -> Index:
    """An index from JSON.

    Raises:
        ValueError: it is none, or of another format, or speaks of bytes that the tar has not.
    """
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise ValueError("another format")
        size, modified = int(content["size"]), int(content["modified"])
        entries = tuple(_entry(row, size) for row in content["samples"])
        damage = content["damage"]
        found = (str(damage[0]), str(damage[1])) if damage else None
        return Index(size, entries, modified, str(content["sha256"]), found)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an index ({type(error).__name__}: {error})") from None


def _entry(row: Sequence[Any], size: int) -> Entry:
    key, places, items, fault = row
    members = {str(x): (int(p[0]), int(p[1])) for x, p in places.items()}
    if any(
        offset < 0 or length < 0 or offset + length > size for offset, length in members.values()
    ):
        raise ValueError(f"{key}: a member lies outside the tar")
    sums = {str(x): int(p[2]) for x, p in places.items() if len(p) > 2}
    counts = {str(x): int(n) for x, n in items.items()}
    return Entry(str(key), members, counts, sums, (str(fault[0]), str(fault[1])) if fault else None)


def save(path: Path, index: Index) -> bool:
    """Write an index beside its place and rename it; False where that cannot be done."""
    rows = [
        [e.key, {x: [*p, *([e.sums[x]] if x in e.sums else [])] for x, p in e.members.items()},
         e.items, e.fault]
        for e in index.entries
    ]  # fmt: skip
    content = {
        "format": FORMAT,
        "size": index.size,
        "modified": index.modified,
        "sha256": index.sha256,
        "damage": index.damage,
        "samples": rows,
    }
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            name = file.name
            file.write(json.dumps(content, separators=(",", ":")))
        os.chmod(name, 0o644)  # temporary files are private; an index is for all who read the tar
        os.replace(name, path)
    except OSError:
        if name:
            Path(name).unlink(missing_ok=True)
        return False
    return True
