"""Bottom-up attention: region features in TSV files, 36 an image or 10 to 100.

Reads a file, or all ``*.tsv`` and ``*.tsv.<n>`` of a folder. There is no header: the number of
columns tells the form. Arrays are base64 of their bytes (float32; class numbers int64)::

    trainval_resnet101_faster_rcnn_genome_36.tsv          (peteanderson80/bottom-up-attention)
        image_id  image_w  image_h  num_boxes  boxes  features
    …with the classes' probabilities                      (ViLBERT)
        image_id  image_w  image_h  num_boxes  boxes  features  cls_prob
    train2014_obj36.tsv                                   (LXMERT)
        img_id  img_h  img_w  objects_id  objects_conf  attrs_id  attrs_conf  num_boxes  boxes  features

The number of regions is each image's own, so that both forms, 36 and 10 to 100, are read alike.
Other columns are named with ``columns``. Boxes are in pixels. LXMERT's class numbers count from the
first class; in ``regions.npz`` 0 is background, as in the probabilities, so 1 is added.

With ``shards``, a folder that another source made, its samples are written again with
``regions.npz`` added, found by their images' ids (``9``, ``000000000009`` and
``COCO_train2014_000000000009`` are the same). Without, each image becomes a sample of the
features alone, in split ``split``.

Skipped, and counted: lines with another number of columns, arrays that are damaged, of another
shape than ``num_boxes`` says or not finite, boxes outside their image, samples without regions.
Files are read line by line; with ``shards`` they are read once before, to note where each image is.
"""  # noqa: E501 - a line of LXMERT's is that long

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_input,
)
from crossloom.data_pipelines.sources.region_features import (
    BadRegions,
    Regions,
    from_fields,
    write_regions,
)
from crossloom.data_pipelines.write import SHARD_SIZE

_PLAIN = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf")
FORMS = {6: _PLAIN, 7: (*_PLAIN, "cls_prob"), 10: (*_LXMERT, "num_boxes", "boxes", "features")}


def convert(
    input: Path | None,
    out: Path,
    *,
    shards: str | None = None,
    keep_images: bool = True,
    split: str = "train",
    columns: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the regions, alone or with the samples of ``shards``.

    Args:
        input: a TSV file or a folder of them.
        out: folder for the shards.
        shards: folder of the shards whose samples get the regions; their splits are kept.
        keep_images: whether their images stay in the samples.
        split: of the samples, without ``shards``.
        columns: names of the columns, separated by commas, where they are others.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all when known).

    Raises:
        SourceError: the input is not of this form.
    """
    path = need_input(input, "butd", "TSV files of features", "file or folder")
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; butd reads TSV files of features")
    files = sorted(p for p in path.iterdir() if ".tsv" in p.name) if path.is_dir() else [path]
    if not files:
        raise SourceError(f"{path}: no *.tsv in it")
    named = tuple(c.strip() for c in columns.split(",")) if columns else None
    to = Conversion("butd", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        store = Tsv(files, to, named)
        write_regions(to, store, shards, split, keep_images)
    return to.report


class Tsv:
    """Regions in TSV files, by where their lines begin."""

    def __init__(
        self, files: Sequence[Path], to: Conversion, columns: tuple[str, ...] | None = None
    ) -> None:
        self.files, self.to, self.columns = files, to, columns
        self._places: dict[str, tuple[Path, int, tuple[str, ...]]] = {}
        self._last: tuple[str, bytes] = ("", b"")

    def names(self) -> Iterator[str]:
        """Images in the order of the files.

        Raises:
            SourceError: the columns of a file are not known.
        """
        for path in self.files:
            columns = self._columns(path)
            place = next(i for i, c in enumerate(columns) if c in ("image_id", "img_id"))
            with open(path, "rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    start, offset = offset, offset + len(line)
                    cells = line.count(b"\t") + 1
                    fits = cells == len(columns)
                    cell = line.split(b"\t", place + 1)[place] if fits else b""
                    name = cell.decode("utf-8", "replace").strip()
                    if not name:
                        self.to.skip("line has another number of columns", f"{path.name}:{number}")
                    elif name in self._places:
                        self.to.skip("regions of an image given twice", f"{path.name}:{number}")
                    else:
                        self._places[name] = (path, start, columns)
                        self._last = (name, line)
                        yield name

    def _columns(self, path: Path) -> tuple[str, ...]:
        with open(path, "rb") as file:
            count = file.readline().count(b"\t") + 1
        columns = self.columns or FORMS.get(count)
        if columns is None or not {"boxes", "features"} <= set(columns):
            raise SourceError(
                f"{path}: {count} columns; those of bottom-up attention have 6, 7 or 10. Name "
                f"them with --set columns={','.join(_PLAIN)},…"
            )
        if not {"image_id", "img_id"} & set(columns):
            raise SourceError(f"{path}: no column is named image_id; name it so in columns=…")
        return columns

    def read(self, name: str) -> Regions:
        """The regions of an image.

        Raises:
            BadRegions: they cannot be used.
        """
        path, offset, columns = self._places[name]
        line = self._last[1]
        if self._last[0] != name:
            with open(path, "rb") as file:
                file.seek(offset)
                line = file.readline()
        try:
            cells = line.decode("ascii").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise BadRegions("regions are damaged or of another shape than they say") from None
        return from_fields(dict(zip(columns, cells, strict=True)))
