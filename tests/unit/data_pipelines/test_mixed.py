"""Mix-up of two pairs: both sides of both, in orders drawn for each side, by the key alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from crossloom.data_pipelines.collate import exhibit
from crossloom.data_pipelines.read import Parallel
from crossloom.modalities.text import Text
from crossloom.objectives.presets import xlco_queue
from crossloom.objectives.view import View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component
from crossloom.training.run import make_stack
from crossloom.units import Passage, keyed_rng

PAIR = ("text", "second")


@pytest.fixture
def stack(world):
    base = tiny_recipe(world)
    text = replace(base.modalities["text"], limit=160)
    return make_stack(
        replace(
            base,
            modalities={"text": text, "second": replace(text, field="second")},
            tied={"second": "text"},
            objectives={"xlco": xlco_queue(layer=1, queue=64, dim=32, hide=None)},
            mixture={"pairs": Component(shards="train-*.tar", reader=Parallel(apart=True),
                                        objectives=("xlco",))},
            examples=6,
        ).located()
    )  # fmt: skip


def examples(stack, number=0):
    (name, places), modalities = stack.places(number), stack.collator.modalities
    source = stack.parts[name].source
    return [source.example(p, modalities, frozenset(PAIR), 0, places) for p in places]


def inside(units):
    """Words between the specials that end it."""
    return units.content["token"][1:-1].tolist()


def test_two_pairs_end_to_end_in_every_order(stack):
    view, modalities = stack.collator.objectives["xlco"].view, stack.collator.modalities
    vocab = modalities["text"].vocab
    orders, partners = Counter(), Counter()
    for number in range(12):
        some = examples(stack, number)
        for place, one in enumerate(some):
            shown = exhibit(one, view, modalities, 0, some).shown
            found = []
            for other in (o for o in some if o.sample != one.sample):
                both = [[inside(x.units[s]) for x in (one, other)] for s in PAIR]
                # the second sentence loses its <s>, and one </s> parts the two
                laid = [
                    [[vocab.begin, *a, vocab.end, *b, vocab.end] for a, b in (side, side[::-1])]
                    for side in both
                ]
                tokens = [shown.units[s].content["token"].tolist() for s in PAIR]
                if all(t in x for t, x in zip(tokens, laid, strict=True)):
                    found.append(tuple(x.index(t) for t, x in zip(tokens, laid, strict=True)))
                    partners[some.index(other) - place] += 1
            assert len(found) == 1
            orders.update(found)
            for stream in PAIR:
                assert shown.units[stream].position.tolist() == list(
                    range(len(shown.units[stream]))
                )
    assert set(orders) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len(partners) > 6


def test_what_lies_beyond_the_limit_is_cut_off(stack):
    view, short = stack.collator.objectives["xlco"].view, {}
    for stream, modality in stack.collator.modalities.items():
        short[stream] = replace(modality, limit=9)
    some = examples(stack)
    for one in some:
        whole = exhibit(one, view, stack.collator.modalities, 0, some).shown.units
        for stream, units in exhibit(one, view, short, 0, some).shown.units.items():
            assert len(units) == 9
            assert inside(units) == inside(whole[stream])[:7]


def test_a_mixture_follows_from_the_key(stack):
    view, modalities = stack.collator.objectives["xlco"].view, stack.collator.modalities
    some = examples(stack)
    again = [exhibit(e, view, modalities, 0, some) for e in reversed(some)][::-1]
    for one, other in zip(
        [exhibit(e, view, modalities, 0, some) for e in some], again, strict=True
    ):
        for stream in PAIR:
            assert np.array_equal(one.content[stream]["token"], other.content[stream]["token"])
    elsewhere = [exhibit(e, view, modalities, 1, some) for e in some]
    assert any(
        not np.array_equal(a.content["text"]["token"], b.content["text"]["token"])
        for a, b in zip(again, elsewhere, strict=True)
    )


def test_nothing_is_mixed_where_there_is_no_other_sample_or_in_evaluation(stack):
    view, modalities = stack.collator.objectives["xlco"].view, stack.collator.modalities
    one = examples(stack)[0]
    for others in ((), (one,)):
        shown = exhibit(one, view, modalities, 0, others).shown
        assert all(shown.units[s] is one.units[s] for s in PAIR)
    with pytest.raises(ValueError, match="not image"):
        View(name="v", streams=PAIR, mixed=("image",))


def test_translations_in_one_row_may_have_one_end_between_them(world):
    text = Text(vocabulary=str(world / "tokenizer.model"))
    passages = (Passage("en", "a red circle"), Passage("de", "ein roter Kreis"))
    rng = keyed_rng("any")
    two = text.decode({"text": passages}, rng).content["token"].tolist()
    one = replace(text, doubled=False).decode({"text": passages}, rng).content["token"].tolist()
    end = text.vocab.end
    at = two.index(end)
    assert two[at : at + 2] == [end, end]
    assert one == [*two[:at], *two[at + 1 :]]
