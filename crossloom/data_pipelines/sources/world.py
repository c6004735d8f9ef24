"""The embedded data set, made from a seed: no input is read.

See :mod:`crossloom.data_pipelines.world` for what a scene holds.
"""

from __future__ import annotations

from pathlib import Path

from crossloom.data_pipelines.sources.common import Progress, Report
from crossloom.data_pipelines.write import SHARD_SIZE


def convert(
    input: Path | None,
    out: Path,
    *,
    examples: int = 2000,
    seed: int = 0,
    dev: int | None = None,
    test: int | None = None,
    speech: int = 200,
    clips: int = 200,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``, and ``speech-train``, ``clip-train`` and so on.

    Args:
        input: ignored; may be None.
        out: folder for the shards.
        examples: scenes of ``train``.
        seed: of everything drawn.
        dev: scenes of ``dev``; a twentieth of ``examples``, at least 200, when None.
        test: scenes of ``test``, likewise.
        speech: spoken captions to train on.
        clips: clips to train on.
        shard_size: scenes a shard.
        overwrite: replace the shards of another world.
        progress: called with (scenes done, scenes in all).

    Raises:
        ValueError: ``out`` holds another world, and ``overwrite`` is not set.
    """
    from crossloom.data_pipelines.world import write_world

    made = write_world(
        Path(out),
        examples=examples,
        seed=seed,
        dev=dev,
        test=test,
        speech=speech,
        clips=clips,
        shard_size=shard_size,
        overwrite=overwrite,
        progress=progress,
    )
    counts = {split: {"samples": n} for split, n in made.scenes.items() if n}
    counts |= {f"speech-{split}": {"samples": n} for split, n in made.spoken.items() if n}
    counts |= {f"clip-{split}": {"samples": n} for split, n in made.clips.items() if n}
    return Report("world", counts, {})
