"""Collections that others laid out, read unchanged."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from crossloom.data_pipelines.layouts import misnamed
from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.show import show_shards
from crossloom.data_pipelines.source import Example, Source
from crossloom.data_pipelines.tokenizer import sentences
from crossloom.modalities.patches import Patches
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.units import BadSample, keyed_rng


def picture(kind="JPEG"):
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(out, kind)
    return out.getvalue()


def saved(save, *arguments, **arrays):
    out = io.BytesIO()
    save(out, *arguments, **arrays)
    return out.getvalue()


def write(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


#: What img2dataset writes for LAION and DataComp.
IMG2DATASET = {
    "url": "https://example.org/1.jpg", "caption": "A red square.", "key": "000000001",
    "status": "success", "error_message": None, "width": 40, "height": 30, "sha256": "0",
    "similarity": 0.31, "exif": "{}",
}  # fmt: skip
SENTENCES = {"en": ["A dog."], "de": ["Ein Hund."]}


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        ({"jpg": b"", "txt": b"A red square.\n", "json": IMG2DATASET}, {"": ["A red square."]}),
        ({"jpg": b"", "txt": b"A cat.", "json": {"key": "1", "status": "success"}},
         {"": ["A cat."]}),
        ({"jpg": b"", "txt": b"Une rue.", "json": {"LANGUAGE": "fr", "status": "success"}},
         {"fr": ["Une rue."]}),
        ({"jpg": b"", "txt": "Кот.".encode()}, {"": ["Кот."]}),
        ({"json": {"captions": ["A dog.", "Two dogs."]}}, {"": ["A dog.", "Two dogs."]}),
        ({"json": ["A dog.", "Two dogs."]}, {"": ["A dog.", "Two dogs."]}),
        ({"json": [{"image_id": 9, "id": 1, "caption": "A dog."}]}, {"": ["A dog."]}),
        ({"json": {"sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}]}}, {"": ["A dog."]}),
        ({"json": {"image_id": 9, "annotations": [{"caption": "A."}, {"caption": "B."}]}},
         {"": ["A.", "B."]}),
        ({"json": {"captions": SENTENCES}}, SENTENCES),
        ({"json": {"caption": {"en": "A dog.", "de": "Ein Hund."}}}, SENTENCES),
        ({"json": {"texts": {"en": "A dog.", "de": "Ein Hund."}}}, SENTENCES),
        ({"json": {"en": "A dog.", "de": ["Ein Hund."], "id": "9"}}, SENTENCES),
        ({"json": {"translation": {"en": "A dog.", "de": "Ein Hund."}}}, SENTENCES),
        ({"en.txt": b"A dog.", "de.txt": b"Ein Hund."}, SENTENCES),
    ],
)  # fmt: skip
def test_captions_are_found_in_every_layout_and_counted(tmp_path, members, texts):
    write(tmp_path / "a.tar", {"000000001": members})
    source = Source("s", open_shards(str(tmp_path)), Texts(all_texts=True, unnamed="xx"))
    named = {code or "xx": some for code, some in texts.items()}
    assert len(source) == sum(map(len, texts.values()))
    shard = source.shards[0]
    read = [
        source.reader.read(shard.read(0), item, keyed_rng(0))[0]["text"][0]
        for item in range(len(source))
    ]
    assert [(p.language, p.text) for p in read] == [(x, t) for x in named for t in named[x]]


@pytest.mark.parametrize(
    "members",
    [{"en.txt": b"A dog.", "de.txt": b"Ein Hund."}, {"json": {"translation": SENTENCES}}],
)
def test_parallel_text_is_read(tmp_path, members):
    write(tmp_path / "a.tar", {"1": members})
    (shard,) = open_shards(str(tmp_path))
    passages = Parallel().read(shard.read(0), 0, keyed_rng(0))[0]["text"]
    assert {p.text for p in passages} == {"A dog.", "Ein Hund."}


def test_an_img2dataset_shard_trains_as_it_is(world, tmp_path):
    samples = {
        f"{n:09d}": {"jpg": picture(), "json": IMG2DATASET | {"key": f"{n:09d}"}, "txt": b"A red."}
        for n in range(3)
    }
    write(tmp_path / "00000.tar", samples)
    source = Source("s", open_shards(str(tmp_path)), Texts(unnamed="en"))
    modalities = {
        "text": Text(vocabulary=str(world / "tokenizer.model"), languages=("en",)),
        "image": Patches(size=32, patch=16),
    }
    assert set(sentences(source.shards)) == {("", "A red square.")}
    for place in source.places():
        one = source.example(place, modalities, frozenset(modalities), 0)
        assert isinstance(one, Example)
        assert len(one.units["image"]) == 5


@pytest.mark.parametrize("layout", ["npz", "bottom-up", "npy"])
def test_region_features_are_read_in_every_layout(layout):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6)).astype(np.float32)
    boxes = np.array([[0, 0, 5, 5], [5, 5, 9, 9], [1, 1, 8, 8]], np.float32)
    if layout == "npz":
        sample = {"npz": saved(np.savez, features=x, boxes=boxes, size=np.array([10, 10]))}
    elif layout == "bottom-up":
        padded = np.concatenate([x, np.zeros((2, 6), np.float32)])
        more = np.concatenate([boxes, np.zeros((2, 4), np.float32)])
        sample = {"npz": saved(np.savez, x=padded, bbox=more, num_bbox=3, image_w=10, image_h=10)}
    else:
        sample = {
            "features.npy": saved(np.save, x),
            "boxes.npy": saved(np.save, boxes),
            "size.npy": saved(np.save, np.array([10, 10])),
        }
    units = Regions(field="npz", features=6, classes=0, overlap=2.0).decode(sample, keyed_rng(0))
    assert np.array_equal(units.content["feature"], x)
    assert np.allclose(units.content["box"][:, :4] * 10, boxes)


def test_captions_without_a_language_ask_for_one():
    with pytest.raises(BadSample, match="says no language; name it as the reader's `unnamed`"):
        Texts(languages=("en",)).read({"txt": b"A dog."}, 0, keyed_rng(0))


def test_arrays_of_something_else_are_not_taken_for_regions():
    with pytest.raises(BadSample, match=r"no 0\.regions\.npz; the sample has json, teacher\.npy"):
        Regions(field="0.regions.npz", features=6).decode(
            {"json": b"{}", "teacher.npy": saved(np.save, np.zeros(3))}, keyed_rng(0)
        )


def test_a_pickled_npy_is_never_loaded():
    bad = saved(np.save, np.array([{"a": 1}], object))
    with pytest.raises(BadSample, match="not a readable npy"):
        Regions(field="npz", features=6).decode({"features.npy": bad}, keyed_rng(0))


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"jpg": b"", "txt": b"\xff\xfe"}, "not UTF-8"),
        ({"json": [1, 2]}, "undecodable"),
        ({"json": b"[" * 100_000}, "undecodable"),
        ({"json": {"texts": ["a list"]}}, "wrong shape"),
        ({"json": {"texts": {"en": [["nested"]]}}}, "empty text"),
        ({"json": {"url": "x", "key": "y"}}, "missing field"),
    ],
)
def test_what_has_no_captions_is_bad_and_breaks_nothing(world, tmp_path, members, kind):
    write(tmp_path / "a.tar", {"1": members})
    source = Source("s", open_shards(str(tmp_path)), Texts())
    text = {"text": Text(vocabulary=str(world / "tokenizer.model"))}
    found = source.example(source.places()[0], text, frozenset(text), 0)
    assert (found.key, found.kind) == ("1", kind)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"jpg": picture()}, ""),
        ({"jpg": picture("PNG")}, ""),
        ({"png": b"<!doctype html>"}, "png is HTML or XML"),
        ({"jpg": b"RIFF\0\0\0\0WAVEfmt "}, "jpg is WAVE sound"),
        ({"flac": picture()}, "flac is a JPEG"),
        ({"jpg": b"just some words, no picture"}, "jpg is plain text"),
        ({"regions.npz": b"\x93NUMPY"}, "regions.npz is an npy"),
        ({"json": b'{"broken": '}, ""),
        ({"jpg": picture()[:50]}, ""),
    ],
)
def test_members_that_are_something_else_are_told_from_damaged_ones(members, said):
    assert misnamed(members) == said


def test_a_page_shows_foreign_layouts_boxes_labels_and_damage(tmp_path):
    coco = {"captions": ["A dog.", "Two <b>dogs</b>."],
            "boxes": [{"label": "dog", "box": [10, 15, 20, 30]}]}  # fmt: skip
    odd = {"texts": [1], "questions": [{"text": 3, "answers": {"x": 1}}], "pairs": [{}]}
    write(tmp_path / "a.tar", {
        "1": {"jpg": picture(), "json": coco},
        "2": {"jpg": picture(), "txt": b"A red square.", "json": IMG2DATASET},
        "3": {"jpg": b"<html>", "json": odd},
    })  # fmt: skip
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    show_shards(str(tmp_path), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'x="0.25" y="0.5" width="0.25" height="0.5"' in page
    assert "Two &lt;b&gt;dogs&lt;/b&gt;." in page
    assert page.count("A red square.") == 1
    assert "<td>dog</td>" in page
    assert "truncated shard" in page
    assert "not in our form" in page
