"""Tars that anybody may have written."""

import contextlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from crossloom.data_pipelines.index import SUFFIX, beside, of_file, parse, save
from crossloom.data_pipelines.shards import ShardError, load_index, open_shards
from crossloom.data_pipelines.tars import Forward, scan, split_name, walk
from crossloom.units import BadSample


def tar(*members, form=tarfile.USTAR_FORMAT):
    """Bytes of a tar; members are (name, data) or a TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                file.addfile(one)
                continue
            info = tarfile.TarInfo(one[0])
            info.size = len(one[1])
            file.addfile(info, io.BytesIO(one[1]))
    return out.getvalue()


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.txt"
    return info


def found(data):
    return scan(io.BytesIO(data), len(data))


def faults(data):
    return {s.key: s.fault[0] for s in found(data).samples if s.fault}


GOOD = [("a.json", b'{"texts": {"en": ["x", "y"]}}'), ("a.jpg", b"1" * 700), ("b.jpg", b"2")]


def test_members_lie_where_the_scan_says():
    data = tar(*GOOD)
    first, second = found(data).samples
    assert (first.key, second.key) == ("a", "b")
    offset, size = first.members["jpg"]
    assert data[offset : offset + size] == b"1" * 700
    assert first.items == {"texts.en": 2}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_format(form):
    long = ("folder/" * 13 + "key", "x" * 60)
    names = [f"{long[0]}.jpg", f"{long[1]}.json", "ключ.txt"]
    names += ["d/" * 80 + "deep.txt"] if form != tarfile.USTAR_FORMAT else []
    data = tar(*[(n, b"{}") for n in names], form=form)
    assert [m.name for m in walk(io.BytesIO(data))] == names
    assert [s.key for s in found(data).samples] == [n.rpartition(".")[0] for n in names]


def test_names_split_as_webdataset_splits_them():
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "a/b.c.d", "a.b/c.d", "noext", "a/b/c.seg.png"):
        expected = base_plus_ext(name)
        assert split_name(name) == (None if expected[0] is None else expected)


@pytest.mark.parametrize(
    ("members", "kinds"),
    [
        ([*GOOD, ("a.jpg", b"3"), ("a.json", b"{}")], {"a": "duplicate key"}),
        ([("a.jpg", b"1"), ("a.jpg", b"2")], {"a": "duplicate key"}),
        ([("../a.jpg", b"1")], {"../a": "path trick"}),
        ([("x/../../a.jpg", b"1")], {"x/../../a": "path trick"}),
        ([("/etc/a.jpg", b"1")], {"/etc/a": "path trick"}),
        ([("C:\\a.jpg", b"1")], {"C:\\a": "path trick"}),
        ([("..", b"1")], {"..": "path trick"}),
        ([("a\x1b[2J.jpg", b"1")], {"a?[2J": "path trick"}),
        ([link("a.jpg")], {"a": "path trick"}),
        ([link("a.jpg", tarfile.LNKTYPE)], {"a": "path trick"}),
        ([link("a.jpg", tarfile.FIFOTYPE)], {"a": "path trick"}),
        ([("a.jpg", b"1"), ("a.json", b"{}")], {}),
    ],
)
def test_what_cannot_be_used_keeps_its_place_and_says_why(tmp_path, members, kinds):
    data = tar(*members, ("z.txt", b"fine"))
    assert faults(data) == kinds
    (tmp_path / "t.tar").write_bytes(data)
    shard = load_index(tmp_path / "t.tar")
    assert load_index(tmp_path / "t.tar") == shard
    for number, entry in enumerate(shard.entries):
        if entry.fault:
            with pytest.raises(BadSample) as error:
                shard.read(number)
            assert error.value.kind == kinds[entry.key]
    assert shard.read(len(shard.entries) - 1) == {"txt": b"fine"}


def test_the_first_of_two_samples_with_one_key_is_used():
    samples = found(tar(("a.t", b"1"), ("b.t", b"2"), ("a.t", b"3"))).samples
    assert [(s.key, bool(s.fault)) for s in samples] == [("a", False), ("b", False), ("a", True)]


def test_members_of_a_sample_may_lie_apart():
    samples = found(tar(("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("b.txt", b"4"))).samples
    assert [sorted(s.members) for s in samples] == [["jpg", "txt"]] * 2


@pytest.mark.parametrize(
    ("data", "kind", "keys"),
    [
        (b"", "empty shard", []),
        (bytes(10240), "empty shard", []),
        (b"no tar" * 1000, "not a tar", []),
        (b"short", "not a tar", []),
        (b"\x1f\x8b" + bytes(5000), "not a tar", []),
        (tar(*GOOD)[:530], "truncated shard", []),
        (tar(*GOOD)[:1700], "truncated shard", []),
        (tar(*GOOD)[:2600], "truncated shard", ["a"]),
        (tar(*GOOD)[:3072], "truncated shard", ["a"]),
        (tar(*GOOD, *[(f"c.{x}", b"3") for x in "ab"])[:4500], "truncated shard", ["a", "b"]),
        (tar(*GOOD)[:2660] + b"\xff" + tar(*GOOD)[2661:], "damaged header", ["a"]),
    ],
)
def test_damage_is_named_and_what_is_whole_is_kept(data, kind, keys):
    scanned = found(data)
    assert scanned.damage[0] == kind
    assert [s.key for s in scanned.samples] == keys


def test_no_cut_and_no_flip_breaks_reading(tmp_path):
    names = [f"{n:03d}.{x}" for n in range(12) for x in ("a", "b")]
    data = tar(*[(name, os.urandom(97 * n % 1500)) for n, name in enumerate(names)])
    whole = [(s.key, s.members) for s in found(data).samples]
    end = -(-max(sum(p) for _, m in whole for p in m.values()) // 512) * 512
    for cut in range(0, len(data), 131):
        scanned = found(data[:cut])
        assert (scanned.damage is None) == (cut >= end + 512)
        kept = [(s.key, s.members) for s in scanned.samples]
        assert len(kept) < 2 or kept == whole[: len(kept)]
    rng = np.random.default_rng(0)
    for number in range(150):
        hurt = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            hurt[at] ^= int(rng.integers(1, 256))
        path = tmp_path / f"{number}.tar"
        path.write_bytes(hurt)
        shard = load_index(path)
        for n in range(len(shard.entries)):
            with contextlib.suppress(BadSample):
                shard.read(n)


def test_a_stream_is_walked_forward():
    class Dribble:
        def __init__(self, data):
            self.file = io.BytesIO(data)

        def read(self, size):
            return self.file.read(min(size, 100))

    names = [m.name for m in walk(Forward(Dribble(tar(*GOOD))))]
    assert names == ["a.json", "a.jpg", "b.jpg"]


def test_a_byte_that_turns_is_found_where_it_is_read(tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes(tar(*GOOD))
    index = of_file(path, checksums=True)
    assert len(index.sha256) == 64
    offset, _ = index.entries[0].members["jpg"]
    data = bytearray(path.read_bytes())
    data[offset + 9] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(5, 5))
    shard = load_index(path)
    with pytest.raises(BadSample, match="jpg is not what was indexed") as error:
        shard.read(0)
    assert error.value.kind == "checksum mismatch"
    assert shard.read(1) == {"jpg": b"2"}
    # a copy has another time and the same bytes
    data[offset + 9] ^= 1
    path.write_bytes(data)
    assert load_index(path).read(0)["jpg"] == b"1" * 700
    assert load_index(path).sha256 == index.sha256
    assert load_index(path, renew=True).sha256 == ""


def test_indexes_of_read_only_stores_lie_in_a_folder(tmp_path, monkeypatch):
    store, folder = tmp_path / "store", tmp_path / "indexes"
    store.mkdir()
    for name in ("a", "b"):
        (store / f"{name}.tar").write_bytes(tar(*GOOD))
    monkeypatch.setattr(
        "crossloom.data_pipelines.index.save",
        lambda path, index: save(path, index) if path.parent != store else False,
    )
    monkeypatch.setenv("CROSSLOOM_INDEX", str(folder))
    first = open_shards(str(store))
    assert sorted(p.name.split("-")[0] for p in folder.iterdir()) == ["a", "b"]
    assert not list(store.glob(f"*{SUFFIX}"))
    monkeypatch.setattr("crossloom.data_pipelines.index.build", None)  # not needed again
    assert open_shards(str(store)) == first


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"format": 2}',
        '{"format":2,"size":100,"modified":0,"sha256":"","damage":null,'
        '"samples":[["a",{"x":[0,900]},{},null]]}',
        '{"format":2,"size":100,"modified":0,"sha256":"","damage":null,'
        '"samples":[["a",{"x":[-5,9]},{},null]]}',
    ],
)
def test_an_index_that_lies_is_not_believed(tmp_path, text):
    with pytest.raises(ValueError, match=r"index|format|outside"):
        parse(text.encode())
    path = tmp_path / "t.tar"
    path.write_bytes(tar(*GOOD))
    beside(path).write_text(text)
    assert [e.key for e in load_index(path).entries] == ["a", "b"]


def test_a_shard_that_goes_away_ends_in_words(tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes(tar(*GOOD))
    shard = load_index(path)
    Path(path).unlink()
    with pytest.raises(ShardError, match=r"t\.tar: cannot be opened \(No such file"):
        shard.read(0)
