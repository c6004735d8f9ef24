"""Views that show an example in several rows: twice, or against others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch, fuse
from crossloom.data_pipelines.collate import Collator, Example, exhibit, exhibits
from crossloom.modalities.regions import Regions
from crossloom.models.model import CrossloomModel
from crossloom.models.presets import single_stream
from crossloom.objectives.classify import Classify
from crossloom.objectives.match import Match
from crossloom.objectives.pool import Pooler
from crossloom.objectives.rank import Rank, RankHead
from crossloom.objectives.view import Hide, View
from crossloom.units import make_units

STREAMS = ("a", "b")


def example(number, units=2):
    """An example whose features all say its number, in stream ``b`` plus a half."""

    def stream(value):
        return make_units(
            {
                "feature": np.tile(np.array([value, 1, -2], np.float32), (units, 1)),
                "box": np.zeros((units, 4), np.float32),
            }
        )

    streams = {"a": stream(number), "b": stream(number + 0.5), "c": stream(number + 0.25)}
    return Example(
        key=f"s/{number}", sample=f"s/{number}", epoch=0, units=streams, labels={"label": "x"}
    )


def regions():
    return Regions(features=3, classes=0, box=4, dropout=0.0)


MODALITIES = {s: regions() for s in STREAMS}


def shown(batch, view, stream):
    """The first feature of every row."""
    flat = batch.views[view].streams[stream]
    return [float(flat.content["feature"][s, 0]) for s in flat.start]


def collator(**objectives):
    return Collator({**MODALITIES, "c": regions()}, objectives, seed=0)


def test_twice_shows_the_other_stream_in_the_second_row():
    view = View(name="v", streams=STREAMS, twice={"b": "c"})
    assert view.rows == 2
    assert view.decoded == ("a", "b", "c")
    made = collator(o=Classify(view=view, label="label", classes=("x", "y"), pooled=("a",)))
    batch = made.batch([example(1), example(5)], ("o",), slots=2)
    assert shown(batch, "v", "a") == [1, 1, 5, 5]
    assert shown(batch, "v", "b") == [1.5, 1.25, 5.5, 5.25]
    assert batch.aims["o"].index.tolist() == [0, 2]
    assert batch.counts["o"] == 2
    # fused with another micro-batch, aims still point at first rows
    both = fuse([batch, made.batch([example(7)], ("o",), slots=1)], made.of_units())
    assert both.aims["o"].index.tolist() == [0, 2, 4]


def test_several_take_turns_in_one_place():
    view = View(name="v", streams=STREAMS, twice={"b": ("c", "a", "b")})
    assert view.rows == 4
    assert view.decoded == ("a", "b", "c", "a", "b")
    made = collator(o=Rank(view=view, label="right", pooled=("a",)))
    told = [replace(example(n), labels={"right": right}) for n, right in ((1, 2), (5, None))]
    batch = made.batch(told, ("o",), slots=2)
    assert shown(batch, "v", "a") == [1] * 4 + [5] * 4
    assert shown(batch, "v", "b") == [1.5, 1.25, 1, 1.5, 5.5, 5.25, 5, 5.5]
    # the label says which row is right; without one, there is nothing to learn
    assert batch.counts["o"] == 1
    assert (batch.aims["o"].index.tolist(), batch.aims["o"].value.tolist()) == ([0], [2])
    # in evaluation, too, where views ``against`` others have one row
    assert shown(made.batch(told, ("o",), 2, others=False), "v", "b")[1] == 1.25
    two = View(name="v", streams=STREAMS, twice={"a": ("b", "c"), "b": ("c", "a")})
    assert two.places == ({"a": "b", "b": "c"}, {"a": "c", "b": "a"})
    with pytest.raises(ValueError, match="label 'right' is 4, of 4 rows"):
        made.batch([replace(example(1), labels={"right": 4})], ("o",), slots=1)


def test_against_shows_others_in_training_and_nobody_in_evaluation():
    view = View(name="v", streams=STREAMS, against=("b", "a", "b"))
    made = collator(o=Rank(view=view, pooled=("a",)))
    examples = [example(n) for n in range(4)]
    batch = made.batch(examples, ("o",), slots=4)
    a, b = (np.reshape(shown(batch, "v", s), (4, 4)) for s in STREAMS)
    for number in range(4):
        assert (a[number, 0], b[number, 0]) == (number, number + 0.5)
        # two rows with another b, not the same one, then one with another a
        assert a[number, 1:3].tolist() == [number, number]
        others = set(b[number, 1:3])
        assert len(others) == 2
        assert others <= {n + 0.5 for n in range(4) if n != number}
        assert a[number, 3] in {n for n in range(4) if n != number}
        assert b[number, 3] == number + 0.5
    assert batch.aims["o"].index.tolist() == [0, 4, 8, 12]
    again = made.batch(examples, ("o",), slots=4)
    assert shown(again, "v", "b") == shown(batch, "v", "b")
    alone = made.batch(examples, ("o",), slots=4, others=False)
    assert shown(alone, "v", "a") == [0, 1, 2, 3]


def test_an_example_without_others_has_no_slot():
    view = View(name="v", streams=STREAMS, against=("b",))
    made = collator(o=Rank(view=view, pooled=("a",)))
    batch = made.batch([example(3)], ("o",), slots=1)
    assert shown(batch, "v", "b") == [3.5, 3.5]
    assert batch.counts["o"] == 0
    rows = exhibits(example(3), view, MODALITIES, 0, [example(3), example(4)])
    assert rows[0].shown.rivals
    assert float(rows[1].shown.units["b"].content["feature"][0, 0]) == 4.5


def test_items_of_one_sample_are_no_others():
    items = [replace(example(n), sample="s/0") for n in (3, 4)]
    against = View(name="v", streams=STREAMS, against=("b",))
    assert not exhibits(items[0], against, MODALITIES, 0, items)[0].shown.rivals
    mismatch = View(name="v", streams=STREAMS, mismatch="b", mismatch_rate=1.0)
    assert exhibit(items[0], mismatch, MODALITIES, 0, items).shown.matched
    assert not exhibit(items[0], mismatch, MODALITIES, 0, [*items, example(5)]).shown.matched


def test_swapped_units_come_from_those_that_may_be_hidden():
    view = View(name="v", streams=("b",), hide={"b": Hide(rate=1.0, show=0, swap=1)})
    other = example(7)
    feature = other.units["b"].content["feature"]
    feature[0] = 99  # of the whole image
    whole = replace(other.units["b"], maskable=np.array([False, True]))
    others = [replace(other, units={"b": whole})]
    found = exhibit(example(1, units=20), view, MODALITIES, 0, others)
    assert (found.content["b"]["feature"] == feature[1]).all()


def encoded(rows, width=4, seed=0):
    torch.manual_seed(seed)
    stream = Stream.build({}, {}, np.arange(rows), np.zeros(rows, bool), np.ones(rows, np.int64))
    states = {"a": torch.randn(rows, width, requires_grad=True)}
    return Encoded(ViewBatch(streams={"a": stream}).to("cpu"), states, {})


def aim(index, value, weight=None):
    weight = torch.ones(len(index)) if weight is None else torch.tensor(weight)
    return AimBatch(index=torch.tensor(index), value=torch.as_tensor(value), weight=weight)


def rank_head(**settings):
    view = View(name="v", streams=("a",), against=("a", "a"))
    torch.manual_seed(1)
    return RankHead(Pooler(("a",), {"a": 4}), Rank(view=view, pooled=("a",), **settings))


@pytest.mark.parametrize("hard", [0, 1])
def test_choice_and_triplet_by_hand(hard):
    given = encoded(6)
    for form in ("softmax", "triplet"):
        head = rank_head(form=form, hard=hard, margin=0.35)
        logits = head.score(torch.tanh(head.pooler.dense["a"](given.states["a"])))
        score = (logits[:, 1] - logits[:, 0]).detach().double().numpy().reshape(2, 3)
        expected = 0.0
        for row, weight in zip(score, (1.0, 0.5), strict=True):
            right, wrong = row[0], sorted(row[1:], reverse=True)[: hard or 2]
            if form == "softmax":
                every = np.exp([right, *wrong])
                expected += weight * -np.log(every[0] / every.sum())
            else:
                margins = [0.35 + 1 / (1 + np.exp(-w)) - 1 / (1 + np.exp(-right)) for w in wrong]
                expected += weight * np.mean(np.maximum(margins, 0))
        out = head(given, aim([0, 3], [0, 0], [1.0, 0.5]))
        assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
        right = sum(w * (r[0] > r[1:].max()) for r, w in zip(score, (1.0, 0.5), strict=True))
        assert out["correct"].item() == pytest.approx(right)


@pytest.mark.parametrize("form", ["softmax", "sigmoid", "triplet"])
def test_one_of_four_by_hand(form):
    view = View(name="v", streams=("a",), twice={"a": ("b", "c", "d")})
    torch.manual_seed(1)
    spec = Rank(view=view, label="right", pooled=("a",), form=form, margin=0.35)
    head = RankHead(Pooler(("a",), {"a": 4}), spec)
    given, rights, weights = encoded(12), (2, 0, 3), (1.0, 0.5, 0.0)
    logits = head.score(torch.tanh(head.pooler.dense["a"](given.states["a"])))
    score = (logits[:, 1] - logits[:, 0]).detach().double().numpy().reshape(3, 4)
    assert head.predict(given).shape == (3, 4)
    np.testing.assert_allclose(head.predict(given).detach().numpy(), score, rtol=1e-5)
    expected = correct = 0.0
    for row, right, weight in zip(score, rights, weights, strict=True):
        others = [n for n in range(4) if n != right]
        chance = 1 / (1 + np.exp(-row))
        correct += weight * (row.argmax() == right)
        if form == "softmax":
            expected -= weight * np.log(np.exp(row[right]) / np.exp(row).sum())
        elif form == "sigmoid":
            told = [chance[right], *(1 - chance[n] for n in others)]
            expected -= weight * np.mean(np.log(told))
        else:
            margins = [max(0, 0.35 + chance[n] - chance[right]) for n in others]
            expected += weight * np.mean(margins)
    out = head(given, aim([0, 4, 8], list(rights), list(weights)))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert out["correct"].item() == pytest.approx(correct)


def test_ranking_takes_over_what_matching_learned():
    match = Match(view=View(name="m", streams=STREAMS, mismatch="b"), pooled=("a", "b"))
    rank = Rank(view=View(name="r", streams=STREAMS, against=("b",)), pooled=("a", "b"))
    heads = [o.head(MODALITIES, {"a": 4, "b": 4}) for o in (match, rank)]
    shapes = [{k: v.shape for k, v in h.state_dict().items()} for h in heads]
    assert shapes[0] == shapes[1]


def test_a_pair_is_classified_by_both_summaries():
    view = View(name="v", streams=("a",), twice={"a": "second"})
    spec = Classify(view=view, label="l", classes=("x", "y"), pooled=("a",))
    head = spec.head({}, {"a": 4})
    given = encoded(6)
    pooled = torch.tanh(head.pooler.dense["a"](given.states["a"]))
    by_hand = head.mlp(torch.stack([torch.cat([pooled[n], pooled[n + 1]]) for n in (0, 2, 4)]))
    torch.testing.assert_close(head.predict(given), by_hand)
    value = torch.eye(2)[[0, 1]]
    out = head(given, aim([4, 0], value))
    expected = F.cross_entropy(by_hand[[2, 0]], torch.tensor([0, 1]), reduction="sum")
    torch.testing.assert_close(out["loss"], expected)


PLAN = single_stream(STREAMS, layers=1, width=8, heads=2, dropout=0.0)


def model(objective, plan=PLAN, **settings):
    modalities = {s: regions() for s in ("a", "b", "c")}
    tied = {"c": "b"}
    torch.manual_seed(0)
    made = CrossloomModel(modalities, plan, {"o": objective}, tied, **settings)
    return made, Collator(modalities, {"o": objective}, seed=0)


def test_both_rows_and_only_they_decide_and_every_weight_learns():
    spec = Classify(
        view=View(name="v", streams=STREAMS, twice={"b": "c"}),
        label="label", classes=("x", "y"), pooled=("a",),
    )  # fmt: skip
    made, collate = model(spec)
    examples = [example(1), example(2)]

    def scores(some):
        batch = collate.batch(some, ("o",), len(some), others=False).to("cpu")
        return made(batch, predict=("o",))["o"]

    plain = scores(examples)
    units = examples[0].units
    swapped = replace(examples[0], units={**units, "b": units["c"], "c": units["b"]})
    assert not torch.allclose(scores([swapped, examples[1]])[0], plain[0])
    torch.testing.assert_close(scores([swapped, examples[1]])[1], plain[1])
    for some in (examples, []):  # drawn, and not drawn
        made.zero_grad()
        batch = collate.batch(some, ("o",) if some else (), 2).to("cpu")
        made(batch)["o"]["loss"].backward()
        assert [n for n, p in made.named_parameters() if p.grad is None] == []


def test_a_mark_tells_the_second_of_two_streams():
    spec = Classify(
        view=View(name="v", streams=(*STREAMS, "c")), label="label", classes=("x", "y"),
        pooled=("a",),
    )  # fmt: skip
    plan = single_stream((*STREAMS, "c"), layers=1, width=8, heads=2, dropout=0.0)
    made, collate = model(spec, plan, marked=("c",))
    one = example(1)
    turned = replace(one, units={**one.units, "b": one.units["c"], "c": one.units["b"]})

    def score(some):
        return made(collate.batch([some], ("o",), 1, others=False).to("cpu"), predict=("o",))["o"]

    # at first, regions know no order: which of the two streams they are in changes nothing
    torch.testing.assert_close(score(one), score(turned), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        made.marks["c"].normal_()
    assert not torch.allclose(score(one), score(turned), atol=1e-3)


@pytest.mark.parametrize(
    ("marked", "message"), [(("b",), "no tied stream"), (("c",), "no objective's view shows 'c'")]
)
def test_marks_that_cannot_be(marked, message):
    spec = Classify(
        view=View(name="v", streams=STREAMS), label="label", classes=("x",), pooled=("a",)
    )
    with pytest.raises(ValueError, match=message):
        model(spec, marked=marked)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: View(name="v", streams=STREAMS, twice={"b": "c"}, against=("a",)), "goes with"),
        (lambda: View(name="v", streams=STREAMS, against=("z",)), "not z"),
        (
            lambda: Rank(view=View(name="v", streams=STREAMS), pooled=("z",)).check(MODALITIES),
            "does not show z",
        ),
        (
            lambda: Rank(view=View(name="v", streams=STREAMS), pooled=("a",)).check(MODALITIES),
            "set view.against",
        ),
        (
            lambda: View(name="v", streams=STREAMS, twice={"a": "c", "b": ("c", "c")}),
            "name as many in each",
        ),
        (
            lambda: Rank(
                view=View(name="v", streams=STREAMS, twice={"b": ("a", "a")}), pooled=("a",)
            ).check(MODALITIES),
            "set both or neither",
        ),
        (
            lambda: Rank(
                view=View(name="v", streams=STREAMS, against=("a",)), label="l", pooled=("a",)
            ).check(MODALITIES),
            "set both or neither",
        ),
        (
            lambda: Rank(
                view=View(name="v", streams=STREAMS, against=("a",)), hard=2, pooled=("a",)
            ).check(MODALITIES),
            "hard is 2",
        ),
        (
            lambda: Rank(
                view=View(name="v", streams=STREAMS, against=("a",), mismatch="a"), pooled=("a",)
            ).check(MODALITIES),
            "drop mismatch",
        ),
        (
            lambda: Classify(
                view=View(name="v", streams=STREAMS, against=("a",)), label="l", classes=("x",),
                pooled=("a",),
            ).check(MODALITIES),
            "drop against",
        ),
        (
            lambda: Classify(
                view=View(name="v", streams=STREAMS, twice={"b": "z"}), label="l", classes=("x",),
                pooled=("a",),
            ).check(MODALITIES),
            "no stream 'z'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
