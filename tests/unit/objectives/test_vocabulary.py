"""Cross entropy over large vocabularies, against the plain computation in float64."""

import pytest
import torch
import torch.nn.functional as F

from crossloom.objectives.reconstruct import decode_loss
from crossloom.objectives.vocabulary import cross_entropy_sum


def check(dim: int, width: int, count: int, rows: int, smoothing: float = 0.0) -> None:
    torch.manual_seed(dim)
    table = (torch.randn(dim, width) * 0.3).requires_grad_()
    x = torch.randn(count, width, requires_grad=True)
    bias = torch.randn(dim, requires_grad=True)
    value, weight = torch.randint(dim, (count,)), torch.rand(count)
    weight[0] = 0.0
    seen = torch.randint(dim, (count,))  # the matrix is an embedding too
    leaves = (x, table, bias)
    out = decode_loss(
        x + table[seen], table, bias, value, weight, "cross_entropy", rows * dim, smoothing
    )
    ours = torch.autograd.grad(out["loss"] * 0.37, leaves)
    xd, td, bd = (p.detach().double().requires_grad_() for p in leaves)
    logits = (xd + td[seen]) @ td.T + bd
    plain = F.cross_entropy(logits, value, reduction="none", label_smoothing=smoothing)
    loss = (plain * weight).sum()
    theirs = torch.autograd.grad(loss * 0.37, (xd, td, bd))
    assert abs(float(out["loss"].detach()) / float(loss.detach()) - 1) <= 1e-4
    assert float(out["correct"]) == pytest.approx(
        float(((logits.argmax(1) == value) * weight).sum())
    )
    for mine, right in zip(ours, theirs, strict=True):
        assert float((mine - right).norm() / right.norm()) <= 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_small(smoothing: float) -> None:
    check(37, 8, 11, 4, smoothing)


@pytest.mark.parametrize(
    "dim",
    [250_002, *(pytest.param(v, marks=pytest.mark.slow) for v in (256_000, 262_144, 300_000))],
)
def test_published_sizes(dim: int) -> None:
    check(dim, 16, 7, 3)


def test_gradients_are_given_once() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    loss, correct, _ = cross_entropy_sum(
        x, torch.randn(5, 4), torch.zeros(5), torch.tensor([0, 1, 2]), torch.ones(3), 2
    )
    assert not correct.requires_grad
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used"):
        loss.backward()


def test_nothing_is_kept_without_gradients() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        loss, _, _ = cross_entropy_sum(
            x, torch.randn(5, 4), torch.zeros(5), torch.tensor([0, 1, 2]), torch.ones(3), 2
        )
    assert not loss.requires_grad
