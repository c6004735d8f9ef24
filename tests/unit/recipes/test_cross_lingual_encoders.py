"""mBERT, XLM, XLM-R, Unicoder, ALM: as the papers say, against the formulas written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from written_out import (
    assert_every_parameter_learns,
    bert,
    cross_entropy,
    drawn,
    layers,
    linear,
    mean_losses,
    norm,
    part,
    set_up,
    transform,
)

from crossloom.data_pipelines.passages import Alternating, Following, Switched
from crossloom.models.model import CrossloomModel
from crossloom.objectives.generate import Generate
from crossloom.objectives.match import Match
from crossloom.training.overview import parameters
from crossloom.training.recipe import load_recipe


def total(name):
    return sum(parameters(load_recipe(name)).parts.values())


def xlm_size(vocabulary, languages, count, width=1024):
    """Tables, their norm, layers and the head's bias, as in the published models."""
    tables = (vocabulary + 512 + languages + 2) * width
    return tables + count * (12 * width * width + 13 * width) + vocabulary


def test_parameters():
    # the pooler and next sentences
    pair = 768 * 768 + 768 + 2 * 768 + 2
    assert total("mbert") == bert(119_547, 768, 12) + transform(768) + 119_547 + pair
    # one table of 514 positions, one passage type
    for name, width, count in (("xlm-r", 768, 12), ("xlm-r-large", 1024, 24)):
        expected = bert(250_002, width, count, segments=3) + transform(width) + 250_002
        assert total(name) == expected
    assert total("alm") == xlm_size(95_000, 15, 12)
    assert total("xlm") == xlm_size(95_000, 15, 12) + 95_000
    assert total("xlm-clm") == xlm_size(64_139, 2, 6)
    classifier = 1024 * 1024 + 1024 + 2 * 1024 + 2
    expected = xlm_size(95_000, 15, 12) + 3 * 95_000 + 2 * 1024 + classifier
    assert total("unicoder") == expected


def test_what_is_trained_on_what():
    mbert, xlm, clm, xlm_r, unicoder, alm = map(
        load_recipe, ("mbert", "xlm", "xlm-clm", "xlm-r", "unicoder", "alm")
    )
    assert mbert.mixture["documents"].reader == Following(mismatch=0.5)
    assert mbert.objectives["mlm"].view == mbert.objectives["next"].view
    assert not mbert.objectives["mlm"].matched_only  # words of foreign passages are predicted too
    assert isinstance(mbert.objectives["next"], Match)
    for recipe in (xlm, unicoder):
        # one task a step, all as often
        assert recipe.alike
        assert len({c.weight for c in recipe.mixture.values()}) == 1
        assert all(len(c.objectives) == 1 for c in recipe.mixture.values())
    assert isinstance(clm.objectives["clm"], Generate)
    assert clm.objectives["clm"].view.causal == ("text",)
    assert (xlm_r.modalities["text"].limit, xlm_r.modalities["text"].languages) == (512, ())
    assert xlm_r.optim.betas == (0.9, 0.98)
    assert xlm.mixture["streams"].alpha == 0.7
    assert clm.mixture["streams"].alpha == unicoder.mixture["streams"].alpha == 0
    assert clm.alike  # a step is of one language
    assert unicoder.micro * unicoder.examples == 512
    assert (unicoder.optim.rate, unicoder.schedule.shape) == (1e-5, "inverse_sqrt")
    assert unicoder.mixture["recovery"].reader.apart
    assert unicoder.mixture["paraphrases"].reader.mismatch == 0.5
    assert isinstance(unicoder.mixture["documents"].reader, Alternating)
    switched = alm.mixture["switched"].reader
    assert isinstance(switched, Switched)
    assert (switched.most, switched.longest, switched.left) == (0.3, 4, 0.2)
    assert alm.optim.rate == 5e-4
    for recipe in (xlm, clm, xlm_r, alm):
        for objective in recipe.objectives.values():
            hide = objective.view.hide.get("text")
            assert hide is None or (hide.rate, hide.show, hide.swap) == (0.15, 0.1, 0.1)
    for recipe in (xlm, clm, unicoder, alm):  # the head is the table and a bias
        heads = [o for o in recipe.objectives.values() if not isinstance(o, Match)]
        assert all(o.tied and not o.transform for o in heads)


