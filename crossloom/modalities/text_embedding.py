"""Word pieces as vectors: what they are, where they stand, whose they are, what they see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder
from crossloom.modalities.recovery import Recovery


class TextEmbedder(Embedder):
    """Embeddings of text units, as in BERT and XLM-R."""

    def __init__(
        self,
        *,
        vocab: int,
        mask: int,
        positions: int,
        offset: int,
        limit: int,
        languages: int,
        segments: int,
        width: int,
        dropout: float,
        tasks: int = 0,
        norm: bool = True,
        marked: bool = False,
        looks_at: str = "",
        sees: str = "whole",
        constant: bool = False,
        words_of: str = "",
        scaled: bool = False,
        inner: int = 0,
    ) -> None:
        super().__init__()
        #: from the width of the tables to the stream's
        self.project = nn.Linear(inner, width) if inner else None
        outer, width = width, inner or width
        self.mask, self.offset = mask, offset
        self.lenders, self.shape = (words_of,) if words_of else (), (vocab, width)
        self.scale = width**0.5 if scaled else 1.0
        #: rows of the position table past the longest text
        self.spare = positions - offset - limit
        if not words_of:
            self.token = nn.Embedding(vocab, width)
        self.position = nn.Embedding(positions, width)
        self.language = nn.Embedding(languages, width) if languages else None
        self.segment = nn.Embedding(segments, width) if segments > 1 else None
        self.constant = nn.Parameter(torch.zeros(width)) if constant else None
        self.task = nn.Embedding(tasks, width) if tasks else None
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.mark = nn.Parameter(torch.zeros(outer)) if marked else None
        self.dropout = nn.Dropout(dropout)
        self.looks_at, self.sees = (looks_at,) if looks_at else (), sees
        self._sight: tuple[Any, ...] = ()
        #: seen where there is no image, and the norm of what is seen
        self.absent: nn.Parameter | None = None
        self.sight_norm: nn.LayerNorm | None = None
        self.recovery = Recovery(width) if looks_at and sees == "words" else None
        if looks_at and sees == "whole":
            self.absent = nn.Parameter(torch.empty(width).normal_(std=0.02))
            self.sight_norm = nn.LayerNorm(width)
            nn.init.zeros_(self.sight_norm.weight)

    def borrow(self, embedders: Mapping[str, Embedder]) -> None:
        """Take the pieces of the text they are lent by, and see others as their embedder does.

        Where there is no stream that is looked at, nothing is seen.

        Raises:
            ValueError: the stream to be seen is not one of regions (of text, for its words), or the
                lender is no text with a table of its own of as many pieces.
        """
        for stream in self.lenders:
            lender = embedders.get(stream)
            own = isinstance(lender, TextEmbedder) and not lender.lenders
            if not own or lender.shape != self.shape:  # type: ignore[union-attr]
                raise ValueError(
                    f"words_of: {stream!r} is no text with a table of {self.shape[0]} pieces and "
                    f"width {self.shape[1]} of its own"
                )
            # straight into the instance, past nn.Module's registration
            self.__dict__["token"] = lender.token  # type: ignore[union-attr]
        for stream in self.looks_at:
            other = embedders.get(stream)
            part, name = ("pieces", "words") if self.recovery else ("projected", "regions")
            if other is not None and not hasattr(other, part):
                raise ValueError(f"looks_at: {stream!r} has no {name} to be seen")
            # in a tuple, so that the other embedder's parts do not become this one's
            self._sight = (other,) if other is not None else ()

    def forward(self, stream: Stream, others: Mapping[str, Stream] | None = None) -> Tensor:
        """``[N, width]``; ``others``: the streams that are looked at."""
        other = next((x for x in (others or {}).values()), None)
        x = self.pieces(stream)
        if self.recovery is not None and other is not None:
            x = self.recovery(x, self._sight[0].pieces(other), stream, other)
        x = x + self.position(stream.position + self.offset)
        if self.language is not None:
            x = x + self.language(stream.content["language"])
        if self.segment is not None:
            x = x + self.segment(stream.content["segment"])
        if self.constant is not None:
            x = x + self.constant
        if self.task is not None:
            number = stream.content["task"]
            x = torch.where((number >= 0)[:, None], self.task(number.clamp(min=0)), x)
        if self.sight_norm is not None:
            x = x + self.sight_norm(self._whole(stream, other))
        x = self.dropout(self.norm(x))
        if self.project is not None:
            x = self.project(x)
        if self.mark is not None:
            x = x + self.mark
        return x + self._referred(stream, other) if other and self.sees == "referred" else x

    def pieces(self, stream: Stream) -> Tensor:
        """The vectors of a text's pieces alone, ``[N, width]``; of ``<mask>`` where hidden."""
        x: Tensor = self.token(torch.where(stream.hidden, self.mask, stream.content["token"]))
        return x * self.scale if self.scale != 1 else x

    def _whole(self, stream: Stream, image: Stream | None) -> Tensor:
        """What each unit sees of its example's image, ``[N, width]``."""
        assert self.absent is not None
        if image is None:
            return self.absent.expand(len(stream.position), -1)
        seen = self._sight[0].whole(image)
        seen = torch.where((image.length > 0)[:, None], seen, self.absent.to(seen.dtype))
        return seen.index_select(0, stream.example)

    def _referred(self, stream: Stream, image: Stream) -> Tensor:
        """The region that each unit refers to, ``[N, width]``; zero where there is none.

        In B2T2's code other units get the projection's bias too; here they get nothing.
        """
        eye = self._sight[0]
        overall = int(eye.spec.overall)
        number = stream.content["refers"]
        place = torch.where(number >= 0, number + overall, -1)
        if overall:
            unit = torch.arange(len(place), device=place.device)
            place = torch.where(unit == stream.start[stream.example], 0, place)
        there = (place >= 0) & (place < image.length[stream.example])
        seen = eye.projected(image)
        if len(seen) == 0:
            return seen.new_zeros(len(place), seen.shape[1])
        index = torch.where(there, image.start[stream.example] + place, 0)
        return seen.index_select(0, index) * there[:, None].to(seen.dtype)

    def tied(self, target: str) -> Tensor | None:
        """The token embedding, for the target ``token``; ``[dim, inner]`` where that is another."""
        return self.token.weight if target == "token" else None
