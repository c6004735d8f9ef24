"""Published objectives that tie languages to each other, beside those of ``presets``."""

from __future__ import annotations

from crossloom.objectives.back_translate import BackTranslate
from crossloom.objectives.contrast import Contrast
from crossloom.objectives.presets import BERT, tlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.replaced import Replaced
from crossloom.objectives.view import Hide, View
from crossloom.objectives.words import Words

#: ERNIE-M's CAMLM: 15 % of the units, of which none may be seen.
CROSSED = Hide(rate=0.15, show=0.0, swap=0.0)
#: A generator's input: 85 % of what it is asked for is hidden, the rest shown (ELECTRA's code).
GENERATED = Hide(rate=0.15, show=0.15, swap=0.0)
#: Half of the units of a text, as places for pseudo tokens; how many ERNIE-M has is not known here.
PLACES = Hide(rate=0.5, show=0.0, swap=0.0, alone=True)


def camlm(
    pair: tuple[str, str] = ("text", "second"), *, stream: str = "text", hide: Hide = CROSSED
) -> Reconstruct:
    """Cross-attention MLM (ERNIE-M, section 3.2): a side's hidden units from the other side alone.

    Each side has an objective of its own, on one pass, since the two means are added; the second
    stream is tied to the first, and the reader gives translations apart. Which units read what
    beside the hidden ones is not told in the paper as far as known here: :attr:`View.across` is the
    reading that lets nothing through, and hides all that it selects.
    """
    view = View(name="camlm", streams=pair, across=True, hide=dict.fromkeys(pair, hide))
    return Reconstruct(view=view, stream=stream, target="token")


def btmlm(
    text: str = "text", pseudo: str = "second", *, hide: Hide = BERT, places: Hide = PLACES
) -> BackTranslate:
    """Back-translation MLM (ERNIE-M, section 3.3): MLM beside pseudo tokens the model made itself.

    For monolingual text, which the reader gives both streams (``copies``).
    """
    view = View(name="btmlm", streams=(text, pseudo), hide={text: hide, pseudo: places})
    return BackTranslate(view=view, stream=text, target="token", pseudo=pseudo)


def sctl(pair: tuple[str, str] = ("text", "second"), *, dim: int = 768) -> Contrast:
    """Sentence-level contrast with hardened negatives of the batch (HICTL).

    Summaries as they are, of width ``dim``, brought to length one; both directions. The temperature
    is ours.
    """
    view = View(name="sentences", streams=pair, apart=True)
    return Contrast(
        view=view, pair=pair, dim=dim, projections={pair[0]: "none"}, shared=True, harden=0.9,
        temperature=0.1, learned=False,
    )  # fmt: skip


def wctl(stream: str = "text", *, hide: Hide = BERT, negatives: int = 512) -> Words:
    """Word-level contrast on the pass of :func:`tlm` (HICTL)."""
    return Words(view=tlm(stream, hide=hide).view, stream=stream, negatives=negatives)


def rtd(
    generator: str = "mlm",
    *,
    stream: str = "text",
    streams: tuple[str, ...] = (),
    name: str = "rtd",
) -> Replaced:
    """Replaced token detection, 50 times the generator's loss (ELECTRA, section 3.1).

    Over several languages MRTD, over translations in one row TRTD (XLM-E, sections 3.1 and 3.2).

    Args:
        generator: the objective that fills in what its view hides.
        stream: read by the discriminator.
        streams: of the view; the stream alone if empty.
        name: of the view.
    """
    view = View(name=name, streams=streams or (stream,))
    return Replaced(view=view, stream=stream, generator=generator, weight=50.0)
