"""Wikipedia: articles by language, as WikiExtractor writes them.

Reads both forms of WikiExtractor's output, plain or packed (``--compress`` gives ``.bz2``), in one
folder a language, named by it::

    en/AA/wiki_00  en/AA/wiki_01  …  en/AB/wiki_00  …     sw/AA/wiki_00.bz2  …

With ``--json``, an article a line::

    {"id": "12", "url": "https://en.wikipedia.org/wiki?curid=12", "title": "Dog", "text": "…"}

otherwise::

    <doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Dog">
    Dog

    The dog is an animal.

    </doc>

Folders may be called ``enwiki`` too. If ``AA`` lies directly in the input, give ``language``.

Each article becomes a sample with a text for each line (paragraphs, headings, items of lists), its
id is ``<language>/<id>``: ``{"id": "en/12", "texts": {"en": ["The dog is an animal."]}}``. The
title that begins an article is left out, and what WikiExtractor escaped for HTML
(``&lt;``, ``&amp;``) is text again. An article of more than ``longest`` characters (1,000,000)
goes on in further samples, cut between paragraphs, whose ids end in ``#1``, ``#2``, …

Everything is ``train`` unless ``test`` or ``dev`` are set: shares of the articles, chosen by a hash
of their first paragraphs.

Skipped, and counted: articles without text (redirects), articles that have no end, lines outside
an article that are neither form, and lines that are not UTF-8. Files are read once, an article at
a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    check_shares,
    need_folder,
    read_lines,
)
from crossloom.data_pipelines.sources.documents import LONGEST, Documents
from crossloom.data_pipelines.sources.languages import chosen_language, locale_code
from crossloom.data_pipelines.write import SHARD_SIZE

_PART = re.compile(r"[A-Z]{2}")
_FILE = re.compile(r"wiki_\d+(\.(bz2|gz|xz))?")
# titles are not escaped: one may hold quotation marks
_HEAD = re.compile(r'<doc id="(?P<id>[^"]*)".*? title="(?P<title>.*)">')


@dataclass(frozen=True)
class Article:
    """One article; the title is not among its paragraphs."""

    id: str
    paragraphs: list[str]


def convert(
    input: Path | None,
    out: Path,
    *,
    language: str = "",
    test: float = 0.0,
    dev: float = 0.0,
    longest: int = LONGEST,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train`` and, when asked for, ``dev`` and ``test``.

    Args:
        input: folder with a folder for each language, or that of one language.
        out: folder for the shards.
        language: of the articles, when the input is the folder of one language.
        test: share of the articles held back for ``test``.
        dev: share held back for ``dev``.
        longest: most characters of a sample, unless a single paragraph has more.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, None): how many there will be is not known.

    Raises:
        SourceError: no such files, one that is not whole, or a language that is not known.
    """
    check_shares(test=test, dev=dev)
    folder = need_folder(input, "wikipedia", "<language>/AA/wiki_00 …")
    files = _files(folder, chosen_language(language))
    to = Conversion("wikipedia", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        for code, paths in files.items():
            documents = Documents(to, code, test, dev, longest)
            for path in paths:
                for article in _articles(path, to, f"{code}/{path.parent.name}/{path.name}"):
                    name = f"{code}/{article.id}"
                    if not documents.write(name, article.paragraphs):
                        to.skip("article without text", name)
    return to.report


def _files(folder: Path, language: str) -> dict[str, list[Path]]:
    """Files in order, by language."""
    if any(_PART.fullmatch(p.name) for p in folder.iterdir()):
        if not language:
            raise SourceError(
                f"{folder}: WikiExtractor's output for one language; say which, with "
                "--set language=en"
            )
        folders = {folder: language}
    else:
        folders = {p: p.name for p in sorted(folder.iterdir()) if p.is_dir()}
    found: dict[str, list[Path]] = {}
    for place, name in folders.items():
        code = locale_code(name.removesuffix("wiki"))
        paths = sorted(p for p in place.glob("*/wiki_*") if _FILE.fullmatch(p.name))
        if paths and code in found:
            raise SourceError(
                f"{place}: {found[code][0].parents[1].name} is {code} as well; keep one of them, "
                "or convert them to different folders"
            )
        if paths:
            found[code] = paths
    if not found:
        raise SourceError(f"{folder}: no <language>/AA/wiki_00 below it")
    return found


def _articles(path: Path, to: Conversion, name: str) -> Iterator[Article]:
    head: re.Match[str] | None = None
    body: list[str] = []
    start = 0
    for number, line in read_lines(path, to):
        if line is None:
            continue
        if match := _HEAD.fullmatch(line):
            if head:
                to.skip("article without its end", f"{name}:{start}")
            head, body, start = match, [], number
        elif head is None and line.strip():
            if article := _json(line):
                yield article
            else:
                to.skip("line that is no article", f"{name}:{number}")
        elif head and line == "</doc>":
            yield _article(head["id"], head["title"], body)
            head = None
        elif head:
            body.append(line)
    if head:
        to.skip("article without its end", f"{name}:{start}")


def _json(line: str) -> Article | None:
    try:
        row = json.loads(line)
        return _article(str(row["id"]), str(row["title"]), row["text"].split("\n"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _article(id: str, title: str, lines: list[str]) -> Article:
    paragraphs = [text for line in lines if (text := _unescape(line).strip())]
    if paragraphs and paragraphs[0] == _unescape(title).strip():
        del paragraphs[0]
    return Article(id, paragraphs)


def _unescape(text: str) -> str:
    # html.unescape does more than WikiExtractor did: "&copy=" of an address would become "©="
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
