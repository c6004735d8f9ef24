"""What a plan costs beside layers written by hand: ``python benchmarks/plans.py [--json FILE]``.

The layers of ViLBERT and of LXMERT, forward and backward, once as plans and once as plain modules
that do the same operations on the same ragged units with the same attention kernel. Both are given
the same weights and must give the same states before they are timed, in turn. Widths, heads,
lengths and dropout are the published ones; of each kind of layer there are a few, as they repeat.
On a machine that does other things too, the ratio of processor times is steadier than that of the
clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import machine
from torch import Tensor, nn

from crossloom.batch import Stream, ViewBatch
from crossloom.models.attention import Together, to_flat, to_rectangle, together
from crossloom.models.fusion import Fusion
from crossloom.models.plan import Plan
from crossloom.models.presets import co_attention, cross_encoder


def main() -> None:
    """Measure, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--small", action="store_true", help="width 96: overheads at their worst")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for name, (plan, make) in cases(options.small).items():
        rows.append({"layers": name, **measure(plan, make(plan), options)})
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in rows[-1].items()), flush=True)  # fmt: skip
    if options.json:
        found = {"machine": machine(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def cases(small: bool) -> dict[str, tuple[Plan, Callable[[Plan], nn.Module]]]:
    """Plans, and what makes the modules that are to be as quick."""
    size: dict[str, Any] = {"width": 96, "heads": 4} if small else {"width": 768, "heads": 12}
    wide = {"image_width": 128, "bridge": 128, "bridge_heads": 4, "image_hidden": 128}
    if not small:
        wide = {"image_width": 1024, "bridge": 1024, "bridge_heads": 8, "image_hidden": 1024}
    return {
        "vilbert": (co_attention("text", "image", first=2, pairs=2, **wide, **size), Vilbert),
        "lxmert": (
            cross_encoder("text", "image", text_layers=2, image_layers=1, cross=2, **size),
            Lxmert,
        ),
    }


def measure(plan: Plan, hand: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of forward and backward of both, taken in turn."""
    view = batch(options.examples)
    states = {s: torch.randn(len(x.position), plan.widths[s]) for s, x in view.streams.items()}
    fusion = Fusion(plan)
    take(hand, fusion, plan)
    same(fusion, hand, states, view)

    def step(model: Callable[..., dict[str, Tensor]]) -> tuple[float, float]:
        inputs = {s: x.clone().requires_grad_() for s, x in states.items()}
        clock, processor = time.perf_counter(), time.process_time()
        out = model(inputs, view)
        torch.stack([x.square().mean() for x in out.values()]).sum().backward()
        return time.perf_counter() - clock, time.process_time() - processor

    times: dict[str, list[tuple[float, float]]] = {"plan": [], "hand": []}
    models: dict[str, Any] = {"plan": fusion, "hand": hand}
    for turn in range(options.repeats + 2):
        for name in ("plan", "hand") if turn % 2 else ("hand", "plan"):
            seconds = step(models[name])
            models[name].zero_grad(set_to_none=True)
            if turn >= 2:
                times[name].append(seconds)
    clock, processor = (
        {name: statistics.median(x[kind] for x in times[name]) for name in times} for kind in (0, 1)
    )
    return {
        "plan_ms": clock["plan"] * 1e3,
        "hand_ms": clock["hand"] * 1e3,
        "ratio": clock["plan"] / clock["hand"],
        "processor_ratio": processor["plan"] / processor["hand"],
        "parameters": sum(p.numel() for p in fusion.parameters()),
        "examples": options.examples,
        "repeats": options.repeats,
    }


def batch(examples: int) -> ViewBatch:
    """Captions of 8 to 20 pieces with 36 regions each."""
    lengths = np.random.default_rng(0).integers(8, 21, examples)
    streams = {}
    for name, length in (("text", lengths), ("image", np.full(examples, 36))):
        n = int(length.sum())
        streams[name] = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), length)
    return ViewBatch(streams=streams).to("cpu")


# --- by hand ------------------------------------------------------------------------------------


class Read(nn.Module):
    """One stream reads one stream; residual and norm are the caller's."""

    def __init__(self, reader: int, read: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(reader, inner)
        self.keyvalue = nn.Linear(read, 2 * inner)
        self.output = nn.Linear(inner, reader)
        self.norm = nn.LayerNorm(reader, eps=1e-12)

    def forward(self, x: Tensor, y: Tensor, to: Together, of: Together) -> Tensor:
        q = self.query(x).unflatten(1, (self.heads, -1))
        k, v = self.keyvalue(y).unflatten(1, (2, self.heads, -1)).unbind(1)
        out = F.scaled_dot_product_attention(
            to_rectangle(q, to).transpose(1, 2),
            to_rectangle(k, of).transpose(1, 2),
            to_rectangle(v, of).transpose(1, 2),
            attn_mask=None if of.full else of.valid[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        gain = self.output(to_flat(out.transpose(1, 2), to).flatten(1))
        return self.norm(x + F.dropout(gain, self.dropout, self.training))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        gain = self.down(F.gelu(self.up(x)))
        return self.norm(x + F.dropout(gain, self.dropout, self.training))


class Vilbert(nn.Module):
    """Two layers of text, then two pairs of connection and self-attention layers."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        text, image, drop = plan.widths["text"], plan.widths["image"], plan.dropout
        bridge = plan.layers[-1].blocks[0]
        wide, many = bridge.inner or text, bridge.heads or plan.heads  # type: ignore[union-attr]

        def pair() -> nn.ModuleList:
            return nn.ModuleList([
                Read(text, image, wide, many, drop), Read(image, text, wide, many, drop),
                FeedForward(text, 4 * text, drop), FeedForward(image, image, drop),
                Read(text, text, text, plan.heads, drop), Read(image, image, image, many, drop),
                FeedForward(text, 4 * text, drop), FeedForward(image, image, drop),
            ])  # fmt: skip

        self.alone = nn.ModuleList(
            nn.ModuleList([Read(text, text, text, plan.heads, drop),
                           FeedForward(text, 4 * text, drop)])
            for _ in range(2)
        )  # fmt: skip
        self.pairs = nn.ModuleList(pair() for _ in range(2))

    def forward(self, states: dict[str, Tensor], view: ViewBatch) -> dict[str, Tensor]:
        t, i = states["text"], states["image"]
        at, ai = (together(view.streams, (s,)) for s in ("text", "image"))
        for read, feed in self.alone:
            t = feed(read(t, t, at, at))
        for read_t, read_i, feed_t, feed_i, self_t, self_i, last_t, last_i in self.pairs:
            t, i = read_t(t, i, at, ai), read_i(i, t, ai, at)
            t, i = feed_t(t), feed_i(i)
            t, i = self_t(t, t, at, at), self_i(i, i, ai, ai)
            t, i = last_t(t), last_i(i)
        return {"text": t, "image": i}


class Lxmert(nn.Module):
    """Two layers of text, one of the image, then two that cross with one module both ways."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        width, drop = plan.widths["text"], plan.dropout

        def read() -> Read:
            return Read(width, width, width, plan.heads, drop)

        def feed() -> FeedForward:
            return FeedForward(width, 4 * width, drop)

        self.text = nn.ModuleList(nn.ModuleList([read(), feed()]) for _ in range(2))
        self.image = nn.ModuleList(nn.ModuleList([read(), feed()]) for _ in range(1))
        self.cross = nn.ModuleList(
            nn.ModuleList([read(), read(), read(), feed(), feed()]) for _ in range(2)
        )

    def forward(self, states: dict[str, Tensor], view: ViewBatch) -> dict[str, Tensor]:
        t, i = states["text"], states["image"]
        at, ai = (together(view.streams, (s,)) for s in ("text", "image"))
        for read, feed in self.text:
            t = feed(read(t, t, at, at))
        for read, feed in self.image:
            i = feed(read(i, i, ai, ai))
        for cross, self_t, self_i, feed_t, feed_i in self.cross:
            t, i = cross(t, i, at, ai), cross(i, t, ai, at)
            t, i = self_t(t, t, at, at), self_i(i, i, ai, ai)
            t, i = feed_t(t), feed_i(i)
        return {"text": t, "image": i}


def take(hand: nn.Module, fusion: Fusion, plan: Plan) -> None:
    """Give the modules the plan's weights: blocks come in one order in both."""
    ours: list[dict[str, Tensor]] = []
    for layer in fusion.layers:
        for block in layer.blocks:  # type: ignore[union-attr]
            own = block.state_dict()
            for stream in ("shared", *plan.widths):
                part = {
                    k.replace(f".{stream}.", "."): v for k, v in own.items() if f".{stream}." in k
                }
                # a stream that is only read, or that reads another, shares its keys with neither
                if any(k.startswith(("query", "up")) for k in part):
                    ours.append(part | _keys(block, own, stream))
    modules = [m for m in hand.modules() if isinstance(m, (Read, FeedForward))]
    for module, weights in zip(modules, ours, strict=True):
        module.load_state_dict(weights)


def _keys(block: Any, own: dict[str, Tensor], reader: str) -> dict[str, Tensor]:
    """Weights of keys and values of what a stream reads in a block."""
    if reader == "shared" or not hasattr(block.spec, "reads"):
        return {}
    (read,) = block.spec.reads[reader]
    return {f"keyvalue.{k}": own[f"keyvalue.{read}.{k}"] for k in ("weight", "bias")}


def same(fusion: Fusion, hand: nn.Module, states: dict[str, Tensor], view: ViewBatch) -> None:
    """Raise unless both give the same states."""
    fusion.eval()
    hand.eval()
    with torch.no_grad():
        ours, theirs = fusion(dict(states), view), hand(states, view)
    for stream in ours:
        torch.testing.assert_close(ours[stream], theirs[stream], atol=1e-4, rtol=1e-4)
    fusion.train()
    hand.train()


if __name__ == "__main__":
    main()
