"""Word-region alignment against the published loop, the exact solution and hand-made numbers."""

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.objectives.align import Align, ipot
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import itm, wra
from crossloom.objectives.view import Shown, View

VIEW = View(name="itm", streams=("text", "image"), mismatch="image")


def published(x, y, beta=0.5, rounds=50, inner=1):
    """Distance and plan of one example by IPOT (Xie et al., algorithm 1), plainly, in float64.

    Rows are the second set, as in UNITER, whose plan is of regions by words.
    """
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cost = 1 - y @ x.T
    n, m = cost.shape
    kernel, plan = np.exp(-cost / beta), np.ones((n, m))
    sigma = np.full(m, 1 / m)
    for _ in range(rounds):
        q = kernel * plan
        for _ in range(inner):
            delta = 1 / (n * (q @ sigma))
            sigma = 1 / (m * (q.T @ delta))
        plan = delta[:, None] * q * sigma[None, :]
    return (plan * cost).sum(), plan.T


def encoded(examples, requires_grad=False):
    """An encoded view of examples, each a pair of arrays, laid end to end."""
    streams, states = {}, {}
    for number, name in enumerate(("text", "image")):
        parts = [e[number] for e in examples]
        flat = np.concatenate(parts).astype(np.float32)
        length = np.array([len(p) for p in parts])
        streams[name] = Stream.build({}, {}, np.zeros(len(flat)), np.zeros(len(flat), bool), length)
        states[name] = torch.from_numpy(flat).requires_grad_(requires_grad)
    return Encoded(ViewBatch(streams=streams).to("cpu"), states, {})


def head(**settings):
    return Align(view=VIEW, **settings).head({}, {"text": 4, "image": 4})


def draw(rng, most=12, width=6):
    return tuple(rng.normal(size=(int(rng.integers(1, most)), width)) for _ in range(2))


@pytest.mark.parametrize(
    ("x", "y", "rounds", "expected"),
    [
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], 1, 0.119203),
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], 5, 4.5e-5),
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], 50, 0.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]], 1, 0.412802),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]], 50, 1 / 3),
        ([[1, 1, 0]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 50, 1 - 2 / 3 / 2**0.5),
    ],
)
def test_known_distances(x, y, rounds, expected):
    found = head(iterations=rounds).distances(encoded([(np.array(x), np.array(y))]))
    assert found.item() == pytest.approx(expected, abs=2e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_ragged_examples_together_equal_the_published_loop_one_by_one(seed, rounds):
    rng = np.random.default_rng(seed)
    examples = [draw(rng) for _ in range(4)]
    found = head(iterations=rounds).distances(encoded(examples))
    expected = [published(x, y, rounds=rounds)[0] for x, y in examples]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_long_hard_examples_stay_finite_in_float32():
    # opposite vectors cost 2, the most there is: e^-200 after fifty rounds, were it not for scaling
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 8))
    examples = [(x, np.concatenate([-x, x[:40]])), (x[:1], -x), (x, -x[:1])]
    found = head().distances(encoded(examples))
    expected = [published(a, b)[0] for a, b in examples]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_fifty_rounds_come_close_to_the_exact_distance():
    # the plan of fifty rounds is a little blurred still; more rounds, and the gap closes
    rng = np.random.default_rng(0)
    examples = [draw(rng, most=20) for _ in range(40)]
    exact = []
    for x, y in examples:
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
        cost = 1 - x @ y.T
        shares = [np.full(len(v), 1 / len(v)) for v in (x, y)]
        exact.append((ot.emd(*shares, cost) * cost).sum())
    shown = encoded(examples)
    assert np.mean(exact) > 0.5
    gaps = [
        np.abs(head(**s).distances(shown).numpy() - exact)
        for s in ({}, {"iterations": 2000}, {"beta": 0.1, "iterations": 400})
    ]
    assert gaps[0].max() < 2e-3
    assert gaps[0].mean() < 5e-4
    assert gaps[1].max() < 1e-5
    assert gaps[2].max() < 1e-3
    with pytest.raises(ValueError, match=r"at least 0\.1"):
        head(beta=0.05)


