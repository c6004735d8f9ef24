"""Shards: ordinary WebDataset tars with a small index beside each, read by position.

The index (``NAME.tar.index.json``) holds each sample's key, where its members lie in the tar, and
how many items its ``json`` lists (questions, pairs, texts by language). It is made from headers
and ``json`` members at first use, and again when the tar has changed.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from crossloom.units import BadSample

FORMAT = 1


class ShardError(ValueError):
    """Shards that are missing or cannot be read: the message names the file and the remedy."""


@dataclass(frozen=True)
class Entry:
    """One sample of a shard."""

    key: str
    members: Mapping[str, tuple[int, int]]  #: extension → (offset, size) in the tar
    items: Mapping[str, int]  #: how many of what the json lists: ``questions``, ``texts.en``, …


@dataclass(frozen=True)
class Shard:
    """A tar and its index."""

    path: str
    entries: tuple[Entry, ...]

    def read(self, number: int) -> dict[str, bytes]:
        """The members of one sample, by extension.

        Raises:
            BadSample: the tar is shorter than its index says.
        """
        found = {}
        for extension, (offset, size) in self.entries[number].members.items():
            data = os.pread(_descriptor(self.path), size, offset)
            if len(data) < size:
                raise BadSample("truncated shard", f"{self.path} ends inside {extension}")
            found[extension] = data
        return found


@lru_cache(maxsize=64)
def _opened(path: str, process: int) -> Any:
    return open(path, "rb")


def _descriptor(path: str) -> int:
    # by process: a descriptor must not be shared over a fork that closes it
    return int(_opened(path, os.getpid()).fileno())


def open_shards(patterns: str | Sequence[str], root: str | Path = "") -> tuple[Shard, ...]:
    """All shards that the patterns name, in sorted order, indexed.

    Args:
        patterns: paths with ``*`` and ``{a..b}``/``{a,b}`` expansion; a directory means its tars.
        root: where relative patterns start.

    Raises:
        ShardError: nothing matches, a path is missing, or a tar cannot be read.
    """
    from braceexpand import braceexpand

    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    paths: list[str] = []
    for pattern in patterns:
        for plain in braceexpand(pattern):
            if "://" in plain or plain.startswith("pipe:"):
                raise ShardError(f"{plain}: remote shards are not read yet; copy them to a disk")
            place = str(Path(root) / plain)
            place = str(Path(place) / "*.tar") if Path(place).is_dir() else place
            found = sorted(glob(place))
            if not found:
                raise ShardError(
                    f"{place}: no such shards; make them with `crossloom shards make`, "
                    "or set `data` and the component's `shards` in the recipe"
                )
            paths.extend(found)
    if wrong := [p for p in paths if not p.endswith(".tar")]:
        raise ShardError(f"{wrong[0]}: not a .tar file; shards are plain WebDataset tars")
    return tuple(load_index(p) for p in dict.fromkeys(paths))


def load_index(path: str | Path) -> Shard:
    """A shard with its index: the saved one if it fits the tar, else a new one that is saved."""
    path = Path(path)
    status = path.stat()
    stamp = {"format": FORMAT, "size": status.st_size, "modified": status.st_mtime_ns}
    saved = index_path(path)
    try:
        content = json.loads(saved.read_bytes())
        if {k: content.get(k) for k in stamp} == stamp:
            return Shard(str(path), tuple(_entry(e) for e in content["samples"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing, or of another make: it is built again below
    shard = build_index(path)
    rows = [[e.key, e.members, e.items] for e in shard.entries]
    _save(saved, json.dumps({**stamp, "samples": rows}, separators=(",", ":")))
    return shard


def index_path(path: Path) -> Path:
    """Where a tar's index is kept."""
    return path.with_name(path.name + ".index.json")


def _entry(row: Sequence[Any]) -> Entry:
    key, members, items = row
    return Entry(key, {k: (int(v[0]), int(v[1])) for k, v in members.items()}, items)


def build_index(path: Path) -> Shard:
    """Read a tar's headers (and its json members) into an index.

    Raises:
        ShardError: the file is no tar, or ends in the middle.
    """
    entries: list[Entry] = []
    key = ""
    members: dict[str, tuple[int, int]] = {}
    items: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                _, _, extension = member.name.rpartition("/")[2].partition(".")
                stem = member.name[: len(member.name) - len(extension) - 1]
                if stem != key and key:
                    entries.append(Entry(key, members, items))
                    members, items = {}, {}
                key = stem
                members[extension.lower()] = (member.offset_data, member.size)
                if extension.lower() == "json":
                    file = tar.extractfile(member)
                    items = count_items(file.read() if file else b"")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(
            f"{path}: not a readable tar ({error}); convert or copy it again"
        ) from None
    if key:
        entries.append(Entry(key, members, items))
    return Shard(str(path), tuple(entries))


def count_items(data: bytes) -> dict[str, int]:
    """Lengths of the lists in a sample's json: ``{"questions": 6, "texts.en": 3}``.

    A json that does not parse counts as empty: its sample is reported when it is decoded.
    """
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    counts = {k: len(v) for k, v in content.items() if isinstance(v, list)}
    for name, value in content.items():
        if isinstance(value, dict):
            counts |= {f"{name}.{k}": len(v) for k, v in value.items() if isinstance(v, list)}
    return counts


def _save(path: Path, text: str) -> None:
    """Write beside and rename; an index that cannot be saved (read-only store) is not an error."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        Path(file.name).unlink(missing_ok=True) if "file" in locals() else None


def describe(shards: Iterable[Shard]) -> dict[str, Any]:
    """Counts over shards: samples, bytes by extension, items by name."""
    total: dict[str, Any] = {"shards": 0, "samples": 0, "bytes": {}, "items": {}}
    for shard in shards:
        total["shards"] += 1
        total["samples"] += len(shard.entries)
        for entry in shard.entries:
            for extension, (_, size) in entry.members.items():
                total["bytes"][extension] = total["bytes"].get(extension, 0) + size
            for name, count in entry.items.items():
                total["items"][name] = total["items"].get(name, 0) + count
    return total
