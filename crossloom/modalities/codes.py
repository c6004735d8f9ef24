"""Codes: units that others have made discrete (clusters of frames or sounds, codes of an image).

VideoBERT's visual words (Sun et al., 2019, section 3.2), HuBERT's units, the image tokens of
DALL·E and CogView: numbers of a codebook, in order. The codebook itself is not needed here, but
it is part of what a run was trained with: name it in ``codebook``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import Array, BadSample, Fate, Sample, Units, make_units


@dataclass(frozen=True, kw_only=True)
class Codes(Modality):
    """Numbers ``0..size-1`` of a codebook, from an ``npy`` of integers ``[N]``.

    With a ``side`` they lie on a grid, row by row, and ``[rows, side]`` is read too. Content and
    target ``code``. A hidden code shows the mask, a swapped one a random other code.
    """

    kind: ClassVar[str] = "codes"
    field: str = "codes.npy"
    size: int
    """Entries of the codebook."""
    limit: int = 64
    """Most codes used, the first ones."""
    crop: bool = False
    """Of more codes than the limit, take a stretch at random."""
    stride: int = 1
    """Every so many-th code is taken, drawn from 1..stride for each visit (VideoBERT: 5, so that
    one model sees slow and fast; section 4.2)."""
    begin: bool = True
    """Put a unit before the codes that is never hidden: VideoBERT's ``[>]``, CogView's ``[BOI1]``,
    from which the first code is said, and what heads that score the example read."""
    side: int = 0
    """Codes of a row of the grid that they lie on: their place is then the sum of a vector for the
    row and one for the column (DALL·E, appendix B.1), and the unit before them has none. 0 for a
    vector of each place."""
    norm: bool = True
    """A layer norm over the embedding; pre-norm Transformers leave it to their layers."""
    codebook: str = ""
    """Any name (or hash) of the codebook: runs of different ones are not mixed up."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.size, self.limit, self.stride) < 1:
            raise ValueError(
                f"size {self.size}, limit {self.limit} and stride {self.stride} must be at least 1"
            )
        if self.side < 0 or (self.side and (self.limit % self.side or self.stride > 1)):
            raise ValueError(
                f"side {self.side}: limit {self.limit} must be whole rows of it, and stride 1"
            )
        if self.side and self.crop:
            raise ValueError("side and crop: a stretch of a grid does not begin with a row")

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """A stretch of the sample's codes.

        Raises:
            BadSample: "missing member", "undecodable", "wrong type", "wrong shape",
                "empty stream", "code outside codebook".
        """
        codes = _read(sample, self.field)
        if codes.dtype.kind not in "iu":
            raise BadSample("wrong type", f"{self.field}: {codes.dtype}; expected integers")
        if self.side and codes.ndim == 2 and codes.shape[1] == self.side:
            codes = codes.reshape(-1)
        if codes.ndim != 1:
            grid = f" or [rows, {self.side}]" if self.side else ""
            raise BadSample("wrong shape", f"{self.field}: {list(codes.shape)}; expected [N]{grid}")
        if len(codes) == 0:
            raise BadSample("empty stream", f"{self.field}: no codes")
        if int(codes.min()) < 0 or int(codes.max()) >= self.size:
            raise BadSample(
                "code outside codebook",
                f"{self.field}: codes are {codes.min()}..{codes.max()}; expected "
                f"0..{self.size - 1}",
            )
        stride = int(rng.integers(1, self.stride + 1)) if self.stride > 1 else 1
        codes = codes[::stride].astype(np.int64)
        surplus = len(codes) - self.limit
        first = int(rng.integers(surplus + 1)) if surplus > 0 and self.crop else 0
        return self.units(codes[first : first + self.limit])

    def units(self, codes: Array) -> Units:
        """Units of codes, int64 ``[N]``, and the one before them; of none, that one alone."""
        maskable = np.ones(len(codes), bool)
        if self.begin:
            codes = np.concatenate([[self.size], codes])
            maskable = np.concatenate([[False], maskable])
        # the unit before the codes is no code: nothing to be predicted there
        target = np.where(maskable, codes, -1)
        return make_units({"code": codes}, targets={"code": target}, maskable=maskable)

    def steady(self) -> Codes:
        """Every code, from the first."""
        return replace(self, stride=1, crop=False)

    def blank(self) -> Units:
        """Code 0."""
        return self.units(np.zeros(1, np.int64))

    def longest(self) -> int:
        """The limit, and the unit before."""
        return self.limit + int(self.begin)

    def predictable(self) -> Mapping[str, Target]:
        """The code itself."""
        return {"code": Target(dim=self.size, form="index")}

    def substitute(
        self, units: Units, fate: Array, rng: np.random.Generator
    ) -> Mapping[str, Array]:
        """Swapped codes become random ones, hidden ones code 0 (the embedder shows its mask)."""
        code = np.where(fate == Fate.HIDE, 0, units.content["code"])
        swapped = np.flatnonzero(fate == Fate.SWAP)
        if len(swapped):
            code[swapped] = rng.integers(self.size, size=len(swapped))
        return {**units.content, "code": code}

    def embedder(self, width: int) -> CodeEmbedder:
        """Sum of code and position, layer norm where there is one, dropout."""
        return CodeEmbedder(self, width)

    def identity(self) -> str:
        """Name and size of the codebook."""
        return f"{self.codebook}:{self.size}"


def _read(sample: Sample, field: str) -> Array:
    if field not in sample:
        found = ", ".join(sorted(sample)) or "nothing"
        raise BadSample("missing member", f"no {field}; the sample has {found}")
    try:
        array: Array = np.load(io.BytesIO(sample[field]), allow_pickle=False)
    except Exception as error:
        # damaged bytes make the parser of headers raise almost anything
        raise BadSample(
            "undecodable", f"{field}: not a readable npy ({type(error).__name__}: {error})"
        ) from None
    return array


class CodeEmbedder(Embedder):
    """Tables of codes, of the unit before them and the mask, and of places, or rows and columns."""

    def __init__(self, spec: Codes, width: int) -> None:
        super().__init__()
        self.size = spec.size
        self.code = nn.Embedding(spec.size, width)
        self.special = nn.Embedding(2, width)  # before the codes; mask
        self.side, self.first = spec.side, int(spec.begin)
        if spec.side:
            self.row = nn.Embedding(spec.limit // spec.side, width)
            self.column = nn.Embedding(spec.side, width)
        else:
            self.position = nn.Embedding(spec.longest(), width)
        self.norm = nn.LayerNorm(width) if spec.norm else nn.Identity()
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        code = stream.content["code"]
        plain = self.code(code.clamp(max=self.size - 1))
        special = self.special(stream.hidden.to(code.dtype))
        x = torch.where((stream.hidden | (code == self.size))[:, None], special, plain)
        return self.dropout(self.norm(x + self._place(stream.position)))

    def _place(self, position: Tensor) -> Tensor:
        if not self.side:
            out: Tensor = self.position(position)
            return out
        cell = (position - self.first).clamp(min=0)
        place = self.row(cell // self.side) + self.column(cell % self.side)
        return place * (position >= self.first)[:, None]

    def tied(self, target: str) -> Tensor | None:
        """The table of codes, for the target ``code``."""
        return self.code.weight if target == "code" else None
