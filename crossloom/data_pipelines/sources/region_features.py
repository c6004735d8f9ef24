"""Region features of images: the member ``regions.npz``, written alone or added to samples.

Converters of region features share this: what a detector saw of an image (:class:`Regions`), read
by name from a :class:`Store`, is checked, encoded, and written as a sample of its own, or added to
the samples of shards that another source made, which are found by their ids.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from crossloom.data_pipelines.shards import Shard, ShardError, open_shards
from crossloom.data_pipelines.sources.common import BAD_ROW, Conversion, SourceError
from crossloom.data_pipelines.write import find_shards, sanitise
from crossloom.modalities.pictures import (
    EXTENSIONS,
)
from crossloom.units import Array, BadSample

_NOMINAL = (1000.0, 1000.0)  # size of an image of which only shares are known
_PREFIX = re.compile(r"(coco|flickr30k|vg|gqa|nlvr2)_((train|val|test)\d{4}_)?", re.IGNORECASE)
_SHARD = re.compile(r"(?P<split>.+)-\d{6,}")
_FIELDS = {
    "features": ("features",),
    "boxes": ("boxes", "norm_bb"),
    "width": ("img_w", "image_w", "image_width"),
    "height": ("img_h", "image_h", "image_height"),
    "count": ("num_boxes", "num_objects"),
    "probabilities": ("cls_prob", "soft_labels"),
    "labels": ("objects_id", "obj_id"),
    "confidence": ("objects_conf", "obj_conf"),
    "attributes": ("attrs_id", "attr_id"),
    "attribute_confidence": ("attrs_conf", "attr_conf"),
}

#: Arrays of a number a region, and the type of their bytes where those are given.
_PER_REGION = {"confidence": np.float32, "attributes": np.int64, "attribute_confidence": np.float32}


class BadRegions(ValueError):
    """Regions that cannot be used; the message is the reason they are counted by."""


@dataclass(frozen=True)
class Regions:
    """What a detector saw of an image."""

    features: Array  #: float ``[R, F]``
    boxes: Array  #: ``[R, 4]``, x1, y1, x2, y2 in pixels, or in 0..1 when ``size`` is None
    size: tuple[float, float] | None  #: width and height of the image in pixels
    labels: Array | None = None  #: ``[R]``, 0 is background
    probabilities: Array | None = None  #: ``[R, C]``, class 0 is background
    confidence: Array | None = None  #: float ``[R]``, of the labels
    attributes: Array | None = None  #: ``[R]``, as the detector numbers them
    attribute_confidence: Array | None = None  #: float ``[R]``


@dataclass(frozen=True)
class Named:
    """An image by its plain name and its own; empty where only the name is known."""

    name: str
    image: bytes
    own: str = ""


#: Looks at images and gives the bytes of ``regions.npz`` for each, or why there are none.
Look = Callable[[Sequence[Named]], Sequence[bytes | BadRegions]]


class Store(Protocol):
    """Regions by name of the image."""

    def names(self) -> Iterator[str]:
        """Names in the order of the store, each once."""

    def read(self, name: str) -> Regions:
        """The regions of an image; cheap for the name given last by :meth:`names`.

        Raises:
            BadRegions: they cannot be used.
        """


# --- one image ----------------------------------------------------------------------------------


def from_fields(fields: Mapping[str, Any]) -> Regions:
    """Regions from named fields, as bottom-up-attention files, VOLTA and UNITER name them.

    Arrays may be base64 text of their bytes. Class numbers count from the first class there; here 0
    is background, so 1 is added to them. Attributes keep their numbers.

    Raises:
        BadRegions: a field is missing or of another form.
    """
    found = {
        name: next((fields[a] for a in aliases if fields.get(a) is not None), None)
        for name, aliases in _FIELDS.items()
    }
    if found["features"] is None or found["boxes"] is None:
        raise BadRegions("regions lack features or boxes")
    try:
        raw = _array(found["features"], np.float32)
        count = len(raw) if raw.ndim == 2 else int(_number(found["count"]))
        if count < 1:
            raise BadRegions("no regions in the image")
        features = raw.reshape(count, -1)
        boxes = _array(found["boxes"], np.float32).reshape(count, -1)[:, :4]
        size = None
        if "norm_bb" not in fields:
            size = (_number(found["width"]), _number(found["height"]))
        labels = probabilities = None
        rest = {
            name: _array(found[name], form).reshape(count)
            for name, form in _PER_REGION.items()
            if found[name] is not None
        }
        if found["labels"] is not None:
            labels = _array(found["labels"], np.int64).reshape(count) + 1
        if found["probabilities"] is not None:
            probabilities = _array(found["probabilities"], np.float32).reshape(count, -1)
    except (ValueError, TypeError, binascii.Error) as error:
        if isinstance(error, BadRegions):
            raise
        raise BadRegions("regions are damaged or of another shape than they say") from None
    return Regions(features, boxes, size, labels, probabilities, **rest)


def _array(value: Any, form: Any) -> Array:
    if isinstance(value, (str, bytes)):
        return np.frombuffer(base64.b64decode(value, validate=True), form)
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise BadRegions("regions are no numbers")
    return array


def _number(value: Any) -> float:
    return float(np.asarray(value).item()) if not isinstance(value, str) else float(value)


def encode(regions: Regions, image: bytes | None = None) -> bytes:
    """The bytes of ``regions.npz``: features and probabilities in half precision.

    Args:
        regions: of an image.
        image: the image itself, asked for its size when only shares are known of the boxes.

    Raises:
        BadRegions: not finite, of another shape, or outside the image.
    """
    size = regions.size
    boxes = np.asarray(regions.boxes, np.float32)
    if size is None:
        size = _image_size(image) if image else _NOMINAL
        boxes = boxes * np.array([*size, *size], np.float32)
    count = len(regions.features)
    if count < 1:
        raise BadRegions("no regions in the image")
    if boxes.shape != (count, 4) or not (0 < size[0] < np.inf and 0 < size[1] < np.inf):
        raise BadRegions("regions are damaged or of another shape than they say")
    arrays = {"features": _half(regions.features), "boxes": _inside(boxes, size)}
    if regions.probabilities is not None:
        arrays["probabilities"] = _half(regions.probabilities)
    if regions.labels is not None:
        arrays["labels"] = np.asarray(regions.labels, np.int32)
    if regions.attributes is not None:
        arrays["attributes"] = np.asarray(regions.attributes, np.int32)
    for name in ("confidence", "attribute_confidence"):
        if (values := getattr(regions, name)) is not None:
            arrays[name] = _half(values)
    arrays["size"] = np.array(size, np.float32)
    if any(len(v) != count for k, v in arrays.items() if k != "size"):
        raise BadRegions("regions are damaged or of another shape than they say")
    return _npz(arrays)


def _half(values: Array) -> Array:
    if not np.isfinite(values).all():
        raise BadRegions("regions have NaN or infinite values")
    large = np.abs(values).max(initial=0) > np.finfo(np.float16).max
    return np.asarray(values, np.float32 if large else np.float16)


def _inside(boxes: Array, size: tuple[float, float]) -> Array:
    """Boxes cut to the image; as training reads them, a pixel or half a per cent may overhang."""
    sides = np.array([*size, *size], np.float32)
    slack = np.maximum(1, 0.005 * sides)
    fits = (boxes >= -slack).all() and (boxes <= sides + slack).all()  # NaN fails too
    if not fits or (boxes[:, 2:] < boxes[:, :2]).any():
        raise BadRegions("box of a region lies outside the image")
    return boxes.clip(0, sides)


def _npz(arrays: Mapping[str, Array]) -> bytes:
    """As ``numpy.savez`` writes it, but the same bytes at all times."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), version=(1, 0))
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())
    return out.getvalue()


