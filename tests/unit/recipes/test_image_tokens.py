"""DALL·E and CogView as their papers have them, beside plain tensor operations."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from crossloom.data_pipelines.sources import codes
from crossloom.models.plan import Attend
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.recipe import from_dict, load_recipe, to_dict
from crossloom.training.run import make_model, make_stack

SIDE = 12


@pytest.fixture(scope="module")
def coded(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("coded")
    codes.convert(world, out, size=300)
    return out


def set_up(name, world, coded):
    """A small recipe, its model (no weight is zero), and a micro-batch."""
    recipe = load_recipe(f"{name}-tiny")
    mixture = {n: replace(c, shards=f"{coded}/train-*.tar") for n, c in recipe.mixture.items()}
    recipe = replace(
        recipe, data=str(world), mixture=mixture, examples=4, workers=0, skips=0
    ).located()
    torch.manual_seed(1)
    model = make_model(recipe).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return recipe, model, make_stack(recipe).micro(0)


def norm(x, like):
    return F.layer_norm(x, x.shape[1:], like.weight, like.bias, like.eps)


def linear(x, like):
    return x @ like.weight.T + like.bias


def may_read(words, units, kind):
    """``[L, L]``: words, the unit before the codes, codes; by sets of rows and columns."""
    mask = torch.zeros(units, units, dtype=torch.bool)
    for i in range(units):
        for j in range(i + 1):
            mask[i, j] = True
            if kind is None or j <= words or i <= words:
                continue
            row, column = divmod(i - words - 1, SIDE)
            upper, other = divmod(j - words - 1, SIDE)
            if kind == "row":  # the last one read stands above
                mask[i, j] = row == upper or (row == upper + 1 and other >= column)
            elif kind == "column":
                mask[i, j] = column == other
            else:  # a square of 5, that runs on from a row's end to the next
                along = column - other + SIDE * (row - upper)
                mask[i, j] = any(abs(along - SIDE * r) <= 2 for r in range(3))
    return mask


def states(model, view, kinds, activation, sandwich):
    """By example, final states of words and of codes with the unit before them."""
    embed = model.embed
    text, image = view.streams["text"], view.streams["image"]
    assert isinstance(embed["text"].norm, torch.nn.Identity)
    for e in range(view.examples):
        words, units = (
            slice(int(s.start[e]), int(s.start[e] + s.length[e])) for s in (text, image)
        )
        token, code = text.content["token"][words], image.content["code"][units]
        x = embed["text"].token.weight[token] + embed["text"].position.weight[: len(token)]
        y = torch.cat([embed["image"].special.weight[:1], embed["image"].code.weight[code[1:]]])
        if hasattr(embed["image"], "row"):
            cell = torch.arange(len(code) - 1)
            places = (
                embed["image"].row.weight[cell // SIDE] + embed["image"].column.weight[cell % SIDE]
            )
            y = torch.cat([y[:1], y[1:] + places])
        else:
            y = y + embed["image"].position.weight[: len(code)]
        x = torch.cat([x, y])
        for layer, kind in zip(model.fusion.layers, kinds, strict=True):
            attend, feed = layer.blocks
            allowed = may_read(len(token), len(x), kind)
            allowed[: len(token), len(token) :] = False
            seen = norm(x, attend.norm.shared)
            split = (attend.heads, -1)
            q = linear(seen, attend.query.shared).unflatten(1, split).transpose(0, 1)
            k, v = (
                part.unflatten(1, split).transpose(0, 1)
                for part in linear(seen, attend.keyvalue.shared).chunk(2, 1)
            )
            score = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).masked_fill(~allowed, -torch.inf)
            gain = linear((score.softmax(2) @ v).transpose(0, 1).flatten(1), attend.output.shared)
            x = x + (norm(gain, attend.after.shared) if sandwich else gain)
            gain = activation(linear(norm(x, feed.norm.shared), feed.up.shared))
            gain = linear(gain, feed.down.shared)
            x = x + (norm(gain, feed.after.shared) if sandwich else gain)
        last = model.fusion.last
        yield token, norm(x[: len(token)], last.text), code, norm(x[len(token) :], last.image)


def losses(model, view, kinds, activation=F.gelu, sandwich=False):
    """Cross entropies of all words and of all codes of a batch."""
    found = {"text": [], "image": []}
    for token, words, code, pictures in states(model, view, kinds, activation, sandwich):
        for stream, said, values in (("text", words, token), ("image", pictures, code)):
            head = model.heads[stream]
            assert not list(head.transform.parameters())
            table = {"text": model.embed["text"].token, "image": model.embed["image"].code}[stream]
            table = table.weight if head.decoder is None else head.decoder
            logits = said[:-1] @ table.T + head.bias
            found[stream].append(F.cross_entropy(logits, values[1:], reduction="none"))
    return {s: torch.cat(x) for s, x in found.items()}


KINDS = ("row", "column", "row", "convolution")


def test_dall_e_weighs_its_words_an_eighth_and_its_codes_the_rest(world, coded):
    recipe, model, batch = set_up("dall-e", world, coded)
    here = batch.to("cpu")
    each = losses(model, here.views["said"], KINDS)
    sums = model(here)
    assert batch.counts == {s: len(x) for s, x in each.items()}
    for stream, found in each.items():
        assert torch.allclose(sums[stream]["loss"], found.sum(), rtol=1e-4)
    assert len(each["image"]) == 4 * SIDE**2
    total = Engine(model, recipe, start("cpu"))._loss(sums, batch.counts)
    by_hand = (each["text"].mean() + 7 * each["image"].mean()) / 8
    assert torch.allclose(total, by_hand, rtol=1e-5)
    assert not torch.allclose(total, torch.cat(list(each.values())).mean(), rtol=1e-4)


def test_all_words_and_all_codes_alike_cost_their_logarithms(world, coded):
    """Words compete with words and codes with codes."""
    recipe, model, batch = set_up("dall-e", world, coded)
    with torch.no_grad():
        for head in model.heads.values():
            head.decoder.zero_()
            head.bias.zero_()
    total = Engine(model, recipe, start("cpu"))._loss(model(batch.to("cpu")), batch.counts)
    words = recipe.modalities["text"].vocab.size
    assert float(total) == pytest.approx((math.log(words) + 7 * math.log(512)) / 8, rel=1e-5)


def test_cogview_has_one_mean_of_words_and_codes(world, coded):
    recipe, model, batch = set_up("cogview", world, coded)
    here = batch.to("cpu")

    def gelu(x):
        return F.gelu(x, approximate="tanh")

    each = losses(model, here.views["said"], (None,) * 4, gelu, sandwich=True)
    sums = model(here)
    for stream, found in each.items():
        assert torch.allclose(sums[stream]["loss"], found.sum(), rtol=1e-4)
    by_hand = torch.cat(list(each.values())).mean()
    recipe = replace(recipe, optim=replace(recipe.optim, clip=0.0))
    engine = Engine(model, recipe, start("cpu"))
    assert torch.allclose(engine._loss(sums, batch.counts), by_hand, rtol=1e-5)
    # and so over two batches of a step: the gradient is that of all their units
    expected = torch.autograd.grad(by_hand, model.embed["image"].code.weight)[0]
    counts = {n: 2 * c for n, c in batch.counts.items()}
    seen = []
    engine.step(0, [batch, batch], counts, lambda _: seen.append(
        model.embed["image"].code.weight.grad.clone()) or False)  # fmt: skip
    assert torch.allclose(seen[0], expected, rtol=1e-3, atol=1e-6)


def test_a_unit_knows_nothing_of_what_comes_after_it(world, coded):
    for name in ("dall-e", "cogview"):
        _, model, batch = set_up(name, world, coded)
        view = batch.to("cpu").views["said"]
        before = model.encode(view).states
        code = view.streams["image"].content["code"]
        at = int(view.streams["image"].start[1]) + 40
        code[at] = (code[at] + 1) % 512
        after = model.encode(view).states
        same = (before["image"] == after["image"]).all(1)
        assert torch.equal(before["text"], after["text"])
        assert same[:at].all()
        assert not same[at]
        assert not same[at + 1 : int(view.streams["image"].start[2])].all()


def test_the_published_sizes():
    dall_e, cogview = load_recipe("dall-e"), load_recipe("cogview")
    plan = dall_e.plan
    attends = [b for b in plan.blocks.values() if isinstance(b, Attend)]
    assert (len(attends), plan.heads, plan.inner // plan.heads) == (64, 62, 64)
    assert all(b.sparse["image"].side == 32 for b in attends)
    for number, block in enumerate(attends, 1):  # appendix B.1
        column = (number - 2) % 4 == 0
        expected = "convolution" if number == 64 else "column" if column else "row"
        assert block.sparse["image"].reads == expected
    assert attends[-1].sparse["image"].kernel == 11
    assert dall_e.examples * dall_e.micro == 1024
    assert (len(cogview.plan.layers), cogview.plan.inner, cogview.plan.heads) == (48, 2560, 40)
    assert cogview.plan.norm == "sandwich"
    text, image = (cogview.modalities[s] for s in ("text", "image"))
    assert text.limit + image.longest() == 1089 - 1  # the last, [EOI1], is not read
    assert cogview.examples * cogview.micro == 6144
    for recipe in (dall_e, cogview):
        assert from_dict(to_dict(recipe)) == recipe
