"""Questions with answers, and reasons, to choose from: counted, read, and linked to regions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from crossloom.data_pipelines.choices import Choices
from crossloom.data_pipelines.links import Links
from crossloom.data_pipelines.shards import Entry
from crossloom.data_pipelines.summary import one
from crossloom.data_pipelines.tokenizer import texts_of
from crossloom.units import BadSample, Passage, keyed_rng

FIRST = {
    "id": "q/0",
    "question": {"en": "Where is Riley ?"},
    "answers": {"en": ["At home .", "In a car .", "No .", "Yes ."]},
    "rationales": {"en": ["Reason 0 .", "Reason 1 .", "Casey waits .", "Reason 3 ."]},
    "refers": {
        "en": {
            "question": [[9, 14, 1]],
            "answers": [[], [[5, 8, 2]], [], []],
            "rationales": [[], [], [[0, 5, 0]], []],
        }
    },
    "answer": 1,
    "rationale": 2,
}
SECOND = {k: v for k, v in FIRST.items() if k != "refers"} | {"id": "q/1", "answer": 3}
BOXES = [{"label": x, "box": box} for x, box in (
    ("person", [0, 0, 4, 8]), ("person", [4, 0, 8, 8]), ("car", [0, 0, 8, 1]))]  # fmt: skip
CONTENT = {"choices": [FIRST, SECOND], "boxes": BOXES, "size": {"width": 8, "height": 8}}


def members(content=CONTENT):
    return {"json": json.dumps(content).encode()}


def read(reader, item, content=CONTENT, **others):
    return reader.read({**members(content), **others}, item, keyed_rng(0, item))


def words(sample):
    names = ("text", "choice1", "choice2", "choice3")
    return [tuple(p.text for p in sample[name]) for name in names]


def items(reader):
    entry = Entry("k", {}, {"choices": 2})
    assert reader.total(one(entry.items)) == reader.items(entry)
    return reader.items(entry)


def test_answers_and_reasons_are_read_in_the_datas_own_order():
    reader = Choices()
    assert items(reader) == 4
    sample, labels = read(reader, 0)
    assert words(sample) == [("Where is Riley ?", a) for a in FIRST["answers"]["en"]]
    assert (labels["what"], labels["choice"], labels["id"]) == ("answer", 1, "q/0")
    sample, labels = read(reader, 1)
    first = "Where is Riley ? In a car ."
    assert words(sample) == [(first, r) for r in FIRST["rationales"]["en"]]
    assert (labels["what"], labels["choice"], labels["after"]) == ("rationale", 2, 1)
    # the second question, whose right answer is another
    assert words(read(reader, 3)[0])[0] == ("Where is Riley ? Yes .", "Reason 0 .")
    only = Choices(what=("rationale",))
    assert items(only) == 2
    assert words(read(only, 1)[0])[2] == ("Where is Riley ? Yes .", "Casey waits .")


def test_reasons_after_each_answer():
    reader = Choices(each=True, unanswered=True)
    assert items(reader) == 10
    firsts = [words(read(reader, n)[0])[0][0] for n in range(5)]
    assert firsts[0] == "Where is Riley ?"
    assert firsts[1:] == [f"Where is Riley ? {a}" for a in FIRST["answers"]["en"]]
    labels = [read(reader, n)[1] for n in range(5, 10)]
    assert [x["after"] for x in labels] == [-1, 0, 1, 2, 3]
    assert {(x["id"], x["answer"]) for x in labels} == {("q/1", 3)}


def test_what_is_not_answered_is_read_when_asked_alone():
    hidden = {k: v for k, v in FIRST.items() if k not in ("answer", "rationale")}
    content = {**CONTENT, "choices": [hidden]}
    label = read(Choices(each=True, unanswered=True), 2, content)[1]
    assert (label["choice"], label["answer"], label["after"]) == (None, None, 1)
    for item in (0, 1):
        with pytest.raises(BadSample, match="is None, no number below 4"):
            read(Choices(), item, content)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return (tmp_path / "a.npz").read_bytes()


def test_names_refer_to_the_regions_of_their_boxes(tmp_path):
    # of a detector, in an order of its own and at twice the size; there is none like the car
    boxes = np.array([[8, 0, 16, 16], [6, 6, 8, 8], [0, 0, 9, 16]], np.float32)
    regions = npz(tmp_path, boxes=boxes, size=np.array([16, 16]), features=np.zeros((3, 2)))
    sample, _ = read(Choices(links=Links()), 1, **{"regions.npz": regions})
    question = Passage("en", "Where is Riley ? In a car .", refers=((9, 14, 0),))
    assert sample["choice2"] == (question, Passage("en", "Casey waits .", refers=((0, 5, 2),)))
    assert sample["text"] == (question, Passage("en", "Reason 0 ."))
    # the car of the answer is behind the question
    boxes[1] = [0, 0, 16, 2]
    regions = npz(tmp_path, boxes=boxes, size=np.array([16, 16]), features=np.zeros((3, 2)))
    sample, _ = read(Choices(links=Links()), 1, **{"regions.npz": regions})
    text = sample["text"][0]
    assert [(text.text[a:b], n) for a, b, n in text.refers] == [("Riley", 0), ("car", 1)]
    # numbers of boxes are no numbers of regions: unlinked, nothing is referred to
    assert read(Choices(), 0)[0]["text"][0].refers == ()
    fewer = {**CONTENT, "boxes": BOXES[:1]}
    with pytest.raises(BadSample, match="refer to a box that is not in 1"):
        read(Choices(links=Links()), 0, fewer, **{"regions.npz": regions})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"en": ["a", "b"]}}, "2 answers, not 4"),
        ({"answer": 4}, "'answer' is 4"),
        ({"answer": True}, "'answer' is True"),
        ({"question": {"en": " "}}, "choices.question"),
        ({"answers": {"en": ["a", "", "b", "c"]}}, "choices.answers"),
    ],
)
def test_choices_that_cannot_be_read(change, message):
    with pytest.raises(BadSample, match=message):
        read(Choices(), 0, {**CONTENT, "choices": [{**FIRST, **change}]})


def test_settings_that_cannot_be():
    for settings in ({"what": ()}, {"what": ("answer",) * 2}, {"count": 1}):
        with pytest.raises(ValueError, match="what is answer, rationale or both"):
            Choices(**settings)
    with pytest.raises(ValueError, match="set each"):
        Choices(unanswered=True)
    assert replace(Choices(what=("answer",)), unanswered=True).asked == (("answer", -1),)


def test_vocabularies_are_trained_on_all_that_is_said():
    said = [text for _, text in texts_of({"choices": [FIRST]})]
    assert said == [FIRST["question"]["en"], *FIRST["answers"]["en"], *FIRST["rationales"]["en"]]
