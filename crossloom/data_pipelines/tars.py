"""Walking through tars that anybody may have written, and naming what is wrong with them.

Nothing is ever extracted: a member's name only says which sample it belongs to. Python's
``tarfile`` parses the headers, one by one; its own walk takes a damaged header for the end.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from crossloom.data_pipelines.layouts import adapt
from crossloom.data_pipelines.stretches import LENGTHS, further

BLOCK = 512
#: A json member larger than this is not parsed for the index (its lists count as empty).
_LARGEST_JSON = 16 << 20
_LARGEST_NAME = 1 << 20
#: The item of a sample whose json does not parse.
UNREAD = "unread"
_NO_BODY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class DamagedTar(ValueError):
    """A tar goes no further. ``kind`` is the name under which such damage is counted."""

    def __init__(self, kind: str, message: str, member: str = "") -> None:
        super().__init__(message)
        self.kind, self.member = kind, member


class Readable(Protocol):
    """What a walk needs: a file, or a stream that skips forward (:class:`Forward`)."""

    def read(self, size: int, /) -> bytes:
        """Bytes, fewer only at the end."""

    def seek(self, offset: int, /) -> int:
        """Go to an offset, never backward."""


class Forward:
    """A pipe or socket as something that can seek forward, by reading."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self._at = stream, 0

    def read(self, size: int, /) -> bytes:
        """Exactly so many bytes, fewer only at the end."""
        parts = []
        while size > 0 and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
        return b"".join(parts)

    def seek(self, offset: int, /) -> int:
        """Pass over what lies before the offset."""
        while self._at < offset and self.read(min(offset - self._at, 1 << 20)):
            pass
        return self._at


@dataclass(frozen=True)
class Member:
    """A member as its header has it."""

    name: str
    offset: int  #: of its body
    size: int
    file: bool  #: False for links, devices and sparse files: nothing of theirs can be read


