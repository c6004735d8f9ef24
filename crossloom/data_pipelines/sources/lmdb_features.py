"""Region features in LMDB, as UNITER and as VOLTA and ViLBERT write them.

Reads the folder of a database (``data.mdb``, ``lock.mdb``) or a database in one file. Keys are
names of images; the form of the values is told from their first bytes::

    coco_train2014_000000000009.npz   UNITER: msgpack with msgpack_numpy, or an npz
        {"features": [R, F], "norm_bb": [R, 6], "conf": [R], "soft_labels": [R, C]}
    9                                 VOLTA, ViLBERT: a pickled dictionary of arrays, or base64
        {"features", "boxes", "img_w", "img_h", "num_boxes" or "num_objects", "cls_prob",
         "objects_id" or "obj_id", …}

``keys`` and keys that begin with ``__`` list the others and are not read. UNITER's boxes are shares
of an image whose size is not stored: it is read from the image where the samples of ``shards`` have
it, else the image counts as 1000 by 1000 pixels.

Nothing is unpickled but plain values and arrays of numbers
(:mod:`~crossloom.data_pipelines.sources.plain_pickle`); msgpack and npz values that hold pickles
are refused.

Options and skipped items are those of :mod:`~crossloom.data_pipelines.sources.butd`. Needs the
extra ``features`` (lmdb, msgpack).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_input,
    need_package,
)
from crossloom.data_pipelines.sources.plain_pickle import NotPlain, load_plain
from crossloom.data_pipelines.sources.region_features import (
    BadRegions,
    Regions,
    from_fields,
    write_regions,
)
from crossloom.data_pipelines.write import SHARD_SIZE


def convert(
    input: Path | None,
    out: Path,
    *,
    shards: str | None = None,
    keep_images: bool = True,
    split: str = "train",
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the regions, alone or with the samples of ``shards``.

    Args:
        input: the database.
        out: folder for the shards.
        shards: folder of the shards whose samples get the regions; their splits are kept.
        keep_images: whether their images stay in the samples.
        split: of the samples, without ``shards``.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all when known).

    Raises:
        SourceError: the input is no such database, or a package is missing.
    """
    path = need_input(input, "lmdb", "a folder with data.mdb, or a file", "database")
    if not path.exists() or (path.is_dir() and not (path / "data.mdb").is_file()):
        raise SourceError(f"{path}: no LMDB database; it is a folder with data.mdb, or a file")
    to = Conversion("lmdb", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    lmdb = need_package("lmdb", "features")
    try:
        database = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise SourceError(
            f"{path}: not a readable LMDB database ({error}); copy it again"
        ) from None
    with to, database, database.begin() as transaction:
        store = Lmdb(transaction)
        write_regions(to, store, shards, split, keep_images)
    return to.report


class Lmdb:
    """Regions in an open database."""

    def __init__(self, transaction: Any) -> None:
        self._transaction = transaction

    def names(self) -> Iterator[str]:
        """Keys in their order."""
        for key in self._transaction.cursor().iternext(keys=True, values=False):
            if key != b"keys" and not key.startswith(b"__"):
                yield key.decode("utf-8", "surrogateescape")

    def read(self, name: str) -> Regions:
        """The regions of an image.

        Raises:
            BadRegions: they cannot be used.
        """
        return from_fields(decode(self._transaction.get(name.encode("utf-8", "surrogateescape"))))


def decode(data: bytes) -> dict[str, Any]:
    """The fields of a value, whichever of the three forms it has.

    Raises:
        BadRegions: of none of them.
    """
    try:
        if data[:4] == b"PK\x03\x04":
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                return dict(archive)
        if 0x81 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF):  # a map; a pickle begins with 0x80
            found = need_package("msgpack", "features").unpackb(
                data, raw=False, strict_map_key=False, object_hook=_packed
            )
        else:
            found = load_plain(data)
    except NotPlain as error:
        raise BadRegions(f"value is no pickle of plain values ({error})") from None
    except SourceError:
        raise
    except Exception as error:  # damaged bytes make the readers raise almost anything
        raise BadRegions(f"value cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise BadRegions("value is no dictionary of fields")
    return found


def _packed(row: dict[Any, Any]) -> Any:
    """An array or a number as msgpack_numpy writes it; those of objects are pickles within."""
    given = {k.decode() if isinstance(k, bytes) else k: v for k, v in row.items()}
    if "nd" not in given:
        return row
    form = np.dtype(given["type"])
    if form.kind not in "biuf":
        raise ValueError("not an array of numbers")
    array = np.frombuffer(given["data"], form)
    return array.reshape(given["shape"]) if given["nd"] else array[0]
