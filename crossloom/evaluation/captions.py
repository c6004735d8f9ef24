"""Scores of sentences against several references: BLEU and CIDEr-D."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Grams = Counter[tuple[str, ...]]


#: Scripts without spaces between words: there every letter is one.
_ALONE = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


def words(text: str) -> list[str]:
    """Lower-case words of a caption, punctuation left out; each ideograph or kana is a word.

    Hyphens, periods and slashes stay between letters or digits, commas and colons between digits;
    ``$``, ``%``, ``&`` and ``#`` are words. So does COCO's evaluation, by Stanford's tokeniser for
    Penn Treebank (Java). That one also parts contractions and possessives (``it 's``), keeps the
    periods of abbreviations (``mr.``), signs of numbers (``-5``) and ``at&t``, and takes brackets
    (``-lrb-``), other symbols (``+``, ``@``) and runs of marks (``!!``) for words: scores of
    captions with any of these differ from COCO's.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    text = _ALONE.sub(r" \1 ", text)
    kept = "".join(map(_kept, f" {text}", text, f"{text[1:]} "))
    return kept.replace(" '", " ").replace("' ", " ").split()


def _kept(before: str, character: str, after: str) -> str:
    """What :func:`words` leaves of a character, given its neighbours."""
    if character in "$%&#":
        return f" {character} "
    within = _in_word(before) and _in_word(after)
    numbers = before.isdigit() and after.isdigit()
    if character == "'" or _in_word(character):
        return character
    return character if (character in "-./" and within) or (character in ",:" and numbers) else " "


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] not in "PSZC"


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | str]:
    """Corpus BLEU of orders 1 to 4 over :func:`words`, shares in 0..1, and sacreBLEU's signature.

    Args:
        said: one sentence for each example.
        references: any number for each example, one at least.
    """
    from sacrebleu.metrics import BLEU

    most = max(map(len, references))
    # sacreBLEU reads None where an example has fewer references than another
    columns: Any = [
        [" ".join(words(some[n])) if n < len(some) else None for some in references]
        for n in range(most)
    ]
    lines = [" ".join(words(s)) for s in said]
    out: dict[str, float | str] = {}
    for order in range(1, 5):
        metric = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
        out[f"bleu{order}"] = metric.corpus_score(lines, columns).score / 100
        out["bleu_signature"] = str(metric.get_signature())
    return out


def cider(
    said: Sequence[str], references: Sequence[Sequence[str]], *, spread: float = 6.0
) -> list[float]:
    """CIDEr-D of each sentence, 0..10 (tables print the mean times 100: 1.201 is "120.1").

    Cosine similarity of n-grams weighted by their rarity among the examples' references, with
    counts clipped to the reference's and a penalty for other lengths (Vedantam et al., 2015,
    section 5; ``pycocoevalcap/cider/cider_scorer.py``). A score depends on all examples given.

    Args:
        said: one sentence for each example.
        references: any number for each example, one at least.
        spread: of the penalty, in words.
    """
    known = [[_grams(words(r)) for r in some] for some in references]
    seen: Grams = Counter(g for some in known for g in {g for r in some for g in r})
    rarity = {g: math.log(len(known)) - math.log(n) for g, n in seen.items()}
    unseen = math.log(len(known)) if known else 0.0

    def weigh(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for gram, count in grams.items():
            weights[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return weights

    scores = []
    for sentence, some in zip(said, known, strict=True):
        mine, length = weigh(_grams(words(sentence))), len(words(sentence))
        total = 0.0
        for grams in some:
            theirs = weigh(grams)
            other = sum(n for g, n in grams.items() if len(g) == 1)
            near = math.exp(-((length - other) ** 2) / (2 * spread**2))
            total += near * sum(_likeness(a, b) for a, b in zip(mine, theirs, strict=True)) / 4
        scores.append(10 * total / len(some))
    return scores


def _grams(text: Sequence[str]) -> Grams:
    def each() -> Iterator[tuple[str, ...]]:
        for order in range(1, 5):
            for start in range(len(text) - order + 1):
                yield tuple(text[start : start + order])

    return Counter(each())


def _likeness(mine: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    """Clipped cosine of two weighted bags of n-grams; 0 where one weighs nothing."""
    size = math.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
    if size == 0:
        return 0.0
    return sum(min(w, theirs[g]) * theirs[g] for g, w in mine.items() if g in theirs) / size
