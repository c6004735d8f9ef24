"""Published objectives by their names: one line each over the families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from crossloom.objectives.align import Align
from crossloom.objectives.classify import Classify
from crossloom.objectives.contrast import Contrast
from crossloom.objectives.generate import Generate
from crossloom.objectives.match import Match
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View

#: BERT: 15 % of the units, of which 80 % are hidden, 10 % swapped, 10 % left.
BERT = Hide(rate=0.15, show=0.1, swap=0.1)
#: UNITER: 15 % of the regions, all of them hidden.
REGIONS = Hide(rate=0.15, show=0.0, swap=0.0, by="group")
#: Unicoder-VL, ImageBERT: 15 % of the regions, of which 90 % are hidden, 10 % left.
OBJECTS = Hide(rate=0.15, show=0.1, swap=0.0)
#: MASS: one segment of half of the text; of its units 80 % are hidden, 10 % swapped, 10 % left.
SEGMENT = Hide(rate=0.5, show=0.1, swap=0.1, by="segment")
#: BART, section 2.2: runs of Poisson(3) units over 30 % of the text, each shown as one mask.
INFILL = Hide(
    rate=0.3, show=0, swap=0, by="span", law="poisson", span=3, longest=64, merge=True, insert=True
)
#: mBART, section 2.1: runs of Poisson(3.5) words over 35 % of the text, each shown as one mask.
INFILL_WORDS = replace(INFILL, rate=0.35, span=3.5, whole=True)
#: BART, section 5.1: sentences in another order (``Text.sentences``), then infilled.
BART = replace(INFILL, permute="sentence")
#: mBART, section 2.1: the same by whole words.
MBART = replace(INFILL_WORDS, permute="sentence")
#: T5, section 3.1.4: 15 % of a text in runs of 3 on average, each shown as one mask.
T5 = Hide(rate=0.15, show=0, swap=0, by="span", law="parted", span=3, merge=True)
#: BART, section 2.2: token deletion.
DELETE = Hide(rate=0.15, show=0, swap=0, drop=1)
#: MASS's code lets the segment reach over the end too, so that a decoder learns to end.
MASS = replace(SEGMENT, last=True)
#: XLM's noise, of units: none moves by 3 or more, a tenth is left out, then a tenth is hidden.
NOISE = Hide(rate=0.19, show=0, swap=0, drop=0.1 / 0.19, shuffle=3, at_least=0)


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


def vtlm(
    streams: tuple[str, ...] = ("text", "image"), *, stream: str = "text", shares: str = ""
) -> Reconstruct:
    """Visual translation language modelling (UC2, section 3.2): two captions and their image.

    Words are hidden whole, and together with the word of the other caption that they are bound to
    (:class:`~crossloom.data_pipelines.read.Parallel` with a dictionary): no translation tells them,
    the image must.
    """
    hide = replace(BERT, by="group")
    return replace(mlm(streams, stream=stream, hide=hide, name="vtlm"), shares=shares)


def mrtm(
    streams: tuple[str, ...] = ("text", "image"),
    *,
    stream: str = "image",
    hide: Hide = REGIONS,
    shares: str = "",
) -> Reconstruct:
    """Masked region-to-token modelling (UC2, section 3.2): a piece of the region's class's name.

    The regions have ``names``, and a text lends its table of pieces (``lent: {token: text}``).

    Args:
        streams: shown.
        stream: of the regions.
        hide: which are hidden.
        shares: name under which the recipe has MLM, whose transform is used for regions too.
    """
    view = View(name="mrtm", streams=streams, hide={stream: hide})
    return Reconstruct(view=view, stream=stream, target="token", shares=shares)


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


def moc(
    streams: tuple[str, ...] = ("text", "image"), *, stream: str = "image", hide: Hide = OBJECTS
) -> Reconstruct:
    """Masked object classification against the detector's best class but background.

    Unicoder-VL (Li et al. 2020) and ImageBERT (Qi et al. 2020), where it is named so: regions
    hidden one by one, and only of pairs that match.
    """
    view = View(name="moc", streams=streams, hide={stream: hide})
    return Reconstruct(view=view, stream=stream, target="class")


def detected(
    view: View, *, stream: str = "image", target: str = "class", everywhere: bool = True
) -> Reconstruct:
    """What the detector named, weighed by its confidence (LXMERT, Tan & Bansal 2019, section 3.1).

    On all regions, as the released code does, or ``everywhere=False`` on hidden ones, as the paper
    says; on mismatched pairs too. The code multiplies by 1 / 0.15 for the share that is hidden.
    """
    return Reconstruct(
        view=view, stream=stream, target=target, everywhere=everywhere, trusted=True,
        matched_only=False, weight=1 / 0.15 if everywhere else 1.0,
    )  # fmt: skip


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


def itm_hard(
    streams: tuple[str, str] = ("text", "image"),
    *,
    mined: str = "itc",
    pooled: tuple[str, ...] = ("text",),
) -> Match:
    """Image-text matching with mismatches that a contrast finds hard (ALBEF, section 3.2)."""
    return Match(view=View(name="itm", streams=streams), pooled=pooled, mined=mined)


def wra(
    streams: tuple[str, ...] = ("text", "image"),
    *,
    mismatch: str = "image",
    pair: tuple[str, str] = ("text", "image"),
) -> Align:
    """Word-region alignment on the pass of :func:`itm` (UNITER, section 3.2), weight 0.1."""
    view = View(name="itm", streams=streams, mismatch=mismatch)
    return Align(view=view, pair=pair, weight=0.1)


def tagged(
    streams: tuple[str, ...] = ("text", "tags", "image"),
    *,
    mismatch: str | tuple[str, ...] = "tags",
    hide: Hide = BERT,
    hidden: tuple[str, ...] = ("text", "tags"),
) -> View:
    """Oscar's view: words and object tags masked alike, the tags another image's half of the time.

    Oscar+ (VinVL, section 3.2) spoils tags or text, a quarter of the time each:
    ``mismatch=("tags", "text")``. ``tags`` is a text stream tied to ``text``, of passage type 1.
    """
    return View(name="tagged", streams=streams, mismatch=mismatch, hide=dict.fromkeys(hidden, hide))


def mtl(view: View, *, stream: str = "text", shares: str = "") -> Reconstruct:
    """Masked token loss (Oscar, Li et al. 2020, section 3) for words, or for tags by their head.

    Tags and words of mismatched examples are predicted too (the code's default). Each of the two
    is averaged over its own slots.

    Args:
        view: :func:`tagged`.
        stream: whose units are predicted.
        shares: for the tags, the name under which the recipe has the words' objective.
    """
    return Reconstruct(view=view, stream=stream, target="token", matched_only=False, shares=shares)


def tag_contrast(view: View, *, pooled: tuple[str, ...] = ("text",)) -> Match:
    """Do the tags belong to the image (Oscar, section 3)? If several may not, which (Oscar+)?"""
    return Match(view=view, pooled=pooled, which=len(view.mismatched) > 1)


def image_questions(
    view: View, answers: tuple[str, ...], *, pooled: tuple[str, ...] = ("text",)
) -> Classify:
    """Answering questions while pre-training (LXMERT, section 3.1); for a component of questions.

    Args:
        view: the one that the other objectives share; questions put to another image have no slot.
        answers: the table, 9,500 as published.
        pooled: streams that are read.
    """
    return Classify(view=view, label="answers", classes=answers, form="distribution", pooled=pooled)


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


def itc_queue(
    pair: tuple[str, str] = ("text", "image"),
    *,
    queue: int = 9600,
    momentum: float = 0.99,
    dim: int = 256,
    pool: Literal["first", "mean"] = "mean",
) -> Contrast:
    """Image-text contrast with slow encoders and a queue for each side (WenLan, Huo et al. 2021).

    The paper adds both directions, of which this is the mean: give it weight 2 for the same.
    """
    view = View(name="itc", streams=pair, apart=True)
    return Contrast(
        view=view, pair=pair, dim=dim, pool=pool, queue=queue, momentum=momentum,
        temperature=0.07, learned=False,
    )  # fmt: skip


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

    Against the batch alone; :func:`xlco_queue` is the published form. The second stream is tied to
    the first, and the reader gives translations apart.
    """
    view = View(name="xlco", streams=pair, apart=True)
    return Contrast(view=view, pair=pair, dim=dim, pool=pool, shared=True)


def xlco_queue(
    pair: tuple[str, str] = ("text", "second"),
    *,
    layer: int = 8,
    queue: int = 131_072,
    momentum: float = 0.9999,
    dim: int = 768,
    hide: Hide | None = BERT,
    mixed: bool = True,
) -> Contrast:
    """Cross-lingual contrast with a slow encoder and a queue (InfoXLM, section 3.3).

    At a middle layer (8 of 12, 12 of 24), features not brought to length one, temperature 0.25
    (``microsoft/unilm:infoxlm``), one direction, no loss until the queue is full.
    Inputs are masked as for MLM, as the code does. Mix-up: with ``mixed``, two pairs of the batch
    are laid end to end, ``<s> a </s> b </s>``, in an order drawn for each side.
    """
    view = View(
        name="xlco",
        streams=pair,
        apart=True,
        hide=dict.fromkeys(pair, hide) if hide else {},
        mixed=pair if mixed else (),
    )
    return Contrast(
        view=view, pair=pair, dim=dim, shared=True, layer=layer, queue=queue, momentum=momentum,
        both=False, wait=True, cosine=False, temperature=0.25, learned=False,
    )  # fmt: skip


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
    unseen: bool = False,
    name: str = "mass",
) -> Generate:
    """The hidden segment, from what is left and the segment's preceding units (MASS, section 3.2).

    Both streams hold one text; the second is read by a decoder. With ``unseen`` it does not read
    the states of hidden units, as in MASS's own code (``enc_mask`` in ``mass_step``).
    """
    view = _aside(
        name, source, target, others, hide={source: hide}, follow={target: source},
        unseen=(source,) if unseen else (),
    )  # fmt: skip
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


