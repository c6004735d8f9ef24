import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from crossloom.data_pipelines.annotated import Pairs, Questions
from crossloom.data_pipelines.collate import Collator, Example, exhibit
from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.data_pipelines.shards import ShardError, index_path, load_index, open_shards
from crossloom.data_pipelines.source import Source, units_of
from crossloom.data_pipelines.write import ShardWriter
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import tiny_recipe
from crossloom.units import BadSample, Fate, keyed_rng, make_units

JSON = {
    "texts": {"en": ["one", "two"], "de": ["eins", "zwei"]},
    "questions": [
        {"text": {"en": "q?"}, "answers": {"yes": 1.0}},
        {"text": {"de": "f?"}, "answers": {"no": 0.5}},
    ],
    "pairs": [
        {
            "label": "neutral",
            "premise": {"en": "p", "de": "P"},
            "hypothesis": {"en": "h", "de": "H"},
        }
    ],
}  # fmt: skip
MEMBERS = {"json": json.dumps(JSON).encode()}


def shard(tmp_path, samples, prefix="train"):
    with ShardWriter(tmp_path, prefix) as writer:
        for key, members in samples.items():
            writer.write(key, members)
    return tmp_path / f"{prefix}-000000.tar"


def test_index_reads_members_and_counts_items(tmp_path):
    path = shard(tmp_path, {"a": {"json": JSON, "bin": b"12345"}, "b": {"bin": b"6"}})
    found = load_index(path)
    assert [e.key for e in found.entries] == ["a", "b"]
    assert found.read(0)["bin"] == b"12345"
    assert found.read(1) == {"bin": b"6"}
    assert found.entries[0].items == {"questions": 2, "pairs": 1, "texts.en": 2, "texts.de": 2}
    assert load_index(path) == found
    assert index_path(path).is_file()


def test_a_changed_tar_is_indexed_again(tmp_path):
    path = shard(tmp_path, {"a": {"bin": b"1"}})
    load_index(path)
    other = shard(tmp_path / "x", {"b": {"bin": b"2"}})
    os.replace(other, path)
    assert load_index(path).entries[0].key == "b"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing-*.tar", "no such shards"),
        ("{a..b}.tar", "no such shards"),
        ("note.txt", "not a .tar"),
    ],
)
def test_shards_that_are_not_there_say_what_to_do(tmp_path, pattern, message):
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(ShardError, match=message):
        open_shards(pattern, tmp_path)


