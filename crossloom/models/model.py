"""The model: embedders, the Transformer, heads. The one module that is trained and wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from crossloom.batch import Batch, Encoded, Stream, ViewBatch
from crossloom.modalities.modality import Embedder, Modality
from crossloom.models.attention import Attention, Layout
from crossloom.models.fusion import Fusion
from crossloom.models.plan import Plan
from crossloom.objectives.objective import Head, Objective
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.objectives.view import View


class CrossloomModel(nn.Module):
    """Embed, fuse, score. ``forward`` is the only method called on a wrapped model."""

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        plan: Plan,
        objectives: Mapping[str, Objective],
        tied: Mapping[str, str] | None = None,
        marked: tuple[str, ...] = (),
    ) -> None:
        """Build all parts with fresh weights.

        Args:
            modalities: by stream.
            plan: the Transformer over these streams.
            objectives: by name.
            tied: streams embedded by another stream's module, as ``{stream: other}``.
            marked: tied streams that are told from the one they are tied to by a learned vector.

        Raises:
            ValueError: an objective asks for streams or targets that do not exist, two different
                views share a name, the plan and the modalities name different streams, tied
                streams differ in more than the member they read, what embedders or heads share
                does not exist, or a mark has nothing to mark.
        """
        super().__init__()
        tied = tied or {}
        # a tied stream may be decoded only, to be shown in another's place (``View.twice``)
        if not set(modalities) - set(tied) <= set(plan.widths) <= set(modalities):
            raise ValueError(
                f"modalities are {', '.join(modalities)}; "
                f"the plan's streams are {', '.join(plan.widths)}"
            )
        self.views = {o: objective.view for o, objective in objectives.items()}
        seen: dict[str, View] = {}
        for name, objective in objectives.items():
            try:
                objective.check(modalities)
            except ValueError as error:
                raise ValueError(f"objectives.{name}: {error}") from None
            view = objective.view
            if strange := [s for s in view.streams if s not in plan.widths]:
                raise ValueError(f"objectives.{name}: the plan has no stream {', '.join(strange)}")
            if seen.setdefault(view.name, view) != view:
                raise ValueError(
                    f"objectives.{name}: another view is called {view.name!r} too; rename one"
                )
        widths = dict(plan.widths)
        widths |= {s: widths[tied[s]] for s in modalities if s not in widths and tied[s] in widths}
        #: by stream, the stream whose embedder it uses
        self.owner = {s: tied.get(s, s) for s in modalities}
        for stream, owner in self.owner.items():
            _check_tie(stream, owner, modalities, widths, self.owner)
        self.embed = nn.ModuleDict(
            {s: m.embedder(widths[s]) for s, m in modalities.items() if self.owner[s] == s}
        )
        owners = {s: self._embedder(owner) for s, owner in self.owner.items()}
        for stream in self.embed:
            try:
                self._embedder(stream).borrow(owners)
            except ValueError as error:
                raise ValueError(f"modalities.{stream}: {error}") from None
        _check_marks(marked, self.owner, self.views.values())
        # zero: at first a second picture looks like the first (UNITER copies the type's embedding)
        self.marks = nn.ParameterDict({s: nn.Parameter(torch.zeros(widths[s])) for s in marked})
        self.fusion = Fusion(plan)
        self.heads = nn.ModuleDict({o: x.head(modalities, widths) for o, x in objectives.items()})
        for head in self.heads.values():
            if not isinstance(head, ReconstructHead) or not head.tied:
                continue
            if self._embedder(self.owner[head.stream]).tied(head.name) is None:
                head.untie()
        for name, objective in objectives.items():
            if objective.shares:
                _share(name, objective.shares, self.heads)
        _initialise(self)
        _set_epsilon(self, plan.epsilon)

    def _embedder(self, stream: str) -> Embedder:
        embedder = self.embed[stream]
        assert isinstance(embedder, Embedder)
        return embedder

    def encode(self, view: ViewBatch, record: list[Attention] | None = None) -> Encoded:
        """One view through embedders and Transformer."""
        embedders = {stream: self.embed[owner] for stream, owner in self.owner.items()}
        states = {
            name: self._embed(self._embedder(self.owner[name]), name, view) for name in view.streams
        }
        states |= {s: states[s] + mark for s, mark in self.marks.items() if s in states}
        return Encoded(view, self.fusion(states, view, record), embedders)

    def _embed(self, embedder: Embedder, name: str, view: ViewBatch) -> Tensor:
        stream = view.streams[name]
        if not embedder.looks_at:
            return embedder(stream)
        # what may not be read in this view may not be looked at either
        readable = Layout(view).readable(name, embedder.looks_at)
        others: dict[str, Stream] = {n: view.streams[n] for n in readable}
        return embedder(stream, others)

    def forward(
        self, batch: Batch, predict: tuple[str, ...] = ()
    ) -> dict[str, dict[str, Tensor]] | dict[str, Tensor]:
        """Training: weighted sums by objective and meter. With ``predict``: predictions by head.

        Args:
            batch: tensors on the model's device.
            predict: objectives whose per-example predictions are wanted instead of losses.
        """
        encoded: dict[str, Encoded] = {}
        wanted = predict or tuple(self.heads)
        for name in wanted:
            view = self.views[name].name
            if view not in encoded:
                encoded[view] = self.encode(batch.views[view])
        if predict:
            return {
                name: self.heads[name].predict(encoded[self.views[name].name])  # type: ignore[operator]
                for name in predict
            }
        return {
            name: head(encoded[self.views[name].name], batch.aims[name])
            for name, head in self.heads.items()
        }


def _share(name: str, other: str, heads: nn.ModuleDict) -> None:
    if other not in heads or other == name:
        raise ValueError(f"objectives.{name}.shares: there is no other objective {other!r}")
    head, lender = heads[name], heads[other]
    assert isinstance(head, Head)
    assert isinstance(lender, Head)
    try:
        head.borrow(lender)
    except ValueError as error:
        raise ValueError(f"objectives.{name}.shares: {error}") from None


def _check_tie(
    stream: str,
    owner: str,
    modalities: Mapping[str, Modality],
    widths: Mapping[str, int],
    owners: Mapping[str, str],
) -> None:
    if owner not in modalities or owners[owner] != owner:
        raise ValueError(f"tied.{stream}: {owner!r} is no stream with an embedder of its own")
    one, other = modalities[stream], modalities[owner]
    if replace(one, field=other.field) != other or widths[stream] != widths[owner]:
        raise ValueError(
            f"tied.{stream}: differs from {owner!r}; tied streams may differ in `field` only"
        )


def _check_marks(marked: tuple[str, ...], owners: Mapping[str, str], views: Iterable[View]) -> None:
    """Marks must be of tied streams that a view shows: else they would never get a gradient."""
    shown = {s for view in views for s in view.streams}
    for stream in marked:
        if owners.get(stream, stream) == stream:
            raise ValueError(f"marked: {stream!r} is no tied stream; add it to `tied`")
        if stream not in shown:
            raise ValueError(f"marked: no objective's view shows {stream!r}")


def _set_epsilon(module: nn.Module, epsilon: float) -> None:
    """One epsilon for the layer norms of layers, embedders and heads: the plan's."""
    if getattr(module, "keeps_weights", False):
        return
    if isinstance(module, nn.LayerNorm):
        module.eps = epsilon
    for child in module.children():
        _set_epsilon(child, epsilon)


def _initialise(module: nn.Module) -> None:
    """BERT's initial weights, at any width: normal, biases zero.

    BERT's deviation of 0.02 suits its width of 768; for other widths it is scaled so that outputs
    start as large as BERT's (with 0.02 at width 128, attention starts all but uniform and learns
    slowly). Modules whose attribute ``keeps_weights`` is true (others' towers) are left alone.
    """
    if getattr(module, "keeps_weights", False):
        return
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02 * (768 / module.in_features) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for child in module.children():
        _initialise(child)
