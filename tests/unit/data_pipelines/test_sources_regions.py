"""Region features: bottom-up-attention TSV, LMDB, HDF5, and a detector of torchvision."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_vision_sources as vision
import numpy as np
import pytest
from PIL import Image

from crossloom.data_pipelines.check import check_shards
from crossloom.data_pipelines.sources import Skipped, SourceError, butd, coco, nlvr2
from crossloom.data_pipelines.sources import common as sources_common
from crossloom.data_pipelines.sources import hdf5_features as hdf5
from crossloom.data_pipelines.sources import lmdb_features as lmdb_source
from crossloom.data_pipelines.sources.region_features import (
    BadRegions,
    Regions,
    encode,
    plain_name,
)
from crossloom.modalities import regions as modality
from crossloom.units import keyed_rng


def arrays(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def same(data: bytes, count: int, labels: bool = False, chance: bool = False) -> None:
    """The npz holds what the fixture's detector saw."""
    found, seen = arrays(data), vision.seen(count)
    assert found["features"].dtype == np.float16
    np.testing.assert_allclose(found["features"], seen["features"], atol=1e-3)
    np.testing.assert_allclose(found["boxes"], seen["boxes"], atol=1e-4)
    assert found["size"].tolist() == [8, 8]
    assert ("labels" in found, "probabilities" in found) == (labels, chance)
    if labels:
        assert found["labels"].tolist() == (seen["obj_id"] + 1).tolist()
    if chance:
        np.testing.assert_allclose(found["probabilities"], seen["cls_prob"], atol=1e-3)


# --- one image ----------------------------------------------------------------------------------


def test_the_modality_reads_what_is_written() -> None:
    seen = vision.seen(3)
    regions = Regions(seen["features"], seen["boxes"], (8, 8), None, seen["cls_prob"])
    data = encode(regions)
    assert data == encode(regions)
    spec = modality.Regions(features=4, classes=5)
    units = spec.decode({"regions.npz": data}, keyed_rng("x"))
    np.testing.assert_allclose(units.content["feature"], seen["features"], atol=1e-3)
    np.testing.assert_allclose(units.content["box"][:, :4], seen["boxes"] / 8, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": np.zeros((0, 4))}, "no regions"),
        ({"boxes": np.zeros((2, 4))}, "of another shape"),
        ({"features": np.full((3, 4), np.nan)}, "NaN"),
        ({"boxes": np.tile([0, 0, 20, 4], (3, 1))}, "outside"),
        ({"boxes": np.tile([4, 4, 2, 6], (3, 1))}, "outside"),
        ({"boxes": np.full((3, 4), np.nan)}, "outside"),
        ({"size": (0, 8)}, "of another shape"),
        ({"labels": np.zeros(2)}, "of another shape"),
    ],
)
def test_regions_that_cannot_be_used(change: dict[str, Any], reason: str) -> None:
    seen = vision.seen(3)
    fields = {"features": seen["features"], "boxes": seen["boxes"], "size": (8, 8), **change}
    with pytest.raises(BadRegions, match=reason):
        encode(Regions(**fields))


def test_large_values_keep_their_precision() -> None:
    regions = Regions(np.full((1, 2), 1e6, np.float32), np.array([[0, 0, 8.4, 8]]), (8, 8))
    found = arrays(encode(regions))
    assert found["features"].tolist() == [[1e6, 1e6]]
    assert found["boxes"].tolist() == [[0, 0, 8, 8]]  # a pixel may overhang, and is cut


