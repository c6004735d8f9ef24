"""The stream of examples, and what is done to them, does not depend on who reads it."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossloom.batch import AimBatch, Batch, Stream, ViewBatch
from crossloom.data_pipelines.loader import Shares, load
from crossloom.data_pipelines.write import ShardWriter
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.run import make_stack

MICRO = 24  #: divisible by every number of processes drawn
WORDS = ("red", "blue", "circle", "square", "large", "small", "rot", "blau", "Kreis")


def write_shards(folder, sizes, rng):
    """One tar of each size: two languages, one to three texts in each."""
    for number, size in enumerate(sizes):
        with ShardWriter(folder, f"train-{number}") as writer:
            for sample in range(size):
                count = int(rng.integers(1, 4))
                texts = {
                    code: [" ".join(rng.choice(WORDS, 5)) for _ in range(count)]
                    for code in ("en", "de")
                }
                writer.write(f"{number}-{sample}", {"json": {"texts": texts}})


def text_recipe(world, data, seed, readers, window):
    """The text half of the tiny recipe, over other shards."""
    recipe = tiny_recipe(world).located()
    mixture = {
        "captions": replace(
            recipe.mixture["captions"], shards="train-*.tar", objectives=("mmlm",), weight=1.0
        ),
        "translations": replace(recipe.mixture["translations"], shards="train-*.tar"),
    }
    tlm = recipe.objectives["tlm"]
    mmlm = replace(tlm, view=replace(tlm.view, name="mmlm"))
    return replace(
        recipe,
        data=str(data),
        modalities={"text": recipe.modalities["text"]},
        plan=recipe.plan.restricted(("text",)),
        objectives={"tlm": tlm, "mmlm": mmlm},
        mixture=mixture,
        examples=2,
        micro=MICRO,
        seed=seed,
        readers=readers,
        window=window,
    )


def arrays(value, name=""):
    """Every array of a batch, by name."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from arrays(inner, f"{name}.{key}")
    elif isinstance(value, (Batch, ViewBatch, AimBatch, Stream)):
        for key, inner in vars(value).items():
            yield from arrays(inner, f"{name}.{key}")


def run(stack, world, workers, steps, seen):
    """All processes' micro-batches of some steps, by number; nothing may come twice."""
    for rank in range(world):
        shares = Shares(MICRO, rank, world, fused=1)
        for step, batches in zip(steps, load(stack, shares, steps, workers=workers), strict=True):
            for batch in batches:
                (number,) = batch.micro
                assert number // MICRO == step
                assert number not in seen
                seen[number] = (batch.keys, dict(arrays(batch)))


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    readers=st.integers(1, 12),
    window=st.integers(1, 40),
    worlds=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=2, max_size=3),
    workers=st.lists(st.sampled_from([0, 1, 2, 4]), min_size=3, max_size=3),
    stops=st.lists(st.integers(1, 5), min_size=2, max_size=2, unique=True),
)
def test_stopped_and_resumed_at_another_size_gives_the_same_stream(
    world, sizes, seed, readers, window, worlds, workers, stops
):
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), sizes, np.random.default_rng(seed))
        recipe = text_recipe(world, folder, seed, readers, window)
        alone, shared = {}, {}
        run(make_stack(recipe), 1, 0, range(6), alone)
        bounds = [0, *sorted(stops)[: len(worlds) - 1], 6]
        for size, own, first, last in zip(worlds, workers, bounds, bounds[1:], strict=False):
            run(make_stack(recipe), size, own, range(first, last), shared)
        assert sorted(shared) == sorted(alone) == list(range(6 * MICRO))
        for number, (keys, tensors) in alone.items():
            assert shared[number][0] == keys
            assert shared[number][1].keys() == tensors.keys()
            for name, value in tensors.items():
                assert np.array_equal(shared[number][1][name], value), (number, name)


def test_masks_differ_between_epochs_and_seeds(world, tmp_path):
    write_shards(tmp_path, [8], np.random.default_rng(0))
    found = []
    for seed in (0, 1):
        stack = make_stack(text_recipe(world, tmp_path, seed, 1, 8))
        seen = {}
        run(stack, 1, 0, range(2), seen)
        found.append([v[1][".views.tlm.streams.text.hidden"].tolist() for v in seen.values()])
    assert found[0] != found[1]
    assert len({json.dumps(x) for x in found[0]}) > 4


@pytest.mark.parametrize("sizes", [[1], [3, 1], [5, 7, 2]])
def test_a_last_partial_batch_goes_on_with_the_next_epoch(world, tmp_path, sizes):
    """Nothing is padded or dropped: over whole epochs every example comes equally often."""
    write_shards(tmp_path, sizes, np.random.default_rng(0))
    stack = make_stack(text_recipe(world, tmp_path, 0, 4, 3))
    order, total = stack.parts["captions"].order, sum(sizes)
    met = [p for n in range(total) for p in order.micro(n, 2)]
    for epoch in (0, 1):
        places = {(p.shard, p.example) for p in met if p.epoch == epoch}
        assert len(places) == total
        assert sum(p.epoch == epoch for p in met) == total
