"""Regions as vectors: feature and box joined as published systems do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.boxes import encoded, waves
from crossloom.modalities.modality import Embedder

if TYPE_CHECKING:
    from crossloom.modalities.regions import Part, Regions

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}


class RegionEmbedder(Embedder):
    """Feature and box to a vector; a hidden region shows a mask's feature in its own box.

    UNITER, ``model/model.py``: zero plus a learned vector, before the linear layer.
    """

    def __init__(self, spec: Regions, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.looks_at = (spec.lent["position"],) if "position" in spec.lent else ()
        numbers = {0: 0, "waves": 8 * spec.waves}.get(spec.box, spec.box)
        assert isinstance(numbers, int)
        activation = _ACTIVATIONS[spec.activation]
        beside = numbers if spec.join == "concat" else 0
        inputs = (spec.hidden or spec.features) + beside
        self.first = (
            nn.Sequential(nn.Linear(spec.features, spec.hidden), activation())
            if spec.hidden
            else nn.Identity()
        )
        self.feature = nn.Linear(inputs, width)
        self.activation = activation()
        # with join: concat the box has no layer of its own
        alone = spec.join == "sum" and numbers > 0
        chances = spec.classes + 1 if spec.chances else 0
        self.box = nn.Linear(numbers + chances, width) if alone else None
        learned = spec.mask == "learned"
        self.mask = nn.Parameter(torch.zeros(spec.features)) if learned else None
        each = spec.norm in ("norm_of_norms", "mean_of_norms")
        self.feature_norm = nn.LayerNorm(width) if each else nn.Identity()
        if isinstance(self.feature_norm, nn.LayerNorm):
            nn.init.constant_(self.feature_norm.weight, spec.gain)
        self.box_norm = nn.LayerNorm(width) if each and alone else nn.Identity()
        last = spec.norm in ("norm_of_norms", "norm_of_sum") and "norm" not in spec.lent
        self.norm = nn.LayerNorm(width) if last else nn.Identity()
        self.word = nn.Embedding(2, width) if spec.word else None
        # an embedding of one row, so that it starts as words do
        self.end = nn.Embedding(1, width) if spec.end else None
        self.segment = nn.Embedding(spec.segments, width) if spec.segments else None
        self.position = nn.Embedding(spec.positions, width) if spec.positions else None
        self.dropout = nn.Dropout(spec.dropout)
        frame = encoded(np.array([[0, 0, 1, 1]], np.float32), spec.box)
        self.frame: Tensor
        self.register_buffer("frame", torch.from_numpy(frame), persistent=False)
        self._lent: dict[str, nn.Module] = {}

    def borrow(self, embedders: Mapping[str, Embedder]) -> None:
        """Use parts of other streams' embedders, as ``Regions.lent`` says.

        Raises:
            ValueError: there is no such stream or part, or it has too few rows.
        """
        for part, stream in self.spec.lent.items():
            module = getattr(embedders.get(stream), part, None)
            if not isinstance(module, nn.Module):
                raise ValueError(f"lent.{part}: stream {stream!r} has no {part} to lend")
            rows = module.num_embeddings if isinstance(module, nn.Embedding) else 0
            if part == "segment" and self.spec.segment >= rows:
                raise ValueError(f"segment {self.spec.segment}: {stream!r} has no such row")
            spare = 1 + int(self.spec.end)
            if part == "position" and getattr(embedders[stream], "spare", 0) < spare:
                raise ValueError(
                    f"lent.position: {stream!r} has no row after its longest text for each of "
                    f"{'regions and end' if self.spec.end else 'regions'}; let its positions "
                    f"exceed its limit by {spare}"
                )
            # a mapping, so that the part stays registered with its owner alone
            self._lent[part] = module

    def _part(self, name: Part) -> nn.Module | None:
        if name not in self.spec.lent:
            return getattr(self, name)
        if name not in self._lent:
            raise ValueError(f"lent.{name}: embedders lend in a model; none has lent here yet")
        return self._lent[name]

    def forward(self, stream: Stream, others: Mapping[str, Stream] | None = None) -> Tensor:
        """``[N, width]``; ``others``: the streams that are looked at."""
        total = self.joined(stream)
        if self.word is not None:
            total = total + self.word(stream.hidden.long())
        if self.end is not None:
            total = torch.where(self._ends(stream)[:, None], self.end.weight.to(total.dtype), total)
        if (segment := self._part("segment")) is not None:
            total = total + segment(torch.full_like(stream.position, self.spec.segment))
        if (position := self._part("position")) is not None:
            total = total + position(self._places(stream, others or {}))
        norm = self._part("norm")
        assert norm is not None
        return self.dropout(norm(total))

    def joined(self, stream: Stream) -> Tensor:
        """Feature and box joined, before what all regions share: ``[N, width]``."""
        feature, box = self._projected(self.visible(stream), stream.content["box"], stream)
        total = self.feature_norm(feature)
        if box is not None:
            total = total + self.box_norm(box)
        return total / 2 if self.spec.norm == "mean_of_norms" else total

    def projected(self, stream: Stream) -> Tensor:
        """What words that refer to a region are shown of it, ``[N, width]``: no norm yet."""
        feature, box = self._projected(self.visible(stream), stream.content["box"], stream)
        return feature if box is None else feature + box

    def whole(self, stream: Stream) -> Tensor:
        """What words are shown of the whole image, ``[E, width]``: no norm yet.

        The mean of the visible regions, in the box of the image.
        """
        mean = self.mean(stream)
        feature, box = self._projected(mean, self.frame.expand(len(mean), -1), None)
        return feature if box is None else feature + box

    def _projected(
        self, feature: Tensor, box: Tensor, stream: Stream | None
    ) -> tuple[Tensor, Tensor | None]:
        dtype = self.feature.weight.dtype
        feature, box = feature.to(dtype), box.to(dtype)
        if self.spec.unit_length:
            feature, box = F.normalize(feature, dim=1), F.normalize(box, dim=1)
        feature = self.first(feature)
        if self.spec.box == "waves":
            box = waves(box, self.spec.waves)
        if self.spec.join == "concat":
            feature = torch.cat([box, feature], dim=1)
        feature = self.activation(self.feature(feature))
        if self.box is None:
            return feature, None
        if self.spec.chances:
            shown = box.new_zeros(len(box), self.spec.classes)
            if stream is not None:
                shown = torch.where(stream.hidden[:, None], shown, stream.content["classes"])
            box = torch.cat([box, shown.amax(1, keepdim=True)], dim=1)
            box = torch.cat([F.layer_norm(x, x.shape[1:]) for x in (box, shown)], dim=1)
        return feature, self.activation(self.box(box))

    def visible(self, stream: Stream) -> Tensor:
        """The features shown, ``[N, F]``: the mask's where hidden, first the mean of the rest."""
        feature = stream.content["feature"]
        seen = torch.where(stream.hidden[:, None], self._masked(feature), feature)
        if self.spec.overall:
            mean = self.mean(stream).index_select(0, stream.example)
            seen = torch.where((stream.position == 0)[:, None], mean, seen)
        return seen

    def _masked(self, like: Tensor) -> Tensor:
        if self.mask is None:
            return like.new_zeros(self.spec.features)
        return self.mask.to(like.dtype)

    def mean(self, stream: Stream) -> Tensor:
        """The mean feature ``[E, F]`` of each example's visible regions; the mask if all are hid.

        The mean takes no hidden region, whose feature it would tell (VL-BERT takes them out too;
        ViLBERT and VOLTA do so in part).
        """
        feature = stream.content["feature"]
        visible = ~stream.hidden
        if self.spec.overall:
            visible = visible & (stream.position > 0)
        if self.spec.end:
            visible = visible & ~self._ends(stream)
        # where, not a product: a hidden NaN must not reach the sum
        shown = torch.where(visible[:, None], feature, torch.zeros_like(feature))
        examples = len(stream.length)
        total = feature.new_zeros(examples, feature.shape[1]).index_add(0, stream.example, shown)
        count = feature.new_zeros(examples).index_add(0, stream.example, visible.to(feature.dtype))
        mean = total / count.clamp(min=1)[:, None]
        return torch.where((count > 0)[:, None], mean, self._masked(feature))

    def _places(self, stream: Stream, others: Mapping[str, Stream]) -> Tensor:
        """Row of each region in the table of positions, ``[N]``."""
        owner = others.get(self.spec.lent.get("position", ""))
        place = torch.zeros_like(stream.position)
        if owner is not None:
            place = owner.length.index_select(0, stream.example)
        return place + self._ends(stream).long() if self.spec.end else place

    def _ends(self, stream: Stream) -> Tensor:
        """Which units stand for the end, ``[N]``: the last of each example."""
        return stream.position == stream.length.index_select(0, stream.example) - 1

    def tied(self, target: str) -> Tensor | None:
        """The feature layer's weight, transposed, for the target ``feature`` (UNITER).

        For ``token``, the table of word pieces that a text lends.
        """
        if target == "token" and "token" in self._lent:
            return self._lent["token"].weight  # type: ignore[return-value]
        plain = self.spec.join == "sum" and not self.spec.hidden
        return self.feature.weight.T if target == "feature" and plain else None
