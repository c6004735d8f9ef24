"""VL-BERT: as the paper and its code say, against the formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
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

from crossloom.objectives.match import Match
from crossloom.training.overview import parameters
from crossloom.training.recipe import load_recipe


def test_parameters():
    counted = parameters(load_recipe("vl-bert")).parts
    # the code's: projection, two norms of what is seen, [IMG], a hidden region's word and feature,
    # what texts alone see, [END]; heads for words and for regions, the latter without a norm
    code = bert(30_522, 768, 12, segments=3)
    code += 4096 * 768 + 768 + 4 * 768 + 768 + 768 + 2048 + 768 + 768
    code += transform(768) + 30_522 + 768 * 768 + 768 + 1601 * 768 + 1601
    assert sum(counted.values()) == code + 2 * 768 + 30_522


def test_what_is_seen_and_hidden():
    recipe = load_recipe("vl-bert")
    views = {n: o.view for n, o in recipe.objectives.items()}
    assert views["mlm"] == views["mvrc"]
    assert set(views["mlm"].hide) == {"text", "image"}
    assert views["mlm-alone"].streams == ("text",)
    words, regions = views["mlm"].hide["text"], views["mlm"].hide["image"]
    assert (words.rate, words.by, words.show, words.swap) == (0.15, "group", 0.1, 0.1)
    assert (regions.rate, regions.by, regions.show, regions.swap) == (0.15, "unit", 0.1, 0)
    assert words.at_least == regions.at_least == 0
    assert not any(isinstance(o, Match) or o.view.mismatch for o in recipe.objectives.values())
    weights = {n: c.weight for n, c in recipe.mixture.items()}
    # pairs of a step on the average; a stretch of text fills about four blocks
    assert recipe.micro * recipe.examples * weights["captions"] / sum(weights.values()) == 128
    assert recipe.optim.rate == pytest.approx(1e-7 * 256)


def sines(box):
    """Section 3.2, but 8 wavelengths of each number in per cent, not 256; sines before cosines."""
    x1, y1, x2, y2 = box
    four = (50 * (x1 + x2), 50 * (y1 + y2), 100 * (x2 - x1), 100 * (y2 - y1))
    rows = [[n / 1000 ** (i / 8) for i in range(8)] for n in four]
    return torch.tensor([f(p) for row in rows for f in (math.sin, math.cos) for p in row])


def visual(features, boxes, embed):
    waves = torch.stack([sines(b) for b in boxes])
    return F.relu(linear(torch.cat([waves, features], 1), embed.feature))


def corners(row):
    x, y, w, h = (row / 100).tolist()
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def one(model, view, example):
    """Words' and regions' last states."""
    text, image = model.embed["text"], model.embed["image"]
    words, regions = view.streams["text"], view.streams["image"]
    at, where = part(words, example), part(regions, example)
    hidden = regions.hidden[where]
    feature = regions.content["feature"][where].float()
    # the first is the whole image, the last [END]
    mean = feature[1:-1][~hidden[1:-1]].mean(0)
    shown = torch.where(hidden[:, None], image.mask, feature)
    shown[0] = mean
    boxes = [corners(b) for b in regions.content["box"][where]]
    seen = visual(shown, boxes, image)
    assert boxes[0] == pytest.approx((0, 0, 1, 1))
    y = norm(seen, image.feature_norm) + image.word.weight[hidden.long()]
    y = torch.cat([y[:-1], image.end.weight])
    place = torch.full((len(y),), len(at))
    place[-1] += 1
    y = norm(y + text.segment.weight[2] + text.position.weight[place], text.norm)
    x = written(text, words, at) + text.segment.weight[0] + norm(seen[:1], text.sight_norm)
    states = layers(model, torch.cat([norm(x, text.norm), y]))
    return states[: len(at)], states[len(at) :]


def written(text, words, at):
    token = torch.where(words.hidden[at], text.mask, words.content["token"][at])
    return text.token.weight[token] + text.position.weight[: len(at)]


def test_losses(world):
    model, stack = set_up("vl-bert-tiny", world)
    (batch,) = drawn(stack, "captions")
    view, aims = batch.views["joint"], batch.aims
    assert view.streams["image"].hidden.any()
    states = [one(model, view, e) for e in range(view.examples)]
    words, regions = (torch.cat(x) for x in zip(*states, strict=True))
    said = mean_losses(model, batch)
    assert set(said) == {"mlm", "mvrc"}
    out = logits(words[aims["mlm"].index], model.heads["mlm"], model.embed["text"].token.weight)
    assert torch.allclose(said["mlm"], cross_entropy(out, aims["mlm"].value), atol=1e-5)
    head, target = model.heads["mvrc"], aims["mvrc"].value
    out = logits(regions[aims["mvrc"].index], head, head.decoder)
    soft = -(target * out.log_softmax(1)).sum(1).mean()  # the code's, of the detector's classes
    entropy = -torch.special.xlogy(target, target).sum(1).mean()
    assert torch.allclose(said["mvrc"], soft - entropy, atol=1e-5)
    # hidden or shown, each is asked for once; the whole image never is
    assert set(view.streams["image"].hidden.nonzero().flatten().tolist()) <= set(
        aims["mvrc"].index.tolist()
    )
    regions = view.streams["image"]
    ends = regions.start + regions.length - 1
    assert not set(aims["mvrc"].index.tolist()) & {*regions.start.tolist(), *ends.tolist()}


def test_loss_of_texts_alone(world):
    model, stack = set_up("vl-bert-tiny", world)
    (batch,) = drawn(stack, "texts")
    text, words = model.embed["text"], batch.views["alone"].streams["text"]
    states = []
    for example in range(len(words.length)):
        at = part(words, example)
        x = written(text, words, at) + text.segment.weight[0]
        x = x + norm(text.absent[None], text.sight_norm)
        states.append(layers(model, norm(x, text.norm)))
    said, aim = mean_losses(model, batch), batch.aims["mlm-alone"]
    assert set(said) == {"mlm-alone"}
    transform = model.heads["mlm"].transform
    rows = torch.cat(states)[aim.index]
    out = logits(rows, model.heads["mlm-alone"], text.token.weight, transform)
    assert torch.allclose(said["mlm-alone"], cross_entropy(out, aim.value), atol=1e-5)


def test_texts_fill_their_limit(world):
    _, stack = set_up("vl-bert-tiny", world)
    (batch,) = drawn(stack, "texts")
    lengths = batch.views["alone"].streams["text"].length
    assert (lengths >= 47).sum() >= len(lengths) - 1


def test_every_parameter_learns_in_every_step(world):
    assert_every_parameter_learns(*set_up("vl-bert-tiny", world), ["captions", "texts"])


def test_training_starts_from_bert():
    recipe = load_recipe("vl-bert")
    assert recipe.modalities["image"].gain == 0
    assert recipe.modalities["text"].looks_at == "image"
    assert recipe.modalities["text"].sees == "whole"
