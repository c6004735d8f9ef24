"""Tables as text: columns by name, cells separated by tabs, a row a line.

What the sources ``pawsx`` and ``common-voice`` share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from crossloom.data_pipelines.sources.common import Conversion, SourceError, read_lines

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_tsv(
    path: Path, to: Conversion, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the line (the header is 1) and cells by column, without spaces around them.

    Rows that are not UTF-8 or have another number of columns than the header are counted.

    Raises:
        SourceError: the header lacks a column.
    """
    rows = read_lines(path, to)
    header = (next(rows, (0, None))[1] or "").split("\t")
    if missing := [name for name in columns if name not in header]:
        raise SourceError(
            f"{path}: its first line must name the columns {', '.join(columns)}, separated by "
            f"tabs; {', '.join(missing)} is missing"
        )
    for number, line in rows:
        if line is None:
            continue
        cells = line.split("\t")
        if len(cells) != len(header):
            told = f"{path.name}:{number} ({len(cells)}, header {len(header)})"
            to.skip("row with another number of columns", told)
            continue
        yield number, {k: plain(v).strip() for k, v in zip(header, cells, strict=True)}


def plain(cell: str) -> str:
    """A cell without the quotes of CSV.

    Files are written by hand and by programs that quote as CSV does. Those put quotes around a
    cell only when it has quotes inside, and double them; any other quotation marks are text.

    >>> plain('"He said ""no""."'), plain('"no"'), plain('He said "no".')
    ('He said "no".', '"no"', 'He said "no".')
    """
    if '""' in cell[1:-1] and (match := _QUOTED.fullmatch(cell)):
        return match[1].replace('""', '"')
    return cell
