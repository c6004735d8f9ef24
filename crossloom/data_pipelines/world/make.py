"""Writing the world as shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from crossloom.data_pipelines.world import clip
from crossloom.data_pipelines.world.describe import ANSWERS, describe, named
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.data_pipelines.world.scene import (
    CLASS_NAMES,
    SPLITS,
    Object,
    direction,
    draw,
    make_scene,
    regions,
)
from crossloom.data_pipelines.world.speech import spoken, word_times
from crossloom.data_pipelines.world.words import class_table, dictionary
from crossloom.data_pipelines.write import Member, ShardWriter
from crossloom.units import Array, keyed_rng

#: Of what samples hold. 2: expressions that refer to objects (``refers``). 3: ``alignments``, and
#: ``teacher.npy``.
VERSION = 3


@dataclass(frozen=True)
class WorldReport:
    """What was written."""

    scenes: dict[str, int]
    spoken: dict[str, int]
    clips: dict[str, int]

    def __str__(self) -> str:
        scenes = ", ".join(f"{n} {s}" for s, n in self.scenes.items())
        spoken, clips = sum(self.spoken.values()), sum(self.clips.values())
        return f"scenes: {scenes}; spoken captions: {spoken}; clips: {clips}"


@dataclass(frozen=True)
class _Job:
    """One shard."""

    folder: str
    prefix: str
    number: int
    split: str
    first: int
    last: int
    seed: int
    kind: str  #: what a sample is: see ``_MAKERS``


def write_world(
    out: Path,
    *,
    examples: int,
    seed: int = 0,
    dev: int | None = None,
    test: int | None = None,
    speech: int = 200,
    clips: int = 200,
    shard_size: int = 1000,
    processes: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> WorldReport:
    """Write ``out/train-*.tar``, ``dev-*``, ``test-*``, ``speech-*``, ``clip-*`` and word lists.

    The result is a pure function of the arguments, byte for byte.

    Args:
        out: folder; made if missing.
        examples: scenes to train on.
        seed: of everything drawn.
        dev, test: scenes held back; a twentieth of ``examples``, at least 200, when None.
        speech: spoken captions to train on, and a fifth as many each for dev and test.
        clips: likewise.
        shard_size: scenes in a shard.
        processes: that draw at a time; as many as there are cores when None.
        overwrite: replace another world in ``out``.
        progress: called with (scenes done, all).

    Raises:
        ValueError: ``out`` holds another world, and ``overwrite`` is not given.
    """
    held = max(200, examples // 20)
    scenes = {
        "train": examples,
        "dev": held if dev is None else dev,
        "test": held if test is None else test,
    }
    voices, films = ({s: n if s == "train" else n // 5 for s in SPLITS} for n in (speech, clips))
    settings = {
        "version": VERSION,
        "seed": seed,
        "scenes": scenes,
        "speech": voices,
        "clips": films,
        "shard_size": shard_size,
    }
    known = out / "world.json"
    if known.is_file() and json.loads(known.read_text()) != settings and not overwrite:
        raise ValueError(f"{known}: another world is there; choose another --out or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    staging = out / ".world.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    jobs = [
        _Job(str(staging), prefix, n, split, first, min(first + shard_size, count), seed, kind)
        for kind, counts in (("", scenes), ("speech", voices), ("clip", films))
        for split, count in counts.items()
        for n, first in enumerate(range(0, count, shard_size))
        for prefix in [f"{kind}-{split}" if kind else split]
    ]
    try:
        _run(jobs, processes or os.cpu_count() or 1, progress)
        known.unlink(
            missing_ok=True
        )  # a run that is killed here leaves no world that says it is one
        for old in [*out.glob("*.tar"), *out.glob("*.index.json")]:
            old.unlink()
        for shard in sorted(staging.iterdir()):
            os.replace(shard, out / shard.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    (out / "answers.txt").write_text("\n".join(ANSWERS) + "\n", "utf-8")
    (out / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", "utf-8")
    (out / "classes.tsv").write_text(class_table(), "utf-8")
    (out / "dictionary.tsv").write_text(dictionary(), "utf-8")
    known.write_text(json.dumps(settings))
    return WorldReport(scenes, voices, films)


def _run(
    jobs: list[_Job], processes: int, progress: Callable[[int, int | None], None] | None
) -> None:
    total, done = sum(j.last - j.first for j in jobs), 0
    if processes == 1:
        for job in jobs:
            done += _write_shard(job)
            if progress:
                progress(done, total)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_write_shard, j) for j in jobs]):
            done += future.result()
            if progress:
                progress(done, total)


def _write_shard(job: _Job) -> int:
    make = _MAKERS[job.kind]
    name = f"{job.prefix}-{job.number:06d}"
    # a writer of one shard in a folder of its own: shards are made side by side
    folder = Path(job.folder) / f".{name}"
    with ShardWriter(folder, job.prefix, shard_size=max(1, job.last - job.first)) as writer:
        for number in range(job.first, job.last):
            key, members = make(job.seed, job.split, number)
            writer.write(key, members)
    (made,) = folder.glob("*.tar")
    os.replace(made, Path(job.folder) / f"{name}.tar")
    shutil.rmtree(folder)
    return job.last - job.first


def _scene_sample(seed: int, split: str, number: int) -> tuple[str, dict[str, Member]]:
    scene = make_scene(seed, split, number)
    members: dict[str, Member] = {
        "png": draw(scene, seed),
        "regions.npz": regions(scene, seed),
        "teacher.npy": clip.npy(_taught(named(scene, seed))),
        "json": describe(scene, seed),
    }
    return scene.key, members


def _taught(captions: list[tuple[Object, ...]]) -> Array:
    """What a teacher of the world makes of each caption, float16 ``[captions, FEATURES]``.

    The mean of what the objects named look like, so that pictures and captions share a space.
    """
    seen = [[direction(o.shape, o.colour, o.size) for o in objects] for objects in captions]
    return np.stack([np.mean(some, axis=0) for some in seen]).astype(np.float16)


def _speech_sample(seed: int, split: str, number: int) -> tuple[str, dict[str, Member]]:
    """The short caption of the scene of the same number, spoken in a language drawn."""
    scene = make_scene(seed, split, number)
    rng = keyed_rng("world", seed, scene.key, "speech")
    language = list(LANGUAGES)[int(rng.integers(len(LANGUAGES)))]
    text = describe(scene, seed)["texts"][language][2]
    key = f"speech-{scene.key}"
    content = {
        "id": key, "texts": {language: [text]}, "language": language, "words": word_times(text)
    }  # fmt: skip
    return key, {"flac": spoken(text, language, int(rng.integers(1000))), "json": content}


def _clip_sample(seed: int, split: str, number: int) -> tuple[str, dict[str, Member]]:
    """The camera's pan over the scene of the same number, with the scene's captions."""
    scene = make_scene(seed, split, number)
    features = clip.frames(scene, seed)
    content = {"id": f"clip-{scene.key}", "texts": describe(scene, seed)["texts"]}
    members: dict[str, Member] = {
        "frames.npy": clip.npy(features),
        "codes.npy": clip.npy(clip.codes_of(features)),
        "json": content,
    }
    return f"clip-{scene.key}", members


_MAKERS: dict[str, Callable[[int, str, int], tuple[str, dict[str, Member]]]] = {
    "": _scene_sample,
    "speech": _speech_sample,
    "clip": _clip_sample,
}