def dae(source: str = "text", target: str = "target", *, hide: Hide = NOISE) -> Generate:
    """Denoising auto-encoding: the clean text from its noised form (XNLG, section 3.2)."""
    return denoise(source, target, hide=hide, name="dae")


def xae(source: str = "text", target: str = "target") -> Generate:
    """Cross-lingual auto-encoding: the translation of a text (XNLG, section 3.2).

    The text is shown as it is, as in the code (``mt_step``); the paper speaks of noise.
    """
    return translate(source, target, name="xae")


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


def clm(stream: str = "text") -> Generate:
    """Causal language modelling (XLM, section 3.2): each word from those before it, text alone."""
    return Generate(view=View(name="clm", streams=(stream,), causal=(stream,)), stream=stream)


def clmlm(stream: str = "text", *, hide: Hide = BERT) -> Reconstruct:
    """Cross-lingual MLM (Unicoder, section 3): MLM over documents whose sentences take turns.

    Reader :class:`~crossloom.data_pipelines.passages.Alternating`.
    """
    return mlm((stream,), stream=stream, hide=hide, name="clmlm")


def alm(stream: str = "text", *, hide: Hide = BERT) -> Reconstruct:
    """Alternating language modelling (ALM, Yang et al. 2020): MLM over code-switched sentences.

    Reader :class:`~crossloom.data_pipelines.passages.Switched`.
    """
    return mlm((stream,), stream=stream, hide=hide, name="alm")


def clwr(pair: tuple[str, str] = ("text", "second")) -> Reconstruct:
    """Cross-lingual word recovery (Unicoder, section 3): each word, seen as its translation's.

    The first stream looks at the second, tied to it, with ``sees: words``: its own words are shown
    nowhere, and all of them are predicted. The plan's layers have the first alone.
    """
    view = View(name="clwr", streams=pair)
    return Reconstruct(view=view, stream=pair[0], target="token", everywhere=True)
