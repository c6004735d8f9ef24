"""Dual-stream systems and the controlled comparison: sizes, views, rates, and what differs."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.world import ANSWERS
from crossloom.models.plan import Attend
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import draw_fates
from crossloom.recipes import controlled
from crossloom.recipes.lxmert import lxmert, lxmert_tiny
from crossloom.recipes.twelve_in_one import (
    twelve_in_one,
    twelve_in_one_captions,
    twelve_in_one_tiny,
)
from crossloom.recipes.vilbert import vilbert
from crossloom.recipes.world import tiny
from crossloom.training.run import make_model, make_stack
from crossloom.units import Fate, keyed_rng

FIVE = {
    "vilbert": controlled.controlled_vilbert,
    "lxmert": controlled.controlled_lxmert,
    "visualbert": controlled.controlled_visualbert,
    "vl-bert": controlled.controlled_vl_bert,
    "uniter": controlled.controlled_uniter,
}


def names(recipe):
    with torch.device("meta"):
        return {n: p.numel() for n, p in make_model(recipe).named_parameters()}


def linear(inputs, outputs):
    return inputs * outputs + outputs


def test_vilbert_is_as_large_as_its_configuration_says():
    width, wide = 768, 1024

    def attention(own, inner):
        return 3 * linear(own, inner) + linear(inner, own) + 2 * own

    def feed(own, hidden):
        return linear(own, hidden) + linear(hidden, own) + 2 * own

    words = (30_522 + 512 + 2) * width + 2 * width
    words += 12 * (attention(width, width) + feed(width, 3072))
    regions = linear(2048, wide) + linear(5, wide) + 2 * wide
    regions += 6 * (attention(wide, wide) + feed(wide, wide))
    # each side asks with its own width, and is asked with it: all to 1024 numbers
    connections = 6 * (
        attention(width, wide) + attention(wide, wide) + feed(width, 3072) + feed(wide, wide)
    )
    heads = linear(width, width) + 2 * width + 30_522
    heads += linear(wide, wide) + 2 * wide + linear(wide, 1601)
    heads += linear(width, 1024) + linear(wide, 1024) + linear(1024, 2)
    assert sum(names(vilbert()).values()) == words + regions + connections + heads


@pytest.mark.peers
def test_lxmert_is_as_large_as_its_reference():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = transformers.LxmertForPreTraining(transformers.LxmertConfig(num_qa_labels=9500))
    assert sum(names(lxmert()).values()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("make", [vilbert, lxmert])
def test_both_are_hidden_together_and_scored_on_pairs_that_do_not_match(make):
    recipe = make()
    (view,) = {o.view.name: o.view for o in recipe.objectives.values()}.values()
    assert set(view.hide) == {"text", "image"}
    assert view.mismatch == "text"
    masked = [o for o in recipe.objectives.values() if isinstance(o, Reconstruct)]
    assert masked
    assert not any(o.matched_only for o in masked)


def test_questions_alone_are_answered():
    recipe = lxmert()
    assert "answers" not in recipe.mixture["captions"].objectives
    assert set(recipe.mixture["questions"].objectives) == set(recipe.objectives)
    assert recipe.objectives["answers"].count == 9500
    assert lxmert_tiny().objectives["answers"].count == len(ANSWERS)


def test_the_five_differ_in_plan_and_regions_alone():
    recipes = {n: make() for n, make in FIVE.items()}
    first = recipes["uniter"]
    for name, recipe in recipes.items():
        assert recipe.objectives == first.objectives, name
        assert recipe.mixture == first.mixture
        assert (recipe.steps, recipe.examples * recipe.micro) == (108_000, 256)
        assert set(recipe.plan.widths.values()) == {768}
        assert recipe.modalities["image"].overall
        assert recipe.modalities["image"].limit == 36
    assert all(o.matched_only for n, o in first.objectives.items() if n != "match")
    forms = {n: (r.modalities["image"].norm, r.modalities["image"].box) for n, r in recipes.items()}
    assert forms == {
        "vilbert": ("norm_of_sum", 5),
        "lxmert": ("mean_of_norms", 5),
        "visualbert": ("norm_of_sum", 0),
        "vl-bert": ("norm_of_norms", "waves"),
        "uniter": ("norm_of_norms", 5),
    }
    single = [recipes[n].plan for n in ("visualbert", "vl-bert", "uniter")]
    assert single[0] == single[1] == single[2]


def test_what_bert_gives_learns_slowly_and_nothing_else():
    recipe = vilbert()
    sizes = names(recipe)
    slow = {n: size for n, size in sizes.items() if recipe.optim.factor(n) == 0.1}
    # bert-base-uncased without its pooler: 109,482,240 - 590,592
    assert sum(slow.values()) == 108_891_648
    assert not any(n.startswith(("heads.", "embed.image.")) or ".image." in n for n in slow)
    # the text's side of a connection is not BERT's
    assert recipe.optim.factor("fusion.layers.6.blocks.0.query.text.weight") == 1
    for make in (*FIVE.values(), twelve_in_one_captions):
        assert {make().optim.factor(n) for n in sizes} == {1}


@pytest.mark.parametrize("make", [vilbert, lxmert, twelve_in_one_captions, *FIVE.values()])
def test_of_an_example_nothing_may_be_hidden(make):
    views = [o.view for o in make().objectives.values()]
    assert {h.at_least for v in views for h in v.hide.values()} == {0}


def test_each_sentence_of_an_image_is_an_example():
    assert lxmert().mixture["captions"].reader.all_texts
    weights = [c.weight for c in lxmert().mixture.values()]
    assert sum(weights) == pytest.approx(9.18)  # millions
    assert lxmert().steps == pytest.approx(20 * 9.18e6 / 256, rel=1e-3)


def test_connections_come_after_six_layers_of_text():
    blocks = [b for layer in vilbert().plan.layers for b in layer.blocks if isinstance(b, Attend)]
    crossed = [b.reads == {"text": ("image",), "image": ("text",)} for b in blocks]
    assert crossed == [False] * 6 + [True, False, False] * 6


def test_before_its_tasks_twelve_in_one_hides_what_overlaps():
    recipe = twelve_in_one_captions()
    image, text = recipe.objectives["mrc"], recipe.objectives["mlm"]
    assert image.view == text.view == recipe.objectives["match"].view
    assert image.view.hide["image"].by == "group"
    assert recipe.modalities["image"].overlap == 0.4
    assert image.matched_only
    assert text.matched_only
    # two boxes that overlap by a half are hidden together, one that lies apart is not
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 5], [20, 20, 30, 30]], np.float32)
    arrays = {"features": np.ones((3, 2048), np.float32), "boxes": boxes,
              "labels": np.array([1, 2, 3]), "size": np.array([40, 40])}  # fmt: skip
    file = io.BytesIO()
    np.savez(file, **arrays)
    units = recipe.modalities["image"].decode({"regions.npz": file.getvalue()}, keyed_rng("x"))
    hidden = [draw_fates(units, image.view.hide["image"], keyed_rng(n)) for n in range(40)]
    changed = np.stack(hidden) != Fate.KEEP
    assert (changed[:, 1] == changed[:, 2]).all()
    assert (changed[:, 1] != changed[:, 3]).any()
    assert not changed[:, 0].any()  # the whole image


def test_each_of_twelve_tasks_rests_by_itself():
    recipe = twelve_in_one()
    assert recipe.pace is not None
    assert recipe.alike
    assert all(c.held and len(c.objectives) == 1 for c in recipe.mixture.values())
    drawn = {c.objectives[0] for c in recipe.mixture.values()}
    assert drawn == {
        "answers", "gqa", "retrieval", "grounding", "entailment", "verification",
    }  # fmt: skip
    assert len(recipe.mixture) == 12
    # each data set tells which it is, and the text has a vector for it
    assert {c.reader.task for c in recipe.mixture.values()} == set(recipe.mixture)
    assert set(recipe.modalities["text"].tasks) == set(recipe.mixture)
    assert recipe.objectives["verification"].view.twice == {"image": "second"}
    assert recipe.objectives["retrieval"].view.rows == 4
    assert recipe.objectives["answers"].count == 3129
    # rates: 4e-5 and 2e-5 of the task file, 1e-4 for heads
    assert {n for n, o in recipe.objectives.items() if o.weight == 2} == {"answers", "gqa"}
    fast = {n for n in names(recipe) if recipe.optim.factor(n) == 5}
    assert {n.split(".")[1] for n in fast} == drawn - {"grounding"}
    assert not any(".pooler." in n for n in fast)
    small = twelve_in_one_tiny()
    assert small.pace == recipe.pace
    assert set(small.mixture) == {"answers", "retrieval", "grounding", "entailment"}


def test_heads_of_twelve_tasks_read_one_summary():
    with torch.device("meta"):
        heads = make_model(twelve_in_one()).heads
    for name in ("gqa", "retrieval", "entailment", "verification"):
        assert heads[name].pooler is heads["answers"].pooler
    assert heads["answers"].pooler.width == 1024
    assert heads["answers"].pooler.activation == "relu"
    assert heads["answers"].pooler.dropout == 0.1


def test_a_sentence_is_read_with_each_of_two_pictures(world, tmp_path):
    """12-in-1's NLVR2 beside sets of one picture: the first is read by their stream."""
    seen = []
    with tarfile.open(next(world.glob("train-*.tar"))) as tar:
        for name in tar.getnames():
            if name.endswith(".regions.npz") and len(seen) < 8:
                seen.append(tar.extractfile(name).read())
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for number in range(4):
            pair = {"id": "1", "label": "true", "hypothesis": {"en": "a red ball"}}
            members = {"json": json.dumps({"pairs": [pair]}).encode()}
            members |= {f"{n}.regions.npz": seen[2 * number + n] for n in (0, 1)}
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    recipe = twelve_in_one()
    component = replace(recipe.mixture["nlvr2"], shards=str(tmp_path / "train-*.tar"), held="")
    mixture = {"nlvr2": component}
    recipe = replace(
        recipe, mixture=mixture, pace=None, held_every=0,
        objectives={"verification": replace(recipe.objectives["verification"], shares="")},
    )  # fmt: skip
    small = tiny(recipe, twelve_in_one_tiny().plan, mixture)
    located = replace(small, data=str(world), examples=4, workers=0).located()
    batch = make_stack(located).micro(0).to("cpu")
    view = batch.views["pair"]
    assert view.examples == 8  # each sentence twice
    one, two = (view.streams["image"].content["feature"][view.streams["image"].example == n]
                for n in (0, 1))  # fmt: skip
    assert one.shape != two.shape or not torch.equal(one, two)
    number = located.modalities["text"].tasks.index("nlvr2")
    assert (view.streams["text"].content["task"] == number).sum() == 8
    model = make_model(located)
    loss = model(batch)["verification"]["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert model.embed["text"].task.weight.grad[number].abs().sum() > 0
