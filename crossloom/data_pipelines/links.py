"""Links: which words of a text refer to which regions of the image.

Early fusion (B2T2, Alberti et al. 2019, section 3.2) shows a region on the words that mean it. A
reader that is given :class:`Links` says so in ``Passage.refers``; a text modality with
``sees: referred`` reads it there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossloom.data_pipelines.tags import class_names, classes_of
from crossloom.modalities.arrays import read_arrays
from crossloom.modalities.pictures import EXTENSIONS, image_size
from crossloom.objectives.ground import overlaps
from crossloom.units import Array, BadSample, Passage


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where names of regions come from. They are sought in the text as whole words, in any case.

    A name that several regions have stands for the first, the one a detector is surest of. Where
    one name lies in another ("car", "red car"), the longer one counts. What is not named refers to
    nothing, which is no fault of a sample.
    """

    of: str = "boxes"
    """``boxes``: the labels of the json's boxes. Or the member with the regions themselves,
    ``regions.npz``, whose classes are named by ``names``."""
    names: str = ""
    """File with the name of each class of the regions on a line, background first, relative to the
    recipe's ``data`` unless absolute."""
    regions: str = "regions.npz"
    """Member with the regions that are referred to, by their number in it."""
    overlap: float = 0.5
    """Least intersection over union of a box and the region that stands for it, above 0, to 1."""

    def __post_init__(self) -> None:
        if self.of.endswith(".npz") != bool(self.names):
            raise ValueError("links: regions need `names`, the file that names their classes")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"links: overlap is {self.overlap}; it is a share above 0, to 1")

    def named(
        self, passage: Passage, members: Mapping[str, bytes], content: Mapping[str, Any]
    ) -> Passage:
        """The passage, its words that name a region linked to it.

        Raises:
            BadSample: there are no regions, or they cannot be read.
        """
        region: dict[str, int] = {}
        for name, number in self._names(members, content):
            region.setdefault(name.strip().casefold(), number)
        found = []
        for name in sorted(filter(None, region), key=len):
            for place in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", passage.text, re.I):
                found.append((*place.span(), region[name]))
        return replace(passage, refers=tuple(found))

    def whole(
        self,
        passage: Passage,
        box: Iterable[float],
        members: Mapping[str, bytes],
        content: Mapping[str, Any],
    ) -> Passage:
        """The passage, all of it linked to the region of a box in pixels, if one is near enough.

        Raises:
            BadSample: there are no regions, or they cannot be read.
        """
        number = self._nearest([list(box)], members, content)[0]
        refers = () if number < 0 else ((0, len(passage.text), int(number)),)
        return replace(passage, refers=refers)

    def told(
        self, passage: Passage, members: Mapping[str, bytes], content: Mapping[str, Any]
    ) -> Passage:
        """The passage, what it refers to by a box's number in the json referring to its region.

        Raises:
            BadSample: there are no regions, or they cannot be read, or there is no such box.
        """
        if not passage.refers:
            return passage
        boxes = content.get("boxes") or ()
        if max(number for _, _, number in passage.refers) >= len(boxes):
            raise BadSample("missing field", f"words refer to a box that is not in {len(boxes)}")
        near = self._nearest([box["box"] for box in boxes], members, content)
        refers = ((a, b, int(near[n])) for a, b, n in passage.refers)
        return replace(passage, refers=tuple(x for x in refers if x[2] >= 0))

    def _names(
        self, members: Mapping[str, bytes], content: Mapping[str, Any]
    ) -> list[tuple[str, int]]:
        if self.names:
            names = class_names(self.names)
            labels = classes_of(read_arrays(members, self.of), names)
            return [(names[label], n) for n, label in enumerate(labels) if label]
        boxes = [b for b in content.get("boxes") or () if b.get("label") and b.get("box")]
        if not boxes:
            return []
        near = self._nearest([b["box"] for b in boxes], members, content)
        return [(b["label"], int(n)) for b, n in zip(boxes, near, strict=True) if n >= 0]

    def _nearest(
        self, boxes: list[Any], members: Mapping[str, bytes], content: Mapping[str, Any]
    ) -> Array:
        """The region that overlaps most with each box, ``[n]``; -1 where none does enough."""
        arrays = read_arrays(members, self.regions)
        if not {"boxes", "size"} <= set(arrays):
            raise BadSample("missing member", f"{self.regions} has no boxes, or no size")
        if not len(arrays["boxes"]):
            return np.full(len(boxes), -1)
        sizes = picture_size(content, members), arrays["size"].ravel()
        picture, own = (np.tile(np.asarray(size, np.float64), 2) for size in sizes)
        shares = [np.asarray(box, np.float64) / picture for box in boxes]
        shared = np.stack([overlaps(arrays["boxes"] / own, share) for share in shares])
        return np.where(shared.max(1) >= self.overlap, shared.argmax(1), -1)


def picture_size(content: Mapping[str, Any], members: Mapping[str, bytes]) -> tuple[float, float]:
    """Width and height in pixels: as the json says, else the picture, else the regions.

    Raises:
        BadSample: nothing says it.
    """
    if content.get("size"):
        return float(content["size"]["width"]), float(content["size"]["height"])
    for name in EXTENSIONS:
        if name in members:
            return image_size(members[name], name)
    size = read_arrays(members, "regions.npz").get("size")
    if size is None or size.size != 2:
        raise BadSample("missing field", "json has no 'size' of the picture, which boxes need")
    return float(size[0]), float(size[1])
