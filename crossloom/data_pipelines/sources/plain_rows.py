"""Rows of text files: CSV, TSV, and a JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import SourceError

SUFFIXES = (".csv", ".tsv", ".jsonl")
_SEEN = 1000  # lines of JSON that tell the columns: an object may lack some


def column_names(path: Path) -> list[str]:
    """The columns of a file: its first line, or the fields of its first 1,000 objects.

    Raises:
        SourceError: it cannot be read.
    """
    if path.suffix == ".jsonl":
        return list(dict.fromkeys(k for row in islice(_objects(path), _SEEN) for k in row or ()))
    return next(_lines(path), [])


def count_rows(path: Path) -> int | None:
    """Unknown before the file is read."""
    return None


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """The cells of each row, by column; None for a row with text that is not UTF-8.

    Raises:
        SourceError: the file cannot be read to its end.
    """
    if path.suffix == ".jsonl":
        for row in _objects(path):
            yield None if row is None else {name: row.get(name) for name in columns}
        return
    lines = _lines(path)
    head = next(lines)
    for number, cells in enumerate(lines, start=2):
        if not cells:
            continue
        if len(cells) != len(head):
            raise SourceError(
                f"{path}: row {number} has {len(cells)} cells, the first has {len(head)}; "
                "quote cells that hold the separator"
            )
        row = dict(zip(head, cells, strict=True))
        chosen = {name: row[name] for name in columns}
        yield None if any(_escaped(cell) for cell in chosen.values()) else chosen


def _lines(path: Path) -> Iterator[list[str]]:
    # quotation marks are text between tabs, as in other sources
    form: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    )
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            yield from csv.reader(file, **form)
        except csv.Error as error:
            raise SourceError(f"{path}: not a readable {path.suffix[1:]} file ({error})") from None


def _objects(path: Path) -> Iterator[dict[str, Any] | None]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except UnicodeDecodeError:
                yield None
                continue
            except ValueError as error:
                raise SourceError(f"{path}: line {number} is no JSON ({error})") from None
            if not isinstance(row, dict):
                raise SourceError(f"{path}: line {number} is no JSON object")
            if row:
                yield row


def _escaped(cell: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in cell)
