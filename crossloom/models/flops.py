"""Floating-point operations of a batch, by formula: padding excluded, attention included.

Counted are matrix products: of the layers, of embedders and of heads. What is done beside the
training of them is not: slow encoders, passes made anew, activations made again in backward. Causal
attention is counted in full, as kernels' figures are, and so is what a grid's pattern masks.
"""

from __future__ import annotations

import numpy as np

from crossloom.batch import Batch, ViewBatch
from crossloom.models.model import CrossloomModel
from crossloom.models.plan import Attend, Plan
from crossloom.objectives.objective import Head, operations


def of_view(plan: Plan, view: ViewBatch, depth: int = 0) -> float:
    """Operations of one forward pass through the plan's layers (a multiply-add is two).

    ``depth`` is the number of layers run; 0 for all.
    """
    length = {s: np.asarray(x.length, np.float64) for s, x in view.streams.items()}
    units = {s: float(n.sum()) for s, n in length.items()}
    total = 0.0
    for (layer, _), block in plan.blocks.items():
        if depth and layer >= depth:
            continue
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


def of_batch(model: CrossloomModel, batch: Batch) -> float:
    """Operations of a training step on one batch: three times the forward pass.

    Args:
        model: whose layers, embedders and heads are run.
        batch: still as NumPy arrays.
    """
    forward = 0.0
    for name, view in batch.views.items():
        forward += of_view(model.plan, view, model.asked[name][1])
        for stream, units in view.streams.items():
            forward += operations(model.embed[model.owner[stream]], len(units.position))
    for name, head in model.heads.items():
        assert isinstance(head, Head)
        forward += head.operations(float(np.asarray(batch.aims[name].weight).sum()))
    return 3 * forward
