"""What converters of annotated photographs share: finding images, reading rows, cutting boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    SourceError,
    first_file,
)
from crossloom.data_pipelines.sources.lines import (
    read_lines,
)

FLICKR30K = ("images", "flickr30k_images", "flickr30k-images", "Images", ".")
COCO = ("train2014", "val2014", "test2015", "train2017", "val2017", "test2017")


def image_folder(folder: Path, images: str | Path | None, names: Sequence[str]) -> Path:
    """The folder of the images: the one given as option ``images``, else the first that is there.

    Raises:
        SourceError: there is none.
    """
    if images is not None:
        if not Path(images).is_dir():
            raise SourceError(f"{images}: no such folder; it was given as the images'")
        return Path(images)
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        raise SourceError(
            f"{folder / names[0]}: no such folder; put the images there, or name their folder "
            "with --set images=…"
        )
    return found


def coco_photo(place: Path, number: int) -> Path:
    """Where COCO's image of a number is, by the names of 2014 and of 2017.

    Looks in ``place``, in the divisions' folders in it and in ``images/`` in it. The name under
    ``place`` itself when there is none.
    """
    plain = f"{number:012d}.jpg"
    candidates = [place / plain]
    for base in (place, place / "images"):
        for division in COCO:
            name = plain if division.endswith("17") else f"COCO_{division}_{plain}"
            candidates += [base / division / name, base / name]
    return first_file(candidates) or place / plain


def need_files(paths: Iterable[Path], folder: Path, expected: str) -> list[Path]:
    """Those of the paths that are files.

    Raises:
        SourceError: none is.
    """
    found = [path for path in paths if path.is_file()]
    if not found:
        raise SourceError(f"{folder}: no {expected} in it")
    return found


def read_rows(path: Path, to: Conversion) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON-lines file, each with its name (file and line); others are counted."""
    for number, line in read_lines(path, to):
        name = f"{path.name}:{number}"
        if line is None or not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield name, row
        else:
            to.skip("line is no JSON object", name)


def text_of(row: Any, *names: str) -> str:
    """The first of the fields that is there, as text with single spaces; empty when none is."""
    for name in names:
        if (value := row.get(name)) is not None:
            return " ".join(str(value).split())
    return ""


def cut_box(
    to: Conversion, box: tuple[float, float, float, float], size: tuple[float, float], name: str
) -> list[float] | None:
    """A box x1, y1, x2, y2 cut to its image.

    None, and counted, when it is empty or lies more than a pixel outside.
    """
    x1, y1, x2, y2 = box
    width, height = size
    if not (x1 >= -1 and y1 >= -1 and x2 <= width + 1 and y2 <= height + 1):  # NaN fails too
        to.skip("box outside the image", name)
        return None
    cut = [max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)]
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        to.skip("empty box", name)
        return None
    return [round(value, 2) for value in cut]
