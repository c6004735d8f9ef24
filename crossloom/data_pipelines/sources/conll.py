"""Tagged sentences in columns, a word a line: CoNLL-U (Universal Dependencies) and CoNLL-2003.

Reads what it finds of these, in the folder or below it; a blank line ends a sentence::

    en_ewt-ud-train.conllu       <language>_<treebank>-ud-<split>.conllu: ten columns, by tabs
    en.train.conll               <language>.<split>.conll: the word first, the tag last
    eng.train  eng.testa  eng.testb    the same, as CoNLL-2002 and 2003 name them (testa: dev)

    1   The     the     DET     …          EU      NNP  I-NP  B-ORG
    2   dog     dog     NOUN    …          rejects VBZ  I-VP  O

Of CoNLL-U the fourth column is read as tags ``upos``; lines of several words (``1-2``) and of words
left out (``8.1``) are passed over, as are comments. Of the others, the last column is read as tags
of the name given as ``tags`` (``ner``), and lines ``-DOCSTART-`` are passed over; columns are
separated by tabs where there are any, else by spaces. A prefix ``en:`` of a word that names its
file's language is dropped (WikiANN, PAN-X).

Each sentence becomes a sample: its words, parted by spaces, and a tag for each of them. A space
inside a word becomes a no-break space. The tags met in any split are listed in ``upos.txt`` and
``ner.txt``, one a line::

    {"id": "train/en/1", "texts": {"en": ["The dog waits ."]},
     "tags": {"upos": {"en": ["DET", "NOUN", "VERB", "PUNCT"]}}}

Skipped, and counted: lines that are not UTF-8 or have too few columns, with their sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.lines import read_lines
from crossloom.data_pipelines.write import SHARD_SIZE

_UNIVERSAL = re.compile(
    r"(?P<language>[a-z]{2,3})_(?P<treebank>\w+)-ud-(?P<split>train|dev|test)\.conllu"
)
_COLUMNS = re.compile(
    r"(?P<language>[a-z]{2,3})\.(?P<split>train|dev|test|testa|testb)(\.conll|\.tsv)?"
)
_SPLITS = {"testa": "dev", "testb": "test"}
_ORDER = ("train", "dev", "test")

#: A word and its tag.
Tagged = tuple[str, str]


def convert(
    input: Path | None,
    out: Path,
    *,
    tags: str = "ner",
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the splits that are there, of ``train``, ``dev`` and ``test``.

    Args:
        input: folder of the files.
        out: folder for the shards.
        tags: what the last column of files that are not CoNLL-U holds.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, None).

    Raises:
        SourceError: no such files.
    """
    folder = need_folder(input, "conll", "<language>_<treebank>-ud-<split>.conllu …")
    files = _files(folder)
    to = Conversion("conll", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    met: dict[str, set[str]] = {}
    counts: dict[tuple[str, str], int] = {}
    with to:
        for split in _ORDER:
            for path, language in files.get(split, ()):
                universal = path.suffix == ".conllu"
                name = "upos" if universal else tags
                for words in _sentences(path, to, language, universal):
                    number = counts[split, language] = counts.get((split, language), 0) + 1
                    met.setdefault(name, set()).update(tag for _, tag in words)
                    content = {
                        "id": f"{split}/{language}/{number}",
                        "texts": {language: [" ".join(word for word, _ in words)]},
                        "tags": {name: {language: [tag for _, tag in words]}},
                    }
                    key = f"{split}-{language}-{number:06d}"
                    to.write(split, key, content, numbered=True)
        for name, found in met.items():
            # as they are usually listed: what is outside of all names first
            ordered = sorted(found, key=lambda tag: (tag != "O", tag))
            to.add_file(f"{name}.txt", "".join(f"{tag}\n" for tag in ordered))
    return to.report


def _files(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Files with their languages, by split."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if match := _UNIVERSAL.fullmatch(path.name) or _COLUMNS.fullmatch(path.name):
            split = _SPLITS.get(match["split"], match["split"])
            found.setdefault(split, []).append((path, language_code(match["language"])))
    if not found:
        raise SourceError(
            f"{folder}: no <language>_<treebank>-ud-<split>.conllu and no <language>.<split>.conll "
            "below it"
        )
    return found


def _sentences(
    path: Path, to: Conversion, language: str, universal: bool
) -> Iterator[list[Tagged]]:
    """The sentences of a file that are whole."""
    words: list[Tagged] = []
    whole = True
    for number, line in read_lines(path, to):
        if line is not None and not line.strip():
            if words and whole:
                yield words
            words, whole = [], True
            continue
        found = _word(line, language, universal) if line is not None else None
        if found is None:
            if line is not None:
                to.skip("line with too few columns", f"{path.name}:{number}")
            whole = False
        elif found[0]:
            words.append(found)
    if words and whole:
        yield words


def _word(line: str, language: str, universal: bool) -> Tagged | None:
    """Word and tag of a line, two empty texts where it holds no word; None if it lacks columns."""
    if (line.startswith("#") and universal) or line.startswith("-DOCSTART-"):
        return "", ""
    cells = line.split("\t") if "\t" in line else line.split()
    if len(cells) < (10 if universal else 2):
        return None
    if universal:
        if not cells[0].isdigit():
            return "", ""
        word, tag = cells[1], cells[3]
    else:
        word, tag = cells[0].removeprefix(f"{language}:"), cells[-1].strip()
    word = "\N{NO-BREAK SPACE}".join(word.split())
    return (word, tag) if word and tag else None
