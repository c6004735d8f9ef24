"""Flickr8k and Flickr30k: photographs with five captions each.

Reads one caption file, whichever is there, and the images beside it::

    images/<image>.jpg           (or Images/, Flicker8k_Dataset/, flickr30k_images/ …)
    captions.txt                 header image,caption; comma-separated with quotes (Kaggle)
    Flickr8k.token.txt           1234567890_0123abcdef.jpg#0<tab>A dog runs on grass .
    results_20130124.token       the same of Flickr30k
    results.csv                  header image_name| comment_number| comment (Flickr30k, Kaggle)
    captions_de.tsv              optional, any language: header image, n, caption; tab-separated
    Flickr_8k.trainImages.txt    optional, with devImages and testImages: one image a line

Each image becomes a sample with all its captions by language; captions of several languages are
independent, not translations of one another. Splits follow the official lists when they are there
(images in none of them are skipped, and counted), else a hash of the image's name. Flickr30k with
the division that published work uses is the source ``flickr30k``.

Skipped, and counted: captions of images that are missing or neither JPEG nor PNG, images without
caption, lines that are not UTF-8 or lack a part, empty captions.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    check_shares,
    first_file,
    need_folder,
    read_image,
    stable_fraction,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.lines import (
    read_lines,
)
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_IMAGES = (
    "images",
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k_images",
    "flickr30k-images",
)
CAPTION_FILES = (
    "captions.txt",
    "Flickr8k.token.txt",
    "results_20130124.token",
    "results.csv",
    "flickr30k_images/results.csv",
)
TRANSLATED = re.compile(r"captions_(?P<language>[a-z]{2,3})\.tsv")

Captions = dict[str, dict[str, list[str]]]  #: by image and language
Row = tuple[str, str]  #: image and caption


def convert(
    input: Path | None,
    out: Path,
    *,
    dev: float = 0.1,
    test: float = 0.1,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``.

    Args:
        input: folder with the captions and the folder of images.
        out: folder for the shards.
        dev: share of the images held back for ``dev``, without official lists.
        test: share held back for ``test``, likewise.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "flickr8k", "captions.txt and images/")
    check_shares(dev=dev, test=test)
    images = first_file([folder / name for name in _IMAGES])
    if images is None:
        raise SourceError(f"{folder / 'images'}: no such folder; the photographs belong there")
    captions = first_file([folder / name for name in CAPTION_FILES])
    if captions is None:
        raise SourceError(f"{folder}: no captions in it; looked for {', '.join(CAPTION_FILES)}")
    to = Conversion("flickr8k", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        texts: Captions = {}
        collect_captions(to, captions, "en", texts)
        for path in sorted(folder.iterdir()):
            if match := TRANSLATED.fullmatch(path.name):
                collect_captions(to, path, language_code(match["language"]), texts)
        official = _official(folder, to)
        to.total = len(texts)
        for name, languages in texts.items():
            count = sum(map(len, languages.values()))
            image = read_image(images / name, to, name, count)
            if image is None:
                continue
            split = official.get(name) if official else _split(name, dev, test)
            if split is None:
                to.skip("image in no official list", name)
                continue
            to.write(split, sanitise(Path(name).stem), {"id": name, "texts": languages}, image)
        for path in sorted(images.iterdir()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.name not in texts:
                to.skip("image without caption", path.name)
        for name in sorted(set(official) - set(texts)):
            to.skip("listed image without caption", name)
    return to.report


def _split(name: str, dev: float, test: float) -> str:
    share = stable_fraction("flickr8k", name)
    return "test" if share < test else "dev" if share < test + dev else "train"


def _official(folder: Path, to: Conversion) -> dict[str, str]:
    found: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        path = folder / f"Flickr_8k.{split}Images.txt"
        for _, line in read_lines(path, to) if path.is_file() else ():
            if line and line.strip():
                found[line.strip()] = split
    return found


def collect_captions(to: Conversion, path: Path, language: str, texts: Captions) -> None:
    """Add the captions of a file, in any of the forms above, to ``texts``.

    Raises:
        SourceError: its first line is of none of them.
    """
    rows = read_lines(path, to)
    number, first = next(rows, (0, None))
    if first is None:
        raise SourceError(f"{path}: empty, or its first line is not UTF-8 text")
    parse, header = _form(path, first)
    lines = [] if header else [(number, first)]
    for chunk in (lines, rows):
        for number, line in chunk:
            if not line:
                if line is not None:
                    to.skip("empty line", f"{path.name}:{number}")
                continue
            row = parse(line)
            if row is None:
                to.skip("line lacks image or caption", f"{path.name}:{number}")
            elif not row[1].strip():
                to.skip("empty caption", f"{path.name}:{number}")
            else:
                by_language = texts.setdefault(row[0].strip(), {})
                by_language.setdefault(language, []).append(" ".join(row[1].split()))


def _form(path: Path, first: str) -> tuple[Callable[[str], Row | None], bool]:
    """How a file's lines are read, and whether the first one is a header."""
    head = [cell.strip() for cell in re.split(r"[,|\t]", first)]
    if head == ["image", "caption"]:
        return (_comma, True) if "," in first else (_tab, True)
    if head == ["image_name", "comment_number", "comment"]:
        return _bar, True
    if head == ["image", "n", "caption"]:
        return _tab, True
    if _token(first) is not None:
        return _token, False
    raise SourceError(
        f"{path}: its first line is neither the header image,caption, nor "
        "image_name| comment_number| comment, nor image<tab>n<tab>caption, nor a line "
        "<image>#<n><tab><caption>"
    )


def _comma(line: str) -> Row | None:
    cells = next(csv.reader([line]))
    return (cells[0], cells[1]) if len(cells) == 2 else None


def _bar(line: str) -> Row | None:
    cells = line.split("|", 2)
    return (cells[0], cells[2]) if len(cells) == 3 else None


def _tab(line: str) -> Row | None:
    cells = line.split("\t")
    return (cells[0], cells[-1]) if len(cells) in (2, 3) else None


def _token(line: str) -> Row | None:
    name, tab, caption = line.partition("\t")
    image, mark, number = name.rpartition("#")
    return (image, caption) if tab and mark and number.isdecimal() else None
