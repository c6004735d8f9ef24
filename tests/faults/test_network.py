"""Shards elsewhere: a bad network changes nothing, a dead one ends in words."""

import io
import json
import os
import socket
import time
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from network import Handler, Hub, Relay, Store, serving

from crossloom.data_pipelines import cache, remote
from crossloom.data_pipelines.check import write_indexes
from crossloom.data_pipelines.index import beside, of_file
from crossloom.data_pipelines.shards import ShardError, load_index, open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.run import make_stack

BRIEF = remote.Patience(total=1.0, stall=0.4, first=0.02, longest=0.1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "8")
    monkeypatch.delenv("CROSSLOOM_CACHE_GB", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    """The world's 60 training samples in 20 shards, and its vocabulary."""
    out = tmp_path_factory.mktemp("store")
    with ShardWriter(out, "train", shard_size=3) as writer:
        for shard in open_shards("train-*.tar", world):
            for number, entry in enumerate(shard.entries):
                writer.write(entry.key, shard.read(number))
    (out / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return out


def copy_of(store, out, count=20):
    out.mkdir()
    for path in sorted(store.glob("*.tar"))[:count]:
        (out / path.name).write_bytes(path.read_bytes())
    return out


def recipe_of(store, shards="train-*.tar", **changed):
    base = tiny_recipe(store)
    mixture = {n: replace(c, shards=shards) for n, c in base.mixture.items()}
    return replace(base, mixture=mixture, **changed)


def batches(recipe, count):
    stack = make_stack(recipe.located())
    return [stack.micro(n) for n in range(count)]


def same(one, other):
    assert one.keys == other.keys
    assert one.defects == other.defects == ()
    for name in one.views:
        for stream, here in one.views[name].streams.items():
            there = other.views[name].streams[stream]
            for x, value in here.content.items():
                assert np.array_equal(value, there.content[x])


@pytest.mark.parametrize("published", [False, True])
def test_one_request_in_ten_failing_gives_the_same_examples_in_the_same_order(
    store, tmp_path, published
):
    folder = copy_of(store, tmp_path / "served")
    for path in sorted(folder.glob("*.tar")):
        if published:
            of_file(path, checksums=True)
    with serving(folder) as server:
        server.every = 10
        shards = f"{server.url}/train-0000{{00..19}}.tar"
        found = batches(recipe_of(store, shards), 30)
        assert set(server.harmed) >= {"error", "stall", "cut", "slow"}, server.harmed
        assert len(server.harmed) == len(server.asked) // 10
    for one, other in zip(batches(recipe_of(store), 30), found, strict=True):
        same(one, other)


def test_training_over_a_bad_network_equals_training_from_the_disk(store, tmp_path):
    recipe = recipe_of(store, steps=6, save_every=6)
    train(recipe, tmp_path / "near", start("cpu"))
    with serving(copy_of(store, tmp_path / "served")) as server:
        server.every = 10
        far = recipe_of(store, f"{server.url}/train-0000{{00..19}}.tar", steps=6, save_every=6)
        train(replace(far, workers=2), tmp_path / "far", start("cpu"))
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in ("near", "far")]
    assert weights[0] == weights[1]


def test_a_cut_fetch_goes_on_where_it_was_cut(tmp_path):
    (tmp_path / "a.tar").write_bytes(os.urandom(3 << 20))
    with serving(tmp_path) as server:
        server.every, server.harms = 1, ("cut", "cut", "error", "")
        with open(tmp_path / "got", "w+b") as file:
            remote.fetch(f"{server.url}/a.tar", file, remote.Stamp(3 << 20), BRIEF)
        assert (tmp_path / "got").read_bytes() == (tmp_path / "a.tar").read_bytes()
        assert len(server.asked) == 4
        server.ranges = False
        server.harmed.clear()
        with open(tmp_path / "got", "w+b") as file:
            remote.fetch(f"{server.url}/a.tar", file, remote.Stamp(), BRIEF)
    assert (tmp_path / "got").read_bytes() == (tmp_path / "a.tar").read_bytes()


def test_patience_begins_anew_with_whatever_comes():
    tries = iter(range(6))

    def attempt():
        time.sleep(0.1)
        if next(tries) < 5:
            raise remote._Transient("cut", progress=True)
        return "all"

    patience = remote.Patience(total=0.3, first=0.01, longest=0.02)
    assert remote.persist("a.tar", attempt, patience) == "all"


class Weak(Handler):
    """Its marks promise nothing about bytes; notes which parts were asked for."""

    parts = []

    def file(self, name):
        self.parts.append(self.headers.get("Range"))
        status, data, headers = super().file(name)
        return status, data, {**headers, "ETag": f"W/{headers['ETag']}"}


def test_parts_under_a_weak_mark_are_not_put_together(tmp_path):
    (tmp_path / "a.tar").write_bytes(os.urandom(3 << 20))
    with serving(tmp_path, handler=Weak) as server, open(tmp_path / "got", "w+b") as file:
        server.every, server.harms = 1, ("cut", "")
        remote.fetch(f"{server.url}/a.tar", file, remote.Stamp(3 << 20), BRIEF)
    assert (tmp_path / "got").read_bytes() == (tmp_path / "a.tar").read_bytes()
    assert Weak.parts == [None, None]


def test_what_a_server_cannot_do_is_not_asked_for_again(tmp_path):
    with serving(tmp_path) as server:
        server.every, server.harms = 1, ("unable",)
        assert remote.stamp(f"{server.url}/a.tar", BRIEF) == remote.Stamp()
        with pytest.raises(remote.Missing, match="the server says 501"):
            remote.fetch(f"{server.url}/a.tar", io.BytesIO(), remote.Stamp(), BRIEF)
        assert len(server.asked) == 2


def test_an_index_beside_the_tar_saves_fetching_it(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 2)
    of_file(folder / "train-000000.tar", checksums=True)
    with serving(folder) as server:
        first, second = open_shards(f"{server.url}/train-00000{{0..1}}.tar")
        fetched = [p for m, p in server.asked if m == "GET" and p.endswith(".tar")]
        assert fetched == ["/train-000001.tar"]
        assert first.read(0) == load_index(folder / "train-000000.tar").read(0)
        assert second.read(1) == load_index(folder / "train-000001.tar").read(1)
        before = len(server.asked)
        again = open_shards(f"{server.url}/train-00000{{0..1}}.tar")
        assert again == (first, second)
        # what is in the cache is only asked for its version
        asked = server.asked[before:]
        assert asked[0] == ("GET", "/shards.summary.json")
        assert [m for m, _ in asked[1:]] == ["HEAD", "HEAD"]


def publish(folder, checksums=True):
    """The tars of a folder, their indexes and their summary, as one would upload them."""
    write_indexes(sorted(map(str, folder.glob("*.tar"))), checksums=checksums)


def test_a_published_summary_saves_asking_for_each_tar(store, tmp_path):
    folder = copy_of(store, tmp_path / "served")
    publish(folder)
    with serving(folder) as server:
        recipe = recipe_of(store, f"{server.url}/train-0000{{00..19}}.tar")
        stack = make_stack(recipe.located())
        # one for each of two components
        assert server.asked == [("GET", "/shards.summary.json")] * 2
        near = make_stack(recipe_of(store).located())
        assert stack.fingerprints() == near.fingerprints()
        assert stack.places(0) == near.places(0)
        shard = stack.parts["captions"].source.shards[7]
        server.asked.clear()
        assert shard.read(1) == load_index(folder / "train-000007.tar").read(1)
        assert shard.read(2) == load_index(folder / "train-000007.tar").read(2)
        assert set(server.asked) == {
            ("HEAD", "/train-000007.tar"),
            ("GET", "/train-000007.tar.index.json"),
            ("GET", "/train-000007.tar"),
        }
        for number in range(3):
            same(stack.micro(number), near.micro(number))


def test_a_tar_that_is_not_what_the_summary_tells_ends_in_words(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 2)
    publish(folder)
    with ShardWriter(tmp_path / "new", "train", shard_size=9) as writer:
        for number in range(4):
            writer.write(f"new{number}", {"json": {"texts": {"en": ["a"]}}})
    with serving(folder) as server:
        (shard,) = open_shards(f"{server.url}/train-000000.tar")
        (folder / "train-000000.tar.index.json").unlink()
        os.replace(tmp_path / "new/train-000000.tar", folder / "train-000000.tar")
        with pytest.raises(ShardError, match=r"holds other samples.*shards index"):
            shard.read(0)


def test_indexing_tars_elsewhere_gives_a_summary_to_put_beside_them(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 3)
    with serving(folder) as server:
        urls = [f"{server.url}/train-00000{n}.tar" for n in range(3)]
        made = write_indexes(urls, str(tmp_path / "out"))
        for path in (tmp_path / "out").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        server.asked.clear()
        again = open_shards(urls)
        assert server.asked == [("GET", "/shards.summary.json")]
        assert [s.totals for s in again] == [s.totals for s in made]
        assert again[2].read(0) == load_index(folder / "train-000002.tar").read(0)


def test_a_summary_in_the_cache_saves_reading_indexes_again(store, tmp_path, monkeypatch):
    folder = copy_of(store, tmp_path / "served", 3)
    with serving(folder) as server:
        pattern = f"{server.url}/train-00000{{0..2}}.tar"
        first = open_shards(pattern)
        monkeypatch.setattr("crossloom.data_pipelines.index.parse", None)
        assert open_shards(pattern) == first


def test_a_changed_remote_tar_is_noticed(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 2)
    with serving(folder) as server:
        url = f"{server.url}/train-000000.tar"
        before = load_index(url)
        before.read(0)
        os.replace(folder / "train-000001.tar", folder / "train-000000.tar")
        after = load_index(url)
        assert [e.key for e in after.entries] != [e.key for e in before.entries]
        assert after.read(0) != before.read(0)


def test_a_tar_changed_between_index_and_fetch_ends_in_words(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 2)
    of_file(folder / "train-000000.tar")
    with serving(folder) as server:
        shard = load_index(f"{server.url}/train-000000.tar")
        other = (folder / "train-000001.tar").read_bytes()
        size = shard.size
        (folder / "train-000000.tar").write_bytes(other[:size].ljust(size, b"\0"))
        with pytest.raises(ShardError, match="changed meanwhile"):
            shard.read(0)


def test_a_wrong_checksum_is_fetched_again_and_then_named(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 1)
    path = folder / "train-000000.tar"
    index = of_file(path, checksums=True)
    whole = path.read_bytes()
    offset, _ = index.entries[1].members["json"]
    path.write_bytes(whole[: offset + 5] + b"\xff" + whole[offset + 6 :])
    with serving(folder) as server:
        shard = load_index(f"{server.url}/train-000000.tar")
        assert shard.read(0)["json"]
        assert sum(m == "GET" and p.endswith(".tar") for m, p in server.asked) == 2
        from crossloom.units import BadSample

        with pytest.raises(BadSample, match="json is not what was indexed") as found:
            shard.read(1)
        assert found.value.kind == "checksum mismatch"


def _read_all(urls):
    return [len(s.read(n)) for u in urls for s in open_shards(u) for n in range(len(s.entries))]


def test_processes_of_a_node_fetch_each_tar_once(store, tmp_path):
    folder = copy_of(store, tmp_path / "served", 3)
    with serving(folder) as server:
        urls = [f"{server.url}/train-00000{n}.tar" for n in range(3)]
        with get_context("fork").Pool(4) as pool:
            found = pool.map(_read_all, [urls] * 4, chunksize=1)
        fetched = [p for m, p in server.asked if m == "GET" and p.endswith(".tar")]
    assert found == [found[0]] * 4
    assert sorted(fetched) == sorted(u.removeprefix(server.url) for u in urls)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_the_cache_keeps_its_limit_and_the_recently_used(store, tmp_path, monkeypatch):
    folder = copy_of(store, tmp_path / "served", 4)
    for path in folder.glob("*.tar"):
        path.write_bytes((store / "train-000000.tar").read_bytes())
    size = (store / "train-000000.tar").stat().st_size
    monkeypatch.setenv("CROSSLOOM_CACHE_GB", str(2.5 * size / 1e9))
    kept = lambda: {p.name.split("-", 1)[1] for p in (tmp_path / "cache/shards").glob("*.tar")}  # noqa: E731
    with serving(folder) as server:
        shards = [load_index(f"{server.url}/train-00000{n}.tar") for n in range(4)]
        for n in (0, 1, 0, 2):
            assert shards[n].read(0)
            time.sleep(0.02)
        assert kept() == {"train-000000.tar", "train-000002.tar"}
        assert shards[1].read(0)  # fetched again, or still open
        monkeypatch.setenv("CROSSLOOM_CACHE_GB", str(size / 4e9))
        with pytest.raises(ShardError, match="does not fit into CROSSLOOM_CACHE_GB"):
            cache.open_cached(tmp_path / "cache/shards/x.tar", lambda f: None, size)
        monkeypatch.setenv("CROSSLOOM_CACHE_GB", "much")
        with pytest.raises(ShardError, match="write the cache's size in GB"):
            cache.limit()


def test_what_is_opened_in_the_cache_counts_as_used(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"a")
    os.utime(path, (1, 1))
    file, fetched = cache.open_cached(path, lambda f: None)
    with file:
        assert (file.read(), fetched) == (b"a", False)
    assert path.stat().st_mtime > 1


def test_only_abandoned_halves_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSLOOM_CACHE_GB", "2e-9")
    for name, age in (("old.tar.part", 2 * 3600), ("young.tar.part", 60), ("own.tar.part", 0)):
        (tmp_path / name).write_bytes(b"aa")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cache.make_room(tmp_path, 1, tmp_path / "own.tar.part")
    assert {p.name for p in tmp_path.glob("*.part")} == {"young.tar.part", "own.tar.part"}
    assert (tmp_path / "own.tar.part").stat().st_size == 1


def test_a_cache_too_small_for_the_readers_is_told(store, tmp_path, monkeypatch):
    with serving(store) as server:
        recipe = recipe_of(store, f"{server.url}/train-0000{{00..19}}.tar")
        assert make_stack(recipe.located()).advice == []
        size = (store / "train-000000.tar").stat().st_size
        monkeypatch.setenv("CROSSLOOM_CACHE_GB", str(3 * size / 1e9))
        hints = make_stack(recipe.located()).advice
        assert len(hints) == 2
        assert "raise CROSSLOOM_CACHE_GB or lower `readers`" in hints[0]
        same(make_stack(recipe.located()).micro(3), make_stack(recipe_of(store).located()).micro(3))


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_endpoint_ends_in_words(monkeypatch):
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "2")
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"given up after \d+ tries.*--resume"):
        open_shards(f"http://127.0.0.1:{closed_port()}/a.tar")
    assert time.monotonic() - began < 4
    usual = remote.Patience()
    assert usual.total + usual.stall < 60


