"""Sentence retrieval on real text: ``python benchmarks/sentences.py --shards shards``.

MMLM alone, with TLM, and with XLCO beside both (``sentences-mmlm``, ``sentences``,
``sentences-xlco``), each for ``--seconds`` on one data set:

- ``multi30k``: English, German, French, Czech; searched on ``test`` (test_2016, 1,000 sentences),
  six pairs both ways; the layer is chosen on ``dev``.
- ``tatoeba``: English with every language of which there are ``--least`` pairs in all; searched on
  the tenth held back, both ways; the last layer.

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
from dataclasses import replace
from pathlib import Path

from zoo import steps_within

from crossloom.data_pipelines.shards import open_shards
from crossloom.display import counting, training
from crossloom.evaluation.finetune import evaluate
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import Recipe, load_recipe
from crossloom.training.run import WEIGHTS

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
    parser.add_argument("--out", type=Path, default=Path("runs/real-sentences"))
    parser.add_argument("--seconds", type=float, default=1080, help="of training each")
    parser.add_argument("--least", type=int, default=1000, help="pairs of a language in tatoeba")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, object]]] = {}
    for name in options.sets:
        data = (options.shards / name).resolve()
        chosen = MULTI30K if name == "multi30k" else frequent(data, options.least)
        settings = [f"languages=[{', '.join(chosen)}]"]
        settings += [] if name == "multi30k" else ["pivot=en", "layer=-1"]
        found[name] = {}
        for row in ROWS:
            run = options.out / f"{name}-{row}"
            pretrain(replace(on(load_recipe(row), chosen), data=str(data)), run, options.seconds)
            result = run / "results" / f"{TASK}.json"
            if not result.is_file():
                with counting(f"{run.name}: searching") as watch:
                    evaluate(TASK, run, start("cpu"), settings, watch=watch)
            found[name][row] = json.loads(result.read_text())["metrics"]
    print("| | " + " | ".join(f"{n}: accuracy@1" for n in found) + " |")
    print("|---|" + "---|" * len(found))
    for row, label in ROWS.items():
        cells = (f"{some[row]['accuracy']:.3f} (layer {some[row]['layer']})"
                 for some in found.values())  # fmt: skip
        print(f"| {label} | " + " | ".join(cells) + " |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def on(recipe: Recipe, languages: tuple[str, ...]) -> Recipe:
    """The recipe on one data set, whose training shards lie in its folder."""
    return replace(
        recipe,
        mixture={
            name: replace(
                part,
                shards="train-*.tar",
                reader=replace(part.reader, languages=languages),  # type: ignore[call-arg]
            )
            for name, part in recipe.mixture.items()
        },
    )


def pretrain(recipe: Recipe, run: Path, seconds: float) -> None:
    """Train for the budget, by the speed of a few steps."""
    if not (run / WEIGHTS).is_file():
        recipe = replace(recipe, steps=steps_within(recipe, seconds, run))
        with training(run.name) as display:
            train(recipe, run, start("cpu"), resume=True, display=display)


def frequent(data: Path, least: int) -> tuple[str, ...]:
    """English, and the languages with so many sentences in all splits."""
    total: Counter[str] = Counter()
    for shard in open_shards("{train,test}-*.tar", data):
        total.update(shard.totals.listed.having)
    codes = {k.removeprefix("texts."): n for k, n in total.items() if k.startswith("texts.")}
    return ("en", *sorted(k for k, n in codes.items() if n >= least and k != "en"))


if __name__ == "__main__":
    sys.exit(main())
