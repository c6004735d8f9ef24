"""M3P, UC2, mUNITER and xUNITER: what is hidden and asked for, and the formulas written out."""

from collections import Counter

import numpy as np
import pytest
import torch
from written_out import (
    assert_every_parameter_learns,
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

from crossloom.data_pipelines.dictionary import load
from crossloom.data_pipelines.read import Blocks, Parallel, Texts
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.recipes.uc2 import LANGUAGES as PIVOTED
from crossloom.training.overview import parameters
from crossloom.training.recipe import from_dict, load_recipe, to_dict

NAMES = ("m3p", "uc2", "muniter", "xuniter")
XLM_R = (250_002 + 514 + 1 + 2) * 768
MBERT = (119_547 + 512 + 2 + 2) * 768
ENCODER = 12 * (12 * 768**2 + 13 * 768)


def regions(numbers, norms, *further):
    """Layers for feature and box, and norms."""
    return 2048 * 768 + 768 + numbers * 768 + 768 + 2 * norms * 768 + sum(further)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_code(name):
    recipe = load_recipe(name)
    assert from_dict(to_dict(recipe)) == recipe
    counted = parameters(recipe).parts
    mask, kind = 2048, 768
    ids = 119_547 if name == "muniter" else 250_002
    words = transform(768) + ids
    pooled, two = 768 * 768 + 768, 2 * 768 + 2
    # VOLTA: both streams pooled to 1024, two classes
    pair = 2 * (768 * 1024 + 1024) + 2 * 1024 + 2
    heads = {
        "m3p": {
            # `proj`, whose matrix is the table's; `transformer_obj` and 1,600 classes; `mrfr_dense`
            "xmlm": ids, "mc-mlm": ids, "mc-mrc": transform(768) + 1600 * 768 + 1600,
            "mc-mrfr": 2048 * 768 + 2048, "mc-vlm": pooled + two,
        },
        "uc2": {"mlm": words, "mrtm": ids, "vtlm": ids, "itm": pooled + two},
        "muniter": {
            "mlm": words, "mmlm": ids, "mrc": transform(768) + 1601 * 769, "match": pair,
        },
    }  # fmt: skip
    heads["xuniter"] = {**heads["muniter"]}
    assert counted == {
        "embed.text": MBERT if name == "muniter" else XLM_R,
        "embed.image": {
            "m3p": regions(5, 1),
            "uc2": regions(7, 3, mask, kind),
            "muniter": regions(5, 3),
            "xuniter": regions(5, 3, kind),
        }[name],
        "layers": ENCODER,
        **{f"heads.{h}": n for h, n in heads[name].items()},
    }


def test_muniters_alternate_captions_in_english_and_texts_in_all_languages():
    for name in ("muniter", "xuniter"):
        recipe = load_recipe(name)
        captions, texts = recipe.mixture["captions"], recipe.mixture["texts"]
        assert recipe.alike
        assert captions.weight == texts.weight
        assert recipe.steps == 2 * load_recipe("controlled-uniter").steps
        assert recipe.examples * recipe.micro == 256
        assert captions.reader.languages == ("en",)
        assert isinstance(texts.reader, Blocks)
        assert texts.reader.languages == ()
        assert recipe.objectives["mmlm"].view.streams == ("text",)
        assert recipe.objectives["mmlm"].shares == "mlm"
        assert (recipe.plan.epsilon, recipe.optim.factors) == (1e-12, {})


def test_m3p_switches_english_captions(world):
    recipe = load_recipe("m3p")
    reader = recipe.mixture["captions"].reader
    assert isinstance(reader, Texts)
    assert (reader.languages, reader.switch.texts, reader.switch.words) == (("en",), 0.8, 0.8)
    assert len(recipe.mixture["texts"].languages) == 93
    assert recipe.schedule.shape == "inverse_sqrt"
    _, stack = set_up("m3p-tiny", world, examples=12)
    table = load(str(world / "dictionary.tsv"))
    foreign = {w for x in table.values() for words in x.values() for w in words}
    vocab = stack.collator.modalities["text"].vocab
    said = Counter()
    for batch in drawn(stack, "captions", count=4):
        stream = batch.views["itm"].streams["text"]
        for example in range(len(batch.keys)):
            text = vocab.decode(stream.content["token"][part(stream, example)].tolist())
            said[any(w in text for w in foreign if len(w) > 3)] += 1
        hidden = {v: {s: bool(x.hidden.any()) for s, x in batch.views[v].streams.items()}
                  for v in ("mc-mlm", "mc-mrm", "itm")}  # fmt: skip
        assert hidden == {
            "mc-mlm": {"text": True, "image": False},
            "mc-mrm": {"text": False, "image": True},
            "itm": {"text": False, "image": False},
        }
    assert said[True] / said.total() == pytest.approx(0.8, abs=0.1)


def test_uc2_draws_its_tasks_and_pairs_english_with_others(world):
    recipe = load_recipe("uc2")
    weights = {n: c.weight for n, c in recipe.mixture.items()}
    assert weights == {"itm": 9, "mlm": 12, "mrtm": 9, "vtlm": 1.5, "vtlm-pieces": 1.5}
    assert recipe.mixture["mlm"].reader.languages == PIVOTED
    bound, plain = (recipe.mixture[n].reader for n in ("vtlm", "vtlm-pieces"))
    assert isinstance(bound, Parallel)
    assert (bound.pivot, bound.dictionary, plain.dictionary) == ("en", "dictionary.tsv", "")
    assert recipe.objectives["vtlm"].view.hide["text"].by == "group"
    assert recipe.objectives["mlm"].view.hide["text"].by == "unit"
    assert recipe.modalities["text"].restart


def test_translations_are_hidden_with_their_words(world):
    """Of a word and its translation, either both are hidden or neither: none can be copied."""
    _, stack = set_up("uc2-tiny", world, examples=16)
    vocab = stack.collator.modalities["text"].vocab
    table = load(str(world / "dictionary.tsv"))
    german = {w: set(x["de"]) for w, x in table.items()}
    seen = Counter()
    for batch in drawn(stack, "vtlm", count=6, before=200):
        stream = batch.views["vtlm"].streams["text"]
        aim = batch.aims["vtlm"]
        value = dict(zip(aim.index.tolist(), aim.value.tolist(), strict=True))
        aims = set(value)
        for example in range(len(batch.keys)):
            at = part(stream, example).tolist()
            clean = [value.get(n, int(stream.content["token"][n])) for n in at]
            start = [n for n, p in enumerate(stream.position[at].tolist()) if p == 0][1]
            sides = [(clean[:start], at[:start]), (clean[start:], at[start:])]
            found = [words_at(vocab, ids, places) for ids, places in sides]
            for word, translations in german.items():
                for one, two in (found, found[::-1]):
                    here = [p for w, p in one if w == word]
                    there = [p for w, p in two if w in translations]
                    if len(here) == len(there) == 1:
                        fates = [{n in aims for n in places} for places in (*here, *there)]
                        assert fates[0] == fates[1]
                        assert len(fates[0]) == 1
                        seen[fates[0] == {True}] += 1
    assert seen[True] > 3
    assert seen[True] / seen.total() == pytest.approx(0.15, abs=0.1)


def words_at(vocab, ids, places):
    """Words of a side, in lower case, with the places of their pieces."""
    found = []
    for piece, place in zip(ids, places, strict=True):
        text = vocab.pieces[piece]
        if text.startswith("▁") or not found:
            found.append([text[1:] if text.startswith("▁") else text, [place]])
        else:
            found[-1][0] += text
            found[-1][1].append(place)
    return [(w.strip(".,").casefold(), p) for w, p in found]


# --- formulas ------------------------------------------------------------------------------------


def embedded(model, view, example, kind):
    """Rows of an example's words and regions, as the systems embed them."""
    text, image = model.embed["text"], model.embed["image"]
    stream = view.streams["text"]
    at = part(stream, example)
    token = torch.where(stream.hidden[at], text.mask, stream.content["token"][at])
    x = text.token.weight[token] + text.position.weight[stream.position[at]]
    x = x + (text.constant if text.constant is not None else text.segment.weight[0])
    words = norm(x, text.norm)
    if "image" not in view.streams:
        return words, words[:0]
    stream = view.streams["image"]
    at = part(stream, example)
    feature, box = (stream.content[n][at].float() for n in ("feature", "box"))
    hidden = stream.hidden[at][:, None]
    feature = torch.where(hidden, 0 if image.mask is None else image.mask, feature)
    if kind == "m3p":
        length = feature.pow(2).sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        feature, box = feature / length, box / box.pow(2).sum(1, keepdim=True).sqrt()
        return words, norm(linear(feature, image.feature) + linear(box, image.box), image.norm)
    if "uniter" in kind:  # the whole image first: the mean of the regions that are not hidden
        shown = [f for f, h in list(zip(feature, hidden[:, 0], strict=True))[1:] if not h]
        first = torch.stack(shown).mean(0) if shown else torch.zeros_like(feature[0])
        feature = torch.cat([first[None], feature[1:]])
    x = norm(linear(feature, image.feature), image.feature_norm)
    x = x + norm(linear(box, image.box), image.box_norm)
    row = text.segment.weight[1] if kind == "muniter" else image.segment.weight[0]
    return words, norm(x + row, image.norm)


def losses(model, batch, kind):
    """By objective, the mean loss of what is drawn."""
    said = {}
    for name, count in batch.counts.items():
        if not count:
            continue
        spec, head, aim = model.objectives[name], model.heads[name], batch.aims[name]
        view = batch.views[spec.view.name]
        words, seen = [], []
        for example in range(view.examples):
            both = embedded(model, view, example, kind)
            states = layers(model, torch.cat(both))
            words.append(states[: len(both[0])])
            seen.append(states[len(both[0]) :])
        if spec.kind == "match":
            pooled = torch.stack([w[0] for w in words])
            x = linear(pooled, head.pooler.dense["text"])
            x = x.relu() if "uniter" in kind else x.tanh()
            if "uniter" in kind:
                other = torch.stack([r[0] for r in seen])
                x = x * linear(other, head.pooler.dense["image"]).relu()
            said[name] = cross_entropy(linear(x, head.score), aim.value)
            continue
        x = torch.cat(words if spec.stream == "text" else seen)[aim.index]
        embed = model.embed["text" if spec.target == "token" else spec.stream]
        matrix = embed.token.weight if spec.target == "token" else head.decoder
        lender = model.heads[spec.shares] if spec.shares else head
        if spec.transform:
            out = logits(x, head, matrix, transform=lender.transform)
        else:
            out = x @ matrix.T + head.bias
        if spec.target == "feature":
            said[name] = (out - aim.value).pow(2).mean()
        elif spec.target == "classes":
            p = aim.value.double()
            kl = torch.where(p > 0, p * (p.log() - out.double().log_softmax(1)), 0).sum(1)
            said[name] = kl.mean()
        else:
            said[name] = cross_entropy(out, aim.value)
    return said


@pytest.mark.parametrize("kind", NAMES)
def test_losses_written_out(kind, world):
    model, stack = set_up(f"{kind}-tiny", world, examples=4, seed=4)
    met = set()
    for component in COMPONENTS[kind]:
        (batch,) = drawn(stack, component, before=120)
        with torch.no_grad():
            said, expected = mean_losses(model, batch), losses(model, batch, kind)
        assert said.keys() == expected.keys()
        for name, value in expected.items():
            assert float(said[name]) == pytest.approx(float(value), rel=2e-4, abs=1e-5), name
        met |= set(said)
    assert met == set(model.objectives)


COMPONENTS = {
    "m3p": ("texts", "captions"),
    "uc2": ("itm", "mlm", "mrtm", "vtlm", "vtlm-pieces"),
    "muniter": ("texts", "captions"),
    "xuniter": ("texts", "captions"),
}


@pytest.mark.parametrize("kind", ["m3p", "uc2"])
def test_every_parameter_learns(kind, world):
    model, stack = set_up(f"{kind}-tiny", world, examples=4)
    assert_every_parameter_learns(model, stack, COMPONENTS[kind][:1])


def test_regions_are_asked_for_words_of_their_captions_language(world):
    """MRTM's targets are pieces of class names, and decoded with the table of words."""
    model, stack = set_up("uc2-tiny", world, examples=16)
    vocab = stack.collator.modalities["text"].vocab
    words = {w[0] for x in LANGUAGES.values() for w in x.words.values()}
    pieces = {i for w in words for i in vocab.encode(w).tolist()}
    (batch,) = drawn(stack, "mrtm")
    aim = batch.aims["mrtm"]
    stream = batch.views["mrtm"].streams["image"]
    assert len(aim.index) > 8
    assert stream.hidden[aim.index].all()
    # a space may join with the first piece of a name
    assert np.mean([v in pieces for v in aim.value.tolist()]) > 0.9
    head = model.heads["mrtm"]
    assert head.decoder is None
    model.zero_grad()
    model(batch)["mrtm"]["loss"].backward()
    assert model.embed["text"].token.weight.grad[aim.value].abs().sum() > 0
    assert model.heads["mlm"].transform[0].weight.grad.abs().sum() > 0
