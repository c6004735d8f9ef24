"""What a start needs to know of shards, and what it does not read."""

import json
import os
import time
import tracemalloc
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tars import tar

from crossloom.data_pipelines import index, shards, summary
from crossloom.data_pipelines.annotated import Pairs, Questions
from crossloom.data_pipelines.check import write_indexes
from crossloom.data_pipelines.index import Entries
from crossloom.data_pipelines.marked import Spans, Words
from crossloom.data_pipelines.passages import Alternating, Following, Switched
from crossloom.data_pipelines.read import Parallel, Plain, Texts
from crossloom.data_pipelines.recent import Recent
from crossloom.data_pipelines.shards import ShardError, load_index, open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.summary import Listed, Totals


@dataclass(frozen=True, kw_only=True)
class Stretches(Texts):
    """Counts in a way that sums do not tell."""

    kind: ClassVar[str] = "stretches"

    def items(self, entry):
        return -(-entry.items.get("texts.en", 0) // 2)


READERS = [
    Plain(),
    Texts(),
    Texts(all_texts=True),
    Texts(all_texts=True, languages=("de", "xx"), unnamed="xx"),
    Parallel(),
    Questions(),
    Pairs(),
    Pairs(languages=("en", "de"), all_languages=True),
    Stretches(),
    Words(),
    Words(languages=("de",)),
    Spans(),
    Spans(languages=("en", "de"), all_languages=True),
    Following(),
    Following(languages=("de",)),
    Alternating(),
    Switched(),
]

contents = st.fixed_dictionaries(
    {},
    optional={
        "texts": st.dictionaries(
            st.sampled_from(["en", "de", ""]), st.lists(st.just("x"), max_size=4)
        ),
        "questions": st.lists(st.just({}), max_size=3),
        "pairs": st.lists(st.just({}), max_size=2),
        "spans": st.lists(st.just({}), max_size=2),
    },
)
# a second sample under a key that was there is one that cannot be used
samples = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.none() | contents), min_size=1, max_size=9
)


def written(path, content):
    """A tar of (key, json or None for a text)."""
    members = [
        (f"{key}.json", json.dumps(x).encode()) if x is not None else (f"{key}.txt", b"words")
        for key, x in content
    ]
    path.write_bytes(tar(*members))
    return path


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(samples, min_size=1, max_size=3))
def test_counts_by_sums_are_counts_sample_by_sample(tmp_path_factory, sets):
    folder = tmp_path_factory.mktemp("set")
    for number, content in enumerate(sets):
        written(folder / f"{number}.tar", content)
    open_shards(str(folder))
    found = open_shards(str(folder))  # by the summary
    for reader in READERS:
        each = [[reader.items(e) or int(e.fault is not None) for e in s.entries] for s in found]
        if not any(map(sum, each)):
            continue
        source = Source("s", found, reader)
        assert source.counts == [sum(x) for x in each]
        met = [
            (source.shards.index(s), n, item) for s, n, item in map(source.locate, source.places())
        ]
        assert met == [
            (shard, sample, item)
            for shard, some in enumerate(each)
            for sample, many in enumerate(some)
            for item in range(many)
        ]


def test_a_faulty_sample_without_items_keeps_one_place(tmp_path):
    one = {"questions": [{}, {}]}
    written(tmp_path / "a.tar", [("a", one), ("b", {}), ("a", one), ("b", {}), ("b", {})])
    (shard,) = open_shards(str(tmp_path))
    assert shard.totals.listed == Listed(5, {"questions": 4}, {"questions": 2})
    assert sorted((dict(x).get("questions", 0), n) for x, n in shard.totals.faults) == [
        (0, 2),
        (2, 1),
    ]
    # a: 2, b: none, a again: 2 that are met and counted, b again and again: 1 each
    assert Source("s", (shard,), Questions()).counts == [6]


def folder_of(tmp_path, count=3):
    for number in range(count):
        written(
            tmp_path / f"{number}.tar",
            [(f"{number}-{n}", {"texts": {"en": ["x"]}}) for n in range(4)],
        )
    return tmp_path


