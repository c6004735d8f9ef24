"""Published objectives by their names: one line each over the families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from crossloom.objectives.contrast import Contrast
from crossloom.objectives.generate import Generate
from crossloom.objectives.match import Match
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View

#: BERT: 15 % of the units, of which 80 % are hidden, 10 % swapped, 10 % left.
BERT = Hide(rate=0.15, show=0.1, swap=0.1)
#: UNITER: 15 % of the regions, all of them hidden.
REGIONS = Hide(rate=0.15, show=0.0, swap=0.0, by="group")
#: MASS: one segment of half of the text; of its units 80 % are hidden, 10 % swapped, 10 % left.
SEGMENT = Hide(rate=0.5, show=0.1, swap=0.1, by="segment")
#: BART, section 2.2: runs of Poisson(3) units over 30 % of the text, each shown as one mask.
INFILL = Hide(
    rate=0.3, show=0, swap=0, by="span", law="poisson", span=3, longest=64, merge=True, insert=True
)
#: mBART, section 2.1: runs of Poisson(3.5) words over 35 % of the text, each shown as one mask.
INFILL_WORDS = replace(INFILL, rate=0.35, span=3.5, whole=True)


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


def s2s_mlm(
    text: str = "text",
    image: str = "image",
    *,
    hide: Hide = replace(BERT, last=True),
    name: str = "s2s",
) -> Reconstruct:
    """Masked words from the words before them and the image (VLP, section 3.2; UniLM).

    VLP draws it for three batches in four, and :func:`mlm` for the others. The end of the caption
    may be hidden too; decoding fills in a mask at the next place.
    """
    view = View(
        name=name,
        streams=(text, image),
        hide={text: hide},
        causal=(text,),
        reads={image: (image,)},
    )
    return Reconstruct(view=view, stream=text, target="token")


def ic(
    text: str = "text", image: str = "image", *, smoothing: float = 0.0, name: str = "ic"
) -> Generate:
    """Image captioning: each word from the image and the words before it (XGPT, section 3.2)."""
    view = View(name=name, streams=(text, image), causal=(text,), reads={image: (image,)})
    return Generate(view=view, stream=text, smoothing=smoothing)


def imlm(
    source: str = "text",
    image: str = "image",
    target: str = "target",
    *,
    hide: Hide = SEGMENT,
    name: str = "imlm",
) -> Generate:
    """Image-conditioned MLM: MASS with the image among what the decoder reads (XGPT, 3.2).

    As in the code of the same authors (microsoft/M3P): a segment of the caption is hidden, and the
    decoder, fed the segment's preceding units alone, says it.
    """
    return mass(source, target, others=(image,), hide=hide, name=name)


def ida(
    source: str = "text",
    image: str = "image",
    target: str = "target",
    *,
    hide: Hide = INFILL,
    name: str = "ida",
) -> Generate:
    """Image-conditioned denoising: the caption from its infilled form and the image (XGPT, 3.2).

    The paper corrupts the text; the released code (microsoft/M3P, ``bart_img_step``) the regions.
    The paper is followed.
    """
    return denoise(source, target, others=(image,), hide=hide, name=name)


def tifg(text: str = "text", image: str = "image", *, name: str = "tifg") -> Generate:
    """Text-conditioned image feature generation: each region's feature from those before (XGPT).

    The aim is the clean feature, as in the paper (section 3.2); the released code regresses its own
    embedding of the same region, without stopping the gradient, which a constant satisfies. Regions
    come in the order stored (detectors: by confidence); the first is given.
    """
    view = View(name=name, streams=(text, image), causal=(image,), reads={text: (text,)})
    return Generate(view=view, stream=image, target="feature")


def mass(
    source: str = "text",
    target: str = "target",
    *,
    others: tuple[str, ...] = (),
    hide: Hide = SEGMENT,
    name: str = "mass",
) -> Generate:
    """The hidden segment, from what is left and the segment's preceding units (MASS, section 3.2).

    Both streams hold one text; the second is tied to the first and read by a decoder.
    """
    view = _aside(name, source, target, others, hide={source: hide}, follow={target: source})
    return Generate(view=view, stream=target)


def denoise(
    source: str = "text",
    target: str = "target",
    *,
    others: tuple[str, ...] = (),
    hide: Hide = INFILL,
    name: str = "denoise",
) -> Generate:
    """The clean text from its infilled form (BART, section 2.2; mBART with ``INFILL_WORDS``)."""
    view = _aside(name, source, target, others, hide={source: hide})
    return Generate(view=view, stream=target)


def translate(
    source: str = "text", target: str = "second", *, smoothing: float = 0.0, name: str = "translate"
) -> Generate:
    """A text said in another language: XNLG's XAE, and machine translation."""
    return Generate(view=_aside(name, source, target, ()), stream=target, smoothing=smoothing)


def _aside(name: str, source: str, target: str, others: tuple[str, ...], **corrupted: Any) -> View:
    """A view in which the target alone is said, and what it is said from does not read it."""
    known = (source, *others)
    return View(
        name=name,
        streams=(*known, target),
        causal=(target,),
        reads=dict.fromkeys(known, known),
        **corrupted,
    )
