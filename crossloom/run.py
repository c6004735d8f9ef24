"""A trained run, opened for use: the same verbs as on the command line, in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossloom.data_pipelines.collate import Example
from crossloom.evaluation.draw import Drawing, draw
from crossloom.evaluation.features import features
from crossloom.evaluation.predict import evaluation_collator
from crossloom.evaluation.say import Sentence, opening, said_by, say
from crossloom.modalities.codebook import Codebook
from crossloom.modalities.codebook import load as load_codebook
from crossloom.modalities.codes import Codes
from crossloom.modalities.text import Text
from crossloom.models.generation import Search
from crossloom.models.model import CrossloomModel
from crossloom.objectives.view import View
from crossloom.training.recipe import Recipe
from crossloom.training.run import load_weights, make_model, open_run, start_from
from crossloom.units import Passage, keyed_rng


@dataclass(frozen=True)
class Loaded:
    """A model with its recipe."""

    recipe: Recipe
    model: CrossloomModel

    @torch.inference_mode()
    def encode(self, **streams: Sequence[Any]) -> dict[str, Tensor]:
        """Mean final state of each stream, ``[E, width]``, for examples given stream by stream.

        Args:
            streams: by stream name, one value for each example: text as ``str`` or
                ``(language, text)``; other modalities as the bytes of their shard member.

        Streams given together read each other as the plan says.
        """
        sizes = {len(values) for values in streams.values()}
        if len(sizes) != 1:
            raise ValueError(
                f"streams of different lengths: { {k: len(v) for k, v in streams.items()} }"
            )
        collator = evaluation_collator(self.recipe)
        examples = [
            self._example(n, {s: v[n] for s, v in streams.items()}) for n in range(sizes.pop())
        ]
        view = View(name="encode", streams=tuple(streams))
        batch = collator.show(view, examples)
        encoded = self.model.encode(batch.to(next(self.model.parameters()).device))
        return {s: encoded.mean(s).float().cpu() for s in streams}

    def features(self, objective: str, stream: str, values: Sequence[Any]) -> Tensor:
        """Vectors ``[E, dim]`` of one stream, as an objective contrasts or regresses them.

        Args:
            objective: one that does.
            stream: one of its streams.
            values: one for each example, as for :meth:`encode`.

        Raises:
            ValueError: the objective makes no vectors of this stream.
        """
        examples = [self._example(n, {stream: v}) for n, v in enumerate(values)]
        return features(self.model, self.recipe, objective, stream, examples)

    def say(
        self,
        objective: str,
        search: Search | None = None,
        *,
        language: str = "",
        **streams: Sequence[Any],
    ) -> list[list[Sentence]]:
        """What an objective says of examples: captions of pictures, translations.

        Args:
            objective: one that generates, or fills in hidden units of a stream read causally.
            search: greedy when None.
            language: of what is said, where the text has tokens or embeddings of languages.
            streams: the other streams of the objective's view, as for :meth:`encode`.

        Returns:
            For each example its best sentences, best first.

        Raises:
            ValueError: the objective says nothing, or streams are missing.
        """
        stream, text = said_by(self.model, self.recipe, objective, Text)
        examples = self._needed(objective, stream, streams)
        first = text.blank()
        if language:
            passage = (Passage(language, "a"),)
            first = opening(text.decode({text.field: passage}, keyed_rng("say")))
        examples = [replace(e, units={**e.units, stream: first}) for e in examples]
        return say(self.model, self.recipe, objective, examples, search)

    def draw(
        self,
        objective: str,
        search: Search | None = None,
        *,
        codebook: str | Path | Codebook = "",
        given: Sequence[Sequence[int]] | None = None,
        **streams: Sequence[Any],
    ) -> list[list[Drawing]]:
        """Pictures that an objective says code by code, of captions.

        Args:
            objective: one that generates codes.
            search: greedy when None; ``Search(temperature=1.0, top_p=0.9, best=4)`` draws four.
            codebook: what the codes look like (``codebook.npy`` of ``shards make codes``); without
                it there are codes alone.
            given: the first codes of each picture, equally many; none when None.
            streams: the other streams of the objective's view, as for :meth:`encode`.

        Returns:
            For each example its pictures, the likeliest first.

        Raises:
            ValueError: the objective says no codes, streams are missing, or what is given does not
                fit.
        """
        stream, _ = said_by(self.model, self.recipe, objective, Codes)
        examples = self._needed(objective, stream, streams)
        book = codebook if isinstance(codebook, Codebook) else None
        if book is None and codebook:
            book = load_codebook(Path(str(codebook)))
        return draw(
            self.model, self.recipe, objective, examples, search, given=given, codebook=book
        )

    def _needed(
        self, objective: str, stream: str, streams: Mapping[str, Sequence[Any]]
    ) -> list[Example]:
        """Examples of all streams that an objective reads to say one."""
        needed = set(self.recipe.objectives[objective].view.streams) - {stream}
        if needed != set(streams) or len({len(v) for v in streams.values()}) != 1:
            raise ValueError(
                f"{objective!r} needs values for {', '.join(sorted(needed))}, alike many"
            )
        count = len(next(iter(streams.values())))
        return [self._example(n, {s: v[n] for s, v in streams.items()}) for n in range(count)]

    def _example(self, number: int, values: Mapping[str, Any]) -> Example:
        units = {}
        for stream, value in values.items():
            modality = self.recipe.modalities[stream].steady()
            if isinstance(value, str):
                value = (Passage("", value),)
            elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
                value = (Passage(*value),)
            units[stream] = modality.decode({modality.field: value}, keyed_rng("encode", number))
        return Example(key=str(number), sample=str(number), epoch=0, units=units, labels={})


def load(run: str | Path, device: str = "cpu") -> Loaded:
    """Open a run directory.

    Raises:
        RecipeError: it is none, or holds no weights.
    """
    recipe = open_run(run)
    model = make_model(recipe)
    start_from(model, load_weights(run)[0])
    return Loaded(recipe, model.to(device).eval())