def test_something_else_called_tar_is_named(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(ShardError, match=r"bad\.tar: not a readable tar"):
        open_shards("bad.tar", tmp_path)


def test_braces_and_folders(tmp_path):
    for prefix in ("a", "b"):
        shard(tmp_path, {prefix: {"bin": b"1"}}, prefix)
    assert len(open_shards("{a,b}-000000.tar", tmp_path)) == 2
    assert len(open_shards(str(tmp_path))) == 2


def test_texts_choose_language_and_text_by_key():
    seen = {Texts().read(MEMBERS, 0, keyed_rng(n))[0]["text"][0].text for n in range(60)}
    assert seen == {"one", "two", "eins", "zwei"}
    only = {
        Texts(languages=("de",)).read(MEMBERS, 0, keyed_rng(n))[0]["text"][0].text
        for n in range(30)
    }
    assert only == {"eins", "zwei"}
    heavy = Texts(weights={"en": 1.0, "de": 0.0})
    assert {heavy.read(MEMBERS, 0, keyed_rng(n))[1]["language"] for n in range(30)} == {"en"}


def test_parallel_gives_translations_in_both_orders():
    found = {
        tuple(p.text for p in Parallel().read(MEMBERS, 0, keyed_rng(n))[0]["text"])
        for n in range(60)
    }
    assert found == {("one", "eins"), ("eins", "one"), ("two", "zwei"), ("zwei", "two")}


def test_questions_and_pairs_are_examples_of_their_own():
    sample, labels = Questions().read(MEMBERS, 1, keyed_rng(0))
    assert (sample["text"][0].text, labels["answers"]) == ("f?", {"no": 0.5})
    reader = Pairs(languages=("en", "de"), all_languages=True)
    texts = [[p.text for p in reader.read(MEMBERS, n, keyed_rng(0))[0]["text"]] for n in range(2)]
    assert texts == [["p", "h"], ["P", "H"]]


def test_a_pair_without_premise_reads_the_hypothesis_alone():
    pair = {"id": "dev-1-0-0", "label": "true", "hypothesis": {"en": "h", "de": "H"}}
    members = {"json": json.dumps({"pairs": [pair]}).encode(), "0.jpg": b"x"}
    sample, labels = Pairs(languages=("de",)).read(members, 0, keyed_rng("x"))
    assert [(p.language, p.text) for p in sample["text"]] == [("de", "H")]
    told = {"language": "de", "premise": "", "hypothesis": "H"}
    assert labels == {"id": "dev-1-0-0", "label": "true", **told}
    each = Pairs(languages=("en", "de"), all_languages=True)
    assert each.read(members, 1, keyed_rng("x"))[1]["hypothesis"] == "H"


@pytest.mark.parametrize(
    ("reader", "members", "kind"),
    [
        (Texts(), {}, "missing member"),
        (Texts(), {"json": b"\xff\xfe"}, "not UTF-8"),
        (Texts(), {"json": b"{"}, "undecodable"),
        (Texts(), {"json": b"[]"}, "undecodable"),
        (Texts(), {"json": b"{}"}, "missing field"),
        (Texts(languages=("fr",)), MEMBERS, "missing language"),
        (Texts(), {"json": b'{"texts": {"en": [" "]}}'}, "empty text"),
        (Parallel(), {"json": b'{"texts": {"en": ["a"]}}'}, "missing language"),
    ],
)
def test_what_a_reader_cannot_use_is_named(reader, members, kind):
    with pytest.raises(BadSample) as found:
        reader.read(members, 0, keyed_rng(0))
    assert found.value.kind == kind


def make_examples(world, count=6):
    recipe = tiny_recipe(world).located()
    source = Source("s", open_shards("train-*.tar", world), Texts())
    streams = frozenset(("text", "image"))
    found = [source.example(p, recipe.modalities, streams, 0) for p in source.places()[:count]]
    assert all(isinstance(e, Example) for e in found)
    return recipe, found


def test_targets_are_clean_and_content_is_not(world):
    recipe, found = make_examples(world)
    view = recipe.objectives["mlm"].view
    hidden = 0
    for example in found:
        shown = exhibit(example, view, recipe.modalities, 0, found)
        units = shown.shown.units["text"]
        fate = shown.shown.fate["text"]
        assert (units.targets["token"] == example.units["text"].content["token"]).all()
        mask = recipe.modalities["text"].vocab.mask
        assert ((shown.content["text"]["token"] == mask) == (fate == Fate.HIDE)).all()
        hidden += int((fate == Fate.HIDE).sum())
    assert hidden > 0


def test_corruption_depends_on_example_epoch_and_view_alone(world):
    recipe, found = make_examples(world)
    view = recipe.objectives["mlm"].view
    alone = exhibit(found[2], view, recipe.modalities, 0, [])
    among = exhibit(found[2], view, recipe.modalities, 0, found)
    assert (alone.shown.fate["text"] == among.shown.fate["text"]).all()
    renamed = View(name="other", streams=view.streams, hide=view.hide)
    fates = [exhibit(e, renamed, recipe.modalities, 0, []).shown.fate["text"] for e in found]
    before = [exhibit(e, view, recipe.modalities, 0, []).shown.fate["text"] for e in found]
    assert any((a != b).any() for a, b in zip(fates, before, strict=True))


def test_mismatch_takes_another_sample_half_the_time(world):
    recipe, found = make_examples(world, 40)
    view = recipe.objectives["itm"].view
    shown = [exhibit(e, view, recipe.modalities, 0, found).shown for e in found]
    share = np.mean([s.matched for s in shown])
    assert 0.25 < share < 0.75
    for example, one in zip(found, shown, strict=True):
        same = one.units["image"] is example.units["image"]
        assert same == one.matched


def test_swapped_regions_are_those_of_other_images(world):
    """LXMERT's corruption: of what is selected, some show another image's region."""
    recipe, found = make_examples(world, 6)
    hide = Hide(rate=0.9, show=0.1, swap=0.6)
    view = View(name="regions", streams=("image",), hide={"image": hide})
    taken = set()
    for example in found:
        one = exhibit(example, view, recipe.modalities, 0, found)
        again = exhibit(example, view, recipe.modalities, 0, found)
        units, fate = example.units["image"], one.shown.fate["image"]
        feature = one.content["image"]["feature"]
        assert (feature == again.content["image"]["feature"]).all()
        assert (units.targets["feature"] == units.content["feature"]).all()
        assert (one.content["image"]["box"] == units.content["box"]).all()
        swapped = fate == Fate.SWAP
        assert (feature[~swapped] == units.content["feature"][~swapped]).all()
        for row in feature[swapped]:
            owners = [
                e.key for e in found if (e.units["image"].content["feature"] == row).all(1).any()
            ]
            assert owners
            assert example.key not in owners
            taken |= set(owners)
        alone = exhibit(example, view, recipe.modalities, 0, [example])
        assert (alone.content["image"]["feature"] == units.content["feature"]).all()
    assert len(taken) > 3


def test_a_sample_alone_stays_matched(world):
    recipe, found = make_examples(world, 1)
    view = recipe.objectives["itm"].view
    assert exhibit(found[0], view, recipe.modalities, 0, found).shown.matched


def test_little_data_is_not_repeated_within_a_batch(world):
    source = Source("s", open_shards("train-*.tar", world), Texts())
    order = source.order(0, readers=64, window=4096, examples=8)
    assert order.readers == 60 // 32
    for number in range(7):
        places = order.micro(number, 8)
        assert len(set(places)) == 8


def test_an_example_without_a_unit_is_a_bad_sample():
    silent = SimpleNamespace(decode=lambda sample, rng: make_units({"x": np.zeros(0)}))
    streams = {"text": silent, "image": silent}
    with pytest.raises(BadSample, match="image: no units") as found:
        units_of({}, "k", 0, streams, frozenset({"image"}), 0)
    assert found.value.kind == "empty stream"


def test_a_batch_lays_units_end_to_end_and_shifts_aims(world):
    recipe, found = make_examples(world)
    batch = Collator(recipe.modalities, recipe.objectives, 0).batch(found, ("mlm", "itm"), 6)
    stream = batch.views["mlm"].streams["text"]
    lengths = [len(e.units["text"]) for e in found]
    assert stream.length.tolist() == lengths
    clean = np.concatenate([e.units["text"].content["token"] for e in found])
    aim = batch.aims["mlm"]
    assert (clean[aim.index] == aim.value).all()
    assert batch.counts["mlm"] == len(aim.index)
    assert batch.counts["mrc"] == 0
    assert batch.aims["mrc"].weight.tolist() == [0.0]
    assert set(batch.views) == {"mlm", "mrm", "itm", "tlm"}
