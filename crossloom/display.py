"""What a person sees while something runs: a progress bar with figures, or plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from crossloom.training.loop import Progress as Report

#: What is said while something runs; what was asked for goes to ``output``, for files and pipes.
console = Console(stderr=True, emoji=False)  # the : of module:name: is no emoji
output = Console(emoji=False)
for one in (console, output):
    if not one.is_terminal:
        one.width = 1000  # a log has no edge at which to wrap lines and cut tables


#: Seconds between the lines of a log in which something is counted.
EVERY = 30.0


class _Bar(Progress):
    """A bar, and its figures on lines of their own: beside it they would be cut."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["figures"]:
                yield Text(task.fields["figures"], style="dim")


def figures(values: dict[str, float]) -> str:
    """One line of a training report."""
    losses = [
        f"{name.removesuffix('/loss')} {value:.3f}"
        + (f" ({values[c]:.0%})" if (c := name.replace("/loss", "/correct")) in values else "")
        for name, value in values.items()
        if name.endswith("/loss") and not name.startswith("held/")
    ]
    rest = [
        f"{values['examples_per_second']:.0f} examples/s",
        f"{values['units_per_second']:.0f} units/s",
        f"waiting {values['waiting']:.0%}",
    ]
    if "mfu" in values:
        rest.append(f"MFU {values['mfu']:.1%}")
    if values.get("bad_total"):
        kinds = {k.removeprefix("bad/"): n for k, n in values.items() if k.startswith("bad/")}
        most = sorted(kinds.items(), key=lambda x: -x[1])
        rest.append(
            f"bad {values['bad_total']:.0f} ({', '.join(f'{n:.0f} {kind}' for kind, n in most)})"
        )
    return " · ".join([*losses, *rest])


@contextmanager
def training(title: str, steps: int | None = None) -> Iterator[Callable[[Report], None]]:
    """A display for :func:`crossloom.training.loop.train`; ``steps`` in all, if known."""
    if not console.is_terminal:
        began = time.perf_counter()
        first: list[int] = []

        def line(report: Report) -> None:
            first.append(report.step) if not first else None
            elapsed = time.perf_counter() - began
            done = max(1, report.step - first[0]) if report.step > first[0] else report.step
            left = elapsed / done * (report.steps - report.step)
            head = f"{title} {report.step}/{report.steps}"
            said = f"{head} · {figures(report.values)} · left {left:.0f} s"
            console.print(said, highlight=False)

        yield line
        return
    with _Bar() as bar:
        task = bar.add_task(title, total=steps, figures="starting")

        def update(report: Report) -> None:
            bar.update(
                task,
                total=report.steps,
                completed=report.step,
                figures=figures(report.values),
            )

        yield update


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A display for anything that counts: call it with (done, total or None).

    A log has a line at the end, and one every half a minute before.
    """
    if not console.is_terminal:
        began = said = time.perf_counter()
        last = 0

        def note(done: int, total: int | None) -> None:
            nonlocal said, last
            last, now = done, time.perf_counter()
            if now - said >= EVERY:
                said = now
                left = f" of {total:,} · left {(now - began) * (total / done - 1):.0f} s" if (
                    total and done
                ) else ""  # fmt: skip
                console.print(f"{title}: {done:,}{left}", highlight=False)

        yield note
        console.print(f"{title}: {last:,} in {time.perf_counter() - began:.1f} s", highlight=False)
        return
    with _Bar() as bar:
        task = bar.add_task(title, total=None, figures="")
        yield lambda done, total: bar.update(task, completed=done, total=total)
