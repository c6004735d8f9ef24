"""Cross entropy over large vocabularies in one pass: gradients are made with the loss.

The loss is a sum, so the gradient of each logit is known as soon as its row is: a chunk of rows of
logits turns into its own gradient in place, gives its share of the gradients of the states, the
matrix and the bias, and is gone. Nothing is made twice, and ``predicted x vocabulary`` never is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy_sum(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor,
    value: Tensor,
    weight: Tensor,
    rows: int,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of cross entropy and of right answers of a linear decoder.

    Backward works once for each forward, and has no second derivative. ``weight`` gets no gradient.

    Args:
        x: states ``[K, width]``.
        matrix: ``[dim, width]``.
        bias: ``[dim]``.
        value: classes ``[K]`` int64.
        weight: ``[K]`` of each row.
        rows: rows of logits that exist together, at least 1.
        smoothing: share of the aim spread over all classes, 0..1.

    Returns:
        The loss and the weight of right answers, float32 scalars; the loss of each row, ``[K]``
        float32, without gradient.
    """
    wanted = torch.is_grad_enabled()
    loss, correct, each = _OnePass.apply(x, matrix, bias, value, weight, rows, smoothing, wanted)
    return loss, correct, each


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor,
        value: Tensor,
        weight: Tensor,
        rows: int,
        smoothing: float,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = [wanted and n for n in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(p, dtype=torch.float32) if n else None
            for p, n in zip((x, matrix, bias), needs, strict=True)
        ]
        of_x, of_matrix, of_bias = grads
        sums = torch.zeros(2, device=x.device)
        each = torch.zeros(len(x), device=x.device)
        for some in range(0, len(x), rows):
            here = slice(some, some + rows)
            aim, trust = value[here, None], weight[here, None].float()
            z = F.linear(x[here], matrix, bias)
            dtype = z.dtype  # autocast's, where it is at work
            z = z.float()
            top, best = z.max(1, keepdim=True)
            right = (1 - smoothing) * z.gather(1, aim)
            if smoothing:
                right = right + smoothing * z.mean(1, keepdim=True)
            z = z.sub_(top).exp_()
            total = z.sum(1, keepdim=True)
            found = (total.log() + top - right) * trust
            each[here] = found[:, 0]
            sums[0] += found.sum()
            sums[1] += ((best == aim) * trust).sum()
            if not any(needs):
                continue
            z.mul_(trust / total)
            if smoothing:
                z.sub_(trust * (smoothing / z.shape[1]))
            z.scatter_add_(1, aim, -(1 - smoothing) * trust)
            if of_bias is not None:
                of_bias += z.sum(0)
            # float16 has no room for the small shares of unlikely classes, bfloat16 has
            dtype = torch.float32 if dtype == torch.float16 else dtype
            with torch.autocast(x.device.type, enabled=False):
                short = z.to(dtype)
                if of_x is not None:
                    of_x[here] = short @ matrix.to(dtype)
                if of_matrix is not None and dtype == torch.float32:
                    of_matrix.addmm_(short.T, x[here].to(dtype))
                elif of_matrix is not None:
                    of_matrix += short.T @ x[here].to(dtype)
        ctx.grads, ctx.dtypes = grads, (x.dtype, matrix.dtype, bias.dtype)
        loss, correct = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(correct, each)
        return loss, correct, each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss: Tensor, correct: Tensor, each: Tensor) -> Any:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients of this loss were used; call the head again")
        found = [
            None if g is None else g.mul_(loss).to(d)
            for g, d in zip(grads, ctx.dtypes, strict=True)
        ]
        return (*found, None, None, None, None, None)
