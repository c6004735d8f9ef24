"""Pulling the two streams of an example together and other pairs apart: ITC, SigLIP, XLCO.

The features of the whole global batch take part: they are gathered, with gradient, over processes.
Logits exist for the local rows against all columns, a chunk of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective, example_aim
from crossloom.objectives.pool import Pool, Summary
from crossloom.objectives.view import Shown
from crossloom.units import Array, keyed_rng

Projection = Literal["linear", "affine", "none"]

#: Logits held at once, elements.
LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, kw_only=True)
class Contrast(Objective):
    """Contrast two streams of one view over the global batch.

    ``softmax``: mean of both directions of the InfoNCE loss with a learned temperature (CLIP,
    figure 3). ``sigmoid``: independent binary losses with learned scale and bias (SigLIP,
    section 3). Pairs of one and the same sample are never each other's negatives.
    """

    kind: ClassVar[str] = "contrast"
    separable: ClassVar[bool] = False
    pair: tuple[str, str]
    form: Literal["softmax", "sigmoid"] = "softmax"
    dim: int = 256
    """Size of the common space."""
    pool: Pool = "first"
    pools: Mapping[str, Pool] = field(default_factory=dict)
    """By stream, where it differs from ``pool``."""
    projections: Mapping[str, Projection] = field(default_factory=dict)
    """By stream: ``linear`` has no bias (when not said), ``affine`` has one; ``none`` takes the
    summary itself, whose width must be ``dim``."""
    shared: bool = False
    """One projection for both streams: two texts (InfoXLM), not a text and an image."""
    temperature: float = 0.07
    """Start of the learned temperature (CLIP: 0.07; SigLIP: 0.1)."""

    def aim(self, shown: Shown) -> Aim:
        """One slot; the value is a 63-bit hash of the sample, to know its other pairs."""
        sample = shown.key.split("#")[0]
        return example_aim(np.array(keyed_rng(sample).integers(1, 2**63 - 1), np.int64))

    def slots(self, examples: int) -> int | None:
        """One for each example, so that every process gathers alike."""
        return examples

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Sample 0, which is nobody."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """A projection for each stream, a scale and (sigmoid) a bias."""
        return ContrastHead(self, widths)

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """Both streams must be in the view, which should keep them apart."""
        super().check(modalities)
        if strange := [s for s in self.pair if s not in self.view.streams]:
            raise ValueError(f"view {self.view.name!r} does not show {', '.join(strange)}")
        if strange := [s for s in (*self.pools, *self.projections) if s not in self.pair]:
            raise ValueError(
                f"pools, projections: {strange[0]!r} is not of the pair {', '.join(self.pair)}"
            )


class ContrastHead(Head):
    """Projections into a common space."""

    def __init__(self, spec: Contrast, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.pair, self.form = spec.pair, spec.form
        projected = spec.pair[:1] if spec.shared else spec.pair
        if len({widths[s] for s in spec.pair}) > len(projected):
            raise ValueError(f"{' and '.join(spec.pair)} differ in width; set shared to false")
        self.owner = {s: spec.pair[0] if spec.shared else s for s in spec.pair}
        self.summary = nn.ModuleDict(
            {s: Summary(s, widths[s], spec.pools.get(s, spec.pool)) for s in spec.pair}
        )
        self.project = nn.ModuleDict(
            {s: _projection(spec.projections.get(s, "linear"), s, widths[s], spec.dim)
             for s in projected}
        )  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(math.log(1 / spec.temperature)))
        # SigLIP starts at -10 so that the many negatives do not dominate the first steps
        self.bias = nn.Parameter(torch.tensor(-10.0)) if spec.form == "sigmoid" else None

    def features(self, encoded: Encoded, stream: str) -> Tensor:
        """Unit vectors ``[E, dim]`` of one stream, float32."""
        state = self.summary[stream](encoded)
        return F.normalize(self.project[self.owner[stream]](state).float(), dim=1)

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss over the local pairs against the global batch, and ``correct`` retrievals."""
        a, b = (self.features(encoded, s).index_select(0, aim.index) for s in self.pair)
        # the softmax form's temperature is kept from running away (CLIP, section 2.5); the sigmoid
        # form has no such limit, and published weights lie beyond it
        scale = (self.scale.clamp(max=math.log(100)) if self.bias is None else self.scale).exp()
        return contrast(a, b, aim.value, aim.weight, scale, self.bias)

    def predict(self, encoded: Encoded) -> Tensor:
        """Both features of each example, ``[E, 2, dim]``."""
        return torch.stack([self.features(encoded, s) for s in self.pair], dim=1)


