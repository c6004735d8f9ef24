"""Patches: decoding of odd pictures, augmentation, what the embedder shows, towers."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from crossloom.batch import Stream, ViewBatch
from crossloom.modalities.patches import (
    Patches,
    load_tower,
    make_tower,
    tower_shape,
)
from crossloom.modalities.pictures import (
    Augment,
    decode_image,
    fit,
)
from crossloom.testing import check_modality
from crossloom.units import BadSample, keyed_rng

RNG = keyed_rng("test")
SPEC = Patches(size=16, patch=8)
PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)


def picture(kind="PNG", mode="RGB", pixels=PIXELS, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def png(width, height, bits, colour, rows):
    """A PNG written by hand: what Pillow will not write."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def stream(units, hidden=None, whole=None):
    n = sum(len(u) for u in units)
    built = Stream.build(
        {k: np.concatenate([u.content[k] for u in units]) for k in units[0].content},
        whole or {k: np.stack([u.whole[k] for u in units]) for k in units[0].whole},
        np.concatenate([u.position for u in units]),
        np.zeros(n, bool) if hidden is None else hidden,
        np.array([len(u) for u in units]),
    )
    return ViewBatch(streams={"x": built}).to("cpu").streams["x"]


def test_lossless_pictures_come_out_as_they_went_in():
    assert (decode_image(picture(), "png", 10**9) == PIXELS.transpose(2, 0, 1)).all()
    assert (
        decode_image(picture("WEBP", lossless=True), "webp", 10**9)[:, 0, 0] == PIXELS[0, 0]
    ).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_what_pillow_makes_of_them(mode):
    data = picture("JPEG", mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    found = decode_image(data, "jpg", 10**9)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_sixteen_bits_of_grey_keep_their_upper_eight():
    rows = b"\0" + struct.pack(">HHH", 0, 0x8000, 0xFFFF)
    assert decode_image(png(3, 1, 16, 0, rows), "png", 100)[:, 0].tolist() == [[0, 128, 255]] * 3


def test_transparent_parts_are_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    found = decode_image(out.getvalue(), "png", 100)
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    assert (found[:, 1] == 255).all()
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 255, 0, 255, 0])
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=1)
    found = decode_image(out.getvalue(), "png", 100)
    assert found[:, 0].T.tolist() == [[0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_a_header_that_promises_too_much_is_believed_before_decoding(side):
    data = png(side, side, 8, 2, b"")
    with pytest.raises(BadSample) as found:
        decode_image(data, "png", 100_000_000)
    assert found.value.kind == "image too large"
    assert "png" in str(found.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture(kind):
    data = picture(kind)
    with pytest.raises(BadSample, match=f"{kind.lower()}: not a readable picture") as found:
        decode_image(data[: len(data) // 2], kind.lower(), 10**9)
    assert found.value.kind == "undecodable"


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.none() | st.integers(0, 4000),
)
def test_damaged_bytes_give_a_picture_or_a_bad_sample(kind, changes, length):
    data = bytearray(picture(kind))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = decode_image(bytes(data[:length]), "x", 10**6)
    except BadSample:
        return
    assert found.shape[0] == 3


def test_no_picture_at_all():
    with pytest.raises(BadSample, match=r"no picture .*; the sample has json") as found:
        SPEC.decode({"json": b""}, RNG)
    assert found.value.kind == "missing member"
    with pytest.raises(BadSample, match="no picture"):
        replace(SPEC, field="png").decode({"jpg": picture("JPEG")}, RNG)


def test_one_of_several_pictures():
    members = {"0.jpg": picture("JPEG"), "1.png": picture()}
    alone = SPEC.decode({"png": picture()}, RNG)
    found = replace(SPEC, field="1").decode(members, RNG)
    assert (found.content["pixels"] == alone.content["pixels"]).all()
    assert len(replace(SPEC, field="0").decode(members, RNG)) == len(alone)
    with pytest.raises(BadSample, match=r"no picture \(2\.jpg, .*; the sample has 0\.jpg, 1\.png"):
        replace(SPEC, field="2").decode(members, RNG)


def test_units_of_a_picture_by_hand():
    """Left half black, right half white with one red corner."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    pixels[15, 15] = (255, 0, 0)
    units = SPEC.decode({"png": picture(pixels=pixels)}, RNG)
    assert len(units) == SPEC.longest() == 5
    assert units.maskable.tolist() == [False, True, True, True, True]
    assert len(set(units.group.tolist())) == 5
    seen = units.content["pixels"]
    assert seen.dtype == np.uint8
    assert seen.shape == (5, 192)
    assert (seen[0] == 0).all()
    assert (seen[[1, 3]] == 0).all()
    assert (seen[2] == 255).all()
    assert seen[4, -3:].tolist() == [255, 0, 0]
    target = units.targets["pixels"]
    assert (target[:4] == 0).all()  # flat patches have no contrast to predict
    mean, deviation = 190 / 192, np.sqrt(190 / 192 * 2 / 192)
    assert np.allclose(target[4, -3:], (np.array([1, 0, 0]) - mean) / deviation, rtol=1e-3)


def test_a_crop_has_the_share_and_shape_asked_for():
    """A picture whose values are its coordinates tells where it was cropped."""
    y, x = np.mgrid[0:200, 0:200].astype(np.uint8)
    image = np.stack([x, y, x])
    for seed in range(20):
        crop = fit(image, 200, Augment(scale=(0.25, 0.25), ratio=(4.0, 4.0)), keyed_rng(seed))
        wide = int(crop[0].max()) - int(crop[0].min())
        high = int(crop[1].max()) - int(crop[1].min())
        assert abs(wide - 199) <= 2  # 200 · sqrt(0.25 · 4)
        assert abs(high - 49) <= 2


def test_a_mirror_image_and_colours_only_when_asked_for():
    image = PIXELS.transpose(2, 0, 1)[:, :, :30]
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = fit(image, 30, Augment(**whole), keyed_rng(1))
    assert (plain == image).all()
    assert (fit(image, 30, Augment(**whole, flip=1.0), keyed_rng(1)) == image[:, :, ::-1]).all()
    vivid = [fit(image, 30, Augment(**whole, jitter=0.4), keyed_rng(n)) for n in (1, 1, 2)]
    assert (vivid[0] == vivid[1]).all()
    assert (vivid[0] != vivid[2]).any()
    assert (vivid[0] != image).any()


def test_augmentation_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    fit(PIXELS.transpose(2, 0, 1), 8, Augment(flip=0.5, jitter=0.2), keyed_rng(1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.9, 0.5)},
        {"scale": (0.0, 1.0)},
        {"ratio": (0.0, 1.0)},
        {"flip": 2},
        {"jitter": 1},
    ],
)
def test_augmentation_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="multiple of patch"):
        Patches(size=20, patch=8)


def test_pixels_are_normalised_on_the_device():
    spec = replace(SPEC, summary=False, mean=(0.5, 0.25, 0.0), deviation=(0.5, 0.25, 1.0))
    embedder = spec.embedder(192).eval()
    with torch.no_grad():
        embedder.pixels.weight.copy_(torch.eye(192))
        embedder.pixels.bias.zero_()
        embedder.position.weight.zero_()
    embedder.norm = torch.nn.Identity()
    units = spec.decode({"png": picture(pixels=np.full((16, 16, 3), 255, np.uint8))}, RNG)
    out = embedder(stream([units]))
    assert torch.allclose(out[0, :3], torch.tensor([1.0, 3.0, 1.0]))


def test_hidden_patches_look_alike_but_for_their_place():
    embedder = SPEC.embedder(8).eval()
    with torch.no_grad():
        embedder.position.weight.zero_()
    units = SPEC.decode({"png": picture()}, RNG)
    out = embedder(stream([units], np.array([False, True, True, False, False])))
    assert torch.equal(out[1], out[2])
    assert not torch.allclose(out[3], out[4])


@pytest.mark.parametrize("flags", [(True, True), (False, False)])
def test_contract(flags):
    summary, augmented = flags
    spec = replace(SPEC, summary=summary, augment=Augment(jitter=0.3) if augmented else None)
    check_modality(spec, {"webp": picture("WEBP")})


TOWERS = [
    ("timm:vit_tiny_patch16_224", True, 1 + 4, 1),
    ("timm:vit_tiny_patch16_224", False, 4, 0),
    ("timm:convnext_atto", True, 1, 0),
    ("open_clip:ViT-S-32-alt", True, 1 + 1, 1),
]


@pytest.mark.parametrize(("tower", "summary", "units", "first"), TOWERS)
def test_towers(tower, summary, units, first):
    spec = Patches(size=32, tower=tower, summary=summary)
    assert spec.longest() == units
    decoded = spec.decode({"png": picture()}, RNG)
    assert len(decoded) == units
    assert decoded.maskable.tolist() == [False] * first + [True] * (units - first)
    assert len(spec.blank()) == units
    check_modality(spec, {"png": picture()})


def test_a_tower_never_sees_hidden_cells():
    spec = Patches(size=64, tower="timm:vit_tiny_patch16_224")
    torch.manual_seed(0)
    embedder = spec.embedder(8).eval()
    units = [spec.decode({"png": picture()}, RNG), spec.blank()]
    hidden = np.zeros(34, bool)
    hidden[1 + 6] = True  # row 1, column 2 of the first picture
    images = np.stack([u.whole["image"] for u in units])
    other = images.copy()
    other[0, :, 16:32, 32:48] = RNG.integers(0, 255, (3, 16, 16), np.uint8)
    clean = embedder(stream(units, hidden, {"image": images}))
    assert torch.equal(clean, embedder(stream(units, hidden, {"image": other})))
    other[0, 0, 15, 40] ^= 128  # a visible pixel just above
    assert not torch.equal(clean, embedder(stream(units, hidden, {"image": other})))


def test_a_dry_pass_draws_nothing():
    state = torch.random.get_rng_state()
    tower_shape.cache_clear()
    tower_shape("timm:vit_tiny_patch16_224", 48, True)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("tower", "size", "words"),
    [
        ("vit_tiny_patch16_224", 32, "write timm:NAME"),
        ("timm:hf-hub:somebody/model", 32, "given as a file"),
        ("timm:vit_tiny_patch16_22", 32, "no such model; it has .*vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224", 40, "do not divide size 40"),
        ("timm:resnet10t", 40, "do not divide size 40"),
        ("open_clip:ViT-S-32-alt", 80, "do not divide size 80"),
        ("open_clip:coca_ViT-B-32", 64, "pools its tokens"),
    ],
)
def test_towers_that_cannot_be_used(tower, size, words):
    with pytest.raises(ValueError, match=words):
        Patches(size=size, tower=tower).longest()


def test_weights_of_a_tower_come_from_a_file(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = make_tower("timm:convnext_atto", 32)
    weights = source.state_dict()
    key = next(iter(weights))
    save_file(weights | {"head.fc.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    # as open_clip's trainer leaves them, with a text tower beside
    wrapped = {f"module.visual.{k}": v for k, v in weights.items()}
    torch.save({"state_dict": wrapped | {"module.logit_scale": torch.ones(())}}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        spec = Patches(size=32, tower="timm:convnext_atto", weights=str(tmp_path / name))
        assert torch.equal(spec.embedder(8).tower.state_dict()[key], weights[key])
    del weights[key]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"1 of .* weights missing"):
        load_tower(source, str(tmp_path / "less.safetensors"))
    with pytest.raises(ValueError, match="no such file"):
        load_tower(source, str(tmp_path / "none.pt"))
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="not a file of weights"):
        load_tower(source, str(tmp_path / "bad.pt"))
