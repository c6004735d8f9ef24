"""Visual question answering as classification over an answer vocabulary with soft scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.reader import Reader
from crossloom.evaluation.choice import OfOnePicture, Record
from crossloom.evaluation.task import Budget
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe, RecipeError


@dataclass(frozen=True, kw_only=True)
class Vqa(OfOnePicture):
    """VQA v2: binary cross entropy against soft scores; the score of the most likely answer.

    Goyal et al. 2017; trained as Anderson et al. 2018 do. The score is VQA v2's, averaged.
    Metrics: ``accuracy``, ``by_kind``, ``by_language``, ``by_split`` (0..1), ``questions``.
    Hands in ``[{"question_id": 1, "answer": "red"}, …]`` (visualqa.org/challenge).
    """

    kind: ClassVar[str] = "vqa"
    headlines: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}
    label: ClassVar[str] = "answers"
    form: ClassVar[Literal["softmax", "sigmoid"]] = "sigmoid"
    counted: ClassVar[str] = "questions"
    answers: str = "answers.txt"
    """File below ``data`` with one answer a line."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=1e-4)))

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """The answers of the vocabulary.

        Raises:
            RecipeError: there is none.
        """
        path = Path(recipe.data) / self.answers
        if not path.is_file():
            raise RecipeError(f"{path}: no answer vocabulary; `crossloom shards make` writes one")
        return tuple(a for a in path.read_text("utf-8").split("\n") if a)

    def reader(self) -> Reader:
        """Every question."""
        return Questions(languages=self.languages)

    def tested_with(self, recipe: Recipe) -> Reader:
        """Every question in each language tested, also those whose answers are kept back."""
        return Questions(
            languages=self.tested or self.languages,
            all_languages=bool(self.tested),
            unanswered=True,
        )

    def told(self, label: Mapping[str, Any]) -> Record:
        """Question, its kind, and the scored answers."""
        kind = label["kind"] or "any"
        return {"question": label["text"], "kind": kind, "answers": label["answers"]}

    def files(self, records: Sequence[Record]) -> dict[str, str]:
        """The list that the evaluation server takes."""
        rows = [{"question_id": number(r["id"]), "answer": r["predicted"]} for r in records]
        return {f"{self.kind}.submission.json": json.dumps(rows, ensure_ascii=False)}


@dataclass(frozen=True, kw_only=True)
class Gqa(Vqa):
    """GQA (Hudson and Manning 2019): the answers of the training questions; accuracy.

    Trained as LXMERT and 12-in-1 do, as VQA; ``kind`` is the structural type. Hands in
    ``[{"questionId": "1", "prediction": "yes"}, …]`` (cs.stanford.edu/people/dorarad/gqa).
    """

    kind: ClassVar[str] = "gqa"

    def files(self, records: Sequence[Record]) -> dict[str, str]:
        """The list that the official script reads."""
        rows = [{"questionId": bare(r["id"]), "prediction": r["predicted"]} for r in records]
        return {"gqa.submission.json": json.dumps(rows, ensure_ascii=False)}


def bare(name: str) -> str:
    """The benchmark's own name of a question: ``12`` of ``gqa/12``."""
    return name.rpartition("/")[2]


def number(name: str) -> int | str:
    """The same as a number, where it is one."""
    return int(bare(name)) if bare(name).isdigit() else bare(name)
