"""A codebook of picture patches: pictures to codes and back, the simplest there is.

DALL·E and CogView train networks for this (a discrete VAE, a VQ-VAE). Here an entry is the mean of
the patches nearest to it (k-means), and a picture is its patches, each replaced by an entry: enough
to learn from small pictures, and to look at what was said. Codes that a network made need no such
file: they are read as they are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossloom.modalities.pictures import cut
from crossloom.units import Array, keyed_rng

#: Name of the file beside shards.
NAME = "codebook.npy"


@dataclass(frozen=True)
class Codebook:
    """Entries, uint8 ``[size, patch, patch, 3]``: what each code looks like."""

    entries: Array

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.entries)

    @property
    def patch(self) -> int:
        """Pixels of an entry in either direction."""
        return int(self.entries.shape[1])

    def encode(self, picture: Array) -> Array:
        """The nearest entry of each patch.

        Args:
            picture: uint8 ``[3, S, S]``, of whole patches.

        Returns:
            uint16 ``[(S / patch)²]``, row by row.
        """
        patches = torch.from_numpy(cut(picture, self.patch)).float()
        return _nearest(patches, self._flat()).numpy().astype(np.uint16)

    def paste(self, codes: Sequence[int] | Array) -> Array:
        """The picture of so many codes of a square, uint8 ``[S, S, 3]``.

        Raises:
            ValueError: they are no square, or not of this codebook.
        """
        numbers = np.asarray(codes, np.int64)
        side = round(len(numbers) ** 0.5)
        if side * side != len(numbers) or not len(numbers):
            raise ValueError(f"{len(numbers)} codes are no square of them")
        if numbers.min() < 0 or numbers.max() >= self.size:
            raise ValueError(
                f"codes {numbers.min()}..{numbers.max()}: there are 0..{self.size - 1}"
            )
        tiles = self.entries[numbers].reshape(side, side, self.patch, self.patch, 3)
        length = side * self.patch
        return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(length, length, 3))

    def image(self, codes: Sequence[int] | Array) -> Any:
        """The same as a Pillow image."""
        from PIL import Image

        return Image.fromarray(self.paste(codes))

    def to_bytes(self) -> bytes:
        """The ``npy`` file that :func:`load` reads."""
        out = io.BytesIO()
        np.save(out, self.entries)
        return out.getvalue()

    def _flat(self) -> torch.Tensor:
        return torch.from_numpy(self.entries.reshape(self.size, -1)).float()


def load(path: Path) -> Codebook:
    """A codebook from its file.

    Raises:
        ValueError: it is none.
    """
    try:
        entries = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable npy ({error})") from None
    square = entries.ndim == 4 and entries.shape[1] == entries.shape[2] and entries.shape[3] == 3
    if entries.dtype != np.uint8 or not square or not len(entries):
        raise ValueError(
            f"{path}: {entries.dtype} {list(entries.shape)}; a codebook is uint8 [size, P, P, 3]"
        )
    return Codebook(entries)


def learn(
    pictures: Sequence[Array], *, size: int, patch: int, seed: int = 0, rounds: int = 20
) -> Codebook:
    """k-means over the patches of pictures, from seeds far apart (Arthur & Vassilvitskii 2007).

    Args:
        pictures: uint8 ``[3, S, S]``, of whole patches.
        size: entries; there must be as many different patches.
        patch: pixels of an entry in either direction.
        seed: of what is drawn.
        rounds: of assigning patches and taking means; fewer once nothing changes.

    Raises:
        ValueError: there are fewer different patches than entries.
    """
    cells = np.concatenate([cut(p, patch) for p in pictures])
    distinct, count = np.unique(cells, axis=0, return_counts=True)
    if len(distinct) < size:
        raise ValueError(f"{len(distinct)} different patches; {size} entries need as many")
    points, weight = torch.from_numpy(distinct).float(), torch.from_numpy(count).double()
    centres = _seeds(points, weight, size, seed)
    chosen = torch.full((len(points),), -1)
    for _ in range(rounds):
        nearest = _nearest(points, centres)
        if torch.equal(nearest, chosen):
            break
        chosen = nearest
        mass = torch.zeros(size, dtype=torch.float64).index_add(0, chosen, weight)
        total = torch.zeros(size, points.shape[1], dtype=torch.float64)
        total.index_add_(0, chosen, points.double() * weight[:, None])
        means = (total / mass.clamp(min=1)[:, None]).float()
        centres = torch.where((mass > 0)[:, None], means, centres)
    entries = centres.round().clamp(0, 255).to(torch.uint8).numpy()
    return Codebook(entries.reshape(size, patch, patch, 3))


def _seeds(points: torch.Tensor, weight: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Points drawn one after the other, by weight and squared distance to those before."""
    rng = keyed_rng("codebook", seed)
    apart = torch.ones_like(weight)
    chosen = []
    for _ in range(size):
        total = (weight * apart).cumsum(0)
        place = torch.searchsorted(total, rng.random() * float(total[-1]), right=True)
        chosen.append(min(int(place), len(points) - 1))
        distance = (points - points[chosen[-1]]).square().sum(1).double()
        apart = distance if len(chosen) == 1 else torch.minimum(apart, distance)
    return points[chosen]


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The nearest centre of each point ``[N]``; of equally near ones the first."""
    # squared distances but for the points' own length, a few thousand points at a time
    length = centres.square().sum(1)
    return torch.cat([(length - 2 * some @ centres.T).argmin(1) for some in points.split(8192)])
