"""Region features in HDF5, as VOLTA and as the bottom-up-attention VQA models write them.

Reads one file, in either form::

    flickr30k_boxes36.h5          VOLTA: a group an image
        /<image>/features [R, F], boxes [R, 4], img_w, img_h, num_objects, obj_id [R], cls_prob …
    train36.hdf5                  hengyuan-hu/bottom-up-attention-vqa: arrays over all images
        image_features [N, 36, F], image_bb [N, 36, 4], spatial_features [N, 36, 6]
    train.hdf5                    its form for 10 to 100 regions: arrays over all regions
        image_features [M, F], image_bb [M, 4], spatial_features [M, 6], pos_boxes [N, 2]
    train36_imgid2idx.pkl         beside the latter two, or …_imgid2idx.json: {image: place in N}

The width and height of the latter two are found from ``image_bb`` (pixels) and ``spatial_features``
(shares) of the same boxes. Of the pickle nothing is read but plain values
(:mod:`~crossloom.data_pipelines.sources.plain_pickle`).

Options and skipped items are those of :mod:`~crossloom.data_pipelines.sources.butd`. Needs the
extra ``features`` (h5py).
"""

from __future__ import annotations

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
    read_json,
)
from crossloom.data_pipelines.sources.plain_pickle import read_plain
from crossloom.data_pipelines.sources.region_features import (
    BadRegions,
    Regions,
    Store,
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
        input: the file.
        out: folder for the shards.
        shards: folder of the shards whose samples get the regions; their splits are kept.
        keep_images: whether their images stay in the samples.
        split: of the samples, without ``shards``.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all when known).

    Raises:
        SourceError: the input is no such file, or a package is missing.
    """
    path = need_input(input, "hdf5", "one file of region features")
    if not path.is_file():
        raise SourceError(f"{path}: no such file; hdf5 reads one file of region features")
    to = Conversion("hdf5", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    h5py = need_package("h5py", "features")
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        raise SourceError(f"{path}: not a readable HDF5 file ({error}); copy it again") from None
    with to, opened as file:
        store: Store = Arrays(path, file) if "image_features" in file else Groups(file)
        write_regions(to, store, shards, split, keep_images)
    return to.report


class Groups:
    """A group an image (VOLTA)."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def names(self) -> Iterator[str]:
        """Names of the groups, sorted."""
        yield from self._file

    def read(self, name: str) -> Regions:
        """The regions of an image.

        Raises:
            BadRegions: they cannot be used.
        """
        group = self._file[name]
        if not hasattr(group, "items"):
            raise BadRegions("entry is no group of arrays")
        # captions and other text lie beside the arrays
        return from_fields({k: v[()] for k, v in group.items() if v.dtype.kind in "iufS"})


class Arrays:
    """Arrays over all images, with the places of images beside them."""

    def __init__(self, path: Path, file: Any) -> None:
        self._file = file
        wanted = {"image_features", "image_bb", "spatial_features"}
        if missing := sorted(wanted - set(file)):
            raise SourceError(f"{path}: has image_features but no {', '.join(missing)}")
        beside = path.with_name(f"{path.stem}_imgid2idx.json")
        holds = "the place of each image: {image: place}"
        if beside.is_file():
            places = read_json(beside, holds)
        elif (beside := beside.with_suffix(".pkl")).is_file():
            places = read_plain(beside, holds)
        else:
            raise SourceError(f"{beside}: missing; it (or the same as .json) should hold {holds}")
        try:
            self._places = {str(k): int(v) for k, v in places.items()}
        except (AttributeError, TypeError, ValueError):
            raise SourceError(f"{beside}: should hold {holds}") from None

    def names(self) -> Iterator[str]:
        """Images in the order of the arrays."""
        yield from sorted(self._places, key=self._places.__getitem__)

    def read(self, name: str) -> Regions:
        """The regions of an image.

        Raises:
            BadRegions: they cannot be used.
        """
        rows: Any = self._places[name]
        ends = self._file.get("pos_boxes")
        if not 0 <= rows < len(self._file["image_features"] if ends is None else ends):
            raise BadRegions("place of the image is beyond the arrays")
        if ends is not None:
            start, end = map(int, ends[rows])
            rows = slice(start, end)
        boxes, shares = self._file["image_bb"][rows], self._file["spatial_features"][rows]
        return Regions(self._file["image_features"][rows], boxes, _size(boxes, shares))


def _size(boxes: Any, shares: Any) -> tuple[float, float]:
    """Width and height, from the boxes that reach furthest."""
    if len(boxes) == 0:
        raise BadRegions("no regions in the image")
    sides = []
    for corner in (2, 3):
        far = int(np.argmax(boxes[:, corner]))
        if not shares[far, corner] > 0:
            raise BadRegions("size of the image cannot be told from its boxes")
        sides.append(float(np.rint(boxes[far, corner] / shares[far, corner])))
    return sides[0], sides[1]
