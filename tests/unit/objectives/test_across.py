"""Hidden units that read the other side alone: the mask written out, and nothing let through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import Stream, ViewBatch
from crossloom.data_pipelines.read import Parallel
from crossloom.models.attention import Layout
from crossloom.models.presets import dual_encoder, single_stream
from crossloom.objectives.crosslingual import camlm
from crossloom.objectives.presets import BERT
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component
from crossloom.training.run import make_model, make_stack

PAIR = ("text", "second")


def recipe(world, plan=None):
    base = tiny_recipe(world)
    return replace(
        base,
        modalities={"text": base.modalities["text"],
                    "second": replace(base.modalities["text"], field="second")},
        tied={"second": "text"},
        plan=plan or single_stream(PAIR, layers=3, width=32, heads=2, dropout=0.0),
        objectives={"camlm": camlm(), "back": replace(camlm(stream="second"), shares="camlm")},
        mixture={"pairs": Component(shards="train-*.tar", reader=Parallel(apart=True),
                                    objectives=("camlm", "back"))},
        examples=4,
        micro=1,
    ).located()  # fmt: skip


def readable(layout, names):
    """Pairs of flat units (of all streams end to end) that the mask lets through."""
    where = layout.together(names)
    mask = layout.mask(names, names, ())
    mask = mask.expand(len(where.length), 1, where.longest, where.longest)[:, 0]
    mask = mask & where.valid[:, None, :] & where.valid[:, :, None]
    out = set()
    for example, query, key in mask.nonzero().tolist():
        flat = where.pad.view(len(where.length), -1)[example]
        out.add((int(flat[query]), int(flat[key])))
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_mask_is_the_one_written_out(seed, streams):
    rng = np.random.default_rng(seed)
    names = tuple("abc"[: streams + 1])
    made, units = {}, []
    for number, name in enumerate(names):
        length = rng.integers(1, 5, size=3)
        hidden = rng.random(length.sum()) < 0.4
        made[name] = Stream.build({}, {}, np.arange(length.sum()), hidden, length)
        examples = np.repeat(np.arange(3), length)
        units += [(number, int(e), bool(h)) for e, h in zip(examples, hidden, strict=True)]
    layout = Layout(ViewBatch(streams=made, across=True).to("cpu"))
    expected = set()
    for i, (side, example, hidden) in enumerate(units):
        for j, (other, same, unseen) in enumerate(units):
            if example != same:
                continue
            if i == j or (not unseen and (side != other if hidden else side == other)):
                expected.add((i, j))
    assert readable(layout, names) == expected


def states(model, view):
    with torch.no_grad():
        return {n: s.clone() for n, s in model.eval().encode(view).states.items()}


def changed(view, name, where):
    stream = view.streams[name]
    token = stream.content["token"].clone()
    token[where] = (token[where] + 7) % 500 + 5
    return replace(view, streams={
        **view.streams, name: replace(stream, content={**stream.content, "token": token})
    })  # fmt: skip


@pytest.fixture
def shown(world):
    torch.manual_seed(0)
    made = recipe(world)
    batch = make_stack(made).micro(0).to("cpu")
    return make_model(made), batch


def test_what_is_hidden_is_known_from_the_other_side_alone(shown):
    model, batch = shown
    view = batch.views["camlm"]
    hidden = {n: s.hidden for n, s in view.streams.items()}
    assert all(h.any() for h in hidden.values())
    first = states(model, view)
    for name, other in (PAIR, PAIR[::-1]):
        # other words on its own side: nothing changes, to the bit
        own = states(model, changed(view, name, ~hidden[name]))
        assert torch.equal(own[name][hidden[name]], first[name][hidden[name]])
        assert not torch.isclose(own[name][~hidden[name]], first[name][~hidden[name]]).all(1).any()
        # but what is hidden of the other side, and it alone, knows them
        assert torch.equal(own[other][~hidden[other]], first[other][~hidden[other]])
        assert (
            not torch.isclose(own[other][hidden[other]], first[other][hidden[other]]).all(1).any()
        )


def test_gradients_reach_the_words_of_the_other_side_and_no_others(shown):
    model, batch = shown
    view = batch.views["camlm"]
    passes = model.encode(view)
    for stream in passes.embedded.values():
        stream.retain_grad()
    model.heads["camlm"](passes, batch.aims["camlm"])["loss"].backward()
    hidden = {n: s.hidden for n, s in view.streams.items()}
    text, second = (passes.embedded[n].grad.abs().sum(1) > 0 for n in PAIR)
    assert torch.equal(text, hidden["text"])
    # examples of which nothing of the text is hidden are not scored
    scored = torch.zeros(view.examples, dtype=torch.bool)
    scored[view.streams["text"].example[hidden["text"]]] = True
    assert torch.equal(second, ~hidden["second"] & scored[view.streams["second"].example])


def test_plans_and_views_that_would_let_something_through_are_refused(world):
    with pytest.raises(ValueError, match="set show and swap to 0"):
        View(name="v", streams=PAIR, across=True, hide={"text": BERT})
    with pytest.raises(ValueError, match="two streams or more"):
        View(name="v", streams=PAIR, across=True, apart=True)
    with pytest.raises(ValueError, match="two streams or more"):
        View(name="v", streams=("text",), across=True, hide={"text": Hide(show=0, swap=0)})
    made = recipe(world, dual_encoder(*PAIR, layers=1, width=32, heads=2))
    with pytest.raises(ValueError, match="read themselves and each other"):
        make_model(made)(make_stack(made).micro(0).to("cpu"))


def test_both_sides_are_one_pass_and_share_what_they_can(world):
    made = recipe(world)
    model = make_model(made)
    assert list(model.asked) == ["camlm"]
    assert "heads.back.transform.0.weight" not in model.state_dict()
