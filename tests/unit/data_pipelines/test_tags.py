"""Object tags: from boxes, from regions; a third stream that is masked, predicted and doubted."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.tags import Tags
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mtl, tag_contrast, tagged
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import RecipeError, from_yaml
from crossloom.training.run import RECIPE, make_model, make_stack
from crossloom.units import BadSample, Passage, keyed_rng

STREAMS = ("text", "tags", "image")


def members(content, **arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return {"json": json.dumps(content).encode(), "regions.npz": file.getvalue()}


CAPTION = {"texts": {"en": ["A dog and a ball."]}}


def test_tags_are_the_labels_of_boxes_each_once():
    boxes = [{"label": x, "box": [0, 0, 1, 1]} for x in ("dog", "ball", "dog", "")]
    sample, labels = Texts(tags=Tags()).read(members({**CAPTION, "boxes": boxes}), 0, keyed_rng(0))
    assert sample["tags"] == (Passage("en", "dog ball"),)
    assert sample["text"][0].text == labels["text"] == "A dog and a ball."
    assert "tags" not in Texts().read(members({**CAPTION, "boxes": boxes}), 0, keyed_rng(0))[0]


def test_tags_of_questions_from_a_list():
    asked = {"text": {"en": "What is it?"}, "answers": {"dog": 1.0}}
    content = {"questions": [asked], "seen": ["Hund", "Ball"]}
    reader = Questions(tags=Tags(of="seen", language="de"))
    sample, _ = reader.read(members(content), 0, keyed_rng(0))
    assert sample["tags"] == (Passage("de", "Hund Ball"),)


@pytest.mark.parametrize("form", ["labels", "probabilities"])
def test_tags_are_the_named_classes_of_regions(tmp_path, form):
    (tmp_path / "names.txt").write_text("background\ndog\nball\n")
    tags = Tags(of="regions.npz", names=str(tmp_path / "names.txt"))
    labels = np.array([2, 0, 1, 2])
    arrays = {"labels": labels}
    if form == "probabilities":  # background is likeliest everywhere, and never taken
        labels = np.array([2, 1, 1, 2])
        chance = 0.3 * np.eye(3)[labels]
        chance[:, 0] = 0.6
        arrays = {"probabilities": chance}
    sample, _ = Texts(tags=tags).read(members(CAPTION, **arrays), 0, keyed_rng(0))
    assert sample["tags"] == (Passage("en", "ball dog"),)


@pytest.mark.parametrize(
    ("content", "arrays", "kind"),
    [({}, {}, "no tags"), ({"boxes": [{"label": " "}]}, {}, "no tags"),
     (None, {"labels": np.array([0])}, "no tags"), (None, {"labels": np.array([7])}, "wrong shape"),
     (None, {"features": np.zeros(1)}, "missing member")],
)  # fmt: skip
def test_samples_without_tags_are_bad(tmp_path, content, arrays, kind):
    (tmp_path / "names.txt").write_text("background\ndog\n")
    regions = Tags(of="regions.npz", names=str(tmp_path / "names.txt"))
    reader = Texts(tags=regions if content is None else Tags())
    with pytest.raises(BadSample) as raised:
        reader.read(members({**CAPTION, **(content or {})}, **arrays), 0, keyed_rng(0))
    assert raised.value.kind == kind


def test_regions_need_names(tmp_path):
    with pytest.raises(ValueError, match="need `names`"):
        Tags(of="regions.npz")
    reader = Texts(tags=Tags(of="regions.npz", names=str(tmp_path / "none.txt")))
    with pytest.raises(ValueError, match=r"none.txt: class names cannot be read"):
        reader.read(members(CAPTION, labels=np.array([1])), 0, keyed_rng(0))


@pytest.fixture
def recipe(world):
    """Words, tags and regions in one stack of layers; tags doubted a quarter of the time."""
    base = tiny_recipe(world)
    text = replace(base.modalities["text"], segments=2)
    view = tagged(mismatch=("tags", "text"))
    return replace(
        base,
        modalities={
            "text": text,
            "tags": replace(text, field="tags", segment=1),
            "image": base.modalities["image"],
        },
        tied={"tags": "text"},
        plan=single_stream(STREAMS, layers=2, width=32, heads=2, dropout=0.0),
        objectives={
            "words": mtl(view),
            "names": mtl(view, stream="tags", shares="words"),
            "tags": replace(tag_contrast(view), pool="mean"),
        },
        mixture={
            "captions": replace(
                base.mixture["captions"],
                reader=Texts(languages=("en",), tags=Tags(of="regions.npz", names="classes.txt")),
                objectives=("words", "names", "tags"),
            )
        },
    )


def test_a_third_stream_of_tags(recipe):
    located = recipe.located()
    model = make_model(located)
    assert set(model.embed) == {"text", "image"}
    assert set(dict(model.heads["names"].named_parameters())) == {"bias"}
    batch = make_stack(located).micro(0).to("cpu")
    streams = batch.views["tagged"].streams
    assert set(streams["text"].content["segment"].tolist()) == {0}
    assert set(streams["tags"].content["segment"].tolist()) == {1}
    names = (located.mixture["captions"].reader.tags.names, "classes.txt")
    assert names[0].endswith(names[1])
    known = located.modalities["text"].vocab
    aim = batch.aims["names"]
    said = {known.pieces[i] for i in aim.value.tolist()}
    assert said
    words = set("".join(Path(names[0]).read_text("utf-8").split()))
    assert set("".join(said)) <= words | {"▁"}
    # one head: what it learns from the tags alone changes what it says of words
    model(batch)["names"]["loss"].backward()
    assert model.heads["words"].transform[0].weight.grad.abs().sum() > 0
    # and the same numbers as a head of the tags' own with the same weights
    own = {**located.objectives, "names": mtl(tagged(mismatch=("tags", "text")), stream="tags")}
    other = make_model(replace(located, objectives=own))
    state = dict(model.state_dict())
    state |= {
        k.replace("words", "names"): v for k, v in state.items() if k.startswith("heads.words.t")
    }
    other.load_state_dict(state)
    torch.testing.assert_close(
        other(batch)["names"]["loss"], model(batch)["names"]["loss"], atol=1e-5, rtol=1e-5
    )


def test_it_trains_and_comes_back(recipe, tmp_path):
    train(replace(recipe, steps=60, log_every=20), tmp_path, start("cpu"))
    lines = read_journal(tmp_path / "metrics.jsonl")
    for name in ("words", "names"):
        assert lines[-1][f"{name}/loss"] < lines[0][f"{name}/loss"]
    assert "tags/loss" in lines[-1]
    assert from_yaml(tmp_path / RECIPE).objectives == recipe.objectives


def test_ties_may_differ_in_few_things_only(recipe):
    tags = replace(recipe.modalities["tags"], limit=12)
    wrong = replace(recipe, modalities={**recipe.modalities, "tags": tags})
    with pytest.raises(RecipeError, match="may differ in `field`"):
        make_model(wrong.located())
    with pytest.raises(ValueError, match="segment is 2"):
        replace(tags, segment=2)
