"""Pseudo tokens: filled from the clean text alone, then read beside what is predicted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import Stream, ViewBatch, fuse
from crossloom.data_pipelines.read import Texts
from crossloom.models.presets import single_stream
from crossloom.objectives.crosslingual import PLACES, btmlm
from crossloom.objectives.presets import BERT, mmlm
from crossloom.objectives.view import Hide, View, draw_relaid
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component, RecipeError, from_dict, to_dict
from crossloom.training.run import make_model, make_stack
from crossloom.units import make_units

PAIR = ("text", "second")


def recipe(world, **changes):
    base = tiny_recipe(world)
    made = replace(
        base,
        modalities={"text": base.modalities["text"],
                    "second": replace(base.modalities["text"], field="second")},
        tied={"second": "text"},
        plan=single_stream(PAIR, layers=2, width=32, heads=2, dropout=0.0),
        objectives={"mmlm": mmlm(), "btmlm": replace(btmlm(), shares="mmlm")},
        mixture={"text": Component(shards="train-*.tar", reader=Texts(copies=("second",)),
                                   objectives=("mmlm", "btmlm"))},
        examples=4,
        micro=2,
    )  # fmt: skip
    return replace(made, **changes).located()


def clean_examples(made, number=0):
    """What the batch's streams hold before anything is hidden, from the data side."""
    stack = make_stack(made)
    source, places = stack.places(number)
    source = stack.parts[source].source
    return [source.example(p, made.modalities, frozenset(PAIR), made.seed) for p in places]


def a_model(made):
    torch.manual_seed(3)
    model = make_model(made)
    with torch.no_grad():  # so that predictions differ from place to place
        model.embed["text"].token.weight.mul_(20)
        model.embed["text"].position.weight.mul_(50)
        model.heads["btmlm"].bias.normal_(std=0.1)
    return model


def stream(token, position, length, hidden):
    return Stream.build({"token": token}, {}, position, hidden, length)


def first_pass(model, made, batch, examples):
    """Pseudo tokens of a batch, from the clean text of its examples."""
    view = batch.views["btmlm"]
    token = np.concatenate([e.units["text"].content["token"] for e in examples])
    text, places = (view.streams[s] for s in PAIR)
    assert token.shape == text.content["token"].shape
    assert not np.array_equal(token, text.content["token"].numpy())
    clean = stream(token, text.position.numpy(), text.length.numpy(), np.zeros(len(token), bool))
    blind = stream(np.zeros(len(places.position), np.int64), places.position.numpy(),
                   places.length.numpy(), np.ones(len(places.position), bool))  # fmt: skip
    shown = ViewBatch(streams={"text": clean, "second": blind}, across=True).to("cpu")
    head = model.heads["btmlm"]
    state = model.encode(shown).states["second"]
    scores = head.transform(state) @ model.embed["text"].token.weight.T + head.bias
    vocab = made.modalities["text"].vocab
    return torch.from_numpy(vocab.ordinary)[scores[:, vocab.ordinary].argmax(1)]


def second_pass(model, batch, filled):
    view = batch.views["btmlm"]
    text, places = (view.streams[s] for s in PAIR)
    said = stream(filled.numpy(), places.position.numpy(), places.length.numpy(),
                  np.zeros(len(filled), bool))  # fmt: skip
    shown = replace(view, streams={"text": text, "second": ViewBatch(streams={"x": said})
                                   .to("cpu").streams["x"]})  # fmt: skip
    head, aim = model.heads["btmlm"], batch.aims["btmlm"]
    state = head.transform(model.encode(shown).at("text", aim.index))
    scores = state @ model.embed["text"].token.weight.T + head.bias
    return F.cross_entropy(scores, aim.value, reduction="sum")


