"""What published systems that read a text and say one have in common: XLM's text and optimiser."""

from __future__ import annotations

from crossloom.modalities.text import Text
from crossloom.training.optim import Optim

#: The stream that is said; what is read is called ``text``.
TARGET = "target"


def xlm_text(*, size: int, limit: int, languages: tuple[str, ...], restart: bool = False) -> Text:
    """Text as XLM embeds it (Lample and Conneau 2019): 512 positions, an embedding by language.

    Its vocabulary, byte pairs of text cut by Moses, is not read here: SentencePiece's stands for
    it, trained to as many pieces.

    Args:
        size: number of ids.
        limit: most units of an example, specials included.
        languages: by the number of their embedding.
        restart: begin the second passage's positions anew (TLM).
    """
    return Text(size=size, limit=limit, positions=512, languages=languages, restart=restart)


def xlm_adam(rate: float) -> Optim:
    """XLM's optimiser: no decay, gradients cut at 5 (``facebookresearch/XLM``: ``train.py``)."""
    return Optim(rate=rate, betas=(0.9, 0.98), epsilon=1e-8, decay=0.0, clip=5.0)
