"""A shard set damaged in every way trains to the end; the counts are exact."""

import io
import json
import struct
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.shards import load_index, open_shards
from crossloom.data_pipelines.source import changed
from crossloom.display import figures
from crossloom.modalities.patches import Patches
from crossloom.objectives.presets import itm, mlm
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training import checkpoint
from crossloom.training.environment import start
from crossloom.training.loop import RunError, train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component
from crossloom.training.run import make_stack

CPU = start("cpu")


def read_tar(path):
    """Samples as a list of (key, {extension: data})."""
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return list(samples.items())


def write_tar(path, samples, links=()):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                if key in links:
                    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
                tar.addfile(info, io.BytesIO(data))


def huge_png():
    """A picture that says it has 900 million pixels, in a hundred bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(data):
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG")
    return out.getvalue()


HARM = {
    0: ("undecodable", lambda m: {"json": m["json"], "jpg": jpeg(m["png"])[:300]}),
    1: ("wrong extension", lambda m: {**m, "png": b"<html>404 not found</html>"}),
    2: ("image too large", lambda m: {**m, "png": huge_png()}),
    3: ("not UTF-8", lambda m: {**m, "json": m["json"].replace(b'"texts"', b'"te\xff"')}),
    4: ("missing member", lambda m: {"json": m["json"]}),
    5: ("missing member", lambda m: {"png": m["png"]}),
    6: ("undecodable", lambda m: {**m, "json": m["json"][:40]}),
    7: ("undecodable", lambda m: {**m, "png": b""}),
}


@pytest.fixture(scope="module")
def sets(world, tmp_path_factory):
    """A whole set, the same with damage, and the kind of damage by key."""
    whole, bad = (tmp_path_factory.mktemp(n) for n in ("whole", "bad"))
    for folder in (whole, bad):
        (folder / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    for name in ("train-000000.tar", "train-000001.tar", "train-000002.tar"):
        samples = [(k, {x: m[x] for x in ("json", "png")}) for k, m in read_tar(world / name)]
        if name != "train-000000.tar":
            write_tar(whole / name, samples)
            write_tar(bad / name, samples)
            continue
        extra = [m for _, m in samples[10:14]]
        write_tar(whole / name, [*samples, *zip(("x0", "x1", "x2", "x3"), extra, strict=True)])
        kinds = {}
        hurt = list(samples)
        for number, (kind, harm) in HARM.items():
            key, members = samples[number]
            hurt[number] = (key, harm(members))
            kinds[key] = kind
        names = [samples[15][0], "../../climbs", "/absolute", "link"]
        hurt += list(zip(names, extra, strict=True))
        write_tar(bad / name, hurt, links=("link",))
        kinds |= {"../../climbs": "path trick", "/absolute": "path trick", "link": "path trick"}
        # a byte that turns after the index was made
        shard = load_index(bad / name, checksums=True)
        offset, size = shard.entries[20].members["png"]
        data = bytearray((bad / name).read_bytes())
        data[offset + size // 2] ^= 0xFF
        (bad / name).write_bytes(data)
        kinds[samples[20][0]] = "checksum mismatch"
    data = (bad / "train-000002.tar").read_bytes()
    (bad / "train-000003.tar").write_bytes(data[: len(data) // 2])
    (bad / "train-000004.tar").write_bytes(b"")
    (bad / "train-000005.tar").write_bytes(b"this is no tar at all " * 1000)
    flipped = bytearray(data)
    flipped[load_index(bad / "train-000002.tar").entries[3].members["json"][0] - 300] ^= 1
    (bad / "train-000006.tar").write_bytes(flipped)
    return whole, bad, kinds


def make_recipe(folder, shards="train-*.tar", **changed):
    base = tiny_recipe(folder)
    image = Patches(size=32, patch=16, max_pixels=1_000_000)
    component = Component(shards=shards, reader=Texts(), objectives=("mlm", "itm"))
    return replace(
        base,
        modalities={"text": base.modalities["text"], "image": image},
        objectives={"mlm": mlm(STREAMS), "itm": itm(STREAMS)},
        mixture={"captions": component},
        **{"steps": 20, "examples": 8, "bad_share": 0.9, "save_every": 1, "keep": 100, **changed},
    )


def lines(folder):
    return [json.loads(x) for x in (folder / "quarantine.jsonl").read_text().splitlines()]


def expected(recipe, kinds):
    """Kinds of what the order says that the run will meet, the shards' own damage apart."""
    stack = make_stack(recipe.located())
    source = stack.parts["captions"].source
    met, first = Counter(), set()
    for number in range(recipe.steps * recipe.micro):
        for place in stack.places(number)[1]:
            shard, sample, _ = source.locate(place)
            entry = shard.entries[sample]
            first_shard = shard.name == "train-000000"
            if entry.fault:
                kind = entry.fault[0]
            elif first_shard and entry.key in kinds:
                kind = kinds[entry.key]
            else:
                continue
            met[kind] += 1
            first.add((shard.path, entry.key, kind))
    return met, first


SHARD_KINDS = {"truncated shard": 1, "empty shard": 1, "not a tar": 1, "damaged header": 1}


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    _, bad, _ = sets
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = make_recipe(bad)
    return recipe, out, train(recipe, out, CPU)


