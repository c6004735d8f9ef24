"""Replaced tokens: what a generator fills in, and telling it from what was there."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from crossloom.batch import fuse
from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.models.presets import Tower, towers
from crossloom.objectives.crosslingual import GENERATED, rtd
from crossloom.objectives.presets import mmlm
from crossloom.objectives.reconstruct import draw_classes
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component, RecipeError
from crossloom.training.run import make_model, make_stack

SIZE = {"width": 32, "heads": 2, "hidden": 64}


def recipe(world, **changes):
    base = tiny_recipe(world)
    text = base.modalities["text"]
    parts = {"shards": "train-*.tar", "objectives": ("mlm", "rtd")}
    made = replace(
        base,
        modalities={"text": text, "generator": replace(text, words_of="text")},
        plan=towers({"text": Tower(layers=2, **SIZE), "generator": Tower(layers=1, **SIZE)}),
        objectives={"mlm": mmlm("generator", hide=GENERATED), "rtd": rtd()},
        mixture={
            "texts": Component(reader=Texts(), **parts),
            "pairs": Component(reader=Parallel(), **parts),
        },
        examples=4,
        micro=2,
    )
    return replace(made, **changes).located()


def a_model(made):
    torch.manual_seed(3)
    model = make_model(made)
    with torch.no_grad():  # so that what is said differs from place to place
        model.embed["text"].token.weight.mul_(20)
        model.embed["generator"].position.weight.mul_(50)
        model.heads["mlm"].bias.normal_(std=0.1)
        model.heads["rtd"].score.bias.fill_(0.3)
    return model


def by_hand(model, batch, said):
    """The loss, the replaced units and the corrupted ids, given what the generator said."""
    text = batch.views["rtd"].streams["text"]
    aim, token = batch.aims["mlm"], text.content["token"]
    corrupted = token.clone()
    for place, word in zip(aim.index.tolist(), said.tolist(), strict=True):
        corrupted[place] = word
    shown = replace(text, content={**text.content, "token": corrupted})
    state = model.encode(replace(batch.views["rtd"], streams={"text": shown})).states["text"]
    head = model.heads["rtd"]
    logit = (F.gelu(state @ head.transform[0].weight.T + head.transform[0].bias)
             @ head.score.weight[0] + head.score.bias)  # fmt: skip
    wrong = corrupted != token
    return -torch.where(wrong, logit, -logit).sigmoid().log().sum(), wrong, corrupted


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_loss_is_that_of_two_passes_by_hand(world, number):
    """Of texts and of translations in one row; measured, so that the likeliest is filled in."""
    made = recipe(world)
    model, batch = a_model(made).eval(), make_stack(made).micro(number).to("cpu")
    aim, text = batch.aims["mlm"], batch.views["rtd"].streams["text"]
    assert torch.equal(aim.value, text.content["token"][aim.index])
    generator = model.heads["mlm"]
    with torch.no_grad():
        state = model.encode(batch.views["mmlm"]).at("generator", aim.index)
        said = generator.transform(state) @ model.embed["text"].token.weight.T + generator.bias
        said = said.argmax(1)
    expected, wrong, _ = by_hand(model, batch, said)
    assert wrong.any()
    found = model(batch)["rtd"]
    torch.testing.assert_close(found["loss"], expected)
    assert batch.aims["rtd"].weight.sum() == len(wrong) == len(text.position)
    found["loss"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert "embed.text.position.weight" in reached
    assert not [n for n in reached if n.startswith(("heads.mlm", "embed.generator"))]
    assert not [n for n in reached if ".generator." in n]


def test_what_is_right_by_chance_counts_as_original(world):
    """A generator that always finds the truth leaves nothing to be told apart."""
    made = recipe(world)
    model, batch = a_model(made).eval(), make_stack(made).micro(0).to("cpu")
    aim = batch.aims["mlm"]
    one = aim.value[0]
    with torch.no_grad():
        model.heads["mlm"].bias[one] = 1e4
    expected, wrong, corrupted = by_hand(model, batch, one.expand(len(aim.value)))
    assert (corrupted[aim.index] == one).all()
    assert torch.equal(wrong.nonzero()[:, 0], aim.index[aim.value != one])
    torch.testing.assert_close(model(batch)["rtd"]["loss"], expected)
    assert not wrong[aim.index[0]]


def test_words_are_drawn_by_their_chances_in_training_alone(world):
    torch.manual_seed(0)
    chances = torch.tensor([0.5, 0.3, 0.2, 0.0])
    x = torch.ones(20_000, 1)
    drawn = draw_classes(x, torch.zeros(4, 1), chances.log(), drawn=True, at_once=1000)
    share = drawn.bincount(minlength=4) / len(x)
    # three standard errors of a share of one half: 0.011
    torch.testing.assert_close(share, chances, atol=0.011, rtol=0)
    assert (draw_classes(x, torch.zeros(4, 1), chances.log(), drawn=False) == 0).all()
    barred = torch.tensor([0])
    assert (
        draw_classes(x, torch.zeros(4, 1), chances.log(), drawn=False, barred=barred) == 1
    ).all()
    made = recipe(world)
    model, batch = a_model(made), make_stack(made).micro(0).to("cpu")
    several = {float(model(batch)["rtd"]["loss"].detach()) for _ in range(4)}
    model.eval()
    assert len(several) == 4
    assert len({float(model(batch)["rtd"]["loss"].detach()) for _ in range(4)}) == 1


def test_micro_batches_in_one_pass_are_filled_as_apart(world):
    made = recipe(world)
    stack, model = make_stack(made), a_model(made).eval()
    several = [stack.micro(n) for n in range(3)]
    apart = sum(model(b.to("cpu"))["rtd"]["loss"] for b in several)
    torch.testing.assert_close(
        model(fuse(several, stack.collator.of_units()).to("cpu"))["rtd"]["loss"], apart
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rtd": {"generator": "nothing"}}, "'rtd' needs 'nothing' beside it"),
        ({"rtd": {"generator": "rtd"}}, "of another stream than 'text'"),
        ({"rtd": {"view": View(name="rtd", streams=("generator",))}}, "does not show 'text'"),
        (
            {"rtd": {"view": View(name="rtd", streams=("text",), hide={"text": Hide()})}},
            "drop mismatch and hide.text",
        ),
        ({"rtd": {"stream": "generator", "view": View(name="r", streams=("generator",))}},
         "of another stream than 'generator'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(world, change, message):
    made = recipe(world)
    heads = {n: replace(o, **change.get(n, {})) for n, o in made.objectives.items()}
    with pytest.raises(Exception, match=message):
        make_model(replace(made, objectives=heads))


def test_other_units_than_the_generators_are_said(world):
    made = recipe(world)
    text = made.modalities["generator"]
    other = {**made.modalities, "generator": replace(text, limit=8, positions=64)}
    made = replace(made, modalities=other)
    batch = make_stack(made).micro(0).to("cpu")
    streams = batch.views["mmlm"].streams | batch.views["rtd"].streams
    short, whole = (len(streams[s].position) for s in ("generator", "text"))
    assert short < whole
    told = f"'generator' and 'text' are {short} and {whole} units"
    with pytest.raises(ValueError, match=f"{told}.*give both the same field, vocabulary and limit"):
        make_model(made)(batch)


def test_words_of_another_width_need_a_transform(world):
    """And what predicts them comes back to it; the width of the stream is the plan's."""
    made = recipe(world)
    texts = {s: replace(m, inner=12) for s, m in made.modalities.items()}
    narrow = replace(made, modalities=texts)
    model = make_model(narrow)
    assert model.embed["text"].token.weight.shape[1] == 12
    assert model.heads["mlm"].transform[0].weight.shape == (12, 32)
    batch = make_stack(narrow).micro(0).to("cpu")
    assert model.encode(batch.views["rtd"]).states["text"].shape[1] == 32
    sum(x["loss"] for x in model(batch).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    bare = replace(made.objectives["mlm"], transform=False)
    heads = {**made.objectives, "mlm": bare}
    with pytest.raises(
        RecipeError, match=r"objectives\.mlm: .* have width 12, its states 32: set tr"
    ):
        make_model(replace(narrow, objectives=heads))
    untied = {**heads, "mlm": replace(bare, tied=False)}
    head = make_model(replace(narrow, objectives=untied)).heads["mlm"]
    assert head.decoder.shape == (len(head.bias), 32)
    with pytest.raises(ValueError, match="inner and looks_at"):
        replace(texts["text"], looks_at="image")