def _image_size(image: bytes) -> tuple[float, float]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as picture:  # reads the header only
            return float(picture.width), float(picture.height)
    except Exception:  # whatever damaged bytes make it raise
        raise BadRegions("size of the image cannot be read") from None


# --- many ---------------------------------------------------------------------------------------


def write_regions(
    to: Conversion, store: Store, shards: str | None, split: str, keep_images: bool
) -> None:
    """Write a store's regions alone, or with the samples of ``shards``.

    Raises:
        SourceError: no such shards.
    """
    if shards is None:
        _write_alone(to, store, split)
    else:
        _add_to_shards(to, store, Path(shards), keep_images)


def _write_alone(to: Conversion, store: Store, split: str) -> None:
    """Write a sample an image: its name as the id, and ``regions.npz``."""
    written: set[str] = set()
    for name in store.names():
        plain = plain_name(name)
        if plain in written:
            to.skip("regions of an image given twice", name)
            continue
        try:
            data = encode(store.read(name))
        except BadRegions as error:
            to.skip(str(error), name)
        else:
            written.add(plain)
            to.write(split, sanitise(plain), {"id": name}, others={"regions.npz": data})


def _add_to_shards(to: Conversion, store: Store, shards: Path, keep_images: bool) -> None:
    """Write the samples of shards again, with the regions of their images.

    An image's id is looked for among the store's names as it is (``0001/02`` and ``0003/02`` are
    two images), then by :func:`plain_name`; of samples with several pictures, picture ``i`` is
    looked for as ``<id>-img<i>`` and gives ``<i>.regions.npz``. Samples without regions are left
    out, and counted.

    Raises:
        SourceError: no shards.
    """
    names: dict[str, str] = {}
    again: dict[str, None] = {}
    for name in store.names():
        if names.setdefault(plain_name(name), name) != name:
            again[name] = None
    known = {*names.values(), *again}

    def one(image: Named) -> bytes | BadRegions:
        again.pop(image.own, None)
        name = image.own if image.own in known else names.get(image.name)
        if name is None:
            return BadRegions("sample without regions")
        try:
            return encode(store.read(name), image.image)
        except BadRegions as error:
            return error

    each_sample(to, shards, keep_images, lambda images: [one(image) for image in images])
    for name in again:
        to.skip("regions of an image given twice", name)


