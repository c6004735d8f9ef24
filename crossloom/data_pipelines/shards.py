"""Shards: ordinary WebDataset tars, here or elsewhere, read by position through an index.

An index (:mod:`~crossloom.data_pipelines.index`) is made at first use, and again when the tar has
changed; a run starts from their :mod:`~crossloom.data_pipelines.summary`, and reads a shard's index
when its first sample is due. A remote tar is fetched whole into the cache then.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

from crossloom.data_pipelines import cache, index, remote, summary
from crossloom.data_pipelines.errors import ShardError
from crossloom.data_pipelines.index import Entries, Entry, Index
from crossloom.data_pipelines.recent import Recent
from crossloom.data_pipelines.summary import Totals
from crossloom.units import BadSample, Defect

__all__ = ["Entry", "Shard", "ShardError", "describe", "index_path", "load_index", "open_shards"]

_AT_ONCE = 16  # remote shards asked about at the same time
_OPEN = 128  # tars that a process keeps open
_LIVE = "live:"


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar, and what it holds in sum; its index is read when it is needed."""

    path: str  #: a file, an address, or ``pipe:`` and a command
    totals: Totals = field(default_factory=Totals)
    cached: str = ""  #: for a remote tar, its file in the cache, if the version is known already
    own: Index | None = field(default=None, compare=False, repr=False)
    """Its index, where that is kept nowhere else."""

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.totals.listed.samples

    @property
    def index(self) -> Index:
        """Its index, from memory if it was used lately.

        Raises:
            ShardError: it is not there, or cannot be had, or does not fit what is known of it.
        """
        return self._indexed()[0]

    @property
    def entries(self) -> Entries:
        """Its samples; see :attr:`index`."""
        return self.index.entries

    @property
    def sha256(self) -> str:
        """Of the tar, if known; see :attr:`index`."""
        return self.index.sha256

    @property
    def damage(self) -> tuple[str, str] | None:
        """Kind and message, when the tar goes no further."""
        return self.totals.damage

    @property
    def size(self) -> int:
        """Of the tar in bytes."""
        return self.totals.size

    @property
    def remote(self) -> bool:
        """Whether it is fetched from elsewhere."""
        return remote.is_remote(self.path)

    @property
    def _mark(self) -> tuple[str, str, int, int]:
        return self.path, self.cached, self.totals.size, self.totals.modified

    def _indexed(self) -> tuple[Index, str]:
        """The index, and for a remote tar its file in the cache."""
        if self.own is not None:
            return self.own, self.cached
        return _indexes.get(self._mark, self._index_again)

    def _index_again(self) -> tuple[tuple[Index, str], int]:
        found, cached = _index_of(self.path, self.cached)
        if not self.totals.counts_like(summary.totals(found)):
            remedy = f"write {summary.NAME} anew with `crossloom shards index`, and " * self.remote
            raise ShardError(
                f"{self.shown}: holds other samples than were counted when the shards were opened; "
                f"{remedy}start again (a run: with --resume)"
            )
        return (found, cached), _weight(found)

    @property
    def name(self) -> str:
        """The tar's name without folder and ``.tar``."""
        return remote.name_of(self.path) if self.remote else Path(self.path).stem

    @property
    def shown(self) -> str:
        """The path as messages have it: without secrets."""
        return remote.shown(self.path) if self.remote else self.path

    @property
    def defects(self) -> tuple[Defect, ...]:
        """What is wrong with the shard as a whole."""
        return (Defect(self.shown, "", *self.damage),) if self.damage else ()

    def read(self, number: int) -> dict[str, bytes]:
        """The members of one sample by its number; see :meth:`members`."""
        return self.members(self.entries[number])

    def members(self, entry: Entry) -> dict[str, bytes]:
        """The members of one sample, by extension.

        Raises:
            BadSample: its index says that it cannot be used; the tar is shorter than its index
                says; a checksum differs; the disk fails.
            ShardError: the tar is not there, or cannot be fetched.
        """
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
        cached = self._indexed()[1]
        # by process: a descriptor must not be shared over a fork that closes it
        key = (self.path, cached, os.getpid())
        file = _files.get(key)
        if file is None:
            file = self._fetched(Path(cached)) if cached else self._open()
            _files[key] = file
            while len(_files) > _OPEN:
                _files.popitem(last=False)
        _files.move_to_end(key)
        if cached:
            cache.touch(file)
        return file

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise ShardError(
                f"{self.path}: cannot be opened ({error.strerror}); it was there at the start"
            ) from None

    def _fetched(self, cached: Path) -> BinaryIO:
        """The remote tar from the cache; when fetched now, it must be what was indexed."""
        known = self.index
        file, fresh = _cached(self.path, cached, known.size, known.sha256)
        if fresh and not known.sha256:
            found = index.build(file)
            pairs = zip(found.entries, known.entries, strict=False)  # one may be cut
            if any((a.key, a.members) != (b.key, b.members) for a, b in pairs):
                file.close()
                cached.unlink(missing_ok=True)
                raise ShardError(
                    f"{self.shown}: is not what its index says; it was changed meanwhile: index it "
                    "with `crossloom shards index --renew`, then start again"
                )
        return file


#: Indexes used lately, by path, file in the cache, size and time of the tar: for two million
#: samples, some 300 MB.
_indexes: Recent[tuple[str, str, int, int], tuple[Index, str]] = Recent(2 << 20)


