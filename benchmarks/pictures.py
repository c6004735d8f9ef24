"""Real pictures and their texts: ``python benchmarks/pictures.py --shards shards``.

``systems``: UNITER, LXMERT, CLIP and ViLT in their small sizes, trained on coco, flickr8k and
storybooks in English, each for ``--seconds`` of one core's time. Texts and pictures held back are
then searched for each other, as the systems are (those without contrast score all pairs by
matching), and after ``--tuning`` seconds of fine-tuning on retrieval.

``languages``: UC2 in its small size on the same sets and multi30k's sentences, once with all their
languages, once with English alone; both are fine-tuned on retrieval likewise. Pages of stories held
back are searched with texts in each language.

UNITER, LXMERT, UC2 and one CLIP read the regions of ``grid_regions.py`` (``SET-grid``): what sees
is an image classifier with its weights, frozen. ViLT and another CLIP read pixels from fresh
weights, another UNITER the regions of a detector with fresh weights (``SET-regions``, source
``detect``).

What is done already in ``--out`` is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from zoo import SMALL, pretrain, steps_within

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.evaluation.finetune import evaluate, finetune, finetune_recipe, make_task
from crossloom.modalities.modality import Modality
from crossloom.modalities.patches import Patches
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.objectives.presets import mlm
from crossloom.training.environment import start
from crossloom.training.recipe import Component, Recipe, load_recipe, override

SETS = ("coco", "flickr8k", "storybooks")
#: What is held back: of coco there is no test split.
HELD = {"coco": "dev", "flickr8k": "test", "storybooks": "test"}
STORIES = ("storybooks-grid/dev-*.tar", "storybooks-grid/test-*.tar")
PHOTOGRAPHS = "flickr8k-grid/test-*.tar"
SPOKEN = (
    "en", "ar", "de", "es", "fa", "fr", "hi", "it", "ja", "ko", "nb", "pl", "pt", "ro", "sv", "sw",
    "tl", "tr", "uk", "ur", "vi", "zh",
)  # fmt: skip
TUNED = ("by=contrast", "examples=64", "optim.rate=5e-4", "workers=0", *SMALL)
TASK = "retrieval"
#: Regions read of each picture, the first ones (of the grid: all of it, nine of half its sides);
#: with all 35 a step takes three times as long.
REGIONS = 10


@dataclass(frozen=True)
class Seen:
    """How pictures are seen: of which shards, in what size."""

    suffix: str = ""  #: of the sets' folders
    features: int = 0  #: numbers of a region
    classes: int = 0  #: of regions, background included


GRID = Seen("-grid", 1280, 1001)
DETECTOR = Seen("-regions", 1024, 91)
PIXELS = Seen()

SYSTEMS: dict[str, tuple[str, Seen]] = {
    "UNITER, regions of the grid": ("uniter-tiny", GRID),
    "LXMERT, regions of the grid": ("lxmert-tiny", GRID),
    "CLIP, regions of the grid": ("clip-tiny", GRID),
    "ViLT, pixels": ("vilt-tiny", PIXELS),
    "CLIP, pixels": ("clip-tiny", PIXELS),
    "UNITER, regions of a fresh detector": ("uniter-tiny", DETECTOR),
}
ARMS: dict[str, tuple[str, ...]] = {"all": (), "en": ("en",)}  #: languages trained on; () for all


def main() -> None:
    """Train and search what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--parts", nargs="*", default=["systems", "languages"])
    parser.add_argument("--out", type=Path, default=Path("runs/pictures"))
    parser.add_argument("--seconds", type=float, default=90, help="of one core, to train each")
    parser.add_argument("--tuning", type=float, default=45, help="of one core, to fine-tune each")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, found = options.shards.resolve(), dict[str, Any]()
    for part in options.parts:
        make = systems if part == "systems" else in_languages
        found[part] = make(data, options.out, options.seconds, options.tuning)
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.is_file() else {}
        options.json.write_text(json.dumps(known | found, indent=1, ensure_ascii=False) + "\n")


# --- four systems -------------------------------------------------------------------------------


