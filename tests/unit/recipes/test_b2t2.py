"""B2T2: as the paper and its code say, against the formulas written out."""

import io

import numpy as np
import torch
from written_out import (
    assert_every_parameter_learns,
    bert,
    cross_entropy,
    drawn,
    layers,
    linear,
    logits,
    mean_losses,
    norm,
    part,
    set_up,
    transform,
)

from crossloom.data_pipelines.source import visit
from crossloom.training.overview import parameters
from crossloom.training.recipe import load_recipe
from crossloom.units import keyed_rng

W = 1024


def test_parameters():
    counted = parameters(load_recipe("b2t2")).parts
    heads = transform(W) + 30_522 + W * W + W + 2 * W + 2  # words; pooler and impostor
    projection = 2048 * W + W
    # ours beside the code's: four numbers of a box, a feature for hidden regions
    assert sum(counted.values()) == bert(30_522, W, 24) + heads + projection + 4 * W + 2048


def test_one_stream_is_read():
    recipe = load_recipe("b2t2")
    layer = recipe.plan.layers[0]
    assert len(recipe.plan.layers) == 24
    assert all(one == layer for one in recipe.plan.layers)
    assert dict(layer.blocks[0].reads) == {"text": ("text",)}
    assert layer.blocks[1].streams == ("text",)
    views = [o.view for o in recipe.objectives.values()]
    assert views[0] == views[1]
    assert views[0].mismatch == "text"
    assert views[0].mismatch_rate == 0.5
    assert set(views[0].hide) == {"text"}
    assert recipe.objectives["mlm"].matched_only


def embedded(model, view, example):
    text, image = model.embed["text"], model.embed["image"]
    words, regions = view.streams["text"], view.streams["image"]
    at, where = part(words, example), part(regions, example)
    feature, box = (regions.content[n][where].float() for n in ("feature", "box"))
    feature[0] = feature[1:].mean(0)
    seen = torch.tanh(linear(torch.cat([box, feature], 1), image.feature))
    token = torch.where(words.hidden[at], text.mask, words.content["token"][at])
    x = text.token.weight[token] + text.position.weight[: len(at)] + text.segment.weight[0]
    x = norm(x, text.norm)
    out = []
    for place, region in enumerate(words.content["refers"][at].tolist()):
        number = 0 if place == 0 else region + 1
        fused = number < len(where) and (place == 0 or region >= 0)
        out.append(x[place] + seen[number] if fused else x[place])
    return torch.stack(out)


def test_losses(world):
    model, stack = set_up("b2t2-tiny", world)
    for component in ("captions", "expressions"):
        (batch,) = drawn(stack, component)
        view, aims = batch.views["captions"], batch.aims
        assert (view.streams["text"].content["refers"] >= 0).any()
        states = [layers(model, embedded(model, view, e)) for e in range(view.examples)]
        said = mean_losses(model, batch)
        rows = torch.cat(states)[aims["mlm"].index]
        out = logits(rows, model.heads["mlm"], model.embed["text"].token.weight)
        assert torch.allclose(said["mlm"], cross_entropy(out, aims["mlm"].value), atol=1e-5)
        head = model.heads["impostor"]
        first = torch.stack([s[0] for s in states])
        out = linear(torch.tanh(linear(first, head.pooler.dense["text"])), head.score)
        expected = cross_entropy(out, aims["impostor"].value)
        assert torch.allclose(said["impostor"], expected, atol=1e-5)


def test_words_of_impostors_are_not_predicted(world):
    _, stack = set_up("b2t2-tiny", world)
    matched = []
    for batch in drawn(stack, "captions", 20):
        example = batch.views["captions"].streams["text"].example
        label = batch.aims["impostor"].value
        aim = batch.aims["mlm"]
        asked = set(example[aim.index[aim.weight > 0]].tolist())
        assert asked == set(label.nonzero().flatten().tolist())
        matched += label.tolist()
    assert 0.4 < np.mean(matched) < 0.6


def test_words_show_the_regions_that_they_name(world):
    """A caption's words by the classes that the detector found, whatever pieces they are of."""
    _, stack = set_up("b2t2-tiny", world)
    names = (world / "classes.txt").read_text("utf-8").splitlines()
    pieces, found = stack.collator.modalities["text"].vocab.pieces, 0
    source = stack.parts["captions"].source
    for place in source.places()[:30]:
        shard, number, item = source.locate(place)
        sample, _ = visit(source.reader, shard.read(number), item, keyed_rng(0))
        with np.load(io.BytesIO(sample["regions.npz"])) as arrays:
            label = arrays["probabilities"][:, 1:].argmax(1) + 1
        units = stack.collator.modalities["text"].decode(sample, keyed_rng(0))
        refers = units.content["refers"]
        for number in set(refers.tolist()) - {-1}:
            said = "".join(pieces[t] for t in units.content["token"][refers == number])
            name = names[label[number]]
            assert said.replace("▁", " ").split() == name.split()
            assert name in sample["text"][0].text
            found += 1
    assert found > 30


def test_every_parameter_learns_in_every_step(world):
    assert_every_parameter_learns(*set_up("b2t2-tiny", world), ["captions", "expressions"])
