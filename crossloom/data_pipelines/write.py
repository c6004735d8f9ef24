"""Writing shards: deterministic tars that appear only when they are whole.

A tar is plain ustar: no PAX headers, mtime 0, owner 0, mode 0444, members in the order given, so
that equal samples give equal bytes. (webdataset's ``TarWriter`` leaves the header format to the
Python version and writes PAX headers for some names; the tars here are read by it all the same.)

All shards of a conversion are first written to a hidden folder inside the target folder
(``.NAME.partial``), flushed to the disk there, and renamed into place together at the end. A
conversion that fails removes that folder and leaves what an earlier one made. One that is killed
leaves the folder behind, and perhaps some of its shards in place: the next that writes there takes
them back first (:func:`recover`). Who still writes holds a lock on its folder.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from crossloom.data_pipelines import summary
from crossloom.data_pipelines.shards import ShardError, index_path

#: What a member may hold: bytes as they are, text as UTF-8, anything else as compact JSON.
Member = bytes | str | Mapping[str, Any]

SHARD_SIZE = 1000  #: samples a shard
SHARD_BYTES = 500_000_000  #: bytes a shard, tar headers not counted

_KEY = re.compile(r"[^\s./\\\x00-\x1f\x7f]+")
_KEY_BYTES = 80  # with an extension of up to 19 bytes it fits the name field of a ustar header
_EXTENSION = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_STAGING = ".*-????????.partial"  # as tempfile names them
_JOURNAL = "publishing.json"  # in the hidden folder, while shards are renamed into place
_ASIDE = "replaced"  # in the hidden folder: what was in place before
_SHARD = re.compile(r"(?P<prefix>.+)-\d{6,}\.tar")


class WriteError(OSError):
    """Something could not be written. ``str()`` names the file, the cause and the remedy."""

    def __str__(self) -> str:
        return str(self.strerror)


class TextError(ShardError):
    """Text of a sample that is not valid Unicode, or numbers that JSON does not have."""


def sanitise(name: str) -> str:
    """A valid key for any name: letters, digits, ``-`` and ``_`` of ASCII, at most 64 of them.

    Names that lose something in this get a short hash of the whole name, so that they stay apart.

    >>> sanitise("1234567890_0123abcdef"), sanitise("a.b")
    ('1234567890_0123abcdef', 'a-b-31d1e1bc')
    """
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if clean == name and 0 < len(clean) <= 64:
        return clean
    mark = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{clean[:55].strip('-')}-{mark}".lstrip("-")


def find_shards(out: Path, prefixes: Iterable[str] | None = None) -> tuple[Path, ...]:
    """Shards in a folder, sorted: those of the prefixes, or all when None."""
    wanted = None if prefixes is None else set(prefixes)
    found = []
    for path in sorted(out.glob("*.tar")) if out.is_dir() else ():
        match = _SHARD.fullmatch(path.name)
        if match and (wanted is None or match["prefix"] in wanted):
            found.append(path)
    return tuple(found)


def recover(out: Path) -> None:
    """Take back what writers that were killed left in a folder, so that it is as before them.

    Says on standard error what it removes. Folders of writers that are still at work are left.
    """
    for staging in sorted(out.glob(_STAGING)) if out.is_dir() else ():
        lock = _lock(staging, wait=False)
        if lock is None:
            continue
        try:
            _undo(staging, out)
            shutil.rmtree(staging)
            print(f"{staging}: left by a conversion that was interrupted; removed", file=sys.stderr)
        except OSError as error:
            raise ShardError(
                f"{staging}: left by a conversion that was interrupted, and cannot be removed "
                f"({error.strerror}); remove it by hand"
            ) from None
        finally:
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock on a folder; None where it cannot be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by its writer, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _undo(staging: Path, out: Path) -> None:
    """Take a set that was being renamed into place back into its hidden folder.

    What is done already is not done again, so this may itself be interrupted.
    """
    try:
        fresh = json.loads((staging / _JOURNAL).read_bytes())
    except (FileNotFoundError, ValueError):  # a journal cut short: nothing was renamed yet
        return
    for name in fresh:
        if not (staging / name).exists() and (out / name).exists():
            os.rename(out / name, staging / name)
    for path in (staging / _ASIDE).iterdir():
        os.rename(path, out / path.name)


class ShardWriter:
    """Writes ``PREFIX-000000.tar``, ``PREFIX-000001.tar``, … as a context manager.

    The shards get their names when the block ends without an exception, all together.

    Attributes:
        count: samples written so far.
    """

    def __init__(
        self,
        out: Path,
        prefix: str,
        *,
        shard_size: int = SHARD_SIZE,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        """Prepare to write; see :class:`ShardSet`.

        Args:
            out: folder of the shards, made when missing.
            prefix: first part of their names.
            shard_size: most samples in a shard.
            shard_bytes: a shard is closed before its members exceed this many bytes.
            overwrite: replace shards of the prefix that are there.

        Raises:
            ShardError: shards of the prefix exist and are not to be replaced.
        """
        self.prefix = prefix
        self._set = ShardSet(
            out,
            prefixes=(prefix,),
            shard_size=shard_size,
            shard_bytes=shard_bytes,
            overwrite=overwrite,
        )

    @property
    def count(self) -> int:
        """Samples written so far."""
        return self._set.count(self.prefix)

    def write(self, key: str, members: Mapping[str, Member]) -> None:
        """Add a sample. See :meth:`ShardSet.write`."""
        self._set.write(self.prefix, key, members)

    def __enter__(self) -> ShardWriter:
        self._set.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._set.__exit__(kind, error, trace)


class ShardSet:
    """Shards of several prefixes, and files beside them, that appear together or not at all.

    Use as a context manager. The files are renamed last, after the shards.
    """

    def __init__(
        self,
        out: Path,
        *,
        prefixes: Iterable[str] = (),
        shard_size: int = SHARD_SIZE,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        """Prepare to write; nothing is touched before the block begins.

        (But for what a writer that was killed left in the folder: see :func:`recover`.)

        Args:
            out: folder of the shards, made when missing.
            prefixes: whose shards are refused now, or replaced at the end even if none of them is
                written; other prefixes are treated alike when their first sample comes.
            shard_size: most samples in a shard.
            shard_bytes: a shard is closed before its members exceed this many bytes.
            overwrite: replace what is there.

        Raises:
            ShardError: shards of the prefixes exist and are not to be replaced, or ``out`` is no
                folder.
        """
        if shard_size < 1 or shard_bytes < 1:
            raise ShardError(f"shard size {shard_size} and bytes {shard_bytes} must be positive")
        self.out = Path(out)
        if self.out.exists() and not self.out.is_dir():
            raise ShardError(f"{self.out}: is a file; give a folder for the shards")
        recover(self.out)
        self.shard_size, self.shard_bytes, self.overwrite = shard_size, shard_bytes, overwrite
        self._prefixes: set[str] = set()
        self._tars: dict[str, _Tars] = {}
        self._files: list[str] = []
        self._kept: list[str] = []
        self._folder: Path | None = None
        self._held: int | None = None  # the lock on it
        self._made: list[Path] = []
        for prefix in prefixes:
            self._claim(prefix)

    def count(self, prefix: str) -> int:
        """Samples of a prefix written so far."""
        return self._tars[prefix].count if prefix in self._tars else 0

    def has(self, prefix: str, key: str) -> bool:
        """Whether a sample with this key was written (but for numbered keys)."""
        return prefix in self._tars and key in self._tars[prefix].keys

    def write(
        self, prefix: str, key: str, members: Mapping[str, Member], *, numbered: bool = False
    ) -> None:
        """Add a sample to the shards of a prefix.

        Args:
            prefix: which shards.
            key: name of the sample, unique within the prefix; no ``.``, ``/`` or spaces
                (:func:`sanitise` makes one of any name).
            members: by extension.
            numbered: the key ends in a number, larger than those of earlier keys that begin alike;
                then only the last number is remembered, not every key of a large collection.

        Raises:
            ShardError: the key or an extension cannot be used, or text is not valid Unicode.
            WriteError: the disk is full or fails.
        """
        data = {x: _encode(f"{prefix}/{key}", x, value) for x, value in members.items()}
        if not _KEY.fullmatch(key) or len(key.encode("utf-8", "replace")) > _KEY_BYTES:
            raise ShardError(
                f"{prefix}: {key!r} cannot be a key: 1 to {_KEY_BYTES} bytes, no '.', '/' or space"
            )
        if not data:
            raise ShardError(f"{prefix}/{key}: a sample needs at least one member")
        if prefix not in self._tars:
            self._claim(prefix)
            self._tars[prefix] = _Tars(self._staging(), self.out, prefix)
        tars = self._tars[prefix]
        if not tars.claim(key, numbered):
            raise ShardError(f"{prefix}: two samples have the key {key!r}")
        size = sum(map(len, data.values()))
        if tars.samples >= self.shard_size or (
            tars.samples and tars.bytes + size > self.shard_bytes
        ):
            tars.close()
        tars.add(key, data, size)

    def add_file(self, name: str, content: str | bytes, *, renewed: bool = False) -> None:
        """Put a file beside the shards.

        Args:
            name, content: of the file; text is written as UTF-8.
            renewed: it takes the place of one that says something else; others do so with
                ``overwrite`` alone.

        Raises:
            WriteError: the disk is full or fails.
        """
        with _failing(self.out / name), _create(self._staging() / name) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            _sync(file)
        self._files.append(name)
        if not renewed:
            self._kept.append(name)

    def __enter__(self) -> ShardSet:
        missing = [p for p in (self.out, *self.out.parents) if not p.exists()]
        with _failing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._made = missing
            name = next(iter(sorted(self._prefixes)), "shards")
            while self._folder is None:
                made = tempfile.mkdtemp(prefix=f".{name}-", suffix=".partial", dir=self.out)
                self._held = _lock(Path(made), wait=True)
                if Path(made).is_dir():  # nobody took it for a dead one before it was locked
                    self._folder = Path(made)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for tars in self._tars.values():
                    tars.close()
                self._publish()
        finally:
            self._discard()

    def _staging(self) -> Path:
        if self._folder is None:
            raise RuntimeError("shards are written inside a `with` block")
        return self._folder

    def _claim(self, prefix: str) -> None:
        if prefix in self._prefixes:
            return
        if not _PREFIX.fullmatch(prefix):
            raise ShardError(f"{prefix!r} cannot begin the name of a shard: letters, digits, -, _")
        found = find_shards(self.out, (prefix,))
        if found and not self.overwrite:
            raise ShardError(
                f"{found[0]}: already there; give another folder, or replace the shards with "
                "--overwrite"
            )
        self._prefixes.add(prefix)

    def _publish(self) -> None:
        """Move the old aside and the new into place; on failure, everything back.

        The journal lets :func:`recover` do the same after a kill.
        """
        staging = self._staging()
        fresh = [p for t in self._tars.values() for p in t.paths]
        fresh += [staging / name for name in self._files]
        stale = [*find_shards(self.out, self._prefixes)]
        stale += [index_path(p) for p in stale if index_path(p).exists()]
        beside = [*self._files, summary.NAME] if stale else self._files
        stale += [self.out / name for name in beside if (self.out / name).exists()]
        if not self.overwrite and find_shards(self.out, self._prefixes):
            raise ShardError(f"{stale[0]}: was written by someone else meanwhile")
        for name in [] if self.overwrite else self._kept:
            there = self.out / name
            if there.exists() and there.read_bytes() != (staging / name).read_bytes():
                raise ShardError(
                    f"{there}: already there, and another; give another folder, or replace it with "
                    "--overwrite"
                )
        aside = staging / _ASIDE
        with _failing(self.out):
            aside.mkdir()
            with _create(staging / _JOURNAL) as journal:
                journal.write(json.dumps([p.name for p in fresh]).encode())
                _sync(journal)
            _sync_folder(staging)
            try:
                for path in stale:
                    os.rename(path, aside / path.name)
                for path in fresh:
                    os.rename(path, self.out / path.name)
                _sync_folder(self.out)
            except BaseException:
                _undo(staging, self.out)
                raise
            (staging / _JOURNAL).unlink()  # from here on the new is what there is
        self._made = []

    def _discard(self) -> None:
        for tars in self._tars.values():
            tars.abandon()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._held is not None:
            os.close(self._held)
            self._held = None
        for path in self._made:  # folders of our own making that stayed empty
            with suppress(OSError):
                path.rmdir()


class _Tars:
    """The tars of one prefix, the last of them open."""

    def __init__(self, folder: Path, out: Path, prefix: str) -> None:
        self.folder, self.out, self.prefix = folder, out, prefix
        self.keys: set[str] = set()
        self._last: dict[str, int] = {}  # by the beginning of numbered keys
        self.paths: list[Path] = []
        self.samples = self.bytes = self.count = 0  # of the open tar, of it, of all tars
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None

    def claim(self, key: str, numbered: bool) -> bool:
        """Remember a key; False when it was there before."""
        stem = key.rstrip("0123456789")
        number = int(key[len(stem) :] or -1)
        if key in self.keys or (stem in self._last and number <= self._last[stem]):
            return False
        if numbered:
            self._last[stem] = number
        else:
            self.keys.add(key)
        return True

    def add(self, key: str, data: Mapping[str, bytes], size: int) -> None:
        with _failing(self._final()):
            tar = self._tar or self._open()
            for extension, content in data.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mode = len(content), 0o444
                tar.addfile(info, io.BytesIO(content))
        self.count += 1
        self.samples += 1
        self.bytes += size

    def close(self) -> None:
        """Complete the open tar, on the disk."""
        if self._tar is None or self._file is None:
            return
        with _failing(self._final()):
            self._tar.close()
            _sync(self._file)
            self._file.close()
        self.paths.append(self.folder / self._final().name)
        self._tar = self._file = None
        self.samples = self.bytes = 0

    def abandon(self) -> None:
        """Let go of a tar that will not be completed."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._tar = self._file = None

    def _final(self) -> Path:
        return self.out / f"{self.prefix}-{len(self.paths):06d}.tar"

    def _open(self) -> tarfile.TarFile:
        self._file = _create(self.folder / self._final().name)
        self._tar = tarfile.open(  # noqa: SIM115 - closed with the shard
            fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8"
        )
        return self._tar


def _create(path: Path) -> BinaryIO:
    return open(path, "xb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be synchronised
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _encode(sample: str, extension: str, value: Member) -> bytes:
    if not _EXTENSION.fullmatch(extension) or len(extension) > 19:
        raise ShardError(f"{sample}: {extension!r} cannot be an extension; write it like 'json'")
    if isinstance(value, bytes):
        return value
    try:
        if not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return value.encode("utf-8")
    except (UnicodeEncodeError, ValueError, TypeError) as error:
        raise TextError(f"{sample}: {extension} cannot be written: {error}") from None


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Errors of the operating system, said in one line."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room or choose another --out" if full else "check the folder given as --out"
        raise WriteError(
            error.errno or errno.EIO,
            f"{path}: {error.strerror or error}; {remedy}, then convert again (shards of an "
            "earlier conversion are as they were)",
        ) from error
