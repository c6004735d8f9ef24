"""A second text: another stream through the same embedder, contrasted with the first."""

import json
from dataclasses import replace

import pytest
import torch

from crossloom.data_pipelines.read import Parallel
from crossloom.evaluation.finetune import evaluate, make_task
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itc, itm, mlm, xlco
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component, from_yaml
from crossloom.training.run import (
    RECIPE,
    load_weights,
    make_model,
    make_stack,
    open_run,
    start_from,
)
from crossloom.units import keyed_rng

STREAMS = ("text", "image", "second")


@pytest.fixture
def recipe(world):
    base = tiny_recipe(world)
    return replace(
        base,
        modalities={**base.modalities, "second": replace(base.modalities["text"], field="second")},
        tied={"second": "text"},
        plan=single_stream(STREAMS, layers=2, width=32, heads=2, dropout=0.0),
        objectives={"mlm": mlm(("text", "image")), "xlco": xlco(dim=16, pool="mean")},
        mixture={
            "captions": replace(base.mixture["captions"], objectives=("mlm",)),
            "translations": Component(
                shards="train-*.tar", reader=Parallel(apart=True), objectives=("xlco",), weight=3
            ),
        },
    )


def batch_of(recipe, component):
    stack = make_stack(recipe)
    number = next(n for n in range(100) if stack.places(n)[0] == component)
    return stack.micro(number).to("cpu")


def test_passages_apart_are_two_texts():
    content = {"texts": {"en": ["one"], "de": ["eins"]}}
    sample, _ = Parallel(apart=True).read({"json": json.dumps(content).encode()}, 0, keyed_rng(3))
    assert {p.text for p in (*sample["text"], *sample["second"])} == {"one", "eins"}
    assert len(sample["text"]) == len(sample["second"]) == 1
    with pytest.raises(ValueError, match="by the view"):
        Parallel(apart=True, mismatch=0.5)


def test_a_tied_stream_has_no_embedder_of_its_own(recipe):
    model = make_model(recipe.located())
    assert set(model.embed) == {"text", "image"}
    untied = make_model(replace(recipe, tied={}).located())
    assert set(untied.embed) == set(STREAMS)


def test_the_same_text_looks_the_same_in_both_streams(recipe):
    recipe = recipe.located()
    model = make_model(recipe)
    batch = batch_of(recipe, "translations")
    view = batch.views["xlco"]
    twice = replace(view, streams=dict.fromkeys(view.streams, view.streams["text"]))
    encoded = model.encode(twice)
    assert torch.equal(encoded.states["text"], encoded.states["second"])
    both = model.heads["xlco"].predict(encoded)
    assert torch.equal(both[:, 0], both[:, 1])
    # and apart: what the second says changes nothing in the first
    other = model.encode(view)
    torch.testing.assert_close(other.states["text"], encoded.states["text"])


def test_both_streams_teach_the_shared_embedder(recipe):
    recipe = recipe.located()
    model = make_model(recipe)
    batch = batch_of(recipe, "translations")
    model(batch)["xlco"]["loss"].backward()
    seen = model.embed["text"].token.weight.grad.abs().sum(1) > 0
    for stream in ("text", "second"):
        assert seen[batch.views["xlco"].streams[stream].content["token"]].all()


def test_it_trains_and_the_recipe_comes_back(recipe, tmp_path):
    train(replace(recipe, steps=30, log_every=10), tmp_path, start("cpu"))
    losses = [x["xlco/loss"] for x in read_journal(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    again = from_yaml(tmp_path / RECIPE)
    assert again.tied == {"second": "text"}
    assert again.objectives == recipe.objectives
    weights, _ = load_weights(tmp_path)
    assert start_from(make_model(open_run(tmp_path)), weights) == ([], [])


def test_tasks_leave_the_second_text_out(recipe):
    task, _ = make_task("vqa", [])
    tuned = task.recipe(recipe.located(), "")
    assert set(tuned.modalities) == {"text", "image"}
    assert not tuned.tied


def test_retrieval_finds_the_heads_over_text_and_image(recipe, tmp_path):
    captions = replace(recipe.mixture["captions"], objectives=("mlm", "itc", "itm"))
    full = replace(
        recipe,
        steps=2,
        objectives={"itc": itc(dim=16), "itm": itm(), **recipe.objectives},
        mixture={**recipe.mixture, "captions": captions},
    )
    train(full, tmp_path, start("cpu"))
    metrics = evaluate("retrieval", tmp_path, start("cpu"), ["limit=6"]).metrics
    assert metrics["images"] == metrics["texts"] == 6
    assert set(metrics["dual_encoder"]) == {"text_to_image", "image_to_text"}


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ({"second": "txt"}, "did you mean 'text'"),
        ({"second": "image"}, "differs from 'image'"),
        ({"second": "second"}, None),
        ({"second": "text", "text": "second"}, "no stream with an embedder"),
    ],
)
def test_ties_that_cannot_be(recipe, tied, message):
    if message is None:
        assert set(make_model(replace(recipe, tied=tied).located()).embed) == set(STREAMS)
        return
    with pytest.raises(ValueError, match=message):
        make_model(replace(recipe, tied=tied).located())
