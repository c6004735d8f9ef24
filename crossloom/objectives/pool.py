"""Summaries of an encoded example, shared by the heads that score examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import Encoded


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A learned query reads the example's units; then a feed-forward network with residual.

    The attention pooling of vision towers trained with the sigmoid loss (Zhai et al., "Scaling
    Vision Transformers", arXiv 2106.04560, section 2.2; ``transformers``: ``modeling_siglip.py``,
    ``SiglipMultiheadAttentionPoolingHead``).
    """

    heads: int
    hidden: int
    """Width inside the feed-forward network."""
    exact: bool = False
    """GELU itself, not its approximation by tanh."""


#: The first unit's state, the mean over the example's units, the last unit's state, or a probe.
Pool = Literal["first", "mean", "last"] | Probe


class Summary(nn.Module):
    """One stream's summary, ``[E, width]``; zero for an example without units."""

    def __init__(self, stream: str, width: int, pool: Pool = "first") -> None:
        super().__init__()
        self.stream = stream
        self.pool = pool if isinstance(pool, str) else "probe"
        self.probe = ProbePool(width, pool) if isinstance(pool, Probe) else None

    def extra_repr(self) -> str:
        """What makes it another summary than one of the same parameters."""
        return f"{self.stream}, {self.pool}"

    def forward(self, encoded: Encoded) -> Tensor:
        """``[E, width]``."""
        if self.probe is not None:
            flat = encoded.view.streams[self.stream]
            return self.probe(encoded.states[self.stream], flat.example, flat.length, flat.real)
        if self.pool == "mean":
            return encoded.mean(self.stream)
        return encoded.anchor(self.stream, last=self.pool == "last")


class ProbePool(nn.Module):
    """The parameters of a :class:`Probe`."""

    def __init__(self, width: int, spec: Probe) -> None:
        super().__init__()
        if width % spec.heads:
            raise ValueError(f"pool: width {width} is not a multiple of {spec.heads} heads")
        self.heads, self.approximate = spec.heads, "none" if spec.exact else "tanh"
        self.query = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))
        self.project = nn.Linear(width, width)
        self.keyvalue = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, spec.hidden)
        self.down = nn.Linear(spec.hidden, width)

    def extra_repr(self) -> str:
        """What makes it another pool than one of the same parameters."""
        return f"heads={self.heads}, approximate={self.approximate}"

    def forward(
        self, state: Tensor, example: Tensor, length: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """``[E, width]`` from units ``[N, width]`` of examples ``[N]``, ``length`` ``[E]``.

        Units that are not ``real`` (``[N]`` bool) are not read.
        """
        q = self.project(self.query).unflatten(0, (self.heads, -1))
        k, v = self.keyvalue(state).unflatten(1, (2, self.heads, -1)).unbind(1)
        scores = (k * q).sum(-1) / q.shape[-1] ** 0.5
        if real is not None:
            scores = scores.masked_fill(~real[:, None], torch.finfo(scores.dtype).min)
        # autocast sums in float32, whatever the values are
        share = _softmax(scores, example, len(length)).to(v.dtype)
        read = v.new_zeros(len(length), *v.shape[1:]).index_add(0, example, v * share[..., None])
        x = self.output(read.flatten(1))
        x = x + self.down(F.gelu(self.up(self.norm(x)), approximate=self.approximate))
        return x * (length > 0).unsqueeze(1).to(x.dtype)


def _softmax(scores: Tensor, example: Tensor, examples: int) -> Tensor:
    """Softmax of ``[N, H]`` over the units of each example, in float32."""
    wide = scores.float()
    index = example[:, None].expand_as(wide)
    most = wide.new_full((examples, wide.shape[1]), -torch.inf)
    most = most.scatter_reduce(0, index, wide.detach(), "amax")
    power = (wide - most.index_select(0, example)).exp()
    total = wide.new_zeros(most.shape).index_add(0, example, power)
    return power / total.index_select(0, example)


class Pooler(nn.Module):
    """Summaries of one or two streams, each through a linear layer and an activation.

    Several streams are brought to one width, the first stream's unless another is given, and
    combined by element-wise product (ViLBERT) or sum.
    """

    def __init__(
        self,
        streams: tuple[str, ...],
        widths: Mapping[str, int],
        pool: Pool = "first",
        combine: Literal["product", "sum"] = "product",
        width: int = 0,
        activation: Literal["tanh", "relu"] = "tanh",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.streams, self.combine, self.activation = streams, combine, activation
        self.dropout = dropout
        self.width = width or widths[streams[0]]
        self.summary = nn.ModuleDict({s: Summary(s, widths[s], pool) for s in streams})
        self.dense = nn.ModuleDict({s: nn.Linear(widths[s], self.width) for s in streams})

    def extra_repr(self) -> str:
        """What makes it another pooler than one of the same parameters."""
        several = f"combine={self.combine}, " if len(self.streams) > 1 else ""
        return f"{several}{self.activation}, dropout={self.dropout}"

    def forward(self, encoded: Encoded) -> Tensor:
        """``[E, width]``."""
        activation = torch.tanh if self.activation == "tanh" else torch.relu
        parts = [activation(self.dense[s](self.summary[s](encoded))) for s in self.streams]
        out = parts[0]
        for part in parts[1:]:
            out = out * part if self.combine == "product" else out + part
        return F.dropout(out, self.dropout, self.training)
