"""Hard negatives, which stream is wrong, trusted values, one head for two streams."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch, fuse, pick
from crossloom.data_pipelines.collate import Collator, Example
from crossloom.data_pipelines.loader import Shares, load
from crossloom.modalities.modality import Target
from crossloom.models.model import _Passes
from crossloom.models.presets import co_attention, cross_encoder, single_stream
from crossloom.objectives.classify import Classify
from crossloom.objectives.match import draw_hard
from crossloom.objectives.objective import Aim
from crossloom.objectives.pool import Probe, Summary
from crossloom.objectives.presets import (
    BERT,
    detected,
    image_questions,
    itc,
    itm,
    itm_hard,
    mlm,
    moc,
    mtl,
    tag_contrast,
    tagged,
)
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.objectives.view import Shown, View
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.recipe import RecipeError, from_dict, to_yaml
from crossloom.training.run import make_model, make_stack
from crossloom.units import Fate, make_units


def mining(world, plan=None, **changes):
    base = tiny_recipe(world, plan=plan)
    itm_spec = replace(itm_hard(), pool="mean", **changes)
    return replace(
        base,
        objectives={
            "itc": itc(dim=16, pool="mean"),
            "itm": itm_spec,
            "tlm": base.objectives["tlm"],
        },
        mixture={
            "captions": replace(base.mixture["captions"], objectives=("itc", "itm")),
            "translations": base.mixture["translations"],
        },
    ).located()


def batch_of(recipe, *, drawn):
    stack = make_stack(recipe)
    for batches in load(stack, Shares(recipe.micro), range(20), workers=0, pin=False):
        components = Counter(batches[0].component)
        if components[drawn] == recipe.micro:
            return batches[0].to("cpu")
    raise AssertionError("never drawn alone")


@pytest.mark.parametrize(
    "plan",
    [
        single_stream(STREAMS, layers=2, width=32, heads=2, dropout=0.0),
        cross_encoder(*STREAMS, text_layers=1, image_layers=1, cross=1, width=32, heads=2,
                      dropout=0.0),
        co_attention(*STREAMS, first=1, pairs=1, width=32, heads=2, dropout=0.0),
    ],
    ids=["single", "cross", "co"],
)  # fmt: skip
def test_pairing_anew_equals_showing_those_pairs(world, plan):
    """Another pass over re-paired streams, with room left over, against a fresh ragged view."""
    model = make_model(mining(world, plan)).eval()
    view = batch_of(mining(world, plan), drawn="captions").views["itm"]
    lengths = view.streams["text"].length
    assert lengths.min() < lengths.max(), "examples should differ in length"
    order = {"text": torch.tensor([3, 0, 0, 5, 1]), "image": torch.tensor([1, 0, 4, 2, 2])}
    streams = {}
    for name, stream in view.streams.items():
        units = torch.cat([torch.arange(s, s + n) for s, n in zip(
            stream.start[order[name]].tolist(), stream.length[order[name]].tolist(), strict=True
        )])  # fmt: skip
        streams[name] = Stream.build(
            {k: v[units].numpy() for k, v in stream.content.items()},
            {k: v[order[name]].numpy() for k, v in stream.whole.items()},
            stream.position[units].numpy(),
            stream.hidden[units].numpy(),
            stream.length[order[name]].numpy(),
        )
    expected = model.encode(ViewBatch(streams=streams).to("cpu"))
    passes = _Passes(model, None)
    found = passes.again(model.encode(view), order)
    for name in STREAMS:
        torch.testing.assert_close(found.anchor(name), expected.anchor(name), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.mean(name), expected.mean(name), atol=1e-5, rtol=1e-4)
    assert found.view.streams["text"].real is not None
    for pool in ("last", Probe(heads=2, hidden=8)):
        summary = Summary("text", 32, pool)
        torch.testing.assert_close(summary(found), summary(expected), atol=1e-5, rtol=1e-4)
    head = model.heads["itm"]
    torch.testing.assert_close(head.predict(found), head.predict(expected), atol=1e-5, rtol=1e-4)


def test_picking_from_even_examples_leaves_no_room():
    stream = Stream.build({}, {}, np.arange(6), np.zeros(6, bool), np.array([2, 2, 2]))
    picked, index = pick(
        ViewBatch(streams={"x": stream}).to("cpu").streams["x"], torch.tensor([2, 0])
    )
    assert index.tolist() == [4, 5, 0, 1]
    assert picked.real is None
    assert picked.length.tolist() == [2, 2]
    assert picked.example.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("drawn", [True, False])
def test_mined_matching_scores_three_pairs_of_each_example(world, drawn):
    recipe = mining(world)
    model = make_model(recipe).train(drawn)
    batch = batch_of(recipe, drawn="captions")
    torch.manual_seed(5)
    out = model(batch)["itm"]
    # the same draws by hand, and each pair through the head
    torch.manual_seed(5)
    head, miner = model.heads["itm"], model.heads["itc"]
    text, image = (miner.features(model.encode(batch.views["itc"]), s) for s in STREAMS)
    scores = text @ image.T / 0.07
    sample = batch.aims["itm"].value
    barred = sample[:, None] == sample
    if drawn:
        seconds, firsts = draw_hard(scores, barred), draw_hard(scores.T, barred)
    else:
        seconds, firsts = (s.masked_fill(barred, -9e9).argmax(1) for s in (scores, scores.T))
    assert not barred[torch.arange(len(sample)), seconds].any()
    encoded, own = model.encode(batch.views["itm"]), torch.arange(len(sample))
    again = _Passes(model, None).again
    odds = [
        head.predict(encoded),
        head.predict(again(encoded, {"text": own, "image": seconds})),
        head.predict(again(encoded, {"text": firsts, "image": own})),
    ]
    expected = F.softplus(-odds[0]) + F.softplus(odds[1]) + F.softplus(odds[2])
    assert out["loss"].item() == pytest.approx(expected.sum().item() / 3, rel=1e-4)
    right = (odds[0] > 0).sum() + (odds[1] < 0).sum() + (odds[2] < 0).sum()
    assert out["correct"].item() == pytest.approx(right.item() / 3, rel=1e-5)


def test_hard_negatives_are_drawn_by_the_softmax_of_scores():
    scores = torch.tensor([[9.0, 1.0, 0.0, 2.0]]).expand(40_000, 4)
    barred = torch.tensor([True, False, False, False]).expand(40_000, 4)
    torch.manual_seed(0)
    share = torch.bincount(draw_hard(scores, barred), minlength=4) / 40_000
    expected = torch.tensor([0.0, *torch.tensor([1.0, 0.0, 2.0]).softmax(0)])
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)


def test_blank_slots_are_mined_by_nobody(world):
    recipe = mining(world)
    model = make_model(recipe).eval()
    batch = batch_of(recipe, drawn="captions")
    aim, miner = batch.aims["itm"], model.heads["itc"]
    # all but the first two are blank: each of these is the other's only mismatch
    weight = (torch.arange(len(aim.weight)) < 2).float()
    few = replace(aim, weight=weight, value=torch.arange(1, len(weight) + 1))
    out = model(replace(batch, aims={**batch.aims, "itm": few}))["itm"]
    encoded = model.encode(batch.views["itm"])
    own, other = torch.arange(2), torch.tensor([1, 0])
    again, odds = _Passes(model, None).again, model.heads["itm"].predict
    right = odds(encoded)[:2]
    wrong = [
        odds(again(encoded, dict(zip(miner.pair, order, strict=True))))
        for order in ((own, other), (other, own))
    ]
    expected = F.softplus(-right) + F.softplus(wrong[0]) + F.softplus(wrong[1])
    assert out["loss"].item() == pytest.approx(expected.sum().item() / 3, rel=1e-4)


def test_a_batch_of_one_sample_has_no_negatives(world):
    recipe = mining(world)
    model = make_model(recipe).eval()
    batch = batch_of(recipe, drawn="captions")
    aim = batch.aims["itm"]
    alone = replace(aim, value=torch.full_like(aim.value, 7))
    out = model(replace(batch, aims={**batch.aims, "itm": alone}))["itm"]
    odds = model.heads["itm"].predict(model.encode(batch.views["itm"]))
    assert out["loss"].item() == pytest.approx(F.softplus(-odds).sum().item(), rel=1e-4)


def test_mining_repeats_by_step_and_every_parameter_has_a_gradient(world):
    recipe = mining(world)
    found = []
    for _ in range(2):
        engine = Engine(make_model(recipe), recipe, start("cpu"))
        batch = batch_of(recipe, drawn="captions")
        found.append(engine.step(3, [batch], batch.counts)["itm"]["loss"].item())
    assert found[0] == found[1]
    model = make_model(recipe)
    blank = batch_of(recipe, drawn="translations")
    sums = model(blank)
    assert sums["itm"]["loss"].item() == 0
    (sums["itm"]["loss"] + sums["itc"]["loss"] + sums["tlm"]["loss"]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mining_needs_a_contrast_of_the_same_streams_on_the_same_batches(world):
    recipe = mining(world)
    with pytest.raises(ValueError, match=r"mixture.captions.objectives: 'itm' needs 'itc' beside"):
        replace(
            recipe,
            mixture={
                **recipe.mixture,
                "captions": replace(recipe.mixture["captions"], objectives=("itm",)),
                "more": replace(recipe.mixture["captions"], objectives=("itc",)),
            },
        )
    wrong = {**recipe.objectives, "itc": mlm(STREAMS)}
    with pytest.raises(RecipeError, match="must be a contrast of text and image"):
        make_model(replace(recipe, objectives=wrong))
    with pytest.raises(ValueError, match="one of them"):
        replace(itm_hard(), view=itm().view).check(recipe.modalities)


def example(number, length=3):
    return Example(
        key=f"s/{number}",
        sample=f"s/{number}",
        epoch=0,
        units={s: make_units({"x": np.full(length, number)}) for s in ("text", "tags", "image")},
        labels={},
    )


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_one_of_several_streams_is_taken_and_told(rate):
    view = replace(tagged(mismatch=("tags", "text")), hide={}, mismatch_rate=rate)
    spec = tag_contrast(view)
    assert spec.which
    examples = [example(n) for n in range(200)]
    collator = Collator(dict.fromkeys(spec.view.streams, Named()), {"tags": spec}, 0)
    batch = collator.batch(examples, ("tags",), 200)
    owner = {s: x.content["x"][x.start] for s, x in batch.views["tagged"].streams.items()}
    classes = batch.aims["tags"].value
    assert (owner["image"] == np.arange(200)).all()
    assert (classes == np.where(owner["tags"] != owner["image"], 1,
                                np.where(owner["text"] != owner["image"], 2, 0))).all()  # fmt: skip
    share = np.bincount(classes, minlength=3) / 200
    assert np.allclose(share, [1 - rate, rate / 2, rate / 2], atol=0.1)


def test_three_ways_by_hand():
    head = tag_contrast(tagged(mismatch=("tags", "text"))).head({}, {"text": 4, "tags": 4})
    assert head.score.out_features == 3
    torch.manual_seed(0)
    encoded = replace_states(torch.randn(5, 4))
    logits = head.score(torch.tanh(head.pooler.dense["text"](encoded.states["text"])))
    aim = AimBatch(index=torch.arange(5), value=torch.tensor([0, 1, 2, 0, 1]), weight=torch.ones(5))
    out = head(encoded, aim)
    assert out["loss"].item() == pytest.approx(
        F.cross_entropy(logits, aim.value, reduction="sum").item(), rel=1e-5
    )
    chance = logits.softmax(1)[:, 0]
    torch.testing.assert_close(head.predict(encoded), (chance / (1 - chance)).log())


class Named:
    """As much of a modality as showing units takes."""

    swapped = ()

    def longest(self):
        return 4

    def predictable(self):
        return {"class": Target(dim=4, form="index", trusted=True)}

    def blank(self):
        return make_units({"x": np.zeros(1)})

    def substitute(self, units, fate, rng):
        return units.content


def replace_states(states):
    n = len(states)
    stream = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), np.ones(n, np.int64))
    return Encoded(ViewBatch(streams={"text": stream}).to("cpu"), {"text": states}, {})


def test_which_needs_a_view_that_mismatches():
    assert not tag_contrast(tagged()).which
    spec = replace(itm(), which=True, view=View(name="itm", streams=STREAMS))
    with pytest.raises(ValueError, match="`which` with the first only"):
        spec.check(dict.fromkeys(STREAMS))


def shown(matched=True, maskable=(True, True, True, True), **arrays):
    units = make_units(
        {"x": np.zeros(4)},
        targets={"class": np.array([3, 1, -1, 2]), **arrays},
        maskable=np.array(maskable),
    )
    fate = np.array([Fate.KEEP, Fate.HIDE, Fate.HIDE, Fate.KEEP])
    return Shown(key="k", units={"image": units}, fate={"image": fate}, matched=matched, labels={})


def test_everywhere_and_trusted_as_lxmerts_code():
    view = View(name="v", streams=("text", "image"), hide={"image": BERT})
    trust = np.array([0.5, 0.25, 0.9, 1.0], np.float32)
    everywhere = detected(view).aim(shown(matched=False, **{"class.trust": trust}))
    assert everywhere.index.tolist() == [0, 1, 3]
    assert everywhere.trust.tolist() == [0.5, 0.25, 1.0]
    whole = shown(maskable=(False, True, True, True), **{"class.trust": trust})
    assert detected(view).aim(whole).index.tolist() == [1, 3]  # the whole image is no region
    hidden = detected(view, everywhere=False).aim(shown(**{"class.trust": trust}))
    assert hidden.index.tolist() == [1]
    assert hidden.trust.tolist() == [0.25]
    plain = moc().aim(shown())
    assert plain.trust is None
    assert moc().aim(shown(matched=False)).index.tolist() == []


def test_trust_scales_losses_and_is_not_counted():
    torch.manual_seed(1)
    head = ReconstructHead(
        stream="image", name="class", target=Target(dim=3, form="index"), loss="cross_entropy",
        width=4, tied=False,
    )  # fmt: skip
    states = torch.randn(3, 4)
    encoded = Encoded(replace_states(states).view, {"image": states}, {})
    value = torch.tensor([0, 2, 1])
    trust = torch.tensor([1.0, 0.5, 0.0])
    aim = AimBatch(index=torch.arange(3), value=value, weight=torch.ones(3), trust=trust)
    each = F.cross_entropy(head.logits(encoded, aim.index), value, reduction="none")
    assert head(encoded, aim)["loss"].item() == pytest.approx((each * trust).sum().item(), rel=1e-5)


def test_trust_travels_through_batches_and_fusing():
    view = View(name="v", streams=("image",), hide={"image": BERT})
    spec = detected(view)

    collator = Collator({"image": Named()}, {"obj": spec}, 0)
    trust = np.array([0.5, 0.25, 0.9, 1.0], np.float32)
    units = shown(**{"class.trust": trust}).units["image"]
    one = Example(key="a/0", sample="a/0", epoch=0, units={"image": units}, labels={})
    batch, blank = collator.batch([one], ("obj",), 1), collator.batch([], (), 1)
    assert blank.aims["obj"].trust is None
    both = fuse([batch, blank, batch], {"obj": "v/image"}).aims["obj"]
    assert both.trust.tolist() == [0.5, 0.25, 1.0, 1.0, 0.5, 0.25, 1.0]
    assert both.weight.tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert both.parts == 3
    assert batch.counts["obj"] == 3
    with pytest.raises(ValueError, match="for 1 trusts"):
        Aim(np.zeros(2, np.int64), np.zeros(2), np.ones(1))


def test_regions_are_trusted_as_far_as_they_are_probable(world):
    recipe = tiny_recipe(world).located()
    stack = make_stack(recipe)
    part = stack.parts["captions"]
    found = part.source.example(part.source.places()[0], recipe.modalities, frozenset(["image"]), 0)
    targets = found.units["image"].targets
    assert np.allclose(
        targets["class.trust"],
        targets["classes"][np.arange(len(targets["class"])), targets["class"]],
    )
    assert 0 < targets["class.trust"].min() <= targets["class.trust"].max() <= 1
    spec = replace(mlm(STREAMS), trusted=True)
    with pytest.raises(ValueError, match="set trusted to false"):
        spec.check(recipe.modalities)


def test_answers_of_mismatched_questions_are_left_out():
    spec = image_questions(itm().view, ("yes", "no", "two"))
    asked = {"answers": {"yes": 0.3, "two": 0.6, "other": 1.0}}
    fits = Shown(key="k", units={}, fate={}, matched=True, labels=asked)
    assert spec.aim(fits).value[0].tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert len(spec.aim(replace(fits, matched=False)).index) == 0
    assert len(spec.aim(replace(fits, labels={"answers": {"other": 1.0}})).index) == 0
    # the loss is what drawing one answer by its share gives on average
    head = spec.head({}, {"text": 4})
    encoded = replace_states(torch.randn(1, 4))
    value = torch.tensor(spec.aim(fits).value)
    out = head(encoded, AimBatch(index=torch.arange(1), value=value, weight=torch.ones(1)))
    log = head.predict(encoded)[0].log_softmax(0)
    assert out["loss"].item() == pytest.approx(-(log[0] / 3 + log[2] * 2 / 3).item(), rel=1e-5)
    always = replace(spec, matched_only=False, form="sigmoid")
    assert isinstance(always, Classify)
    assert len(always.aim(replace(fits, matched=False)).index) == 1


def test_pairs_in_recipes_come_back(world):
    recipe = mining(world)
    tags = tag_contrast(replace(tagged(STREAMS, mismatch=STREAMS, hidden=("text",))))
    recipe = replace(
        recipe,
        objectives={**recipe.objectives, "tags": tags},
        mixture={
            **recipe.mixture,
            "captions": replace(recipe.mixture["captions"], objectives=("itc", "itm", "tags")),
        },
    )
    assert from_dict(yaml.safe_load(to_yaml(recipe))) == recipe
    assert mtl(tagged()).matched_only is False
