"""Negatives that move nearer, and words drawn near a sentence: by hand, written out, over a run."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.data_pipelines.read import Parallel
from crossloom.modalities.modality import Target
from crossloom.models.presets import single_stream
from crossloom.objectives.contrast import contrast
from crossloom.objectives.crosslingual import sctl, wctl
from crossloom.objectives.hard import WINDOW, Confidence, draw_some, harden
from crossloom.objectives.presets import itc, tlm
from crossloom.objectives.words import Words, WordsHead
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component
from crossloom.training.run import make_model, make_stack

PAIR = ("text", "second")


def units(n, dim, seed):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_negative_moves_by_the_ratio_of_distances():
    # angles 60 and 180 degrees: distances 1 and 2, half the way at power 1
    ask, own = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, math.sqrt(0.75)])
    others = torch.stack([own, torch.tensor([-1.0, 0.0]), torch.tensor([0.8, 0.6])])
    cosine, first = ask @ others.T, torch.tensor([0])
    moved = harden(cosine, first, torch.tensor(1.0))
    # q + (n - q) / 2 is the origin; the nearer one and the own one stay
    torch.testing.assert_close(moved, torch.tensor([[0.5, 0.0, 0.8]]))
    torch.testing.assert_close(harden(cosine, first, torch.tensor(0.0)), cosine)
    # half the power: a rate of 2 ** -0.5
    moved = harden(cosine, first, torch.tensor(0.5))
    assert moved[0, 1].item() == pytest.approx(1 - 2 * 2**-0.5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.99))
def test_the_loss_is_that_of_the_moved_vectors(seed, power):
    n, scale = 5, torch.tensor(4.0)
    a, b = units(n, 3, seed), units(n, 3, seed + 1)
    sample = torch.tensor([1, 2, 2, 3, 4])
    weight = torch.tensor([1.0, 1, 1, 0, 1])
    expected = 0.0
    for ask, told in ((a, b), (b, a)):
        for i in range(n):
            near = (ask[i] - told[i]).norm()
            logits = [scale * ask[i] @ told[i]]
            for j in range(n):
                if j == i or sample[j] == sample[i] or weight[j] == 0:
                    continue
                far = (ask[i] - told[j]).norm()
                rate = (near / far) ** power if far > near else 1.0
                moved = ask[i] + rate * (told[j] - ask[i])
                logits.append(scale * ask[i] @ moved)
                # never past the own one
                assert logits[-1] <= logits[0] + 1e-4 or far <= near
            logits = torch.stack(logits)
            expected += float(weight[i] * (logits.logsumexp(0) - logits[0]) / 2)
    out = contrast(a, b, sample, weight, scale, None, power=torch.tensor(power))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    pieces = contrast(a, b, sample, weight, scale, None, at_once=2 * n, power=torch.tensor(power))
    torch.testing.assert_close(pieces["loss"], out["loss"])


def test_harder_negatives_cost_more_and_the_rate_has_no_gradient():
    a, b = units(6, 8, 0).requires_grad_(), units(6, 8, 1)
    sample, weight, scale = torch.arange(1, 7), torch.ones(6), torch.tensor(5.0)
    losses = [
        contrast(a, b, sample, weight, scale, None, power=torch.tensor(p))["loss"]
        for p in (0.0, 0.5, 0.9)
    ]
    assert losses[0] < losses[1] < losses[2]
    cosine, own = (a @ b.T).detach().requires_grad_(), torch.arange(6)
    moved = harden(cosine, own, torch.tensor(0.7))
    moved.sum().backward()
    with torch.no_grad():
        rate = (1 - moved) / (1 - cosine)
    torch.testing.assert_close(cosine.grad, rate)


def test_confidence_is_the_mean_of_the_latest_steps():
    confidence, seen = Confidence(), []
    for step in range(WINDOW + 7):
        loss, weight = 0.01 * step, torch.tensor([1.0, 1.0, 0.0])
        confidence.see(torch.tensor(2 * loss), weight)
        confidence.settle()
        seen.append(math.exp(-loss))
        if step in (0, 40, WINDOW + 6):
            expected = sum(seen[-WINDOW:]) / WINDOW  # steps that have not been count as none
            assert confidence.mean().item() == pytest.approx(expected, rel=1e-5)
        # a step in which nothing is scored changes nothing
        confidence.see(torch.tensor(0.0), torch.zeros(2))
        confidence.settle()
        confidence.settle()
    assert confidence.mean().item() == pytest.approx(expected, rel=1e-5)


def test_drawing_many_is_without_repeats_and_by_chance():
    torch.manual_seed(0)
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0]).repeat(4000, 1)
    barred = torch.tensor([False, False, False, False, True]).repeat(4000, 1)
    drawn = draw_some(scores, barred, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert not (drawn == 4).any()
    first = torch.bincount(drawn[:, 0], minlength=4) / 4000
    torch.testing.assert_close(first, scores[0, :4].softmax(0), atol=0.03, rtol=0)
    second = Counter(drawn[drawn[:, 0] == 0][:, 1].tolist())
    share = torch.tensor([second[n] for n in (1, 2, 3)]) / sum(second.values())
    torch.testing.assert_close(share, scores[0, 1:4].softmax(0), atol=0.03, rtol=0)
    assert draw_some(scores[:1], barred[:1], 5, drawn=False).tolist() == [[0, 1, 2, 3, 4]]


class Table(torch.nn.Module):
    """An embedder with a table of words."""

    def __init__(self, rows):
        super().__init__()
        self.weight = torch.nn.Parameter(rows)

    def tied(self, target):
        return self.weight


def words(rows, states, values, index, weight, **spec):
    """The head's sums for sentences of one unit each."""
    view = sentences(len(states))
    head = WordsHead(Words(view=wctl().view, **spec), states.shape[1],
                     Target(dim=len(rows), form="index", barred=(0,)))  # fmt: skip
    head.eval()
    aim = AimBatch(index=torch.tensor(index), value=torch.tensor(values),
                   weight=torch.tensor(weight))  # fmt: skip
    table = Table(rows)
    out = head(Encoded(view, {"text": states}, {"text": table}), aim)
    return out, table


