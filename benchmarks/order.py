"""How well examples are shuffled, and what their order costs: ``python benchmarks/order.py``.

Shuffling is judged at its worst: every shard holds one class alone. A batch of a perfect shuffle
still differs from the true shares of the classes, by chance; told is how much farther batches of
this order are from them, and how many shards meet in one. ``together`` readers share a micro-batch.
Times are of the processor: one thread's arithmetic and file system calls.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.data_pipelines import index, summary
from crossloom.data_pipelines.order import TOGETHER, Order, divide
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.shards import load_index, open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.summary import Listed
from crossloom.data_pipelines.write import ShardWriter
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
    rows.append(quality(256, 1024, TOGETHER))
    rows += [quality_of_few(each) for each in (20, 200)]
    rows.append(size(shards=1_000_000, each=10_000, ranks=1024, readers=16384, window=1024))
    rows.append(start(shards=10_000, each=10_000))
    rows.append(visit(samples=10_000))
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
    begin = time.process_time()
    order = Order(np.full(shards, each), seed=0, readers=readers, window=window, together=TOGETHER)
    far = 10_000_000 * ranks
    order.micro(far, 32)
    first = time.process_time() - begin
    begin = time.process_time()
    order.micro(far + ranks, 32)
    one = time.process_time() - begin
    begin = time.process_time()
    for rank in range(ranks):
        order.micro(far + 2 * ranks + rank, 32)
    return {
        "shards": shards, "examples": shards * each, "ranks": ranks,
        "readers": readers, "window": window,
        "first answer, s": first, "a rank's step, s": one,
        "all ranks' step, s": time.process_time() - begin,
    }  # fmt: skip


def start(shards: int, each: int) -> dict[str, Any]:
    """Opening a set by its summary: tars of one sample under many names, said to hold more."""
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder), "a") as writer:
            writer.write("a", {"txt": "x"})
        first = Path(folder) / "a-000000.tar"
        known = load_index(first).totals
        for number in range(1, shards):
            os.link(first, Path(folder) / f"a-{number:06d}.tar")
        items = {"texts.en": 5 * each, "texts.de": 5 * each, "questions": 3 * each}
        row = replace(known, listed=Listed(each, items, dict.fromkeys(items, each)))
        summary.add(folder, {p.name: row for p in Path(folder).glob("*.tar")})
        size = (Path(folder) / summary.NAME).stat().st_size
        begin = time.process_time()
        source = Source("a", open_shards(folder), Texts())
        took = time.process_time() - begin
        tracemalloc.start()
        source = Source("a", open_shards(folder), Texts())
        memory, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {
        "shards": shards, "samples": len(source), "start, s": took,
        "summary, bytes a shard": size / shards, "memory, bytes a shard": memory / shards,
        "memory at most, bytes a shard": most / shards,
    }  # fmt: skip


def visit(samples: int) -> dict[str, Any]:
    """Reading the index of a shard when its first sample is due."""
    rows = [
        (f"{n:09d}", {"jpg": (n * 28_000, 25_000, n), "json": (n * 28_000 + 26_000, 200, n)},
         {"texts.en": 5}, None)
        for n in range(samples)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "a.index.json"
        index.save(place, index.Index(samples * 28_000, index.Entries(rows)))
        data = place.read_bytes()
    begin = time.process_time()
    index.parse(data)
    took = time.process_time() - begin
    tracemalloc.start()
    found = index.parse(data)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    begin = time.process_time()
    for number in range(samples):
        found.entries[number]
    return {
        "samples": samples, "index, bytes a sample": len(data) / samples, "read, s": took,
        "memory, bytes a sample": memory / samples,
        "a sample found, s": (time.process_time() - begin) / samples,
    }  # fmt: skip


if __name__ == "__main__":
    main()
