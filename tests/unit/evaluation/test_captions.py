"""Captioning: scores by hand and as published, and sentences from a model trained a little."""

import json
import math
from dataclasses import replace

import pytest
import torch

from crossloom.data_pipelines.shards import open_shards
from crossloom.evaluation.captions import bleu, cider, words
from crossloom.evaluation.compare import compare, languages
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.say import opening
from crossloom.models.generation import Search
from crossloom.models.presets import encoder_decoder
from crossloom.objectives.presets import ic, ida, mlm
from crossloom.run import load
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.run import load_weights, make_model, open_run, start_from
from crossloom.training.start import start as begin
from crossloom.units import make_units

REFERENCES = [
    ["a red circle is above a blue square", "the red circle lies over the square"],
    ["two green triangles", "there are two green triangles here"],
    ["a small yellow star", "a star that is yellow and small", "one star"],
    ["a red square"],
]
SAID = ["a red circle above the blue square", "two triangles two triangles",
        "a small yellow star", "blue"]  # fmt: skip


def test_cider_as_the_published_scorer_gives_it():
    """Values of pycocoevalcap 1.2, CiderScorer(n=4, sigma=6.0), on the same sentences."""
    expected = [2.7287850087648255, 0.8446154330773719, 4.210484344826514, 0.0]
    assert cider(SAID, REFERENCES) == pytest.approx(expected, rel=1e-12)


def test_cider_by_hand():
    """Two pictures of one word each: each word is in half of them, ln 2; only unigrams exist."""
    assert cider(["cat", "cat"], [["cat"], ["dog"]]) == pytest.approx([10 / 4, 0])
    # one word more: the weights of (cat, tree), each ln 2 (a word unseen counts as seen once),
    # are at 45 degrees; one word off costs e^(-1/72)
    longer = 10 / 4 * math.cos(math.pi / 4) * math.exp(-1 / 72)
    # 'tree' is in no reference and weighs ln 2 - ln 1
    assert cider(["cat tree", ""], [["cat"], ["dog"]]) == pytest.approx([longer, 0])


def test_a_word_that_all_pictures_have_says_nothing():
    assert cider(["cat", "cat"], [["cat"], ["cat"]]) == [0, 0]


def test_bleu_by_hand():
    """One sentence: all 7 words are in a reference, 3 of 6 pairs; one reference is as long."""
    found = bleu(SAID[:1], REFERENCES[:1])
    assert found["bleu1"] == pytest.approx(7 / 7)
    # 'a red', 'red circle' and 'blue square'
    assert found["bleu2"] == pytest.approx(math.sqrt(1 * 3 / 6))
    assert "nrefs:2" in found["bleu_signature"]


def test_bleu_takes_as_many_references_as_there_are():
    found = bleu(["a red square", "one star"], [["a red square"], ["no", "one star"]])
    assert found["bleu2"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two men, one's hat is red.", ["two", "men", "one's", "hat", "is", "red"]),
        ("赤い丸。", ["赤", "い", "丸"]),
        ("लाल वृत्त है।", ["लाल", "वृत्त", "है"]),
        ("l’été «rouge»", ["l'été", "rouge"]),
        ("...", []),
        ("赤-青. 3.5円", ["赤", "青", "3.5", "円"]),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A black-and-white cat, well-lit.", "a black-and-white cat well-lit"),
        ("It costs $2.50 & 50% off, #1 rated.", "it costs $ 2.50 & 50 % off # 1 rated"),
        ("1,000 people; 10:30 on 1/2 and/or 1-2", "1,000 people 10:30 on 1/2 and/or 1-2"),
        ("red,blue and green.yellow a--b 5- a;b", "red blue and green.yellow a b 5 a b"),
        ('a man said "hello" - ok -- fine... done', "a man said hello ok fine done"),
    ],
)
def test_words_as_cocos_tokeniser_gives_them(text, expected):
    """Of stanford-corenlp 3.4.1 (pycocoevalcap 1.2), its list of punctuation left out."""
    assert " ".join(words(text)) == expected