def test_a_server_that_never_answers_ends_in_words(monkeypatch):
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "2")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        began = time.monotonic()
        with pytest.raises(ShardError, match="given up"):
            open_shards(f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar")
        assert time.monotonic() - began < 4


def test_a_server_that_drips_is_given_up(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(4000))
    with serving(tmp_path) as server:
        server.every, server.harms, server.ranges = 1, ("slow",), False
        patience, file = remote.Patience(total=0.5, stall=0.1, first=0.01), io.BytesIO()
        with pytest.raises(ShardError, match=r"stuck after \d+ bytes"):
            remote.fetch(f"{server.url}/a.tar", file, remote.Stamp(4000), patience)


def test_an_endpoint_that_dies_in_a_run_ends_it_in_words(store, tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "2")
    folder = copy_of(store, tmp_path / "served")
    for path in folder.glob("*.tar"):
        of_file(path)
    with serving(folder) as server:
        recipe = recipe_of(store, f"{server.url}/train-0000{{00..19}}.tar", workers=2)
        make_stack(recipe.located())
        server.every, server.harms = 1, ("error",)
        # the start is spared
        monkeypatch.setattr(remote, "small", lambda url, patience=None: None)
        monkeypatch.setattr(remote, "stamp", lambda url, patience=None: _stamp_of(folder, url))
        began = time.monotonic()
        with pytest.raises(ShardError, match=r"train-0000\d\d\.tar: given up.*503"):
            train(recipe, tmp_path / "run", start("cpu"))
        assert time.monotonic() - began < 20


def _stamp_of(folder, url):
    path = folder / url.rpartition("/")[2]
    status = path.stat()
    return remote.Stamp(status.st_size, f'"{status.st_mtime_ns}"')


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.tar", "the server says 404"),
        (":x/none.tar", "no address that can be opened"),
        ("*.tar", "HTTP cannot list"),
        ("none.tar?secret=hidden", r"none\.tar\?…: the server says 404"),
    ],
)
def test_what_will_not_get_better_is_not_tried_again(tmp_path, path, message):
    with serving(tmp_path) as server:
        with pytest.raises(ShardError, match=message) as found:
            open_shards(f"{server.url}{path if path[0] == ':' else '/' + path}")
        assert "hidden" not in str(found.value)
        assert len([p for _, p in server.asked if "summary" not in p]) <= 1
        assert len(server.asked) <= 2


