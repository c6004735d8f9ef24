"""Plots of a report, as SVG text."""

from __future__ import annotations

import io
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

INK, SOFT, ACCENT, OTHER = "#1d2433", "#8a93a6", "#2563eb", "#d97706"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "crossloom", "font.size": 9}):
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = out.getvalue()
    return text[text.index("<svg") :]


def _titled(figure: Any, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)


def curves(
    journal: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    title: str,
    share: bool = False,
) -> str:
    """Lines over steps: ``names`` maps keys of the journal to labels."""
    figure, axes = _figure(5.2, 2.9)
    for number, (key, label) in enumerate(names.items()):
        points = [(x["step"], x[key]) for x in journal if key in x]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, linewidth=1.6, color=f"C{number % 10}",
                marker="o" if len(points) == 1 else "", markersize=4,  # one has no line
            )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step", color=INK)
    _titled(figure, title)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    if share:
        axes.set_ylim(0, 1)
    if names:
        # beside the curves, never over them
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return _svg(figure)


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], title: str) -> str:
    """Grouped bars of shares in 0..1."""
    figure, axes = _figure(5.2, 2.9)
    width = 0.8 / max(1, len(series))
    for number, (label, values) in enumerate(series.items()):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(groups))]
        axes.bar(places, values, width * 0.92, label=label, color=[ACCENT, OTHER, SOFT][number % 3])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1)
    _titled(figure, title)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(series))
    return _svg(figure)


def spreads(rows: Mapping[str, Sequence[float]], title: str, hollow: set[str]) -> str:
    """A row for each name: its values as dots, their mean as a mark, one deviation as a line.

    Names in ``hollow`` (baselines) are drawn in another colour, unfilled.
    """
    figure, axes = _figure(7.6, 1.0 + 0.34 * len(rows))
    for place, (name, values) in enumerate(rows.items()):
        colour = OTHER if name in hollow else ACCENT
        mean = statistics.fmean(values)
        wide = statistics.stdev(values) if len(values) > 1 else 0.0
        axes.plot([mean - wide, mean + wide], [place, place], color=colour, linewidth=1.4)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.35)
        fill = "white" if name in hollow else colour
        axes.plot([mean], [place], "D", markeredgecolor=colour, markerfacecolor=fill, markersize=6)
    # what lies close together is shown so: a tenth of the largest value at least
    low, high = axes.get_xlim()
    lacking = 0.1 * max(abs(v) for values in rows.values() for v in values) - (high - low)
    if lacking > 0:
        axes.set_xlim(low - lacking / 2, high + lacking / 2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    _titled(figure, title)
    return _svg(figure)


def moves(rows: Mapping[str, tuple[float, float]], title: str, labels: tuple[str, str]) -> str:
    """A row for each name: from a share before (hollow) to the one after, in 0..1, to powers of 10.

    A share of 0 is not drawn.
    """
    figure, axes = _figure(5.2, 1.2 + 0.2 * len(rows))
    for place, (before, after) in enumerate(rows.values()):
        if before > 0 and after > 0:
            axes.plot([before, after], [place, place], color=SOFT, linewidth=1.2, zorder=1)
    for label, number, face in ((labels[0], 0, "white"), (labels[1], 1, ACCENT)):
        points = [(x[number], y) for y, x in enumerate(rows.values()) if x[number] > 0]
        values, places = zip(*points, strict=True) if points else ((), ())
        axes.scatter(values, places, s=26, facecolor=face, edgecolor=ACCENT, label=label, zorder=2)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda share, _: f"{100 * share:.3g}%")
    axes.tick_params(which="minor", labelsize=8, colors=INK)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    _titled(figure, title)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return _svg(figure)


#: Languages side by side in a heat map; more are drawn below one another.
ACROSS = 20


def heat_map(
    rows: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, Sequence[str]],
    framed: Mapping[str, Collection[str]],
    title: str,
) -> str:
    """A row for each name, a cell for each language that it has a score in, 0..1, told as percent.

    Args:
        rows: scores by language, by name.
        groups: languages by script, which stand together.
        framed: by name, languages with a frame around their cells.
        title: of the plot.
    """
    flat = [(script, code) for script, codes in groups.items() for code in codes]
    panels = [flat[n : n + ACROSS] for n in range(0, len(flat), ACROSS)]
    values = [v for scores in rows.values() for v in scores.values()]
    low, high = min(values), max(max(values), min(values) + 0.05)
    wide = max(map(len, panels))
    # one more cell of height for each panel's head
    tall = 0.3 * len(rows) + 0.75
    figure, _ = _figure(2.4 + 0.42 * wide, 0.35 + tall * len(panels))
    figure.clear()
    drawn = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, panel in zip(drawn, panels, strict=True):
        _cells(axes, rows, panel, framed, (low, high))
        axes.set_xlim(-0.5, wide - 0.5)
    _titled(figure, title)
    return _svg(figure)


def _cells(
    axes: Any,
    rows: Mapping[str, Mapping[str, float]],
    panel: Sequence[tuple[str, str]],
    framed: Mapping[str, Collection[str]],
    limits: tuple[float, float],
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    low, high = limits
    for y, (name, scores) in enumerate(rows.items()):
        for x, (_, code) in enumerate(panel):
            if code not in scores:
                continue
            share = (scores[code] - low) / (high - low)
            corner = (x - 0.47, y - 0.45)
            axes.add_patch(
                Rectangle(corner, 0.94, 0.9, color=colormaps["Blues"](0.08 + 0.8 * share))
            )
            ink = "white" if share > 0.6 else INK
            told = f"{100 * scores[code]:.0f}"
            axes.text(x, y, told, ha="center", va="center", fontsize=8, color=ink)
            if code in framed.get(name, ()):
                axes.add_patch(
                    Rectangle(corner, 0.94, 0.9, fill=False, edgecolor=OTHER, linewidth=1.6)
                )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xticks(range(len(panel)), [code for _, code in panel], rotation=0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    scripts = [script for script, _ in panel]
    for script in dict.fromkeys(scripts):
        first, count = scripts.index(script), scripts.count(script)
        # a name wider than its languages is shortened
        told = script if len(script) <= 5 * count else f"{script[: 5 * count - 1]}."
        place = axes.get_xaxis_transform()
        axes.plot(
            [first - 0.45, first + count - 0.55], [-0.06] * 2, color=SOFT, linewidth=0.8,
            transform=place, clip_on=False,
        )  # fmt: skip
        axes.text(
            first + (count - 1) / 2, -0.1, told, ha="center", va="top", fontsize=7.5, color=SOFT,
            transform=place,
        )  # fmt: skip
