"""Shards: ordinary WebDataset tars, here or elsewhere, read by position through an index.

An index (:mod:`~crossloom.data_pipelines.index`) is made at first use, and again when the tar has
changed. A remote tar is fetched whole into the cache when the first of its samples is read.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

from crossloom.data_pipelines import cache, index, remote
from crossloom.data_pipelines.errors import ShardError
from crossloom.data_pipelines.index import Entry, Index
from crossloom.units import BadSample, Defect

__all__ = ["Entry", "Shard", "ShardError", "describe", "index_path", "load_index", "open_shards"]

_AT_ONCE = 16  # remote shards asked about at the same time
_OPEN = 64  # tars that a process keeps open
_LIVE = "live:"


@dataclass(frozen=True)
class Shard:
    """A tar and its index."""

    path: str  #: a file, an address, or ``pipe:`` and a command
    entries: tuple[Entry, ...]
    damage: tuple[str, str] | None = None  #: kind and message, when the tar goes no further
    sha256: str = ""  #: of the tar, if known
    size: int = 0  #: of the tar in bytes
    cached: str = ""  #: for a remote tar, its file in the cache

    @property
    def name(self) -> str:
        """The tar's name without folder and ``.tar``."""
        return remote.name_of(self.path) if self.cached else Path(self.path).stem

    @property
    def shown(self) -> str:
        """The path as messages have it: without secrets."""
        return remote.shown(self.path) if self.cached else self.path

    @property
    def defects(self) -> tuple[Defect, ...]:
        """What is wrong with the shard as a whole."""
        return (Defect(self.shown, "", *self.damage),) if self.damage else ()

    def read(self, number: int) -> dict[str, bytes]:
        """The members of one sample, by extension.

        Raises:
            BadSample: its index says that it cannot be used; the tar is shorter than its index
                says; a checksum differs; the disk fails.
            ShardError: the tar is not there, or cannot be fetched.
        """
        entry = self.entries[number]
        if entry.fault:
            raise BadSample(*entry.fault)
        found, file = {}, self.file()
        for extension, (offset, size) in entry.members.items():
            try:
                data = _read(file.fileno(), size, offset)
            except OSError as error:
                raise BadSample("unreadable", f"{extension}: {error.strerror}") from None
            if len(data) < size:
                raise BadSample("truncated shard", f"{self.shown} ends inside {extension}")
            if extension in entry.sums and zlib.crc32(data) != entry.sums[extension]:
                raise BadSample(
                    "checksum mismatch",
                    f"{extension} is not what was indexed; fetch the shard again, or run "
                    "`crossloom shards index --renew` if it was changed on purpose",
                )
            found[extension] = data
        return found

    def file(self) -> BinaryIO:
        """The tar, open for reading; fetched if it must be.

        Raises:
            ShardError: it is not there, or cannot be fetched.
        """
        # by process: a descriptor must not be shared over a fork that closes it
        key = (self.path, self.cached, os.getpid())
        file = _files.get(key)
        if file is None:
            file = self._fetched() if self.cached else self._open()
            _files[key] = file
            while len(_files) > _OPEN:
                _files.popitem(last=False)
        _files.move_to_end(key)
        if self.cached:
            cache.touch(file)
        return file

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise ShardError(
                f"{self.path}: cannot be opened ({error.strerror}); it was there at the start"
            ) from None

    def _fetched(self) -> BinaryIO:
        """The remote tar from the cache; when fetched now, it must be what was indexed."""
        file, fresh = _cached(self.path, Path(self.cached), self.size, self.sha256)
        if fresh and not self.sha256:
            found = index.build(file)
            pairs = zip(found.entries, self.entries, strict=False)  # one may be cut
            if any((a.key, a.members) != (b.key, b.members) for a, b in pairs):
                file.close()
                Path(self.cached).unlink(missing_ok=True)
                raise ShardError(
                    f"{self.shown}: is not what its index says; it was changed meanwhile: index it "
                    "with `crossloom shards index --renew`, then start again"
                )
        return file


#: Open tars by path and process, the least recently used first.
_files: OrderedDict[tuple[str, str, int], BinaryIO] = OrderedDict()


