r"""Codes of pictures, beside the pictures of shards: from a codebook of patches, or made elsewhere.

Reads a folder of shards that another source made, and writes their samples again with
``codes.npy`` (:mod:`crossloom.modalities.codes`)::

    crossloom shards make codes shards/world --out shards/world/codes

A picture is squeezed to ``side`` × ``side`` patches of ``patch`` pixels; its codes are the nearest
entries of a codebook, row by row. The codebook (``codebook.npy`` beside the shards, uint8
``[size, patch, patch, 3]``) is learned from pictures of the split ``train``, or given::

    crossloom shards make codes shards/flickr --out shards/flickr-codes \
        --set codebook=shards/coco-codes/codebook.npy

Codes that a network made (the dVAE of DALL·E, a VQGAN) are a folder of files, each named after the
sample's id or key, of integers ``[N]`` or ``[rows, columns]``; no codebook is used then::

    crossloom shards make codes shards/coco --out shards/coco-vqgan --set codes=vqgan/

Skipped, and counted: samples without a picture or without codes, and what cannot be decoded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from crossloom.data_pipelines.reader import sample_json
from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
)
from crossloom.data_pipelines.sources.region_features import samples_of
from crossloom.data_pipelines.write import SHARD_SIZE
from crossloom.modalities import codebook as books
from crossloom.modalities.pictures import EXTENSIONS, decode_image, fit
from crossloom.units import Array, BadSample, keyed_rng

MEMBER = "codes.npy"
_MAX_PIXELS = 100_000_000
#: Codes ``[N]`` of a sample, by its key, its id and its members.
_Coder = Callable[[str, str, Mapping[str, bytes]], Array]


def convert(
    input: Path | None,
    out: Path,
    *,
    codes: str = "",
    codebook: str = "",
    size: int = 512,
    side: int = 12,
    patch: int = 8,
    images: int = 1000,
    seed: int = 0,
    keep_images: bool = True,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the samples of shards with codes.

    Args:
        input: folder of shards.
        out: folder for the shards; another one.
        codes: folder of codes made elsewhere.
        codebook: file of a codebook; its size and patch are used.
        size: entries of a codebook that is learned.
        side: patches of a picture in either direction.
        patch: pixels of a patch in either direction.
        images: training pictures that a codebook is learned from, the first ones.
        seed: of a codebook that is learned.
        keep_images: whether pictures stay in the samples.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no shards, no such codes or codebook, or options that contradict each other.
    """
    folder = need_folder(input, "codes", "shards")
    if codes and codebook:
        raise SourceError("codes and codebook: give codes that were made, or what to make them by")
    if min(size, side, patch, images) < 1 or size > 2**16:
        raise SourceError(f"size={size}, side={side}, patch={patch}, images={images}: at least 1")
    found = samples_of(folder)
    to = Conversion("codes", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = sum(shard.samples for _, shard in found)
    book = None
    if codes:
        coder = _made(need_folder(Path(codes), "codes", "files of codes"))
    else:
        try:
            book = (
                books.load(Path(codebook))
                if codebook
                else _learned(folder, size, side, patch, images, seed)
            )
        except ValueError as error:
            raise SourceError(str(error)) from None
        coder = _by(book, side * book.patch)
    with to:
        for split, shard in found:
            for number, entry in enumerate(shard.entries):
                try:
                    members = shard.read(number)
                    content = sample_json(members)
                    array = coder(entry.key, str(content.get("id", "")), members)
                except BadSample as error:
                    to.skip(error.kind, f"{shard.name}/{entry.key}")
                    continue
                kept = {
                    k: v for k, v in members.items()
                    if k != "json" and (keep_images or k.rpartition(".")[2] not in EXTENSIONS)
                }  # fmt: skip
                to.write(split, entry.key, content, others={**kept, MEMBER: _npy(array)})
        if book is not None:
            to.add_file(books.NAME, book.to_bytes())
    return to.report


def _learned(
    folder: Path, size: int, side: int, patch: int, images: int, seed: int
) -> books.Codebook:
    pictures: list[Array] = []
    for shard in (shard for split, shard in samples_of(folder) if split == "train"):
        for number in range(shard.samples):
            if len(pictures) == images:
                break
            try:
                pictures.append(_picture(shard.read(number), side * patch))
            except BadSample:
                continue  # told when its codes are asked for
    if not pictures:
        raise ValueError(f"{folder}: no pictures in train-*.tar to learn a codebook from")
    return books.learn(pictures, size=size, patch=patch, seed=seed)


def _picture(members: Mapping[str, bytes], pixels: int) -> Array:
    """The picture of a sample, uint8 ``[3, pixels, pixels]``."""
    name = next((x for x in sorted(members) if x in EXTENSIONS), None)
    if name is None:
        raise BadSample("no picture", f"the sample has {', '.join(sorted(members))}")
    picture = decode_image(members[name], name, _MAX_PIXELS)
    return fit(picture, pixels, None, keyed_rng("codes"))


def _by(book: books.Codebook, pixels: int) -> _Coder:
    return lambda key, name, members: book.encode(_picture(members, pixels))


def _made(folder: Path) -> _Coder:
    def coder(key: str, name: str, members: Mapping[str, bytes]) -> Array:
        path = next((p for n in (name, key) if (p := folder / f"{n}.npy").is_file()), None)
        if path is None:
            raise BadSample("sample without codes", f"neither {name}.npy nor {key}.npy")
        try:
            array: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadSample("codes cannot be read", f"{path}: {error}") from None
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
            raise BadSample("codes are no integers [N] or [rows, columns]", str(path))
        return array.reshape(-1)

    return coder


def _npy(array: Array) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()
