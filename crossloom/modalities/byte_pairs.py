"""CLIP's byte pairs: text in lower case, 49,408 ids, no file needed.

The vocabulary and the rules are those of ``open_clip.tokenizer.SimpleTokenizer``, which come with
that package; ids agree with it and with ``transformers``' CLIPTokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from crossloom.units import Array


class BytePairs:
    """The vocabulary; attributes as in :class:`crossloom.modalities.vocabularies.Vocabulary`.

    It has no mask and no unknown: every byte is a piece. ``mask`` is -1, so that nothing can be
    hidden.
    """

    doubled = True

    def __init__(self) -> None:
        """Load the vocabulary that open_clip brings along."""
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer()
        self.size: int = self._tokenizer.vocab_size
        self.begin: int = self._tokenizer.sot_token_id
        self.end: int = self._tokenizer.eot_token_id
        self.pad, self.unknown, self.mask = 0, self.end, -1
        self.pieces = sorted(self._tokenizer.encoder, key=self._tokenizer.encoder.__getitem__)
        #: pairs that are joined, the first first
        self.merges = [" ".join(pair) for pair in self._tokenizer.bpe_ranks]
        self.ordinary = np.arange(self.begin, dtype=np.int64)
        # pieces mark the end of a word, so that a piece alone does not tell where one begins
        self.starts_word = np.ones(self.size, bool)
        text = "\n".join(self.pieces)
        self.identity = hashlib.sha256(f"byte pairs\n{text}".encode()).hexdigest()[:16]

    def encode(self, text: str, language: str = "") -> Array:
        """Ids ``[n]`` int64 of a text, without specials, whatever its language."""
        return np.array(self._tokenizer.encode(text), np.int64)

    def spans(self, text: str) -> Array:
        """Where pieces lie in the text is not known: the text is cleaned before it is cut.

        Raises:
            ValueError: always.
        """
        raise ValueError("layout clip: words that refer to regions need another layout")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, specials left out; spaces and case are not restored."""
        special = {self.begin, self.end}
        return str(self._tokenizer.decode([int(i) for i in ids if i not in special])).strip()
