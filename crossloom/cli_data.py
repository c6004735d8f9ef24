"""Verbs of the command line that are about data: shards and vocabularies."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

from crossloom.display import console, counting, output

shards = typer.Typer(no_args_is_help=True, help="Make, check and look at shards.")
tokenizer = typer.Typer(no_args_is_help=True, help="Train vocabularies, and measure them.")

Assignments = Annotated[
    Optional[list[str]], typer.Argument(help="Dotted overrides: optim.rate=1e-4")
]


@shards.command("make")
def make(
    source: Annotated[str, typer.Argument(help="world, coco, storybooks, … (plugins list)")],
    input: Annotated[Optional[Path], typer.Argument(help="What to convert.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the shards.")] = Path("shards"),
    option: Annotated[
        Optional[list[str]], typer.Option("--set", help="Option of the source: name=value")
    ] = None,
    examples: Annotated[Optional[int], typer.Option(help="How many (world).")] = None,
    seed: Annotated[Optional[int], typer.Option(help="Of what is drawn (world).")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace shards that are there.")] = False,
) -> None:
    """Convert a data set to shards."""
    from crossloom.plugins import find
    from crossloom.training.recipe import value_of

    options: dict[str, Any] = {}
    for assignment in option or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: write name=value")
        options[key.replace("-", "_")] = value_of(value)
    options |= {"examples": examples} if examples is not None else {}
    options |= {"seed": seed} if seed is not None else {}
    options |= {"overwrite": True} if overwrite else {}
    convert = find("source", source)
    _check_options(source, convert, options)
    with counting(f"shards make {source}") as progress:
        report = convert(input, out, progress=progress, **options)
    console.print(report)


def _check_options(source: str, convert: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuse options that a source does not have, naming those it has."""
    known = inspect.signature(convert).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in known):
        return
    has = sorted(p.name for p in known if p.name not in ("input", "out", "progress"))
    for name in options:
        if name not in has:
            near = difflib.get_close_matches(name, has, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(has)}"
            raise ValueError(f"--set {name}: source {source!r} has no such option; {hint}")