def sentences(n):
    stream = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), np.ones(n, np.int64))
    return ViewBatch(streams={"text": stream}).to("cpu")


@pytest.mark.parametrize("at_once", [2**25, 12])
def test_words_are_told_from_the_nearest_that_are_not_of_the_sentence(monkeypatch, at_once):
    monkeypatch.setattr("crossloom.objectives.words.LOGITS_AT_ONCE", at_once)
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    states = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    bags = {0: [3, 5], 1: [2], 2: [8, 1, 4]}
    slots = [(i, w) for i, bag in bags.items() for w in bag] + [(0, 0)]
    weight = [1.0] * 6 + [0.0]
    expected, near = 0.0, {}
    cosine = F.normalize(states, dim=1) @ F.normalize(rows, dim=1).T / 0.2
    for i, bag in bags.items():
        others = [w for w in range(1, 9) if w not in bag]
        near[i] = [w for w in cosine[i].argsort(descending=True).tolist() if w in others][:3]
        for word in bag:
            logits = torch.stack([cosine[i, word], *(cosine[i, w] for w in near[i])])
            expected = expected + logits.logsumexp(0) - logits[0]
    out, table = words(rows, states, [w for _, w in slots], [i for i, _ in slots], weight,
                       negatives=3, temperature=0.2)  # fmt: skip
    torch.testing.assert_close(out["loss"], expected)
    (wanted,) = torch.autograd.grad(expected, states)
    out["loss"].backward()
    torch.testing.assert_close(states.grad, wanted, atol=1e-5, rtol=1e-4)
    touched = {w for bag in bags.values() for w in bag} | {
        w for some in near.values() for w in some
    }
    assert set(table.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == touched


def test_a_vocabulary_that_runs_out_of_negatives():
    rows = torch.eye(4)
    states = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    # words 1 and 2 are its own, 0 is barred: 3 alone is left of the 4 asked for
    out, _ = words(rows, states, [1, 2], [0, 0], [1.0, 1.0], negatives=4, temperature=1.0)
    expected = 2 * math.log1p(math.exp(-(0.5**0.5)))
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert out["correct"].item() == 2


def recipe(world):
    base = tiny_recipe(world)
    text = base.modalities["text"]
    return replace(
        base,
        modalities={"text": text, "second": replace(text, field="second")},
        tied={"second": "text"},
        plan=single_stream(PAIR, layers=2, width=32, heads=2, dropout=0.0),
        objectives={"tlm": tlm(), "words": wctl(negatives=64), "sentences": sctl(dim=32)},
        mixture={
            "joint": Component(shards="train-*.tar", reader=Parallel(),
                               objectives=("tlm", "words")),
            "apart": Component(shards="train-*.tar", reader=Parallel(apart=True),
                               objectives=("sentences",)),
        },
        workers=0,
    ).located()  # fmt: skip


def test_the_words_of_both_sentences_hidden_or_not_are_aims(world):
    made = recipe(world)
    stack = make_stack(made)
    number = next(n for n in range(20) if stack.places(n)[0] == "joint")
    batch = stack.micro(number)
    source = stack.parts["joint"].source
    aim, vocab = batch.aims["words"], made.modalities["text"].vocab
    for place, where in enumerate(stack.places(number)[1]):
        clean = source.example(where, made.modalities, frozenset(["text"]), made.seed)
        bag = set(clean.units["text"].content["token"].tolist()) - {vocab.begin, vocab.end}
        assert sorted(bag) == aim.value[aim.index == place].tolist()
    assert batch.views["tlm"].streams["text"].hidden.any()
    model = make_model(made)
    assert list(model.asked) == ["tlm", "sentences"]  # one pass for TLM and words
    assert not [n for n, _ in model.named_parameters() if "heads.words" in n]
    assert [n for n, _ in model.named_parameters() if "heads.sentences" in n] == []
    # every shape is known without a look at a value
    confidence = Confidence().to("meta")
    confidence.see(torch.zeros((), device="meta"), torch.zeros(2, device="meta"))
    confidence.settle()
    head = model.heads["words"].to("meta")
    encoded = model.to("meta").encode(batch.to("meta").views["tlm"])
    head(encoded, batch.to("meta").aims["words"])["loss"].backward()


def test_what_does_not_fit_is_refused():
    for changes in ({"form": "sigmoid"}, {"cosine": False}, {"queue": 8}, {"harden": 1.0}):
        with pytest.raises(ValueError, match="harden: 0 to below 1"):
            replace(itc(), **{"harden": 0.5, **changes})
    with pytest.raises(ValueError, match="at least 1"):
        wctl(negatives=0)
    with pytest.raises(ValueError, match="does not show"):
        replace(wctl(), stream="image").check({"text": None, "image": None})
