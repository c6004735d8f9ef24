"""Words made of another text's words, by attention between the two tables' vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossloom.batch import Stream


class Recovery(nn.Module):
    """``x'_i = sum_j softmax_j(W [x_i; y_j; x_i * y_j]) y_j``, j over the other text's units.

    Cross-lingual word recovery (Unicoder, Huang et al. 2019, section 3). What W makes of x_i
    alone is the same for every j, so that the softmax takes it out: it has no weights here.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        #: W's columns for y_j and for the product
        self.score = nn.Linear(2 * width, 1, bias=False)

    def forward(self, own: Tensor, other: Tensor, stream: Stream, others: Stream) -> Tensor:
        """Vectors ``[N, width]`` in place of ``own``.

        Args:
            own: ``[N, width]``, the vectors of the units of ``stream``.
            other: ``[M, width]``, those of the units of ``others``, of the same examples.
            stream, others: where the examples lie.
        """
        single, product = self.score.weight[0].chunk(2)
        index, _ = _rows(stream)
        place, real = _rows(others)
        value = other[place]  # [E, longest, width]
        query = (own * product + single)[index]
        score = (query @ value.transpose(1, 2)).masked_fill(~real[:, None], -torch.inf)
        mixed = score.softmax(2) @ value
        column = torch.arange(len(own), device=own.device) - stream.start[stream.example]
        return mixed[stream.example, column]


def _rows(stream: Stream) -> tuple[Tensor, Tensor]:
    """Flat numbers of the units, a row for each example, and which of them are its own."""
    column = torch.arange(stream.longest, device=stream.start.device)
    real = column < stream.length[:, None]
    return torch.where(real, stream.start[:, None] + column, 0), real
