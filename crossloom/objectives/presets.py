"""Published objectives by their names: one line each over the families."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from crossloom.objectives.contrast import Contrast
from crossloom.objectives.match import Match
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View

#: BERT: 15 % of the units, of which 80 % are hidden, 10 % swapped, 10 % left.
BERT = Hide(rate=0.15, show=0.1, swap=0.1)
#: UNITER: 15 % of the regions, all of them hidden.
REGIONS = Hide(rate=0.15, show=0.0, swap=0.0, by="group")


def mlm(
    streams: tuple[str, ...] = ("text", "image"),
    *,
    stream: str = "text",
    hide: Hide = BERT,
    name: str = "mlm",
) -> Reconstruct:
    """Masked language modelling (BERT); with other streams shown, UNITER's conditional form."""
    return Reconstruct(
        view=View(name=name, streams=streams, hide={stream: hide}), stream=stream, target="token"
    )


def mmlm(stream: str = "text", *, hide: Hide = BERT) -> Reconstruct:
    """Multilingual MLM on text alone (mBERT, XLM-R): MLM over many languages."""
    return mlm((stream,), stream=stream, hide=hide, name="mmlm")


def tlm(stream: str = "text", *, hide: Hide = BERT) -> Reconstruct:
    """Translation language modelling (XLM, section 3.4): MLM over two joined translations."""
    return mlm((stream,), stream=stream, hide=hide, name="tlm")


def whole_word(objective: Reconstruct) -> Reconstruct:
    """The same with whole words hidden together (BERT's whole-word masking)."""
    hide = {**objective.view.hide}
    hide[objective.stream] = replace(hide[objective.stream], by="group")
    view = replace(objective.view, name=f"{objective.view.name}-words", hide=hide)
    return replace(objective, view=view)


def mrc(
    streams: tuple[str, ...] = ("text", "image"), *, stream: str = "image", hide: Hide = REGIONS
) -> Reconstruct:
    """Masked region classification against the detector's best class (UNITER, section 3.2)."""
    view = View(name="mrm", streams=streams, hide={stream: hide})
    return Reconstruct(view=view, stream=stream, target="class")


def mrc_kl(
    streams: tuple[str, ...] = ("text", "image"), *, stream: str = "image", hide: Hide = REGIONS
) -> Reconstruct:
    """Masked region classification against the detector's distribution (ViLBERT, UNITER)."""
    return replace(mrc(streams, stream=stream, hide=hide), target="classes")


def mrfr(
    streams: tuple[str, ...] = ("text", "image"), *, stream: str = "image", hide: Hide = REGIONS
) -> Reconstruct:
    """Masked region feature regression, weights tied to the embedding (UNITER, section 3.2)."""
    return replace(mrc(streams, stream=stream, hide=hide), target="feature")


def masked_speech(
    streams: tuple[str, ...] = ("speech",), *, stream: str = "speech", rate: float = 0.15
) -> Reconstruct:
    """Masked speech: runs of windows hidden, their log-mel frames regressed (Mockingjay)."""
    hide = Hide(rate=rate, show=0.1, swap=0.0, by="group")
    view = View(name="speech", streams=streams, hide={stream: hide})
    return Reconstruct(view=view, stream=stream, target="mel", loss="smooth_l1")


def itm(
    streams: tuple[str, ...] = ("text", "image"),
    *,
    mismatch: str = "image",
    pooled: tuple[str, ...] = ("text",),
) -> Match:
    """Image-text matching, half of the pairs mismatched (UNITER, section 3.2)."""
    return Match(view=View(name="itm", streams=streams, mismatch=mismatch), pooled=pooled)


def itc(
    pair: tuple[str, str] = ("text", "image"),
    *,
    form: Literal["softmax", "sigmoid"] = "softmax",
    dim: int = 256,
    pool: Literal["first", "mean"] = "first",
) -> Contrast:
    """Image-text contrast: CLIP's softmax form, or SigLIP's sigmoid form."""
    view = View(name="itc", streams=pair, apart=True)
    temperature = 0.07 if form == "softmax" else 0.1
    return Contrast(view=view, pair=pair, form=form, dim=dim, pool=pool, temperature=temperature)


def same_passages(stream: str = "text", *, pool: Literal["first", "mean"] = "first") -> Match:
    """Do two passages belong together: BERT's next sentence, Unicoder's paraphrase classification.

    The component's reader mismatches them (:class:`~crossloom.data_pipelines.read.Parallel`).
    """
    view = View(name="passages", streams=(stream,))
    return Match(view=view, pooled=(stream,), pool=pool, passages=True)


def xlco(
    pair: tuple[str, str] = ("text", "second"),
    *,
    dim: int = 256,
    pool: Literal["first", "mean"] = "first",
) -> Contrast:
    """Cross-lingual contrast of a sentence with its translation (InfoXLM, section 3.3).

    Against the batch alone, without the momentum encoder and its queue; the second stream is tied
    to the first, and the reader gives translations apart.
    """
    view = View(name="xlco", streams=pair, apart=True)
    return Contrast(view=view, pair=pair, dim=dim, pool=pool, shared=True)