def test_shares_become_pixels_of_the_image() -> None:
    out = io.BytesIO()
    Image.new("RGB", (20, 10)).save(out, "PNG")
    regions = Regions(np.ones((1, 2)), np.array([[0, 0.5, 1, 1]]), None)
    assert arrays(encode(regions, out.getvalue()))["boxes"].tolist() == [[0, 5, 20, 10]]
    assert arrays(encode(regions))["size"].tolist() == [1000, 1000]
    with pytest.raises(BadRegions, match="size of the image"):
        encode(regions, b"no image")


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (("9", "000000000009", "COCO_train2014_000000000009.jpg", "coco_val2014_9.npz"), "9"),
        (("flickr30k_000000036979.npz", "36979.jpg", "36979"), "36979"),
        (("nlvr2_dev-850-0-img0.npz", "dev/dev-850-0-img0.png"), "dev-850-0-img0"),
        (("n161313", "gqa_n161313.npy"), "n161313"),
        (("1003_1234.jpg",), "1003_1234"),
        (("0", "00"), "0"),
        (("vg_000000000071.npz", "71.jpg"), "71"),
    ],
)
def test_plain_names(names: tuple[str, ...], plain: str) -> None:
    assert {plain_name(name) for name in names} == {plain}


# --- tsv ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [6, 7, 10])
def test_butd(tmp_path: Path, columns: int) -> None:
    report = butd.convert(vision.butd(tmp_path / "in", columns), tmp_path / "out")
    assert report.counts == {"train": {"samples": 3, "regions": 3}}
    assert not report.skipped
    samples = make.samples(tmp_path / "out", "train")
    assert list(samples) == ["9", "25", "42"]
    for key, count in {"9": 3, "25": 2, "42": 5}.items():
        same(samples[key]["regions.npz"], count, labels=columns == 10, chance=columns == 7)
        traits = {"attributes", "confidence", "attribute_confidence"}
        found = arrays(samples[key]["regions.npz"])
        assert traits & set(found) == (traits if columns == 10 else set())
        if columns == 10:
            assert found["attributes"].tolist() == (found["labels"] - 1 + 7).tolist()
            sure = np.linspace(0.25, 0.75, count)
            assert np.allclose(found["confidence"], sure, atol=1e-3)
            assert np.allclose(found["attribute_confidence"], sure / 2, atol=1e-3)
            spec = modality.Regions(features=4, classes=4, background=False, attributes=20)
            units = spec.decode(samples[key], keyed_rng("test"))
            assert (units.targets["class"] == found["labels"] - 1).all()
            assert (units.targets["attribute"] == found["attributes"]).all()
            assert np.allclose(units.targets["class.trust"], sure, atol=1e-3)
    if columns == 10:  # it starts a process
        assert check_shards(str(tmp_path / "out"), processes=1).defects == {}


def test_butd_is_added_to_shards(tmp_path: Path) -> None:
    folder = make.coco(tmp_path / "coco")
    make.vqa(folder, "train2014", {1: (9, ["red"] * 10)})
    coco.convert(folder, tmp_path / "shards")
    features = vision.butd(tmp_path / "in", 10)
    out = tmp_path / "out"
    report = butd.convert(features, out, shards=str(tmp_path / "shards"))
    assert report.samples == {"train": 2, "dev": 1}
    before = make.samples(tmp_path / "shards", "train")
    for key, members in make.samples(out, "train").items():
        same(members.pop("regions.npz"), 3 if key.endswith("9") else 2, labels=True)
        assert members == before[key]
    assert (out / "answers.txt").read_text() == "red\n"
    butd.convert(features, out, shards=str(tmp_path / "shards"), keep_images=False, overwrite=True)
    assert set(make.samples(out, "train")["000000000009"]) == {"json", "regions.npz"}


def test_butd_for_pairs_of_images(tmp_path: Path) -> None:
    nlvr2.convert(vision.nlvr2(tmp_path / "in"), tmp_path / "shards")
    names = ["train-10171-0-img0", "train-10171-0-img1", "train-2-3-img1"]
    lines = [vision.butd_line(name, n + 1) for n, name in enumerate(names)]
    tsv = make.put(tmp_path / "train.tsv", "".join(lines))
    report = butd.convert(tsv, tmp_path / "out", shards=str(tmp_path / "shards"))
    (sample,) = make.samples(tmp_path / "out", "train").values()
    assert set(sample) == {"0.jpg", "1.jpg", "json", "0.regions.npz", "1.regions.npz"}
    same(sample["1.regions.npz"], 2)
    assert report.counts["train"]["regions"] == 2
    skipped = Skipped(3, ("dev-850-0", "test1-0-1", "train-2-3"))
    assert report.skipped == {"sample without regions": skipped}


