"""Towers of several sizes, and one last norm for all streams."""

from dataclasses import replace

import pytest
import torch

from crossloom.models.fusion import Fusion
from crossloom.models.plan import Attend
from crossloom.models.presets import Tower, single_stream, towers

SIZES = {
    "text": Tower(layers=1, width=8, heads=2, hidden=12),
    "image": Tower(layers=3, width=6, heads=3, hidden=10),
}


def test_each_tower_has_its_own_size_and_depth():
    plan = towers(SIZES, causal=("text",))
    per = {
        s: 4 * (t.width**2 + t.width) + 2 * t.width * t.hidden + t.hidden + t.width + 4 * t.width
        for s, t in SIZES.items()
    }
    last = sum(2 * t.width for t in SIZES.values())
    count = sum(p.numel() for p in Fusion(plan).parameters())
    assert count == per["text"] + 3 * per["image"] + last
    attends = [b for b in plan.blocks.values() if isinstance(b, Attend)]
    assert [tuple(b.reads) for b in attends] == [("text",), ("image",), ("image",), ("image",)]
    assert [b.causal for b in attends] == [("text",), (), (), ()]


def test_one_last_norm_serves_all_streams():
    torch.manual_seed(0)
    plan = single_stream(("a", "b"), layers=1, width=8, heads=2, norm="pre")
    each, shared = Fusion(plan), Fusion(replace(plan, last="shared"))
    assert set(each.last) == {"a", "b"}
    assert set(shared.last) == {"shared"}
    shared.last["shared"].weight.data.fill_(3.0)
    states = {"a": torch.randn(2, 8), "b": torch.randn(3, 8)}
    done = shared._settle(states, 1)
    for name, state in states.items():
        expected = 3 * torch.nn.functional.layer_norm(state, (8,))
        torch.testing.assert_close(done[name], expected)
    with pytest.raises(ValueError, match="several widths cannot share the last norm"):
        replace(towers(SIZES), last="shared")
