"""Losses against values computed by hand or by another route."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.objectives.classify import Classify
from crossloom.objectives.contrast import Contrast, contrast
from crossloom.objectives.match import Match
from crossloom.objectives.reconstruct import decode_loss
from crossloom.objectives.view import Shown, View

VIEW = View(name="v", streams=("a", "b"), mismatch="b")


def encoded(lengths, width=4, seed=0):
    torch.manual_seed(seed)
    streams, states = {}, {}
    for name, length in lengths.items():
        n = sum(length)
        stream = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), np.array(length))
        streams[name] = stream
        states[name] = torch.randn(n, width, requires_grad=True)
    return Encoded(ViewBatch(streams=streams).to("cpu"), states, {})


def aim(index, value, weight=None):
    weight = torch.ones(len(index)) if weight is None else torch.tensor(weight)
    return AimBatch(index=torch.tensor(index), value=torch.as_tensor(value), weight=weight)


def test_cross_entropy_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    matrix, bias = torch.eye(2), torch.tensor([0.5, 0.0])
    out = decode_loss(x, matrix, bias, torch.tensor([0, 0]), torch.ones(2), "cross_entropy")
    expected = math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(1.5))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert out["correct"].item() == 1


def test_kl_is_summed_over_classes_and_zero_for_equal_distributions():
    x = torch.tensor([[0.3, -0.2, 0.1]])
    target = torch.tensor([[0.2, 0.3, 0.5]])
    out = decode_loss(x, torch.eye(3), torch.zeros(3), target, torch.ones(1), "kl")
    p = x.softmax(1)
    assert out["loss"].item() == pytest.approx((target * (target / p).log()).sum().item(), rel=1e-5)
    same = decode_loss(x, torch.eye(3), torch.zeros(3), p, torch.ones(1), "kl")
    assert abs(same["loss"].item()) < 1e-6


@pytest.mark.parametrize(
    ("loss", "expected"), [("mse", (4 + 0.25) / 2), ("smooth_l1", (1.5 + 0.125) / 2)]
)
def test_vectors_are_averaged_over_their_elements(loss, expected):
    x = torch.tensor([[2.0, 0.5], [9.0, 9.0]])
    out = decode_loss(
        x, torch.eye(2), torch.zeros(2), torch.zeros(2, 2), torch.tensor([1.0, 0.0]), loss
    )
    assert out["loss"].item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "mse"])
@pytest.mark.parametrize("slots", [1, 7, 16])
def test_chunked_equals_whole_with_gradients(loss, slots):
    torch.manual_seed(1)
    value = {
        "cross_entropy": torch.randint(0, 11, (slots,)),
        "kl": torch.rand(slots, 11).softmax(1),
        "mse": torch.randn(slots, 11),
    }[loss]
    weight = (torch.rand(slots) > 0.3).float()
    found = []
    for at_once in (10**9, 25):
        x = torch.randn(slots, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
        matrix = torch.randn(11, 5, generator=torch.Generator().manual_seed(3), requires_grad=True)
        bias = torch.zeros(11, requires_grad=True)
        out = decode_loss(x, matrix, bias, value, weight, loss, at_once)
        out["loss"].backward()
        found.append([out["loss"].detach(), x.grad, matrix.grad, bias.grad])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked)


def test_match_scores_only_weighted_examples():
    spec = Match(view=VIEW, pooled=("a", "b"))
    e = encoded({"a": [2, 1], "b": [1, 3]})
    head = spec.head({}, {"a": 4, "b": 4})
    both = head(e, aim([0, 1], [1, 0]))
    first = head(e, aim([0, 0], [1, 0], [1.0, 0.0]))
    second = head(e, aim([1], [0]))
    assert both["loss"].item() == pytest.approx((first["loss"] + second["loss"]).item(), rel=1e-6)
    margin = head.predict(e)
    assert first["loss"].item() == pytest.approx(F.softplus(-margin[0]).item(), rel=1e-5)


def test_an_empty_stream_pools_to_zero_and_still_gives_gradients():
    spec = Match(view=VIEW, pooled=("a", "b"), combine="sum")
    e = encoded({"a": [2, 1], "b": [0, 2]})
    assert (e.anchor("b")[0] == 0).all()
    assert (e.mean("b")[0] == 0).all()
    out = spec.head({}, {"a": 4, "b": 4})(e, aim([0, 1], [1, 0]))
    out["loss"].backward()
    assert torch.isfinite(e.states["b"].grad).all()


def test_soft_scores_of_vqa_by_hand():
    spec = Classify(view=VIEW, label="answers", classes=("x", "y"), form="sigmoid", pooled=("a",))
    shown = Shown(key="k", units={}, fate={}, matched=True, labels={"answers": {"y": 0.6, "z": 1}})
    assert np.allclose(spec.aim(shown).value, [[0, 0.6]])
    e = encoded({"a": [1], "b": [1]})
    head = spec.head({}, {"a": 4, "b": 4})
    logit = head.predict(e)[0]
    out = head(e, aim([0], torch.tensor([[0.0, 0.6]])))
    by_hand = F.softplus(logit[0]) + F.softplus(logit[1]) - 0.6 * logit[1]
    assert out["loss"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_an_unknown_class_has_no_slot_under_softmax():
    spec = Classify(view=VIEW, label="label", classes=("x",))
    shown = Shown(key="k", units={}, fate={}, matched=True, labels={"label": "nowhere"})
    assert len(spec.aim(shown).index) == 0


def unit_rows(n, dim, seed):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_softmax_contrast_against_clip_pseudocode():
    a, b, scale = unit_rows(5, 8, 0), unit_rows(5, 8, 1), torch.tensor(7.0)
    out = contrast(a, b, torch.arange(5) + 1, torch.ones(5), scale, None)
    logits = scale * a @ b.T
    labels = torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert out["loss"].item() / 5 == pytest.approx(expected.item(), rel=1e-5)


def test_sigmoid_contrast_against_siglip_pseudocode():
    a, b, scale, bias = (
        unit_rows(4, 8, 0),
        unit_rows(4, 8, 1),
        torch.tensor(10.0),
        torch.tensor(-10.0),
    )
    out = contrast(a, b, torch.arange(4) + 1, torch.ones(4), scale, bias)
    sign = 2 * torch.eye(4) - 1
    expected = -F.logsigmoid(sign * (scale * a @ b.T + bias)).sum() / 4
    assert out["loss"].item() / 4 == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("form", "limit"), [("softmax", 100), ("sigmoid", 1000)])
def test_cosines_are_scaled_a_hundred_times_at_most_by_clips_form(form, limit):
    spec = Contrast(view=View(name="v", streams=("a", "b")), pair=("a", "b"), form=form)
    head = spec.head({}, {"a": 4, "b": 4})
    for scale in (50, 1000):
        head.scale.data.fill_(math.log(scale))
        assert head.factor().item() == pytest.approx(min(scale, limit), rel=1e-5)


@pytest.mark.parametrize("bias", [None, torch.tensor(-3.0)])
def test_pairs_of_one_sample_and_blank_pairs_are_no_negatives(bias):
    a, b, scale = unit_rows(4, 8, 0), unit_rows(4, 8, 1), torch.tensor(5.0)
    sample = torch.tensor([1, 2, 1, 0])
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    out = contrast(a, b, sample, weight, scale, bias)
    # row by row, leaving the barred columns out
    total = 0.0
    for i, others in ((0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])):
        if bias is None:
            for left, right in ((a, b), (b, a)):
                logits = scale * left[i] @ right[others].T
                total += F.cross_entropy(logits[None], torch.tensor([others.index(i)])).item() / 2
        else:
            logits = scale * a[i] @ b[others].T + bias
            sign = torch.tensor([1.0 if o == i else -1.0 for o in others])
            total -= F.logsigmoid(sign * logits).sum().item()
    assert out["loss"].item() == pytest.approx(total, rel=1e-5)


def test_contrast_in_chunks_equals_whole_with_gradients():
    found = []
    for at_once in (10**9, 10):
        a, b = unit_rows(6, 4, 0).requires_grad_(), unit_rows(6, 4, 1).requires_grad_()
        scale = torch.tensor(3.0, requires_grad=True)
        out = contrast(a, b, torch.arange(6) + 1, torch.ones(6), scale, None, at_once)
        out["loss"].backward()
        found.append([out["loss"].detach(), a.grad, b.grad, scale.grad])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked)


@pytest.mark.parametrize(("bias", "power"), [(None, None), (-10.0, None), (None, 0.3)])
def test_contrast_under_autocast_is_in_float32(bias, power):
    a, b = unit_rows(6, 8, 0).requires_grad_(), unit_rows(6, 8, 1).requires_grad_()
    more = [None if x is None else torch.tensor(x) for x in (bias, power)]

    def made():
        return contrast(
            a, b, torch.arange(1, 7), torch.ones(6), torch.tensor(100.0), more[0], power=more[1]
        )["loss"]

    with torch.autocast("cpu", torch.bfloat16):
        half = made()
    for whole, other in zip(
        (made(), *torch.autograd.grad(made(), (a, b))),
        (half, *torch.autograd.grad(half, (a, b))),
        strict=True,
    ):
        assert torch.equal(whole, other)


def test_foreign_pairs_are_not_pulled_together():
    both = dict.fromkeys(VIEW.streams)
    with pytest.raises(ValueError, match="'v' mismatches b: foreign pairs"):
        Contrast(view=VIEW, pair=("a", "b")).check(both)
    Contrast(view=View(name="v", streams=("a", "b")), pair=("a", "b")).check(both)


def test_one_pair_alone_has_no_negatives():
    spec = Contrast(view=View(name="v", streams=("a", "b"), apart=True), pair=("a", "b"), dim=3)
    e = encoded({"a": [2], "b": [1]})
    head = spec.head({}, {"a": 4, "b": 4})
    assert isinstance(head, nn.Module)
    assert head(e, aim([0], [5]))["loss"].item() == pytest.approx(0, abs=1e-6)
