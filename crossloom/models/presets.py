"""Plans of the published topologies, for any streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from crossloom.models.plan import Attend, Feed, Layer, Plan

Norm = Literal["pre", "post"]
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
) -> Plan:
    """All streams read all streams with one set of weights: UNITER, VisualBERT, VL-BERT, XLM."""
    layer = Layer(
        blocks=(
            Attend(reads=dict.fromkeys(streams, streams), shared=True),
            Feed(streams=streams, shared=True),
        )
    )
    return _plan(streams, (layer,) * layers, width, heads, hidden, norm, dropout)


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
    return _plan(both, alone + (crossed,) * cross, width, heads, None, "post", dropout)


def encoder_decoder(
    source: str,
    target: str,
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int | None = None,
    norm: Norm = "post",
    dropout: float = 0.1,
) -> Plan:
    """A source that reads itself, and a causal target that reads itself and the source."""
    encoder = Layer(blocks=(Attend(reads={source: (source,)}), Feed(streams=(source,))))
    decoder = Layer(
        blocks=(
            Attend(reads={target: (target,)}, causal=(target,)),
            Attend(reads={target: (source,)}),
            Feed(streams=(target,)),
        )
    )
    plan = (encoder,) * layers + (decoder,) * layers
    return _plan((source, target), plan, width, heads, hidden, norm, dropout)


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
