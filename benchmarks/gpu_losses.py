"""Memory, time and errors of the large losses: a section of ``gpu.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from measuring import Row, added, seconds
from torch import Tensor

from crossloom.objectives.contrast import contrast
from crossloom.objectives.reconstruct import decode_loss

NAME = "losses"
ALL = 1 << 62  #: at once


def losses(device: torch.device, small: bool) -> Iterator[Row]:
    """Contrast over a large batch, softmax and sigmoid; masked words of a large vocabulary."""
    for form in ("softmax", "sigmoid"):
        yield from _contrast(device, small, form)
    yield from _vocabulary(device, small)


def _contrast(device: torch.device, small: bool, form: str) -> Iterator[Row]:
    count, checked, dim, at_once = (96, 64, 16, 512) if small else (32_768, 4096, 512, 2**24)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        F.normalize(torch.randn(count, dim, device=device, generator=generator), dim=1)
        .requires_grad_()
        for _ in "ab"
    )  # fmt: skip
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    bias = torch.tensor(-10.0, device=device, requires_grad=True) if form == "sigmoid" else None

    def loss(rows: int, at_once: int, dtype: torch.dtype = torch.float32) -> Tensor:
        sample = torch.arange(rows, device=device)
        weight = torch.ones(rows, device=device, dtype=dtype)
        x, y, s = a[:rows].to(dtype), b[:rows].to(dtype), scale.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        return contrast(x, y, sample, weight, s, offset, at_once)["loss"] / rows

    leaves = [a, b, scale, *([] if bias is None else [bias])]
    yield from _errors(
        f"{form} contrast", lambda dtype: loss(checked, ALL, dtype), lambda: loss(checked, at_once),
        leaves, 1e-4, 1e-3,
    )  # fmt: skip
    for what, held in (("in chunks", at_once), ("not in chunks", ALL)):
        goal = 0.5 if held == at_once and not small else None
        yield from _cost(f"{form} contrast of {count}, {what}",
                         lambda held=held: loss(count, held), leaves, device, goal)  # fmt: skip


def _vocabulary(device: torch.device, small: bool) -> Iterator[Row]:
    count, checked, width, size = (48, 48, 16, 400) if small else (9830, 2048, 768, 250_002)
    at_once = 4000 if small else 2**25
    generator = torch.Generator(device).manual_seed(0)
    # as states after a norm are, and as a table of words is
    x = torch.randn(count, width, device=device, generator=generator).requires_grad_()
    matrix = torch.randn(size, width, device=device, generator=generator).mul_(0.02)
    matrix.requires_grad_()
    bias = torch.zeros(size, device=device, requires_grad=True)
    value = torch.randint(size, (count,), device=device, generator=generator)
    leaves = [x, matrix, bias]

    def loss(rows: int, at_once: int, dtype: torch.dtype = torch.float32) -> Tensor:
        weight = torch.ones(rows, device=device, dtype=dtype)
        found = decode_loss(
            x[:rows].to(dtype), matrix.to(dtype), bias.to(dtype), value[:rows], weight,
            "cross_entropy", at_once,
        )  # fmt: skip
        return found["loss"] / rows

    def plain(dtype: torch.dtype) -> Tensor:
        # without the code that is being checked, whose logits are float32
        logits = F.linear(x[:checked].to(dtype), matrix.to(dtype), bias.to(dtype))
        return F.cross_entropy(logits, value[:checked])

    yield from _errors("mlm", plain, lambda: loss(checked, at_once), leaves, 1e-4, 1e-3)
    half = device.type == "cuda"
    for what, held in (("in chunks", at_once), ("not in chunks", ALL)):

        def step(held: int = held) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                return loss(count, held)

        goal = 1.2 if held == at_once and not small else None
        yield from _cost(f"mlm of {count} words of {size}, {what}", step, leaves, device, goal)


def _errors(
    name: str,
    plain: Callable[[torch.dtype], Tensor],
    fast: Callable[[], Tensor],
    leaves: list[Tensor],
    most: float,
    most_of_gradients: float,
) -> Iterator[Row]:
    """Relative errors of a loss and of its gradients, against float64 without chunks."""
    expected = plain(torch.float64)
    wanted = torch.autograd.grad(expected, leaves)
    loss = fast()
    found = torch.autograd.grad(loss, leaves)
    off = abs(float(loss) / float(expected) - 1)
    yield Row(NAME, f"{name}: loss in chunks against float64", "error", off, most)
    worst = max(float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True))
    yield Row(NAME, f"{name}: gradients in chunks against float64", "error", worst,
              most_of_gradients)  # fmt: skip


def _cost(
    what: str,
    loss: Callable[[], Tensor],
    leaves: list[Tensor],
    device: torch.device,
    goal: float | None,
) -> Iterator[Row]:
    """Memory that forward and backward add at their peak, and their time."""

    def step() -> None:
        torch.autograd.grad(loss(), leaves)

    try:
        step()
        memory = added(step, device)
        took = seconds(step, device, 5)
    except torch.OutOfMemoryError:
        yield Row(NAME, f"{what}: memory added", "GB", None, goal, "does not fit")
        return
    yield Row(NAME, f"{what}: memory added", "GB", None if memory is None else memory / 1e9, goal)
    yield Row(NAME, f"{what}: forward and backward", "ms", took * 1e3)
