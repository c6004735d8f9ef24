"""Fetching files by HTTP, from buckets, from the Hub, and from commands, over bad networks.

Each fetch is tried again after a growing, jittered pause, and goes on where it was cut if the
server can; it is given up when ``Patience.total`` seconds have brought nothing.
"""

from __future__ import annotations

import errno
import http.client
import os
import random
import re
import select
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar

from crossloom.data_pipelines.errors import ShardError

T = TypeVar("T")
_CHUNK = 1 << 18
_RANGE = 4 << 20  # bytes a request to a bucket
_DISK = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
_SMALLEST_PACE = 1 << 16  # bytes within ``stall`` below which a connection counts as stuck
#: What brings each of fsspec's protocols.
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}


class RemoteError(ShardError):
    """A remote file that cannot be had."""


class Missing(RemoteError):
    """The server says that there is no such file, or not for us."""


class _Transient(Exception):
    """Worth another try; ``progress``: this one brought something new."""

    def __init__(self, message: str, progress: bool = False) -> None:
        super().__init__(message)
        self.progress = progress


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds."""

    total: float = 38.0  #: without anything new before an address is given up
    stall: float = 15.0  #: for a connection, an answer, or 64 KiB
    first: float = 0.25  #: upper end of the first pause; doubles
    longest: float = 8.0  #: upper end of any pause

    @classmethod
    def chosen(cls) -> Patience:
        """``CROSSLOOM_PATIENCE`` seconds until an address is given up for dead, 53 if not set."""
        total = float(os.environ.get("CROSSLOOM_PATIENCE", "53"))
        return cls(total=total * 38 / 53, stall=total * 15 / 53)


@dataclass(frozen=True)
class Stamp:
    """What tells one version of a remote file from another."""

    size: int | None = None  #: in bytes
    mark: str = ""  #: entity tag, checksum or time, as the server gives it


def is_remote(path: str) -> bool:
    """Whether a path is an address or a command rather than a file."""
    return path.startswith("pipe:") or bool(re.match(r"[a-z][a-z0-9+.-]*://", path))


def shown(url: str) -> str:
    """An address without what may be secret (user, query)."""
    if url.startswith("pipe:"):
        return url
    head, query, _ = url.partition("?")
    return re.sub(r"//[^/@]*@", "//", head) + ("?…" if query else "")


def beside(url: str, suffix: str) -> str:
    """The address of a file beside another: the suffix goes before the query."""
    head, query, rest = url.partition("?")
    return f"{head}{suffix}{query}{rest}"


def is_file(url: str) -> bool:
    """Whether a remote path is an address, beside which other files may lie, and no command."""
    return is_remote(url) and not url.startswith("pipe:")


def sibling(url: str, name: str) -> str:
    """The address of another file in the same folder.

    >>> sibling("https://host/set/a.tar?key=1", "b.json")
    'https://host/set/b.json?key=1'
    """
    head, query, rest = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}{query}{rest}"


def name_of(url: str) -> str:
    """The name of the tar that an address or command ends in, without ``.tar``."""
    if not url.startswith("pipe:"):
        url = urllib.parse.unquote(url.partition("?")[0])
    found = re.findall(r"([\w.-]+)\.tar\b", url) or re.findall(r"[\w.-]+", url)
    return str(found[-1])


def persist(what: str, attempt: Callable[[], T], patience: Patience) -> T:
    """Call until it succeeds, with growing random pauses.

    Raises:
        RemoteError: nothing new for ``patience.total`` seconds; names what, and the last failure.
    """
    began, tries, more = time.monotonic(), 0, 0
    while True:
        try:
            return attempt()
        except _Transient as error:
            now = time.monotonic()
            tries, more = tries + 1, more + 1
            if error.progress:
                began, more = now, 1
            pause = random.uniform(0, min(patience.longest, patience.first * 2 ** min(more, 10)))
            if now + pause - began > patience.total:
                raise RemoteError(
                    f"{what}: given up after {tries} tries, the last {now - began:.0f} s of them "
                    f"without anything new ({error}); check the address and the network, then "
                    "start again (a run: with --resume)"
                ) from None
            time.sleep(pause)


def stamp(url: str, patience: Patience | None = None) -> Stamp:
    """Size and version of a remote file; empty where they cannot be asked for.

    Raises:
        RemoteError: it is not there, or the server does not answer.
    """
    patience = patience or Patience.chosen()
    if url.startswith("pipe:"):
        return Stamp()
    return persist(shown(url), lambda: _stamp(url, patience), patience)


def fetch(url: str, file: BinaryIO, known: Stamp, patience: Patience | None = None) -> None:
    """Write a remote file's content.

    Raises:
        RemoteError: it is not there, the server does not answer, or a command fails.
        OSError: the local disk fails.
    """
    patience = patience or Patience.chosen()
    download = _Download(url, file, known, patience)
    persist(shown(url), download.attempt, patience)


def small(url: str, patience: Patience | None = None) -> bytes | None:
    """The content of a small remote file, None where there is none.

    Raises:
        RemoteError: the server does not answer.
    """
    patience = patience or Patience.chosen()
    with tempfile.TemporaryFile() as file:
        try:
            # how long it is comes with the answer: one request
            fetch(url, file, Stamp(), patience)
        except Missing:
            return None
        file.seek(0)
        return file.read()


def find(pattern: str) -> list[str]:
    """Addresses that a pattern with ``*`` names, sorted; a folder of a bucket means its tars.

    Raises:
        RemoteError: nothing matches, or the protocol cannot list.
    """
    if pattern.startswith(("pipe:", "http:", "https:")):
        if "*" in pattern and not pattern.startswith("pipe:"):
            raise RemoteError(f"{shown(pattern)}: HTTP cannot list; write {{000..099}} instead")
        return [pattern]
    patience = Patience.chosen()
    if not pattern.endswith(".tar"):
        pattern = f"{pattern.rstrip('/')}/*.tar"
    if "*" not in pattern:
        return [pattern]
    system, path = _system(pattern, patience)
    found = persist(shown(pattern), lambda: _ask(lambda: system.glob(path), patience), patience)
    if not found:
        raise Missing(f"{shown(pattern)}: no such shards")
    return sorted(str(system.unstrip_protocol(p)) for p in found)


# --- HTTP ---------------------------------------------------------------------------------------


def _open(url: str, method: str, headers: dict[str, str], patience: Patience) -> Any:
    request = urllib.request.Request(
        url,
        method=method,
        headers={"User-Agent": "crossloom", "Accept-Encoding": "identity", **headers},
    )
    try:
        return urllib.request.urlopen(request, timeout=patience.stall)
    except urllib.error.HTTPError as error:
        error.close()
        said = f"{error.code} {error.reason}"
        if error.code in (408, 425, 429) or (error.code >= 500 and error.code != 501):
            raise _Transient(said) from None
        raise Missing(f"{shown(url)}: the server says {said}; check the address and who may read it"
        ) from None  # fmt: skip
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RemoteError(f"{shown(url)}: {error.reason}; mend the certificates") from None
        raise _Transient(str(error.reason)) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise RemoteError(f"{shown(url)}: no address that can be opened ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(f"{type(error).__name__}: {error}") from None


def _stamp(url: str, patience: Patience) -> Stamp:
    if not url.startswith(("http:", "https:")):
        system, path = _system(url, patience)
        info = _ask(lambda: system.info(path), patience)
        marks = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "last_commit")
        return Stamp(info.get("size"), str(next((info[m] for m in marks if info.get(m)), "")))
    try:
        with _open(url, "HEAD", {}, patience) as answer:
            return _headers(answer)
    except Missing as error:
        # addresses signed for reading refuse HEAD, and some servers do not know it
        if any(code in str(error) for code in ("says 403", "says 405", "says 501", "says 400")):
            return Stamp()
        raise


def _headers(answer: Any) -> Stamp:
    length = answer.headers.get("Content-Length") or ""
    mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return Stamp(int(length) if length.isdigit() else None, mark)


class _Download:
    """One file on its way: every attempt goes on where the one before was cut."""

    def __init__(self, url: str, file: BinaryIO, known: Stamp, patience: Patience) -> None:
        self.url, self.file, self.known, self.patience = url, file, known, patience
        self.done = self.best = 0
        self.mark = ""

    def attempt(self) -> None:
        """Fetch all that is missing.

        Raises:
            _Transient: it was cut, or does not come.
        """
        kinds = {"pipe:": self._pipe, "http:": self._http, "https:": self._http}
        one = next((f for k, f in kinds.items() if self.url.startswith(k)), self._bucket)
        try:
            one()
        except _Transient as error:
            error.progress = error.progress or self.done > self.best
            self.best = max(self.best, self.done)
            raise
        self.file.truncate(self.done)
        self.file.flush()

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.done += len(data)

    def _restart(self) -> None:
        self.file.seek(0)
        self.done = 0

    def _http(self) -> None:
        go_on = {"Range": f"bytes={self.done}-", "If-Range": self.mark}
        again = self.done > 0 and self.mark != "" and not self.mark.startswith("W/")
        with _open(self.url, "GET", go_on if again else {}, self.patience) as answer:
            if answer.status != 206:
                self._restart()
            elif not str(answer.headers.get("Content-Range")).startswith(f"bytes {self.done}-"):
                self._restart()
                self.mark = ""
                raise _Transient("the server answered with another part of the file")
            found = _headers(answer)
            self.mark = found.mark
            whole = None if found.size is None else self.done + found.size
            self._body(answer, whole)
            if whole is not None and self.done < whole:
                raise _Transient(f"cut after {self.done} of {whole} bytes")
        if self.known.size is not None and self.done != self.known.size:
            size, self.mark = self.done, ""
            self._restart()
            raise _Transient(f"{size} bytes where {self.known.size} were announced")

    def _body(self, answer: Any, whole: int | None) -> None:
        since, before = time.monotonic(), self.done
        try:
            while part := answer.read1(_CHUNK):
                self._put(part)
                if time.monotonic() - since > self.patience.stall:
                    if self.done - before < _SMALLEST_PACE and self.done != whole:
                        raise _Transient(f"stuck after {self.done} bytes")
                    since, before = time.monotonic(), self.done
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of the local disk
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            raise _Transient(f"after {self.done} bytes: {type(error).__name__} {error}") from None

    # --- buckets and the Hub --------------------------------------------------------------------

    def _bucket(self) -> None:
        system, path = _system(self.url, self.patience)
        known = self.known if self.known.size is not None else _stamp(self.url, self.patience)
        if known.size is None:
            raise RemoteError(f"{shown(self.url)}: its size is not known")
        while self.done < known.size:
            begin, end = self.done, min(self.done + _RANGE, known.size)
            reading = partial(system.cat_file, path, start=begin, end=end)
            part: bytes = _ask(reading, self.patience)
            if len(part) != end - begin:
                raise _Transient(f"{len(part)} bytes where {end - begin} were asked for")
            self._put(part)
        if known.mark and _stamp(self.url, self.patience) != known:
            self._restart()
            raise RemoteError(f"{shown(self.url)}: changed while it was read; start again")

    # --- commands -------------------------------------------------------------------------------

    def _pipe(self) -> None:
        self._restart()
        with Command(self.url.removeprefix("pipe:")) as command:
            try:
                while part := command.read(_CHUNK, self.patience.total):
                    self._put(part)
            except TimeoutError as error:
                raise _Transient(str(error)) from None
            if status := command.wait():
                raise _Transient(f"the command ended with status {status}{command.last_words()}")
        if self.done == 0:
            raise _Transient("the command wrote nothing")


class Command:
    """A running shell command whose output is read."""

    def __init__(self, line: str, **environment: str) -> None:
        """Start it, in a group of its own."""
        shell = shutil.which("bash")
        call = [shell, "-o", "pipefail", "-c", line] if shell else ["sh", "-c", line]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the command
        self._process = subprocess.Popen(
            call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said,
            start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip

    def read(self, size: int, patience: float | None = None) -> bytes:
        """Some of the output, none at its end.

        Raises:
            TimeoutError: nothing came within ``patience`` seconds.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if patience is not None and not select.select([descriptor], [], [], patience)[0]:
            raise TimeoutError(f"the command wrote nothing for {patience:.0f} s")
        return os.read(descriptor, size)

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait()

    def last_words(self) -> str:
        """The last line of what it said, after a colon; or nothing."""
        self._said.seek(0)
        lines = self._said.read()[-2000:].decode("utf-8", "replace").split("\n")
        return next((f": {x.strip()}" for x in reversed(lines) if x.strip()), "")

    def close(self) -> None:
        """End it, with all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()
        self._said.close()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- fsspec -------------------------------------------------------------------------------------


def _system(url: str, patience: Patience) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol == "s3":  # the pauses are ours; its own would multiply with them
        waits = {"connect_timeout": patience.stall / 2, "read_timeout": patience.stall}
        options = {"config_kwargs": {**waits, "retries": {"max_attempts": 0}}}
        # file systems are kept by their options: another endpoint is another one
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            options["endpoint_url"] = endpoint
    try:
        system, path = url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        extra = f"install {package} (pip install {package})" if package else str(error)
        raise RemoteError(f"{shown(url)}: {protocol}:// is not read yet; {extra}") from None
    except ValueError as error:
        raise RemoteError(f"{shown(url)}: {error}") from None
    if hasattr(system, "retries"):
        system.retries = 1
    system.invalidate_cache()  # what was listed earlier may have changed
    return system, path


def _ask(call: Callable[[], T], patience: Patience) -> T:
    """A call of a file system, which may hang or raise anything.

    Raises:
        Missing: it says that there is no such file.
        _Transient: anything else, or no answer in time.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            found.append((call(), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience.stall)
    if not found:
        raise _Transient(f"no answer within {patience.stall:.0f} s")
    value, error = found[0]
    if isinstance(error, FileNotFoundError | PermissionError):
        raise Missing(f"{error}; check the address and who may read it") from None
    if error is not None:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise RemoteError(
                f"{error}; give credentials, or anonymous access in fsspec's settings"
            )
        raise _Transient(f"{type(error).__name__}: {error}")
    return value
