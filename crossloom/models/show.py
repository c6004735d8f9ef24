"""A plan told to people: in a few words, and as a table with equal layers folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from crossloom.models.fusion import Fusion
from crossloom.models.plan import Attend, Block, Place, Plan


@dataclass(frozen=True, kw_only=True)
class Run:
    """Equal layers, one after the other."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many layers."""
        return self.last - self.first + 1

    @property
    def numbers(self) -> str:
        """``3`` or ``0–5``."""
        return span(self.first, self.last)


def span(first: int, last: int) -> str:
    """``3`` or ``0–5``."""
    return f"{first}" if first == last else f"{first}–{last}"


def folded(plan: Plan) -> tuple[Run, ...]:
    """The layers that do something, equal neighbours together.

    Layers are equal when they do the same with weights of their own, with those of one layer, or
    with those of layers that follow each other likewise. Patterns on grids (``Attend.sparse``) may
    differ within a run: :func:`patterns` tells them.
    """
    runs: list[Run] = []
    for number, layer in enumerate(plan.layers):
        if not any(b.changes for b in layer.blocks):
            continue
        if runs and runs[-1].last == number - 1 and _follows(plan, number):
            runs[-1] = replace(runs[-1], last=number)
        else:
            runs.append(Run(first=number, last=number))
    return tuple(runs)


def _follows(plan: Plan, number: int) -> bool:
    """Does a layer do what the one before it does?"""
    before, this = plan.layers[number - 1].blocks, plan.layers[number].blocks
    if [_alike(b) for b in before] != [_alike(b) for b in this]:
        return False
    for place in range(len(this)):
        one, two = plan.home[number - 1, place], plan.home[number, place]
        own = one == (number - 1, place), two == (number, place)
        if own[0] != own[1] or (not own[0] and two not in (one, (one[0] + 1, one[1]))):
            return False
    return True


def _alike(block: Block) -> Block:
    """A block without what may differ in equal layers."""
    if isinstance(block, Attend):
        return replace(block, tied="", sparse={})
    return replace(block, tied="")


def patterns(plan: Plan, run: Run, block: int) -> str:
    """What streams on a grid read of themselves: ``image by row (47), column (16)``, or ``""``.

    In brackets stand the layers of the run that read so, where not all of them do.
    """
    found: dict[str, Counter[str]] = {}
    for layer in plan.layers[run.first : run.last + 1]:
        spec = layer.blocks[block]
        for stream, grid in spec.sparse.items() if isinstance(spec, Attend) else ():
            square = f" of {grid.kernel} × {grid.kernel}" if grid.reads == "convolution" else ""
            found.setdefault(stream, Counter())[grid.reads + square] += 1
    return "; ".join(
        f"{stream} by "
        + ", ".join(name + (f" ({n})" if n < run.count else "") for name, n in counts.items())
        for stream, counts in found.items()
    )


def lent(plan: Plan, run: Run, block: int) -> str:
    """Layers whose weights a block of a run uses, or ``""`` where it has its own."""
    first, last = plan.home[run.first, block], plan.home[run.last, block]
    return "" if first == (run.first, block) else span(first[0], last[0])


def reading(block: Attend) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Who reads whom: readers that read the same streams together, with what they read."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for reader in block.readers:
        groups.setdefault(block.reads[reader], []).append(reader)
    return [(tuple(readers), read) for read, readers in groups.items()]


def words(plan: Plan) -> str:
    """The topology in a few words, such as ``single stream`` or ``encoder-decoder``."""
    attends = [b for b in plan.blocks.values() if isinstance(b, Attend)]
    streams = tuple(dict.fromkeys(s for b in plan.blocks.values() for s in b.changes))
    pairs = {(r, s) for b in attends for r in b.readers for s in b.reads[r] if s != r}
    crossing = [b for b in attends if any(r not in b.reads[r] for r in b.readers)]
    causal = {s for b in attends for s in b.causal}
    if len(streams) < 2:
        said = "decoder" if causal else "one stream"
    elif not pairs:
        said = "two towers" if len(streams) == 2 else f"{len(streams)} towers"
    elif not crossing:
        said = "single stream"
    elif any((s, r) in pairs for b in crossing for r in b.readers for s in b.reads[r]):
        said = "co-attention" + (", shared weights" if all(b.shared for b in crossing) else "")
    elif any(set(b.readers) <= causal for b in crossing):
        said = "encoder-decoder"
    else:
        said = "one reads the other"
    return said + (", tied layers" if any(p != h for p, h in plan.home.items()) else "")


