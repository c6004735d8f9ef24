"""What published systems have in common: texts, layers, optimisers, region features, data sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import BERT, OBJECTS
from crossloom.training.optim import Optim

TEXT, IMAGE = "text", "image"
#: Words, then what is seen: the two streams of most systems.
STREAMS = (TEXT, IMAGE)
#: What a generator of replaced words reads: the text, some of it hidden.
GENERATOR = "generator"
#: What an encoder-decoder says, beside the text that it reads.
TARGET = "target"
#: Words, and regions, hidden one by one, of an example perhaps none: ``random_word`` and
#: ``random_region`` of most code of 2019, where BERT's own hides one word at least.
ANY_WORDS, ANY_REGIONS = replace(BERT, at_least=0), replace(OBJECTS, at_least=0)


def bert_text(*, limit: int, cased: bool = False, **changes: Any) -> Text:
    """The text of BERT (Devlin et al. 2019): 30,522 ids, 28,996 with case; 512 positions, 2 types.

    Args:
        limit: most units of an example, specials included.
        cased: the vocabulary of ``bert-base-cased``.
        changes: other fields of :class:`~crossloom.modalities.text.Text`.
    """
    text = Text(
        vocabulary=f"bert-base-{'cased' if cased else 'uncased'}/vocab.txt",
        layout="wordpiece-cased" if cased else "wordpiece",
        size=28_996 if cased else 30_522,
        limit=limit,
        positions=512,
        segments=2,
    )
    return replace(text, **changes)


def mbert_text(*, limit: int, **changes: Any) -> Text:
    """The text of multilingual BERT, cased (``bert-base-multilingual-cased``): 119,547 ids.

    Args:
        limit: most units of an example, specials included.
        changes: other fields of :class:`~crossloom.modalities.text.Text`.
    """
    text = bert_text(limit=limit, cased=True)
    vocabulary = "bert-base-multilingual-cased/vocab.txt"
    return replace(text, vocabulary=vocabulary, size=119_547, **changes)


def xlm_r_text(*, limit: int, **changes: Any) -> Text:
    """The text of XLM-R (Conneau et al. 2020): 250,002 ids, 514 positions from row 2, one type.

    Args:
        limit: most units of an example, specials included.
        changes: other fields of :class:`~crossloom.modalities.text.Text`.
    """
    text = Text(
        vocabulary="xlm-roberta-base/sentencepiece.bpe.model", layout="xlm-r", size=250_002,
        limit=limit, positions=514, offset=2, constant=True,
    )  # fmt: skip
    return replace(text, **changes)


def xlm_text(*, languages: tuple[str, ...], size: int, limit: int = 256, **changes: Any) -> Text:
    """The text of XLM (Conneau & Lample 2019): byte pairs of words that Moses cuts, 512 positions.

    Args:
        languages: in the order of their embeddings.
        size: of the vocabulary.
        limit: most units of an example, specials included.
        changes: other fields of :class:`~crossloom.modalities.text.Text`.
    """
    text = Text(
        vocabulary="xlm/vocab.json", layout="xlm", size=size, limit=limit, positions=512,
        languages=languages,
    )  # fmt: skip
    return replace(text, **changes)


def bert_plan(streams: tuple[str, ...] = STREAMS, *, large: bool = False) -> Plan:
    """BERT's layers over streams that all read each other: 12 of 768, or 24 of 1024."""
    if large:
        plan = single_stream(streams, layers=24, width=1024, heads=16)
    else:
        plan = single_stream(streams, layers=12, width=768, heads=12)
    return replace(plan, epsilon=1e-12)


def butd(*, limit: int = 36, **changes: Any) -> Regions:
    """Regions of the bottom-up-attention detector (Anderson et al. 2018): 2,048 numbers each.

    1,601 classes with background (Visual Genome's 1,600 objects).

    Args:
        limit: most regions of an image.
        changes: other fields of :class:`~crossloom.modalities.regions.Regions`.
    """
    return replace(Regions(features=2048, classes=1601, limit=limit), **changes)


def bert_adam(rate: float, *, clip: float = 1.0) -> Optim:
    """BERT's optimiser (Devlin et al. 2019, appendix A.2; its code's ``optimization.py``).

    The original leaves out Adam's correction of the first steps, which warm-up makes small anyway.
    Its port to PyTorch (``BertAdam``) cuts the gradient of each parameter at ``clip`` by itself,
    here, as in the original, that of all together is.
    """
    return Optim(rate=rate, betas=(0.9, 0.999), epsilon=1e-6, decay=0.01, clip=clip)


def xlm_adam(rate: float = 1e-4) -> Optim:
    """XLM's optimiser: no decay, gradients cut at 5 (``facebookresearch/XLM``: ``train.py``)."""
    return Optim(rate=rate, betas=(0.9, 0.98), epsilon=1e-8, decay=0.0, clip=5.0)


def train(*sources: str) -> tuple[str, ...]:
    """The training shards of data sets, by the folders that conversions are written to.

    ``coco``, ``visual-genome``, ``conceptual-captions``, ``flickr30k``, ``vqa``, ``gqa`` are named
    after their converters (docs/data.md), as are ``wikipedia``, ``cc100`` and ``opus``; ``sbu`` is
    made as Conceptual Captions are.
    """
    return tuple(f"{s}/train-*.tar" for s in sources)


def tiny_plan(streams: tuple[str, ...] = STREAMS) -> Plan:
    """BERT's kind of layers for the world's small recipes: 3 of 128."""
    return single_stream(streams, layers=3, width=128, heads=4)
