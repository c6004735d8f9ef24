"""xGQA: GQA's test questions in eight languages; answers stay English.

Reads the files of the original repository (adapter-hub/xGQA, ``data/``) or of IGLUE
(``datasets/xGQA/annotations``), of the form of GQA's own, and GQA's images::

    zero_shot/testdev_balanced_questions_de.json     bn, de, en, id, ko, pt, ru, zh
    few_shot/de/train_48.json  few_shot/de/dev.json  few_shot/de/test.json
    images/n161313.jpg

Each image becomes a sample with all its questions, each in all its languages. Writes ``test`` from
``zero_shot/``; with ``shots`` (1, 5, 10, 20, 25 or 48 images) ``train``, ``dev`` and ``test`` of
``few_shot/`` instead, which divide the same questions. ``answers.txt`` is that of GQA: train on it.

Skipped, and counted: entries without answer, question or image, entries whose answer or image is
another than in other languages, questions on images that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    first_file,
    need_folder,
)
from crossloom.data_pipelines.sources.gqa import IMAGES, entry, read_questions, write_images
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.pictures import image_folder, need_files
from crossloom.data_pipelines.write import SHARD_SIZE

_ZERO = re.compile(r"testdev_balanced_questions_(?P<language>[a-z]{2,3})")


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    shots: int = 0,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``test``, or with ``shots`` ``train``, ``dev`` and ``test``.

    Args:
        input: folder with ``zero_shot/`` and ``few_shot/``, itself or in ``data/`` or
            ``annotations/``.
        out: folder for the shards.
        images: folder of GQA's images, when it is not in the input.
        shots: images for training in each language; 0 for the whole test.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "xgqa", "zero_shot/, few_shot/ and images/")
    files = _few(folder, shots) if shots else {"test": _zero(folder)}
    place = image_folder(folder, images, IMAGES)
    to = Conversion("xgqa", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for split, paths in files.items():
            by_image = _join(to, paths)
            to.total += len(by_image)
            write_images(to, split, by_image, place)
    return to.report


def _base(folder: Path, kind: str) -> Path:
    places = [folder / place / kind for place in ("", "data", "annotations")]
    return first_file(places) or folder / kind


def _zero(folder: Path) -> dict[str, Path]:
    base = _base(folder, "zero_shot")
    paths = need_files(
        sorted(base.glob("testdev_balanced_questions_*.json")),
        base,
        "testdev_balanced_questions_<language>.json",
    )
    return {language_code(m["language"]): p for p in paths if (m := _ZERO.fullmatch(p.stem))}


def _few(folder: Path, shots: int) -> dict[str, dict[str, Path]]:
    base, files = _base(folder, "few_shot"), {}
    for split, name in {"train": f"train_{shots}", "dev": "dev", "test": "test"}.items():
        paths = need_files(sorted(base.glob(f"*/{name}.json")), base, f"<language>/{name}.json")
        files[split] = {language_code(p.parent.name): p for p in paths}
    return files


def _join(to: Conversion, files: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Questions by image, each in the languages that agree on its image and answer."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for language, path in sorted(files.items(), key=lambda item: (item[0] != "en", item[0])):
        for number, question in read_questions(path, to):
            made = entry(number, question, language)
            image, known = found.setdefault(number, (question.image, made))
            if image != question.image or known["answers"] != made["answers"]:
                to.skip("image or answer differs from other languages'", f"{path.name} {number}")
            else:
                known["text"][language] = question.text
    by_image: dict[str, list[dict[str, Any]]] = {}
    for image, made in found.values():
        by_image.setdefault(image, []).append(made)
    return by_image
