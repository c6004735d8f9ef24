"""Dual-stream systems and the controlled comparison: sizes, views, rates, and what differs."""

import pytest
import torch

from crossloom.data_pipelines.world import ANSWERS
from crossloom.models.plan import Attend
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.recipes import controlled
from crossloom.recipes.lxmert import lxmert, lxmert_tiny
from crossloom.recipes.twelve_in_one import twelve_in_one, twelve_in_one_tiny
from crossloom.recipes.vilbert import vilbert
from crossloom.training.run import make_model

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
    for name, make in FIVE.items():
        recipe = make()
        slow = {n for n in names(recipe) if recipe.optim.factor(n) == 0.1}
        assert any(n.startswith("embed.text.token") for n in slow)
        assert not any(n.startswith(("heads.", "embed.image.")) for n in slow)
        fast = [n for n in names(recipe) if n.startswith("fusion.layers") and n not in slow]
        if name in ("vilbert", "lxmert"):
            # layers of regions, and what both streams share, are not BERT's
            assert fast
            assert not any(".text." in n for n in fast)
        else:
            assert not fast


def test_connections_come_after_six_layers_of_text():
    blocks = [b for layer in vilbert().plan.layers for b in layer.blocks if isinstance(b, Attend)]
    crossed = [b.reads == {"text": ("image",), "image": ("text",)} for b in blocks]
    assert crossed == [False] * 6 + [True, False, False] * 6


def test_each_of_twelve_tasks_rests_by_itself():
    recipe = twelve_in_one()
    assert recipe.pace is not None
    assert recipe.alike
    assert all(c.held and len(c.objectives) == 1 for c in recipe.mixture.values())
    drawn = {c.objectives[0] for c in recipe.mixture.values()}
    assert drawn == {"answers", "gqa", "retrieval", "grounding", "entailment"}
    assert recipe.objectives["retrieval"].view.rows == 4
    assert recipe.objectives["answers"].count == 3129
    tiny = twelve_in_one_tiny()
    assert tiny.pace == recipe.pace
    assert set(tiny.mixture) == {"answers", "retrieval", "grounding", "entailment"}
