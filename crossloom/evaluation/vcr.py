"""Questions on scenes of films: which of four answers is right, and which of four reasons?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from crossloom.data_pipelines.choices import Choices, What
from crossloom.data_pipelines.links import Links
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.predict import gather, predict
from crossloom.evaluation.task import (
    Budget,
    Result,
    Task,
    Watch,
    other_stream,
    pooling,
    split_of,
    trained,
)
from crossloom.modalities.text import Text
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.objectives.rank import Rank
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError

CHOICES = 4
#: The streams of the texts with the second choice, the third and the fourth.
OTHERS = tuple(f"choice{n}" for n in range(1, CHOICES))

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Vcr(Task):
    """VCR (Zellers et al. 2019): Q→A, QA→R, and Q→AR, where both must be right.

    Each choice is read after the question, or after question and right answer, by the same weights;
    its score is the log-odds of a match. One model learns both, as in ViLBERT and UNITER, or each
    its own (``what``), as in VL-BERT.

    Metrics: ``answer``, ``rationale`` (reasons after the right answer), ``both``: shares right of
    the questions whose answers are known, ``by_split`` of the last of these that was asked, and
    ``questions``. Hands in the leaderboard's table, ``annot_id,answer_0,…``: probabilities of the
    answers, and of the reasons after each answer, of what the model was trained on.
    """

    kind: ClassVar[str] = "vcr"
    headlines: ClassVar[Mapping[str, str]] = {"answer": "Q→A", "rationale": "QA→R", "both": "Q→AR"}
    test: str = "dev-*.tar"
    """The published validation set; the test's labels are kept back."""
    what: tuple[What, ...] = ("answer", "rationale")
    """What is trained and scored."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """One of four (ViLBERT, UNITER, VL-BERT), or each by itself (B2T2)."""
    image: str = ""
    """The stream beside the text; found when empty."""
    languages: tuple[str, ...] = ()
    """Languages of the texts, one drawn for each example; empty for all."""
    links: Links | None = None
    """Names of objects refer to regions: for texts that show them on their words (B2T2)."""
    pooled: tuple[str, ...] = ()
    """Streams whose summaries are scored; as the recipe's matching head when empty."""
    limit: int = 0
    """Most units of question and choice together, of the texts of all choices; 0 for as many as the
    run's texts have."""
    budget: Budget = field(default_factory=lambda: Budget(steps=5000, optim=Optim(rate=2e-5)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image, and the texts of the other choices where the recipe has them."""
        both = (self.text, self.image or other_stream(recipe, self.text))
        return (*both, *(s for s in OTHERS if s in recipe.modalities))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """The right choice above the others."""
        streams = self.streams(recipe)[:2]
        asked = {"pooled": self.pooled, "pool": self.pool}
        return {
            self.kind: Rank(
                view=View(name=self.kind, streams=streams, twice={self.text: OTHERS}),
                label="choice",
                form=self.loss,
                **pooling(recipe, streams, self.text) | {k: v for k, v in asked.items() if v},
            )
        }

    def reader(self) -> Choices:
        """What fine-tuning reads: questions, and questions with their right answer."""
        return Choices(what=self.what, count=CHOICES, languages=self.languages, links=self.links)

    def component(self, recipe: Recipe) -> Component:
        """All questions of the training shards."""
        return Component(shards=self.train, reader=self.reader(), objectives=(self.kind,))

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """The fine-tuning recipe, with streams for the other choices, tied to the text.

        Raises:
            RecipeError: the stream is no text.
        """
        text = base.modalities[self.text]
        if not isinstance(text, Text):
            raise RecipeError(f"{base.name}: {self.text!r} is of kind {text.kind!r}, not a text")
        text = replace(text, limit=self.limit or text.limit)
        others = {name: replace(text, field=name) for name in OTHERS}
        more = replace(
            base,
            modalities={**base.modalities, self.text: text, **others},
            tied={**base.tied, **dict.fromkeys(OTHERS, self.text)},
        )
        return super().recipe(more, start)

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Chances of the choices of every question of the test shards."""
        objective = trained(recipe, self.kind, Rank)
        reader = replace(self.reader(), each=True, unanswered=True)
        component = replace(self.component(recipe), reader=reader)
        source = self.source(recipe, component, self.test)
        defects: list[Defect] = []
        # each example is four rows
        size, names = 128 // CHOICES, (self.kind,)
        found = predict(model, recipe, source, names, size=size, progress=watch, defects=defects)
        scores, labels, keys = gather(found, self.kind)
        chances = scores.softmax(1) if objective.form == "softmax" else scores.sigmoid()
        records = told(zip(keys, labels, chances, strict=True), len(reader.asked))
        whole = [r for r in records if r["chances"].keys() == set(columns(self.what))]
        metrics = summary(records, self.what)
        return Result(metrics, records, defects, {"vcr.submission.csv": table(whole, self.what)})


def told(found: Iterable[tuple[str, Mapping[str, Any], Tensor]], items: int) -> list[Record]:
    """A record for each question, of all that was asked of it.

    Args:
        found: key, labels and chances ``[4]`` of each example.
        items: examples of each question.
    """
    records: dict[tuple[str, int], Record] = {}
    for key, label, chance in found:
        sample, _, item = key.partition("#")
        place = sample, int(item or 0) // items
        empty: Record = {
            "key": key,
            "id": label["id"],
            "split": split_of(key),
            "language": label["language"],
            "question": label["question"],
            "chances": {},
            "score": None,
        }
        record = records.setdefault(place, empty)
        what, after = label["what"], label["after"]
        record["chances"][_name(what, after)] = chance.tolist()
        # reasons are for the right answer; those after another are handed in, and not scored
        if what == "answer" or after == label["answer"]:
            best = int(chance.argmax())
            known = label["choice"] is not None
            record[what] = {
                "choices": label["choices"],
                "predicted": best,
                "right": label["choice"],
                "score": float(best == label["choice"]) if known else None,
            }
            scored = [record[w]["score"] for w in ("answer", "rationale") if w in record]
            record["score"] = None if None in scored else min(scored)
    return list(records.values())


def summary(records: Sequence[Record], what: Sequence[What]) -> dict[str, Any]:
    """Shares right, of the questions all of which is known and was told."""
    known = [r for r in records if r["score"] is not None and all(w in r for w in what)]
    metrics: dict[str, Any] = {}
    if known:
        for one in what:
            metrics[one] = sum(r[one]["score"] for r in known) / len(known)
        scores = [r["score"] for r in known]
        if len(what) > 1:
            metrics["both"] = sum(scores) / len(scores)
        metrics["by_split"] = mean_by(scores, [r["split"] for r in known])
    return {**metrics, "questions": len(records)}


def _name(what: What, after: int) -> str:
    return what if what == "answer" else f"rationale_conditioned_on_a{after}"


def columns(what: Sequence[What]) -> list[str]:
    """The leaderboard's groups of four columns (rowanz/r2c, ``models/eval_for_leaderboard.py``)."""
    every: tuple[What, ...] = ("answer", "rationale")
    after = {"answer": (-1,), "rationale": range(CHOICES)}
    return [_name(w, n) for w in every if w in what for n in after[w]]


def table(records: Sequence[Record], what: Sequence[What]) -> str:
    """What is handed in: a line for each question, its chances one after another."""
    groups = columns(what)
    lines = [["annot_id", *(f"{group}_{n}" for group in groups for n in range(CHOICES))]]
    for record in records:
        chances = (x for group in groups for x in record["chances"][group])
        lines.append([record["id"], *(f"{x:.6g}" for x in chances)])
    return "".join(",".join(line) + "\n" for line in lines)
