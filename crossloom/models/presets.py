"""Plans of the published topologies, for any streams.

``dataclasses.replace(plan, activation=…, epsilon=…)`` sets what a preset does not ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from crossloom.models.plan import Attend, Block, Feed, Grid, Layer, Norm, Plan

Activation = Literal["gelu", "gelu_tanh", "relu", "quick_gelu"]


def single_stream(
    streams: tuple[str, ...],
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int | None = None,
    norm: Norm = "post",
    dropout: float = 0.1,
    tied: bool = False,
) -> Plan:
    """All streams read all streams with one set of weights: UNITER, VisualBERT, VL-BERT, XLM.

    With ``tied``, all layers use the weights of the first (ALBERT, section 3.1). Prefixes and left
    to right reading (VLP) are matters of the view: ``View.reads`` and ``View.causal``.
    """
    layer = Layer(
        blocks=(
            Attend(
                reads=dict.fromkeys(streams, streams), shared=True, tied="attend" if tied else ""
            ),
            Feed(streams=streams, shared=True, tied="feed" if tied else ""),
        )
    )
    return _plan(streams, (layer,) * layers, width, heads, hidden, norm, dropout)


def on_grids(plan: Plan, stream: str, grids: Sequence[Grid]) -> Plan:
    """The plan with a stream on a grid, which reads itself by a pattern of each layer's own.

    Args:
        plan: any.
        stream: the one on the grid.
        grids: a pattern for each layer.

    Raises:
        ValueError: there are not as many as layers.
    """
    if len(grids) != len(plan.layers):
        raise ValueError(f"{len(grids)} patterns for {len(plan.layers)} layers")

    def patterned(block: Block, grid: Grid) -> Block:
        if not isinstance(block, Attend) or stream not in block.reads.get(stream, ()):
            return block
        return replace(block, sparse={**block.sparse, stream: grid})

    layers = tuple(
        Layer(blocks=tuple(patterned(block, grid) for block in layer.blocks))
        for layer, grid in zip(plan.layers, grids, strict=True)
    )
    return replace(plan, layers=layers)


def dual_encoder(
    first: str,
    second: str,
    *,
    layers: int = 12,
    width: int = 512,
    heads: int = 8,
    hidden: int | None = None,
    norm: Norm = "pre",
    dropout: float = 0.0,
) -> Plan:
    """Two towers that never read each other: CLIP, WenLan."""
    streams = (first, second)
    layer = Layer(
        blocks=(Attend(reads={s: (s,) for s in streams}), Feed(streams=streams)),
    )
    return _plan(streams, (layer,) * layers, width, heads, hidden, norm, dropout)


def co_attention(
    text: str,
    image: str,
    *,
    first: int = 6,
    pairs: int = 6,
    width: int = 768,
    heads: int = 12,
    image_width: int | None = None,
    bridge: int | None = None,
    bridge_heads: int | None = None,
    image_hidden: int | None = None,
    dropout: float = 0.1,
    epsilon: float = 1e-12,
) -> Plan:
    """ViLBERT: text alone, then pairs of (each reads the other, each reads itself).

    Args:
        text, image: the two streams.
        first: layers of text alone before the first pair.
        pairs: connection layer and self-attention layer, so many times.
        width, heads: of the text stream, and of its self-attention.
        image_width: of the image stream (ViLBERT: 1024), text's when None.
        bridge, bridge_heads: inner width and heads of the connection layers (ViLBERT: 1024, 8).
        image_hidden: inside the image's feed-forward (ViLBERT: 1024), four times its width if None.
        dropout: probability.
        epsilon: of the layer norms, as published.
    """
    other = image_width or width
    image_heads = bridge_heads or heads
    wide = image_hidden or 4 * other
    solo = Layer(blocks=(Attend(reads={text: (text,)}), Feed(streams=(text,))))
    feeds = (Feed(streams=(text,)), Feed(streams=(image,), hidden=wide))
    pair = Layer(
        blocks=(
            Attend(reads={text: (image,), image: (text,)}, heads=bridge_heads, inner=bridge),
            *feeds,
            Attend(reads={text: (text,)}),
            Attend(reads={image: (image,)}, heads=image_heads, inner=other),
            *feeds,
        )
    )
    return Plan(
        widths={text: width, image: other},
        layers=(solo,) * first + (pair,) * pairs,
        heads=heads,
        inner=width,
        hidden=4 * width,
        dropout=dropout,
        epsilon=epsilon,
    )


def cross_encoder(
    text: str,
    image: str,
    *,
    text_layers: int = 9,
    image_layers: int = 5,
    cross: int = 5,
    width: int = 768,
    heads: int = 12,
    dropout: float = 0.1,
    epsilon: float = 1e-12,
) -> Plan:
    """LXMERT: each alone, then layers of shared cross-attention, self-attention, feed-forward."""
    both = (text, image)
    alone = tuple(
        Layer(blocks=(Attend(reads={s: (s,)}), Feed(streams=(s,))))
        for s, count in ((text, text_layers), (image, image_layers))
        for _ in range(count)
    )
    crossed = Layer(
        blocks=(
            Attend(reads={text: (image,), image: (text,)}, shared=True),
            Attend(reads={s: (s,) for s in both}),
            Feed(streams=both),
        )
    )
    plan = _plan(both, alone + (crossed,) * cross, width, heads, None, "post", dropout)
    return replace(plan, epsilon=epsilon)


def encoder_decoder(
    source: str | tuple[str, ...],
    target: str | tuple[str, ...],
    *,
    layers: int = 12,
    decoder_layers: int | None = None,
    width: int = 768,
    heads: int = 12,
    hidden: int | None = None,
    norm: Norm = "post",
    dropout: float = 0.1,
    tied: bool = False,
) -> Plan:
    """Sources that read each other, and a causal target that reads itself and the sources.

    Args:
        source: one stream, or several read together with one set of weights.
        target: the stream that is generated; of several, said with one set of weights, none reads
            another (XGPT: words, and features of regions).
        layers, decoder_layers: of the sources, and of the target (as many when None).
        width, heads, hidden, norm, dropout: see :class:`~crossloom.models.plan.Plan`.
        tied: the decoder reads itself and feeds forward with the encoder's weights, layer by
            layer; only what it reads the sources with is its own (XGPT).

    Raises:
        ValueError: tied halves of different depth.
    """
    sources = (source,) if isinstance(source, str) else source
    targets = (target,) if isinstance(target, str) else target
    depth = layers if decoder_layers is None else decoder_layers
    if tied and depth != layers:
        raise ValueError(f"tied halves have one depth, not {layers} and {depth} layers")
    together = tied or len(sources) > 1
    alike = tied or len(targets) > 1

    def named(number: int, what: str) -> str:
        return f"{what}-{number}" if tied else ""

    encoder = tuple(
        Layer(
            blocks=(
                Attend(
                    reads=dict.fromkeys(sources, sources), shared=together, tied=named(n, "attend")
                ),
                Feed(streams=sources, shared=together, tied=named(n, "feed")),
            )
        )
        for n in range(layers)
    )
    decoder = tuple(
        Layer(
            blocks=(
                Attend(
                    reads={t: (t,) for t in targets},
                    causal=targets,
                    shared=alike,
                    tied=named(n, "attend"),
                ),
                Attend(
                    reads=dict.fromkeys(targets, sources),
                    shared=len(sources) + len(targets) > 2,
                ),
                Feed(streams=targets, shared=alike, tied=named(n, "feed")),
            )
        )
        for n in range(depth)
    )
    plan = encoder + decoder
    return _plan((*sources, *targets), plan, width, heads, hidden, norm, dropout)


def _plan(
    streams: tuple[str, ...],
    layers: tuple[Layer, ...],
    width: int,
    heads: int,
    hidden: int | None,
    norm: Norm,
    dropout: float,
) -> Plan:
    return Plan(
        widths=dict.fromkeys(streams, width),
        layers=layers,
        heads=heads,
        inner=width,
        hidden=hidden or 4 * width,
        norm=norm,
        dropout=dropout,
    )


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Size of one stream's own Transformer."""

    layers: int
    width: int
    heads: int
    hidden: int


