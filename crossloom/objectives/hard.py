"""Hard negatives: drawn by their scores, or moved towards who asks.

Moving them is HICTL's smoothed linear interpolation (Wei et al., ICLR 2021, arXiv 2007.15960,
sentence-level contrast). No code was released. What is followed: a negative ``n`` that is farther
from ``q`` than the positive ``p`` is replaced by ``q + r (n - q)``, with a rate ``r`` between the
distances' ratio ``|q - p| / |q - n|`` and 1 that falls as the model gets surer of the right pairs;
a nearer one stays. The law of the rate, ``r = ratio ** (slope * sure)``, ``sure`` being the mean
over the last hundred batches of ``exp(-loss)``, and the slope 0.9 are from memory: the paper's text
could not be had beyond its introduction.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: Steps over which the model's sureness is averaged.
WINDOW = 100


def draw_some(scores: Tensor, barred: Tensor, count: int, drawn: bool = True) -> Tensor:
    """For each row different columns, with the softmax of the scores for chances (Gumbel's maxima).

    Args:
        scores: ``[E, M]``.
        barred: ``[E, M]`` bool, columns that a row gets only when there are no others left.
        count: columns of a row, at most M.
        drawn: False for the best-scored columns instead (measuring, which must repeat).

    Returns:
        ``[E, count]`` int64; from torch's random stream, without waiting for the device.
    """
    if drawn:
        scores = scores - torch.empty_like(scores).exponential_().log()
    return scores.masked_fill(barred, -torch.inf).topk(count, dim=1).indices


def harden(cosine: Tensor, own: Tensor, power: Tensor) -> Tensor:
    """Products of unit vectors after all that are farther than the own one have moved nearer.

    A vector moved to ``q + r (n - q)`` has the product ``1 - r (1 - q n)`` with ``q``, so that the
    vectors themselves need not be made. No gradient flows through ``r``. Nothing moved comes as
    near as the own one, as long as ``power`` is below 1.

    Args:
        cosine: ``[K, M]`` float32, rows ask.
        own: ``[K]`` int64, the column of each row's own.
        power: of the ratio of distances, a scalar in 0..1: 0 moves nothing.

    Returns:
        ``[K, M]``.
    """
    with torch.no_grad():
        far = (1 - cosine).clamp(min=1e-6)  # half the squared distance
        ratio = (far.gather(1, own[:, None]) / far).sqrt().clamp(max=1)
        rate = ratio**power
    return 1 - rate * (1 - cosine)


class Confidence(nn.Module):
    """How sure the model has lately been of the right pairs; saved with it, alike on all processes.

    Buffers: ``latest`` ``[WINDOW]``, zero at first; ``place``, where the next goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: Tensor
        self.place: Tensor
        self.register_buffer("latest", torch.zeros(WINDOW))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._seen: Tensor | None = None

    def mean(self) -> Tensor:
        """Mean over the window, a scalar in 0..1; steps that have not been count as 0."""
        return self.latest.mean()

    def see(self, loss: Tensor, weight: Tensor) -> None:
        """Note this process's summed loss and the weights ``[K]`` it is summed over."""
        self._seen = torch.stack([loss.detach().float(), weight.sum().float()])

    @torch.no_grad()
    def settle(self) -> None:
        """Take in the step's mean over all processes, if anything was scored in it."""
        if self._seen is None:
            return
        seen, self._seen = self._seen, None
        if dist.is_initialized():
            dist.all_reduce(seen)
        some, place = seen[1:] > 0, self.place[None]
        sure = (-seen[:1] / seen[1:].clamp(min=1)).exp()
        sure = torch.where(some, sure, self.latest.index_select(0, place))
        self.latest.index_copy_(0, place, sure)
        self.place.copy_((self.place + some.sum()) % WINDOW)
