"""Units that say which task is asked: where they stand, how they are embedded, who sets them."""

import json
from dataclasses import replace

import pytest
import torch

from crossloom.batch import Stream, ViewBatch
from crossloom.data_pipelines.annotated import Pairs, Refers
from crossloom.data_pipelines.source import visit
from crossloom.modalities.text import Text
from crossloom.testing import check_modality
from crossloom.units import BadSample, Passage, keyed_rng

RNG = keyed_rng("test")
WORDS = (Passage("en", "a red ball and a blue box"),)


@pytest.fixture(scope="module")
def text(world):
    return Text(vocabulary=str(world / "tokenizer.model"), segments=2, dropout=0.0, limit=40)


def test_the_task_stands_after_the_first_unit_and_moves_no_position(text):
    plain = text.decode({"text": WORDS}, RNG)
    tasks = replace(text, tasks=("vqa", "refcoco"))
    told = tasks.decode({"text": WORDS, "task": "refcoco"}, RNG)
    assert len(told) == len(plain) + 1
    assert told.content["task"].tolist() == [-1, 1] + [-1] * (len(plain) - 1)
    rest = [0, *range(2, len(told))]
    assert (told.content["token"][rest] == plain.content["token"]).all()
    assert (told.position[rest] == plain.position).all()
    assert (told.maskable[rest] == plain.maskable).all()
    assert not told.maskable[1]
    check_modality(tasks, {"text": WORDS, "task": "vqa"})
    # without a task nothing is added
    without = tasks.decode({"text": WORDS}, RNG)
    assert (without.content["token"] == plain.content["token"]).all()
    assert set(without.content["task"]) == {-1}


def test_the_task_counts_in_the_limit(text):
    long = (Passage("en", "a red ball and a blue box " * 9),)
    tasks = replace(text, tasks=("vqa",), limit=12)
    assert len(tasks.decode({"text": long, "task": "vqa"}, RNG)) == 12
    assert len(tasks.decode({"text": long}, RNG)) == 12


def test_an_unknown_task_is_a_bad_sample(text):
    with pytest.raises(BadSample, match="task 'gqa' is not in tasks: vqa"):
        replace(text, tasks=("vqa",)).decode({"text": WORDS, "task": "gqa"}, RNG)
    with pytest.raises(ValueError, match="tasks and filled"):
        replace(text, tasks=("vqa",), filled=True)


def test_its_vector_takes_the_place_of_word_position_and_type(text):
    """vilbert/vilbert.py, ``BertEmbeddings``: inserted before the norm."""
    units = replace(text, tasks=("vqa", "gqa")).decode({"text": WORDS, "task": "gqa"}, RNG)
    embed = replace(text, tasks=("vqa", "gqa")).embedder(16)
    none = torch.zeros(len(units), dtype=torch.bool)
    content = {k: torch.from_numpy(v) for k, v in units.content.items()}
    length = torch.tensor([len(units)])
    position = torch.from_numpy(units.position)
    stream = Stream.build(units.content, {}, units.position, none.numpy(), length.numpy())
    found = embed(_tensors(stream))
    expected = embed.token(content["token"]) + embed.position(position)
    expected = expected + embed.segment(content["segment"])
    expected[1] = embed.task.weight[1]
    assert torch.allclose(found, embed.norm(expected), atol=1e-6)


def _tensors(stream):
    return ViewBatch(streams={"text": stream}).to("cpu").streams["text"]


def test_a_reader_says_the_task_and_gives_the_first_of_two_pictures():
    pair = {"label": "true", "hypothesis": {"en": "two balls"}}
    members = {
        "json": json.dumps({"pairs": [pair]}).encode(),
        "0.regions.npz": b"one",
        "1.regions.npz": b"two",
    }
    sample, _ = visit(Pairs(task="nlvr2", two=True), members, 0, RNG)
    assert sample["task"] == "nlvr2"
    assert (sample["regions.npz"], sample["1.regions.npz"]) == (b"one", b"two")
    sample, _ = visit(Pairs(), members, 0, RNG)
    assert not {"task", "regions.npz"} & set(sample)
    assert Refers(task="refcoco").task == "refcoco"
