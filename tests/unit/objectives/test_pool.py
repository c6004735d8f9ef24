"""Summaries by unit, by mean and by a probe; what a contrast takes of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.objectives.contrast import Contrast
from crossloom.objectives.pool import Pooler, Probe, Summary
from crossloom.objectives.view import View

WIDTH = 8
LENGTHS = {"a": [3, 0, 1, 5], "b": [2, 2, 1, 1]}


def encoded(seed=0):
    generator = torch.Generator().manual_seed(seed)
    streams, states = {}, {}
    for name, length in LENGTHS.items():
        n = sum(length)
        streams[name] = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), np.array(length))
        states[name] = torch.randn(n, WIDTH, generator=generator, requires_grad=True)
    return Encoded(ViewBatch(streams=streams).to("cpu"), states, {})


@pytest.mark.parametrize(("pool", "rows"), [("first", [0, None, 3, 4]), ("last", [2, None, 3, 8])])
def test_a_unit_speaks_for_all(pool, rows):
    given = encoded()
    found = Summary("a", WIDTH, pool)(given)
    for row, place in zip(found, rows, strict=True):
        expected = torch.zeros(WIDTH) if place is None else given.states["a"][place]
        assert torch.equal(row, expected)


@pytest.mark.parametrize("exact", [True, False])
def test_a_probe_is_torchs_attention_and_an_mlp(exact):
    """Padded, with nn.MultiheadAttention, as the published head is written."""
    torch.manual_seed(0)
    summary = Summary("a", WIDTH, Probe(heads=2, hidden=12, exact=exact))
    probe = summary.probe
    for parameter in probe.parameters():
        nn.init.normal_(parameter, std=0.5)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([probe.project.weight, probe.keyvalue.weight]))
        attention.in_proj_bias.copy_(torch.cat([probe.project.bias, probe.keyvalue.bias]))
        attention.out_proj.load_state_dict(probe.output.state_dict())
    given = encoded()
    parts = given.states["a"].split(LENGTHS["a"])
    rows = []
    for part in parts:
        if len(part) == 0:
            rows.append(torch.zeros(WIDTH))
            continue
        x = attention(probe.query[None], part, part)[0][0]
        act = nn.GELU(approximate="none" if exact else "tanh")
        rows.append(x + probe.down(act(probe.up(probe.norm(x)))))
    found = summary(given)
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-5)
    found.square().sum().backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert given.states["a"].grad.abs().sum(1).min() > 0


def test_great_scores_do_not_overflow():
    torch.manual_seed(0)
    summary = Summary("a", WIDTH, Probe(heads=2, hidden=12))
    given = encoded()
    given.states["a"].data *= 1e4
    found = summary(given)
    assert found.isfinite().all()


def test_a_probe_works_in_half_precision():
    torch.manual_seed(0)
    summary = Summary("a", WIDTH, Probe(heads=2, hidden=12))
    given = encoded()
    with torch.autocast("cpu", torch.bfloat16):
        half = summary(given)
    torch.testing.assert_close(half.float(), summary(given), rtol=0.05, atol=0.05)


def test_a_pooler_takes_any_pool():
    torch.manual_seed(0)
    pooler = Pooler(("a", "b"), {"a": WIDTH, "b": WIDTH}, Probe(heads=4, hidden=8))
    assert pooler(encoded()).shape == (4, WIDTH)
    with pytest.raises(ValueError, match="8 is not a multiple of 3 heads"):
        Pooler(("a",), {"a": WIDTH}, Probe(heads=3, hidden=8))


def contrast(**more):
    view = View(name="v", streams=("a", "b"), apart=True)
    return Contrast(view=view, pair=("a", "b"), dim=WIDTH, **more)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_product_of_vilberts_kind(activation):
    """Linear and activation each, product, and a tenth dropped in training alone."""
    torch.manual_seed(0)
    pooler = Pooler(
        ("a", "b"), dict.fromkeys("ab", WIDTH), width=2000, activation=activation, dropout=0.1
    )
    given = encoded()
    act = getattr(torch, activation)
    parts = [act(pooler.dense[s](pooler.summary[s](given))) for s in "ab"]
    whole = pooler.eval()(given)
    assert torch.equal(whole, parts[0] * parts[1])
    dropped = pooler.train()(given)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.9)
    share = 1 - kept[whole != 0].float().mean()
    assert 0.08 < share < 0.12


def test_each_stream_has_its_pool_and_projection():
    torch.manual_seed(0)
    spec = contrast(pools={"a": "last"}, projections={"a": "none", "b": "affine"})
    head = spec.head({}, {"a": WIDTH, "b": WIDTH})
    given = encoded()
    found = head.features(given, "a")
    expected = nn.functional.normalize(given.states["a"][8], dim=0)
    torch.testing.assert_close(found[3], expected)
    assert head.project["b"].bias is not None
    b = head.project["b"](given.states["b"][2])
    torch.testing.assert_close(head.features(given, "b")[1], nn.functional.normalize(b, dim=0))
    with pytest.raises(ValueError, match=r"projections\.a: none needs dim 6"):
        spec.head({}, {"a": 6, "b": WIDTH})
    with pytest.raises(ValueError, match="'c' is not of the pair a, b"):
        contrast(pools={"c": "last"}).check({"a": None, "b": None})


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_only_the_softmax_form_has_a_limit_on_its_scale(form):
    head = contrast(form=form).head({}, {"a": WIDTH, "b": WIDTH})
    given = encoded()
    aim = AimBatch(
        index=torch.tensor([0, 2, 3]), value=torch.tensor([5, 6, 7]), weight=torch.ones(3)
    )
    losses = []
    for scale in (100.0, 120.0):
        head.scale.data.fill_(math.log(scale))
        losses.append(head(given, aim)["loss"].item())
    assert (losses[0] == pytest.approx(losses[1])) == (form == "softmax")