@pytest.mark.parametrize("at_once", [2**25, 1500])
def test_the_loss_is_that_of_two_passes_by_hand(world, monkeypatch, at_once):
    monkeypatch.setattr("crossloom.objectives.back_translate.LOGITS_AT_ONCE", at_once)
    made = recipe(world)
    model, batch = a_model(made), make_stack(made).micro(0).to("cpu")
    places = batch.views["btmlm"].streams["second"]
    assert places.hidden.all()
    with torch.no_grad():
        filled = first_pass(model, made, batch, clean_examples(made))
    assert len(filled.unique()) > 3
    model.zero_grad()
    expected = second_pass(model, batch, filled)
    expected.backward()
    wanted = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = model(batch)["btmlm"]["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    # the gradient is that of the second pass: none goes through the filling
    for name, gradient in wanted.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_no_special_is_ever_filled_in(world):
    made = recipe(world)
    model, batch = a_model(made), make_stack(made).micro(0).to("cpu")
    vocab = made.modalities["text"].vocab
    special = sorted({vocab.begin, vocab.end, vocab.pad, vocab.unknown, vocab.mask})
    head = model.heads["btmlm"]
    assert head.barred.tolist() == special
    with torch.no_grad():
        head.bias[special] = 1e4
    seen = []
    encode = torch.nn.Embedding.forward

    def watch(self, index):
        seen.append(index)
        return encode(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Embedding, "forward", watch)
        from crossloom.models.model import _Passes

        model.eval()
        head(_Passes(model, batch).of("btmlm"), batch.aims["btmlm"])
    places = len(batch.views["btmlm"].streams["second"].position)
    # a table of pieces, then one of positions, for each stream: twice
    pieces = seen[::2]
    assert [len(x) == places for x in pieces] == [False, True, False, True]
    assert (pieces[1] == vocab.mask).all()
    assert not np.isin(pieces[3].numpy(), special).any()


def test_fused_and_blank_batches_are_clean_again(world):
    """Blank slots put nothing back: where nothing is scored, nothing changes."""
    made = recipe(world, mixture={
        "text": recipe(world).mixture["text"],
        "other": Component(shards="train-*.tar", reader=Texts(), objectives=("mmlm",)),
    })  # fmt: skip
    stack = make_stack(made)
    batches = [stack.micro(n) for n in range(8)]
    blank = next(b for b in batches if not b.counts["btmlm"])
    drawn = next(b for b in batches if b.counts["btmlm"])
    model = a_model(made)
    alone = model(drawn.to("cpu"))["btmlm"]["loss"]
    for pair in ((drawn, blank), (blank, drawn)):
        both = fuse(pair, stack.collator.of_units()).to("cpu")
        torch.testing.assert_close(model(both)["btmlm"]["loss"], alone)
    assert model(blank.to("cpu"))["btmlm"]["loss"].item() == 0


def test_the_host_waits_for_nothing(world):
    """Every shape is known without a look at a value."""
    made = recipe(world)
    batch = make_stack(made).micro(0).to("meta")
    out = make_model(made).to("meta")(batch)
    out["btmlm"]["loss"].backward()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0, 1))
def test_places_alone_are_hidden_units_in_their_positions(seed, n, rate):
    units = make_units({"token": np.arange(n)}, position=np.arange(n) + 4,
                       maskable=np.arange(n) % 5 > 0)  # fmt: skip
    hide = replace(PLACES, rate=rate)
    fate, laid = draw_relaid(units, hide, np.random.default_rng(seed))
    assert laid.place.tolist() == np.flatnonzero(fate == 1).tolist()
    assert (laid.fate == 1).all()
    assert laid.position.tolist() == [p + 4 for p in laid.place]
    assert units.maskable[laid.place].all()
    assert len(laid.place) >= (n > 1)
    if rate == 1:
        assert len(laid.place) == units.maskable.sum()


def test_what_does_not_fit_is_refused(world):
    with pytest.raises(ValueError, match="places to be filled"):
        Hide(alone=True)
    made = recipe(world)
    for view in (
        View(name="btmlm", streams=PAIR, hide={"text": BERT}),
        View(name="btmlm", streams=PAIR, hide={"text": BERT, "second": BERT}),
        View(name="btmlm", streams=PAIR, hide={"text": BERT, "second": PLACES}, apart=True),
    ):
        spec = replace(made.objectives["btmlm"], view=view)
        with pytest.raises(ValueError, match=r"objectives\.btmlm: view 'btmlm'"):
            make_model(replace(made, objectives={**made.objectives, "btmlm": spec}))
    spec = replace(made.objectives["mmlm"], view=made.objectives["btmlm"].view)
    with pytest.raises(ValueError, match="another objective's own"):
        make_model(replace(made, objectives={**made.objectives, "mmlm": spec}))
    values = to_dict(made)
    assert from_dict(values) == made
    values["objectives"]["btmlm"]["places"] = 1
    with pytest.raises(RecipeError, match="places"):
        from_dict(values)
