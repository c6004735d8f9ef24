"""A sentence about two pictures: true or false?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from crossloom.data_pipelines.annotated import Pairs
from crossloom.data_pipelines.reader import Reader
from crossloom.evaluation.choice import Choice, Record
from crossloom.evaluation.task import Budget, other_stream
from crossloom.models.plan import Attend, Feed, Layer, Plan
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe, RecipeError

LABELS = ("true", "false")


@dataclass(frozen=True, kw_only=True)
class Nlvr2(Choice):
    """NLVR2 (Suhr et al. 2019): accuracy, and consistency over the pictures of a sentence.

    ``pair``: the sentence is read with each picture by the same weights, the two summaries side by
    side by a classifier (ViLBERT, LXMERT, UNITER's "pair"); for any plan. ``triplet``: one sequence
    of the sentence and both pictures, the second with a learned vector added to its units
    (VisualBERT, UNITER's "triplet"); for plans whose streams share their weights.

    Metrics: ``accuracy``, ``consistency`` (share of the sentences that are judged right with all of
    their pictures; ``nlvr2/eval/metrics.py``; of several languages each sentence counts in each),
    ``by_language``, ``by_split``, ``pairs``. Hands in lines ``identifier,True``.
    """

    kind: ClassVar[str] = "nlvr2"
    headlines: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "consistency": "consistency",
    }
    shape: Literal["pair", "triplet"] = "pair"
    second: str = "second_image"
    """What the stream of the second picture is called."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=5e-5)))

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """True, false."""
        return LABELS

    def reader(self) -> Reader:
        """Every sentence."""
        return Pairs(languages=self.languages)

    def tested_with(self, recipe: Recipe) -> Reader:
        """Every sentence in each language tested."""
        return Pairs(languages=self.tested or self.languages, all_languages=bool(self.tested))

    def told(self, label: Mapping[str, Any]) -> Record:
        """Sentence and label."""
        return {k: label[k] for k in ("hypothesis", "label")}

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image, and the second image where the recipe has it."""
        both = (self.text, self.image or other_stream(recipe, self.text))
        return (*both, self.second) if self.second in recipe.modalities else both

    def view(self, recipe: Recipe) -> View:
        """Two rows, or one of three streams."""
        text, image, second = self.streams(recipe)
        if self.shape == "triplet":
            return View(name=self.kind, streams=(text, image, second))
        return View(name=self.kind, streams=(text, image), twice={image: second})

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """The fine-tuning recipe, with a stream for the second picture."""
        text, image = self.streams(base)[:2]
        plan = base.plan.restricted((text, image))
        if self.shape == "triplet":
            plan = beside(plan, image, self.second)
        modality = base.modalities[image]
        first, other = (
            (str(n) if modality.field == "image" else f"{n}.{modality.field}") for n in (0, 1)
        )
        modalities = {
            text: base.modalities[text],
            image: replace(modality, field=first),
            self.second: replace(modality, field=other),
        }
        with_both = replace(
            base,
            modalities=modalities,
            plan=plan,
            tied={self.second: image},
            marked=(self.second,) if self.shape == "triplet" else (),
        )
        return super().recipe(with_both, start)

    def metrics(self, records: Sequence[Record]) -> dict[str, Any]:
        """Consistency."""
        right: dict[tuple[str, str], bool] = {}
        for record in records:
            sentence = sentence_of(record["id"]), record["language"]
            right[sentence] = right.get(sentence, True) and record["score"] == 1
        return {"consistency": sum(right.values()) / len(right)}

    def files(self, records: Sequence[Record]) -> dict[str, str]:
        """The table that the official script reads."""
        lines = (f"{r['id']},{r['predicted'].capitalize()}\n" for r in records)
        return {"nlvr2.submission.csv": "".join(lines)}


def sentence_of(name: str) -> str:
    """An identifier without the number of its pair of pictures: equal for one sentence.

    >>> sentence_of("dev-850-1-0")
    'dev-850--0'
    """
    parts = name.split("-")
    return "-".join([*parts[:2], "", *parts[3:]])


def beside(plan: Plan, stream: str, other: str) -> Plan:
    """The plan with another stream that reads, and is read, wherever a stream does.

    Raises:
        RecipeError: streams have weights of their own; another's would be untrained.
    """

    def both(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(x for n in names for x in ((n, other) if n == stream else (n,)))

    def grown(block: Attend | Feed) -> Attend | Feed:
        names = block.streams if isinstance(block, Feed) else tuple(block.reads)
        if stream in names and not block.shared:
            raise RecipeError(
                "nlvr2: shape=triplet needs a plan whose streams share their weights (single "
                "stream); use shape=pair"
            )
        if isinstance(block, Feed):
            return replace(block, streams=both(block.streams))
        reads = {s: both(read) for s, read in block.reads.items()}
        reads |= {other: reads[stream]} if stream in reads else {}
        return replace(block, reads=reads, causal=both(block.causal))

    layers = tuple(Layer(blocks=tuple(map(grown, layer.blocks))) for layer in plan.layers)
    widths = {**plan.widths, other: plan.widths[stream]}
    return replace(plan, widths=widths, layers=layers)
