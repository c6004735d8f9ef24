"""What is known of scripts: which have no spaces between words, what ends a sentence."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

#: Scripts written without spaces, by the first words of their characters' names.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")

#: What ends a sentence, and what may close after it.
STOPS = (".", "!", "?", "…", "。", "！", "？", "।", "؟", "۔", "።")
CLOSING = "\"'”’»)]」』）"


@lru_cache(maxsize=1 << 14)
def unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces between words."""
    return unicodedata.name(character, "").startswith(UNSPACED)
