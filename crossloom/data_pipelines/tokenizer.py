"""Training a SentencePiece vocabulary over the texts of shards."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.fertility import Report, measure
from crossloom.data_pipelines.mixture import temperature
from crossloom.data_pipelines.reader import sample_json
from crossloom.data_pipelines.shards import Shard
from crossloom.modalities.vocabularies import Vocabulary
from crossloom.units import BadSample, keyed_rng

#: Bytes of a line; SentencePiece passes longer ones over (and those above 4,192, if not told).
MOST_BYTES = 1 << 16
#: Fields of a json that hold texts by language, or lists of them; what else they hold is no text.
_TEXTS = (
    "texts", "statements", "text", "premise", "hypothesis", "question", "answers", "rationales"
)  # fmt: skip


def texts_of(content: Any, language: str = "") -> Iterator[tuple[str, str]]:
    """All (language, text) of a sample's json: captions, questions, pairs, choices, expressions."""
    for name in _TEXTS:
        value = content.get(name)
        for code, some in value.items() if isinstance(value, dict) else ():
            for text in some if isinstance(some, list) else [some]:
                if isinstance(text, str):
                    yield code, text
    # where there are texts they hold the referring expressions already
    refers = () if content.get("texts") else ("refers",)
    for name in ("questions", "pairs", "spans", "choices", *refers):
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


def lines_of(
    shards: Iterable[Shard], count: Callable[[Mapping[str, int]], Mapping[str, int]], seed: int = 0
) -> dict[str, list[str]]:
    """Distinct lines of each language, drawn at random.

    Args:
        shards: whose ``json`` texts are read.
        count: from the numbers of distinct lines by language, how many to take at most.
        seed: of the draw.

    Raises:
        ValueError: there is no text.
    """
    found: dict[str, dict[str, None]] = {}
    for language, text in sentences(shards):
        if line := text.strip():
            found.setdefault(language, {})[line] = None
    if not found:
        raise ValueError("no text in these shards; `crossloom shards show` shows what they hold")
    distinct = {language: list(some) for language, some in sorted(found.items())}
    wanted = count({language: len(some) for language, some in distinct.items()})
    out = {}
    for language, some in distinct.items():
        order = keyed_rng(seed, "tokenizer", language).permutation(len(some))
        out[language] = [some[n] for n in order[: wanted[language]]]
    return out


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
) -> Report:
    """Train a unigram vocabulary and write ``out`` (a ``.model`` file) and a report beside it.

    Args:
        shards: whose ``json`` texts are read.
        out: the file to write; replaced only by a finished model.
        size: number of ids, specials included (fewer when the texts do not support as many).
        alpha: languages give lines in proportion to ``n ** alpha`` of their numbers of lines.
        lines: most lines used.
        coverage: share of characters kept as pieces, 0.98..1.
        seed: of the choice of lines.
        byte_fallback: spell unknown characters in bytes instead of ``<unk>``.

    Returns:
        How the vocabulary splits the lines that it was trained on.

    Raises:
        ValueError: there is no text, or less is to be covered than SentencePiece allows.
    """
    import sentencepiece

    if not 0.98 <= coverage <= 1:
        raise ValueError(f"coverage must lie in 0.98..1, not {coverage}")

    def count(many: Mapping[str, int]) -> dict[str, int]:
        shares, wanted = temperature(many, alpha), min(lines, sum(many.values()))
        return {x: max(1, round(share * wanted)) for x, share in shares.items()}

    chosen = lines_of(shards, count, seed)
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
            max_sentence_length=MOST_BYTES,
            minloglevel=1,
        )
        os.replace(prefix + ".model", out)
    report = measure(Vocabulary(out), chosen)
    report.save(out)
    return report


def _with_seeds(lines: list[str]) -> list[str]:
    """The lines, and each repeated word once more behind a comma.

    SentencePiece proposes as pieces only what occurs in two *different* words, however often one of
    them is seen; in a corpus of few words, even ``and`` would be spelt letter by letter.
    """
    words = Counter(word for line in lines for word in line.split())
    return lines + [f"{word}," for word, count in words.items() if count > 1]
