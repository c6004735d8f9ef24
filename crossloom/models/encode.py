"""One view through embedders and layers, whichever set of them it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from crossloom.batch import Encoded, ViewBatch
from crossloom.modalities.modality import Embedder
from crossloom.models.attention import Attention, Layout
from crossloom.models.fusion import Fusion, States


def encode(
    embedders: Mapping[str, nn.Module],
    fusion: Fusion,
    view: ViewBatch,
    *,
    record: list[Attention] | None = None,
    layers: tuple[int, ...] = (),
    depth: int = 0,
    embedded: States | None = None,
    layout: Layout | None = None,
) -> Encoded:
    """One view through embedders and layers.

    Args:
        embedders: by stream.
        fusion: the layers.
        view: as tensors.
        record: collects what was looked at.
        layers: after which states are wanted too, counted from 1.
        depth: layers run, from the first; 0 for all, and the last norms.
        embedded: the streams' units, where they are embedded already.
        layout: of the view, if it is made already.
    """
    if embedded is None:
        embedded = {name: _embed(embedders[name], name, view) for name in view.streams}
    middle: dict[int, States] = {n: {} for n in layers}
    states = fusion(embedded, view, record, middle, depth, layout)
    return Encoded(view, states, embedders, embedded, middle)


def _embed(embedder: nn.Module, name: str, view: ViewBatch) -> Tensor:
    stream = view.streams[name]
    assert isinstance(embedder, Embedder)
    if not embedder.looks_at:
        return embedder(stream)
    # what may not be read in this view may not be looked at either; a tied stream not at itself
    readable = view.readable(name, embedder.looks_at)
    others = {n: view.streams[n] for n in readable if n != name}
    return embedder(stream, others)