def test_a_second_start_reads_no_index(tmp_path, monkeypatch):
    first = open_shards(str(folder_of(tmp_path)))
    keys = [e.key for s in first for e in s.entries]
    with monkeypatch.context() as closed:
        for name in ("of_file", "parse", "build"):
            closed.setattr(index, name, None)
        source = Source("s", open_shards(str(tmp_path)), Texts())
        assert len(source) == 12
        assert source.fingerprint() == Source("s", first, Texts()).fingerprint()
        assert source.shards == first
        assert len(source.order(0, 64, 4096, 4).micro(5, 4)) == 4
    assert [e.key for s in source.shards for e in s.entries] == keys


def test_a_changed_tar_is_counted_again_and_no_other(tmp_path, monkeypatch):
    open_shards(str(folder_of(tmp_path)))
    written(tmp_path / "1.tar", [("new", {})])
    (tmp_path / "2.tar").unlink()
    asked = []
    of_file = index.of_file
    monkeypatch.setattr(index, "of_file", lambda p, *x: asked.append(p.name) or of_file(p, *x))
    assert [s.samples for s in open_shards(str(tmp_path))] == [4, 1]
    assert asked == ["1.tar"]
    assert sorted(summary.load(tmp_path / summary.NAME)) == ["0.tar", "1.tar"]
    assert [s.samples for s in open_shards(str(tmp_path))] == [4, 1]
    assert asked == ["1.tar"]


def test_damage_is_in_the_summary(tmp_path):
    folder_of(tmp_path)
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:2600])
    first, again = open_shards(str(tmp_path)), open_shards(str(tmp_path))
    assert [d for s in again for d in s.defects] == [d for s in first for d in s.defects]
    assert again[1].damage[0] == "truncated shard"


def test_a_store_that_cannot_be_written_has_its_summary_elsewhere(tmp_path, monkeypatch):
    store = tmp_path / "store"
    store.mkdir()
    folder_of(store)
    monkeypatch.setenv("CROSSLOOM_INDEX", str(tmp_path / "indexes"))
    write = index.write
    monkeypatch.setattr(index, "write", lambda p, x: p.parent != store and write(p, x))
    first = open_shards(str(store))
    assert sorted(os.listdir(store)) == ["0.tar", "1.tar", "2.tar"]
    monkeypatch.setattr(index, "of_file", None)
    assert open_shards(str(store)) == first


def test_indexes_written_into_a_folder_have_their_summary_there(tmp_path, monkeypatch):
    store = tmp_path / "store"
    store.mkdir()
    paths = sorted(str(p) for p in folder_of(store).iterdir())
    made = write_indexes(paths, str(tmp_path / "indexes"))
    assert sorted(os.listdir(store)) == ["0.tar", "1.tar", "2.tar"]
    monkeypatch.setenv("CROSSLOOM_INDEX", str(tmp_path / "indexes"))
    monkeypatch.setattr(index, "of_file", None)
    assert open_shards(str(store)) == made
    assert open_shards(str(store))[0].read(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        '{"format": "0", "shards": {}}',
        json.dumps({"format": summary.FORMAT, "shards": {"0.tar": [1, 2]}}),
        json.dumps({"format": summary.FORMAT, "shards": {"0.tar": [1, 2, -4, {}, {}, [], None]}}),
    ],
)
def test_a_summary_that_lies_is_not_believed(tmp_path, text):
    folder_of(tmp_path)
    with pytest.raises(ValueError, match=r"summary|format|below|Expecting|values"):
        summary.parse(text.encode())
    (tmp_path / summary.NAME).write_text(text)
    assert [s.samples for s in open_shards(str(tmp_path))] == [4, 4, 4]


def test_a_shard_with_other_samples_than_counted_ends_in_words(tmp_path):
    open_shards(str(folder_of(tmp_path)))
    found = open_shards(str(tmp_path))
    written(tmp_path / "1.tar", [("new", {})])
    source = Source("s", found, Texts())
    shards._indexes.put(found[1]._mark, (index.Index(0, Entries()), ""), 0)  # what was kept is gone
    shards._indexes._kept.pop(found[1]._mark)
    assert source.key(source.places()[0])[0] == "0/0-0"
    with pytest.raises(ShardError, match=r"1\.tar: holds other samples than were counted"):
        source.key(source.places()[4])


