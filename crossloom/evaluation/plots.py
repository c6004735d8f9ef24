"""Plots of a report, as SVG text."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
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
                *zip(*points, strict=True), label=label, linewidth=1.6, color=f"C{number % 10}"
            )
    axes.set_xlabel("step", color=INK)
    _titled(figure, title)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    if share:
        axes.set_ylim(0, 1)
    if names:
        # beside the curves, never over them
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return _svg(figure)


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[float]], title: str, chance: float = 0.0
) -> str:
    """Grouped bars of shares in 0..1; ``chance`` draws a dashed line."""
    figure, axes = _figure(5.2, 2.9)
    width = 0.8 / max(1, len(series))
    for number, (label, values) in enumerate(series.items()):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(groups))]
        axes.bar(places, values, width * 0.92, label=label, color=[ACCENT, OTHER, SOFT][number % 3])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1)
    if chance:
        axes.axhline(chance, color=INK, linewidth=0.8, linestyle="--")
        beside = axes.get_yaxis_transform()
        axes.text(1.01, chance, "chance", fontsize=8, va="center", color=INK, transform=beside)
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
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    _titled(figure, title)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return _svg(figure)