def test_a_protocol_whose_package_is_missing_names_it(monkeypatch):
    import fsspec.core

    def missing(url, **_):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ShardError, match="pip install gcsfs"):
        open_shards("gs://bucket/a.tar")


def test_pipes_are_commands_whose_output_is_kept(store, tmp_path):
    path = sorted(store.glob("*.tar"))[0]
    counter = tmp_path / "count"
    (shard,) = open_shards(f"pipe:echo x >> {counter}; cat {path}")
    assert shard.read(0) == load_index(path).read(0)
    assert open_shards(f"pipe:echo x >> {counter}; cat {path}") == (shard,)
    assert counter.read_text() == "x\n"
    assert shard.name == path.stem


def test_a_failing_pipe_ends_with_its_last_words(monkeypatch):
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "1")
    with pytest.raises(ShardError, match=r"ended with status 3: no such bucket"):
        open_shards("pipe:echo part; echo no such bucket >&2; exit 3")
    with pytest.raises(ShardError, match="wrote nothing"):
        open_shards("pipe:sleep 30")


#: Each stalled request costs the patience of one.
STALLS_LAST = ("error", "cut", "reset", "slow", "refuse", "stall")


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    url = "http://{}:{}".format(*moto.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="data")
    yield client
    moto.stop()


def test_buckets_are_read_listed_and_missing_ones_named(bucket, store, tmp_path):
    for path in sorted(store.glob("*.tar"))[:4]:
        bucket.upload_file(str(path), "data", f"set/{path.name}")
    of_file(store / "train-000000.tar", checksums=True)
    index = beside(store / "train-000000.tar")
    bucket.upload_file(str(index), "data", f"set/{index.name}")
    for pattern in ("s3://data/set", "s3://data/set/train-*.tar",
                    "s3://data/set/train-00000{0..3}.tar"):  # fmt: skip
        shards = open_shards(pattern)
        assert [s.name for s in shards] == [f"train-00000{n}" for n in range(4)]
    for shard in shards:
        near = load_index(store / f"{shard.name}.tar")
        for number in range(len(near.entries)):
            assert shard.read(number) == near.read(number)
    with pytest.raises(ShardError, match="none"):
        open_shards("s3://data/none.tar")
    with pytest.raises(ShardError, match="no such shards"):
        open_shards("s3://data/other/*.tar")


