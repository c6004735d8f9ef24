"""Sentence retrieval on real text: ``python benchmarks/sentences.py --shards shards``.

MMLM alone, with TLM, and with XLCO beside both (``sentences-mmlm``, ``sentences``,
``sentences-xlco``), each for ``--seconds`` of one core's time on one data set, ``--cores`` of them
at once:

- ``multi30k``: English, German, French, Czech; searched on ``test`` (test_2016, 1,000 sentences),
  six pairs both ways; the layer is chosen on ``dev``.
- ``tatoeba``: English with all its languages; searched on the tenth held back, both ways, for each
  language of which there are ``--least`` pairs in all; the last layer.

The shards and the vocabulary come from::

    crossloom shards make multi30k multi30k --out shards/multi30k
    crossloom shards make tatoeba tatoeba --out shards/tatoeba
    crossloom tokenizer train --shards 'shards/multi30k/train-*.tar' --vocab 8000 \\
        --out shards/multi30k/tokenizer.model
    crossloom tokenizer train --shards 'shards/tatoeba/train-*.tar' --vocab 16000 \\
        --out shards/tatoeba/tokenizer.model

What is done already in ``--out`` is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from zoo import pretrain

from crossloom.data_pipelines.shards import open_shards
from crossloom.display import counting
from crossloom.evaluation.finetune import evaluate
from crossloom.training.environment import start
from crossloom.training.recipe import Recipe, load_recipe

ROWS = {
    "sentences-mmlm": "MMLM alone",
    "sentences": "+ TLM",
    "sentences-xlco": "+ XLCO",
}
TASK = "sentence-retrieval"
MULTI30K = ("en", "de", "fr", "cs")


def main() -> None:
    """Train and search what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--sets", nargs="*", default=["multi30k", "tatoeba"])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("runs/real-sentences"))
    parser.add_argument("--seconds", type=float, default=1080, help="of one core, to train each")
    parser.add_argument("--cores", type=int, default=2, help="runs at once")
    parser.add_argument("--least", type=int, default=1000, help="pairs of a language in tatoeba")
    parser.add_argument(
        "--json", type=Path, help="write the figures there; those of other sets are kept"
    )
    options = parser.parse_args()
    wanted = [(name, row) for name in options.sets for row in options.rows]
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in options.sets}
    with (
        ProcessPoolExecutor(options.cores, get_context("spawn")) as pool,
        counting("sentences: runs") as watch,
    ):
        jobs = {}
        for name, row in wanted:
            data, run = (options.shards / name).resolve(), options.out / f"{name}-{row}"
            chosen = MULTI30K if name == "multi30k" else frequent(data, options.least)
            jobs[pool.submit(search, row, data, chosen, run, options.seconds)] = name, row
        for done, job in enumerate(as_completed(jobs), 1):
            name, row = jobs[job]
            found[name][row] = job.result()
            watch(done, len(jobs))
    print("| | " + " | ".join(f"{n}: accuracy@1" for n in found) + " |")
    print("|---|" + "---|" * len(found))
    for row in options.rows:
        cells = (f"{some[row]['accuracy']:.3f} (layer {some[row]['layer']})"
                 for some in found.values())  # fmt: skip
        print(f"| {ROWS[row]} | " + " | ".join(cells) + " |")
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.is_file() else {}
        options.json.write_text(json.dumps(before | found, indent=1, ensure_ascii=False) + "\n")


def search(
    row: str, data: Path, languages: Sequence[str], run: Path, seconds: float
) -> dict[str, Any]:
    """Train a row on a data set, and search; on one core. Metrics of the search."""
    torch.set_num_threads(1)
    # tatoeba's shards mix pairs of all languages, and all are trained on
    read = languages if data.name == "multi30k" else ()
    pretrain(replace(on(load_recipe(row), read), data=str(data)), run, seconds)
    result = run / "results" / f"{TASK}.json"
    if not result.is_file():
        settings = [f"languages=[{', '.join(languages)}]"]
        settings += [] if data.name == "multi30k" else ["pivot=en", "layer=-1"]
        evaluate(TASK, run, start("cpu"), settings)
    return dict(json.loads(result.read_text())["metrics"])


def on(recipe: Recipe, languages: Sequence[str]) -> Recipe:
    """The recipe on one data set, whose training shards lie in its folder."""
    return replace(
        recipe,
        mixture={
            name: replace(
                part,
                shards="train-*.tar",
                reader=replace(part.reader, languages=tuple(languages)),  # type: ignore[call-arg]
            )
            for name, part in recipe.mixture.items()
        },
    )


def frequent(data: Path, least: int) -> tuple[str, ...]:
    """English, and the languages with so many sentences in all splits."""
    total: Counter[str] = Counter()
    for shard in open_shards("{train,test}-*.tar", data):
        total.update(shard.totals.listed.having)
    codes = {k.removeprefix("texts."): n for k, n in total.items() if k.startswith("texts.")}
    return ("en", *sorted(k for k, n in codes.items() if n >= least and k != "en"))


if __name__ == "__main__":
    sys.exit(main())
