r"""Tables: a sample a row, from the columns that are named.

Reads ``.parquet``, and ``.arrow``, ``.feather`` and ``.ipc`` (with a footer or as a stream, as
``datasets`` keeps them), for which ``pip install 'crossloom[tables]'`` brings ``pyarrow``; and
``.csv``, ``.tsv`` (quotation marks are text) and ``.jsonl`` (an object a line), where a folder has
none of the others. The input is a folder, searched at any depth, or one file::

    data/train-00000-of-00002.parquet       data/validation-00000-of-00001.parquet

    image: {bytes, path}   caption: ["A dog.", "It waits."]   cocoid: 9

    crossloom shards make table data --out shards \
        --set image_column=image --set text_column=caption --set key_column=cocoid

The split is the word that begins the file's or else its folder's name (``train``, ``dev``, ``val``,
``valid``, ``validation``, ``test``; ``train`` without one), or what ``split`` says.

What cells may hold:

- images and sound: the encoded bytes, a struct ``{bytes, path}``, or the path of a file in or
  below the table's folder;
- texts: a string, a list of strings, or a struct with one of these for each language
  (``{"en": "The dog waits.", "de": "Der Hund wartet."}``), which are taken to be translations of
  each other. Several columns may be named, each with its language:
  ``text_column=en:caption_en,de:caption_de``; they are ``parallel`` when that is set;
- questions: a string, or a list of strings beside a list of as many answers. An answer is a
  string, or a list of strings each of which is right. ``answers.txt`` lists the first answers of
  training questions, the most frequent first.

A row needs all that is named; in several languages, a text in one of them. Skipped, and counted:
rows without image, sound, text, question or label, with a key that was there before, or with text
that is not UTF-8; images that are neither JPEG nor PNG, sound of no form that is read, questions
without answer.

Rows are read a batch at a time. Keys of samples number the rows, unless ``key_column`` gives them:
then they are remembered, about 100 bytes each, to find those given twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from crossloom.data_pipelines.sources import arrow, plain_rows
from crossloom.data_pipelines.sources.cells import BadRow, Columns, sample_of, strings
from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import chosen_language, locale_code
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_SPLIT = re.compile(r"(train|dev|val|valid|validation|test)([-_.].*)?")
_SUFFIXES = (*arrow.SUFFIXES, *plain_rows.SUFFIXES)
_SPLITS = {"val": "dev", "valid": "dev", "validation": "dev"}


def convert(
    input: Path | None,
    out: Path,
    *,
    image_column: str = "",
    text_column: str | Sequence[str] = "",
    sound_column: str = "",
    question_column: str = "",
    answer_column: str = "",
    label_column: str = "",
    key_column: str = "",
    language: str = "en",
    language_column: str = "",
    parallel: bool = False,
    split: str = "",
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the splits that the names of the files tell.

    Args:
        input: folder of the files, or one of them.
        out: folder for the shards.
        image_column: holds an image.
        text_column: holds text; several with commas, each as ``<language>:<column>``.
        sound_column: holds sound.
        question_column: holds a question, or several.
        answer_column: holds its answers.
        label_column: holds the sample's label.
        key_column: names the sample; the file and the number of the row by default.
        language: of texts and questions whose language is not given otherwise.
        language_column: holds the language of the row.
        parallel: texts of several columns are translations of one another.
        split: of all rows.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, rows in all when the files tell).

    Raises:
        SourceError: no such files, no column is named, a column is missing, a file is broken, or
            ``pyarrow`` is not installed.
    """
    root, files = _files(input)
    language = chosen_language(language)
    columns = Columns(
        image_column, sound_column, _texts(text_column), question_column, answer_column,
        label_column, key_column, language_column, parallel,
    )  # fmt: skip
    _check(columns, files)
    to = Conversion("table", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    counts = [_form(path).count_rows(path) for path in files]
    to.total = sum(filter(None, counts)) if None not in counts else None
    best: Counter[str] = Counter()
    with to:
        for path in files:
            name = path.relative_to(root).with_suffix("").as_posix()
            stem, where = sanitise(name), split or _split_of(path, root)
            for number, row in enumerate(_form(path).read_rows(path, columns.used()), start=1):
                place = f"{name}:{number}"
                try:
                    sample, image, sound = sample_of(to, columns, row, language, path, place)
                    id = _id(row, columns, name, number)
                    key = sanitise(id) if columns.key else f"{stem}-{number:09d}"
                    if columns.key and to.has(where, key):
                        raise BadRow("key given twice")
                except BadRow as error:
                    to.skip(str(error), place)
                    continue
                sample = {"id": id, **sample}
                to.write(where, key, sample, image, sound=sound, numbered=not columns.key)
                if where == "train":
                    best.update(next(iter(q["answers"])) for q in sample.get("questions", ()))
        if columns.question:
            kept = sorted(best, key=lambda answer: (-best[answer], answer))
            to.add_file("answers.txt", answer_list(kept))
    return to.report


def _form(path: Path) -> ModuleType:
    return plain_rows if path.suffix in plain_rows.SUFFIXES else arrow


def _files(input: Path | None) -> tuple[Path, list[Path]]:
    if input is not None and Path(input).is_file():
        path = Path(input)
        if path.suffix not in _SUFFIXES:
            raise SourceError(f"{path}: not a table; one ends in {', '.join(_SUFFIXES)}")
        return path.parent, [path]
    folder = need_folder(input, "table", "*.parquet, *.csv or *.jsonl")
    found = [p for p in folder.rglob("*") if p.suffix in _SUFFIXES and p.is_file()]
    files = sorted([p for p in found if p.suffix in arrow.SUFFIXES] or found)
    names: dict[Path, Path] = {}
    for path in files:
        if (before := names.setdefault(path.with_suffix(""), path)) != path:
            raise SourceError(f"{path}: has the name of {before.name}; keep one of them")
    if not files:
        raise SourceError(f"{folder}: no {', '.join('*' + x for x in _SUFFIXES)} below it")
    return folder, files


def _texts(option: str | Sequence[str]) -> tuple[tuple[str, str], ...]:
    parts = option.split(",") if isinstance(option, str) else option
    found = []
    for part in filter(None, (str(p).strip() for p in parts)):
        language, colon, column = part.partition(":")
        found.append((locale_code(language), column) if colon else ("", part))
    return tuple(found)


def _check(columns: Columns, files: list[Path]) -> None:
    if bool(columns.question) != bool(columns.answer):
        raise SourceError("table: question_column and answer_column go together; give both")
    for path in files:
        names = _form(path).column_names(path)
        told = f"{path} has the columns {', '.join(names)}"
        if not (columns.image or columns.sound or columns.texts or columns.question):
            raise SourceError(f"{told}; say which to read, with --set text_column=… or the like")
        if missing := [name for name in columns.used() if name not in names]:
            raise SourceError(f"{told}, and no {', '.join(missing)}")


def _split_of(path: Path, root: Path) -> str:
    for name in (path.name, *(p.name for p in path.relative_to(root).parents)):
        if match := _SPLIT.fullmatch(name):
            return _SPLITS.get(match[1], match[1])
    # the folder of one split may itself have been given; one that only begins so is a project's
    given = _SPLIT.fullmatch(root.resolve().name)
    return _SPLITS.get(given[1], given[1]) if given and not given[2] else "train"


def _id(row: Mapping[str, Any] | None, columns: Columns, name: str, number: int) -> str:
    if not columns.key:
        return f"{name}/{number}"
    found = next(strings((row or {}).get(columns.key)), "")
    if not found:
        raise BadRow("row without key")
    return found
