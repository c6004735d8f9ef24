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
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from crossloom.data_pipelines import cache
from crossloom.data_pipelines.errors import ShardError
from crossloom.data_pipelines.tars import Sample, scan
from crossloom.units import Array

FORMAT = 3
SUFFIX = ".index.json"

#: A sample as the index file has it: key; extension → offset, size, and CRC-32 if it is known;
#: items; kind and message of what makes it unusable.
Row = tuple[str, Mapping[str, Sequence[int]], Mapping[str, int], Sequence[str] | None]


@dataclass(frozen=True)
class Entry:
    """One sample of a shard."""

    key: str
    members: Mapping[str, tuple[int, int]]  #: extension → (offset, size) in the tar
    items: Mapping[str, int]  #: how many of what the json lists: ``questions``, ``texts.en``, …
    sums: Mapping[str, int] = field(default_factory=dict)  #: extension → CRC-32, if known
    fault: tuple[str, str] | None = None  #: kind and message of what makes it unusable


@dataclass(frozen=True)
class Kind:
    """What samples that count alike have in common."""

    items: Mapping[str, int]
    faulty: bool  #: whether the sample cannot be used


class Entries(Sequence[Entry]):
    """The samples of a tar, packed: some 100 bytes each where an :class:`Entry` takes a kilobyte.

    Attributes:
        kinds: each once.
        kind: of each sample, its number there, ``[samples]``.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """Pack rows as an index file has them: key, members, items, fault."""
        lines, known, self.kinds = list[bytes](), dict[Any, int](), list[Kind]()
        kind = array("I")
        for key, members, items, fault in rows:
            lines.append(json.dumps((key, members, fault), separators=(",", ":")).encode())
            mark = (*items.items(), bool(fault))
            if mark not in known:
                known[mark] = len(self.kinds)
                self.kinds.append(Kind({str(x): int(n) for x, n in items.items()}, bool(fault)))
            kind.append(known[mark])
        self.kind: Array = np.array(kind, np.uint32)
        self._lines = b"".join(lines)
        self._ends: Array = np.cumsum([len(x) for x in lines], dtype=np.int64)

    def rows(self) -> Iterator[Row]:
        """As they were given."""
        for number in range(len(self)):
            key, members, fault = self._line(number)
            yield key, members, self.kinds[self.kind[number]].items, fault

    def _line(self, number: int) -> tuple[str, Mapping[str, Sequence[int]], Sequence[str] | None]:
        begin = self._ends[number - 1] if number else 0
        key, members, fault = json.loads(self._lines[begin : self._ends[number]])
        return key, members, fault

    def __len__(self) -> int:
        return len(self.kind)

    @overload
    def __getitem__(self, number: int) -> Entry: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Entry, ...]: ...

    def __getitem__(self, number: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(number, slice):
            return tuple(self[n] for n in range(*number.indices(len(self))))
        number = range(len(self))[number]
        key, members, fault = self._line(number)
        places = {x: (p[0], p[1]) for x, p in members.items()}
        sums = {x: p[2] for x, p in members.items() if len(p) > 2}
        wrong = (fault[0], fault[1]) if fault else None
        return Entry(key, places, self.kinds[self.kind[number]].items, sums, wrong)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and list(self.rows()) == list(other.rows())

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Index:
    """What a tar holds."""

    size: int  #: of the tar in bytes
    entries: Entries
    modified: int = 0  #: the tar's time in nanoseconds, 0 where it has none that means anything
    sha256: str = ""  #: of the tar, if known
    damage: tuple[str, str] | None = None  #: kind and message, when the tar goes no further


def build(file: BinaryIO, checksums: bool = False) -> Index:
    """Read a tar's headers and json members (everything with ``checksums``) into an index."""
    status = os.fstat(file.fileno())
    found = scan(file, status.st_size, checksums)
    entries = Entries((s.key, _places(s), s.items, s.fault) for s in found.samples)
    whole = sha256_of(file) if checksums else ""
    return Index(status.st_size, entries, status.st_mtime_ns, whole, found.damage)


def _places(sample: Sample) -> dict[str, Sequence[int]]:
    """Offset, size and, where it is known, checksum of each member."""
    sums = sample.sums
    return {x: (*p, sums[x]) if x in sums else p for x, p in sample.members.items()}


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
    places = [beside(path, into)] if into else [beside(path), beside(path, folder())]
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
    pairs = zip(one.entries, other.entries, strict=False)
    return (
        one.size == other.size
        and len(one.entries) == len(other.entries)
        and all((a.key, a.members) == (b.key, b.members) for a, b in pairs)
    )


def beside(path: Path, folder: str = "") -> Path:
    """Where a tar's index is kept: beside it, or in a folder of indexes."""
    if not folder:
        return path.with_name(path.name + SUFFIX)
    # tars of several folders may have the same name
    return Path(folder).expanduser() / f"{path.stem}-{cache.digest(str(path.resolve()))}{SUFFIX}"


def folder() -> str:
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
        entries = Entries(_row(row, size) for row in content["samples"])
        damage = content["damage"]
        found = (str(damage[0]), str(damage[1])) if damage else None
        return Index(size, entries, modified, str(content["sha256"]), found)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an index ({type(error).__name__}: {error})") from None


def _row(row: Row, size: int) -> Row:
    """A row that may be believed."""
    key, places, items, fault = row
    members = {str(x): [int(n) for n in p] for x, p in places.items()}
    if any(p[0] < 0 or p[1] < 0 or p[0] + p[1] > size for p in members.values()):
        raise ValueError(f"{key}: a member lies outside the tar")
    return str(key), members, items, (str(fault[0]), str(fault[1])) if fault else None


def save(path: Path, index: Index) -> bool:
    """Write an index beside its place and rename it; False where that cannot be done."""
    content = {
        "format": FORMAT,
        "size": index.size,
        "modified": index.modified,
        "sha256": index.sha256,
        "damage": index.damage,
        "samples": list(index.entries.rows()),
    }
    return write(path, content)


def write(path: Path, content: Any) -> bool:
    """Write JSON beside its place and rename it; False where that cannot be done."""
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
