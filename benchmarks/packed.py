"""What packing and chunks save, on a CPU: ``python benchmarks/packed.py --json FILE``.

The same model steps on the same batches as they are and filled up to their longest examples:
sentences as short as Tatoeba's, and UNITER's tasks over captions and regions. Both give the same
losses before they are timed, in turn. And masked words of a large vocabulary, their logits in
chunks and all at once, each in a process of its own: memory that forward and backward add at their
peak to what lay there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import uniter_case
from made import Ours, collated, padded, vocabularyless, words
from measuring import Row, resident, table, write

from crossloom.batch import Batch
from crossloom.interop.towers import TEXT
from crossloom.models.presets import single_stream
from crossloom.objectives.reconstruct import decode_loss
from crossloom.recipes import xlm_r as of_xlm_r
from crossloom.training.recipe import Recipe
from crossloom.units import keyed_rng

CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it works")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--held", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.held is not None:
        print(json.dumps(vocabulary(options.held, small=False)))
        return
    examples = 4 if options.small else 16
    uniter, batches = uniter_case(options.small, examples)
    if not options.small:  # of UNITER-base's width, but no deeper than a CPU has patience for
        plan = single_stream(tuple(uniter.modalities), layers=2, width=768, heads=12)
        uniter = replace(uniter, plan=plan)
    rows = [
        *compared("Tatoeba's lengths", *sentences(options.small, 16 * examples), options, 1.8),
        *compared("UNITER's mixture", uniter, batches, options, 1.3),
        *chunks(options.small),
    ]
    print(table(rows))
    if options.json:
        write(options.json, CPU, rows, small=options.small)


def sentences(small: bool, examples: int) -> tuple[Recipe, list[Batch]]:
    """MMLM on sentences with Tatoeba's lengths: log-normal, half of them below 9 pieces."""
    recipe = of_xlm_r.xlm_r()
    text: Any = replace(recipe.modalities[TEXT], size=200 if small else 8000)  # type: ignore[call-arg]
    plan = single_stream(
        (TEXT,), layers=2 if small else 6, width=32 if small else 384, heads=2 if small else 6
    )
    recipe = vocabularyless(replace(recipe, modalities={TEXT: text}, plan=plan))
    rng = keyed_rng("packed", "sentences")
    lengths = np.clip(rng.lognormal(2.2, 0.45, examples).round(), 4, 60).astype(int)
    (name,) = recipe.objectives
    return recipe, [collated(recipe, [{TEXT: words(rng, n, text)} for n in lengths], (name,))]


def compared(
    name: str, recipe: Recipe, batches: list[Batch], options: argparse.Namespace, goal: float
) -> Iterator[Row]:
    """Median processor times of steps on batches as they are and filled up, in turn."""
    sides = {"packed": batches, "padded": [padded(b, recipe) for b in batches]}
    model = Ours(recipe, CPU, half=False)
    off = max(
        abs(one[o] / other[o] - 1)
        for one, other in zip(*([model.losses(b) for b in s] for s in sides.values()), strict=True)
        for o in one
    )
    yield Row(name, "losses, padded against packed", "error", off, 1e-4)
    if off > 1e-4:
        raise ValueError(f"{name}: padding changes the losses by {off:.2g}")
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(options.repeats + 1):
        for side, some in sides.items():
            begin = time.process_time()
            for batch in some:
                model.step(batch)
            if turn:
                times[side].append(time.process_time() - begin)
    packed, full = (statistics.median(times[s]) for s in sides)
    for side, took in (("packed", packed), ("padded", full)):
        yield Row(name, side, "ms", 1e3 * took / len(batches))
    units = [sum(s.length.sum() for s in _largest(b).values()) for b in batches]
    room = [sum(s.longest * len(s.length) for s in _largest(b).values()) for b in batches]
    yield Row(name, "padding", "share", float(1 - sum(units) / sum(room)))
    yield Row(name, "packed over padded", "times", full / packed, None if options.small else goal)


def _largest(batch: Batch) -> Any:
    """The streams of the view that is no blank."""
    return max(batch.views.values(), key=lambda v: sum(len(s.position) for s in v.streams.values())
               ).streams  # fmt: skip


def chunks(small: bool) -> Iterator[Row]:
    """Memory of the loss, in chunks and at once."""
    found = {}
    for what, held in (("in chunks", 2**12 if small else 2**25), ("at once", 1 << 62)):
        if small:  # starting processes would take longer than all the rest
            found[what] = vocabulary(held, small)
        else:
            command = [sys.executable, __file__, "--held", str(held)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[what] = json.loads(done.stdout)
        yield Row("vocabulary loss", f"memory added, {what}", "GB", found[what]["bytes"] / 1e9)
    one, other = (x["loss"] for x in found.values())
    yield Row("vocabulary loss", "in chunks against at once", "error", abs(one / other - 1), 1e-5)
    less, more = (x["bytes"] for x in found.values())
    yield Row("vocabulary loss", "at once over in chunks", "times", more / max(less, 1))


def vocabulary(held: int, small: bool) -> dict[str, float]:
    """Bytes that forward and backward of one loss add to this process at their peak."""
    count, width, size = (64, 16, 500) if small else (1024, 128, 250_002)
    torch.manual_seed(0)
    x = torch.randn(count, width, requires_grad=True)
    matrix = (torch.randn(size, width) * 0.02).requires_grad_()
    bias = torch.zeros(size, requires_grad=True)
    value, weight = torch.randint(size, (count,)), torch.ones(count)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    loss = decode_loss(x, matrix, bias, value, weight, "cross_entropy", held)["loss"] / count
    loss.backward()
    return {"loss": float(loss.detach()), "bytes": resident("VmHWM") - before}


if __name__ == "__main__":
    main()
