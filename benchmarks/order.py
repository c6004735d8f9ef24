"""How well examples are shuffled, and what their order costs: ``python benchmarks/order.py``.

Shuffling is judged at its worst: every shard holds one class alone. A batch of a perfect shuffle
still differs from the true shares of the classes, by chance; told is how much farther batches of
this order are from them, and how many shards meet in one. ``together`` readers share a micro-batch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.data_pipelines.order import TOGETHER, Order, divide
from crossloom.units import keyed_rng

SHARDS, EACH = 500, 2000
BATCH, MICRO = 2048, 64


def main() -> None:
    """Measure, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rows = [
        quality(readers, window, together)
        for readers in (8, 64, 256)
        for window in (1, 4096)
        for together in (1, min(readers, TOGETHER))
    ]
    rows += [quality_of_few(each) for each in (20, 200)]
    rows.append(size(shards=1_000_000, each=10_000, ranks=1024, readers=16384, window=1024))
    for row in rows:
        print(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def quality(readers: int, window: int, together: int) -> dict[str, Any]:
    """Batches and micro-batches of the order beside those of a perfect shuffle."""
    order = Order([EACH] * SHARDS, seed=0, readers=readers, window=window, together=together)
    return {"readers": readers, "window": window, "together": together, **_compare(order)}


def quality_of_few(each: int) -> dict[str, Any]:
    """The same of a small source, whose readers follow from its size."""
    readers, together = divide(each * SHARDS, 64, 4096, MICRO)
    order = Order([each] * SHARDS, seed=0, readers=readers, together=together)
    chosen = {"readers": readers, "window": 4096, "together": together}
    return {"examples": each * SHARDS, **chosen, **_compare(order, 4)}


def _compare(order: Order, batches: int = 40) -> dict[str, Any]:
    micro = batches * BATCH // MICRO
    ours = np.array([[p.shard for p in order.micro(n, MICRO)] for n in range(micro)])
    everything = np.repeat(np.arange(SHARDS), order.counts)
    perfect = keyed_rng("perfect").permutation(everything)[: ours.size]
    row: dict[str, Any] = {}
    for name, size in (("batch", BATCH), ("micro-batch", MICRO)):
        one, best = ours.reshape(-1, size), perfect.reshape(-1, size)
        row[f"shards in a {name}"] = float(np.mean([len(np.unique(b)) for b in one]))
        row[f"of a perfect {name}"] = float(np.mean([len(np.unique(b)) for b in best]))
        row[f"ratio of a {name}"] = _distance(one) / _distance(best)
    return row


def _distance(batches: np.ndarray) -> float:
    """Mean total variation between the classes of a batch and their true shares."""
    shares = [np.bincount(b, minlength=SHARDS) / len(b) for b in batches]
    return float(np.mean([np.abs(s - 1 / SHARDS).sum() / 2 for s in shares]))


def size(shards: int, each: int, ranks: int, readers: int, window: int) -> dict[str, Any]:
    """What a very large set costs: set-up, one rank's step far from the start, all ranks' step."""
    begin = time.perf_counter()
    order = Order(np.full(shards, each), seed=0, readers=readers, window=window, together=TOGETHER)
    far = 10_000_000 * ranks
    order.micro(far, 32)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    order.micro(far + ranks, 32)
    one = time.perf_counter() - begin
    begin = time.perf_counter()
    for rank in range(ranks):
        order.micro(far + 2 * ranks + rank, 32)
    return {
        "shards": shards, "examples": shards * each, "ranks": ranks,
        "readers": readers, "window": window,
        "first answer, s": first, "a rank's step, s": one,
        "all ranks' step, s": time.perf_counter() - begin,
    }  # fmt: skip


if __name__ == "__main__":
    main()
