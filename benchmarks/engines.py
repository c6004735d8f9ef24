"""Memory and speed of one recipe under each engine: ``python benchmarks/engines.py -n 2``.

One Transformer over words and regions of the drawn world, trained for some steps on several
processes by DDP, FSDP2 and ZeRO 0 to 3, each in processes of its own. Memory between steps is
counted: the bytes behind parameters (with fp32 copies) and behind the optimiser's moments that a
process holds, the largest over processes. ``rss`` is the peak of the whole process, Python and
libraries included, beside what it was before the model was made. Rates leave out the first step.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tokenizer import train as train_vocabulary
from crossloom.data_pipelines.world import write_world
from crossloom.models.presets import single_stream
from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.recipe import override
from crossloom.training.run import make_model, make_stack

ENGINES = {
    "ddp": ["engine=ddp"],
    "fsdp": ["engine=fsdp"],
    **{f"zero-{n}": ["engine=deepspeed", f"engine.stage={n}"] for n in range(4)},
}


def main() -> None:
    """Measure, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", "--processes", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), examples=60, dev=20, test=20, shard_size=25, processes=1)
        train_vocabulary(
            open_shards("train-*.tar", folder),
            Path(folder) / "tokenizer.model",
            size=600,
            coverage=1.0,
        )
        for name in options.engines:
            size = (options.width, options.layers, options.steps, options.device)
            found = run_ranks(options.processes, measure, folder, ENGINES[name], *size)
            row: dict[str, Any] = {"engine": name, "processes": options.processes}
            row |= {k: max(x[k] for x in found) for k in found[0]}
            row["examples_per_second"] = min(x["examples_per_second"] for x in found)
            rows.append(row)
            print(", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}"
                            for k, v in row.items()))  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(vars(options) | {"json": None, "rows": rows}, indent=1))


def measure(
    folder: str, engine: list[str], width: int, layers: int, steps: int, device: str
) -> dict[str, float]:
    """Train on one process of several; MB of memory and examples a second of all."""
    environment = start(device)
    plan = single_stream(STREAMS, layers=layers, width=width, heads=8, dropout=0.0)
    recipe = replace(tiny_recipe(Path(folder), plan=plan), micro=environment.world, examples=8)
    recipe = override(recipe, engine).located()
    stack = make_stack(recipe)
    before = peak()
    trainer = Engine(make_model(recipe), recipe, environment)
    began, examples = 0.0, 0
    for step in range(steps + 1):
        if step == 1:
            environment.barrier()
            began = time.perf_counter()
        batches = [stack.micro(step * environment.world + environment.rank)]
        names = list(recipe.objectives)
        total = environment.total([batches[0].counts[o] for o in names])
        trainer.step(step, batches, dict(zip(names, total, strict=True)))
        examples += len(batches[0].keys) * environment.world if step else 0
    elapsed = time.perf_counter() - began
    spread = trainer.spread
    pieces = [p.value for p in spread.parameters().values()]
    return {
        "parameters": held([*pieces, *(spread.local(p) for p in trainer.model.parameters())]),
        "moments": held([p.value for p in spread.moments().values()]),
        "rss": peak() - before,
        "examples_per_second": examples / elapsed,
    }


def held(tensors: list[Tensor]) -> float:
    """MB of memory behind some tensors, each stretch of memory once."""
    found = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(found.values()) / 1e6


def peak() -> float:
    """The process's largest size so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
