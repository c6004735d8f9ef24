"""Rows of Parquet and Arrow files, read a batch at a time (needs ``pyarrow``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import SourceError

SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
_BATCH = 256  # rows of Parquet at a time; Arrow files have batches of their own


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        SourceError: it cannot be read, or ``pyarrow`` is not installed.
    """
    with _reading(path):
        if path.suffix == ".parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                return list(file.schema_arrow.names)
        with _arrow(path) as file:
            return list(file.schema.names)


def count_rows(path: Path) -> int | None:
    """Rows of a file, where its footer says."""
    if path.suffix != ".parquet":
        return None
    with _reading(path):
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            return int(file.metadata.num_rows)


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """The cells of each row, by column; None for a row with text that is not UTF-8.

    Raises:
        SourceError: the file cannot be read to its end.
    """
    for batch in _batches(path, columns):
        arrays = {name: batch.column(name) for name in columns}
        for number in range(batch.num_rows):
            try:
                yield {name: array[number].as_py() for name, array in arrays.items()}
            except UnicodeDecodeError:
                yield None


def _batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with _reading(path):
        if path.suffix == ".parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                yield from file.iter_batches(_BATCH, columns=list(columns))
            return
        with _arrow(path) as file:
            if hasattr(file, "get_batch"):
                yield from map(file.get_batch, range(file.num_record_batches))
            else:
                yield from file


@contextmanager
def _arrow(path: Path) -> Iterator[Any]:
    """A file with a footer, or a stream without (as ``datasets`` keeps them), from the disk."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as data:
        try:
            file = pyarrow.ipc.open_file(data)
        except pyarrow.ArrowInvalid:
            data.seek(0)
            file = pyarrow.ipc.open_stream(data)
        with file:
            yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        import pyarrow
    except ImportError:
        raise SourceError(
            f"{path}: tables are read by pyarrow, which is not installed; "
            "pip install 'crossloom[tables]'"
        ) from None
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"{path}: not a readable {path.suffix[1:]} file ({told}); download it again"
        ) from None