def test_positions_and_languages_start_anew_with_the_second_sentence(world):
    _, stack = set_up("xlm-tiny", world)
    text = stack.collator.modalities["text"]
    (batch,) = drawn(stack, "pairs")
    words = batch.views["tlm"].streams["text"]
    two = 0
    for example in range(len(words.length)):
        where = part(words, example)
        position, language = words.position[where], words.content["language"][where]
        # (hidden units keep their ids in the aim alone; the ends are never hidden)
        token = words.content["token"][where].tolist()
        begin = next(n for n in range(1, len(position)) if position[n] == 0)
        assert token[begin - 1 : begin + 1] == [text.vocab.end] * 2
        assert token.count(text.vocab.end) == 3
        rest = len(position) - begin
        assert position.tolist() == [*range(begin), *range(rest)]
        assert language[:begin].unique().numel() == language[begin:].unique().numel() == 1
        two += int(language[0] != language[-1])
    assert two == len(words.length)


def test_a_stream_of_text_is_of_one_language_and_full(world):
    _, stack = set_up("xlm-tiny", world, examples=24)
    (batch,) = drawn(stack, "streams")
    words = batch.views["mmlm"].streams["text"]
    full = 0
    for example in range(len(words.length)):
        where = part(words, example)
        assert words.content["language"][where].unique().numel() == 1
        assert words.position[where].tolist() == list(range(len(where)))
        full += len(where) >= 47
    assert full > len(words.length) / 2


def embedded(model, words, where, pieces=None):
    """Table, position, language, norm."""
    text = model.embed["text"]
    token = torch.where(words.hidden[where], text.mask, words.content["token"][where])
    x = text.token.weight[token] if pieces is None else pieces
    x = x + text.position.weight[words.position[where]]
    return norm(x + text.language.weight[words.content["language"][where]], text.norm)


def decoded(model, objective, x):
    return x @ model.embed["text"].token.weight.T + model.heads[objective].bias


def test_words_are_predicted_from_those_before_them(world):
    model, stack = set_up("xlm-clm-tiny", world, examples=2)
    (batch,) = drawn(stack, "streams")
    words, said = batch.views["clm"].streams["text"], mean_losses(model, batch)
    losses = []
    for example in range(len(words.length)):
        where = part(words, example)
        token = words.content["token"][where]
        x = layers(model, embedded(model, words, where), causal=True)
        out = decoded(model, "clm", x[:-1]).log_softmax(1)
        losses += [-out[n, token[n + 1]] for n in range(len(out))]
    assert batch.counts["clm"] == len(losses)
    assert torch.allclose(said["clm"], torch.stack(losses).mean(), atol=1e-5)


# --- word recovery ------------------------------------------------------------------------------


def recovered(x, y, weight):
    """A_ij = W [x_i; y_j; x_i * y_j], softmax over j, x'_i = sum of A_ij y_j (section 3)."""
    rows = []
    for one in x:
        scores = torch.stack([weight @ torch.cat([one, other, one * other]) for other in y])
        rows.append(sum(a * other for a, other in zip(scores.softmax(0), y, strict=True)))
    return torch.stack(rows)


def test_words_are_recovered_from_their_translation(world):
    model, stack = set_up("unicoder-tiny", world, examples=3)
    text = model.embed["text"]
    with torch.no_grad():  # attention that is far from even
        text.recovery.score.weight.mul_(30)
    width = text.token.weight.shape[1]
    # W's part for x_i alone, whatever it is, changes nothing
    weight = torch.cat([torch.randn(width), *text.recovery.score.weight[0].chunk(2)])
    (batch,) = drawn(stack, "recovery")
    view, said = batch.views["clwr"], mean_losses(model, batch)
    words, others = view.streams["text"], view.streams["second"]
    assert not words.hidden.any()
    losses, spread = [], []
    for example in range(len(words.length)):
        where, there = part(words, example), part(others, example)
        table = text.token.weight
        own, other = (table[s.content["token"][w]] for s, w in ((words, where), (others, there)))
        made = recovered(own, other, weight)
        spread.append((made - other.mean(0)).abs().max())
        states = layers(model, embedded(model, words, where, made))
        inner = slice(1, len(where) - 1)  # all words, and no special
        target = words.content["token"][where][inner]
        losses += [
            cross_entropy(decoded(model, "clwr", states[inner][n : n + 1]), target[n : n + 1])
            for n in range(len(target))
        ]
    assert batch.counts["clwr"] == len(losses)
    assert max(spread) > 0.01
    assert torch.allclose(said["clwr"], torch.stack(losses).mean(), atol=1e-5)


