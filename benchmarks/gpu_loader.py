"""What training waits for the loader, from tars on local disk: a section of ``gpu.py``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from data import make_pictures, make_vocabulary, read_lines
from measuring import Row

from crossloom.data_pipelines.read import Plain
from crossloom.interop.towers import CONTRAST, IMAGE, TEXT
from crossloom.modalities.text import Text
from crossloom.models.presets import Tower, towers
from crossloom.recipes.clip import clip_b16
from crossloom.training.environment import Environment
from crossloom.training.loop import train
from crossloom.training.recipe import Component

NAME = "loader"


def loader(device: torch.device, small: bool) -> Iterator[Row]:
    """CLIP ViT-B/16 trained from tars of JPEGs and captions; the share of its time it waits."""
    pictures, size, steps, examples = (12, 32, 4, 4) if small else (2048, 256, 40, 128)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lines = read_lines(None, words=300 if small else 120_000)
        make_vocabulary(place, lines[: 200 if small else 20_000], size=400 if small else 39_000)
        make_pictures(place, pictures, size, size, 1.2, lines)
        recipe = clip_b16()
        text = Text(vocabulary="tokenizer.model", limit=77, norm=False, dropout=0.0)
        image = recipe.modalities[IMAGE]
        plan = recipe.plan
        if small:
            image = replace(image, size=32)  # type: ignore[call-arg]
            tower = Tower(layers=1, width=32, heads=2, hidden=64)
            plan = towers({TEXT: tower, IMAGE: tower}, causal=(TEXT,), activation="quick_gelu")
        pairs = Component(shards="pictures-*.tar", reader=Plain(), objectives=(CONTRAST,))
        recipe = replace(
            recipe, data=str(place), modalities={TEXT: text, IMAGE: image}, plan=plan,
            mixture={"pairs": pairs}, steps=steps, examples=examples, micro=1 if small else 8,
            readers=1, workers=0 if small else len(os.sched_getaffinity(0)) - 1,
            # the last line is of the last half: workers have started, kernels are chosen
            log_every=steps // 2, save_every=steps, precision="bf16",
        )  # fmt: skip
        found = train(recipe, place / "run", Environment(device))
    measured = device.type == "cuda"
    yield Row(NAME, "share of a step that waits for data", "share",
              found["waiting"] if measured else None, 0.02)  # fmt: skip
    yield Row(NAME, "examples", "1/s", found["examples_per_second"])