def systems(data: Path, out: Path, seconds: float, tuning: float) -> dict[str, Any]:
    """Train each system and search, with and without fine-tuning; prints the table."""
    found: dict[str, Any] = {}
    for title, (name, seen) in SYSTEMS.items():
        run = out / f"{name}{seen.suffix}"
        recipe = fitted(in_english(load_recipe(name)), seen, data)
        contrasts = any(o.kind == "contrast" for o in recipe.objectives.values())
        pretrain(recipe, run, seconds)
        held = [f"{part}{seen.suffix}/{split}-*.tar" for part, split in HELD.items()]
        test = [f"test={as_one(data, held, out / f'held{seen.suffix}')}"]
        found[title] = {"as trained": searched(run, "held", test)}
        if not contrasts:
            found[title]["fine-tuned"] = searched(
                tuned(run, tuning, ["languages=[en]", train_on(seen)]), "held", test
            )
    rows = {f"{t} ({how})": m for t, each in found.items() for how, m in each.items()}
    show("", rows, next(iter(found.values()))["as trained"]["queries"].values())
    return found


def in_english(recipe: Recipe) -> Recipe:
    """The recipe on English texts, without questions: hardly any of the pictures has some."""
    parts = {n: c for n, c in recipe.mixture.items() if isinstance(c.reader, Texts)}
    drawn = {o for c in parts.values() for o in c.objectives}
    return replace(
        recipe,
        mixture=parts,
        objectives={n: o for n, o in recipe.objectives.items() if n in drawn},
    )


def fitted(recipe: Recipe, seen: Seen, data: Path) -> Recipe:
    """The recipe with the sets' sizes, and shards where components name none of theirs."""
    modalities = {s: sized(m, seen) for s, m in recipe.modalities.items()}
    shards = tuple(f"{name}{seen.suffix}/train-*.tar" for name in SETS)
    mixture = {
        n: replace(c, shards=shards) if c.shards == "train-*.tar" else c
        for n, c in recipe.mixture.items()
    }
    return replace(recipe, data=str(data), modalities=modalities, mixture=mixture)


def sized(modality: Modality, seen: Seen) -> Modality:
    """A modality of a small recipe, with the sizes of what it reads here."""
    if isinstance(modality, Text):
        return replace(modality, limit=64, positions=65 if modality.positions else 0)
    if isinstance(modality, Regions):
        return replace(
            modality,
            features=seen.features,
            classes=seen.classes - (not modality.background),
            limit=REGIONS,
            names=replace(modality.names, names="imagenet.tsv") if modality.names else None,
        )
    if isinstance(modality, Patches) and seen.features:  # the first region is the whole picture
        return Regions(features=seen.features, classes=0, limit=REGIONS, dropout=0.0)
    return modality


# --- one system, many languages -----------------------------------------------------------------


def in_languages(data: Path, out: Path, seconds: float, tuning: float) -> dict[str, Any]:
    """Train UC2 with all languages and with English, search in each; prints the tables."""
    found: dict[str, Any] = {}
    for arm, languages in ARMS.items():
        run = out / f"uc2-tiny-{arm}"
        pretrain(fitted(uc2(languages), GRID, data), run, seconds)
        told = [f"languages=[{', '.join(languages)}]", train_on(GRID)]
        fine = tuned(run, tuning, told)
        stories = f"test={as_one(data, STORIES, out / 'stories')}"
        photographs = f"test={PHOTOGRAPHS}"
        spoken = f"tested=[{', '.join(SPOKEN)}]"
        # as the vectors rank: to match the best again in so many languages takes minutes
        found[arm] = {
            "stories, as trained": searched(run, "stories", [stories]),
            "stories": searched(fine, "stories", [stories, spoken, "rerank=0"]),
            "photographs": searched(
                fine, "photographs", [photographs, "tested=[en, de]", "rerank=0"]
            ),
        }
    for arm, each in found.items():
        for name, metrics in each.items():
            rows = {"mean": metrics, **metrics.get("languages", {})}
            if "non_english" in metrics:
                rows["mean but en"] = metrics["non_english"]
            show(f"{name}, trained with {arm}", rows, metrics["queries"].values())
    return found


