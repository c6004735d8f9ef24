"""What the command line tells of a task's outcome."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table

from crossloom.display import console, output
from crossloom.evaluation.metrics import tables
from crossloom.evaluation.report import lookup
from crossloom.evaluation.task import Result
from crossloom.plugins import find
from crossloom.training.quarantine import said


def tell(result: Result, task: str, run: Path) -> None:
    """The metrics as tables; beside them where things lie, and what could not be scored."""
    for heads, rows in tables(result.metrics):
        table = Table(*heads, title=f"{task} on {result.split}")
        for row in rows:
            table.add_row(*row)
        output.print(table)
    figures = [lookup(result.metrics, path) for path in find("task", task).headlines]
    if figures and set(figures) == {None}:
        console.print("nothing was scored: the examples do not tell what is right")
    console.print(f"weights selected by: {result.selected_by}")
    for file in result.files:
        console.print(f"wrote {run / 'results' / file}")
    if result.earlier:
        console.print(f"the result that was there was scored otherwise: it is in {result.earlier}")
    if result.defects:
        first = result.defects[0]
        console.print(
            f"{said(Counter(d.kind for d in result.defects))}: samples that could not be used, "
            f"listed in {run}/results/{task}.json; the first: {first.shard}: {first.key}: "
            f"{first.message}"
        )
