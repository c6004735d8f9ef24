"""Retrieval: clean pairs are scored, each direction reranks its own candidates."""

from dataclasses import replace

import torch

from crossloom.data_pipelines.read import Texts
from crossloom.evaluation.features import features, read_examples
from crossloom.evaluation.finetune import make_task
from crossloom.evaluation.predict import gather, predict
from crossloom.objectives.presets import itc, itm
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.recipe import Component
from crossloom.training.run import make_model


def scored(recipe, objectives):
    """The recipe with these objectives alone."""
    captions = replace(recipe.mixture["captions"], objectives=tuple(objectives))
    return replace(recipe, objectives=objectives, mixture={"captions": captions}).located()


def test_pairs_are_matched_with_nothing_hidden(world):
    view = View(
        name="joint", streams=STREAMS, mismatch="image", hide=dict.fromkeys(STREAMS, Hide(rate=0.9))
    )
    hiding, clean = (
        scored(tiny_recipe(world), {"itm": replace(itm(STREAMS), view=v)})
        for v in (view, view.clean)
    )
    torch.manual_seed(0)
    model = make_model(hiding)
    task, _ = make_task("retrieval", ["limit=4"])
    assert task.evaluate(model, hiding).files == task.evaluate(model, clean).files


def test_contrast_is_predicted_with_nothing_hidden(world):
    contrast = itc(dim=16)
    hide = dict.fromkeys(STREAMS, Hide(rate=0.9))
    recipe = scored(
        tiny_recipe(world), {"itc": replace(contrast, view=replace(contrast.view, hide=hide))}
    )
    model = make_model(recipe)
    task, _ = make_task("retrieval")
    component = Component(shards=task.test, reader=Texts(languages=("en",)), objectives=())
    source = task.source(recipe, component, task.test)
    found, _, _ = gather(predict(model, recipe, source, ("itc",)), "itc")
    examples = read_examples(recipe, source, STREAMS)
    for number, stream in enumerate(STREAMS):
        alone = features(model, recipe, "itc", stream, examples)
        assert torch.allclose(found[:, number], alone, atol=1e-5)
