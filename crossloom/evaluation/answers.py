"""Answers compared with right ones: exact match and F1 over words, after normalising.

``squad``: the script of SQuAD 1.1 (Rajpurkar et al. 2016), with which XQuAD is scored too: lower
case, no ASCII punctuation, no English articles, words at spaces. ``mlqa``: that of MLQA (Lewis et
al. 2020, section 4; ``mlqa_evaluation_v1.py`` in facebookresearch/MLQA): no punctuation of any
script, no articles of the language, and every Chinese character a word.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

Rules = Literal["squad", "mlqa"]

#: Articles that MLQA's script drops, by language; SQuAD's drops those of English.
_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    # the first alternative, as published, can never match
    "ar": r"\sال^|ال",
}
_CHINESE = re.compile("[\u4e00-\u9fa5]")


def normalise(text: str, language: str, rules: Rules) -> str:
    """An answer's words, parted by spaces.

    >>> normalise("The  Cat's tail.", "en", "squad"), normalise("在1990年。", "zh", "mlqa")
    ('cats tail', '在 1990 年')
    """
    wide = rules == "mlqa"
    text = "".join(c for c in text.lower() if not _is_punctuation(c, wide))
    articles = _ARTICLES.get(language if wide else "en")
    text = re.sub(articles, " ", text) if articles else text
    if wide and language == "zh":
        text = _CHINESE.sub(r" \g<0> ", text)
    return " ".join(text.split())


def _is_punctuation(character: str, wide: bool) -> bool:
    return character in string.punctuation or (
        wide and unicodedata.category(character).startswith("P")
    )


def exact(said: str, right: str, language: str = "en", rules: Rules = "squad") -> float:
    """1 where both read the same, else 0."""
    return float(normalise(said, language, rules) == normalise(right, language, rules))


def f1(said: str, right: str, language: str = "en", rules: Rules = "squad") -> float:
    """Harmonic mean of the shares of words that both have, 0..1."""
    one, other = (normalise(x, language, rules).split() for x in (said, right))
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def best(
    score: Callable[[str, str, str, Rules], float],
    said: str,
    right: Sequence[str],
    language: str,
    rules: Rules,
) -> float:
    """The score beside the right answer that it is highest with."""
    return max(score(said, one, language, rules) for one in right)