def size_of(plan: Plan) -> str:
    """Layers and widths in a few words: ``12 layers of 768 and 1024``."""
    changed = {s for b in plan.blocks.values() for s in b.changes}
    widths = dict.fromkeys(w for s, w in plan.widths.items() if s in changed)
    layers = "1 layer" if len(plan.layers) == 1 else f"{len(plan.layers)} layers"
    return f"{layers} of {' and '.join(map(str, widths))}"


def title(plan: Plan) -> str:
    """What a drawing of the plan shows: ``single stream of text, image: 12 layers of 768``."""
    causal = {s for b in plan.blocks.values() if isinstance(b, Attend) for s in b.causal}
    names = (f"{s} left to right" if s in causal else s for s in plan.widths)
    return f"{words(plan)} of {', '.join(names)}: {size_of(plan)}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One block of some equal layers."""

    layers: str
    count: int
    block: int
    does: str  #: who reads whom, or which streams are fed forward
    weights: str  #: shared, each its own, or another layer's
    size: str
    parameters: int  #: over all layers of the row; 0 where the weights are another layer's


def table(plan: Plan) -> list[Row]:
    """The plan as rows, from the first layer to the last norms."""
    with torch.device("meta"):
        fusion = Fusion(plan)
    sizes = _sizes(fusion)
    rows = []
    for run in folded(plan):
        for number, block in enumerate(plan.layers[run.first].blocks):
            if not block.changes:
                continue
            numbers = range(run.first, run.last + 1)
            rows.append(
                Row(
                    layers=run.numbers,
                    count=run.count,
                    block=number,
                    does=" · ".join(filter(None, (_does(block), patterns(plan, run, number)))),
                    weights=_weights(plan, run, number),
                    size=size(plan, block),
                    parameters=sum(sizes[n, number] for n in numbers),
                )
            )
    if plan.norm != "post":
        rows.append(
            Row(
                layers="last",
                count=1,
                block=0,
                does=f"norm {', '.join(plan.widths)}",
                weights=_each(len(plan.widths), shared=plan.last == "shared"),
                size="",
                parameters=sum(p.numel() for p in fusion.last.parameters()),
            )
        )
    return rows


def _sizes(fusion: Fusion) -> Mapping[Place, int]:
    return {
        (n, b): sum(p.numel() for p in block.parameters())
        for n, layer in enumerate(fusion.layers)
        for b, block in enumerate(layer.blocks)  # type: ignore[arg-type]
    }


def _does(block: Block) -> str:
    if not isinstance(block, Attend):
        return f"feed {', '.join(block.streams)}"
    parts = []
    for readers, read in reading(block):
        causal = [s for s in block.causal if s in readers and s in read]
        left = f" ({', '.join(causal)} left to right)" if causal else ""
        parts.append(f"{', '.join(readers)} ← {', '.join(read)}{left}")
    idle = [s for s in block.reads if s not in block.readers]
    return "; ".join([*parts, *(f"{s} ← nothing" for s in idle)])


def _weights(plan: Plan, run: Run, block: int) -> str:
    if of := lent(plan, run, block):
        return f"of layer {of}" if of.isdigit() else f"of layers {of}"
    spec = plan.layers[run.first].blocks[block]
    names = max(spec.readers, spec.read, key=len) if isinstance(spec, Attend) else spec.streams
    return _each(len(names), spec.shared)


def _each(streams: int, shared: bool) -> str:
    if streams < 2:
        return "own"
    return "one for all" if shared else "each its own"


def size(plan: Plan, block: Block) -> str:
    """Heads and their width, or the width inside a feed-forward network."""
    if isinstance(block, Attend):
        heads = block.heads or plan.heads
        return f"{heads} heads × {(block.inner or plan.inner) // heads}"
    widths = "/".join(str(w) for w in dict.fromkeys(plan.widths[s] for s in block.streams))
    return f"{widths} → {block.hidden or plan.hidden}"


def columns(rows: Iterable[Row]) -> list[Sequence[str]]:
    """Rows as text; layers are named where they begin."""
    out: list[Sequence[str]] = []
    before = ""
    for row in rows:
        name = row.layers + (f" (× {row.count})" if row.count > 1 else "")
        layers = "" if name == before else name
        before = name
        number = f"{row.parameters:,}" if row.parameters else "–"
        out.append((layers, str(row.block), row.does, row.weights, row.size, number))
    return out


HEADINGS = ("layers", "block", "who reads whom", "weights", "size", "parameters")
