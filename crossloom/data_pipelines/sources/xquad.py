"""XQuAD: paragraphs with questions whose answers are spans of them, in a dozen languages.

Reads files of the form of SQuAD 1.1, in the folder or below it::

    xquad.en.json  xquad.de.json  xquad.zh.json  …     become test, all languages together
    train-v1.1.json                                    optional: SQuAD's, becomes train, in English

    {"data": [{"title": "…", "paragraphs": [
        {"context": "The dog waits by the gate.",
         "qas": [{"id": "56beb4343aeaaa14008c925b", "question": "Where does the dog wait?",
                  "answers": [{"text": "by the gate", "answer_start": 14}]}]}]}]}

Each paragraph becomes a sample with the paragraph in ``texts``, ``parallel`` from two languages on,
and its questions in ``spans``. Paragraphs and questions of several languages are joined by the ids
of the questions. ``start`` counts characters (Unicode code points), so texts keep their spaces::

    {"id": "test/1", "parallel": true,
     "texts": {"en": ["The dog waits by the gate."], "de": ["Der Hund wartet am Tor."]},
     "spans": [{"id": "56beb4343aeaaa14008c925b",
                "text": {"en": "Where does the dog wait?", "de": "Wo wartet der Hund?"},
                "answers": {"en": [{"text": "by the gate", "start": 14}],
                            "de": [{"text": "am Tor", "start": 16}]}}]}

Skipped, and counted (in that language): answers that are not where they should be, questions left
without answer or text, questions and paragraphs given twice, paragraphs that are empty or left
without question.
SQuAD's development set is not read: XQuAD was made from it.

The files are read whole (XQuAD has 1,190 questions a language, SQuAD 30 MB).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
    read_json,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.write import SHARD_SIZE

_FILE = re.compile(r"xquad\.(?P<language>[a-z]{2,3})\.json")
_TRAIN = "train-v1.1.json"
_HOLDS = "questions in the form of SQuAD 1.1"


@dataclass
class Paragraph:
    """A paragraph in the languages read so far."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    spans: dict[str, dict[str, Any]] = field(default_factory=dict)  #: by id of the question


def convert(
    input: Path | None,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``test`` and, when SQuAD's training file is there, ``train``.

    Args:
        input: folder of the files.
        out: folder for the shards.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no such files, or they are of another form.
    """
    folder = need_folder(input, "xquad", "xquad.<language>.json")
    splits = _files(folder)
    to = Conversion("xquad", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for split, files in splits.items():
            paragraphs = _paragraphs(to, files)
            to.total += len(paragraphs)
            for number, paragraph in enumerate(paragraphs, start=1):
                _write(to, split, number, paragraph)
    return to.report


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by split and language."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(p for p in folder.rglob("*.json") if p.is_file()):
        if match := _FILE.fullmatch(path.name):
            split, language = "test", language_code(match["language"])
        elif path.name == _TRAIN:
            split, language = "train", "en"
        else:
            continue
        if before := found.setdefault(split, {}).get(language):
            raise SourceError(f"{path}: also in {before}; keep one of them")
        found[split][language] = path
    if not found:
        raise SourceError(f"{folder}: no xquad.<language>.json or {_TRAIN} in it")
    return found


def _paragraphs(to: Conversion, files: Mapping[str, Path]) -> list[Paragraph]:
    paragraphs: list[Paragraph] = []
    owner: dict[str, Paragraph] = {}  # by id of a question
    for language, path in files.items():
        for place, context, questions in _read(path):
            known = next((owner[q["id"]] for q in questions if q["id"] in owner), None)
            paragraph = known or Paragraph()
            if language in paragraph.texts:
                to.skip("paragraph given twice in one language", place)
                continue
            if not context.strip():
                to.skip("empty paragraph", place)
                continue
            found = [q for q in questions if _add(to, paragraph, language, context, q, place)]
            if not found:
                to.skip("paragraph without question", place)
                continue
            paragraph.texts[language] = [context]
            owner.update((q["id"], paragraph) for q in found)
            if known is None:
                paragraphs.append(paragraph)
    return paragraphs


def _read(path: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Where it stands, text and questions of each paragraph."""
    try:
        for a, article in enumerate(read_json(path, _HOLDS)["data"], start=1):
            for p, row in enumerate(article["paragraphs"], start=1):
                questions = [
                    {
                        "id": str(q["id"]),
                        "text": " ".join(str(q["question"]).split()),
                        "answers": [(str(x["text"]), int(x["answer_start"])) for x in q["answers"]],
                    }
                    for q in row["qas"]
                ]
                yield f"{path.name} article {a} paragraph {p}", str(row["context"]), questions
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path}: not {_HOLDS} ({error!r}); compare it with the layout in docs/data.md"
        ) from None


def _add(
    to: Conversion,
    paragraph: Paragraph,
    language: str,
    context: str,
    question: Mapping[str, Any],
    place: str,
) -> bool:
    """Add a question in one language; False, and counted, when it cannot be used."""
    name = f"{place} {question['id']}"
    answers: list[dict[str, Any]] = []
    for text, start in question["answers"]:
        entry = {"text": text, "start": start}
        if not text.strip() or start < 0 or context[start : start + len(text)] != text:
            to.skip("answer is not where it should be", name)
        elif entry not in answers:  # several people gave the same one
            answers.append(entry)
    if not answers or not question["text"]:
        to.skip("question without text or answer", name)
        return False
    span = {"id": question["id"], "text": {}, "answers": {}}
    span = paragraph.spans.setdefault(question["id"], span)
    if language in span["text"]:
        to.skip("question given twice in one language", name)
        return False
    span["text"][language], span["answers"][language] = question["text"], answers
    return True


def _write(to: Conversion, split: str, number: int, paragraph: Paragraph) -> None:
    content: dict[str, Any] = {"id": f"{split}/{number}"}
    content |= {"parallel": True} if len(paragraph.texts) > 1 else {}
    content |= {"texts": paragraph.texts, "spans": [*paragraph.spans.values()]}
    to.write(split, f"{split}-{number:06d}", content, numbered=True)
