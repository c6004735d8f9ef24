"""Batches of made-up units, and models that step on them, for benchmarks without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossloom.batch import Batch, Stream, pick
from crossloom.data_pipelines.collate import Collator, Example
from crossloom.modalities.modality import Modality
from crossloom.modalities.text import Text
from crossloom.models import flops
from crossloom.training.engine import Engine
from crossloom.training.environment import Environment, peak
from crossloom.training.recipe import Recipe
from crossloom.training.run import make_model
from crossloom.units import Array, Units, make_units


@dataclass(frozen=True, kw_only=True)
class Ids(Text):
    """Text whose ids are made up, so that its vocabulary is not needed."""

    kind = "ids"

    @property
    def mask(self) -> int:
        """The id shown where a unit is hidden."""
        return self._mask()

    def blank(self) -> Units:
        """One unit, id 0."""
        one = np.zeros(1, np.int64)
        segment = {"segment": one} if self.segments > 1 else {}
        return make_units({"token": one, **segment}, targets={"token": one - 1})

    def substitute(
        self, units: Units, fate: Array, rng: np.random.Generator
    ) -> Mapping[str, Array]:
        """Nothing: a hidden unit's id is not looked at, and a swapped one shows as good as any."""
        return units.content


def vocabularyless(recipe: Recipe) -> Recipe:
    """The recipe with made-up ids for its texts, and without dropout."""

    def changed(modality: Modality) -> Modality:
        if isinstance(modality, Text):
            values = {f.name: getattr(modality, f.name) for f in fields(modality)}
            return Ids(**{**values, "dropout": 0.0})
        if hasattr(modality, "dropout"):
            return replace(modality, dropout=0.0)  # type: ignore[call-arg]
        return modality

    modalities = {s: changed(m) for s, m in recipe.modalities.items()}
    return replace(recipe, modalities=modalities, plan=replace(recipe.plan, dropout=0.0))


def words(rng: np.random.Generator, length: int, text: Text) -> Units:
    """A text of so many random ids; the first and the last are never hidden."""
    token = rng.integers(5, text.size - 2, length)
    maskable = (np.arange(length) > 0) & (np.arange(length) < length - 1)
    segment = {"segment": np.zeros(length, np.int64)} if text.segments > 1 else {}
    return make_units({"token": token, **segment}, targets={"token": token}, maskable=maskable)


def regions(rng: np.random.Generator, count: int, kind: Any) -> Units:
    """Random regions of a detector, with all that may be asked of them."""
    feature = rng.random((count, kind.features), np.float32)
    trust = rng.random(count).astype(np.float32)
    targets: dict[str, Array] = {"feature": feature}
    for name, size in (("class", kind.classes), ("attribute", kind.attributes)):
        if size:
            targets |= {name: rng.integers(0, size, count), f"{name}.trust": trust}
    if kind.classes:
        chances = rng.random((count, kind.classes), np.float32)
        targets["classes"] = chances / chances.sum(1, keepdims=True)
    content = {"feature": feature, "box": rng.random((count, kind.box), np.float32)}
    maskable = np.arange(count) > 0 if kind.overall else np.ones(count, bool)
    return make_units(content, targets=targets, maskable=maskable)


def collated(
    recipe: Recipe, examples: Sequence[Mapping[str, Units]], drawn: Sequence[str] = ()
) -> Batch:
    """A batch of the drawn objectives (all, if none is named), as data workers make it."""
    made = [
        Example(key=str(n), sample=str(n), epoch=0, units=units, labels={})
        for n, units in enumerate(examples)
    ]
    collator = Collator(recipe.modalities, recipe.objectives, recipe.seed)
    return collator.batch(made, tuple(drawn) or tuple(recipe.objectives), len(made))


def padded(batch: Batch, recipe: Recipe) -> Batch:
    """The same batch with every stream filled up to its longest example; nothing is read there."""
    there = batch.to("cpu")
    views, places = {}, {}
    for name, view in there.views.items():
        streams: dict[str, Stream] = {}
        for stream, units in view.streams.items():
            order = torch.arange(len(units.length))
            room, index = pick(units, order)
            content = {k: v[index] for k, v in units.content.items()}
            streams[stream] = replace(room, content=content, whole=units.whole)
            within = torch.arange(len(units.position)) - units.start[units.example]
            places[name, stream] = units.example * units.longest + within
        views[name] = replace(view, streams=streams)
    aims = {}
    for name, objective in recipe.objectives.items():
        aim, scored = there.aims[name], objective.scored
        index = places[objective.view.name, scored][aim.index] if scored else aim.index
        aims[name] = replace(aim, index=index)
    return replace(batch, views=views, aims=aims)


def rectangle(values: Any, stream: Any, fill: float = 0) -> Tensor:
    """Values of a stream's units, ``[N, …]``, as other libraries want them: ``[E, L, …]``."""
    values = np.asarray(values)
    out = np.full((len(stream.length), stream.longest, *values.shape[1:]), fill, values.dtype)
    out[real(stream)] = values
    return torch.from_numpy(out)


def real(stream: Any) -> Array:
    """Where a rectangle holds units, bool ``[E, L]``."""
    return np.arange(stream.longest) < np.asarray(stream.length)[:, None]


class Ours:
    """A model and its engine: steps as training makes them, on batches that are there already."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        weights: Mapping[str, Tensor] | None = None,
        *,
        half: bool = True,
        compiled: bool = False,
    ) -> None:
        self.recipe = replace(recipe, precision="bf16" if half else "fp32")
        self.device, self.number = device, 0
        with device:  # initial weights of hundreds of millions take long to draw on a CPU
            self.model = make_model(self.recipe)
        if weights is not None:
            self.model.load_state_dict(weights, strict=False)
        if compiled:
            for layer in self.model.fusion.layers:
                layer.compile(dynamic=True)
        self.engine = Engine(self.model, self.recipe, Environment(device))

    def ready(self, batch: Batch) -> Batch:
        """A batch where its copy to the device does not hold up the step."""
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def step(self, batch: Batch) -> None:
        """Forward, backward, clip, update."""
        self.engine.step(self.number, [batch], batch.counts)
        self.number += 1

    def losses(self, batch: Batch) -> dict[str, float]:
        """Means by objective, of those drawn."""
        sums = self.engine.evaluate([batch])
        return {n: float(sums[n]["loss"]) / k for n, k in batch.counts.items() if k}

    def gradient(self, batch: Batch) -> Tensor:
        """Of the sum of mean losses, all parameters end to end, float32."""
        self.model.zero_grad()
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
        ):
            sums = self.model(batch.to(self.device))
        means = [x["loss"] / max(batch.counts[o], 1.0) for o, x in sums.items()]
        torch.stack(means).sum().backward()
        found = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad()
        return torch.cat(found).float()

    def mfu(self, batch: Batch, seconds: float) -> float | None:
        """Share of the device's peak that a step's operations make, where the peak is known."""
        top = peak(self.device)
        return flops.of_batch(self.model, batch) / seconds / top if top else None