def walk(file: Readable, size: int | None = None) -> Iterator[Member]:
    """The members of a tar in their order; folders are passed over.

    After each, the file stands where the body begins, and may be read as far as its end.

    Args:
        file: an uncompressed tar.
        size: its length in bytes where known, so that a body which is cut is noticed unread.

    Raises:
        DamagedTar: "empty shard", "not a tar", "truncated shard" or "damaged header".
    """
    at, name, sized = 0, "", None
    while True:
        file.seek(at)
        head = file.read(BLOCK)
        if len(head) < BLOCK:
            raise _ended(at + len(head) if size is None else min(at + len(head), size))
        if not any(head):
            return
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            if at == 0:
                raise DamagedTar("not a tar", f"it begins with no tar header ({error})") from None
            raise DamagedTar(
                "damaged header", f"the header at byte {at} is damaged ({error}): what follows it "
                "cannot be found"
            ) from None  # fmt: skip
        length = info.size if sized is None or not info.isreg() else sized
        body = at + BLOCK
        if length < 0 or (info.type in (b"L", b"K", b"x", b"g") and length > _LARGEST_NAME):
            raise DamagedTar("damaged header", f"the header at byte {at} says {length} bytes")
        at = body if info.type in _NO_BODY else body + -(-length // BLOCK) * BLOCK
        if info.type in (b"L", b"K", b"x", b"g"):  # these say something about the next member
            said = file.read(length)
            if len(said) < length:
                raise _ended(body + len(said))
            if info.type == b"L":
                name = said.rstrip(b"\0").decode("utf-8", "backslashreplace")
            elif info.type == b"x":
                records = _records(said)
                name = records.get("path", name)
                sized = int(records["size"]) if records.get("size", "").isdigit() else None
            continue
        name = name or info.name
        if size is not None and info.type not in _NO_BODY and body + length > size:
            raise DamagedTar("truncated shard", f"it ends inside {name}", name)
        if not info.isdir():
            yield Member(name, body, length, info.isreg() and info.type != tarfile.GNUTYPE_SPARSE)
        name, sized = "", None


def _ended(at: int) -> DamagedTar:
    if at < BLOCK:
        return DamagedTar("not a tar" if at else "empty shard", f"it holds {at or 'no'} bytes")
    return DamagedTar("truncated shard", f"it ends at byte {at}, without an end mark")


def _records(data: bytes) -> dict[str, str]:
    """The ``length key=value`` lines of a PAX header; what is not of that form is passed over."""
    found = {}
    while match := re.match(rb"(\d{1,7}) ([^=]+)=", data):
        length = int(match[1])
        if length <= match.end():
            break
        value = data[match.end() : length - 1]
        found[match[2].decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        data = data[length:]
    return found


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, as webdataset splits them: at the first dot of the last part.

    None for what belongs to no sample: names without a dot, hidden files.

    >>> split_name("./a/000.de.txt"), split_name("a/README"), split_name("a/._000.jpg")
    (('a/000', 'de.txt'), None, None)
    """
    name = name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot:
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def unsafe(name: str) -> str:
    """Why a name is no honest one (``""`` if it is): absolute, climbing, with control characters.

    >>> unsafe("a/../../b.txt"), unsafe("a..b.txt")
    ('climbs out of its folder', '')
    """
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "is absolute"
    if ".." in re.split(r"[/\\]", name):
        return "climbs out of its folder"
    return "has control characters" if _CONTROL.search(name) else ""


@dataclass
class Sample:
    """A sample as a scan finds it."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  #: (offset, size)
    sums: dict[str, int] = field(default_factory=dict)  #: CRC-32 of each member, if asked for
    items: dict[str, int] = field(default_factory=dict)
    fault: tuple[str, str] | None = None  #: kind and message, when it cannot be used


@dataclass(frozen=True)
class Scan:
    """What a tar holds."""

    samples: list[Sample]
    damage: tuple[str, str] | None  #: kind and message, when the tar goes no further


def scan(file: Readable, size: int, checksums: bool = False) -> Scan:
    """The samples of a tar, from its headers and json members (all bodies with ``checksums``).

    A second sample under one key, a name with a path trick and a link are samples that cannot be
    used: they keep their place in the order, and are counted when their turn comes. Of a tar that
    is cut, the samples before the cut one are given.
    """
    samples: list[Sample] = []
    first: dict[str, Sample] = {}
    current: Sample | None = None
    damage = None
    try:
        for member in walk(file, size):
            trick = unsafe(member.name)
            split = split_name(member.name)
            if split is None and not trick:
                continue
            key, extension = split or (member.name, "")
            key = _CONTROL.sub("?", key)
            if current is None or current.key != key or extension in current.members:
                known = first.get(key)
                if known is not None and known is not current and extension not in known.members:
                    current = known  # members of a sample need not lie side by side
                else:
                    current = Sample(key)
                    samples.append(current)
                    if known is not None:
                        current.fault = ("duplicate key", f"another sample has the key {key!r}")
                    first.setdefault(key, current)
            if trick:
                current.fault = ("path trick", f"the name {member.name!r} {trick}")
            elif not member.file:
                current.fault = ("path trick", f"{member.name} is no file but a link or device")
            current.members[extension] = (member.offset, member.size)
            if checksums and member.file:
                current.sums[extension] = _crc(file, member.size)
            if extension == "json" and member.size <= _LARGEST_JSON:
                current.items = count_items(_at(file, (member.offset, member.size)))
    except DamagedTar as error:
        damage = (error.kind, str(error))
        cut = split_name(error.member)
        if samples and current is samples[-1] and _partial(samples, cut[0] if cut else ""):
            samples.pop()  # part of the damage
    if not samples and damage is None:
        damage = ("empty shard", "it holds no sample")
    for sample in samples:
        texts = {
            n: countable(_at(file, place, place[1])) if place[1] > LENGTHS[0] else b"x"
            for n, place in sample.members.items()
            if n.endswith("txt")
        }
        if texts and not any(n.startswith("texts.") for n in sample.items):
            said = _at(file, sample.members["json"]) if "json" in sample.members else b"null"
            sample.items |= count_items(said, texts)
    return Scan(samples, damage)


def _partial(samples: list[Sample], cut: str) -> bool:
    """Whether the last sample before damage lacks members: by the key of the member that is cut.

    Where that is not known, by comparison with the sample before.
    """
    if cut:
        return samples[-1].key == cut
    return len(samples) > 1 and set(samples[-1].members) != set(samples[-2].members)


def _at(file: Readable, place: tuple[int, int], most: int = _LARGEST_JSON) -> bytes:
    file.seek(place[0])
    return file.read(min(place[1], most))


def _crc(file: Readable, size: int) -> int:
    total = 0
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        total = zlib.crc32(part, total)
        size -= len(part)
    return total


def countable(text: bytes) -> bytes:
    """A ``txt`` member as :func:`count_items` wants it: one that is not UTF-8 counts as a word."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return b"x"
    return text or b"x"


def count_items(data: bytes, members: Mapping[str, bytes] | None = None) -> dict[str, int]:
    """Lengths of the lists in a sample's json: ``{"questions": 6, "texts.en": 3}``.

    Of long documents also the stretches beyond the first: ``{"further1024.texts.en": 2}``.

    A json that does not parse counts as one ``unread``: its sample is reported when it is decoded.
    """
    try:
        content = adapt(json.loads(data), members or {})
    except (ValueError, RecursionError):
        return {UNREAD: 1}
    counts = {k: len(v) for k, v in content.items() if isinstance(v, list)}
    for name, value in content.items():
        if isinstance(value, dict):
            lists = {f"{name}.{k}": v for k, v in value.items() if isinstance(v, list)}
            counts |= {k: len(v) for k, v in lists.items()}
            for k, v in lists.items():
                counts |= {f"further{length}.{k}": n for length, n in further(v).items()}
    return counts