def _read(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # the system reads two gigabytes at most
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _cached(url: str, path: Path, size: int | None, sha256: str = "") -> tuple[BinaryIO, bool]:
    """A remote tar in the cache; fetched twice if its checksum is wrong the first time."""

    def fetch(file: BinaryIO) -> None:
        known = remote.Stamp(size or None)
        remote.fetch(url, file, known)
        if sha256:
            with open(file.name, "rb") as written:
                right = index.sha256_of(written) == sha256
            if not right:  # if it is still wrong then, reads will say where
                file.seek(0)
                remote.fetch(url, file, known)

    return cache.open_cached(path, fetch, size or None)


def expand(patterns: str | Sequence[str], root: str | Path = "") -> list[str]:
    """The tars that patterns name, without opening any.

    Args:
        patterns: paths, addresses or ``pipe:`` commands with ``*`` (not over HTTP) and
            ``{a..b}``/``{a,b}`` expansion; a directory means its tars.
        root: where relative patterns start, a folder or an address.

    Raises:
        ShardError: nothing matches, or a path is missing.
    """
    from braceexpand import braceexpand

    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    paths: list[str] = []
    for pattern in patterns:
        for plain in braceexpand(pattern):
            if plain.startswith(_LIVE):
                raise ShardError(f"{plain}: a live stream can be trained on, and nothing else")
            if plain.startswith("file://"):
                plain = plain.removeprefix("file://")
            if not remote.is_remote(plain) and remote.is_remote(str(root)):
                plain = f"{str(root).rstrip('/')}/{plain}"
            if remote.is_remote(plain):
                paths.extend(remote.find(plain))
                continue
            place = str(Path(root) / plain)
            place = str(Path(place) / "*.tar") if Path(place).is_dir() else place
            found = sorted(glob(place))
            if not found:
                raise ShardError(
                    f"{place}: no such shards; make them with `crossloom shards make`, "
                    "or set `data` and the component's `shards` in the recipe"
                )
            if wrong := [p for p in found if not p.endswith(".tar")]:
                raise ShardError(f"{wrong[0]}: not a .tar file; shards are plain WebDataset tars")
            paths.extend(found)
    return list(dict.fromkeys(paths))


def open_shards(patterns: str | Sequence[str], root: str | Path = "") -> tuple[Shard, ...]:
    """All shards that the patterns name, in sorted order, indexed; see :func:`expand`.

    Damaged tars are opened as far as they go (``Shard.damage``).

    Raises:
        ShardError: nothing matches, a path is missing, no tar of several can be read at all, or a
            remote one cannot be had.
    """
    paths = expand(patterns, root)
    if any(map(remote.is_remote, paths)):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            shards = tuple(pool.map(load_index, paths))
    else:
        shards = tuple(map(load_index, paths))
    if not any(s.entries for s in shards):
        kind, message = shards[0].damage or ("empty shard", "it holds no sample")
        what = "not a readable tar" if kind == "not a tar" else f"no sample can be read: {kind}"
        more = f" (nor any of {len(shards) - 1} others)" if len(shards) > 1 else ""
        raise ShardError(f"{shards[0].shown}: {what} ({message}){more}; convert or copy it again")
    return shards


def load_index(
    path: str | Path, checksums: bool = False, renew: bool = False, into: str = ""
) -> Shard:
    """A shard with its index: the saved one if it fits the tar, else a new one that is saved.

    Args:
        path: of the tar.
        checksums: make sure that the index has them (reads the whole tar).
        renew: make a new index whatever there is.
        into: folder for the index; beside the tar when empty (in ``CROSSLOOM_INDEX``, or the cache,
            where that cannot be written). Of a remote tar: a copy to be put beside it.

    Raises:
        ShardError: the tar is not there, or cannot be had.
    """
    if remote.is_remote(str(path)):
        return _load_remote(str(path), checksums, renew, into)
    found = index.of_file(Path(path), checksums, renew, into)
    return _shard(str(path), found)


def _shard(path: str, found: Index, cached: str = "") -> Shard:
    return Shard(path, found.entries, found.damage, found.sha256, found.size, cached)


def _load_remote(url: str, checksums: bool, renew: bool, into: str) -> Shard:
    """By what is in the cache, else by the index beside the tar, else by fetching the tar."""
    stamp = remote.stamp(url)
    # another version of the tar has another name: nothing stale is ever read
    name = f"{cache.digest(url, str(stamp.size), stamp.mark)}-{remote.name_of(url)[:80]}.tar"
    cached = cache.folder() / "shards" / name
    own = index.beside(cached)
    found = None
    if not renew:
        found = _parsed(own.read_bytes()) if own.is_file() else None
        if found is None and not url.startswith("pipe:"):
            found = _parsed(remote.small(remote.beside(url, index.SUFFIX)) or b"")
            if found and stamp.size is not None and found.size != stamp.size:
                found = None  # of an earlier version of the tar
    if found is None or (checksums and not found.sha256):
        with _cached(url, cached, stamp.size)[0] as file:
            found = replace(index.build(file, checksums), modified=0)
    index.save(own, found)
    if into:
        target = Path(into).expanduser() / f"{remote.name_of(url)}.tar{index.SUFFIX}"
        if not index.save(target, found):
            raise ShardError(f"{target}: cannot be written")
    return _shard(url, found, str(cached))


def _parsed(data: bytes) -> Index | None:
    try:
        return index.parse(data)
    except ValueError:
        return None


def index_path(path: Path) -> Path:
    """Where a tar's index is kept, where that can be written."""
    return index.beside(path)


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
