from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from crossloom.data_pipelines import write as module
from crossloom.data_pipelines.shards import ShardError, open_shards
from crossloom.data_pipelines.write import ShardSet, ShardWriter, WriteError, sanitise


def fill(out: Path, words: str = "x", count: int = 5, **options: Any) -> None:
    with ShardWriter(out, "train", shard_size=2, **options) as writer:
        for n in range(count):
            writer.write(f"k{n}", {"jpg": b"\xff\xd8", "txt": "é", "json": {"a": words}})


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def test_shards_hold_what_was_written(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    assert [p.name for p in sorted(out.iterdir())] == [f"train-{n:06d}.tar" for n in range(3)]
    shards = open_shards(str(out))
    assert [e.key for s in shards for e in s.entries] == ["k0", "k1", "k2", "k3", "k4"]
    assert shards[0].read(0) == {"jpg": b"\xff\xd8", "txt": "é".encode(), "json": b'{"a":"x"}'}


def test_webdataset_reads_them(tmp_path: Path) -> None:
    fill(tmp_path)
    urls = [str(p) for p in sorted(tmp_path.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in found] == ["k0", "k1", "k2", "k3", "k4"]
    assert json.loads(found[3]["json"]) == {"a": "x"}


def test_tars_are_plain_and_deterministic(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.mode) == (0, 0, 0, "", 0o444)
            assert not info.pax_headers
    assert files(tmp_path / "a")["train-000000.tar"][257:263] == b"ustar\x00"


def test_shards_end_before_they_grow_too_large(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "a", shard_bytes=100) as writer:
        for n, size in enumerate([60, 40, 1, 300, 1]):
            writer.write(str(n), {"bin": bytes(size)})
    sizes = [[e.key for e in s.entries] for s in open_shards(str(tmp_path))]
    assert sizes == [["0", "1"], ["2"], ["3"], ["4"]]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "a\nb", "x" * 81, "ä" * 41])
def test_keys_that_cannot_be(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path, "a") as writer:
        with pytest.raises(ShardError, match="cannot be a key"):
            writer.write(key, {"txt": "x"})
        writer.write("x" * 80, {"regions.npz": b"", "json": {}})
    assert open_shards(str(tmp_path))[0].entries[0].key == "x" * 80


def test_other_bad_samples(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "a") as writer:
        writer.write("a", {"txt": "x"})
        with pytest.raises(ShardError, match="two samples have the key 'a'"):
            writer.write("a", {"txt": "x"})
        with pytest.raises(ShardError, match="at least one member"):
            writer.write("b", {})
        with pytest.raises(ShardError, match="extension"):
            writer.write("b", {"": "x"})
        with pytest.raises(ShardError, match=r"a/b: json cannot be written"):
            writer.write("b", {"json": {"x": float("nan")}})
        with pytest.raises(ShardError, match=r"a/b: txt cannot be written"):
            writer.write("b", {"txt": "\ud800"})
        assert writer.count == 1


def test_sanitise_keeps_names_apart() -> None:
    assert sanitise("1234567890_0123abcdef") == "1234567890_0123abcdef"
    names = ["a.b", "a/b", "a b", "ä", "ö", "", "x" * 300, "x" * 301]
    keys = [sanitise(n) for n in names]
    assert len(set(keys)) == len(names)
    assert all(module._KEY.fullmatch(k) and len(k) <= 64 and k.isascii() for k in keys)


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), ShardWriter(out, "train") as writer:  # noqa: PT012
        writer.write("a", {"txt": "x"})
        raise RuntimeError
    assert not out.exists()  # it had to be made, and stayed empty

    fill(out, "old")
    before = files(out)
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        ShardWriter(out, "train", overwrite=True) as writer,
    ):
        writer.write("a", {"txt": "x"})
        assert {p for p in out.glob("*.tar") if p.name not in before} == set()
        raise KeyboardInterrupt
    assert files(out) == before


def test_existing_shards_are_replaced_only_when_told(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    before = files(tmp_path)
    with pytest.raises(ShardError, match=r"train-000000.tar: already there.*--overwrite"):
        fill(tmp_path, "new")
    assert files(tmp_path) == before
    open_shards(str(tmp_path))  # writes an index beside each
    with ShardWriter(tmp_path, "dev") as writer:  # another prefix is nobody's business
        writer.write("a", {"txt": "x"})
    fill(tmp_path, "new", count=1, overwrite=True)
    assert sorted(files(tmp_path)) == ["dev-000000.tar", "train-000000.tar"]
    assert b"new" in files(tmp_path)["train-000000.tar"]


def test_a_file_beside_the_shards_is_replaced_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("made by hand\n")

    def write(text: str, overwrite: bool = False) -> None:
        with ShardSet(tmp_path, overwrite=overwrite) as to:
            to.write("train", "a", {"txt": "x"})
            to.add_file("answers.txt", text)

    with pytest.raises(ShardError, match=r"answers\.txt: already there.*--overwrite"):
        write("yes\n")
    assert [p.name for p in tmp_path.iterdir()] == ["answers.txt"]
    write("made by hand\n")
    write("yes\n", overwrite=True)
    assert (tmp_path / "answers.txt").read_text() == "yes\n"


def test_a_set_appears_together(tmp_path: Path) -> None:
    with ShardSet(tmp_path) as shards:
        shards.write("train", "a", {"txt": "x"})
        shards.write("test", "a", {"txt": "x"})
        shards.add_file("answers.txt", "yes\n")
    before = files(tmp_path)
    assert sorted(before) == ["answers.txt", "test-000000.tar", "train-000000.tar"]

    with ShardSet(tmp_path, prefixes=("train", "test"), overwrite=True) as shards:
        shards.write("train", "b", {"txt": "x"})
    assert sorted(files(tmp_path)) == ["answers.txt", "train-000000.tar"]


def test_a_failed_swap_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "old")
    before, real, calls = files(tmp_path), os.rename, []

    def rename(a: Any, b: Any) -> None:
        calls.append(b)
        if len(calls) == 5:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(WriteError, match="Input/output error"):
        fill(tmp_path, "new", overwrite=True)
    assert files(tmp_path) == before


class FullDisk(io.FileIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 4000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "old")
    before = files(tmp_path)
    monkeypatch.setattr(module, "_create", lambda path: FullDisk(path, "xb"))
    with pytest.raises(WriteError) as caught:
        fill(tmp_path, "new", overwrite=True)
    assert caught.value.errno == errno.ENOSPC
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path / 'train-000000.tar'}: No space left on device; make room"
    )
    assert "\n" not in message
    assert files(tmp_path) == before


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ShardError, match="is a file"):
        ShardWriter(tmp_path / "out", "train")
    with (
        pytest.raises(WriteError, match="Not a directory"),
        ShardWriter(tmp_path / "out" / "below", "train"),
    ):
        pass
