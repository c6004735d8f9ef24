"""Saying units one by one: what is scored, what is refused, what is learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.collate import Collator, Example, exhibit
from crossloom.data_pipelines.read import Texts
from crossloom.modalities.modality import Modality, Target
from crossloom.models.model import check_order
from crossloom.models.plan import Attend, Feed, Layer, Plan
from crossloom.models.presets import encoder_decoder, single_stream
from crossloom.objectives.generate import Generate
from crossloom.objectives.presets import ic, ida, imlm, mass, mlm, s2s_mlm, tifg
from crossloom.objectives.reconstruct import Reconstruct, decode_loss
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component, from_dict, to_dict
from crossloom.training.run import make_model, make_stack
from crossloom.units import Fate, make_units

TEXT = np.array([0, 11, 12, 13, 14, 2])  # <s> four pieces </s>
INNER = np.array([False, True, True, True, True, False])


class Bare(Modality):
    """Ids and vectors without an embedder: enough for the data side."""

    def decode(self, sample, rng):
        raise NotImplementedError

    def blank(self):
        return units(np.zeros(1, np.int64), np.zeros(1, bool))

    def longest(self):
        return 10

    def embedder(self, width):
        raise NotImplementedError

    def predictable(self):
        return {"token": Target(dim=20, form="index"), "vector": Target(dim=2, form="vector")}

    def substitute(self, units, fate, rng):
        token = np.where(fate == Fate.HIDE, -7, units.content["token"])
        return {**units.content, "token": np.where(fate == Fate.SWAP, -9, token)}


BARE = dict.fromkeys(("text", "target"), Bare(field="x"))


def units(token, maskable, position=None):
    vector = np.stack([token, -token], 1).astype(np.float32)
    return make_units(
        {"token": token},
        targets={"token": token.copy(), "vector": vector},
        maskable=maskable,
        position=position,
    )


def example(**streams):
    given = {s: units(TEXT, INNER) for s in ("text", "target")} | streams
    return Example(key="k", sample="k", epoch=0, units=given, labels={})


def seen(view, **streams):
    return exhibit(example(**streams), view, BARE, 0, ())


def test_each_unit_is_asked_for_the_next():
    objective = ic("target", "text")
    aim = objective.aim(seen(objective.view).shown)
    assert aim.index.tolist() == [0, 1, 2, 3, 4]
    assert aim.value.tolist() == [11, 12, 13, 14, 2]


def test_what_belongs_to_another_example_is_not_said():
    objective = ic("target", "text")
    foreign = replace(seen(objective.view).shown, matched=False)
    assert len(objective.aim(foreign).index) == 0
    assert len(replace(objective, matched_only=False).aim(foreign).index) == 5


def test_vectors_are_shifted_too():
    objective = replace(ic("target", "text"), target="vector")
    aim = objective.aim(seen(objective.view).shown)
    assert aim.index.tolist() == [0, 1, 2, 3, 4]
    assert aim.value.tolist() == [[11, -11], [12, -12], [13, -13], [14, -14], [2, -2]]


def test_classes_that_are_not_there_are_not_asked_for():
    objective = ic("target", "text")
    token = np.array([0, 11, -1, 13])
    aim = objective.aim(seen(objective.view, target=units(token, np.ones(4, bool))).shown)
    assert aim.index.tolist() == [0, 2]
    assert aim.value.tolist() == [11, 13]


def test_one_unit_has_no_next():
    objective = ic("target", "text")
    alone = units(np.zeros(1, np.int64), np.zeros(1, bool))
    assert len(objective.aim(seen(objective.view, target=alone).shown).index) == 0


@pytest.mark.parametrize("number", range(12))
def test_a_decoder_is_fed_the_units_before_the_hidden_segment_and_says_it(number):
    objective = mass(hide=Hide(rate=0.5, show=0, swap=0, by="segment"), name=f"m{number}")
    shown = seen(objective.view)
    hidden = np.flatnonzero(shown.shown.fate["text"] == Fate.HIDE)
    assert len(hidden) == 2
    assert hidden[1] == hidden[0] + 1
    assert shown.content["text"]["token"][hidden].tolist() == [-7, -7]
    # what the decoder is fed is clean, and stands where it stands in the whole text
    assert shown.content["target"]["token"].tolist() == TEXT[hidden - 1].tolist()
    assert shown.shown.layout("target").position.tolist() == (hidden - 1).tolist()
    aim = objective.aim(shown.shown)
    assert aim.index.tolist() == [0, 1]
    assert aim.value.tolist() == TEXT[hidden].tolist()


def test_nothing_selected_is_nothing_scored():
    objective = mass(hide=Hide(rate=0, at_least=0, by="segment"))
    shown = seen(objective.view)
    assert shown.content["target"]["token"].tolist() == [0]
    assert len(objective.aim(shown.shown).index) == 0


def test_shown_units_are_laid_end_to_end_with_their_aims():
    """Three examples in a batch: flat indices count shown units, not clean ones."""
    objective = mass(hide=Hide(rate=0.5, show=0, swap=0, by="segment"))
    token = [
        np.array([0, *range(10 * n, 10 * n + size), 2]) for n, size in ((1, 4), (2, 6), (3, 2))
    ]
    examples = [
        Example(key=str(n), sample=str(n), epoch=0, labels={}, units=dict.fromkeys(
            ("text", "target"), units(t, (t > 2)))) for n, t in enumerate(token)
    ]  # fmt: skip
    collator = Collator(BARE, {"mass": objective}, 0)
    batch = collator.batch(examples, ("mass",), 3)
    target, aim = batch.views["mass"].streams["target"], batch.aims["mass"]
    assert target.length.tolist() == [2, 3, 1]
    assert aim.index.tolist() == list(range(6))
    # successive numbers: the fed unit is one less, or <s> before the first of its ten
    for fed, said in zip(target.content["token"][aim.index], aim.value, strict=True):
        assert fed == said - 1 or (fed == 0 and said % 10 == 0)
    assert batch.views["mass"].streams["text"].length.tolist() == [6, 8, 4]


def test_streams_that_differ_cannot_follow():
    with pytest.raises(ValueError, match="let the reader give both one text"):
        seen(mass().view, target=units(TEXT[:4], INNER[:4]))


def test_what_follows_must_follow_something_hidden():
    for hide in ({}, {"text": Hide(by="span", merge=True)}):
        with pytest.raises(ValueError, match="hide units of 'text', unmerged"):
            View(name="v", streams=("text", "target"), hide=hide, follow={"target": "text"})


def test_units_of_merged_runs_cannot_be_scored():
    view = View(name="v", streams=("text",), hide={"text": Hide(by="span", merge=True)})
    for objective in (
        Reconstruct(view=view, stream="text", target="token"),
        Generate(view=view, stream="text"),
    ):
        with pytest.raises(ValueError, match="score a second stream"):
            objective.check(BARE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stream": "image"}, "shows text, target, not 'image'"),
        ({"target": "pixel"}, "offers no target 'pixel'; it offers token, vector"),
        ({"target": "vector", "loss": "kl"}, "use mse or smooth_l1"),
        ({"target": "vector", "smoothing": 0.1}, "smoothing is for classes"),
    ],
)
def test_what_cannot_be_said_is_refused(change, message):
    objective = replace(mass(), **change)
    with pytest.raises(ValueError, match=message):
        objective.check({**BARE, "image": BARE["text"]})


def test_smoothing_spreads_the_aim():
    torch.manual_seed(0)
    x, matrix, bias = torch.randn(7, 3), torch.randn(5, 3), torch.randn(5)
    value, weight = torch.tensor([0, 1, 2, 3, 4, 0, 1]), torch.tensor([1.0, 1, 0, 2, 1, 1, 1])
    log = (x @ matrix.T + bias).log_softmax(1)
    expected = 0.0
    for row, right, w in zip(log, value, weight, strict=True):
        aim = torch.full((5,), 0.1 / 5)
        aim[right] += 0.9
        expected -= float(w * (aim * row).sum())
    for at_once in (10**6, 10):
        out = decode_loss(
            x, matrix, bias, value, weight, "cross_entropy", at_once=at_once, smoothing=0.1
        )
        assert float(out["loss"]) == pytest.approx(expected, rel=1e-5)


STREAMS = ("text", "image", "target")


def both_ways(width=32, layers=2) -> Plan:
    """One Transformer that encodes, and decodes a further stream with the same weights."""
    known = ("text", "image")
    layer = Layer(
        blocks=(
            Attend(
                reads={"text": known, "image": known, "target": ("target",)},
                causal=("target",),
                shared=True,
            ),
            Attend(reads={"target": known}),
            Feed(streams=STREAMS, shared=True),
        )
    )
    return Plan(
        widths=dict.fromkeys(STREAMS, width), layers=(layer,) * layers, heads=2, inner=width,
        hidden=2 * width, dropout=0.0,
    )  # fmt: skip


def said_recipe(world, **changes):
    base = tiny_recipe(world)
    objectives = {
        "s2s": s2s_mlm(), "mlm": mlm(("text", "image")), "ic": ic(), "imlm": imlm(), "ida": ida(),
        "tifg": tifg(),
    }  # fmt: skip
    captions = replace(
        base.mixture["captions"],
        reader=Texts(copies=("second",)),
        objectives=tuple(objectives),
    )
    return replace(
        base,
        modalities={**base.modalities, "target": replace(base.modalities["text"], field="second")},
        tied={"target": "text"},
        plan=both_ways(),
        objectives=objectives,
        mixture={"captions": captions},
        **changes,
    )


def test_every_preset_falls_and_gives_every_weight_a_gradient(world, tmp_path):
    recipe = said_recipe(world, steps=30, examples=8, micro=1)
    assert from_dict(to_dict(recipe)) == recipe
    model = make_model(recipe.located())
    batch = make_stack(recipe.located()).micro(0).to("cpu")
    losses = model(batch)
    sum(out["loss"] for out in losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    train(recipe, tmp_path / "run", start("cpu"))
    rows = read_journal(tmp_path / "run" / "metrics.jsonl")
    for name in recipe.objectives:
        loss = [row[f"{name}/loss"] for row in rows]
        assert np.mean(loss[-5:]) < np.mean(loss[:5]), name


def test_no_state_knows_a_later_unit(world):
    """Another last word changes no prediction before it, in any view that says something."""
    recipe = said_recipe(world).located()
    torch.manual_seed(0)
    model = make_model(recipe).eval()
    stack = make_stack(recipe)
    batch = stack.micro(0).to("cpu")
    for name, field in (("ic", "text"), ("ida", "target"), ("imlm", "target"), ("s2s", "text")):
        view = batch.views[name]
        stream = view.streams[field]
        last = stream.start + stream.length - 1
        token = stream.content["token"].clone()
        token[last] = 5 + token[last] % 3
        other = replace(stream, content={**stream.content, "token": token})
        changed = replace(view, streams={**view.streams, field: other})
        with torch.no_grad():
            one, two = (model.encode(v).states[field] for v in (view, changed))
        before = torch.ones(len(one), dtype=torch.bool)
        before[last] = False
        torch.testing.assert_close(one[before], two[before])
        assert not torch.allclose(one[last], two[last])


@pytest.mark.parametrize(
    ("plan", "view", "message"),
    [
        (single_stream(("text", "image"), layers=1, width=8, heads=1),
         View(name="v", streams=("text", "image"), reads={"image": ("image",)}),
         r"layer 0, block 0: 'text' reads its later units; let view 'v' have causal: \[text\]"),
        (single_stream(("text", "image"), layers=1, width=8, heads=1),
         View(name="v", streams=("text", "image"), causal=("text",)),
         r"layer 0, block 0: 'image' reads 'text'.*reads: {image: \[image\]}"),
        (encoder_decoder("text", "image", layers=1, width=8, heads=1),
         View(name="v", streams=("text", "image")), "layer 0, block 0: 'text' reads its later"),
    ],
)  # fmt: skip
def test_a_unit_that_could_know_the_next_is_refused(world, plan, view, message):
    base = tiny_recipe(world)
    recipe = replace(
        base,
        plan=plan,
        objectives={"say": Generate(view=view, stream="text")},
        mixture={"c": Component(shards="train-*.tar", reader=Texts(), objectives=("say",))},
    )
    with pytest.raises(ValueError, match=message):
        make_model(recipe.located())


def test_a_decoder_needs_no_word_of_the_view(world):
    base = tiny_recipe(world)
    view = View(name="v", streams=("image", "text"))
    recipe = replace(
        base,
        plan=encoder_decoder("image", "text", layers=1, width=8, heads=1),
        objectives={"say": Generate(view=view, stream="text")},
        mixture={"c": Component(shards="train-*.tar", reader=Texts(), objectives=("say",))},
    )
    make_model(recipe.located())


def test_who_reads_what_is_said_must_not_tell_it():
    """An image may read the text; not if the text reads what reads the image, and be it later."""
    streams = ("text", "image", "sound")
    plan = single_stream(streams, layers=1, width=8, heads=1)

    def view(**reads):
        return View(name="v", streams=streams, causal=streams, reads=reads)

    alone = {"text": ("text",), "sound": ("sound", "text", "image")}
    check_order(plan, view(**alone), "text")
    round_about = {"text": ("text", "sound"), "sound": ("sound", "image"), "image": ("text",)}
    with pytest.raises(ValueError, match="'image' reads 'text', which is said"):
        check_order(plan, view(**round_about), "text")
