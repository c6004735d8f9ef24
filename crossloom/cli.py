"""The command line: one verb for each thing a person wants done."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossloom.cli_data import Assignments, shards, tokenizer
from crossloom.display import console, counting, output, training

if TYPE_CHECKING:
    from crossloom.plugins import Plugin

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
recipes = typer.Typer(no_args_is_help=True, help="List and show recipes.")
plugins = typer.Typer(no_args_is_help=True, help="Show what is installed.")
for name, group in {
    "shards": shards,
    "tokenizer": tokenizer,
    "recipes": recipes,
    "plugins": plugins,
}.items():
    app.add_typer(group, name=name)

Device = Annotated[str, typer.Option(help="cpu, cuda, …; the best there is by default.")]


def _version(asked: bool) -> None:
    if asked:
        from crossloom import __version__

        print(f"crossloom {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Pre-train, fine-tune and evaluate multimodal and multilingual models."""


def main() -> None:
    """Run the command line; status 2 says that something is configured wrongly, 1 that it failed.

    A run that was asked to stop ends with 75 (or 130, after Ctrl-C): its checkpoint is written.
    """
    from crossloom.processes import end_with_parent

    if "RANK" in os.environ:  # torchrun may be killed before anything else is imported
        launcher = os.environ.get("CROSSLOOM_LAUNCHER")
        end_with_parent(int(launcher) if launcher else None)
    from crossloom.data_pipelines.shards import ShardError
    from crossloom.plugins import PluginError

    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # MODULE:NAME in the current folder, as with `python -m crossloom`
    try:
        # outside standalone mode, a status given by typer.Exit is returned
        status = app(standalone_mode=False)
        if isinstance(status, int) and status:
            sys.exit(status)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if _is_usage(error):
            sys.exit(_explain_usage(error))
        status = _status(error, (ShardError, PluginError))
        if status is None:
            raise
        if type(error).__name__ == "Stopped":
            console.print(_plain(error), highlight=False, soft_wrap=True)
            sys.exit(status)
        console.print(f"[red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(status)


def _plain(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return text.replace("[", r"\[")


def _is_usage(error: Exception) -> bool:
    """Whether the command line itself was wrong: an error of click, or of typer's own copy."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _explain_usage(error: Any) -> int:
    """Say what is wrong with the command line, and where help is; its exit status."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    said = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoSuchOption" and _takes_assignments(context):
        said += "; a field of the recipe is set without dashes: steps=100"
    if context is not None:
        said += f"; see {context.command_path} --help"
    console.print("[red]error:[/]", Text(said), highlight=False, soft_wrap=True)
    return int(error.exit_code)


def _takes_assignments(context: Any) -> bool:
    return context is not None and any(p.name == "assignments" for p in context.command.params)


def _status(error: Exception, configuration: tuple[type[Exception], ...]) -> int | None:
    """Exit status of errors that are a person's business, None for those that are ours."""
    if isinstance(error, configuration):
        return 2
    name = type(error).__name__
    if name == "Stopped":
        return int(error.status)  # type: ignore[attr-defined]
    if name in ("RecipeError", "SourceError"):
        return 2
    if name in ("RunError", "CheckpointError", "WorkerError"):
        return 1
    if isinstance(error, OSError) and error.strerror:
        return 1
    # a ValueError raised on purpose inside the package is about configuration
    return 2 if type(error) is ValueError else None


# --- shards -------------------------------------------------------------------------------------


def _listed(plugin: Plugin) -> dict[str, str]:
    """The line of a recipe."""
    from crossloom.recipes.state import state
    from crossloom.training import overview

    row = {"recipe": plugin.name, "from": plugin.origin}
    try:
        one = overview.entry(plugin, state(plugin.name))
    except ValueError as error:
        # another package's broken recipe must not hide the others
        return row | {"what it is": f"[red]{_plain(error)}[/]"}
    row |= {"plan": f"{one.plan}; {one.size}", "streams": one.streams}
    row |= {"objectives": one.objectives, "parameters": one.parameters, "what it is": one.says}
    if one.state:
        row |= {"published": one.state.count(), "state": one.state.shown}
    return row


@recipes.command("list")
def list_recipes(
    page: Annotated[
        Optional[Path], typer.Option(help="Write the table and drawings into this folder of docs.")
    ] = None,
) -> None:
    """All recipes: what each says of itself, its plan, streams, objectives and parameters."""
    from crossloom.plugins import listed
    from crossloom.recipes.state import state
    from crossloom.training import overview

    plugins = listed("recipe")
    if page is not None:
        own = [p for p in plugins if p.target.startswith("crossloom.")]
        overview.page([overview.entry(p, state(p.name)) for p in own], page)
        console.print(f"wrote {page / 'recipes.md'} with {len(own)} recipes")
        return
    rows = []
    with counting("recipes") as watch:
        for number, plugin in enumerate(plugins):
            watch(number, len(plugins))
            rows.append(_listed(plugin))
    some = ("recipe", "parameters", "what it is")
    rest = ("plan", "objectives", "streams", "published", "state", "from")
    _listing(rows, some, rest)


@recipes.command("show")
def show_recipe(
    recipe: str,
    assignments: Assignments = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Tables of plan, objectives, passes, parameters, data alone."),
    ] = False,
    svg: Annotated[Optional[Path], typer.Option(help="Draw the plan into this file.")] = None,
) -> None:
    """A recipe as YAML, ready to be edited and run; on a terminal, with tables of what it is."""
    from crossloom.training.recipe import load_recipe, to_yaml

    chosen = load_recipe(recipe, assignments or [])
    if svg is not None:
        from crossloom.models.draw import draw

        svg.write_text(draw(chosen.plan), "utf-8")
        console.print(f"wrote {svg}")
        return
    if plan or sys.stdout.isatty():
        _print_tables(chosen)
    if not plan:
        print(to_yaml(chosen), end="")


def _print_tables(recipe: Any) -> None:
    from rich.console import Console

    from crossloom.training import sampling
    from crossloom.training.overview import tables

    out, located = Console(emoji=False), recipe.located()
    found = tables(located)
    if shares := sampling.table(located):
        found.append(("what the run meets", sampling.HEADINGS, shares))
    for title, headings, rows in found:
        table = Table(*headings)
        for row in rows:
            table.add_row(*row)
        out.print(title, style="bold", highlight=False)
        out.print(table)


@recipes.command("schema")
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    from crossloom.training.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))


