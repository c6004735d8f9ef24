"""The model: embedders, the Transformer, heads. The one module that is trained and wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crossloom.batch import AimBatch, Batch, Encoded, Stream, ViewBatch, pick
from crossloom.modalities.modality import Embedder, Modality
from crossloom.models.attention import Attention, Layout
from crossloom.models.encode import encode
from crossloom.models.fusion import Fusion
from crossloom.models.momentum import Slow, follow
from crossloom.models.plan import Attend, Plan
from crossloom.objectives.match import Match
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
                does not exist, a mark has nothing to mark, units that an objective generates
                could be known before they are said, or units to choose from read no question.
        """
        super().__init__()
        tied = tied or {}
        # a tied stream may be decoded only, to be shown in another's place (``View.twice``)
        if not set(modalities) - set(tied) <= set(plan.widths) <= set(modalities):
            raise ValueError(
                f"modalities are {', '.join(modalities)}; "
                f"the plan's streams are {', '.join(plan.widths)}"
            )
        self.plan, self.objectives = plan, dict(objectives)
        self.views = {o: objective.view for o, objective in objectives.items()}
        seen: dict[str, View] = {}
        for name, objective in objectives.items():
            try:
                objective.check(modalities)
                objective.check_others(objectives)
                if objective.generates:
                    check_order(plan, objective.view, objective.generates)
                if objective.chosen:
                    check_reads(plan, objective.view, objective.chosen)
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
            _check_tied_stream(stream, owner, modalities, widths, self.owner)
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
        for name, head in self.heads.items():
            if not isinstance(head, ReconstructHead) or not head.tied:
                continue
            matrix = self._embedder(self.owner[head.stream]).tied(head.name)
            try:
                head.untie() if matrix is None else head.narrow(matrix.shape[1])
            except ValueError as error:
                raise ValueError(f"objectives.{name}: {error}") from None
        for name, objective in objectives.items():
            if isinstance(objective, Match) and objective.mined:
                for stream in objective.view.streams:
                    self._check_mined(name, stream)
            if objective.shares:
                _share(name, objective.shares, self.heads)
        _initialise(self)
        _set_epsilon(self, plan.epsilon)
        #: views that their head sends through the layers itself
        self.unseen = {o.view.name for o in objectives.values() if o.own_passes}
        for name, objective in objectives.items():
            if objective.view.name in self.unseen and not objective.own_passes:
                raise ValueError(
                    f"objectives.{name}: view {objective.view.name!r} is another objective's own; "
                    "give it a view of its own"
                )
        #: by view, the layers whose states are wanted, and how many layers are run (0: all)
        self.asked = {v: _asked(v, objectives, len(plan.layers)) for v in seen}
        if self.asked and all(depth for _, depth in self.asked.values()):
            raise ValueError(
                "no objective scores the last layer, so that those above would never be trained; "
                "shorten the plan, or leave the `layer` of one objective at 0"
            )
        self.slow = self._slow(objectives)
        self.catch_up()

    def _slow(self, objectives: Mapping[str, Objective]) -> Slow | None:
        asking = {n: o for n, o in objectives.items() if o.inertia is not None}
        if not asking:
            return None
        momenta = {o.inertia for o in asking.values()}
        if len(momenta) > 1:
            raise ValueError(
                f"objectives {', '.join(asking)}: one set of slow encoders serves all; "
                f"give them one momentum, not {', '.join(map(str, sorted(momenta)))}"  # type: ignore[type-var]
            )
        owners = {self.owner[s]: None for o in asking.values() for s in o.view.streams}
        if any(self._embedder(s).looks_at or self._embedder(s).lenders for s in owners):
            owners = dict.fromkeys(self.embed)  # they share parts
        depths = [o.depth for o in asking.values()]
        return Slow(
            nn.ModuleDict({s: self.embed[s] for s in owners}),
            self.fusion,
            float(momenta.pop() or 0.0),
            tuple(sorted({d for d in depths if d})),
            max(depths) if all(depths) else 0,
        )

    def _embedders(self, embed: nn.ModuleDict) -> dict[str, nn.Module]:
        found = {s: embed[owner] for s, owner in self.owner.items() if owner in embed}
        marked = {s: Marked(found[s], m) for s, m in self.marks.items() if s in found}
        return {**found, **marked}

    def _check_mined(self, name: str, stream: str) -> None:
        """Streams are paired anew as they were embedded: none may have seen another there."""
        if sees := self._embedder(self.owner[stream]).looks_at:
            raise ValueError(
                f"objectives.{name}.mined: {stream!r} is embedded with what it sees of "
                f"{', '.join(sees)}, so that pairs cannot be made anew; use view.mismatch"
            )

    def _embedder(self, stream: str) -> Embedder:
        embedder = self.embed[stream]
        assert isinstance(embedder, Embedder)
        return embedder

    def encode(
        self,
        view: ViewBatch,
        record: list[Attention] | None = None,
        layout: Layout | None = None,
        layers: tuple[int, ...] = (),
    ) -> Encoded:
        """One view through embedders and layers: :func:`crossloom.models.encode.encode`."""
        embedders = self._embedders(self.embed)
        return encode(embedders, self.fusion, view, record=record, layout=layout, layers=layers)

    def settle(self, local: Callable[[nn.Parameter], Tensor] = Tensor.detach) -> None:
        """What follows each optimiser step: slow copies move on, queues take in what was made.

        Args:
            local: what of a parameter this process holds, where they are sharded.
        """
        if self.slow is not None:
            follow(self._pairs(), self.slow.momentum, local)
        for head in self._heads():
            head.settle()

    def catch_up(self) -> None:
        """Make slow copies equal to what they follow: at the start of a run."""
        follow(self._pairs(), 0.0)

    def _heads(self) -> list[Head]:
        return [h for h in self.heads.values() if isinstance(h, Head)]

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        if self.slow is None:
            return []
        pairs = self.slow.pairs(self.embed, self.fusion)
        return [*pairs, *(pair for head in self._heads() for pair in head.followers())]

    def forward(
        self, batch: Batch, predict: tuple[str, ...] = ()
    ) -> dict[str, dict[str, Tensor]] | dict[str, Tensor]:
        """Training: weighted sums by objective and meter. With ``predict``: predictions by head.

        Args:
            batch: tensors on the model's device.
            predict: objectives whose per-example predictions are wanted instead of losses.
        """
        passes = _Passes(self, batch)
        if predict:
            return {
                name: self.heads[name].predict(passes.of(name))  # type: ignore[operator]
                for name in predict
            }
        return {name: head(passes.of(name), batch.aims[name]) for name, head in self.heads.items()}


