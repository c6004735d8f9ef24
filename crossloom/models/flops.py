"""Floating-point operations of a batch, by formula: padding excluded, attention included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from crossloom.batch import Batch, ViewBatch
from crossloom.models.plan import Attend, Plan


def of_view(plan: Plan, view: ViewBatch) -> float:
    """Operations of one forward pass through the plan's layers (a multiply-add is two)."""
    length = {s: np.asarray(x.length, np.float64) for s, x in view.streams.items()}
    units = {s: float(n.sum()) for s, n in length.items()}
    total = 0.0
    for block in plan.blocks.values():
        if isinstance(block, Attend):
            inner = block.inner or plan.inner
            reads = {r: view.readable(r, block.reads[r]) for r in block.reads if r in units}
            keys = {s for read in reads.values() for s in read}
            total += sum(4 * units[s] * plan.widths[s] * inner for s in keys)
            for reader, read in reads.items():
                if not read:
                    continue
                total += 4 * units[reader] * plan.widths[reader] * inner
                total += sum(4 * inner * float(length[reader] @ length[s]) for s in read)
        else:
            hidden = block.hidden or plan.hidden
            total += sum(
                4 * units[s] * plan.widths[s] * hidden for s in block.streams if s in units
            )
    return total


def of_batch(plan: Plan, batch: Batch, dims: Mapping[str, tuple[int, int]]) -> float:
    """Operations of a training step on one batch: three times the forward pass.

    Args:
        plan: of the model.
        batch: still as NumPy arrays.
        dims: by objective, (width, dim) of the decoder over its slots; absent ones count nothing.
    """
    forward = sum(of_view(plan, v) for v in batch.views.values())
    for name, (width, dim) in dims.items():
        slots = float(np.asarray(batch.aims[name].weight).sum())
        forward += 2 * slots * width * (width + dim)
    return 3 * forward
