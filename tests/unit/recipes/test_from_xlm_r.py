"""InfoXLM, XLM-E, HICTL, ERNIE-M: what makes each that system, in either size."""

from collections import Counter
from dataclasses import replace

import pytest

from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.evaluation.finetune import make_task
from crossloom.models.plan import Attend
from crossloom.training.recipe import load_recipe
from crossloom.training.run import make_stack

PAIR = ("text", "second")


def small(name, world):
    return replace(load_recipe(name), data=str(world), examples=6).located()


def shape(objective):
    """An objective without what sizes differ in."""
    sizes = {"layer": 0, "queue": 1, "momentum": 0, "dim": 0, "negatives": 1, "wait": False}
    known = {k: v for k, v in sizes.items() if getattr(objective, k, False)}
    return replace(objective, **known)


@pytest.mark.parametrize("name", ["infoxlm", "xlm-e", "hictl", "ernie-m"])
def test_the_small_recipe_is_the_published_one_in_another_size(name):
    large, tiny = load_recipe(name), load_recipe(f"{name}-tiny")
    assert {n: shape(o) for n, o in large.objectives.items()} == {
        n: shape(o) for n, o in tiny.objectives.items()
    }
    for name, component in large.mixture.items():
        other, reader = tiny.mixture[name], component.reader
        if component.languages:  # the world's samples are in all its languages
            shared = tuple(code for code in component.languages if code in LANGUAGES)
            reader = replace(reader, languages=shared)
        assert (reader, component.objectives) == (other.reader, other.objectives)
    assert large.tied == tiny.tied
    assert [p.weights for p in large.phases] == [p.weights for p in tiny.phases]


def test_infoxlm_contrasts_mixed_pairs_at_the_eighth_layer(world):
    recipe = load_recipe("infoxlm")
    contrast = recipe.objectives["xlco"]
    assert (contrast.layer, contrast.queue, contrast.momentum) == (8, 131_072, 0.9999)
    assert (contrast.temperature, contrast.cosine, contrast.both) == (0.25, False, False)
    assert contrast.view.mixed == PAIR
    made = small("infoxlm-tiny", world)
    stack, vocab = make_stack(made), made.modalities["text"].vocab
    tokens = {}
    for number in range(30):
        batch = stack.micro(number)
        for name in ("tlm", "xlco"):
            if batch.counts[name] and name not in tokens:
                tokens[name] = batch.views[name].streams["text"]
    # one end between translations, and between the sentences of a mixture
    for stream in tokens.values():
        ends = stream.content["token"] == vocab.end
        assert not (ends[1:] & ends[:-1]).any()
        assert 1 < ends.sum() / len(stream.length) <= 2
        assert stream.hidden.any()


def test_pseudo_tokens_come_in_the_second_stage(world):
    recipe = small("ernie-m-tiny", world)
    (phase,) = recipe.phases
    assert phase.step == recipe.steps // 2
    recipe = replace(recipe, steps=40, phases=(replace(phase, step=20),))
    stack = make_stack(recipe)
    drawn = [Counter(stack.places(n)[0] for n in some) for some in (range(20), range(20, 40))]
    assert set(drawn[0]) == {"documents", "together", "apart"}
    assert set(drawn[1]) == {*drawn[0], "pseudo"}
    number = next(n for n in range(20, 40) if stack.places(n)[0] == "pseudo")
    text, places = (stack.micro(number).views["btmlm"].streams[s] for s in PAIR)
    assert places.hidden.all()
    assert text.hidden.any()
    assert not text.hidden.all()
    # about half as many places as there are words
    assert 0.35 < len(places.position) / (len(text.position) - 2 * len(text.length)) < 0.65


def test_a_generator_fills_in_texts_and_translations(world):
    large, recipe = load_recipe("xlm-e"), small("xlm-e-tiny", world)
    assert {n: o.weight for n, o in large.objectives.items()} == {
        "mmlm": 1, "mrtd": 50, "tlm": 1, "trtd": 50,
    }  # fmt: skip
    reads = [b.reads for b in large.plan.blocks.values() if isinstance(b, Attend)]
    assert [sum(s in r for r in reads) for s in ("text", "generator")] == [12, 4]
    assert large.plan.known("text") == {"text"}
    stack = make_stack(recipe)
    batches = {stack.places(n)[0]: stack.micro(n) for n in range(20)}
    for part, hidden, told in (("documents", "mmlm", "mrtd"), ("together", "tlm", "trtd")):
        batch = batches[part]
        text, places = batch.views[told].streams["text"], batch.views[hidden].streams["generator"]
        assert (text.content["token"] == places.content["token"]).mean() > 0.8
        share = len(batch.aims[hidden].index) / len(text.position)
        assert 0.08 < share < 0.2
        assert len(batch.aims[told].index) == len(text.position)
        assert 0.6 < places.hidden.sum() / len(batch.aims[hidden].index) < 1
    # the generator is no part of what is fine-tuned
    tuned = make_task("xnli")[0].recipe(recipe, "")
    assert tuple(tuned.plan.widths) == tuple(tuned.modalities) == ("text",)
