r"""Illustrated stories: one picture a page, its text in many languages (African Storybook).

Reads::

    images/<story>/<NN>.jpg          01 is the cover; .jpeg and .png too
    text/<language>/<story>.md       the story in one language

A text is split at lines that are exactly ``##``. Section 1 is the title, section k belongs to
picture k and to section k of every other language, the last section is metadata::

    # The blue boat
                                     (01.jpg)
    ##
    Asha finds a boat.
                                     (02.jpg)
    ##
    * License: [CC-BY]
    * Language: en

Each page becomes a sample: the picture, and its text in every language (``parallel`` from two
languages on). Line breaks within a page become spaces. Whole stories are held back for the splits
``dev`` and ``test``, so that no story is in two of them.

Skipped, and counted: pictures without text and pages without picture, pages that are empty in a
language, sections that are not UTF-8, and texts with another number of sections than most texts
of the story have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    hold_back,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise


def convert(
    input: Path | None,
    out: Path,
    *,
    dev: int = 2,
    test: int = 3,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``.

    Args:
        input: folder with ``images/`` and ``text/``.
        out: folder for the shards.
        dev: stories held back for ``dev``, chosen by a hash of their names.
        test: stories held back for ``test``, likewise (chosen first: it stays when ``dev`` grows).
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout, or has too few stories.
    """
    folder = need_folder(input, "storybooks", "images/<story>/<NN>.jpg and text/<language>/*.md")
    for name in ("images", "text"):
        need_folder(folder / name, "storybooks", "images/ and text/ side by side")
    stories = sorted(p.name for p in (folder / "images").iterdir() if p.is_dir())
    texts = _texts(folder / "text")
    if not texts:
        raise SourceError(f"{folder / 'text'}: no <language>/<story>.md below it")
    if dev < 0 or test < 0 or dev + test >= len(stories):
        raise SourceError(
            f"{folder / 'images'}: {len(stories)} stories cannot give dev={dev} and test={test} "
            "and leave one to train on; hold back fewer"
        )
    splits = hold_back(stories, "storybooks", test=test, dev=dev)
    to = Conversion(
        "storybooks", out, shard_size=shard_size, overwrite=overwrite, progress=progress
    )
    pictures = {s: _pictures(folder / "images" / s) for s in stories}
    to.total = sum(map(len, pictures.values()))
    with to:
        for story in sorted(set(texts) - set(stories)):
            to.skip("text of a story without pictures", story, len(texts[story]))
        for story in stories:
            _story(to, splits[story], story, pictures[story], texts.get(story, {}))
    return to.report


def _texts(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by story and language code."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*/*.md")):
        found.setdefault(path.stem, {})[language_code(path.parent.name)] = path
    return found


def _pictures(folder: Path) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.stem.isdecimal() and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            found[int(path.stem)] = path
    return found


def _story(
    to: Conversion, split: str, story: str, pictures: dict[int, Path], texts: dict[str, Path]
) -> None:
    sections = {language: _sections(path) for language, path in texts.items()}
    usual = Counter(map(len, sections.values())).most_common(1)[0][0] if sections else 0
    for language in [x for x, parts in sections.items() if len(parts) != usual]:
        found = len(sections.pop(language))
        to.skip(
            "text with another number of pages than the story's others",
            f"{language}/{story}.md ({found}, others {usual})",
        )
    pages = {number: dict(_page(to, story, number, sections)) for number in range(1, usual + 1)}
    for number in sorted({*pages, *pictures}):
        name, page = f"{story}/{number:02d}", pages.get(number, {})
        if number not in pictures:
            to.skip("page without picture", name)
        elif not page:
            to.skip("picture without text", name)
        elif image := read_image(pictures[number], to, f"images/{story}/{pictures[number].name}"):
            parallel = {"parallel": True} if len(page) > 1 else {}
            content = {"id": name, **parallel, "texts": {k: [v] for k, v in page.items()}}
            to.write(split, f"{sanitise(story)}-{number:02d}", content, image)


def _sections(path: Path) -> list[bytes]:
    """Title and pages; the metadata at the end is dropped."""
    sections: list[list[bytes]] = [[]]
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.rstrip() == b"##":
            sections.append([])
        else:
            sections[-1].append(line)
    return [b"\n".join(lines) for lines in sections[:-1]]


def _page(
    to: Conversion, story: str, number: int, sections: dict[str, list[bytes]]
) -> Iterator[tuple[str, str]]:
    for language, parts in sections.items():
        name = f"{language}/{story}.md page {number}"
        try:
            text = " ".join(parts[number - 1].decode("utf-8").split())
        except UnicodeDecodeError:
            to.skip("not UTF-8", name)
            continue
        text = text.removeprefix("# ") if number == 1 else text
        if text:
            yield language, text
        else:
            to.skip("page empty in a language", name)
