"""A plan as a drawing: streams are columns, layers go upward, arrows say who reads whom."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

from crossloom.models.plan import Attend, Block, Plan
from crossloom.models.show import Run, folded, lent, patterns, reading, size

# sizes in pixels; y grows upward until the drawing is written
WIDE, GAP, MARGIN = 188, 56, 34
ROW, BOX, HEAD, SPACE = 62, 40, 24, 18
FOOT = 62
#: By stream: line and text, fill.
COLOURS = (
    ("#1f5fa8", "#e3eefb"),
    ("#b2560d", "#fdeedd"),
    ("#1c7a4a", "#e0f4e8"),
    ("#7a3fa0", "#f1e6f8"),
    ("#a32a4a", "#fbe5eb"),
    ("#4a5a66", "#e8edf0"),
)
NEUTRAL = ("#39424a", "#eef1f4")


@dataclass
class _Sheet:
    """What is drawn, from back to front."""

    plan: Plan
    frames: list[str] = field(default_factory=list)
    arrows: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    top: float = 0.0

    def middle(self, stream: str) -> float:
        """Centre of a stream's column."""
        return MARGIN + self.column(stream) * (WIDE + GAP) + WIDE / 2

    def column(self, stream: str) -> int:
        """Number of a stream's column, from the left."""
        return self.plan.streams.index(stream)

    def between(self, streams: tuple[str, ...]) -> tuple[str, ...]:
        """All streams from the first to the last of these columns."""
        numbers = [self.column(s) for s in streams]
        return self.plan.streams[min(numbers) : max(numbers) + 1]

    def colour(self, streams: tuple[str, ...]) -> tuple[str, str]:
        """Line and fill for something that belongs to these streams."""
        return COLOURS[self.column(streams[0]) % len(COLOURS)] if len(streams) == 1 else NEUTRAL


def draw(plan: Plan) -> str:
    """The plan as an SVG document.

    Equal layers are drawn once, with their number. A box over several columns is one softmax (or
    one network) over all of them; an arrow leads from a stream to the box that reads it. Layers
    that work with another layer's weights have a broken frame.
    """
    sheet = _Sheet(plan)
    reached = dict.fromkeys(plan.streams, 0.0)
    for run in folded(plan):
        _run(sheet, run, reached)
    sheet.top = max([0.0, *reached.values()]) + 12
    return _write(sheet)


def _run(sheet: _Sheet, run: Run, reached: dict[str, float]) -> None:
    plan = sheet.plan
    blocks = [(n, b) for n, b in enumerate(plan.layers[run.first].blocks) if b.changes]
    named = {s for _, b in blocks for s in sheet.between(b.names)}
    inside = [sheet.column(s) for _, b in blocks for s in b.changes]
    base = max(reached[s] for s in named) + SPACE
    # blocks of different streams stand side by side
    level = dict.fromkeys(plan.streams, 0)
    for number, block in blocks:
        taken = sheet.between(block.names)
        row = max(level[s] for s in taken)
        y = base + row * ROW + (ROW - BOX) + 2
        _block(sheet, run, number, block, y)
        level |= dict.fromkeys(taken, row + 1)
    height = max(level.values()) * ROW + HEAD + 6
    left = MARGIN + min(inside) * (WIDE + GAP) - 12
    right = MARGIN + max(inside) * (WIDE + GAP) + WIDE + 12
    tied = any(lent(plan, run, n) for n, _ in blocks)
    dash = ' stroke-dasharray="6 4"' if tied else ""
    sheet.frames.append(
        f'<rect x="{left:g}" y="{{{base + height:g}}}" width="{right - left:g}" '
        f'height="{height:g}" rx="10" fill="#fafbfc" stroke="#c3ccd4"{dash}/>'
    )
    label = f"layer{'s' if run.count > 1 else ''} {run.numbers}"
    above = base + height - 17
    sheet.boxes.append(_text(left + 12, above, label, 11, "#6a7680", "start"))
    if run.count > 1:
        sheet.boxes.append(
            _text(right - 12, above, f"× {run.count}", 15, "#20272d", "end", bold=True)
        )
    reached |= dict.fromkeys(named, base + height)


def _block(sheet: _Sheet, run: Run, number: int, block: Block, y: float) -> None:
    plan = sheet.plan
    facts = [size(plan, block)]
    if of := lent(plan, run, number):
        facts = [f"weights of layer{'' if of.isdigit() else 's'} {of}"]
    if some := patterns(plan, run, number):
        facts.append(some)
    if not isinstance(block, Attend):
        together = block.shared and len(block.streams) > 1
        for streams in [block.streams] if together else [(s,) for s in block.streams]:
            _box(sheet, streams, y, "feed-forward", facts, soft=True)
        return
    for readers, read in reading(block):
        if len(readers) > 1 and set(readers) <= set(read):
            left = [s for s in block.causal if s in readers]
            said = [*facts, f"{', '.join(left)} left to right"] if left else facts
            _box(sheet, readers, y, "joint attention", said)
            _reach(sheet, readers, read, y)
            continue
        for reader in readers:
            causal = "causal " if reader in block.causal and reader in read else ""
            others = ", ".join(s for s in read if s != reader)
            if read == (reader,):
                title = f"{causal}self-attention"
            elif reader in read:
                title = f"{causal}itself + {others}"
            else:
                title = f"reads {others}"
            shared = block.shared and len(block.readers) > 1 and reader not in read and not of
            _box(sheet, (reader,), y, title, [*facts, "shared weights"] if shared else facts)
            _reach(sheet, (reader,), read, y)
    for reader in block.reads:
        if reader not in block.readers:
            _box(sheet, (reader,), y, "reads nothing", [])