def _weight(found: Index) -> int:
    return 16 + len(found.entries) + 8 * len(found.entries.kinds)


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
                    "or say where they are (`data`, and a component's `shards`)"
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
    found = {s.path: s for s in _open_remote([p for p in paths if remote.is_remote(p)])}
    found |= {s.path: s for s in _open_local([p for p in paths if p not in found])}
    shards = tuple(found[p] for p in paths)
    if not any(s.samples for s in shards):
        kind, message = shards[0].damage or ("empty shard", "it holds no sample")
        what = "not a readable tar" if kind == "not a tar" else f"no sample can be read: {kind}"
        others = f"{len(shards) - 1} others" if len(shards) > 2 else "another"
        more = f" (nor of {others})" if len(shards) > 1 else ""
        raise ShardError(f"{shards[0].shown}: {what} ({message}){more}; convert or copy it again")
    return shards


def _open_local(paths: Sequence[str]) -> Iterable[Shard]:
    """Shards by the summary of their folder; those that it does not fit are indexed."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(os.path.dirname(path), []).append(path)
    for folder, some in folders.items():
        known = [summary.load(place) for place in summary.places(folder)]
        fresh = {}
        for path in some:
            name = os.path.basename(path)
            try:
                status = os.stat(path)
            except OSError as error:
                raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
            stamp = (status.st_size, status.st_mtime_ns)
            rows = (x[name] for x in known if name in x)
            fits = next((t for t in rows if (t.size, t.modified) == stamp), None)
            if fits is None:
                fits = fresh[name] = load_index(path).totals
            yield Shard(path, fits)
        if fresh:
            summary.add(folder, fresh)


def _open_remote(urls: Sequence[str]) -> Iterable[Shard]:
    """Shards by the summary published beside them; others are asked for one by one."""
    if not urls:
        return []
    folders = {url: remote.sibling(url, summary.NAME) for url in urls if remote.is_file(url)}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        places = sorted(set(folders.values()))
        published = dict(zip(places, pool.map(_published, places), strict=True))
        known = {
            url: row
            for url, place in folders.items()
            if (row := published[place].get(f"{remote.name_of(url)}.tar"))
        }
        others = [url for url in urls if url not in known]
        asked = dict(zip(others, pool.map(_ask, others), strict=True))
    return [Shard(url, known[url]) if url in known else asked[url] for url in urls]


def _published(url: str) -> dict[str, Totals]:
    data = remote.small(url)
    try:
        return summary.parse(data or b"")
    except ValueError:
        return {}


def _ask(url: str) -> Shard:
    """By the summary kept in the cache for this version of the tar, else by its index."""
    stamp, cached = _version(url)
    place = cached.with_name(cached.name + ".summary.json")
    if row := summary.load(place).get(cached.name):
        return Shard(url, row, str(cached))
    shard = _known(url, _index_remote(url, stamp, cached), str(cached))
    summary.save(place, {cached.name: shard.totals})
    return shard


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
    if not remote.is_remote(str(path)):
        return _known(str(path), index.of_file(Path(path), checksums, renew, into))
    url, (stamp, cached) = str(path), _version(str(path))
    found = _index_remote(url, stamp, cached, checksums, renew)
    if into:
        target = Path(into).expanduser() / f"{remote.name_of(url)}.tar{index.SUFFIX}"
        if not index.save(target, found):
            raise ShardError(f"{target}: cannot be written")
    return _known(url, found, str(cached))


def _known(path: str, found: Index, cached: str = "") -> Shard:
    """A shard whose index was just read."""
    shard = Shard(path, summary.totals(found), cached)
    _indexes.put(shard._mark, (found, cached), _weight(found))
    return shard


def _index_of(path: str, cached: str) -> tuple[Index, str]:
    """The index of a tar that was opened before, and its file in the cache if it has one."""
    if not remote.is_remote(path):
        return index.of_file(Path(path)), ""
    if cached and (found := _kept(Path(cached))):
        return found, cached
    stamp, place = _version(path)
    return _index_remote(path, stamp, place), str(place)


def _version(url: str) -> tuple[remote.Stamp, Path]:
    """The version of a remote tar, and its file in the cache.

    Another version of the tar has another name: nothing stale is ever read.
    """
    stamp = remote.stamp(url)
    name = f"{cache.digest(url, str(stamp.size), stamp.mark)}-{remote.name_of(url)[:80]}.tar"
    return stamp, cache.folder() / "shards" / name


def _index_remote(
    url: str, stamp: remote.Stamp, cached: Path, checksums: bool = False, renew: bool = False
) -> Index:
    """By what is in the cache, else by the index beside the tar, else by fetching the tar."""
    found = None
    if not renew:
        found = _kept(cached)
        if found is None and remote.is_file(url):
            found = _parsed(remote.small(remote.beside(url, index.SUFFIX)) or b"")
            if found and stamp.size is not None and found.size != stamp.size:
                found = None  # of an earlier version of the tar
    if found is None or (checksums and not found.sha256):
        with _cached(url, cached, stamp.size)[0] as file:
            found = replace(index.build(file, checksums), modified=0)
    index.save(index.beside(cached), found)
    return found


def _kept(cached: Path) -> Index | None:
    """The index beside a tar's place in the cache."""
    place = index.beside(cached)
    return _parsed(place.read_bytes()) if place.is_file() else None


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
        total["samples"] += shard.samples
        for entry in shard.entries:
            for extension, (_, size) in entry.members.items():
                total["bytes"][extension] = total["bytes"].get(extension, 0) + size
        for name, count in shard.totals.listed.items.items():
            total["items"][name] = total["items"].get(name, 0) + count
    return total
