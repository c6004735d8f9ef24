"""The latest slow features, first in, first out: negatives from beyond the batch (MoCo)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """Features of one or more streams of the latest examples, the same on every process.

    It starts with random unit vectors, from torch's generator, which a run seeds before it makes
    its weights. Buffers, saved with the model: ``feature`` ``[S, size, dim]``, ``sample``
    ``[size]`` (0: random, nobody's), ``place`` (where the next goes).
    """

    def __init__(self, streams: int, size: int, dim: int) -> None:
        super().__init__()
        self.feature: Tensor
        self.sample: Tensor
        self.place: Tensor
        self.register_buffer("feature", F.normalize(torch.randn(streams, size, dim), dim=2))
        self.register_buffer("sample", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def full(self) -> Tensor:
        """Whether it holds no random vector any more, a bool scalar on the device."""
        return (self.sample != 0).all()

    @torch.no_grad()
    def push(self, feature: Tensor, sample: Tensor, weight: Tensor) -> None:
        """Take in rows in their order, over the oldest; the host waits for nothing.

        Args:
            feature: ``[S, n, dim]``. sample: ``[n]`` int64.
            weight: ``[n]``; rows of weight 0 are left out.

        Raises:
            ValueError: more rows than the queue holds.
        """
        rows, size = len(sample), len(self.sample)
        if rows > size:
            raise ValueError(f"queue of {size} features for batches of {rows}; make it longer")
        good = weight > 0
        number = torch.arange(rows, device=good.device)
        # a row left out repeats the good one before it (or the first), at the same place: the
        # shapes do not depend on how many are good
        first = good.to(torch.int8).argmax()
        source = torch.where(good, number, first).cummax(0).values
        place = (self.place + (good.cumsum(0) - 1).clamp(min=0)) % size
        some = good[source]
        kept = torch.where(some[:, None], feature[:, source].float(), self.feature[:, place])
        self.feature[:, place] = kept.to(self.feature.dtype)
        self.sample[place] = torch.where(some, sample[source], self.sample[place])
        self.place.copy_((self.place + good.sum()) % size)


def everyones(x: Tensor, parts: int) -> Tensor:
    """Rows of all processes in the order of their micro-batches, however they are shared out.

    Args:
        x: ``[parts * n, ...]``, the rows of this process's micro-batches, of which it has every
            world-th.
        parts: how many micro-batches these are.

    Returns:
        ``[world * parts * n, ...]``.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x.contiguous())
    return torch.stack(found).unflatten(1, (parts, -1)).transpose(0, 1).flatten(0, 2)