def test_a_sentence_is_recovered_from_its_translation_alone(world):
    model, stack = set_up("unicoder-tiny", world, examples=4)
    (batch,) = drawn(stack, "recovery")
    view = batch.views["clwr"]
    before = model.encode(view).states["text"]
    others = view.streams["second"]
    token = others.content["token"].clone()
    token[part(others, 1)] = 7
    content = {**others.content, "token": token}
    streams = {**view.streams, "second": replace(others, content=content)}
    after = model.encode(replace(view, streams=streams)).states["text"]
    moved = (before - after).abs().amax(1) > 1e-6
    words = view.streams["text"]
    assert moved[part(words, 1)].all()
    assert not moved[words.example != 1].any()
    # one word there is: all are made of it
    single = replace(
        others, content={k: v[:4] for k, v in others.content.items()}, length=torch.ones(4).long(),
        start=torch.arange(4), example=torch.arange(4), longest=1, position=torch.zeros(4).long(),
        hidden=torch.zeros(4, dtype=torch.bool),
    )  # fmt: skip
    pieces = model.embed["text"].pieces
    made = model.embed["text"].recovery(pieces(words), pieces(single), words, single)
    assert torch.allclose(made, pieces(single)[words.example])


def test_elsewhere_words_are_seen_as_they_are(world):
    model, stack = set_up("unicoder-tiny", world, examples=2)
    (batch,) = drawn(stack, "pairs")
    words = batch.views["tlm"].streams["text"]
    states = model.encode(batch.views["tlm"]).states["text"]
    where = part(words, 0)
    expected = layers(model, embedded(model, words, where))
    assert torch.allclose(states[where], expected, atol=1e-5)


def test_paraphrases_are_told_by_the_first_state(world):
    model, stack = set_up("unicoder-tiny", world, examples=12)
    (batch,) = drawn(stack, "paraphrases")
    label = batch.aims["same"].value
    assert 0 < label.sum() < len(label)
    words = batch.views["passages"].streams["text"]
    head = model.heads["same"]
    first = torch.stack(
        [layers(model, embedded(model, words, part(words, n)))[0] for n in range(len(label))]
    )
    out = linear(torch.tanh(linear(first, head.pooler.dense["text"])), head.score)
    assert torch.allclose(mean_losses(model, batch)["same"], cross_entropy(out, label), atol=1e-5)


def test_only_a_text_has_words_to_be_seen():
    recipe = load_recipe("uniter-tiny")
    text = replace(recipe.modalities["text"], looks_at="image", sees="words", size=60)
    modalities = {**recipe.modalities, "text": text}
    with pytest.raises(ValueError, match="'image' has no words to be seen"):
        CrossloomModel(modalities, recipe.plan, recipe.objectives)


@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("mbert-tiny", ["documents"]),
        ("xlm-tiny", ["streams", "pairs"]),
        ("unicoder-tiny", ["streams", "pairs", "recovery", "paraphrases", "documents"]),
    ],
)
def test_every_parameter_learns_in_every_step(world, name, components):
    assert_every_parameter_learns(*set_up(name, world), components)


# --- mixed languages ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "component"), [("alm", "switched"), ("unicoder", "documents")])
def test_a_text_has_units_of_two_languages(world, name, component):
    _, stack = set_up(f"{name}-tiny", world, examples=16)
    (batch,) = drawn(stack, component)
    (view,) = [batch.views[o.view.name] for n, o in stack.collator.objectives.items()
               if batch.counts[n]]  # fmt: skip
    words = view.streams["text"]
    counts = [words.content["language"][part(words, n)].unique().numel()
              for n in range(len(words.length))]  # fmt: skip
    assert np.mean([n >= 2 for n in counts]) > 0.8
    # positions run on
    assert all((words.position[part(words, n)].diff() == 1).all() for n in range(len(counts)))


def test_next_sentences_are_of_the_language_of_the_first(world):
    """Else their languages alone would tell."""
    _, stack = set_up("mbert-tiny", world, examples=30)
    source = stack.parts["documents"].source
    readers = source.reader
    assert readers.mismatched == 0.5
    (batch,) = drawn(stack, "documents")
    label = batch.aims["next"].value
    assert 0.3 < label.float().mean() < 0.95
    words = batch.views["passages"].streams["text"]
    segment = words.content["segment"]
    assert all({0, 1} == set(segment[part(words, n)].tolist()) for n in range(len(label)))
