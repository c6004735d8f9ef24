"""Predicting hidden units with the help of pseudo tokens that the model itself made: BTMLM.

ERNIE-M (Ouyang et al. 2021, arXiv 2012.15674, section 3.3): monolingual text is made a pair by the
model. Its introduction tells that a part of the tokens of a sentence is predicted into tokens of
another language, which are then joined to the sentence to train on. The code was not released;
which part, and what may be read, is not known here beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from crossloom.batch import AimBatch, Encoded, Stream
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Head
from crossloom.objectives.reconstruct import (
    LOGITS_AT_ONCE,
    Reconstruct,
    ReconstructHead,
    draw_classes,
)


@dataclass(frozen=True, kw_only=True)
class BackTranslate(Reconstruct):
    """Fill the places of another stream, then predict the hidden units of ``stream`` beside them.

    First pass, without gradient: ``stream`` is shown clean, each place of ``pseudo`` reads it
    alone (``View.across``) and takes its best class, all at once. Second pass: ``stream`` is shown
    as the view hides it, all units read all, and the loss is that of
    :class:`~crossloom.objectives.reconstruct.Reconstruct`. Dropout is at work in both.

    The reader gives ``pseudo`` the same text (``copies``); the view hides ``alone`` as many of its
    units as places are wanted. Nothing but how such places read tells the language that they are
    to be filled in, where streams have no embedding for it.
    """

    kind: ClassVar[str] = "back-translate"
    pseudo: str = "second"

    @property
    def own_passes(self) -> bool:
        """Both are the head's."""
        return True

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """The decoder, which fills and predicts."""
        return BackTranslateHead(
            self.pseudo,
            stream=self.stream,
            name=self.target,
            target=modalities[self.stream].predictable()[self.target],
            loss=self.loss,
            width=widths[self.stream],
            tied=self.tied,
            transform=self.transform,
        )

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The view must show the two streams and nothing else, places of the second alone."""
        super().check(modalities)
        view = self.view
        places = view.hide.get(self.pseudo)
        if set(view.streams) != {self.stream, self.pseudo} or places is None or not places.alone:
            raise ValueError(
                f"view {view.name!r}: show {self.stream!r} and {self.pseudo!r}, and hide units of "
                f"{self.pseudo!r} with alone: true, to be filled"
            )
        if view.mismatch or view.apart or view.across or view.causal or view.reads:
            raise ValueError(f"view {view.name!r}: the two streams belong, and read, together")
        if modalities[self.stream].predictable()[self.target].form != "index":
            raise ValueError(
                f"target {self.target!r} is no class that a place could be filled with"
            )


class BackTranslateHead(ReconstructHead):
    """The decoder of hidden units, which fills places of another stream with its best classes."""

    def __init__(self, pseudo: str, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.pseudo = pseudo
        self.barred: Tensor
        barred = parts["target"].barred  # type: ignore[attr-defined]
        self.register_buffer("barred", torch.tensor(barred, dtype=torch.int64), persistent=False)

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Weighted loss of the second pass, and ``correct``."""
        view = encoded.view
        text, places = view.streams[self.stream], view.streams[self.pseudo]
        with torch.no_grad():
            shown = {self.stream: self._clean(text, aim), self.pseudo: places}
            first = encoded.anew(replace(view, streams=shown, across=True))
            filled = torch.where(places.hidden, self._best(first), places.content[self.name])
        pair = {self.stream: text, self.pseudo: self._visible(places, filled)}
        return super().forward(encoded.anew(replace(view, streams=pair)), aim)

    def _clean(self, text: Stream, aim: AimBatch) -> Stream:
        """The stream as it was: what is scored is put back."""
        token = text.content[self.name]
        # blank slots put back what is there
        value = torch.where(aim.weight > 0, aim.value, token[aim.index])
        return self._visible(text, token.index_copy(0, aim.index, value))

    def _visible(self, stream: Stream, token: Tensor) -> Stream:
        content = {**stream.content, self.name: token}
        return replace(stream, content=content, hidden=torch.zeros_like(stream.hidden))

    def _best(self, encoded: Encoded) -> Tensor:
        """The best class of each place, ``[N]``, some logits at a time."""
        x = self.transform(encoded.states[self.pseudo])
        matrix = self.matrix(encoded)
        return draw_classes(
            x, matrix, self.bias, drawn=False, barred=self.barred, at_once=LOGITS_AT_ONCE
        )