def test_butd_tells_pages_of_one_number_apart(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    with sources_common.Conversion("books", shards) as to:
        for book in ("1", "2"):
            to.write("train", f"{book}-07", {"id": f"{book}/07", "texts": {"en": ["a"]}})
    lines = [vision.butd_line(f"{book}/07", count) for book, count in (("1", 2), ("2", 3))]
    tsv = make.put(tmp_path / "books.tsv", "".join(lines))
    report = butd.convert(tsv, tmp_path / "out", shards=str(shards))
    for key, members in make.samples(tmp_path / "out", "train").items():
        same(members["regions.npz"], 2 if key == "1-07" else 3)
    assert report.samples == {"train": 2}
    assert not report.skipped


def test_butd_counts_bad_lines(tmp_path: Path) -> None:
    folder = vision.butd(tmp_path / "in")
    good = vision.butd_line("1", 2).split("\t")
    rows = [
        ["2", *good[1:5]],
        ["9", *good[1:]],
        ["3", *good[1:3], "3", *good[4:]],
        ["4", *good[1:4], "???", good[5]],
        ["5", "4", "4", *good[3:]],
        ["6", *good[1:3], "0", "", "\n"],
        ["COCO_val2014_000000000042", *good[1:]],
        ["é", *good[1:]],
        ["", *good[1:]],
    ]
    path = folder / "features.tsv.1"
    path.write_text(path.read_text() + "".join("\t".join(r).strip("\n") + "\n" for r in rows))
    report = butd.convert(folder, tmp_path / "out")
    damaged = "regions are damaged or of another shape than they say"
    assert report.skipped == {
        "line has another number of columns": Skipped(2, (f"{path.name}:2", f"{path.name}:10")),
        "regions of an image given twice": Skipped(
            2, (f"{path.name}:3", "COCO_val2014_000000000042")
        ),
        damaged: Skipped(3, ("3", "4", "é")),
        "box of a region lies outside the image": Skipped(1, ("5",)),
        "no regions in the image": Skipped(1, ("6",)),
    }
    assert report.samples == {"train": 3}


def test_butd_errors(tmp_path: Path) -> None:
    path = make.put(tmp_path / "in/x.tsv", "1\t2\t3\n")
    with pytest.raises(SourceError, match=r"x.tsv: 3 columns; .* have 6, 7 or 10.*columns="):
        butd.convert(tmp_path / "in", tmp_path / "out")
    path.write_text(vision.butd_line("9", 2))
    with pytest.raises(SourceError, match="no column is named image_id"):
        butd.convert(path, tmp_path / "out", columns="a,w,h,n,boxes,features")
    swapped = "image_id,img_w,img_h,num_boxes,boxes, features"
    assert butd.convert(path, tmp_path / "out", columns=swapped).samples == {"train": 1}
    with pytest.raises(SourceError, match=r"absent: no shards in it; give those"):
        butd.convert(path, tmp_path / "o", shards=str(tmp_path / "absent"))


# --- lmdb, hdf5 ---------------------------------------------------------------------------------


def packed(array: Any) -> dict[bytes, Any]:
    """An array as msgpack_numpy writes it."""
    form, shape = array.dtype.str, array.shape
    return {b"nd": True, b"type": form, b"kind": b"", b"shape": shape, b"data": array.tobytes()}


def uniter(count: int) -> dict[str, Any]:
    seen = vision.seen(count)
    low, high = seen["boxes"][:, :2] / 8, seen["boxes"][:, 2:] / 8
    return {
        "norm_bb": np.concatenate([low, high, high - low], 1).astype(np.float16),
        "features": seen["features"].astype(np.float16),
        "conf": np.ones(count, np.float16),
        "soft_labels": seen["cls_prob"].astype(np.float16),
    }


def put_lmdb(path: Path, values: dict[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as writing:
        for key, value in values.items():
            writing.put(key.encode(), value)
    return path


def test_lmdb_of_volta(tmp_path: Path) -> None:
    values = {name: {**vision.seen(n), "img_id": name} for name, n in (("9", 3), ("25", 2))}
    values["42"] = {
        "features": vision.b64(vision.seen(5)["features"]),
        "boxes": vision.b64(vision.seen(5)["boxes"]).encode(),
        "num_boxes": 5,
        "img_w": "8",
        "img_h": np.int64(8),
        "cls_prob": vision.b64(vision.seen(5)["cls_prob"]),
    }
    listed = {k: pickle.dumps(v) for k, v in values.items()}
    listed["keys"] = pickle.dumps([b"9", b"25", b"42"])
    report = lmdb_source.convert(put_lmdb(tmp_path / "x.lmdb", listed), tmp_path / "out")
    assert not report.skipped
    samples = make.samples(tmp_path / "out", "train")
    assert list(samples) == ["25", "42", "9"]
    same(samples["9"]["regions.npz"], 3, labels=True, chance=True)
    same(samples["42"]["regions.npz"], 5, chance=True)


@pytest.mark.parametrize("form", ["msgpack", "npz"])
def test_lmdb_of_uniter(tmp_path: Path, form: str) -> None:
    values = {}
    for number, count in ((9, 3), (25, 2), (42, 5)):
        key = f"coco_train2014_{number:012d}.npz"
        if form == "msgpack":
            msgpack = pytest.importorskip("msgpack")
            fields = {k: packed(v) for k, v in uniter(count).items()}
            values[key] = msgpack.dumps(fields, use_bin_type=True)
        else:
            out = io.BytesIO()
            # the flag slips into the archive, as in the files that are published
            np.savez_compressed(out, **uniter(count), allow_pickle=True)
            values[key] = out.getvalue()
    values["__keys__"] = json.dumps(list(values)).encode()
    path = put_lmdb(tmp_path / "x.lmdb", values)
    coco.convert(make.coco(tmp_path / "coco"), tmp_path / "shards")
    report = lmdb_source.convert(path, tmp_path / "out", shards=str(tmp_path / "shards"))
    assert report.samples == {"train": 2, "dev": 1}
    found = arrays(make.samples(tmp_path / "out", "dev")["000000000042"]["regions.npz"])
    assert found["size"].tolist() == [8, 8]
    np.testing.assert_allclose(found["boxes"], vision.seen(5)["boxes"], atol=0.01)
    assert found["probabilities"].shape == (5, 5)
    lmdb_source.convert(path, tmp_path / "alone")
    found = arrays(make.samples(tmp_path / "alone", "train")["9"]["regions.npz"])
    np.testing.assert_allclose(found["boxes"] / 125, vision.seen(3)["boxes"], atol=0.01)


def test_lmdb_refuses_what_would_run(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    objects = {**packed(np.zeros(1)), b"type": "O", b"kind": b"O", b"data": pickle.dumps(print)}
    odd = io.BytesIO()
    np.savez(odd, features=np.array([print], dtype=object), boxes=np.zeros((1, 4)))
    values = {
        "1": pickle.dumps({"features": print}),
        "2": msgpack.dumps({"features": objects, "norm_bb": packed(np.zeros((1, 4)))}),
        "3": odd.getvalue(),
        "4": pickle.dumps([1]),
        "5": b"",
        "6": pickle.dumps({"features": np.ones((1, 2))}),
        "7": pickle.dumps(vision.seen(1)),
    }
    report = lmdb_source.convert(put_lmdb(tmp_path / "x.lmdb", values), tmp_path / "out")
    assert {k: v.names for k, v in report.skipped.items()} == {
        "value is no pickle of plain values (it calls builtins.print)": ("1",),
        "value cannot be read (ValueError)": ("2", "3"),
        "value is no dictionary of fields": ("4",),
        "value cannot be read (IndexError)": ("5",),
        "regions lack features or boxes": ("6",),
    }
    assert report.samples == {"train": 1}


def test_hdf5_of_volta(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, count in (("9", 3), ("25", 2)):
            group = file.create_group(name)
            for key, value in vision.seen(count).items():
                group[key] = value
        group["captions"] = np.array(["a"], dtype=h5py.string_dtype("utf-8"))
        file["other"] = 1
    report = hdf5.convert(tmp_path / "x.h5", tmp_path / "out")
    assert report.skipped == {"entry is no group of arrays": Skipped(1, ("other",))}
    samples = make.samples(tmp_path / "out", "train")
    same(samples["9"]["regions.npz"], 3, labels=True, chance=True)
    same(samples["25"]["regions.npz"], 2, labels=True, chance=True)


@pytest.mark.parametrize("form", ["fixed", "adaptive"])
def test_hdf5_of_the_vqa_models(tmp_path: Path, form: str) -> None:
    h5py = pytest.importorskip("h5py")
    counts = {"9": 3, "25": 3} if form == "fixed" else {"9": 3, "25": 2}
    seen = [vision.seen(n) for n in counts.values()]
    join = np.stack if form == "fixed" else np.concatenate
    boxes = join([s["boxes"] for s in seen])
    sides = boxes[..., 2:] - boxes[..., :2]
    with h5py.File(tmp_path / "train36.hdf5", "w") as file:
        file["image_features"] = join([s["features"] for s in seen])
        file["image_bb"] = boxes
        file["spatial_features"] = np.concatenate([boxes / 8, sides / 8], -1)
        if form == "adaptive":
            file["pos_boxes"] = np.array([[0, 3], [3, 5]])
    places = {9: 0, 25: 1, 77: 5}
    path = tmp_path / "train36_imgid2idx.pkl"
    path.write_bytes(pickle.dumps(places, protocol=0))
    report = hdf5.convert(tmp_path / "train36.hdf5", tmp_path / "out")
    assert report.skipped == {"place of the image is beyond the arrays": Skipped(1, ("77",))}
    for key, members in make.samples(tmp_path / "out", "train").items():
        same(members["regions.npz"], counts[key])
    path.unlink()
    with pytest.raises(SourceError, match=r"train36_imgid2idx.pkl: missing"):
        hdf5.convert(tmp_path / "train36.hdf5", tmp_path / "out", overwrite=True)


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(sources_common, "import_module", missing)
    path = make.put(tmp_path / "x.h5", b"")
    with pytest.raises(SourceError, match=r"h5py: not installed; .*crossloom\[features\]"):
        hdf5.convert(path, tmp_path / "out")
    make.put(tmp_path / "db/data.mdb", b"")
    with pytest.raises(SourceError, match=r"lmdb: not installed"):
        lmdb_source.convert(tmp_path / "db", tmp_path / "out")
    for source in (hdf5, lmdb_source):
        with pytest.raises(SourceError, match=r"absent: no (such file|LMDB database)"):
            source.convert(tmp_path / "absent", tmp_path / "out")
        with pytest.raises(SourceError, match=r"give the (file|database) to convert"):
            source.convert(None, tmp_path / "out")


def test_files_of_another_kind(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    pytest.importorskip("h5py")
    path = make.put(tmp_path / "x", b"something else entirely" * 500)
    with pytest.raises(SourceError, match=r"not a readable HDF5 file"):
        hdf5.convert(path, tmp_path / "out")
    with pytest.raises(SourceError, match=r"not a readable LMDB database"):
        lmdb_source.convert(path, tmp_path / "out")
