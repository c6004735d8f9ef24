"""XTD: a thousand of COCO's photographs with one caption each in eleven languages, for testing.

Reads the repository as published (adobe-research/Cross-lingual-Test-Dataset-XTD10) and COCO's
images of 2014, ``train`` and ``val``::

    XTD10/test_image_names.txt        COCO_train2014_000000061844.jpg, one a line
    XTD10/test_1kcaptions_es.txt      line i is of image i; en, it, ko, pl, ru, tr, zh
    MIC/test_1kcaptions_de.txt        de, fr
    STAIR/test_1kcaptions_jp.txt      Japanese, written anew for the images
    train2014/COCO_train2014_000000061844.jpg …      (also below images/)

Each image becomes a sample of ``test``. The texts are not marked ``parallel``, since the Japanese
ones translate nothing. Many of the images are in COCO's training division: who trains on COCO and
tests on XTD must leave these ids out.

Skipped, and counted: empty lines, lines that are not UTF-8, names that are no COCO image or given
twice, images that are missing or neither JPEG nor PNG. Files of unequal length are an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    first_file,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.lines import (
    check_line_counts,
    parallel_lines,
)
from crossloom.data_pipelines.sources.pictures import coco_photo, image_folder, need_files
from crossloom.data_pipelines.write import SHARD_SIZE

_NAMES = "test_image_names.txt"
_CAPTIONS = re.compile(r"test_1kcaptions_(?P<language>[a-z]{2})\.txt")
_IMAGE = re.compile(r"COCO_\w+_(?P<number>\d{12})\.jpg")
_CODES = {"jp": "ja"}  # a country's code, not a language's


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``test``.

    Args:
        input: folder of the repository.
        out: folder for the shards.
        images: folder with COCO's images; the input by default.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout, or files differ in length.
    """
    folder = need_folder(input, "xtd", f"XTD10/{_NAMES} and test_1kcaptions_<language>.txt")
    names = first_file([folder / "XTD10" / _NAMES, folder / _NAMES])
    if names is None:
        raise SourceError(f"{folder / 'XTD10' / _NAMES}: missing; it names the images")
    files = {"": names}
    paths = need_files(
        sorted(p for d in (folder, *sorted(folder.iterdir())) if d.is_dir() for p in d.iterdir()
               if _CAPTIONS.fullmatch(p.name)),
        folder, "test_1kcaptions_<language>.txt",
    )  # fmt: skip
    for path in paths:
        code = path.stem.rpartition("_")[2]
        language = language_code(_CODES.get(code, code))
        if language in files:
            raise SourceError(f"{path}: also in {files[language]}; keep one of them")
        files[language] = path
    place = image_folder(folder, images, ["."])
    to = Conversion("xtd", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        written: set[str] = set()
        to.total = check_line_counts(files.values())
        for number, row in parallel_lines(files, to):
            name = (row.pop("") or "").strip()
            texts = {k: [" ".join(v.split())] for k, v in row.items() if v and v.strip()}
            for language in [k for k, v in row.items() if v is not None and k not in texts]:
                to.skip("empty line", f"{files[language].name}:{number}")
            match = _IMAGE.fullmatch(name)
            if match is None or not texts:
                reason = "image without caption" if match else "name is no COCO image"
                to.skip(reason, f"{names.name}:{number}")
                continue
            if match["number"] in written:
                to.skip("image given twice", f"{names.name}:{number}")
                continue
            image = read_image(coco_photo(place, int(match["number"])), to, name, len(texts))
            if image is not None:
                written.add(match["number"])
                content = {"id": str(int(match["number"])), "texts": texts}
                to.write("test", match["number"], content, image)
    return to.report