def uc2(languages: Sequence[str]) -> Recipe:
    """UC2 in its small size on texts in these languages, all if there are none.

    Where there are several, translated pages are read in pairs, and sentences side by side. There
    is no dictionary: words of a pair are hidden each by itself. The classes' names are English, so
    MRTM asks beside English texts.
    """
    recipe = load_recipe("uc2-tiny")
    texts = Texts(languages=tuple(languages))
    books = "multi30k/train-*.tar", "storybooks/train-*.tar"
    sentences = texts if languages else Parallel()
    parts = {
        "itm": Component(shards="train-*.tar", reader=texts, objectives=("itm",), weight=3),
        "mlm": Component(shards="train-*.tar", reader=texts, objectives=("mlm",), weight=3),
        "mrtm": Component(shards="train-*.tar", reader=texts, objectives=("mrtm",), weight=1),
        "tlm": Component(shards=books, reader=sentences, objectives=("tlm",), weight=2),
    }
    if not languages:
        pairs = Parallel(pivot="en")
        parts["vtlm"] = Component(
            shards="storybooks-grid/train-*.tar", reader=pairs, objectives=("mlm",)
        )
    tlm = replace(mlm(("text",), name="tlm"), shares="mlm")
    kept = {name: recipe.objectives[name] for name in ("mlm", "mrtm", "itm")}
    return replace(recipe, mixture=parts, objectives={**kept, "tlm": tlm})


# --- both ---------------------------------------------------------------------------------------


def as_one(data: Path, patterns: Sequence[str], folder: Path) -> str:
    """Shards of several sets and splits as those of one, by links; which shards they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(path for p in patterns for path in sorted(data.glob(p))):
        link = folder / f"held-{number:06d}.tar"
        link.unlink(missing_ok=True)
        link.symlink_to(shard)
    return str(folder.resolve() / "held-*.tar")


def train_on(seen: Seen) -> str:
    """Shards for fine-tuning."""
    return "train={" + ",".join(f"{name}{seen.suffix}" for name in SETS) + "}/train-*.tar"


def tuned(run: Path, seconds: float, settings: Sequence[str]) -> Path:
    """Fine-tune on retrieval for so many seconds of one core, in a folder beside the run."""
    folder = run.with_name(f"{run.name}-tuned")
    if not (folder / "task.json").is_file():
        settings = [*TUNED, *settings]
        task, rest = make_task(TASK, settings)
        recipe = override(finetune_recipe(task, run, scratch=False), rest)
        steps = f"steps={steps_within(recipe, seconds, folder)}"
        finetune(TASK, run, folder, start("cpu"), [*settings, steps], resume=True)
    return folder


def searched(run: Path, name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Metrics of a search, and its ``queries`` by language, kept beside the run's own results."""
    file = run / f"{name}.json"
    if not file.is_file():
        result = evaluate(TASK, run, start("cpu"), settings)
        metrics = result.metrics | {"queries": Counter(r["language"] for r in result.records)}
        file.write_text(json.dumps(metrics, indent=1, ensure_ascii=False))
    return dict(json.loads(file.read_text()))


def show(title: str, rows: Mapping[str, Mapping[str, Any]], counts: Iterable[int]) -> None:
    """Print a table of both directions, and chance: a picture for each text of a language.

    Args:
        title: printed above.
        rows: metrics by what they are of.
        counts: of texts in each language, which are searched by themselves.
    """
    print(f"\n{title}\n" if title else "")
    print("| | text → image: R@1 | R@10 | median rank | image → text: R@1 | R@10 | median rank |")
    print("|---|---|---|---|---|---|---|")
    told = dict.fromkeys(("text_to_image", "image_to_text"), chance(counts))
    for name, row in {**rows, "chance": told}.items():
        cells = [
            f"{row[way][figure]:{form}}"
            for way in told
            for figure, form in (("r1", ".3f"), ("r10", ".3f"), ("median_rank", ".1f"))
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def chance(counts: Iterable[int]) -> dict[str, float]:
    """What ranking by chance gives: the mean over languages with so many pictures each."""
    each = list(counts)
    return {
        "r1": mean(1 / n for n in each),
        "r10": mean(min(1, 10 / n) for n in each),
        "median_rank": mean((n + 1) / 2 for n in each),
    }


if __name__ == "__main__":
    sys.exit(main())