def test_an_opening_is_the_first_unit_alone():
    import numpy as np

    units = make_units({"token": np.array([0, 7, 8])}, targets={"token": np.array([0, 7, 8])})
    assert opening(units).content["token"].tolist() == [0]
    assert len(opening(units, 2)) == 2


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A run that has seen pictures and words, and says none."""
    recipe = tiny_recipe(world)
    captions = replace(recipe.mixture["captions"], objectives=("mlm",))
    recipe = replace(
        recipe,
        objectives={"mlm": mlm(("text", "image"))},
        mixture={"captions": captions},
        steps=2,
    )
    out = tmp_path_factory.mktemp("base")
    train(recipe, out, start("cpu"))
    return out


@pytest.mark.parametrize("form", ["next", "mask"])
def test_a_model_is_tuned_to_tell_of_pictures(base, tmp_path, form):
    settings = [f"form={form}", "beams=2", "longest=12", "steps=40", "examples=16",
                "optim.rate=5e-3", "micro=1"]  # fmt: skip
    finetune("captioning", base, tmp_path, start("cpu"), settings)
    result = evaluate("captioning", tmp_path, start("cpu"))
    assert result.metrics["images"] == 20
    records = result.records
    assert len({r["key"] for r in records}) == 20
    assert any(len(r["predicted"].split()) > 2 for r in records)
    # after 40 steps it knows how captions go, if not what is seen
    assert result.metrics["bleu1"] > 0.2
    assert result.metrics["cider"] == pytest.approx(sum(r["score"] for r in records) / 20)
    assert all(r["predicted"] not in r["references"] or r["score"] > 0 for r in records)
    rows = json.loads((tmp_path / "results" / "captioning.en.submission.json").read_text())
    assert [row["caption"] for row in rows] == [r["predicted"] for r in records]
    assert {frozenset(row) for row in rows} == {frozenset({"image_id", "caption"})}


def test_several_languages_are_told_and_scored_apart(base, tmp_path):
    settings = ["languages=[en, de]", "beams=1", "steps=1", "longest=5"]
    finetune("captioning", base, tmp_path, start("cpu"), settings)
    result = evaluate("captioning", tmp_path, start("cpu"))
    assert result.metrics["images"] == 40
    each = result.metrics["languages"]
    assert set(each) == {"en", "de"}
    assert each["de"]["images"] == 20
    assert result.metrics["by_language"] == {code: each[code]["cider"] for code in each}
    assert {r["language"] for r in result.records} == {"en", "de"}
    assert (tmp_path / "results" / "captioning.de.submission.json").is_file()
    # pages take what a task tells
    scores = {s.figure: s.mean for s in compare([tmp_path])}
    assert scores == {f: result.metrics[f] for f in ("cider", "bleu4")}
    (row,) = languages([tmp_path])
    assert row.scores == result.metrics["by_language"]


def test_a_head_that_says_captions_is_kept(world, tmp_path):
    """Encoder-decoder, its objective called otherwise: tuning starts from its head."""
    recipe = tiny_recipe(world)
    recipe = replace(
        recipe,
        plan=encoder_decoder("image", "text", layers=1, width=16, heads=2),
        objectives={"ic": ic()},
        mixture={"captions": replace(recipe.mixture["captions"], objectives=("ic",))},
        steps=1,
    )
    train(recipe, tmp_path / "run", start("cpu"))
    task, _ = make_task("captioning", [])
    tuned = task.recipe(open_run(tmp_path / "run"), str(tmp_path / "run"))
    assert set(tuned.objectives) == {"ic"}
    fresh, unused = start_from(make_model(tuned), load_weights(tmp_path / "run")[0])
    assert (fresh, unused) == ([], [])
    # and without tuning it can be asked at once
    records = evaluate("captioning", tmp_path / "run", start("cpu"), ["longest=3"]).records
    loaded = load(tmp_path / "run")
    shard = open_shards("test-*.tar", world)[0]
    pictures = [shard.read(n)["regions.npz"] for n in range(2)]
    said = loaded.say("ic", Search(beams=5, best=2, longest=3), image=pictures)
    assert [s[0].text for s in said] == [r["predicted"] for r in records[:2]]
    assert [s[0].score for s in said] == pytest.approx(
        [r["log_probability"] for r in records[:2]], rel=1e-4
    )
    assert all(len(s) == 2 and s[0].score >= s[1].score for s in said)
    with pytest.raises(ValueError, match="'ic' needs values for image"):
        loaded.say("ic", text=["a"])
    with pytest.raises(ValueError, match="no objective 'itm' says anything"):
        loaded.say("itm", image=pictures)


@pytest.mark.parametrize("form", ["next", "mask"])
def test_captions_are_said_by_the_head_of_masked_words(base, form):
    task, _ = make_task("captioning", [f"form={form}"])
    tuned = task.recipe(open_run(base), str(base))
    (said,) = tuned.objectives.values()
    assert said.view.causal == ("text",)
    model = make_model(tuned)
    assert not begin(model, tuned).fresh
    before = load_weights(base)[0]
    name = "heads.mlm.transform.0.weight"
    assert torch.equal(model.state_dict()[name], before[name])
    # without a transform there, there is none here
    plain = replace(mlm(("text", "image")), transform=False)
    words = replace(open_run(base), objectives={"mlm": plain})
    assert task.objectives(words)["mlm"].transform is False
    # masked words that see the picture, rather than those that do not
    both = {"alone": mlm(("text",)), "seen": mlm(("text", "image"))}
    read = {"c": replace(words.mixture["captions"], objectives=tuple(both))}
    assert list(task.objectives(replace(words, objectives=both, mixture=read))) == ["seen"]


def test_what_says_no_captions_is_refused(base, world, tmp_path):
    with pytest.raises(ValueError, match="no objective says 'text' from 'image' by form=next"):
        evaluate("captioning", base, start("cpu"))


def test_a_view_that_shows_the_caption_is_refused(world):
    """Denoising says the caption from its corrupted form: asked for captions, it would read it."""
    recipe = tiny_recipe(world).located()
    recipe = replace(
        recipe,
        modalities={**recipe.modalities, "target": replace(recipe.modalities["text"], field="x")},
        tied={"target": "text"},
        objectives={"ida": ida()},
        mixture={"c": replace(recipe.mixture["captions"], objectives=("ida",))},
    )
    task, _ = make_task("captioning", ["text=target"])
    with pytest.raises(ValueError, match="fine-tune captioning first"):
        task.evaluate(None, recipe)
    assert task.streams(recipe) == ("target", "image", "text")
    assert task.component(recipe).reader.copies == ("x",)