def test_one_request_in_ten_to_a_bucket_failing_changes_nothing(
    bucket, store, tmp_path, monkeypatch
):
    for path in sorted(store.glob("*.tar")):
        bucket.upload_file(str(path), "data", f"set/{path.name}")
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "20")  # a busy machine answers late
    address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    with serving(address, handler=Relay) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        server.every, server.harms = 10, STALLS_LAST
        found = batches(recipe_of(store, "s3://data/set/train-*.tar"), 30)
        assert set(server.harmed) == set(STALLS_LAST), server.harmed
        assert len(server.harmed) == len(server.asked) // 10
    for one, other in zip(batches(recipe_of(store), 30), found, strict=True):
        same(one, other)


@pytest.fixture
def cloud(monkeypatch):
    """Points gcsfs to a server on this machine."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")
    return lambda server: monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)


@pytest.fixture
def hub(monkeypatch):
    """Points huggingface_hub to a server on this machine."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    usual = constants.ENDPOINT

    def point(server):
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            told = getattr(constants, name).replace(usual, server.url)
            monkeypatch.setattr(constants, name, told)

    return point


@pytest.mark.parametrize(
    ("where", "handler", "address"),
    [("cloud", Store, "gs://data"), ("hub", Hub, "hf://datasets/our/set")],
)
def test_one_request_in_ten_to_other_stores_failing_changes_nothing(
    where, handler, address, store, tmp_path, monkeypatch, request
):
    folder = copy_of(store, tmp_path / "served", 12)
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "20")  # a busy machine answers late
    with serving(folder, handler=handler) as server:
        request.getfixturevalue(where)(server)
        server.every, server.harms = 10, STALLS_LAST
        found = batches(recipe_of(store, f"{address}/train-*.tar"), 30)
        assert len(server.harmed) == len(server.asked) // 10
        assert set(server.harmed) >= {"error", "cut", "reset"}, server.harmed
        with pytest.raises(ShardError, match="none"):
            open_shards(f"{address}/none.tar")
    near = recipe_of(store, "train-0000{00..11}.tar")
    for one, other in zip(batches(near, 30), found, strict=True):
        same(one, other)


def test_training_from_a_bucket_equals_training_from_the_disk(bucket, store, tmp_path):
    for path in sorted(store.glob("*.tar")):
        bucket.upload_file(str(path), "data", path.name)
    train(recipe_of(store, steps=3), tmp_path / "near", start("cpu"))
    train(recipe_of(store, "s3://data/train-*.tar", steps=3, workers=1), tmp_path / "far",
          start("cpu"))  # fmt: skip
    one, other = (read_journal(tmp_path / x / "metrics.jsonl") for x in ("near", "far"))
    losses = [[{k: v for k, v in x.items() if "loss" in k} for x in y] for y in (one, other)]
    assert losses[0] == losses[1]
    assert json.loads((tmp_path / "far/metrics.jsonl").read_text().splitlines()[-1])["bad"] == 0