@shards.command("index")
def index(
    patterns: list[str],
    into: Annotated[str, typer.Option(help="Folder for indexes of read-only stores.")] = "",
    checksums: Annotated[bool, typer.Option(help="Read all bytes and keep checksums.")] = True,
    renew: Annotated[bool, typer.Option(help="Make new ones, whatever there is.")] = False,
) -> None:
    """Write (or renew) the index beside each tar; tars elsewhere are fetched to be indexed."""
    from crossloom.data_pipelines.check import write_indexes
    from crossloom.data_pipelines.shards import describe, expand

    with counting("shards index") as progress:
        found = write_indexes(expand(patterns), into, checksums, renew, progress)
    total = describe(found)
    output.print(f"{total['shards']} shards, {total['samples']} samples")
    output.print(json.dumps(total, indent=1))
    damaged = [d for s in found for d in s.defects]
    for one in damaged:
        console.print(f"{one.shard}: {one.kind}: {one.message}", markup=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(1)


@shards.command("check")
def check(
    patterns: Annotated[
        Optional[list[str]], typer.Argument(help="Shards; those of the recipe when none.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Decode as this recipe or run would.")] = "",
    quarantine: Annotated[Path, typer.Option(help="List of what is bad.")] = Path(
        "quarantine.jsonl"
    ),
) -> None:
    """Read every sample; count and list what is wrong with it."""
    from crossloom.data_pipelines.check import check, check_shards
    from crossloom.training.recipe import load_recipe

    if not recipe and not patterns:
        raise ValueError("shards check: give shards, or --recipe with a recipe to check those of")
    with counting("shards check") as progress:
        if recipe and not patterns:
            from crossloom.training.run import uses

            report = check(uses(load_recipe(recipe).located()), quarantine, progress)
        else:
            modalities = None
            if recipe:
                chosen = load_recipe(recipe).located()
                modalities = {s: m for s, m in chosen.modalities.items() if m.kind != "text"}
            report = check_shards(patterns or [], modalities, quarantine, progress)
    table = Table("defect", "samples")
    for kind, count in sorted(report.defects.items()):
        table.add_row(kind, str(count))
    output.print(f"{report.samples} samples, {sum(report.defects.values())} bad")
    if report.defects:
        output.print(table)
        console.print(f"listed in {quarantine}")
        raise typer.Exit(1)


@shards.command("show")
def show(
    patterns: list[str],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("shards.html"),
    count: Annotated[int, typer.Option(help="Samples shown.")] = 24,
) -> None:
    """A page with pictures, boxes, texts and counts of what shards hold."""
    from crossloom.data_pipelines.show import show_shards

    show_shards(patterns, out, count)
    console.print(f"wrote {out}")


@shards.command("answers")
def answers(
    patterns: list[str],
    out: Annotated[Path, typer.Option(help="The list to write.")] = Path("answers.txt"),
    most: Annotated[int, typer.Option(help="Answers kept, the most frequent; 0: all.")] = 0,
    least: Annotated[int, typer.Option(help="Questions an answer must be the best of.")] = 1,
) -> None:
    """List the answers of several sets' questions in one file, as LXMERT does."""
    from crossloom.data_pipelines.answers import list_answers, write_answers

    with counting("shards answers") as progress:
        found = list_answers(patterns, most, least, progress)
    write_answers(found, out)
    console.print(f"wrote {out} with {len(found)} answers")


@shards.command("trace")
def trace(
    recipe: str,
    assignments: Assignments = None,
    steps: Annotated[str, typer.Option(help="First and last step, A:B.")] = "0:1",
    world: Annotated[int, typer.Option(help="Processes.")] = 1,
    workers: Annotated[int, typer.Option(help="Loader processes of each; only told, not run.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
) -> None:
    """Which examples each process sees in each step, without touching data.

    Which they are depends neither on the processes nor on the loader's: the latter only shows who
    would make them.
    """
    from crossloom.data_pipelines.loader import Shares
    from crossloom.training.recipe import load_recipe
    from crossloom.training.run import make_stack

    first, colon, last = steps.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise ValueError(f"--steps {steps}: write A:B")
    chosen = load_recipe(recipe, assignments or []).located()
    stack = make_stack(chosen)
    for step in range(int(first), int(last)):
        for rank in range(world):
            shares = Shares(chosen.micro, rank, world)
            numbers = [n for group in shares.of_step(step) for n in group]
            found = [stack.keys(n) for n in numbers]
            keys = [k for _, some in found for k in some]
            if as_json:
                print(json.dumps({"step": step, "rank": rank, "keys": keys}, ensure_ascii=False))
            else:
                names = ", ".join(name for name, _ in found)
                begin = step * shares.passes
                made = {(begin + n) % max(1, workers) for n in range(shares.passes)}
                by = f"worker {', '.join(map(str, sorted(made)))}"
                print(f"step {step} rank {rank} {by} ({names}): {' '.join(keys)}")


# --- vocabularies -------------------------------------------------------------------------------


@tokenizer.command("train")
def train_tokenizer(
    shards: Annotated[list[str], typer.Option(help="Tars whose texts are read.")],
    vocab: Annotated[int, typer.Option(help="Number of ids.")] = 32000,
    out: Annotated[Path, typer.Option(help="The model file.")] = Path("tokenizer.model"),
    alpha: Annotated[float, typer.Option(help="Flattening of languages, 0..1.")] = 0.5,
    coverage: Annotated[float, typer.Option(help="Share of characters kept.")] = 0.9999,
    byte_fallback: Annotated[bool, typer.Option(help="Spell unknown characters.")] = False,
    lines: Annotated[int, typer.Option(help="Most lines read, over all languages.")] = 1_000_000,
) -> None:
    """Train a SentencePiece unigram vocabulary over the texts of shards."""
    from crossloom.data_pipelines.shards import open_shards
    from crossloom.data_pipelines.tokenizer import train

    report = train(
        open_shards(shards),
        out,
        size=vocab,
        alpha=alpha,
        lines=lines,
        coverage=coverage,
        byte_fallback=byte_fallback,
    )
    _print_report(report)
    told = f" (the texts support no more; --vocab {vocab:,})" if report.size < vocab else ""
    console.print(f"{report.size:,} ids{told}")
    console.print(f"wrote {out} and {out.with_suffix('.report.json')}")


@tokenizer.command("report")
def report_tokenizer(
    model: Annotated[Path, typer.Argument(help="The vocabulary.")],
    shards: Annotated[list[str], typer.Option(help="Tars whose texts are split.")],
    layout: Annotated[str, typer.Option(help="own, xlm-r, wordpiece-cased, …")] = "own",
    lines: Annotated[int, typer.Option(help="Most lines of each language.")] = 1000,
) -> None:
    """How a vocabulary splits languages: pieces a word, unknown pieces, coverage of scripts."""
    from typing import get_args

    from crossloom.data_pipelines.fertility import measure
    from crossloom.data_pipelines.shards import open_shards
    from crossloom.data_pipelines.tokenizer import lines_of
    from crossloom.modalities.vocabularies import Layout, vocabulary

    if layout not in get_args(Layout):
        raise ValueError(f"--layout {layout}: there are {', '.join(get_args(Layout))}")
    vocab = vocabulary(str(model), layout)
    texts = lines_of(open_shards(shards), lambda many: dict.fromkeys(many, lines))
    report = measure(vocab, texts, lines)
    _print_report(report)
    console.print(f"wrote {report.save(model)}")


def _print_report(report: Any) -> None:
    for headings, rows in report.tables():
        table = Table(*headings)
        for row in rows:
            table.add_row(*row)
        output.print(table)


# --- recipes and plugins ------------------------------------------------------------------------
