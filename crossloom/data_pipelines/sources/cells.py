"""The cells of a table's row as a sample: what the source ``table`` makes of each kind of cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import Conversion, Image, Sound, as_image
from crossloom.data_pipelines.sources.languages import locale_code
from crossloom.data_pipelines.sources.sounds import as_sound


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


def sample_of(
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
        language = next(strings(row[columns.language]), "")
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
        sample["label"] = next(strings(row[columns.label]), "")
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
                texts.setdefault(locale_code(name), []).extend(strings(value))
        else:
            texts.setdefault(code or language, []).extend(strings(cell))
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
        text = next(strings(question), "")
        scores = dict.fromkeys(strings(answer), 1.0)
        if text and scores:
            entry = {"id": f"{place}/{number}", "text": {language: text}, "answers": scores}
            found.append(entry)
        else:
            to.skip("question without text or answer", f"{place}/{number}")
    if not found:
        raise BadRow("row without question")
    return found


def strings(cell: Any) -> Iterator[str]:
    """The strings in a cell that are not empty: it may hold one, several or something else."""
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8")
        except UnicodeDecodeError:
            raise BadRow("not UTF-8") from None
    if isinstance(cell, list):
        for part in cell:
            yield from strings(part)
    elif cell is not None and (text := str(cell).strip()):
        yield text
