"""XNLI and MultiNLI: premise and hypothesis, in several languages.

Reads what it finds of three layouts, in the folder or below it:

1. XNLI as published (``XNLI-1.0.zip``): one row a pair and language, with named columns, of which
   ``language``, ``gold_label``, ``sentence1``, ``sentence2`` and ``pairID`` are read; the rows of
   one ``pairID`` become one sample::

       xnli.dev.tsv  xnli.test.tsv

2. Row-aligned translations: row i of every file of a split is the same pair. Columns are found by
   name: ``label`` or ``gold_label``, ``sentence1`` and ``sentence2``, which end in ``_<language>``
   when a file holds several languages (myXNLI, KorNLI), or ``premise`` and ``hypo`` (XNLI-MT, the
   translated training data of ``XNLI-MT-1.0.zip``, where a contradiction is ``contradictory``)::

       my.genre.dev.tsv       genre  label  sentence1_en  sentence2_en  sentence1_my  sentence2_my
       xnli.dev.ko.tsv        sentence1  sentence2  gold_label
       multinli.train.de.tsv  premise  hypo  label

   Where a split is there as published, row-aligned files of it are an error: nothing says
   which of its pairs a row translates.

3. MultiNLI's training file, JSON lines with ``gold_label``, ``sentence1``, ``sentence2`` and
   ``pairID``, as split ``train`` in English::

       multinli_1.0_train.jsonl

TSV is split at tabs and at nothing else: quotation marks are text. Each sample has one entry in
``pairs``, with premise and hypothesis in all its languages.

Skipped, and counted: pairs without a gold label (``-``), rows with another number of columns,
empty sentences, rows that are not UTF-8 (in that language), and rows whose label differs from the
other languages'. Row-aligned files of unequal length are an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    check_line_counts,
    count_lines,
    need_folder,
    parallel_lines,
    read_lines,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

LABELS = ("entailment", "neutral", "contradiction")
_ALIASES = {"contradictory": "contradiction"}
_SIDES = {"premise": "sentence1", "hypo": "sentence2"}  # XNLI-MT's columns
_OFFICIAL = re.compile(r"xnli\.(?P<split>dev|test)\.tsv")
_ROWS = re.compile(
    r"((?P<a>[a-z]{2,3})\.genre\.(?P<b>train|dev|test)|"
    r"(xnli|multinli(?=\.train))\.(?P<c>train|dev|test)\.(?P<d>[a-z]{2,3}))\.tsv"
)
_SENTENCE = re.compile(r"sentence(?P<side>[12])(_(?P<language>[a-z]{2,3}))?")


@dataclass
class Pair:
    """One pair in the languages read so far."""

    label: str
    premise: dict[str, str] = field(default_factory=dict)
    hypothesis: dict[str, str] = field(default_factory=dict)


def convert(
    input: Path | None,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the splits that are there, of ``train``, ``dev`` and ``test``.

    Args:
        input: folder of the files.
        out: folder for the shards.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all when known).

    Raises:
        SourceError: no such files, columns are missing, or row-aligned files differ in length.
    """
    folder = need_folder(input, "xnli", "xnli.dev.tsv, xnli.test.tsv, multinli_1.0_train.jsonl …")
    official, aligned, train = _files(folder)
    to = Conversion("xnli", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    if not official:
        to.total = sum(count_lines(files[0]) - 1 for files in aligned.values())
        to.total += count_lines(train) if train else 0
    with to:
        if train:
            _multinli(to, train)
        for split, path in official.items():
            _official(to, split, path)
        for split, files in aligned.items():
            _aligned(to, split, files)
    return to.report


def _files(folder: Path) -> tuple[dict[str, Path], dict[str, list[Path]], Path | None]:
    """Published files by split, row-aligned files by split, and MultiNLI's."""
    official: dict[str, Path] = {}
    aligned: dict[str, list[Path]] = {}
    train: Path | None = None
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if match := _OFFICIAL.fullmatch(path.name):
            if match["split"] in official:
                raise SourceError(f"{path}: also in {official[match['split']]}; keep one of them")
            official[match["split"]] = path
        elif match := _ROWS.fullmatch(path.name):
            aligned.setdefault(match["b"] or match["c"], []).append(path)
        elif path.name == "multinli_1.0_train.jsonl":
            train = path
    for split in [s for s in official if s in aligned]:
        raise SourceError(
            f"{aligned[split][0]}: row-aligned, beside the published {official[split].name}; "
            "convert them from different folders"
        )
    if train and "train" in aligned:
        raise SourceError(f"{train}: beside {aligned['train'][0]}; convert from different folders")
    if not (official or aligned or train):
        raise SourceError(
            f"{folder}: no xnli.<split>.tsv, <language>.genre.<split>.tsv, "
            "xnli.<split>.<language>.tsv, multinli.train.<language>.tsv or "
            "multinli_1.0_train.jsonl in it"
        )
    return official, aligned, train


def _write(to: Conversion, split: str, name: str, pair: Pair) -> None:
    content = {
        "id": f"{split}/{name}",
        "pairs": [
            {
                "id": name,
                "label": pair.label,
                "premise": pair.premise,
                "hypothesis": pair.hypothesis,
            }
        ],
    }
    key = f"{split}-{int(name):06d}" if name.isascii() and name.isdigit() else sanitise(name)
    to.write(split, key, content)


def _multinli(to: Conversion, path: Path) -> None:
    for number, line in read_lines(path, to):
        name = f"{path.name}:{number}"
        if line is None:
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            label, premise, hypothesis = (
                str(row[k]).strip() for k in ("gold_label", "sentence1", "sentence2")
            )
        except (ValueError, KeyError, TypeError):
            to.skip("line is no JSON object with gold_label, sentence1, sentence2", name)
            continue
        pair = Pair(label)
        if _add(to, pair, "en", (label, premise, hypothesis), name):
            _write(to, "train", str(row.get("pairID", number)), pair)


def _add(
    to: Conversion, pair: Pair | None, language: str, row: tuple[str, str, str], name: str
) -> bool:
    """Add one language to a pair; False, and counted, when it cannot be used."""
    label, premise, hypothesis = row
    if label not in LABELS:
        to.skip("no gold label", name)
    elif not premise or not hypothesis:
        to.skip("empty sentence", name)
    elif pair is not None and pair.label != label:
        to.skip("label differs from the other languages'", name)
    elif pair is not None and language in pair.premise:
        to.skip("pair given twice in one language", name)
    else:
        if pair is not None:
            pair.premise[language], pair.hypothesis[language] = premise, hypothesis
        return True
    return False


def _official(to: Conversion, split: str, path: Path) -> None:
    """Rows of one pair lie far apart (languages come one after another): a split is held whole."""
    rows = read_lines(path, to)
    header = _header(path, rows)
    wanted = ("language", "pairID", "gold_label", "sentence1", "sentence2")
    if missing := [name for name in wanted if name not in header]:
        raise SourceError(f"{path}: its first line names no column {', '.join(missing)}")
    places = [header.index(name) for name in wanted]
    pairs: dict[str, Pair] = {}
    for number, line in rows:
        name = f"{path.name}:{number}"
        cells = _cells(to, line, len(header), name)
        if cells is None:
            continue
        language, key, label, premise, hypothesis = (cells[i].strip() for i in places)
        pair = pairs.get(key)
        known = pair or Pair(label)
        if _add(to, known, language_code(language), (label, premise, hypothesis), name):
            pairs[key] = known
    for key, pair in pairs.items():
        _write(to, split, key, pair)


def _header(path: Path, rows: Iterator[tuple[int, str | None]]) -> list[str]:
    first = next(rows, (0, None))[1]
    if not first:
        raise SourceError(f"{path}: empty, or its first line is not UTF-8 text with column names")
    return first.split("\t")


def _cells(to: Conversion, line: str | None, columns: int, name: str) -> list[str] | None:
    if line is None:
        return None
    cells = line.split("\t")
    if len(cells) != columns:
        to.skip("row with another number of columns", f"{name} ({len(cells)}, header {columns})")
        return None
    return cells


@dataclass(frozen=True)
class Columns:
    """Where a row-aligned file has what."""

    count: int
    label: int
    sentences: dict[str, tuple[int, int]]  #: premise and hypothesis, by language


def _columns(path: Path) -> Columns:
    with open(path, "rb") as file:
        header = file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
    match = _ROWS.fullmatch(path.name)
    default = (match["a"] or match["d"]) if match else ""
    sides: dict[str, dict[str, int]] = {}
    for place, name in enumerate(header):
        if found := _SENTENCE.fullmatch(_SIDES.get(name, name)):
            language = language_code(found["language"] or default)
            sides.setdefault(language, {})[found["side"]] = place
    label = next((header.index(x) for x in ("gold_label", "label") if x in header), None)
    whole = {x: (s["1"], s["2"]) for x, s in sides.items() if len(s) == 2}
    if label is None or not whole or len(whole) < len(sides):
        raise SourceError(
            f"{path}: its first line must name the columns label (or gold_label), sentence1 and "
            "sentence2 (or sentence1_<language> …, or premise and hypo), separated by tabs; it has "
            f"{', '.join(header)}"
        )
    return Columns(len(header), label, whole)


def _aligned(to: Conversion, split: str, files: list[Path]) -> None:
    check_line_counts(files)
    columns = {path.name: _columns(path) for path in files}
    for number, row in parallel_lines({p.name: p for p in files}, to, checked=True):
        if number == 1:
            continue
        pair: Pair | None = None
        for file, line in row.items():
            layout = columns[file]
            cells = _cells(to, line, layout.count, f"{file}:{number}")
            if cells is None:
                continue
            label = cells[layout.label].strip()
            label = _ALIASES.get(label, label)
            for language, (first, second) in layout.sentences.items():
                known = pair or Pair(label)
                texts = (label, cells[first].strip(), cells[second].strip())
                if _add(to, known, language, texts, f"{file}:{number} {language}"):
                    pair = known
        if pair is not None:
            _write(to, split, str(number - 1), pair)
