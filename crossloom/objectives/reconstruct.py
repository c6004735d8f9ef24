"""Predicting hidden units: MLM, MMLM, TLM, MRC, MRC-KL, MRFR, masked patches and speech.

One family: the modality declares the target and its form, the view says what is hidden, and the
form (or ``loss``) says how it is scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality, Target
from crossloom.objectives.objective import Aim, Head, Objective, lend, operations
from crossloom.objectives.view import Shown
from crossloom.objectives.vocabulary import cross_entropy_sum
from crossloom.units import Array, Fate

Loss = Literal["auto", "cross_entropy", "kl", "mse", "smooth_l1"]
DEFAULT_LOSS: dict[str, Loss] = {"index": "cross_entropy", "distribution": "kl", "vector": "mse"}
#: Logits held at once, elements; beyond it they are made a chunk at a time.
LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Objective):
    """Predict ``target`` of the selected units of ``stream``.

    Losses, summed over slots: ``cross_entropy`` (index), ``kl`` (target ‖ prediction, summed over
    classes, as in ViLBERT), ``mse`` and ``smooth_l1`` (mean over the vector's elements, as in
    UNITER).
    """

    kind: ClassVar[str] = "reconstruct"
    stream: str
    target: str
    loss: Loss = "auto"
    tied: bool = True
    """Share the decoder's matrix with the embedder where it offers one."""
    transform: bool = True
    """Linear, GELU and norm before the decoder (BERT); XLM has none."""
    matched_only: bool = True
    """Skip examples whose streams do not belong together."""
    everywhere: bool = False
    """Score every maskable unit that has the target, hidden or not. LXMERT's code does so with the
    objects and attributes that its detector named; its paper scores hidden regions only."""
    trusted: bool = False
    """Multiply each unit's loss by how far its value is trusted (``Target.trusted``): LXMERT's
    detector confidence. The mean is still over units."""

    @property
    def scored(self) -> str:
        """The stream."""
        return self.stream

    def aim(self, shown: Shown) -> Aim:
        """The selected units that have the target."""
        values = shown.units[self.stream].targets[self.target]
        units = shown.units[self.stream]
        selected = units.maskable if self.everywhere else shown.fate[self.stream] != Fate.KEEP
        if self.matched_only and not shown.matched:
            selected = np.zeros_like(selected)
        if values.ndim == 1:
            selected = selected & (values >= 0)
        index = np.flatnonzero(selected)
        trust = units.targets[f"{self.target}.trust"][index] if self.trusted else None
        return Aim(index, values[index], trust)

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Class 0, or a vector of zeros."""
        return blank_target(modalities[self.stream].predictable()[self.target])

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """The decoder, with or without its transform."""
        target = modalities[self.stream].predictable()[self.target]
        return ReconstructHead(
            stream=self.stream,
            name=self.target,
            target=target,
            loss=self.loss,
            width=widths[self.stream],
            tied=self.tied,
            transform=self.transform,
        )

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be hidden in the view, and offer the target in a fitting form."""
        super().check(modalities)
        if self.stream not in self.view.hide and not self.everywhere:
            raise ValueError(
                f"view {self.view.name!r} hides nothing of {self.stream!r}; "
                f"add view.hide.{self.stream}"
            )
        offer = check_target(modalities[self.stream], self.stream, self.target, self.loss)
        if self.trusted and not offer.trusted:
            raise ValueError(
                f"stream {self.stream!r} does not say how far target {self.target!r} is trusted; "
                "set trusted to false"
            )


def check_target(modality: Modality, stream: str, target: str, loss: Loss) -> Target:
    """The target on offer.

    Raises:
        ValueError: the modality does not offer it, or the loss does not fit.
    """
    offer = modality.predictable()
    if target not in offer:
        raise ValueError(
            f"stream {stream!r} offers no target {target!r}; it offers {', '.join(offer) or 'none'}"
        )
    form = offer[target].form
    fits = {
        "index": {"cross_entropy"},
        "distribution": {"kl"},
        "vector": {"mse", "smooth_l1"},
    }[form]
    if loss != "auto" and loss not in fits:
        raise ValueError(
            f"loss {loss!r} does not fit target {target!r}, which is "
            f"a {form}; use {' or '.join(sorted(fits))}"
        )
    return offer[target]


def blank_target(target: Target) -> Array:
    """Class 0, or a vector of zeros, ``[1, ...]``: a value for a slot of weight zero."""
    if target.form == "index":
        return np.zeros(1, np.int64)
    return np.zeros((1, target.dim), np.float32)