@plugins.command("list")
def list_plugins() -> None:
    """Every modality, objective, source, task, engine and recipe, and the package it is from."""
    from crossloom.plugins import listed

    columns = ("family", "name", "where", "from")
    _listing(
        [dict(zip(columns, (p.family, p.name, p.target, p.origin), strict=True)) for p in listed()],
        columns,
    )


def _listing(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], more: Sequence[str] = ()
) -> None:
    """A line for each row, cut where the terminal ends; whole, and with more columns, in a pipe."""
    out = Console(emoji=False)
    terminal = out.is_terminal
    if not terminal:
        out, columns = Console(width=4096, emoji=False), (*columns, *more)
    table = Table(expand=terminal)
    for name in columns:
        # names and numbers say nothing when they are cut: the others share the rest of the line
        entire = not terminal or name in ("family", "name", "recipe", "parameters")
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=None if entire else 1)
    for row in rows:
        table.add_row(*(row.get(name, "") for name in columns))
    out.print(table)


# --- runs ---------------------------------------------------------------------------------------


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a recipe.yaml")],
    assignments: Assignments = None,
    out: Annotated[Optional[Path], typer.Option(help="Run directory; runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    debug_step: Annotated[
        Optional[int], typer.Option(help="Look at one step of the run again; change nothing.")
    ] = None,
    device: Device = "",
) -> None:
    """Run a recipe."""
    from crossloom.training.environment import start
    from crossloom.training.loop import train
    from crossloom.training.recipe import load_recipe

    chosen = load_recipe(recipe, assignments or [])
    folder = out or Path("runs") / chosen.name
    environment = start(device)
    if debug_step is not None:
        from crossloom.training.replay import replay

        replay(folder, debug_step, environment, print)
        _close()
        return
    with training(chosen.name, chosen.steps) as display:
        train(chosen, folder, environment, resume=resume, display=display)
    _done(environment.main, folder)


