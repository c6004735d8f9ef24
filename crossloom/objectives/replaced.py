"""Telling units that a generator filled in from the original ones: RTD, MRTD, TRTD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded, Stream
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective, lend, need
from crossloom.objectives.reconstruct import Reconstruct, ReconstructHead, draw_classes
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Replaced(Objective):
    """Was this unit replaced? Two classes for every unit, specials among them.

    A generator, which is an objective that predicts hidden tokens of another stream over the same
    units, fills them in, each drawn with its softmax for chances. The view's ``stream``, which
    hides nothing, is shown with them. A unit counts as replaced where what was drawn is not what
    had been there; no gradient goes to the generator (ELECTRA, Clark et al. 2020, arXiv 2003.10555,
    section 2; ``google-research/electra: run_pretraining.py``). Binary cross entropy, a mean over
    units.

    The drawing follows from seed, step and process, as dropout does; on data held back the
    likeliest token is taken.
    """

    kind: ClassVar[str] = "replaced"
    stream: str
    generator: str
    """The objective that fills in."""

    @property
    def scored(self) -> str:
        """The stream."""
        return self.stream

    @property
    def own_passes(self) -> bool:
        """What is read is known only when the generator has spoken."""
        return True

    @property
    def beside(self) -> tuple[str, ...]:
        """The generator."""
        return (self.generator,)

    def aim(self, shown: Shown) -> Aim:
        """Every unit; which are replaced is not known yet."""
        count = len(shown.units[self.stream].position)
        return Aim(np.arange(count), np.zeros(count, np.int64))

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Not replaced."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """A layer and one logit."""
        return ReplacedHead(self.stream, self.generator, widths[self.stream])

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be one of tokens, and be shown as it is."""
        super().check(modalities)
        if self.stream not in self.view.streams:
            raise ValueError(f"view {self.view.name!r} does not show {self.stream!r}")
        if self.stream in self.view.hide or self.view.mismatched:
            raise ValueError(
                f"view {self.view.name!r}: drop mismatch and hide.{self.stream}; the generator's "
                "view hides what is filled in"
            )
        if "token" not in modalities[self.stream].predictable():
            raise ValueError(f"stream {self.stream!r} has no tokens that could be replaced")

    def check_others(self, others: Mapping[str, Objective]) -> None:
        """The generator must predict tokens of another stream, whose units stay where they are."""
        super().check_others(others)
        made = need(self.generator, others)
        fits = isinstance(made, Reconstruct) and made.target == "token" and not made.own_passes
        if not fits or made.scored == self.stream or made.scored not in made.view.hide:
            raise ValueError(
                f"generator: {self.generator!r} must predict hidden tokens of another stream than "
                f"{self.stream!r}"
            )
        if made.view.hide[made.scored].relaid:
            raise ValueError(
                f"generator: view {made.view.name!r} merges, deletes or moves units, so that they "
                f"are not those of {self.stream!r}"
            )


class ReplacedHead(Head):
    """Linear, GELU, one logit (``electra: _get_discriminator_output``)."""

    def __init__(self, stream: str, generator: str, width: int) -> None:
        super().__init__()
        self.stream, self.generator = stream, generator
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.score = nn.Linear(width, 1)

    def borrow(self, other: Head) -> None:
        """Be another head's classifier."""
        lend(self, other, "transform")
        lend(self, other, "score")

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Weighted loss, and ``correct``."""
        filled, replaced = self._filled(encoded)
        streams = {**encoded.view.streams, self.stream: filled}
        read = encoded.anew(replace(encoded.view, streams=streams))
        logits = self.score(self.transform(read.at(self.stream, aim.index)))[:, 0].float()
        label = replaced.index_select(0, aim.index)
        each = F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
        right = (logits.detach() > 0) == label
        return {"loss": (each * aim.weight).sum(), "correct": (right * aim.weight).sum()}

    @torch.no_grad()
    def _filled(self, encoded: Encoded) -> tuple[Stream, Tensor]:
        """The stream with what the generator says, and which units are others than before."""
        generator, other, aim = encoded.beside(self.generator)
        assert isinstance(generator, ReconstructHead)
        text, places = encoded.view.streams[self.stream], other.view.streams[generator.stream]
        token = text.content["token"]
        if len(places.position) != len(token):
            raise ValueError(
                f"{self.generator}: {generator.stream!r} and {self.stream!r} are "
                f"{len(places.position)} and {len(token)} units of one batch; give both the same "
                "field, vocabulary and limit"
            )
        x = generator.transform(other.at(generator.stream, aim.index))
        said = draw_classes(x, generator.matrix(other), generator.bias, drawn=self.training)
        # blank slots put back what is there
        said = torch.where(aim.weight > 0, said, token[aim.index])
        new = token.index_copy(0, aim.index, said)
        return replace(text, content={**text.content, "token": new}), new != token
