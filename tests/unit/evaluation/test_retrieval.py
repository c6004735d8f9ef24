"""Retrieval: clean pairs are scored, each direction reranks its own candidates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.read import Texts
from crossloom.evaluation.features import features, read_examples
from crossloom.evaluation.finetune import make_task
from crossloom.evaluation.predict import gather, predict
from crossloom.evaluation.retrieval import _Scorer
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


def test_each_direction_reranks_its_own_candidates(world, monkeypatch):
    # texts 1 and 2 are candidates of images 1 and 2, which are no candidates of theirs
    cosine = np.array([[9, 2, 1], [8, 4, 0], [7, 3, 5]], np.float32)
    before = {"text_to_image": cosine, "image_to_text": cosine.T}
    match = np.arange(9.0).reshape(3, 3)
    recipe = scored(tiny_recipe(world), {"itm": itm(STREAMS)})
    scorer = _Scorer(make_model(recipe), recipe, "itm", STREAMS, [None] * 3, [None] * 3)
    asked = []
    monkeypatch.setattr(
        scorer, "_match", lambda p: asked.extend(map(tuple, p)) or match[p[:, 0], p[:, 1]]
    )
    out = scorer.rerank(before, 1, None)
    assert asked == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2)]
    for way, chosen, scores in (
        ("text_to_image", [0, 0, 0], match),
        ("image_to_text", [0, 1, 2], match.T),
    ):
        lifted = np.zeros((3, 3), bool)
        lifted[range(3), chosen] = True
        assert ((out[way] > -1e5) == lifted).all()
        assert out[way][lifted] == pytest.approx((before[way] + scores)[lifted])
        assert (np.argsort(out[way][0])[:2] == np.argsort(before[way][0])[:2]).all()
