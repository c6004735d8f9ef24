"""Training a SentencePiece vocabulary over the texts of shards."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.mixture import temperature
from crossloom.data_pipelines.reader import sample_json
from crossloom.data_pipelines.shards import Shard
from crossloom.units import BadSample, keyed_rng


def texts_of(content: Any, language: str = "") -> Iterator[tuple[str, str]]:
    """All (language, text) of a sample's json: texts, questions, pairs, spans, expressions."""
    for name in ("texts", "statements", "text", "premise", "hypothesis"):
        value = content.get(name)
        for code, some in value.items() if isinstance(value, dict) else ():
            for text in some if isinstance(some, list) else [some]:
                if isinstance(text, str):
                    yield code, text
    # where there are texts they hold the referring expressions already
    refers = () if content.get("texts") else ("refers",)
    for name in ("questions", "pairs", "spans", *refers):
        value = content.get(name)
        for item in value if isinstance(value, list) else ():
            if isinstance(item, dict):
                yield from texts_of(item)


def sentences(shards: Iterable[Shard]) -> Iterator[tuple[str, str]]:
    """All (language, text) of shards; samples that cannot be read are passed over."""
    for shard in shards:
        for number, entry in enumerate(shard.entries):
            if not any(m == "json" or m.endswith("txt") for m in entry.members):
                continue
            with suppress(BadSample):
                yield from texts_of(sample_json(shard.read(number)))


def train(
    shards: Iterable[Shard],
    out: Path,
    *,
    size: int,
    alpha: float = 0.5,
    lines: int = 1_000_000,
    coverage: float = 0.9999,
    seed: int = 0,
    byte_fallback: bool = False,
) -> dict[str, dict[str, float]]:
    """Train a unigram vocabulary and write ``out`` (a ``.model`` file).

    Args:
        shards: whose ``json`` texts are read.
        out: the file to write; replaced only by a finished model.
        size: number of ids, specials included (fewer when the texts do not support as many).
        alpha: languages give lines in proportion to ``n ** alpha`` of their numbers of lines.
        lines: most lines used.
        coverage: share of characters kept as pieces.
        seed: of the choice of lines.
        byte_fallback: spell unknown characters in bytes instead of ``<unk>``.

    Returns:
        By language: ``lines`` used, ``fertility`` (pieces a whitespace word, or a character where
        words are not spaced) and ``unknown`` (share of pieces).

    Raises:
        ValueError: there is no text.
    """
    import sentencepiece

    by_language: dict[str, Counter[str]] = {}
    for language, text in sentences(shards):
        by_language.setdefault(language, Counter())[text.strip()] += 1
    distinct = {k: [t for t in v if t] for k, v in sorted(by_language.items())}
    if not any(distinct.values()):
        raise ValueError("no text in these shards; `crossloom shards show` shows what they hold")
    shares = temperature({k: len(v) for k, v in distinct.items()}, alpha)
    wanted = min(lines, sum(map(len, distinct.values())))
    chosen: dict[str, list[str]] = {}
    for language, texts in distinct.items():
        count = min(len(texts), max(1, round(shares[language] * wanted)))
        order = keyed_rng(seed, "tokenizer", language).permutation(len(texts))[:count]
        chosen[language] = [texts[i] for i in order]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        prefix = str(Path(folder) / "model")
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(_with_seeds([t for x in chosen.values() for t in x])),
            model_prefix=prefix,
            vocab_size=size,
            hard_vocab_limit=False,
            model_type="unigram",
            character_coverage=coverage,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            control_symbols=["<mask>"],
            byte_fallback=byte_fallback,
            num_threads=os.cpu_count() or 1,
            train_extremely_large_corpus=False,
            minloglevel=1,
        )
        os.replace(prefix + ".model", out)
    return fertility(out, chosen)


def _with_seeds(lines: list[str]) -> list[str]:
    """The lines, and each repeated word once more behind a comma.

    SentencePiece proposes as pieces only what occurs in two *different* words, however often one of
    them is seen; in a corpus of few words, even ``and`` would be spelt letter by letter.
    """
    words = Counter(word for line in lines for word in line.split())
    return lines + [f"{word}," for word, count in words.items() if count > 1]


def fertility(path: Path, texts: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """How a vocabulary splits each language, on up to 1,000 of its lines."""
    from crossloom.modalities.vocabularies import Vocabulary

    vocab = Vocabulary(path)
    report = {}
    for language, lines in texts.items():
        pieces = words = unknown = 0
        for line in lines[:1000]:
            ids = vocab.encode(line)
            pieces += len(ids)
            unknown += int((ids == vocab.unknown).sum())
            split = line.split()
            words += len(split) if len(split) > 1 else len(line)
        report[language] = {
            "lines": float(len(lines)),
            "fertility": pieces / max(1, words),
            "unknown": unknown / max(1, pieces),
        }
    return report
