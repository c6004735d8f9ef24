"""Codes beside pictures: the codebook, what the source writes, and codes made elsewhere."""

import io

import fixtures_sources as make
import numpy as np
import pytest
from PIL import Image

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.sources import Skipped, SourceError, codes
from crossloom.data_pipelines.write import ShardWriter
from crossloom.modalities import codebook as books
from crossloom.modalities.codebook import Codebook
from crossloom.modalities.codes import Codes
from crossloom.units import keyed_rng

COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [250, 250, 250]], np.uint8)


def tiles(numbers, side, patch):
    """A picture ``[3, S, S]`` of plain tiles."""
    grid = COLOURS[np.array(numbers).reshape(side, side)]
    return grid.repeat(patch, 0).repeat(patch, 1).transpose(2, 0, 1)


def png(picture):
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(out, "PNG")
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.fixture
def shards(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 4, (6, 9))
    out = tmp_path / "in"
    for split, some in (("train", range(4)), ("dev", range(4, 6))):
        with ShardWriter(out, split) as writer:
            for n in some:
                members = {"png": png(tiles(drawn[n], 3, 2)), "json": {"id": f"p/{n}"}}
                writer.write(f"s{n}", members)
            if split == "train":
                writer.write("text", {"json": {"id": "text"}})
                writer.write("torn", {"png": b"\x89PNG\r\n\x1a\n", "json": {"id": "torn"}})
    return out, drawn


def read(folder, pattern):
    return {e.key: s.read(n) for s in open_shards(pattern, folder) for n, e in enumerate(s.entries)}


def test_pictures_of_few_patches_come_back_as_they_were(shards, tmp_path):
    folder, drawn = shards
    report = codes.convert(folder, tmp_path / "out", size=4, side=3, patch=2)
    assert report.counts["train"] == {"samples": 4, "images": 4, "codes": 4}
    assert report.skipped == {
        "no picture": Skipped(1, ("train-000000/text",)),
        "undecodable": Skipped(1, ("train-000000/torn",)),
    }
    book = books.load(tmp_path / "out" / "codebook.npy")
    for pattern in ("train-*.tar", "dev-*.tar"):
        for key, sample in read(tmp_path / "out", pattern).items():
            units = Codes(size=4, limit=9, side=3, begin=False).decode(sample, keyed_rng("a"))
            found = book.paste(units.content["code"])
            expected = tiles(drawn[int(key[1:])], 3, 2).transpose(1, 2, 0)
            assert np.array_equal(found, expected)
            assert np.array_equal(np.asarray(book.image(units.content["code"])), expected)
    # the same again, byte for byte, and by the codebook given
    codes.convert(folder, tmp_path / "again", size=4, side=3, patch=2)
    given = tmp_path / "out" / "codebook.npy"
    codes.convert(folder, tmp_path / "given", codebook=str(given), side=3, keep_images=False)
    one = (tmp_path / "out" / "train-000000.tar").read_bytes()
    assert (tmp_path / "again" / "train-000000.tar").read_bytes() == one
    bare = read(tmp_path / "given", "train-*.tar")["s0"]
    assert set(bare) == {"codes.npy", "json"}
    assert bare["codes.npy"] == read(tmp_path / "out", "train-*.tar")["s0"]["codes.npy"]


def test_codes_made_elsewhere_are_found_by_id_or_key(shards, tmp_path):
    folder, _ = shards
    grid = np.arange(9, dtype=np.int32).reshape(3, 3)
    make.put(tmp_path / "made/p/0.npy", npy(grid))
    make.put(tmp_path / "made/s1.npy", npy(grid.reshape(-1)))
    make.put(tmp_path / "made/s2.npy", npy(grid / 2))
    make.put(tmp_path / "made/s3.npy", b"no")
    report = codes.convert(folder, tmp_path / "out", codes=str(tmp_path / "made"))
    assert {k: v.count for k, v in report.skipped.items()} == {
        "codes are no integers [N] or [rows, columns]": 1,
        "codes cannot be read": 1,
        "sample without codes": 4,
    }
    for sample in read(tmp_path / "out", "train-*.tar").values():
        found = np.load(io.BytesIO(sample["codes.npy"]))
        assert found.tolist() == list(range(9))
    assert not (tmp_path / "out" / "codebook.npy").exists()


def test_what_cannot_be_done_is_told(shards, tmp_path):
    folder, _ = shards
    with pytest.raises(SourceError, match="4 different patches; 5 entries need as many"):
        codes.convert(folder, tmp_path / "out", size=5, side=3, patch=2)
    with pytest.raises(SourceError, match="give codes that were made, or"):
        codes.convert(folder, tmp_path / "out", codes="a", codebook="b")
    make.put(tmp_path / "no.npy", npy(np.zeros((4, 2, 2))))
    with pytest.raises(SourceError, match=r"a codebook is uint8 \[size, P, P, 3\]"):
        codes.convert(folder, tmp_path / "out", codebook=str(tmp_path / "no.npy"))


def test_entries_are_means_of_the_patches_nearest_to_them():
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (3, 16, 16), np.uint8) for _ in range(12)]
    book = books.learn(pictures, size=5, patch=4, seed=3, rounds=200)
    patches = np.concatenate(
        [p[:, y : y + 4, x : x + 4].transpose(1, 2, 0)[None]
         for p in pictures for y in range(0, 16, 4) for x in range(0, 16, 4)]
    ).astype(float)  # fmt: skip
    apart = ((patches[:, None] - book.entries[None].astype(float)) ** 2).sum((2, 3, 4))
    nearest = apart.argmin(1)
    for code in range(5):
        mean = patches[nearest == code].mean(0)
        # entries are whole numbers, which may move a patch on the border
        assert np.abs(mean - book.entries[code]).max() < 4
    assert np.array_equal(np.concatenate([book.encode(p) for p in pictures]), nearest)
    other = books.learn(pictures, size=5, patch=4, seed=4, rounds=200)
    assert not np.array_equal(other.entries, book.entries)


def test_only_squares_of_its_own_codes_are_pasted():
    book = Codebook(np.zeros((3, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="5 codes are no square"):
        book.paste([0] * 5)
    with pytest.raises(ValueError, match=r"codes 0\.\.3: there are 0\.\.2"):
        book.paste([0, 1, 2, 3])