def towers(
    sizes: Mapping[str, Tower],
    *,
    causal: tuple[str, ...] = (),
    norm: Norm = "pre",
    activation: Activation = "gelu",
    dropout: float = 0.0,
    epsilon: float = 1e-5,
) -> Plan:
    """Streams that never read each other, each with a Transformer of its own size: CLIP, SigLIP.

    Args:
        sizes: by stream.
        causal: streams whose units read no later unit (CLIP's text).
        norm, activation, dropout, epsilon: of the plan.
    """

    def layer(number: int) -> Layer:
        return Layer(
            blocks=tuple(
                block
                for stream, size in sizes.items()
                if number < size.layers
                for block in (
                    Attend(
                        reads={stream: (stream,)},
                        causal=tuple(c for c in causal if c == stream),
                        heads=size.heads,
                        inner=size.width,
                    ),
                    Feed(streams=(stream,), hidden=size.hidden),
                )
            )
        )

    first = next(iter(sizes.values()))
    return Plan(
        widths={s: size.width for s, size in sizes.items()},
        layers=tuple(layer(n) for n in range(max(size.layers for size in sizes.values()))),
        heads=first.heads,
        inner=first.width,
        hidden=first.hidden,
        norm=norm,
        activation=activation,
        dropout=dropout,
        epsilon=epsilon,
    )
