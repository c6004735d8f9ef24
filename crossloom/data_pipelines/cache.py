"""A folder of shards fetched from elsewhere, shared by all processes of a node.

``CROSSLOOM_CACHE`` names the folder (``crossloom`` in the user's cache folder otherwise),
``CROSSLOOM_CACHE_GB`` its size (100). Files appear whole, by renaming; the least recently used go
when there is no room. A file that goes while a process reads it stays readable to that process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from crossloom.data_pipelines.errors import ShardError

_ABANDONED = 3600.0  #: seconds after which a half-fetched file that nobody writes may go


def folder() -> Path:
    """Where fetched shards and indexes of read-only stores are kept."""
    if chosen := os.environ.get("CROSSLOOM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "crossloom"


def limit() -> int:
    """Most bytes that fetched shards may take.

    Raises:
        ShardError: ``CROSSLOOM_CACHE_GB`` is no positive number.
    """
    text = os.environ.get("CROSSLOOM_CACHE_GB", "100")
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise ShardError(f"CROSSLOOM_CACHE_GB is {text!r}; write the cache's size in GB, like 100")
    return int(size * 1e9)


def digest(*key: str) -> str:
    """Sixteen characters that stand for a key in file names."""
    return sha256("\x1f".join(key).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def open_cached(
    path: Path, fetch: Callable[[BinaryIO], None], size: int | None = None
) -> tuple[BinaryIO, bool]:
    """A file of the cache, fetched first unless it is there; and whether it was fetched now.

    Processes that want the same file wait for the one that fetches it.

    Args:
        path: of the file, in the cache.
        fetch: writes the content.
        size: of the file in bytes, where known: room is made before fetching.

    Raises:
        ShardError: there is no room for it; and whatever ``fetch`` raises.
    """
    if (found := _opened(path)) is not None:
        return found, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # few locks for many files: they are never deleted, which could not be done safely
        with locked(path.parent / "locks" / path.name[:2]):
            if (found := _opened(path)) is not None:
                return found, False
            part = path.with_name(path.name + ".part")
            try:
                with open(part, "wb") as file:
                    make_room(path.parent, size or 0, part)
                    fetch(file)
                if size is None:
                    make_room(path.parent, part.stat().st_size, part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
            return open(path, "rb"), True
    except OSError as error:
        raise ShardError(
            f"{path.parent}: cannot keep a shard there ({error.strerror or error}); make room, set "
            "CROSSLOOM_CACHE to another folder, or lower CROSSLOOM_CACHE_GB"
        ) from None


def _opened(path: Path) -> BinaryIO | None:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller's to close
    except FileNotFoundError:
        return None
    touch(file)
    return file


def touch(file: BinaryIO) -> None:
    """Note that a file is in use."""
    with contextlib.suppress(OSError):  # a cache that others prepared may be read-only
        os.utime(file.fileno())


def make_room(place: Path, size: int, own: Path) -> None:
    """Delete the least recently used shards until a file of a size fits beside the rest.

    Args:
        place: the folder of shards.
        size: of the file in bytes; it gets this size at once, which other processes count.
        own: the file, which is there already.

    Raises:
        ShardError: it cannot fit, even alone.
    """
    most = limit()
    if size > most:
        raise ShardError(
            f"{own.name.removesuffix('.part')}: a shard of {size / 1e9:.2f} GB does not fit into "
            f"CROSSLOOM_CACHE_GB={most / 1e9:g}; raise it"
        )
    with locked(place / "locks" / "room"):
        found = []
        for entry in os.scandir(place):
            if entry.name.endswith((".tar", ".part")) and entry.name != own.name:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry))
        total = size + sum(n for _, n, _ in found)
        for when, bytes_, entry in sorted(found, key=lambda x: x[0]):
            if total <= most:
                break
            if entry.name.endswith(".part") and time.time() - when < _ABANDONED:
                continue  # another process is writing it
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
            total -= bytes_
        os.truncate(own, size)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock among processes (and threads); it goes with the process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
