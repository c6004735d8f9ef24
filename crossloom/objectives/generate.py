"""Saying a stream unit by unit: captioning, translation, denoising, MASS, mBART, image features.

One family, as for hidden units: the modality declares the target and its form; the view says what
the other streams show, and which units of this one. Each state is asked for the clean unit after
the one it was shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective
from crossloom.objectives.reconstruct import Loss, ReconstructHead, blank_target, check_target
from crossloom.objectives.view import Shown
from crossloom.units import Array, Fate


@dataclass(frozen=True, kw_only=True)
class Generate(Objective):
    """Predict ``target`` of the next unit of ``stream``, from the units before it.

    The stream is read causally, by the plan (a decoder) or by the view (``causal``), and nothing
    that it reads may read it (``View.reads``), though others may; the model refuses anything else,
    since a unit that knows the next one has nothing to learn. A stream that follows a hidden one
    (``View.follow``) is scored at the selected units alone (MASS). Losses are those of
    :class:`~crossloom.objectives.reconstruct.Reconstruct`, summed over slots; ``vector`` targets
    give a shifted regression (XGPT's text-to-feature generation, without gradient to the target).
    """

    kind: ClassVar[str] = "generate"
    stream: str
    target: str = "token"
    loss: Loss = "auto"
    smoothing: float = 0.0
    """Share of the aim that is spread over all classes, 0..1 (label smoothing)."""
    tied: bool = True
    """Share the decoder's matrix with the embedder where it offers one."""
    transform: bool = True
    """Linear, GELU and norm before the decoder (BERT, VLP); BART and mBART have none."""
    matched_only: bool = True
    """Skip examples whose streams do not belong together."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in 0..1, not {self.smoothing}")

    @property
    def scored(self) -> str:
        """The stream."""
        return self.stream

    @property
    def generates(self) -> str:
        """The stream."""
        return self.stream

    def aim(self, shown: Shown) -> Aim:
        """The unit after each shown one, where there is one that has the target."""
        values = shown.units[self.stream].targets[self.target]
        following = shown.layout(self.stream).place + 1
        wanted = following < len(values)
        following = following.clip(max=len(values) - 1)
        if self.stream in self.view.follow:
            wanted &= shown.fate[self.stream][following] != Fate.KEEP
        if self.matched_only and not shown.matched:
            wanted = np.zeros_like(wanted)
        if values.ndim == 1:
            wanted &= values[following] >= 0
        return Aim(np.flatnonzero(wanted), values[following[wanted]])

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Class 0, or a vector of zeros."""
        return blank_target(modalities[self.stream].predictable()[self.target])

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """The decoder of hidden units, with or without its transform."""
        return ReconstructHead(
            stream=self.stream,
            name=self.target,
            target=modalities[self.stream].predictable()[self.target],
            loss=self.loss,
            width=widths[self.stream],
            tied=self.tied,
            transform=self.transform,
            smoothing=self.smoothing,
        )

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be shown, and offer the target in a fitting form."""
        super().check(modalities)
        if self.stream not in self.view.streams:
            raise ValueError(
                f"view {self.view.name!r} shows {', '.join(self.view.streams)}, "
                f"not {self.stream!r}, which is to be generated"
            )
        check_target(modalities[self.stream], self.stream, self.target, self.loss)
        form = modalities[self.stream].predictable()[self.target].form
        if self.smoothing and form != "index":
            raise ValueError(f"smoothing is for classes; target {self.target!r} is a {form}")
