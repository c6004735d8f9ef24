r"""Tables in Parquet or Arrow files: a sample a row, from the columns that are named.

Reads ``.parquet``, and ``.arrow``, ``.feather`` and ``.ipc`` (with a footer or as a stream, as
``datasets`` keeps them); the input is a folder, searched at any depth, or one file. Needs
``pyarrow``: ``pip install 'crossloom[tables]'``::

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
  string, or a list of strings each of which is right.

A row needs all that is named; in several languages, a text in one of them. Skipped, and counted:
rows without image, sound, text, question or label, with a key that was there before, or with text
that is not UTF-8; images that are neither JPEG nor PNG, sound of no form that is read, questions
without answer.

Rows are read a batch at a time. Keys of samples number the rows, unless ``key_column`` gives them:
then they are remembered, about 100 bytes each, to find those given twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources import arrow
from crossloom.data_pipelines.sources.common import (
    Conversion,
    Image,
    Progress,
    Report,
    Sound,
    SourceError,
    as_image,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import chosen_language, locale_code
from crossloom.data_pipelines.sources.sounds import as_sound
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_SPLIT = re.compile(r"(train|dev|val|valid|validation|test)([-_.].*)?")
_SPLITS = {"val": "dev", "valid": "dev", "validation": "dev"}


class BadRow(ValueError):
    """A row that cannot be used; says why."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; empty for none."""

    image: str
    sound: str
    texts: tuple[tuple[str, str], ...]  #: language (empty: of the row) and column
    question: str
    answer: str
    label: str
    key: str
    language: str
    parallel: bool

    def used(self) -> list[str]:
        """Those that are read, each once."""
        names = [self.image, self.sound, self.question, self.answer, self.label, self.key]
        names += [self.language, *(column for _, column in self.texts)]
        return [*dict.fromkeys(filter(None, names))]


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
    counts = [arrow.count_rows(path) for path in files]
    to.total = sum(filter(None, counts)) if None not in counts else None
    with to:
        for path in files:
            name = path.relative_to(root).with_suffix("").as_posix()
            stem, where = sanitise(name), split or _split_of(path, root)
            for number, row in enumerate(arrow.read_rows(path, columns.used()), start=1):
                place = f"{name}:{number}"
                try:
                    sample, image, sound = _sample(to, columns, row, language, path, place)
                    id = _id(row, columns, name, number)
                    key = sanitise(id) if columns.key else f"{stem}-{number:09d}"
                    if columns.key and to.has(where, key):
                        raise BadRow("key given twice")
                except BadRow as error:
                    to.skip(str(error), place)
                    continue
                sample = {"id": id, **sample}
                to.write(where, key, sample, image, sound=sound, numbered=not columns.key)
    return to.report


def _files(input: Path | None) -> tuple[Path, list[Path]]:
    if input is not None and Path(input).is_file():
        path = Path(input)
        if path.suffix not in arrow.SUFFIXES:
            raise SourceError(f"{path}: not a table; one ends in {', '.join(arrow.SUFFIXES)}")
        return path.parent, [path]
    folder = need_folder(input, "table", "*.parquet or *.arrow")
    files = sorted(p for p in folder.rglob("*") if p.suffix in arrow.SUFFIXES and p.is_file())
    names: dict[Path, Path] = {}
    for path in files:
        if (before := names.setdefault(path.with_suffix(""), path)) != path:
            raise SourceError(f"{path}: has the name of {before.name}; keep one of them")
    if not files:
        raise SourceError(f"{folder}: no {', '.join('*' + x for x in arrow.SUFFIXES)} below it")
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
        names = arrow.column_names(path)
        told = f"{path} has the columns {', '.join(names)}"
        if not (columns.image or columns.sound or columns.texts or columns.question):
            raise SourceError(f"{told}; say which to read, with --set text_column=… or the like")
        if missing := [name for name in columns.used() if name not in names]:
            raise SourceError(f"{told}, and no {', '.join(missing)}")


def _split_of(path: Path, root: Path) -> str:
    for name in (path.name, *(p.name for p in path.relative_to(root).parents)):
        if match := _SPLIT.fullmatch(name):
            return _SPLITS.get(match[1], match[1])
    return "train"


