"""Documents in blocks: nothing lost, nothing twice, and blocks as long as the limit."""

import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossloom.batch import fuse
from crossloom.data_pipelines.index import of_file
from crossloom.data_pipelines.read import Blocks, Texts
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.stretches import LENGTHS, further, stretches
from crossloom.data_pipelines.write import ShardWriter
from crossloom.modalities.lay import blocks, lay
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mlm
from crossloom.objectives.view import View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component, Recipe, RecipeError, from_dict, to_dict
from crossloom.training.run import make_stack
from crossloom.units import Passage, keyed_rng, make_units

# --- stretches ----------------------------------------------------------------------------------


def document(seed, words):
    """Drawn lists would hardly ever be long enough to be cut."""
    return " ".join("a" * int(n) for n in keyed_rng(seed).integers(1, 10, words))


WORDS = st.builds(document, st.integers(0, 99), st.integers(0, 900))


@given(st.lists(WORDS, min_size=1, max_size=3), st.sampled_from(LENGTHS))
def test_stretches_are_the_document_in_as_many_parts_as_the_index_counts(texts, length):
    parts = stretches(texts, length)
    assert "".join(parts) == "\n".join(texts)
    assert len(parts) == 1 + further(texts).get(length, 0)
    assert len(parts) == max(1, -(-len("\n".join(texts)) // length))
    assert all(re.search(r"\s\Z", part) for part in parts[:-1])  # between words
    assert len(parts) == 1 or min(map(len, parts)) > length / 2 - 10


def test_scripts_without_spaces_are_cut_between_characters():
    text = "ตี๋" * 1000  # a consonant that bears two marks
    parts = stretches([text], 1024)
    assert "".join(parts) == text
    assert [len(p) % 3 for p in parts] == [0, 0, 0]
    assert further([text]) == {1024: 2}
    assert further(["a" * 1024]) == {}
    assert further(["a" * 1024, ""]) == {1024: 1}


# --- filling ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(3, 200), st.integers(0, 1))
def test_every_unit_is_in_one_block_and_blocks_are_full(lengths, limit, head):
    found = blocks(lengths, limit, head)
    seen = Counter((r, u) for block in found for r, begin, end in block for u in range(begin, end))
    assert seen == Counter((r, u) for r, n in enumerate(lengths) for u in range(n))
    sizes = [head + sum(e - b + 1 for _, b, e in block) for block in found]
    assert all(size <= limit for size in sizes)
    assert all(size >= limit - 1 for size in sizes[:-1])
    # a long text keeps to itself as far as it can
    assert sum(len(b) == 1 for b in found) >= sum(n // (limit - head - 1) for n in lengths)


def test_blocks_by_hand():
    assert blocks([7, 2, 4], 6) == [[(0, 0, 4)], [(2, 0, 4)], [(0, 4, 7)], [(1, 0, 2)]]
    assert blocks([3, 4, 5], 10) == [[(0, 0, 3), (1, 0, 4)], [(2, 0, 5)]]
    assert blocks([3, 8], 9) == [[(1, 0, 7)], [(0, 0, 3), (1, 7, 8)]]
    assert blocks([0], 9) == blocks([], 9) == []


def test_parts_are_laid_out_with_one_separator_after_each(world):
    text = Text(vocabulary=str(world / "tokenizer.model"), languages=("en", "de"), segments=2)
    vocab = text.vocab
    rows = [
        text.loose({"text": (Passage(code, said),)}, keyed_rng(0))
        for code, said in (("en", "a red circle"), ("de", "ein Kreis"))
    ]
    one, other = (list(vocab.encode(x)) for x in ("a red circle", "ein Kreis"))
    units = lay(rows, [(0, 1, len(one)), (1, 0, 2)])
    begin, end = vocab.begin, vocab.end
    assert list(units.content["token"]) == [begin, *one[1:], end, *other[:2], end]
    assert list(units.targets["token"]) == list(units.content["token"])
    assert list(units.content["language"]) == [0] * (len(one) + 1) + [1] * 3
    assert list(units.position) == list(range(len(units)))
    special = [0, len(one), len(units) - 1]
    assert list(np.flatnonzero(~units.maskable)) == special
    # pieces of a word share a group, and nothing else does
    spelt = [vocab.pieces[i] for i in units.content["token"]]
    for at in range(1, len(units)):
        inside = units.maskable[at - 1 : at + 1].all() and not spelt[at].startswith("▁")
        assert (units.group[at] == units.group[at - 1]) == inside, (at, spelt)


def test_texts_that_begin_with_nothing_are_laid_out_so():
    def row(*ids):
        end = len(ids) - 1
        return make_units(
            {"token": np.array(ids)},
            targets={"token": np.array(ids)},
            maskable=np.arange(len(ids)) < end,
            group=np.minimum(np.arange(len(ids)), 2),
        )

    rows = [row(10, 11, 12, 13, 1), row(20, 1)]
    assert blocks([4, 1], 3, 0) == [[(0, 0, 2)], [(0, 2, 4)], [(1, 0, 1)]]
    units = lay(rows, [(0, 1, 4), (1, 0, 1)], 0)
    assert list(units.content["token"]) == [11, 12, 13, 1, 20, 1]
    assert list(units.maskable) == [True, True, True, False, True, False]
    assert list(units.group) == [0, 1, 1, 1, 2, 3]
    assert list(units.position) == list(range(6))


def test_published_tables_and_filled_texts_can_be_joined(world):
    path = str(world / "tokenizer.model")
    text = Text(vocabulary=path, limit=30, positions=32, offset=2, filled=True)
    said = {"text": (Passage("en", "a red circle on the left " * 4),)}
    rows = [text.loose(said, keyed_rng(0))] * 2
    pad = text.vocab.pad
    whole = len(rows[0]) - 2
    assert whole > 30
    assert pad not in rows[0].content["token"]
    found = [u.content["token"] for _, u in text.packed(rows)]
    assert {len(x) for x in found} == {30}
    own = (text.vocab.begin, text.vocab.end, pad)
    assert sum(int((~np.isin(x, own)).sum()) for x in found) == 2 * whole


# --- a corpus -----------------------------------------------------------------------------------

PER_BATCH = 48


def word(number):
    """A word of its own for every number."""
    letters = "aeiou rstnl"
    return "".join(
        f"{letters[6 + number // 5**i % 5]}{letters[number // 5**i % 5]}" for i in range(5)
    )


@pytest.fixture(scope="module")
def corpus(world, tmp_path_factory):
    """Documents of 1 to 20,000 characters, every word of them another one, in two shards."""
    out = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    documents, number = [], 0
    while len(documents) < 90 or places(documents) % PER_BATCH:
        count = draw.choice([5, 40, 300, 1900]) if len(documents) < 90 else 3
        said = [word(number + i) for i in range(count)]
        number += count
        cut = draw.randrange(count)
        documents.append([" ".join(said[:cut]), " ".join(said[cut:])] if cut else [" ".join(said)])
    with ShardWriter(out, "train", shard_size=60) as writer:
        for place, texts in enumerate(documents):
            writer.write(f"d-{place:04d}", {"json": {"texts": {"en": texts}}})
    (out / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return out, documents


def places(documents):
    return sum(1 + further(texts).get(4096, 0) for texts in documents)


def recipe_of(folder, limit=128, **changed):
    reader = changed.pop("reader", Blocks())
    return Recipe(
        **{
            "name": "blocks", "data": str(folder),
            "modalities": {"text": Text(limit=limit, dropout=0.0)},
            "plan": single_stream(("text",), layers=1, width=16, heads=2, dropout=0.0),
            "objectives": {"mlm": mlm(("text",))},
            "mixture": {"text": Component(shards="*.tar", reader=reader, objectives=("mlm",))},
            "steps": 4, "examples": PER_BATCH, "readers": 1, "workers": 0, "log_every": 1,
            "save_every": 2,
        } | changed
    )  # fmt: skip


def parts_of(batch, vocab):
    """The parts of each example as ids, from the clean targets of the view."""
    stream = batch.views["mlm"].streams["text"]
    for begin, size in zip(stream.start, stream.length, strict=True):
        ids = stream.content["token"][begin : begin + size]
        assert ids[0] == vocab.begin
        assert ids[-1] == vocab.end
        yield [list(g) for end, g in groupby(ids[1:], lambda i: i == vocab.end) if not end]


@pytest.mark.parametrize(("limit", "examples"), [(64, 16), (128, 16), (512, PER_BATCH)])
def test_an_epoch_has_every_character_once_in_blocks_that_are_full(corpus, limit, examples):
    folder, documents = corpus
    base = recipe_of(folder, limit)
    shown = {"mlm": replace(base.objectives["mlm"], view=View(name="mlm", streams=("text",)))}
    stack = make_stack(replace(base, objectives=shown, examples=examples).located())
    (part,) = stack.parts.values()
    assert len(part.source) == places(documents)
    vocab = stack.collator.modalities["text"].vocab
    batches = [stack.micro(n) for n in range(len(part.source) // examples)]
    assert {p.epoch for n in range(len(batches)) for p in stack.places(n)[1]} == {0}

    units, room = (sum(b.fill["text"][i] for b in batches) for i in (0, 1))
    made = sum(len(b.keys) for b in batches)
    assert room == limit * made
    assert units / room >= 0.98
    for batch in batches:  # all but the last example of each micro-batch by itself
        lengths = sorted(batch.views["mlm"].streams["text"].length)
        assert lengths[-1] <= limit
        assert lengths[1] >= limit - 1

    found = [p for b in batches for parts in parts_of(b, vocab) for p in parts]
    pieces = Counter(i for p in found for i in p)
    assert pieces == Counter(
        int(i) for t in documents for s in stretches(t, 4096) for i in vocab.encode(s)
    )
    characters = Counter("".join(vocab.decode(p) for p in found).replace(" ", ""))
    assert characters == Counter(re.sub(r"\s", "", "".join("".join(t) for t in documents)))
    # each part is a run of its document: whole words in it follow one another there
    text = " ".join(" ".join(t) for t in documents)
    assert all(vocab.decode(p).strip() in text for p in found)
    assert len({k for b in batches for k in b.keys}) == made


def test_a_micro_batch_is_a_function_of_its_number(corpus):
    folder, _ = corpus
    recipe = recipe_of(folder, micro=2, steps=3).located()
    one, other = make_stack(recipe), make_stack(recipe)
    for number in (5, 0, 3):
        a, b = one.micro(number), other.micro(number)
        assert a.keys == b.keys
        for name in ("token",):
            mine, theirs = (x.views["mlm"].streams["text"].content[name] for x in (a, b))
            assert np.array_equal(mine, theirs)
        assert np.array_equal(a.aims["mlm"].index, b.aims["mlm"].index)
    both = fuse([one.micro(0), one.micro(1)], one.collator.of_units())
    assert both.fill["text"] == tuple(
        one.micro(0).fill["text"][i] + one.micro(1).fill["text"][i] for i in (0, 1)
    )


def test_blocks_of_one_text_are_masked_each_in_its_own_way(corpus):
    folder, _ = corpus
    stack = make_stack(recipe_of(folder, 64).located())
    batch = stack.micro(0)
    stream = batch.views["mlm"].streams["text"]
    first = {}
    for key, begin, size in zip(batch.keys, stream.start, stream.length, strict=True):
        if size == 64:
            first.setdefault(key.partition("~")[0], []).append(stream.hidden[begin : begin + 64])
    pairs = [v for v in first.values() if len(v) > 1]
    assert pairs
    assert all(not np.array_equal(v[0], v[1]) for v in pairs)


def test_training_on_blocks_reports_the_fill_and_resumes(corpus, tmp_path):
    folder, _ = corpus
    recipe = recipe_of(folder, 128, seed=3)
    train(recipe, tmp_path / "whole", start("cpu"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(max((tmp_path / "cut/checkpoints").iterdir()))
    train(recipe, tmp_path / "cut", start("cpu"), resume=True)
    whole, cut = (read_journal(tmp_path / x / "metrics.jsonl") for x in ("whole", "cut"))
    assert len(cut) == 4
    assert [x["mlm/loss"] for x in whole] == [x["mlm/loss"] for x in cut]
    assert all(0.95 < x["fill/text"] <= 1 for x in whole)
    plain = recipe_of(folder, 128, reader=Texts(), steps=1)
    train(plain, tmp_path / "plain", start("cpu"))
    (line,) = read_journal(tmp_path / "plain/metrics.jsonl")
    batch = make_stack(plain.located()).micro(0)
    lengths = batch.views["mlm"].streams["text"].length
    assert line["fill/text"] == pytest.approx(lengths.sum() / (128 * len(lengths)))


# --- sentences ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(world, tmp_path_factory):
    """Short sentences in two languages, of which some samples have one only."""
    out = tmp_path_factory.mktemp("sentences")
    with ShardWriter(out, "train", shard_size=400) as writer:
        for number in range(1000):
            texts = {"en": [f"a {word(number)} on the left"], "de": [f"ein {word(number)}"]}
            if number % 4 == 0:
                del texts["en"]
            writer.write(f"s-{number:04d}", {"json": {"texts": texts}})
    (out / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return out


def test_short_sentences_of_a_language_are_joined_up_to_the_limit(sentences):
    base = recipe_of(sentences, 64, examples=250, reader=Blocks(languages=("en",)))
    languages = {"text": Text(limit=64, languages=("de", "en"))}
    stack = make_stack(replace(base, modalities=languages).located())
    assert len(stack.parts["text"].source) == 750
    batches = [stack.micro(n) for n in range(3)]
    units, room = (sum(b.fill["text"][i] for b in batches) for i in (0, 1))
    assert units / room >= 0.98
    assert all(len(b.keys) < 100 for b in batches)
    assert {
        int(x) for b in batches for x in b.views["mlm"].streams["text"].content["language"]
    } == {1}
    both = replace(base, modalities=languages, mixture={
        "text": replace(base.mixture["text"], reader=Blocks())
    })  # fmt: skip
    stack = make_stack(both.located())
    assert len(stack.parts["text"].source) == 1750
    stream = stack.micro(0).views["mlm"].streams["text"]
    for begin, size in zip(stream.start, stream.length, strict=True):
        assert len(set(stream.content["language"][begin : begin + size])) == 1


def test_two_streams_of_one_text_are_cut_alike(world):
    from crossloom.training.recipe import load_recipe

    recipe = load_recipe("mbart-tiny", [f"data={world}", "examples=12", "workers=0"])
    stack = make_stack(recipe.located())
    batch = stack.micro(0)
    streams = batch.views["denoise"].streams
    text, target = streams["text"], streams["target"]
    vocab = recipe.located().modalities["text"].vocab
    signs = {v: k for k, v in vocab.signs.items()}
    assert len(text.length) == len(target.length) == len(batch.keys)
    assert all("~" in key for key in batch.keys)
    for read, said in zip(*(np.split(s.content["token"], s.start[1:]) for s in (text, target)),
                          strict=True):  # fmt: skip
        assert read[-1] == said[0]
        assert int(said[0]) in signs
        assert read[-2] == said[-1] == vocab.end
    # what is said is clean, what is read is infilled
    assert not target.hidden.any()
    assert text.hidden.any()
    assert len(text.hidden) < len(target.hidden)
    index, value = batch.aims["denoise"].index, batch.aims["denoise"].value
    assert len(index) == len(target.hidden) - len(target.length)
    assert (value == target.content["token"][index + 1]).all()


def test_a_sample_that_cannot_be_used_moves_nothing(sentences, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in sentences.iterdir():
        folder.joinpath(path.name).write_bytes(path.read_bytes())
    index = of_file(folder / "train-000000.tar", checksums=True)
    offset, size = index.entries[3].members["json"]
    data = bytearray(folder.joinpath("train-000000.tar").read_bytes())
    data[offset : offset + size] = b"\xff" * size
    folder.joinpath("train-000000.tar").write_bytes(data)
    changed = {"examples": 50, "reader": Blocks(languages=("de",))}
    good, bad = (make_stack(recipe_of(f, **changed).located()) for f in (sentences, folder))
    whole, left = ([stack.micro(n) for n in range(20)] for stack in (good, bad))
    (hurt,) = (n for n in range(20) if left[n].defects)
    assert [d.kind for d in left[hurt].defects] == ["checksum mismatch"]
    assert [m for m in left[hurt].marks if m] == [1]
    assert good.keys(hurt)[1][left[hurt].marks.index(1)] == "train-000000/s-0003"
    for n in range(20):
        one, other = (x[n].views["mlm"].streams["text"].content["token"] for x in (whole, left))
        assert np.array_equal(one, other) == (n != hurt)


def test_an_unreadable_json_is_met_and_counted(tmp_path):
    with ShardWriter(tmp_path, "t") as writer:
        writer.write("a", {"json": b"{"})
        writer.write("b", {"json": {"texts": {"en": ["One."]}}})
        writer.write("c", {"json": {"questions": []}})
    source = Source("t", open_shards(str(tmp_path)), Blocks())
    assert len(source) == 2
    assert source.example(source.places()[0], {}, frozenset(), 0).kind == "undecodable"


# --- other layouts, and what does not fit -------------------------------------------------------


def test_a_text_member_is_counted_and_read_as_a_document(world, tmp_path):
    text = " ".join(word(n) for n in range(800))
    with ShardWriter(tmp_path, "t") as writer:
        writer.write("a", {"txt": text})
        writer.write("b", {"txt": "short"})
        writer.write("c", {"txt": b"\xff" * 5000})
        writer.write("d", {"json": {"caption": text, "language": "en"}})
    (shard,) = open_shards(str(tmp_path))
    assert [dict(e.items) for e in shard.entries] == [
        {"texts.": 1, "further1024.texts.": 8, "further4096.texts.": 2},
        {"texts.": 1},
        {"texts.": 1},
        {"texts.en": 1, "further1024.texts.en": 8, "further4096.texts.en": 2},
    ]
    source = Source("t", (shard,), Blocks())
    assert len(source) == 3 + 1 + 1 + 3
    found = [
        source.example(p, {"text": Text(vocabulary=str(world / "tokenizer.model"))},
                       frozenset({"text"}), 0)
        for p in source.places()
    ]  # fmt: skip
    assert "".join(x.labels["text"] for x in found[:3]) == text
    assert found[4].kind == "not UTF-8"


def test_documents_of_a_live_stream_come_stretch_by_stretch(world, tmp_path):
    text = " ".join(word(n) for n in range(1200))
    with ShardWriter(tmp_path, "t") as writer:
        writer.write("a", {"json": {"texts": {"en": [text]}}})
        writer.write("b", {"txt": text})
    base = recipe_of(world, 128, examples=8)
    live = replace(base.mixture["text"], shards=f"live:cat {tmp_path}/t-000000.tar")
    stack = make_stack(replace(base, mixture={"text": live}).located())
    vocab = stack.collator.modalities["text"].vocab
    batch = stack.micro(0)  # both documents, in four stretches each
    stream = batch.views["mlm"].streams["text"]
    whole = 2 * sum(len(vocab.encode(s)) for s in stretches([text], 4096))
    assert further([text])[4096] == 3
    assert stream.length.max() == 128
    assert (
        whole + 2 * len(stream.length) <= stream.length.sum() <= whole + 2 * len(stream.length) + 8
    )  # a separator for each part


def test_what_cannot_be_joined_is_refused_by_the_recipe(world):
    base = tiny_recipe(world, contrast=True)
    captions = replace(base.mixture["captions"], reader=Blocks())
    with pytest.raises(ValueError, match=r"mixture.captions.objectives: 'mlm' compares .* streams"):
        replace(base, mixture={**base.mixture, "captions": captions})
    words = to_dict(recipe_of(world))
    words["mixture"]["text"]["reader"]["stretch"] = 1000
    with pytest.raises(RecipeError, match=r"stretch: .*1024"):
        from_dict(words)
