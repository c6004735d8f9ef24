"""What word-region alignment adds to a step of UNITER's matching: ``python benchmarks/align.py``.

Twelve layers of width 768 over words and 36 regions, matching, forward and backward, with and
without the transport of fifty rounds beside it, in turn. Embeddings and the optimiser's step, which
would only make the share smaller, are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import wait

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.models.fusion import Fusion
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itm, wra
from crossloom.units import keyed_rng

STREAMS, WIDTH, REGIONS = ("text", "image"), 768, 36


def main() -> None:
    """Measure, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rows = [measure(n, options.repeats, options.device) for n in options.examples]
    for row in rows:
        print(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(examples: int, repeats: int, device: str) -> dict[str, Any]:
    """Median seconds of a step without and with alignment, and what it adds."""
    torch.manual_seed(0)
    fusion = Fusion(single_stream(STREAMS, width=WIDTH, layers=12, heads=12, dropout=0.0))
    widths = dict.fromkeys(STREAMS, WIDTH)
    match, align = (spec.head({}, widths).to(device) for spec in (itm(), wra()))
    fusion.to(device)
    rng = keyed_rng("align")
    view = shown(rng.integers(12, 29, examples), device)
    sign = torch.from_numpy(rng.integers(0, 2, examples)).to(device)
    aim = AimBatch(
        index=torch.arange(examples, device=device),
        value=sign,
        weight=torch.ones(examples, device=device),
    )
    signs = AimBatch(index=aim.index, value=sign * 2.0 - 1, weight=aim.weight)
    states = {
        s: torch.randn(len(x.position), WIDTH, device=device, requires_grad=True)
        for s, x in view.streams.items()
    }

    # on a CPU the time that this process was given: others may be at work beside it
    clock = time.perf_counter if device == "cuda" else time.process_time

    def step(aligned: bool) -> float:
        wait(device)
        begin = clock()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            encoded = Encoded(view, fusion(states, view), {})
            loss = match(encoded, aim)["loss"]
            if aligned:
                loss = loss + 0.1 * align(encoded, signs)["loss"]
        loss.backward()
        wait(device)
        return clock() - begin

    def alone() -> float:
        """Alignment's own share, forward and backward, free of the noise of what it is added to."""
        leaves = {s: x.detach().requires_grad_() for s, x in states.items()}
        wait(device)
        begin = clock()
        align(Encoded(view, leaves, {}), signs)["loss"].backward()
        wait(device)
        return clock() - begin

    for aligned in (False, True):
        step(aligned)
    alone()
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for aligned, some in times.items():
            some.append(step(aligned))
    without, with_it = (statistics.median(x) for x in times.values())
    own = statistics.median(alone() for _ in range(4 * repeats))
    return {
        "device": device, "threads": torch.get_num_threads(), "examples": examples,
        "units": sum(len(x.position) for x in view.streams.values()),
        "without, s": without, "with, s": with_it, "added share": with_it / without - 1,
        "alone, s": own, "alone share": own / without,
    }  # fmt: skip


def shown(words: np.ndarray, device: str) -> ViewBatch:
    """Examples with so many words each, and the same number of regions."""
    lengths = {"text": words, "image": np.full(len(words), REGIONS)}
    streams = {
        s: Stream.build({}, {}, np.zeros(n.sum(), np.int64), np.zeros(n.sum(), bool), n)
        for s, n in lengths.items()
    }
    return ViewBatch(streams=streams).to(device)


if __name__ == "__main__":
    main()