class _Passes:
    """The passes of one batch: each view is encoded once, and again where a head asks for it."""

    def __init__(self, model: CrossloomModel, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self._encoded: dict[str, Encoded] = {}
        self._slow: dict[tuple[int, tuple[str, ...]], Encoded] = {}

    def of(self, objective: str) -> Encoded:
        """The view of an objective."""
        name = self.model.views[objective].name
        if name not in self._encoded:
            layers, depth = self.model.asked[name]
            embedders = self.model._embedders(self.model.embed)
            view = self.batch.views[name]
            if name in self.model.unseen:
                found = Encoded(view, {}, embedders)
            else:
                found = encode(embedders, self.model.fusion, view, layers=layers, depth=depth)
            self._encoded[name] = replace(found, passes=self)
        return self._encoded[name]

    def beside(self, objective: str) -> tuple[nn.Module, Encoded, AimBatch]:
        """See :meth:`crossloom.batch.Encoded.beside`."""
        return self.model.heads[objective], self.of(objective), self.batch.aims[objective]

    def again(self, encoded: Encoded, order: Mapping[str, Tensor]) -> Encoded:
        """See :meth:`crossloom.batch.Encoded.again`."""
        streams, states = {}, {}
        for name, stream in encoded.view.streams.items():
            streams[name], index = pick(stream, order[name])
            states[name] = encoded.embedded[name].index_select(0, index)
        view = replace(encoded.view, streams=streams)
        found = encode(encoded.embedders, self.model.fusion, view, embedded=states)
        return replace(found, passes=self)

    def anew(self, encoded: Encoded, view: ViewBatch) -> Encoded:
        """See :meth:`crossloom.batch.Encoded.anew`."""
        return replace(encode(encoded.embedders, self.model.fusion, view), passes=self)

    def slow(self, encoded: Encoded, streams: tuple[str, ...]) -> Encoded:
        """See :meth:`crossloom.batch.Encoded.slow`."""
        slow = self.model.slow
        assert slow is not None, "an objective that asks for slow encoders has `inertia`"
        key = (id(encoded.view), streams)
        if key not in self._slow:
            shown = {s: encoded.view.streams[s] for s in streams}
            view = replace(encoded.view, streams=shown)
            embedders = self.model._embedders(slow.embed)
            with torch.no_grad():
                self._slow[key] = encode(
                    embedders, slow.fusion, view, layers=slow.layers, depth=slow.depth
                )
        return self._slow[key]


def _asked(
    view: str, objectives: Mapping[str, Objective], layers: int
) -> tuple[tuple[int, ...], int]:
    """Layers whose states objectives on a view score, and how many need to be run (0: all)."""
    depths = {n: o.depth for n, o in objectives.items() if o.view.name == view}
    for name, depth in depths.items():
        if not 0 <= depth <= layers:
            raise ValueError(f"objectives.{name}.layer: {depth} of a plan of {layers} layers")
    wanted = tuple(sorted({d for d in depths.values() if d}))
    return wanted, max(wanted) if all(depths.values()) else 0


def check_order(plan: Plan, view: View, stream: str) -> None:
    """Raise ValueError when a unit of the stream could come to know a later one.

    In this view every block in which the stream reads itself must be causal in it, and nothing that
    it reads, itself or through others, may read it. Others may: an image reads its caption, where
    both are said (DALL·E).
    """
    names: dict[str, Any] = dict.fromkeys(view.streams)
    shown = ViewBatch(streams=names, apart=view.apart, reads=view.reads)
    known = _known(plan, shown, stream)
    for number, layer in enumerate(plan.layers):
        for place, block in enumerate(layer.blocks):
            if not isinstance(block, Attend):
                continue
            where = f"plan: layer {number}, block {place}"
            for reader in (r for r in block.reads if r in view.streams):
                if stream not in shown.readable(reader, block.reads[reader]):
                    continue
                if reader not in known:
                    continue
                if reader != stream:
                    others = tuple(s for s in view.streams if s != stream)
                    raise ValueError(
                        f"{where}: {reader!r} reads {stream!r}, which is said unit by unit; let "
                        f"view {view.name!r} have reads: {{{reader}: [{', '.join(others)}]}}"
                    )
                if stream not in (*block.causal, *view.causal):
                    raise ValueError(
                        f"{where}: {stream!r} reads its later units; let view {view.name!r} have "
                        f"causal: [{stream}]"
                    )


def _known(plan: Plan, view: ViewBatch, stream: str) -> set[str]:
    """The stream, and all that it reads in any number of layers."""
    attends = [b for b in plan.blocks.values() if isinstance(b, Attend)]
    known, found = set[str](), {stream}
    while found > known:
        known = found
        found = known.union(*(view.readable(r, b.reads.get(r, ())) for b in attends for r in known))
    return known


def check_reads(plan: Plan, view: View, stream: str) -> None:
    """Raise ValueError when the stream reads no other of the view in any block."""
    shown = ViewBatch(streams=dict.fromkeys(view.streams), apart=view.apart, reads=view.reads)  # type: ignore[arg-type]
    for block in plan.blocks.values():
        read = block.reads.get(stream, ()) if isinstance(block, Attend) else ()
        if {s for s in shown.readable(stream, read) if s in view.streams} - {stream}:
            return
    raise ValueError(
        f"{stream!r} reads no other stream in this plan and view, so that its units cannot know "
        "which of them is asked for; take a recipe whose regions read the text (single stream or "
        "co-attention)"
    )


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


def _check_tied_stream(
    stream: str,
    owner: str,
    modalities: Mapping[str, Modality],
    widths: Mapping[str, int],
    owners: Mapping[str, str],
) -> None:
    if owner not in modalities or owners[owner] != owner:
        raise ValueError(f"tied.{stream}: {owner!r} is no stream with an embedder of its own")
    one, other = modalities[stream], modalities[owner]
    alike = type(one) is type(other) and widths[stream] == widths[owner]
    if not alike or replace(one, **{f: getattr(other, f) for f in one.own}) != other:
        raise ValueError(
            f"tied.{stream}: differs from {owner!r}; tied streams may differ in "
            f"{' and '.join(f'`{f}`' for f in one.own)} only"
        )


class Marked(Embedder):
    """What embeds a stream, and a vector on each unit; both belong to the model, not to this."""

    def __init__(self, embedder: nn.Module, mark: nn.Parameter) -> None:
        super().__init__()
        assert isinstance(embedder, Embedder)
        self.looks_at = embedder.looks_at
        # straight into the instance, past nn.Module's registration
        self.__dict__["inner"], self.__dict__["mark"] = embedder, mark

    def forward(self, stream: Stream, others: Mapping[str, Stream] | None = None) -> Tensor:
        """``[N, width]``."""
        inner = self.__dict__["inner"]
        embedded: Tensor = inner(stream, others) if self.looks_at else inner(stream)
        return embedded + self.__dict__["mark"]

    def tied(self, target: str) -> Tensor | None:
        """The embedder's own."""
        weight: Tensor | None = self.__dict__["inner"].tied(target)
        return weight


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