def _box(
    sheet: _Sheet,
    streams: tuple[str, ...],
    y: float,
    title: str,
    facts: list[str],
    soft: bool = False,
) -> None:
    line, fill = sheet.colour(streams)
    middles = [sheet.middle(s) for s in streams]
    left, right = min(middles) - WIDE / 2, max(middles) + WIDE / 2
    fill = "#ffffff" if soft else fill
    sheet.boxes.append(
        f'<rect x="{left:g}" y="{{{y + BOX:g}}}" width="{right - left:g}" height="{BOX}" rx="6" '
        f'fill="{fill}" stroke="{line}"/>'
    )
    for other in sheet.plan.streams:
        if left < (x := sheet.middle(other)) < right and other not in streams:
            # it passes by
            line_by, _ = sheet.colour((other,))
            sheet.boxes.append(
                f'<path d="M{x:g},{{{y:g}}} V{{{y + BOX:g}}}" stroke="{line_by}" stroke-width="2"/>'
            )
    middle = (left + right) / 2
    below = " · ".join(facts)
    sheet.boxes.append(_text(middle, y + BOX - 17, title, _fit(title, 13, right - left), line))
    sheet.boxes.append(_text(middle, y + BOX - 32, below, _fit(below, 10, right - left), "#6a7680"))


def _fit(said: str, points: float, room: float) -> float:
    """The size of letters, smaller where a text would not fit into its box."""
    return min(points, round((room - 12) / (0.56 * max(1, len(said))), 1))


def _reach(sheet: _Sheet, readers: tuple[str, ...], read: tuple[str, ...], y: float) -> None:
    """Arrows into a box from the streams outside it that it reads."""
    columns = [sheet.column(s) for s in readers]
    outside = [s for s in read if not min(columns) <= sheet.column(s) <= max(columns)]
    for number, stream in enumerate(outside):
        here = sheet.column(stream)
        line, _ = sheet.colour((stream,))
        leftward = here > max(columns)
        side = -1 if leftward else 1
        reader = max(columns) if leftward else min(columns)
        edge = MARGIN + reader * (WIDE + GAP) + (WIDE + 2 if leftward else -2)
        # the two directions of a co-attention take different ways through the gap
        under = y - (6 if leftward else 13) + 5 * number
        turn = edge - side * (GAP / 2 - 7 + 5 * number)
        enter = y + BOX / 2 + 8 * (number - (len(outside) - 1) / 2)
        start = sheet.middle(stream)
        sheet.arrows.append(
            f'<circle cx="{start:g}" cy="{{{under:g}}}" r="3" fill="{line}"/>'
            f'<path d="M{start:g},{{{under:g}}} H{turn:g} V{{{enter:g}}} H{edge:g}" '
            f'fill="none" stroke="{line}" stroke-width="1.8" marker-end="url(#to-{here})"/>'
        )


def _text(
    x: float,
    y: float,
    said: str,
    points: float,
    colour: str,
    anchor: str = "middle",
    bold: bool = False,
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{{{y:g}}}" font-size="{points:g}" fill="{colour}" '
        f'text-anchor="{anchor}"{weight}>{_plain(said)}</text>'
    )


def _plain(text: str) -> str:
    # braces mark heights until the drawing is written
    return escape(text).replace("{", "&#123;").replace("}", "&#125;")


def _write(sheet: _Sheet) -> str:
    plan = sheet.plan
    width = 2 * MARGIN + len(plan.streams) * WIDE + (len(plan.streams) - 1) * GAP
    height = sheet.top + FOOT + 10
    lines, markers, names = [], [], []
    for number, stream in enumerate(plan.streams):
        line, fill = sheet.colour((stream,))
        x = sheet.middle(stream)
        lines.append(
            f'<path d="M{x:g},{{{-4:g}}} V{{{sheet.top - 6:g}}}" stroke="{line}" '
            f'stroke-width="2" marker-end="url(#to-{number})"/>'
        )
        markers.append(
            f'<marker id="to-{number}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            f'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{line}"/></marker>'
        )
        names.append(
            f'<rect x="{x - WIDE / 2:g}" y="{{{-4:g}}}" width="{WIDE}" height="44" rx="22" '
            f'fill="{fill}" stroke="{line}"/>'
        )
        names.append(_text(x, -23, stream, _fit(stream, 14, WIDE), line, bold=True))
        names.append(_text(x, -38, f"{plan.widths[stream]} wide", 10, "#6a7680"))
    body = "\n".join([*sheet.frames, *lines, *sheet.arrows, *sheet.boxes, *names])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{width:g}" height="{height:g}" rx="12" fill="#ffffff"/>\n'
        f"<defs>{''.join(markers)}</defs>\n{_downward(body, sheet.top + 10)}\n</svg>\n"
    )


def _downward(body: str, top: float) -> str:
    """Heights in braces, measured upward, as SVG's own, measured from the top."""
    return re.sub(r"\{(-?[\d.]+)\}", lambda found: f"{top - float(found[1]):g}", body)
