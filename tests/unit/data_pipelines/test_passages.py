"""Two passages of one sample, or of two: what is chosen, and whether they belong together."""

import json

import numpy as np
import pytest

from crossloom.data_pipelines.collate import exhibit
from crossloom.data_pipelines.read import Parallel
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.write import ShardWriter
from crossloom.objectives.match import Match
from crossloom.objectives.presets import itm, same_passages
from crossloom.objectives.view import Shown
from crossloom.testing.recipes import tiny_recipe
from crossloom.units import keyed_rng

TEXT = frozenset(("text",))


def own_statements(content):
    return {t for texts in content["statements"].values() for t in texts}


def visit(world, reader, count=40):
    """Examples as decoded from one micro-batch, and the json of each one's sample."""
    modalities = tiny_recipe(world).located().modalities
    source = Source("s", open_shards("train-*.tar", world), reader)
    places = source.places()[:count]
    found = [source.example(p, modalities, TEXT, 0, places) for p in places]
    contents = [
        json.loads(shard.read(number)["json"])
        for shard, number, _ in (source.locate(p) for p in places)
    ]
    return modalities["text"].vocab, found, contents


def second_passage(vocab, example):
    """The text between the double separator and the last."""
    ids = example.units["text"].content["token"].tolist()
    ends = [n for n, i in enumerate(ids) if i == vocab.end]
    return vocab.decode(ids[ends[1] + 1 : ends[2]])


def test_a_mismatched_second_passage_is_said_of_another_sample(world):
    vocab, found, contents = visit(world, Parallel(second="statements", mismatch=0.5))
    matched = [e.labels["matched"] for e in found]
    assert 0.25 < np.mean(matched) < 0.75
    said = [{vocab.decode(vocab.encode(t).tolist()) for t in own_statements(c)} for c in contents]
    foreign = 0
    for example, own in zip(found, said, strict=True):
        text = second_passage(vocab, example)
        if example.labels["matched"]:
            assert text in own
        else:
            assert any(text in other for other in said)
            foreign += text not in own
    assert foreign > 5  # a statement may happen to hold for both


def test_the_choice_of_the_other_passage_depends_on_the_key(world):
    reader = Parallel(second="statements", mismatch=1.0)
    first, again = (visit(world, reader, 12) for _ in range(2))
    for one, two in zip(first[1], again[1], strict=True):
        assert (one.units["text"].content["token"] == two.units["text"].content["token"]).all()
    assert not any(e.labels["matched"] for e in first[1])


def test_a_sample_alone_stays_matched(world):
    _, (alone,), _ = visit(world, Parallel(mismatch=1.0), 1)
    assert alone.labels["matched"] is True


def test_an_unreadable_other_sample_is_passed_over(tmp_path, world):
    texts = {"texts": {"en": ["a red star"], "de": ["ein roter Stern"]}}
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("good", {"json": texts})
        writer.write("bad", {"json": b"{"})
    source = Source("s", open_shards("train-*.tar", tmp_path), Parallel(mismatch=1.0))
    places = source.places()
    modalities = tiny_recipe(world).located().modalities
    good = source.example(places[0], modalities, TEXT, 0, places)
    assert good.labels["matched"] is True
    assert source.example(places[1], modalities, TEXT, 0, places).kind == "undecodable"


def test_match_takes_its_label_from_the_reader(world):
    _, found, _ = visit(world, Parallel(mismatch=0.5))
    objective = same_passages()
    modalities = tiny_recipe(world).located().modalities
    aims = [
        int(objective.aim(exhibit(e, objective.view, modalities, 0, found).shown).value[0])
        for e in found
    ]
    assert aims == [int(e.labels["matched"]) for e in found]
    assert 0 < sum(aims) < len(aims)


def test_a_reader_that_mismatches_nothing_is_named():
    shown = Shown(key="k", units={}, fate={}, matched=True, labels={})
    with pytest.raises(ValueError, match="needs a reader that mismatches"):
        same_passages().aim(shown)


def test_match_wants_one_way_to_mismatch(world):
    modalities = tiny_recipe(world).located().modalities
    same_passages().check(modalities)
    itm().check(modalities)
    for wrong in (
        Match(view=same_passages().view),
        Match(view=itm().view, passages=True),
    ):
        with pytest.raises(ValueError, match="passages"):
            wrong.check(modalities)


def test_parallel_reads_the_field_it_is_told(world):
    content = {"texts": {"en": ["t"], "de": ["T"]}, "statements": {"en": ["s"], "de": ["S"]}}
    members = {"json": json.dumps(content).encode()}
    sample, _ = Parallel(of="statements").read(members, 0, keyed_rng(1))
    assert {(p.language, p.text) for p in sample["text"]} == {("en", "s"), ("de", "S")}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_beyond_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Parallel(mismatch=share)


@pytest.mark.parametrize(
    ("reader", "keys"),
    [
        (Parallel(), "abcdef"),
        (Parallel(languages=("en", "de")), "aef"),
        (Parallel(languages=("en", "de", "fr")), "abcef"),
        (Parallel(directions=("en-de", "fr-en")), "abef"),
        (Parallel(pivot="fr"), "bcef"),
        (Parallel(languages=("de", "fr"), pivot="fr"), "cef"),
        (Parallel(second="statements", languages=("fr",)), "bcef"),
    ],
)
def test_pairs_of_languages_that_nobody_asks_for_are_no_examples(tmp_path, reader, keys):
    """As a corpus of many pairs holds them; what lists nothing of use is read, and told."""
    texts = {
        "a": {"en": ["x"], "de": ["y"]}, "b": {"fr": ["x"], "en": ["y"]},
        "c": {"fr": ["x"], "de": ["y"]}, "d": {"sw": ["x"], "en": []},
        "e": {"": ["x"]}, "f": {},
    }  # fmt: skip
    with ShardWriter(tmp_path, "train") as writer:
        for key, listed in texts.items():
            writer.write(key, {"json": json.dumps({"texts": listed}).encode()})
    source = Source("s", open_shards("train-*.tar", tmp_path), reader)
    found = [source.locate(p) for p in source.places()]
    assert [shard.entries[number].key for shard, number, _ in found] == list(keys)
    assert len(source) == len(keys)