def test_a_set_damaged_in_every_way_trains_to_the_end_with_exact_counts(sets, run):
    _, _, kinds = sets
    recipe, out, report = run
    met, first = expected(recipe, kinds)
    assert set(met) == {
        "undecodable", "wrong extension", "image too large", "not UTF-8", "missing member",
        "duplicate key", "path trick", "checksum mismatch",
    }  # fmt: skip
    counted = {k.removeprefix("bad/"): n for k, n in report.items() if k.startswith("bad/")}
    assert counted == met + Counter(SHARD_KINDS)
    assert report["bad_total"] == sum(counted.values())
    assert f"bad {sum(counted.values()):.0f} (" in (line := figures(report))
    assert "1 truncated shard" in line
    listed = lines(out)
    assert {(x["shard"], x["key"], x["kind"]) for x in listed if x["key"]} == first
    assert Counter(x["kind"] for x in listed if not x["key"]) == SHARD_KINDS
    assert len(listed) == len(first) + 4
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("step", [1, 7, 13])
def test_resume_after_skips_is_exact(run, tmp_path, step):
    import shutil

    recipe, out, report = run
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "model.safetensors").unlink()
    for path in checkpoint.checkpoints(copy / "checkpoints"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    again = train(recipe, copy, CPU, resume=True)
    assert (copy / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert lines(copy) == lines(out)
    same = [k for k in report if k.startswith("bad") or k.endswith("/loss")]
    assert {k: again[k] for k in same} == {k: report[k] for k in same}
    one, other = (read_journal(x / "metrics.jsonl") for x in (out, copy))
    assert [x["bad_total"] for x in one] == [x["bad_total"] for x in other]


def test_bad_samples_move_no_other(sets):
    whole, bad, _ = sets
    shards = "train-00000[0-2].tar"
    one, other = (make_stack(make_recipe(f, shards).located()) for f in (whole, bad))
    differ = 0
    for number in range(20):
        places = one.places(number)
        assert places == other.places(number)
        clean, hurt = one.micro(number), other.micro(number)
        assert [k for k in clean.keys if k in hurt.keys] == list(hurt.keys)
        assert len(clean.keys) == len(hurt.keys) + len(hurt.defects)
        differ += len(hurt.defects)
    assert differ > 10


def test_many_in_a_row_end_the_run_and_say_of_what_kind(sets, world, tmp_path):
    samples = [(k, {"json": m["json"]}) for k, m in read_tar(world / "train-000001.tar")]
    write_tar(tmp_path / "train-000000.tar", samples)
    (tmp_path / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    recipe = make_recipe(tmp_path, bad_in_a_row=20)
    with pytest.raises(RunError, match=r"bad samples in a row.*missing member.*train-000000\.tar"):
        train(recipe, tmp_path / "run", CPU)
    assert {x["kind"] for x in lines(tmp_path / "run")} == {"missing member"}


def test_a_set_of_which_nothing_is_left_says_so(tmp_path):
    from crossloom.data_pipelines.shards import ShardError

    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ShardError, match=r"a\.tar: no sample can be read: empty .*nor of another"):
        open_shards("*.tar", tmp_path)


def test_shards_that_changed_between_save_and_resume_are_told(sets, tmp_path, capsys):
    import shutil

    _, bad, _ = sets
    folder = tmp_path / "data"
    shutil.copytree(bad, folder)
    recipe = make_recipe(folder, steps=2)
    train(recipe, tmp_path / "run", CPU)
    train(replace(recipe, steps=3), tmp_path / "run", CPU, resume=True)
    assert "the order of examples" not in capsys.readouterr().out
    data = (folder / "train-000001.tar").read_bytes()
    (folder / "train-000001.tar").write_bytes(data[: len(data) // 2])
    train(replace(recipe, steps=4), tmp_path / "run", CPU, resume=True)
    said = capsys.readouterr().out
    assert "captions: its shards hold other numbers of examples than when step 3" in said
    cut = [x for x in lines(tmp_path / "run") if x["shard"].endswith("train-000001.tar")]
    assert [(x["key"], x["kind"]) for x in cut] == [("", "truncated shard")]


def test_a_run_saved_under_an_earlier_order_says_so_when_it_goes_on(
    sets, tmp_path, capsys, monkeypatch
):
    recipe = make_recipe(sets[0], steps=1)
    with monkeypatch.context() as earlier:
        earlier.setattr("crossloom.data_pipelines.source.VERSION", 1)
        train(recipe, tmp_path / "run", CPU)
    train(replace(recipe, steps=2), tmp_path / "run", CPU, resume=True)
    said = capsys.readouterr().out
    assert (
        "captions: its order is found by arithmetic 2, and was by arithmetic 1 when step 1" in said
    )
    assert changed("0123456789abcdef", "2:0123456789abcdef").endswith("was by arithmetic 1")


def two(data, out):
    recipe = make_recipe(Path(data), micro=2, steps=8, save_every=8)
    try:
        return train(recipe, Path(out), start("cpu"))
    except RunError as error:
        return str(error)


@pytest.mark.distributed
def test_two_processes_count_as_one_does(sets, tmp_path):
    from crossloom.testing.processes import run_ranks

    _, bad, _ = sets
    alone = two(str(bad), str(tmp_path / "one"))
    shared = run_ranks(2, two, str(bad), str(tmp_path / "two"))
    for report in shared:
        bads = {k: v for k, v in report.items() if k.startswith("bad")}
        assert bads == {k: v for k, v in alone.items() if k.startswith("bad")}
    listed = lines(tmp_path / "two")
    other = (tmp_path / "two" / "quarantine-1.jsonl").read_text().splitlines()
    found = {(x["shard"], x["key"], x["kind"]) for x in [*listed, *map(json.loads, other)]}
    assert found == {(x["shard"], x["key"], x["kind"]) for x in lines(tmp_path / "one")}