class ReconstructHead(Head):
    """The transform and decoder of BERT's MLM head, for any target."""

    def __init__(
        self,
        *,
        stream: str,
        name: str,
        target: Target,
        loss: Loss,
        width: int,
        tied: bool,
        transform: bool = True,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.stream, self.name, self.tied, self.smoothing = stream, name, tied, smoothing
        self.loss = DEFAULT_LOSS[target.form] if loss == "auto" else loss
        self.transform: nn.Module = nn.Identity()
        if transform:
            self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(target.dim))
        self.decoder: nn.Parameter | None = None
        self.shape = (target.dim, width)
        if not tied:
            self.untie()

    def operations(self, slots: float) -> float:
        """The transform, lent or own, and the decoder."""
        dim, width = self.shape
        return operations(self.transform, slots) + 2 * slots * dim * width

    def borrow(self, other: Head) -> None:
        """Use another head's transform."""
        lend(self, other, "transform")

    def narrow(self, inner: int) -> None:
        """Come from the stream's width to that of a tied matrix.

        Raises:
            ValueError: there is no transform that could.
        """
        dim, width = self.shape
        if inner == width:
            return
        if isinstance(self.transform, nn.Identity):
            raise ValueError(
                f"pieces of {self.stream!r} have width {inner}, its states {width}: set transform, "
                "or tied to false"
            )
        self.transform = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.LayerNorm(inner))
        self.shape = (dim, inner)

    def untie(self) -> None:
        """Give the head a matrix of its own (the embedder offers none, or none is wanted)."""
        self.tied = False
        self.decoder = nn.Parameter(torch.empty(self.shape).normal_(std=0.02))

    def matrix(self, encoded: Encoded) -> Tensor:
        """The decoder's matrix ``[dim, width]``."""
        if self.decoder is not None:
            return self.decoder
        weight = encoded.embedders[self.stream].tied(self.name)  # type: ignore[operator]
        assert weight is not None
        return weight

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Weighted loss, ``correct`` for classes, ``by_language`` where the batch tells them."""
        x = self.transform(encoded.at(self.stream, aim.index))
        weight = aim.weight if aim.trust is None else aim.weight * aim.trust
        found = decode_loss(
            x,
            self.matrix(encoded),
            self.bias,
            aim.value,
            weight,
            self.loss,
            smoothing=self.smoothing,
        )
        return found | aim.by_language(found.pop("each"))

    def logits(self, encoded: Encoded, index: Tensor) -> Tensor:
        """Predictions ``[K, dim]`` at chosen units."""
        x = self.transform(encoded.at(self.stream, index))
        return F.linear(x, self.matrix(encoded), self.bias)


def draw_classes(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor,
    *,
    drawn: bool,
    barred: Tensor | None = None,
    at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """A class for each row of a linear decoder, some logits at a time; without gradient.

    Args:
        x: ``[K, width]``. matrix: ``[dim, width]``. bias: ``[dim]``.
        drawn: with the softmax of the logits for chances (Gumbel's maxima, from torch's random
            stream), else the best.
        barred: classes that are never taken, int64.
        at_once: elements of logits that may exist together.

    Returns:
        ``[K]`` int64.
    """
    found = []
    for rows in x.detach().split(max(1, at_once // len(bias))):
        logits = F.linear(rows, matrix, bias).detach().float()
        if barred is not None:
            logits = logits.index_fill(1, barred, -torch.inf)
        if drawn:
            logits = logits - torch.empty_like(logits).exponential_().log()
        found.append(logits.argmax(1))
    return torch.cat(found)


def decode_loss(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor,
    value: Tensor,
    weight: Tensor,
    loss: Loss,
    at_once: int = LOGITS_AT_ONCE,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Weighted loss of a linear decoder, a chunk of slots at a time when the logits are many.

    Args:
        x: ``[K, width]``. matrix: ``[dim, width]``. bias: ``[dim]``. weight: ``[K]``.
        value: ``[K]`` int64 for ``cross_entropy``, else ``[K, dim]``.
        loss: see :class:`Reconstruct`.
        at_once: elements of logits that may exist together. Beyond it, ``cross_entropy`` makes its
            gradients with the loss; other losses make their logits again in backward.
        smoothing: share of the aim spread over all classes, 0..1; for ``cross_entropy``.

    Returns:
        ``loss``, ``correct`` (for classes), and ``each``: the weighted loss of each slot ``[K]``,
        without gradient.
    """
    step = max(1, at_once // len(bias))
    if len(x) <= step:
        return _piece(x, matrix, bias, value, weight, loss, smoothing)
    if loss == "cross_entropy":
        summed, correct, each = cross_entropy_sum(x, matrix, bias, value, weight, step, smoothing)
        return {"loss": summed, "correct": correct, "each": each}
    total: dict[str, Tensor] = {}
    apart: list[Tensor] = []
    for part in torch.arange(len(x)).split(step):
        here = slice(int(part[0]), int(part[-1]) + 1)
        piece = checkpoint(
            _piece,
            x[here],
            matrix,
            bias,
            value[here],
            weight[here],
            loss,
            smoothing,
            use_reentrant=False,
        )
        apart.append(piece.pop("each"))
        total = {k: total[k] + v if total else v for k, v in piece.items()}
    return {**total, "each": torch.cat(apart)}


def _piece(
    x: Tensor,
    matrix: Tensor,
    bias: Tensor,
    value: Tensor,
    weight: Tensor,
    loss: Loss,
    smoothing: float,
) -> dict[str, Tensor]:
    out = F.linear(x, matrix, bias).float()
    aim = value if loss == "cross_entropy" else value.float()
    if loss == "cross_entropy":
        each = F.cross_entropy(out, aim, reduction="none", label_smoothing=smoothing)
    elif loss == "kl":
        each = F.kl_div(out.log_softmax(1), aim, reduction="none").sum(1)
        aim = aim.argmax(1)
    else:
        function = F.mse_loss if loss == "mse" else F.smooth_l1_loss
        each = function(out, aim, reduction="none").mean(1)
    each = each * weight
    found = {"loss": each.sum(), "each": each.detach()}
    if loss in ("cross_entropy", "kl"):
        found["correct"] = ((out.detach().argmax(1) == aim) * weight).sum()
    return found
