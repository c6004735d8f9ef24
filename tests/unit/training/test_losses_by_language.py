"""Losses by language: which slot is in which, their sums, and what a run reports."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.batch import AimBatch, fuse
from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.collate import Collator, Example
from crossloom.data_pipelines.read import Blocks, Texts
from crossloom.data_pipelines.summary import Listed
from crossloom.evaluation.report import _curves, _languages
from crossloom.modalities.lay import fill
from crossloom.modalities.text import Text
from crossloom.objectives.presets import mlm
from crossloom.objectives.reconstruct import decode_loss
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import Meters, read_journal
from crossloom.training.run import make_model, make_stack
from crossloom.units import Passage, keyed_rng

CPU = start("cpu")


@pytest.fixture
def text(world):
    return Text(vocabulary=str(world / "tokenizer.model"), limit=24, dropout=0.0)


def units_of(text, *passages):
    return text.decode({"text": tuple(Passage(*p) for p in passages)}, keyed_rng(0))


@pytest.mark.parametrize("restart", [False, True])
def test_units_know_where_each_passage_begins(text, restart):
    one = units_of(replace(text, restart=restart), ("en", "a red ball"), ("de", "ein roter Ball"))
    second = len(text.vocab.encode("a red ball")) + 2  # after <s> and </s>
    assert one.languages == (("en", 0), ("de", second))
    assert one.content["token"][second] == text.vocab.end  # </s> parts the passages
    assert fill(one, 24, 1).languages == one.languages
    loose = [text.loose({"text": (Passage("sw", "mpira " * n),)}, keyed_rng(0)) for n in (30, 9)]
    assert {u.languages for _, u in text.packed(loose)} == {(("sw", 0),)}


def batch_of(text, told, *samples):
    objective = mlm(("text",), rate=0.5) if told is None else mlm(("text",))
    collator = Collator({"text": text}, {"mlm": objective}, 0, told or ())
    examples = [
        Example(key=str(n), sample=str(n), epoch=0, units={"text": units_of(text, *p)}, labels={})
        for n, p in enumerate(samples)
    ]
    return collator, collator.batch(examples, ("mlm",), len(examples)), examples


def test_each_slot_is_in_the_language_of_its_passage(text):
    samples = [
        (("en", "a red ball on the left"), ("de", "ein roter Ball links")),
        (("zh", "红球"),),
        (("fr", "une balle rouge"),),  # not told apart
    ] * 8
    _, batch, examples = batch_of(text, ("de", "en", "zh"), *samples)
    aim = batch.aims["mlm"]
    start = batch.views["mlm"].streams["text"].start
    seen = set()
    for place, number in zip(aim.index, aim.language, strict=True):
        example = int(np.searchsorted(start, place, side="right")) - 1
        known = examples[example].units["text"].languages
        code = [c for c, begin in known if begin <= place - start[example]][-1]
        assert ("", "de", "en", "zh")[number] == ("" if code == "fr" else code)
        seen.add(int(number))
    assert seen == {0, 1, 2, 3}
    assert aim.languages == 3


def test_one_language_is_not_told_apart_and_blanks_are_in_none(text):
    _, alone, _ = batch_of(text, (), (("en", "a red ball"),))
    assert alone.aims["mlm"].language is None
    collator, batch, _ = batch_of(text, ("de", "en"), (("en", "a red ball on the left"),) * 1)
    blank = collator.batch([], ("mlm",), 1)
    both = fuse([batch, blank, batch], collator.of_units()).aims["mlm"]
    assert blank.aims["mlm"].language.tolist() == [0]
    expected = [*batch.aims["mlm"].language, 0, *batch.aims["mlm"].language]
    assert both.language.tolist() == expected
    assert both.languages == 2


@pytest.mark.parametrize("at_once", [1 << 20, 14])
@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "mse", "smooth_l1"])
def test_losses_of_slots_sum_to_the_loss_in_pieces_too(loss, at_once):
    torch.manual_seed(0)
    x, matrix, bias = torch.randn(9, 4), torch.randn(7, 4), torch.randn(7)
    weight = torch.rand(9)
    value = torch.randint(7, (9,)) if loss == "cross_entropy" else torch.rand(9, 7)
    out = decode_loss(x.requires_grad_(), matrix, bias, value, weight, loss, at_once)
    assert not out["each"].requires_grad
    torch.testing.assert_close(out["each"].sum(), out["loss"].detach())
    logits = F.linear(x, matrix, bias).detach()
    expected = {
        "cross_entropy": lambda: F.cross_entropy(logits, value, reduction="none"),
        "kl": lambda: (value * (value.log() - logits.log_softmax(1))).sum(1),
        "mse": lambda: (logits - value).pow(2).mean(1),
        "smooth_l1": lambda: F.smooth_l1_loss(logits, value, reduction="none").mean(1),
    }[loss]()
    torch.testing.assert_close(out["each"], expected * weight)


def test_sums_by_language_by_hand():
    aim = AimBatch(
        index=torch.arange(5), value=torch.zeros(5), weight=torch.tensor([1.0, 1, 1, 0.5, 0]),
        language=torch.tensor([2, 0, 2, 1, 0]), languages=3,
    )  # fmt: skip
    found = aim.by_language(torch.tensor([1.0, 2, 3, 4, 0]))["by_language"]
    assert found.tolist() == [[2, 1], [4, 0.5], [4, 2], [0, 0]]
    assert AimBatch(index=0, value=0, weight=torch.ones(1)).by_language(torch.ones(1)) == {}


def test_meters_give_means_and_perplexities_of_languages_that_were_met():
    meters = Meters(CPU, ("de", "en", "sw"), {"mlm"})
    table = torch.tensor([[9.0, 3], [4, 2], [3, 1], [0, 0]])
    for _ in range(2):
        meters.add({o: {"loss": torch.tensor(16.0), "by_language": table} for o in ("mlm", "mrc")},
                   {"mlm": 6, "mrc": 6})  # fmt: skip
    report = meters.report()
    assert report["mlm/loss"] == pytest.approx(16 / 6)
    assert report["mlm/loss/de"] == report["mrc/loss/de"] == 2
    assert report["mlm/perplexity/en"] == pytest.approx(math.exp(3))
    assert not {k for k in report if "sw" in k or k.startswith("mrc/perplexity")}


@pytest.mark.parametrize(
    ("reader", "spoken"),
    [
        (Texts(), {"en", "de"}),
        (Texts(unnamed="fr"), {"en", "de", "fr"}),
        (Texts(languages=("sw",)), {"sw"}),
        (Texts(of="statements"), {"zh"}),
        (Blocks(), {"en", "de"}),
        (Questions(), {"en", "de"}),
    ],
)
def test_readers_tell_the_languages_of_what_is_listed(reader, spoken):
    items = {"texts.en": 3, "texts.de": 1, "texts.": 2, "statements.zh": 1, "questions": 4}
    items |= {"further1024.texts.ja": 1}
    assert reader.spoken(Listed(4, items, {})) == spoken


def test_a_run_reports_losses_by_language(world, tmp_path):
    spoken = set(make_stack(tiny_recipe(world).located()).collator.languages)
    recipe = replace(tiny_recipe(world), steps=4, log_every=4, save_every=4)
    train(recipe, tmp_path / "run", CPU)
    journal = read_journal(tmp_path / "run" / "metrics.jsonl")
    line = journal[-1]
    for objective in ("mlm", "tlm"):
        found = _languages(journal, objective)
        assert len(found) >= 4
        assert set(found) <= spoken
        for language, loss in found.items():
            assert line[f"{objective}/perplexity/{language}"] == pytest.approx(math.exp(loss))
    assert not [k for k in line if k.startswith(("mrc/loss/", "itm/loss/", "mrfr/perplexity"))]
    (plot,) = (p for p in _curves(journal) if "Loss by language: tlm" in p)
    assert all(f">{language}<" in plot for language in _languages(journal, "tlm"))
    many = [{"step": 1, **{f"mlm/loss/l{n:02d}": float(n) for n in range(12)}, "mlm/loss": 5.0}]
    (plot,) = (p for p in _curves(many) if "highest of 12" in p)
    assert ">l02<" in plot
    assert ">l01<" not in plot


def test_the_whole_is_the_mean_of_the_parts(world):
    recipe = tiny_recipe(world).located()
    stack = make_stack(recipe)
    assert set(stack.collator.languages) > {"de", "en", "sw", "zh"}
    model = make_model(recipe)
    for number in range(6):
        batch = stack.micro(number).to("cpu")
        for name, sums in model(batch).items():
            if name in ("mlm", "tlm", "mrc", "mrfr"):
                table = sums["by_language"]
                torch.testing.assert_close(table[:, 0].sum(), sums["loss"].detach())
                assert table[:, 1].sum() == batch.counts[name]
            if name in ("mlm", "tlm"):
                assert table[0].tolist() == [0, 0]
