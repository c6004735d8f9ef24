"""Words that refer to regions: by names of classes, labels of boxes, whole expressions."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from crossloom.data_pipelines.annotated import Questions, Refers
from crossloom.data_pipelines.links import Links
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.tags import Tags
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import from_dict, to_dict
from crossloom.units import BadSample, Passage, keyed_rng

#: Regions in pixels of an image half as large as the json's.
BOXES = np.array([[0, 0, 10, 10], [20, 0, 40, 20], [20, 20, 40, 40], [0, 0, 11, 10]], np.float32)
SIZE = {"width": 200, "height": 100}


def members(content, **arrays):
    file = io.BytesIO()
    given = {"boxes": BOXES, "size": np.array([100, 50])} | arrays
    np.savez(file, **{k: v for k, v in given.items() if v is not None})
    return {"json": json.dumps({"size": SIZE, **content}).encode(), "regions.npz": file.getvalue()}


def linked(reader, content, item=0, **arrays):
    (passage,) = reader.read(members(content, **arrays), item, keyed_rng(0))[0]["text"]
    return sorted((passage.text[a:b], region) for a, b, region in passage.refers)


def caption(text, **content):
    return {"texts": {"en": [text]}, **content}


@pytest.fixture
def classes(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("background\ncar\nred car\ndog\n")
    return Links(of="regions.npz", names=str(file))


def test_names_of_the_detectors_classes(classes):
    content = caption("Dog, hot-dog and dogs: a Red Car beside a car.")
    found = linked(Texts(links=classes), content, labels=np.array([3, 2, 1, 3]))
    # the first region of a name; whole words; the longer name wins where both fit
    assert [x for x in found if x[0].lower() == "dog"] == [("Dog", 0), ("dog", 0)]
    passage = Texts(links=classes).read(
        members(content, labels=np.array([3, 2, 1, 3])), 0, keyed_rng(0)
    )[0]["text"][0]
    inside = [r for r in passage.refers if passage.text[r[0] : r[1]].lower().endswith("car")]
    assert [(passage.text[a:b], n) for a, b, n in inside] == [
        ("Car", 2), ("car", 2), ("Red Car", 1)
    ]  # fmt: skip
    chance = np.eye(4)[[3, 0, 2, 1]] * 0.5 + np.array([0.4, 0, 0.1, 0])
    assert ("red car", 1) in linked(
        Texts(links=classes), caption("a red car"), probabilities=chance
    )


def test_background_and_what_is_not_named_link_nothing(classes):
    background = np.zeros(4, np.int64)
    assert linked(Texts(links=classes), caption("background car"), labels=background) == []
    assert linked(Texts(links=classes), caption("a cat"), labels=np.array([1, 2, 3, 3])) == []


def test_labels_of_boxes_in_pixels_of_another_size():
    boxes = [
        {"label": "dog", "box": [42, 2, 78, 40]},  # half as large: region 1
        {"label": "cat", "box": [0, 0, 22, 20]},  # exactly region 3, near region 0
        {"label": "sun", "box": [150, 60, 190, 90]},  # no region there
    ]
    content = caption("A dog and a cat in the sun.", boxes=boxes)
    assert linked(Texts(links=Links()), content) == [("cat", 3), ("dog", 1)]
    strict = Texts(links=Links(overlap=0.95))
    assert linked(strict, content) == [("cat", 3)]
    assert linked(Texts(links=Links()), caption("A dog.")) == []
    asked = {"questions": [{"text": {"en": "Is the dog wet?"}, "answers": {"yes": 1}}]}
    assert linked(Questions(links=Links()), {**asked, "boxes": boxes}) == [("dog", 1)]
    none = np.zeros((0, 4), np.float32)
    assert linked(Texts(links=Links()), content, boxes=none) == []


def test_a_whole_expression_refers_to_its_box():
    refers = [{"text": {"en": "lady in blue"}, "box": box} for box in
              ([40, 40, 80, 80], [40, 0, 200, 100])]  # fmt: skip
    content = {"refers": refers}
    assert linked(Refers(links=Links()), content) == [("lady in blue", 2)]
    assert linked(Refers(links=Links()), content, item=1) == []
    # the box is what is asked for where nothing is linked
    assert linked(Refers(), content) == []


def test_names_lie_in_the_recipes_folder(world):
    recipe = tiny_recipe(world)
    links = Links(of="regions.npz", names="classes.txt")
    captions = replace(recipe.mixture["captions"], reader=Texts(links=links))
    located = replace(recipe, mixture={**recipe.mixture, "captions": captions}).located()
    assert located.mixture["captions"].reader.links.names == str(world / "classes.txt")
    assert from_dict(to_dict(located)) == located


@pytest.mark.parametrize("missing", ["boxes", "size"])
def test_regions_without_boxes_are_bad(missing):
    content = {"refers": [{"text": {"en": "it"}, "box": [0, 0, 1, 1]}]}
    with pytest.raises(BadSample, match="no boxes, or no size") as raised:
        linked(Refers(links=Links()), content, **{missing: None})
    assert raised.value.kind == "missing member"


@pytest.mark.parametrize(
    ("given", "words"),
    [({"of": "regions.npz"}, "need `names`"), ({"names": "x.txt"}, "need `names`"),
     ({"overlap": 0}, "overlap is 0"), ({"overlap": 1.5}, "overlap is 1.5")],
)  # fmt: skip
def test_settings_that_make_no_sense(given, words):
    with pytest.raises(ValueError, match=words):
        Links(**given)


def test_answers_as_a_text_of_their_own():
    answers = {"grey": 0.3, "dark grey": 0.9}
    content = {"questions": [{"text": {"en": "What colour?"}, "answers": answers}]}
    sample, labels = Questions(answer="tags").read(members(content), 0, keyed_rng(0))
    assert sample["tags"] == (Passage("en", "dark grey"),)
    assert sample["text"] == (Passage("en", "What colour?"),)
    assert labels["answers"] == answers
    unanswered = {"questions": [{"text": {"en": "What colour?"}}]}
    with pytest.raises(BadSample, match="no 'answers'"):
        Questions(answer="tags", unanswered=True).read(members(unanswered), 0, keyed_rng(0))


def test_answers_and_tags_are_not_one_text():
    with pytest.raises(ValueError, match="leave one of them out"):
        Questions(answer="tags", tags=Tags())