@app.command()
def finetune(
    task: Annotated[str, typer.Argument(help="vqa, retrieval, xnli, …")],
    assignments: Assignments = None,
    run: Annotated[Path, typer.Option("--from", help="The pre-trained run.")] = Path("runs/demo"),
    out: Annotated[Optional[Path], typer.Option(help="Run directory; RUN-TASK.")] = None,
    scratch: Annotated[bool, typer.Option(help="Fresh weights, for comparison.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = False,
    device: Device = "",
) -> None:
    """Fine-tune a run on a task. Overrides set fields of the task or of the recipe."""
    from crossloom.evaluation import finetune as tuning
    from crossloom.training.environment import start

    folder = out or run.with_name(f"{run.name}-{task}{'-scratch' if scratch else ''}")
    environment = start(device)
    with training(f"finetune {task}") as display:
        tuning.finetune(
            task,
            run,
            folder,
            environment,
            assignments or [],
            scratch=scratch,
            resume=resume,
            display=display,
        )
    _done(environment.main, folder)


@app.command()
def evaluate(
    task: Annotated[str, typer.Argument(help="vqa, retrieval, xnli, …")],
    assignments: Assignments = None,
    run: Annotated[Path, typer.Option("--from", help="The fine-tuned run.")] = Path("runs/demo"),
    device: Device = "",
) -> None:
    """Evaluate a run on a task and write RUN/results/TASK.json."""
    from crossloom.cli_results import tell
    from crossloom.evaluation import finetune as tuning
    from crossloom.training.environment import start

    with counting(f"evaluate {task}") as watch:
        result = tuning.evaluate(task, run, start(device), assignments or [], watch=watch)
    tell(result, task, run)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="Folder with config.json, or an id of the Hub")],
    assignments: Assignments = None,
    out: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/imported"),
) -> None:
    """Read a published checkpoint as a run: start from it, fine-tune it, evaluate it."""
    from crossloom.interop.exchange import import_checkpoint

    done = import_checkpoint(source, out, assignments or [])
    _told("started afresh", done.fresh)
    _told("left out", done.left_out)
    for stream in done.wordless:
        console.print(
            f"{stream}: no vocabulary in {source}; name its file whenever the run is used: "
            f"modalities.{stream}.vocabulary=FILE",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"{done.family}: run in {done.folder}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory")],
    to: Annotated[str, typer.Option(help="transformers, open_clip or safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    family: Annotated[str, typer.Option(help="When several fit: bert, clip, …")] = "",
) -> None:
    """Write a run's model so that another library loads it."""
    from crossloom.interop.exchange import export_run

    done = export_run(run, to, out, family)
    _told("left out", done.left_out)
    console.print(f"{done.family}: wrote {done.folder}")


def _told(what: str, names: tuple[str, ...]) -> None:
    if names:
        some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        console.print(
            f"{len(names)} {'weight' if len(names) == 1 else 'weights'} {what}: {some}",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Optional[Path], typer.Option(help="The page; RUN/report.html.")] = None,
) -> None:
    """One self-contained page about a run and what was fine-tuned from it."""
    from crossloom.evaluation.report import write_report

    page = out or runs[0] / "report.html"
    write_report(runs, page)
    console.print(f"wrote {page}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Pre-trained runs, or fine-tuned ones.")],
    out: Annotated[Path, typer.Option(help="The page; its figures beside it as JSON.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Systems side by side: mean and spread over seeds, as a table and plots."""
    from crossloom.evaluation import compare as side_by_side

    scores = side_by_side.compare(runs)
    head, rows = side_by_side.table(scores)
    # a figure a line: a terminal has room for more lines than columns
    systems, *rest = zip(head, *rows, strict=True)
    shown = Table(*systems)
    for line in rest:
        shown.add_row(*line)
    output.print(shown)
    side_by_side.write_comparison(scores, out, side_by_side.languages(runs))
    console.print(f"wrote {out} and {out.with_suffix('.json')}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over.")] = False,
) -> None:
    """The whole way on the built-in world: data, pre-training, fine-tuning, evaluation, report."""
    from crossloom.demo import run_demo

    run_demo(out, fresh)


@app.command()
def doctor(
    at: Annotated[
        Optional[list[Path]], typer.Option(help="Folder of shards or runs to try; repeat.")
    ] = None,
    device: Device = "",
) -> None:
    """What this machine offers, and what to mend; under torchrun, what its processes reach."""
    import os

    from crossloom.doctor import findings

    found = list(findings(at or (), device))
    rank = int(os.environ.get("RANK", "0"))
    table = Table("what", "found")
    for one in found:
        # all processes see much the same: the others only tell what is wrong
        if one.mend or rank == 0:
            table.add_row(one.what, _plain(Exception(str(one))))
    if table.row_count:
        output.print(f"rank {rank}") if "RANK" in os.environ else None
        output.print(table)
    _close()
    if any(one.mend for one in found):
        raise typer.Exit(1)


def _done(main: bool, folder: Path) -> None:
    if main:
        console.print(f"run in {folder}")
    _close()


def _close() -> None:
    """Leave the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
