"""What a detector's classes are called, as word pieces that a hidden region can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from crossloom.modalities.text import Layout, vocabulary
from crossloom.units import Array, Sample


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of classes in several languages, cut by the vocabulary of a text.

    Masked region-to-token modelling (UC2, Zhou et al. 2021, section 3.2; zmykevin/UC2:
    ``data/mlm.py``, ``_get_img_mask_mmxlm``): a region is asked for a word piece of its class's
    name in the caption's language, a random one of several.
    """

    names: str = "classes.tsv"
    """File, relative to the recipe's ``data`` unless absolute: columns parted by tabs, languages in
    the first row, then a row for each class, background first."""
    vocabulary: str = "tokenizer.model"
    """The text's, so that pieces have one id in words and in names."""
    layout: Layout = "own"
    size: int = 0
    """Number of ids; 0 for as many as the vocabulary has."""
    text: str = "text"
    """Member of a sample whose first passage tells the language."""

    @property
    def pieces(self) -> int:
        """Number of ids."""
        return self.size or vocabulary(self.vocabulary, self.layout).size

    def ask(self, number: Array, sample: Sample, rng: np.random.Generator) -> Array:
        """A piece of each region's name, ``[R]`` int64.

        -1 for background and where no class is known, and for all where the caption's language has
        no column.

        Args:
            number: ``[R]`` int64, classes as the table's rows number them, background 0; negative
                where none is known.
            sample: what the reader chose.
            rng: draws one of a name's pieces.

        Raises:
            ValueError: the table cannot be read, or has fewer rows than there are classes.
        """
        passages = sample.get(self.text)
        language = passages[0].language if isinstance(passages, tuple) and passages else ""
        table = _table(self.names, self.vocabulary, self.layout)
        lots = rng.random(len(number))
        if language not in table:
            return np.full(len(number), -1, np.int64)
        rows = table[language]
        if len(number) and number.max() >= len(rows):
            raise ValueError(
                f"{self.names}: names {len(rows)} classes, background included; a region is of "
                f"class {number.max()}"
            )
        chosen = [
            rows[n][int(lot * len(rows[n]))] if n > 0 else -1
            for n, lot in zip(number, lots, strict=True)
        ]
        return np.array(chosen, np.int64)


@lru_cache(maxsize=8)
def _table(names: str, path: str, layout: Layout) -> Mapping[str, tuple[Array, ...]]:
    """By language, the ids of each class's name."""
    try:
        rows = [x.split("\t") for x in Path(names).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{names}: names of classes cannot be read ({error}); see `names` of the regions"
        ) from None
    if not rows or any(len(r) != len(rows[0]) or not all(x.strip() for x in r) for r in rows):
        raise ValueError(f"{names}: each row must have a name for each language of the first row")
    vocab = vocabulary(path, layout)
    return {
        language.strip(): tuple(vocab.encode(row[column].strip()) for row in rows[1:])
        for column, language in enumerate(rows[0])
    }