def _projection(kind: Projection, stream: str, width: int, dim: int) -> nn.Module:
    if kind != "none":
        return nn.Linear(width, dim, bias=kind == "affine")
    if width != dim:
        raise ValueError(f"projections.{stream}: none needs dim {width}, the width; it is {dim}")
    return nn.Identity()


def contrast(
    a: Tensor,
    b: Tensor,
    sample: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    at_once: int = LOGITS_AT_ONCE,
) -> dict[str, Tensor]:
    """Contrastive loss of local pairs against the pairs of all processes.

    Args:
        a, b: ``[K, dim]`` unit vectors; row i of both is one pair.
        sample: ``[K]`` int64, equal for pairs of one sample.
        weight: ``[K]``; pairs of weight 0 are neither scored nor anyone's negatives.
        scale: factor on cosines, a scalar.
        bias: added to scaled cosines; given, the sigmoid loss is used, else the softmax loss.
        at_once: elements of logits that may exist together; more are recomputed in backward.

    Returns:
        Sums over the local pairs. Softmax: the mean of both directions. Sigmoid: over all columns.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    columns = [_gather(x) for x in (a, b)]
    samples, weights = _gather(sample), _gather(weight)
    first = rank * len(a)
    step = max(1, at_once // max(1, len(samples)))
    total: dict[str, Tensor] = {}
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        own = torch.arange(first + rows.start, first + rows.stop, device=a.device)
        arguments = (
            a[rows], b[rows], columns[0], columns[1], own, sample[rows], samples,
            weight[rows], weights, scale, bias,
        )  # fmt: skip
        many = len(a) > step
        piece = checkpoint(_rows, *arguments, use_reentrant=False) if many else _rows(*arguments)
        total = {k: total[k] + v if total else v for k, v in piece.items()}
    return total


def _rows(
    a: Tensor, b: Tensor, all_a: Tensor, all_b: Tensor, own: Tensor, sample: Tensor,
    samples: Tensor, weight: Tensor, weights: Tensor, scale: Tensor, bias: Tensor | None,
) -> dict[str, Tensor]:  # fmt: skip
    everyone = torch.arange(len(samples), device=a.device)
    same = own[:, None] == everyone
    barred = ((sample[:, None] == samples) & ~same) | ((weights == 0) & ~same)
    forth = scale * a @ all_b.T
    if bias is None:
        forth = forth.masked_fill(barred, -torch.inf)
        back = (scale * b @ all_a.T).masked_fill(barred, -torch.inf)
        each = (F.cross_entropy(forth, own, reduction="none")
                + F.cross_entropy(back, own, reduction="none")) / 2  # fmt: skip
    else:
        sign = same.to(forth.dtype) * 2 - 1
        each = -(F.logsigmoid(sign * (forth + bias)).masked_fill(barred, 0)).sum(1)
        forth = forth.masked_fill(barred, -torch.inf)
    correct = ((forth.detach().argmax(1) == own) * weight).sum()
    return {"loss": (each * weight).sum(), "correct": correct}


def _gather(x: Tensor) -> Tensor:
    """Rows of all processes, rank by rank, with gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    if x.requires_grad:
        return _Gather.apply(x)
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums each process's rows over all processes."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
