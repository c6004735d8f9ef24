"""Files of lines, plain or packed, and several side by side: what the sources of text share."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from crossloom.data_pipelines.sources.common import Conversion, SourceError

#: A file of lines: plain, gzip, xz or bzip2 by its name, or a member of a zip.
Lines = Path | zipfile.Path
_PACKED = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2"}


def _open(path: Lines) -> BinaryIO:
    if isinstance(path, zipfile.Path):
        return cast(BinaryIO, path.open("rb"))
    packed: Any = {".gz": gzip, ".xz": lzma, ".bz2": bz2}.get(path.suffix)
    return cast(BinaryIO, packed.open(path, "rb")) if packed else open(path, "rb")


def raw_lines(path: Lines) -> Iterator[bytes]:
    r"""Lines of bytes, split at ``\n`` alone, without their ends.

    Raises:
        SourceError: the file cannot be read, or what is packed in it is not whole.
    """
    try:
        with _open(path) as file:
            for number, line in enumerate(file):
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield line.rstrip(b"\r\n")
    except (gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        form = _PACKED.get(Path(str(path)).suffix, "zip")
        raise SourceError(f"{path}: not whole {form} data ({error}); download it again") from None
    except OSError as error:
        # bzip2 has no error of its own
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}); check it") from None


def count_lines(path: Lines) -> int:
    """Lines of a file, packed or not."""
    return sum(1 for _ in raw_lines(path))


def read_lines(path: Lines, to: Conversion) -> Iterator[tuple[int, str | None]]:
    r"""Numbered lines (from 1) of a UTF-8 file, packed or not, split at ``\n`` alone.

    A line that is not UTF-8 comes as None, and is counted as skipped.
    """
    for number, line in enumerate(raw_lines(path), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            to.skip("not UTF-8", f"{path.name}:{number}")
            yield number, None


def parallel_lines(
    files: Mapping[str, Lines], to: Conversion, *, checked: bool = False
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Line i of every file, by name; lines that cannot be read as text are None.

    ``checked``: :func:`check_line_counts` has been called with them.

    Raises:
        SourceError: the files differ in their number of lines; all counts are named.
    """
    if not checked:
        check_line_counts(files.values())
    readers = {name: read_lines(path, to) for name, path in files.items()}
    for rows in zip(*readers.values(), strict=True):
        yield rows[0][0], {name: row[1] for name, row in zip(readers, rows, strict=True)}


def check_line_counts(paths: Iterable[Lines]) -> int:
    """The number of lines that all files have.

    Raises:
        SourceError: they differ.
    """
    counts = {path: count_lines(path) for path in paths}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{path} has {n} lines" for path, n in counts.items())
        raise SourceError(
            f"{told}: line i of one must translate line i of the other; download both again"
        )
    return next(iter(counts.values()), 0)


def write_parallel(
    to: Conversion,
    split: str,
    key: str,
    texts: Mapping[str, str | None],
    names: Mapping[str, str],
    label: str | None = None,
    *,
    links: Mapping[str, list[str]] | None = None,
    numbered: bool = False,
) -> None:
    """Write one sentence in several languages, or count why not.

    Args:
        to: the conversion.
        split: of the sample.
        key: of the sample.
        texts: by language; None where the line was not text (counted already).
        names: where each text stands, for the report.
        label: the sample's id, its split and key by default.
        links: the sample's ``alignments``, if there are any.
        numbered: see :meth:`ShardSet.write`.
    """
    found = {}
    for language, text in texts.items():
        if text is not None and not text.strip():
            to.skip("empty line", names[language])
        elif text is not None:
            found[language] = [text.strip()]
    if len(found) < 2:
        to.skip("sentence in fewer than two languages", f"{split}/{key}")
        return
    content = {"id": label or f"{split}/{key}", "parallel": True, "texts": found}
    content |= {"alignments": links} if links else {}
    to.write(split, key, content, numbered=numbered)