def test_marginals_of_the_plan():
    rng = np.random.default_rng(3)
    cost = torch.from_numpy(rng.uniform(0, 2, size=(3, 7, 9))).float()
    a_real, b_real = torch.arange(7) < torch.tensor([[7], [4], [1]]), torch.arange(9) < 9
    b_real = b_real.expand(3, 9)
    plan = ipot(cost, a_real, b_real)
    assert (plan[~a_real] == 0).all()
    for number, length in enumerate((7, 4, 1)):
        rows = plan[number, :length].sum(1)
        torch.testing.assert_close(rows, torch.full_like(rows, 1 / length), atol=1e-6, rtol=0)
        columns = plan[number].sum(0)
        torch.testing.assert_close(columns, torch.full((9,), 1 / 9), atol=5e-3, rtol=0)


def test_units_left_out_are_as_if_they_were_not_there():
    rng = np.random.default_rng(4)
    examples = [(rng.normal(size=(n + 2, 6)), rng.normal(size=(5, 6))) for n in (3, 6)]
    found = head(skip={"text": (1, 1), "image": (1, 0)}).distances(encoded(examples))
    expected = head().distances(encoded([(x[1:-1], y[1:]) for x, y in examples]))
    torch.testing.assert_close(found, expected)
    nothing = head(skip={"text": (1, 1)}).distances(encoded([(examples[0][0][:2], examples[0][1])]))
    assert nothing.item() == 0


def test_matches_add_and_mismatches_subtract_with_gradient_through_the_cost_alone():
    rng = np.random.default_rng(5)
    examples = [draw(rng) for _ in range(3)]
    shown = encoded(examples, requires_grad=True)
    aim = AimBatch(
        index=torch.arange(3),
        value=torch.tensor([1.0, -1.0, 1.0]),
        weight=torch.tensor([1.0, 1.0, 0.0]),
    )
    out = head()(shown, aim)
    out["loss"].backward()
    plans = [published(x, y) for x, y in examples]
    assert out["loss"].item() == pytest.approx(plans[0][0] - plans[1][0], abs=1e-5)
    assert out["matched"].item() == pytest.approx(plans[0][0], abs=1e-5)
    assert out["apart"].item() == pytest.approx(plans[1][0], abs=1e-5)
    # by hand: the plan is a constant factor on the cost
    leaves = [[torch.tensor(v, requires_grad=True) for v in e] for e in examples]
    total = 0.0
    for sign, (x, y), (_, plan) in zip((1, -1, 0), leaves, plans, strict=True):
        cost = 1 - F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
        total = total + sign * (torch.from_numpy(plan) * cost).sum()
    total.backward()
    for number, stream in enumerate(("text", "image")):
        expected = torch.cat([e[number].grad for e in leaves]).float()
        torch.testing.assert_close(shown.states[stream].grad, expected, atol=1e-5, rtol=1e-3)


def test_under_autocast_all_is_float32():
    rng = np.random.default_rng(6)
    shown = encoded([draw(rng) for _ in range(3)])
    plain = head().distances(shown)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head().distances(shown)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)


def test_it_shares_the_pass_of_matching_and_needs_comparable_streams():
    assert wra().view == itm().view
    assert wra().weight == 0.1
    with pytest.raises(ValueError, match="different widths"):
        wra().head({}, {"text": 4, "image": 8})
    for spec in (wra(pair=("text", "sound")), Align(view=VIEW, skip={"sound": (1, 1)})):
        assert isinstance(spec, Objective)
        with pytest.raises(ValueError, match="does not show sound"):
            spec.check({"text": None, "image": None})


def test_the_aim_is_the_sign():
    for matched in (True, False):
        shown = Shown(key="k", units={}, fate={}, matched=matched, labels={})
        assert wra().aim(shown).value.tolist() == [1.0 if matched else -1.0]
    assert wra().blank({}).tolist() == [0.0]