def each_sample(
    to: Conversion, shards: Path, keep_images: bool, look: Look, batch: int = 1
) -> None:
    """Write the samples of shards again with what ``look`` makes of their images.

    ``look`` is given the images of ``batch`` samples and answers for each, in order, with the bytes
    of ``regions.npz`` or with why there are none. ``answers.txt`` goes along.

    Raises:
        SourceError: no shards.
    """
    found = samples_of(shards)
    to.total = sum(shard.samples for _, shard in found)
    for split, shard in found:
        for start in range(0, shard.samples, batch):
            numbers = range(start, min(start + batch, shard.samples))
            samples = [s for n in numbers if (s := _sample(to, shard, n))]
            made = iter(look([image for s in samples for image in s.images.values()]))
            for sample in samples:
                answers = {name: next(made) for name in sample.images}
                regions = {k: v for k, v in answers.items() if isinstance(v, bytes)}
                if bad := [v for v in answers.values() if isinstance(v, BadRegions)]:
                    to.skip(str(bad[0]), sample.key)
                    continue
                kept = {k: v for k, v in sample.members.items() if keep_images or not _is_image(k)}
                to.write(split, sample.key, sample.content, others={**kept, **regions})
    answers_file = shards / "answers.txt"
    if answers_file.is_file():
        to.add_file("answers.txt", answers_file.read_text("utf-8"))


@dataclass(frozen=True)
class _Sample:
    """A sample as it is, and the images that regions are wanted of, by the member to write."""

    key: str
    content: dict[str, Any]
    members: dict[str, bytes]
    images: dict[str, Named]


def _sample(to: Conversion, shard: Shard, number: int) -> _Sample | None:
    key = shard.entries[number].key
    try:
        members = shard.read(number)
        content = json.loads(members.pop("json", b""))
        own = str(content["id"])
    except BadSample as error:
        to.skip(error.kind, key)
        return None
    except BAD_ROW:
        to.skip("sample has no json with an id", key)
        return None
    plain = plain_name(own)
    pictures = {k: v for k, v in sorted(members.items()) if _is_image(k)}
    several = {k.partition(".")[0]: v for k, v in pictures.items() if "." in k}
    images = {
        f"{k}.regions.npz": Named(f"{plain}-img{k}", v, f"{own}-img{k}") for k, v in several.items()
    }
    if not images:
        images = {"regions.npz": Named(plain, next(iter(pictures.values()), b""), own)}
    return _Sample(key, content, members, images)


def samples_of(folder: Path) -> list[tuple[str, Shard]]:
    """The shards of a folder, each with its split.

    Raises:
        SourceError: there are none, or they cannot be read.
    """
    if not find_shards(folder):
        raise SourceError(f"{folder}: no shards in it; give those that another source made")
    try:
        shards = open_shards(str(folder))
    except ShardError as error:
        raise SourceError(str(error)) from None
    named = [(_SHARD.fullmatch(Path(shard.path).stem), shard) for shard in shards]
    return [(match["split"], shard) for match, shard in named if match]


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2] in EXTENSIONS


def plain_name(name: str) -> str:
    """An image's name without what differs from file to file: path, ending, prefix, zeros.

    >>> plain_name("COCO_val2014_000000000042.jpg"), plain_name("42")
    ('42', '42')
    >>> plain_name("nlvr2_dev-850-0-img0.npz"), plain_name("1003_ab3.jpg")
    ('dev-850-0-img0', '1003_ab3')
    """
    name = name.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    if dot and ending.lower() in ("jpg", "jpeg", "png", "npz", "npy"):
        name = stem
    if match := _PREFIX.match(name):
        name = name[match.end() :]
    return (name.lstrip("0") or "0") if name.isascii() and name.isdecimal() else name