def _id(row: Mapping[str, Any] | None, columns: Columns, name: str, number: int) -> str:
    if not columns.key:
        return f"{name}/{number}"
    found = next(_strings((row or {}).get(columns.key)), "")
    if not found:
        raise BadRow("row without key")
    return found


def _sample(
    to: Conversion,
    columns: Columns,
    row: Mapping[str, Any] | None,
    language: str,
    path: Path,
    place: str,
) -> tuple[dict[str, Any], Image | None, Sound | None]:
    """The json without its id, image and sound.

    Raises:
        BadRow: something that is named is not there.
    """
    if row is None:
        raise BadRow("not UTF-8")
    if columns.language:
        language = next(_strings(row[columns.language]), "")
        if not language:
            raise BadRow("row without language")
        language = locale_code(language)
    image, sound, sample = None, None, {}
    if columns.image:
        image = as_image(_bytes(row[columns.image], path, "image"))
        if image is None:
            raise BadRow("image is neither JPEG nor PNG")
    if columns.sound:
        sound = as_sound(_bytes(row[columns.sound], path, "sound"))
        if sound is None:
            raise BadRow("sound is neither FLAC, WAV, Ogg nor MP3")
    if columns.texts:
        sample = _all_texts(columns, row, language)
    if columns.question:
        asked = _questions(to, row[columns.question], row[columns.answer], language, place)
        sample["questions"] = asked
    if columns.label:
        sample["label"] = next(_strings(row[columns.label]), "")
        if not sample["label"]:
            raise BadRow("row without label")
    return sample, image, sound


def _bytes(cell: Any, path: Path, what: str) -> bytes:
    """Encoded data of a cell, or of the file that it names."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        return _beside(path, cell, what).read_bytes()
    if not isinstance(cell, bytes) or not cell:
        raise BadRow(f"row without {what}")
    return cell


def _beside(path: Path, name: str, what: str) -> Path:
    """A file that a table names: not just any of the machine's, since tables come from anywhere."""
    try:
        file = (path.parent / name).resolve()
        if file.is_relative_to(path.parent.resolve()) and file.is_file():
            return file
    except (OSError, ValueError):  # no name that a file can have
        pass
    raise BadRow(f"{what} not in the table's folder")


def _all_texts(columns: Columns, row: Mapping[str, Any], language: str) -> dict[str, Any]:
    texts: dict[str, list[str]] = {}
    parallel = columns.parallel
    for code, column in columns.texts:
        cell = row[column]
        if isinstance(cell, Mapping):
            parallel = True
            for name, value in cell.items():
                texts.setdefault(locale_code(name), []).extend(_strings(value))
        else:
            texts.setdefault(code or language, []).extend(_strings(cell))
    texts = {code: some for code, some in texts.items() if some}
    if not texts:
        raise BadRow("row without text")
    # the i-th texts can only say the same when there are as many of each
    parallel &= len(texts) > 1 and len({len(some) for some in texts.values()}) == 1
    return {"parallel": True, "texts": texts} if parallel else {"texts": texts}


def _questions(
    to: Conversion, questions: Any, answers: Any, language: str, place: str
) -> list[dict[str, Any]]:
    if not isinstance(questions, list):
        questions, answers = [questions], [answers]
    if not isinstance(answers, list) or len(questions) != len(answers):
        raise BadRow("another number of answers than of questions")
    found = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
        text = next(_strings(question), "")
        scores = dict.fromkeys(_strings(answer), 1.0)
        if text and scores:
            entry = {"id": f"{place}/{number}", "text": {language: text}, "answers": scores}
            found.append(entry)
        else:
            to.skip("question without text or answer", f"{place}/{number}")
    if not found:
        raise BadRow("row without question")
    return found


def _strings(cell: Any) -> Iterator[str]:
    """The strings in a cell that are not empty: it may hold one, several or something else."""
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8")
        except UnicodeDecodeError:
            raise BadRow("not UTF-8") from None
    if isinstance(cell, list):
        for part in cell:
            yield from _strings(part)
    elif cell is not None and (text := str(cell).strip()):
        yield text
