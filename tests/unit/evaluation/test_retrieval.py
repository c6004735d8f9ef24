"""Retrieval: clean pairs are scored, each direction reranks its own candidates."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.features import features, read_examples
from crossloom.evaluation.finetune import make_task
from crossloom.evaluation.predict import evaluation_collator, gather, predict
from crossloom.evaluation.retrieval import _log_odds, _Scorer
from crossloom.objectives.match import Match
from crossloom.objectives.presets import itc, itm
from crossloom.objectives.rank import Rank
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.recipe import Component, RecipeError
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


def test_matching_alone_is_trained_with_another_text_or_image(world):
    """And without a contrastive head all pairs are scored (Oscar, Unicoder-VL)."""
    recipe = scored(tiny_recipe(world), {"tell": itm(STREAMS)})
    task, _ = make_task("retrieval", ["by=match", "limit=4"])
    made = task.recipe(recipe, "")
    ((name, match),) = made.objectives.items()
    assert (name, set(match.view.mismatched)) == ("tell", set(STREAMS))
    component = Component(shards="train-*.tar", reader=Texts(languages=("en",)), objectives=())
    source = task.source(made, component, "train-*.tar")
    examples = read_examples(made, source, STREAMS, most=24)
    collator = evaluation_collator(made)
    batch = collator.batch(examples, (name,), len(examples))
    right = collator.batch(examples, (name,), len(examples), others=False)
    other = {s: _told(batch, s) != _told(right, s) for s in STREAMS}
    for stream, some in other.items():
        assert 2 <= some.sum() <= 12, stream
    assert not (other["text"] & other["image"]).any()
    assert (batch.aims[name].value == ~(other["text"] | other["image"])).all()
    assert "dual_encoder" not in task.evaluate(make_model(made), made).metrics


def _told(batch, stream):
    """What the units of each example say, in one number."""
    flat = batch.views["match"].streams[stream]
    content = flat.content["token" if stream == "text" else "feature"].astype(float)
    return np.add.reduceat(content.reshape(len(content), -1).sum(1), flat.start)


def test_a_head_that_ranks_goes_on(world):
    """12-in-1 has one that ranks, and none that matches."""
    form = {"pooled": STREAMS, "width": 24, "activation": "relu"}
    against = View(name="against", streams=STREAMS, against=("image",))
    recipe = scored(tiny_recipe(world), {"find": Rank(view=against, **form)})
    for by, kind in (("match", Match), ("choice", Rank), ("contrast", Match)):
        made = make_task("retrieval", [f"by={by}"])[0].recipe(recipe, "")
        head = made.objectives["find"]
        assert type(head) is kind
        assert head.pooling == recipe.objectives["find"].pooling
    asked = make_task("snli-ve")[0].recipe(recipe, "").objectives["snli-ve"]
    assert asked.pooling == head.pooling
    # what matches comes first, though it be later
    both = scored(recipe, {**recipe.objectives, "itm": itm(STREAMS)})
    for task in ("snli-ve", "retrieval"):
        made = make_task(task)[0].recipe(both, "")
        name = "itm" if task == "retrieval" else task
        assert made.objectives[name].pooled == ("text",)


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


def test_cosines_count_in_the_scale_they_were_trained_in():
    head = itc(dim=4).head({}, dict.fromkeys(STREAMS, 4))
    head.scale.data.fill_(math.log(20))
    model, cosine = SimpleNamespace(heads={"itc": head}), {"text_to_image": np.array([[0.5, -1]])}
    found = _log_odds(model, {"contrast": "itc"}, cosine)
    assert found["text_to_image"] == pytest.approx(np.array([[10, -20]]))


@pytest.fixture(scope="module")
def towers(world):
    """A model that ranks by cosine alone, and its recipe."""
    recipe = scored(tiny_recipe(world), {"itc": itc(dim=16, pool="mean")})
    return make_model(recipe), recipe


def ranked(towers, *settings, **recipe):
    model, known = towers
    return make_task("retrieval", settings)[0].evaluate(model, replace(known, **recipe))


def test_a_last_fold_that_is_not_full_is_left_out_and_told(towers):
    some = ranked(towers, "fold=8")
    assert {k: some.metrics[k] for k in ("images", "texts", "folds", "left_out")} == {
        "images": 20, "texts": 20, "folds": 2, "left_out": 4,
    }  # fmt: skip
    assert len(some.records) == 16
    full = ranked(towers, "fold=8", "limit=16")
    assert full.metrics["left_out"] == 0
    assert some.metrics["text_to_image"] == full.metrics["text_to_image"]
    with pytest.raises(RecipeError, match=r"fold: 21 images, but .* has 20 .* set fold=0"):
        ranked(towers, "fold=21")


def test_several_splits_are_not_searched_as_one(towers):
    with pytest.raises(RecipeError, match=r"splits dev, test, .* test='dev-\*.tar'"):
        ranked(towers, "test={dev,test}-*.tar")


@pytest.fixture(scope="module")
def lacking(world, tmp_path_factory):
    """Six images; German is missing in two, and has one empty text."""
    out = tmp_path_factory.mktemp("lacking")
    source = open_shards("test-*.tar", world)[0]
    # numbers for names tell no split
    for shard in range(2):
        with ShardWriter(out, "x") as writer:
            for number in range(3):
                members = source.read(3 * shard + number)
                texts = json.loads(members["json"])["texts"]
                texts = {code: texts[code][:2] for code in ("en", "de")}
                if number == 0:
                    del texts["de"]
                elif shard and number == 1:
                    texts["de"] = ["", "Ein Kreis."]
                writer.write(f"{number}", {**members, "json": {"id": "1", "texts": texts}})
        for file in out.glob("x-*"):
            file.rename(out / file.name.replace("x-000000", f"0000{shard}"))
    return out


def test_languages_tell_what_they_hold_and_must_hold_something(towers, lacking):
    here = {"data": str(lacking)}
    result = ranked(towers, "test=*.tar", "tested=[en,de]", "texts=0", **here)
    sizes = {c: (m["images"], m["texts"]) for c, m in result.metrics["languages"].items()}
    assert sizes == {"en": (6, 12), "de": (4, 7)}
    assert (result.metrics["images"], result.metrics["texts"]) == (6, 19)
    assert [(d.shard.rpartition("/")[2], d.key, d.kind) for d in result.defects] == [
        ("00001.tar", "1", "empty text")
    ]
    with pytest.raises(RecipeError, match="no text in cs for any"):
        ranked(towers, "test=*.tar", "tested=[en,cs]", **here)
    with pytest.raises(RecipeError, match="name the languages"):
        ranked(towers, "tested=[]")


def test_shards_of_one_name_are_refused(towers, world, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test-000000.tar").symlink_to(world / "test-000000.tar")
    with pytest.raises(RecipeError, match=r"a/test-0+.tar and .*b/test-0+.tar have one name"):
        ranked(towers, "test={a,b}/test-*.tar", data=str(tmp_path))