def test_a_reader_whose_total_is_no_sum_is_named(tmp_path):
    class Wrong(Plain):
        kind = "wrong"

        def total(self, listed):
            return listed.samples + 1

    source = Source("s", open_shards(str(folder_of(tmp_path, 1))), Wrong())
    with pytest.raises(ShardError, match=r"`total` must be the sum of its `items`"):
        source.key(source.places()[0])


def test_ten_thousand_shards_open_in_two_seconds_and_cost_nothing_by_the_sample(tmp_path):
    one = written(tmp_path / "0.tar", [("a", {"texts": {"en": ["x"]}})])
    for number in range(1, 10_000):
        os.link(one, tmp_path / f"{number}.tar")
    known = load_index(one).totals
    items = {"texts.en": 50_000, "texts.de": 50_000, "questions": 30_000}
    row = Totals(known.size, known.modified, Listed(10_000, items, dict.fromkeys(items, 10_000)))
    assert summary.add(str(tmp_path), {p.name: row for p in tmp_path.iterdir()})
    began = time.process_time()  # others may use the machine meanwhile
    source = Source("s", open_shards(str(tmp_path)), Texts())
    took = time.process_time() - began
    assert len(source) == 100_000_000
    assert took < 2, took
    tracemalloc.start()
    source = Source("s", open_shards(str(tmp_path)), Texts(all_texts=True))
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(source) == 1_000_000_000
    assert memory < 40e6, memory  # 0.4 bytes a sample


def test_an_index_in_memory_is_packed(tmp_path):
    rows = [
        (f"{n:09d}", {"jpg": [n * 4096 + 512, 3000, n], "json": [n * 4096 + 3584, 200, n]},
         {"texts.en": 5, "boxes": n % 7}, None)
        for n in range(5000)
    ]  # fmt: skip
    tracemalloc.start()
    packed = Entries(rows)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert memory / len(packed) < 130
    assert list(packed.rows())[17] == rows[17]
    entry = packed[-1]
    assert (entry.key, entry.members["jpg"]) == ("000004999", (4999 * 4096 + 512, 3000))
    assert entry.sums == {"jpg": 4999, "json": 4999}
    assert entry.items == {"texts.en": 5, "boxes": 4999 % 7}
    assert [e.key for e in packed[2:4]] == ["000000002", "000000003"]
    assert packed == Entries(rows)
    assert packed != Entries(rows[:-1])
    with pytest.raises(IndexError):
        packed[5000]


def test_indexes_that_were_not_used_lately_leave_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_indexes", Recent(50))  # two tars of four samples
    open_shards(str(folder_of(tmp_path)))
    found = open_shards(str(tmp_path))
    asked = []
    of_file = index.of_file
    monkeypatch.setattr(index, "of_file", lambda p, *x: asked.append(p.name) or of_file(p, *x))
    monkeypatch.setattr(shards, "_indexes", Recent(60))
    for number in (0, 1, 0, 2, 0, 1):
        assert found[number].entries[2].key == f"{number}-2"
    assert asked == ["0.tar", "1.tar", "2.tar", "1.tar"]
    assert shards._indexes.weight <= 60


def test_what_is_recent_is_kept_by_weight():
    made = []

    def make(key, weight):
        made.append(key)
        return key.upper(), weight

    recent = Recent(10)
    for key, weight in (
        ("a", 4),
        ("b", 4),
        ("a", 4),
        ("c", 4),
        ("a", 4),
        ("b", 4),
        ("d", 100),
        ("d", 100),
    ):
        assert recent.get(key, lambda k=key, w=weight: make(k, w)) == key.upper()
    assert made == ["a", "b", "c", "b", "d"]
    recent.put("d", "D", 3)
    assert recent.weight == 3
