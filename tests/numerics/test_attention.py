"""The ragged Transformer against plain attention written out for one example at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.batch import Stream, ViewBatch
from crossloom.models.fusion import Fusion
from crossloom.models.plan import Attend, Feed, Grid, Layer, Plan
from crossloom.models.presets import (
    co_attention,
    cross_encoder,
    dual_encoder,
    encoder_decoder,
    single_stream,
)

WIDTH = 24
PLANS = {
    "single": single_stream(("text", "image"), layers=2, width=WIDTH, heads=3, dropout=0),
    "single-pre": single_stream(
        ("text", "image"), layers=2, width=WIDTH, heads=3, norm="pre", dropout=0
    ),
    "towers": dual_encoder("text", "image", layers=2, width=WIDTH, heads=3),
    "co": co_attention("text", "image", first=1, pairs=1, width=WIDTH, heads=3, dropout=0),
    "wide": co_attention(
        "text", "image", first=1, pairs=1, width=WIDTH, heads=3, image_width=32, bridge=32,
        bridge_heads=4, image_hidden=32, dropout=0,
    ),
    "cross": cross_encoder(
        "text", "image", text_layers=1, image_layers=1, cross=1, width=WIDTH, heads=3, dropout=0
    ),
    "decoder": encoder_decoder("image", "text", layers=1, width=WIDTH, heads=3, dropout=0),
}  # fmt: skip


def view(lengths, hidden=None, **options):
    streams = {}
    for name, length in lengths.items():
        n = sum(length)
        hides = (hidden or {}).get(name, np.zeros(n, bool))
        streams[name] = Stream.build({}, {}, np.arange(n), hides, np.array(length))
    return ViewBatch(streams=streams, **options).to("cpu")


def by_hand(fusion, plan, x, apart=False, causal=(), unread=None):
    """One example through the same weights, attention spelt out; x: stream -> [n, width].

    ``unread``: by stream, the units that other streams do not read.
    """
    for spec, layer in zip(plan.layers, fusion.layers, strict=True):
        for block_spec, block in zip(spec.blocks, layer.blocks, strict=True):
            pre = plan.norm == "pre"

            def pick(modules, name):
                return modules["shared" if "shared" in modules else name]

            new = dict(x)
            if isinstance(block_spec, Feed):
                for s in block_spec.streams:
                    if s in x:
                        inside = pick(block.norm, s)(x[s]) if pre else x[s]
                        hidden = torch.nn.functional.gelu(pick(block.up, s)(inside))
                        total = x[s] + pick(block.down, s)(hidden)
                        new[s] = total if pre else pick(block.norm, s)(total)
                x = new
                continue
            seen = dict(x)
            if pre:
                seen = {s: pick(block.norm, s)(v) for s, v in x.items()}
            heads = block_spec.heads or plan.heads
            for reader, read in block_spec.reads.items():
                if reader not in x:
                    continue
                q = pick(block.query, reader)(seen[reader])
                width = q.shape[1] // heads
                gain = torch.zeros_like(x[reader])
                read = [r for r in read if r in x and (r == reader or not apart)]
                rows = torch.zeros_like(q)
                for i in range(len(q)):
                    keys, values = [], []
                    for r in read:
                        both = pick(block.keyvalue, r)(seen[r])
                        k, v = both.chunk(2, 1)
                        if r == reader and r in (*block_spec.causal, *causal):
                            k, v = k[: i + 1], v[: i + 1]
                        if r != reader and r in (unread or {}):
                            k, v = k[~unread[r]], v[~unread[r]]
                        keys.append(k)
                        values.append(v)
                    if not keys or sum(map(len, keys)) == 0:
                        continue
                    k, v = torch.cat(keys), torch.cat(values)
                    for h in range(heads):
                        part = slice(h * width, (h + 1) * width)
                        weight = (k[:, part] @ q[i, part] / width**0.5).softmax(0)
                        rows[i, part] = weight @ v[:, part]
                nothing = sum(len(x[r]) for r in read) == 0
                if not nothing or read:
                    gain = pick(block.output, reader)(rows)
                total = x[reader] + gain
                new[reader] = total if pre else pick(block.norm, reader)(total)
            x = new
    return {s: fusion.last[s](v) if s in fusion.last else v for s, v in x.items()}


CASES = [
    ({"text": [3, 5, 1], "image": [2, 2, 4]}, {}),
    ({"text": [4, 4], "image": [3, 3]}, {}),
    ({"text": [3, 2], "image": [2, 4]}, {"apart": True}),
    ({"text": [3, 2], "image": [2, 4]}, {"causal": ("text",)}),
    ({"text": [3, 5, 1]}, {}),
    ({"text": [1], "image": [1]}, {}),
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_ragged_equals_one_example_at_a_time(plan, case):
    torch.manual_seed(0)
    spec = PLANS[plan]
    lengths, options = CASES[case]
    fusion = Fusion(spec).eval()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    states = {s: torch.randn(sum(n), spec.widths[s]) for s, n in lengths.items()}
    out = fusion(states, view(lengths, **options))
    starts = {s: np.cumsum([0, *n]) for s, n in lengths.items()}
    for e in range(len(next(iter(lengths.values())))):
        one = {s: x[starts[s][e] : starts[s][e + 1]] for s, x in states.items()}
        expected = by_hand(fusion, spec, one, **options)
        for s in lengths:
            found = out[s][starts[s][e] : starts[s][e + 1]]
            torch.testing.assert_close(found, expected[s], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_hidden_units_are_unseen_by_other_streams(plan):
    torch.manual_seed(0)
    spec = PLANS[plan]
    lengths = {"text": [3, 5, 2], "image": [2, 4, 3]}
    hidden = {"image": np.array([0, 1, 1, 0, 0, 1, 1, 1, 1], bool)}  # of the last example, all
    fusion = Fusion(spec)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    states = {
        s: torch.randn(sum(n), spec.widths[s], requires_grad=True) for s, n in lengths.items()
    }
    out = fusion(states, view(lengths, hidden=hidden, unseen=("image",)))
    starts = {s: np.cumsum([0, *n]) for s, n in lengths.items()}
    for e in range(3):
        cut = {s: slice(starts[s][e], starts[s][e + 1]) for s in lengths}
        one = {s: states[s][cut[s]] for s in lengths}
        hides = {"image": torch.tensor(hidden["image"][cut["image"]])}
        expected = by_hand(fusion, spec, one, unread=hides)
        for s in lengths:
            torch.testing.assert_close(out[s][cut[s]], expected[s], atol=2e-5, rtol=2e-5)
    plain = fusion(states, view(lengths, hidden=hidden))
    differs = (plain["text"] - out["text"]).abs().max() > 0.01
    assert differs == (plan != "towers")  # those read nothing of each other
    sum(x.sum() for x in out.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in fusion.parameters())
    assert all(torch.isfinite(x.grad).all() for x in states.values())


def test_gradients_of_ragged_equal_those_of_single_examples():
    torch.manual_seed(0)
    spec, lengths = PLANS["single"], {"text": [3, 1], "image": [2, 4]}
    fusion = Fusion(spec)
    states = {s: torch.randn(sum(n), WIDTH, requires_grad=True) for s, n in lengths.items()}
    target = {s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}
    out = fusion(states, view(lengths))
    sum((out[s] * target[s]).sum() for s in out).backward()
    together = {n: p.grad.clone() for n, p in fusion.named_parameters()}
    inputs = {s: x.grad.clone() for s, x in states.items()}
    fusion.zero_grad()
    for x in states.values():
        x.grad = None
    starts = {s: np.cumsum([0, *n]) for s, n in lengths.items()}
    for e in range(2):
        cut = {s: slice(starts[s][e], starts[s][e + 1]) for s in lengths}
        one = fusion(
            {s: states[s][cut[s]] for s in lengths}, view({s: [n[e]] for s, n in lengths.items()})
        )
        sum((one[s] * target[s][cut[s]]).sum() for s in one).backward()
    for name, parameter in fusion.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, atol=1e-5, rtol=1e-4)
    for s in states:
        torch.testing.assert_close(inputs[s], states[s].grad, atol=1e-5, rtol=1e-4)


def test_an_example_with_an_empty_stream_reads_zero_not_nan():
    torch.manual_seed(0)
    spec = PLANS["co"]
    fusion = Fusion(spec).eval()
    lengths = {"text": [3, 2], "image": [0, 2]}
    states = {s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}
    out = fusion(states, view(lengths))
    expected = by_hand(fusion, spec, {"text": states["text"][:3], "image": states["image"][:0]})
    assert torch.isfinite(out["text"]).all()
    torch.testing.assert_close(out["text"][:3], expected["text"], atol=2e-5, rtol=2e-5)


def test_recorded_attention_sums_to_one_and_covers_what_is_read():
    fusion = Fusion(PLANS["single"]).eval()
    lengths = {"text": [3, 1], "image": [2, 4]}
    record = []
    fusion({s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}, view(lengths), record)
    assert len(record) == 2
    assert torch.allclose(record[0].weights[0, :, :5].sum(-1), torch.ones(3, 5))
    assert (record[0].weights[1, :, :, 5:].sum(-1) == 0).all()


def test_a_plan_names_the_block_that_is_wrong():
    with pytest.raises(ValueError, match="layer 0, block 1: no stream sound"):
        Plan(
            widths={"text": 8},
            layers=(Layer(blocks=(Attend(reads={"text": ("text",)}), Feed(streams=("sound",)))),),
            heads=2,
            inner=8,
            hidden=8,
        )


def test_a_grid_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="kernel 11: an odd number of 1"):
        Grid(side=8, reads="convolution")
    block = Attend(reads={"text": ("image",)}, sparse={"text": Grid(side=8, reads="row")})
    layers = (Layer(blocks=(block,)),)
    with pytest.raises(ValueError, match="sparse: 'text' does not read itself"):
        replace(PLANS["decoder"], layers=layers)


def test_parameters_come_in_one_order_whatever_the_hash_seed():
    import os
    import subprocess
    import sys

    code = (
        "from crossloom.models.presets import cross_encoder as c; "
        "from crossloom.models.fusion import Fusion; "
        "p = c('text', 'image', text_layers=1, image_layers=1, cross=1, width=8, heads=2); "
        "print([n for n, _ in Fusion(p).named_parameters()])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1
