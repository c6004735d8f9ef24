"""Every built-in modality keeps the contract, and refuses what it cannot use."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.world import synthesise
from crossloom.modalities.boxes import overlap_groups
from crossloom.modalities.patches import Patches, tower_features
from crossloom.modalities.pictures import (
    Augment,
    cut,
    decode_image,
    fit,
)
from crossloom.modalities.regions import Regions
from crossloom.modalities.speech import Speech, log_mel, mel_filters
from crossloom.modalities.text import Text
from crossloom.testing.modality import check_modality
from crossloom.units import BadSample, Fate, Passage, keyed_rng

RNG = keyed_rng("test")


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def region_arrays(count=4, **changed):
    rng = np.random.default_rng(0)
    arrays = {
        "features": rng.normal(size=(count, 6)).astype(np.float16),
        "boxes": np.array([[10 * n, 0, 10 * n + 8, 8] for n in range(count)], np.float32),
        "probabilities": np.full((count, 3), 1 / 3, np.float16),
        "size": np.array([100, 50]),
    } | changed
    return {k: v for k, v in arrays.items() if v is not None}


REGIONS = Regions(features=6, classes=3, dropout=0.0)


def picture(mode="RGB", size=(40, 30), kind="PNG"):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))
    out = io.BytesIO()
    image.convert(mode).save(out, kind)
    return out.getvalue()


def sound(rate=16000, seconds=1.0, channels=1, kind="WAV"):
    import soundfile

    time = np.arange(int(rate * seconds)) / rate
    wave = 0.4 * np.sin(2 * np.pi * 440 * time)
    out = io.BytesIO()
    soundfile.write(out, np.stack([wave] * channels, 1), rate, format=kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def text(world):
    return Text(vocabulary=str(world / "tokenizer.model"), limit=16, dropout=0.0)


def test_text(text):
    passages = (Passage("en", "A red circle is above a blue square."),)
    check_modality(text, {"text": passages})
    pair = replace(text, languages=("en", "de"), segments=2, restart=True)
    check_modality(pair, {"text": (*passages, Passage("de", "Ein roter Kreis."))})


def test_text_of_two_tower_models(text):
    passages = (Passage("en", "A red circle is above a blue square."),)
    bare = replace(text, norm=False, marked=True)
    check_modality(bare, {"text": passages})
    filled = replace(text, filled=True)
    check_modality(filled, {"text": passages})
    units = filled.decode({"text": passages}, RNG)
    plain = text.decode({"text": passages}, RNG)
    size = len(plain)
    assert len(units) == filled.limit
    assert units.content["token"][:size].tolist() == plain.content["token"].tolist()
    assert set(units.content["token"][size:]) == {text.vocab.pad}
    assert not units.maskable[size:].any()
    assert units.position.tolist() == list(range(filled.limit))


@pytest.mark.parametrize("box", [4, 5, 7])
@pytest.mark.parametrize("norm", ["norm_of_norms", "mean_of_norms", "norm_of_sum"])
def test_regions(box, norm):
    sample = {"regions.npz": npz(**region_arrays())}
    check_modality(replace(REGIONS, box=box, norm=norm), sample)


def test_patches():
    spec = Patches(size=16, patch=8, augment=Augment(flip=0.5))
    check_modality(spec, {"png": picture()})
    check_modality(replace(spec, summary=False), {"jpg": picture(kind="JPEG")})
    bare = replace(spec, affine=False, norm=False, marked=True)
    check_modality(bare, {"image": picture()})
    assert bare.embedder(8).pixels.bias is None


@pytest.mark.parametrize(
    ("kind", "rate", "channels"), [("WAV", 16000, 1), ("FLAC", 44100, 2), ("OGG", 8000, 1)]
)
def test_speech(kind, rate, channels):
    check_modality(Speech(dropout=0.0), {kind.lower(): sound(rate, 0.5, channels, kind)})


def test_a_timm_tower_gives_its_tokens():
    spec = Patches(size=32, patch=16, tower="timm:resnet10t")
    units = spec.decode({"png": picture()}, RNG)
    assert len(units) == spec.longest() == 1
    check_modality(spec, {"png": picture()})


def test_norms_of_a_tower_over_a_batch_do_not_look_at_the_batch():
    embedder = Patches(size=32, patch=16, tower="timm:resnet10t").embedder(8).train()
    before = {n: b.clone() for n, b in embedder.named_buffers()}
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together, *alone = (
        tower_features(embedder.tower, x, False)[1] for x in (image, image[:1], image[1:])
    )
    torch.testing.assert_close(together, torch.cat(alone))
    assert all(torch.equal(b, before[n]) for n, b in embedder.named_buffers())
    assert embedder.norm.training


def test_words_are_groups_and_specials_are_never_hidden(text):
    units = text.decode({"text": (Passage("en", "A small red circle."),)}, RNG)
    pieces = [text.vocab.pieces[i] for i in units.content["token"]]
    assert pieces[0] == "<s>"
    assert pieces[-1] == "</s>"
    assert units.maskable.tolist() == [p not in ("<s>", "</s>") for p in pieces]
    starts = [n for n, p in enumerate(pieces) if p.startswith("▁") or p in ("<s>", "</s>")]
    firsts = [n for n in range(len(pieces)) if n == 0 or units.group[n] != units.group[n - 1]]
    assert firsts == starts


def test_scripts_without_spaces_have_a_group_for_each_piece(text):
    units = text.decode({"text": (Passage("zh", "图中有一个红色的圆形。"),)}, RNG)
    inside = units.group[1:-1]
    pieces = [text.vocab.pieces[i] for i in units.content["token"][1:-1]]
    assert len(set(inside.tolist())) >= sum(p not in ("▁", "。") for p in pieces)


def test_the_longer_passage_is_cut_first(text):
    long, short = "A red circle and a blue square and a star.", "A star."
    units = text.decode({"text": (Passage("en", long), Passage("en", short))}, RNG)
    assert len(units) == text.limit
    vocab = text.vocab
    ids = units.content["token"].tolist()
    assert ids[-1] == vocab.end
    tail = vocab.encode(short).tolist()
    assert ids[-1 - len(tail) : -1] == tail


def test_swapped_ids_are_ordinary_and_hidden_ones_the_mask(text):
    units = text.decode({"text": (Passage("en", "A red circle is above a square."),)}, RNG)
    fate = np.full(len(units), Fate.SWAP, np.int8)
    fate[1] = Fate.HIDE
    token = text.substitute(units, fate, keyed_rng(1))["token"]
    assert token[1] == text.vocab.mask
    assert np.isin(token[2:], text.vocab.ordinary).all()


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        (None, "missing member"),
        (b"\xff\xfe", "not UTF-8"),
        ((Passage("en", ""),), "empty text"),
    ],
)
def test_text_that_cannot_be_used(text, member, kind):
    sample = {} if member is None else {"text": member}
    with pytest.raises(BadSample) as found:
        text.decode(sample, RNG)
    assert found.value.kind == kind


def test_a_vocabulary_that_is_none_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="tokenizer train"):
        Text(vocabulary=str(tmp_path / "none.model")).identity()
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Text(vocabulary=str(tmp_path / "bad.model")).identity()


def test_box_encodings_by_hand():
    arrays = region_arrays(1, boxes=np.array([[10, 5, 60, 30]], np.float32))
    found = {
        n: replace(REGIONS, box=n).decode({"regions.npz": npz(**arrays)}, RNG).content["box"][0]
        for n in (4, 5, 7)
    }
    assert np.allclose(found[4], [0.1, 0.1, 0.6, 0.6])
    assert np.allclose(found[5], [0.1, 0.1, 0.6, 0.6, 0.25])
    assert np.allclose(found[7], [0.1, 0.1, 0.6, 0.6, 0.5, 0.5, 0.25])


def test_overlapping_boxes_are_one_group_also_through_others():
    boxes = np.array([[0, 0, 0.4, 1], [0.1, 0, 0.5, 1], [0.2, 0, 0.6, 1], [0.7, 0, 0.9, 1]])
    assert overlap_groups(boxes, 0.55).tolist() == [0, 0, 0, 3]
    assert overlap_groups(boxes, 0.9).tolist() == [0, 1, 2, 3]


def test_the_class_is_the_best_but_background():
    chance = np.array([[0.6, 0.1, 0.3], [0.1, 0.7, 0.2]], np.float32)
    arrays = region_arrays(2, probabilities=chance)
    units = REGIONS.decode({"regions.npz": npz(**arrays)}, RNG)
    assert units.targets["class"].tolist() == [2, 1]
    assert np.allclose(units.targets["classes"], chance)


@pytest.mark.parametrize(
    ("arrays", "kind"),
    [
        (region_arrays(features=None), "missing member"),
        (region_arrays(features=np.full((4, 6), np.nan)), "NaN features"),
        (region_arrays(features=np.zeros((4, 5))), "wrong shape"),
        (region_arrays(boxes=np.array([[0, 0, 500, 8]] * 4)), "box outside image"),
        (region_arrays(boxes=np.array([[8, 0, 2, 8]] * 4)), "box outside image"),
        (region_arrays(0, boxes=np.zeros((0, 4))), "empty stream"),
        (region_arrays(features=np.array([[None] * 6] * 4)), "missing member"),
    ],
)
def test_regions_that_cannot_be_used(arrays, kind):
    with pytest.raises(BadSample) as found:
        REGIONS.decode({"regions.npz": npz(**arrays)}, RNG)
    assert found.value.kind == kind


@pytest.mark.parametrize("box", [0, 4, 7, "waves"])
def test_where_a_region_is_does_not_depend_on_how_its_box_is_embedded(box):
    extra = {"join": "concat"} if box == "waves" else {}
    content = (
        replace(REGIONS, box=box, overall=True, norm="norm_of_sum", **extra)
        .decode({"regions.npz": npz(**region_arrays(2))}, RNG)
        .content
    )
    assert np.allclose(content["corners"], [[0, 0, 1, 1], [0, 0, 0.08, 0.16], [0.1, 0, 0.18, 0.16]])


def test_what_extractors_note_as_objects_is_never_loaded_and_does_no_harm():
    plain = region_arrays()
    noted = npz(**plain, info=np.array({"objects_id": [1, 2]}, dtype=object))
    one, other = (REGIONS.decode({"regions.npz": x}, RNG) for x in (npz(**plain), noted))
    assert np.array_equal(one.content["feature"], other.content["feature"])


@pytest.mark.parametrize("cut_to", [0, 30, 400])
def test_a_truncated_npz(cut_to):
    with pytest.raises(BadSample) as found:
        REGIONS.decode({"regions.npz": npz(**region_arrays())[:cut_to]}, RNG)
    assert found.value.kind == "undecodable"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_pictures_of_all_modes_become_rgb(mode):
    found = decode_image(picture(mode), "png", 10**9)
    assert found.shape == (3, 30, 40)
    assert found.dtype == np.uint8


def test_cmyk_jpeg():
    assert decode_image(picture("CMYK", kind="JPEG"), "jpg", 10**9).shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("data", "kind"),
    [(picture()[:300], "undecodable"), (b"nothing", "undecodable"), (picture(), "image too large")],
)
def test_pictures_that_cannot_be_used(data, kind):
    # the header is read first: a small limit would refuse a cut picture for its size
    limit = 1000 if kind == "image too large" else 10**6
    spec = Patches(size=16, patch=8, max_pixels=limit)
    with pytest.raises(BadSample) as found:
        spec.decode({"png": data}, RNG)
    assert found.value.kind == kind


def test_patches_are_cut_row_by_row():
    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    patches = cut(image, 2)
    assert patches.shape == (4, 12)
    assert patches[1].reshape(2, 2, 3).transpose(2, 0, 1).tolist() == image[:, :2, 2:].tolist()


def test_steady_pictures_do_not_vary_and_augmented_ones_do():
    spec = Patches(size=16, patch=8, augment=Augment(scale=(0.3, 0.6)))
    image = decode_image(picture(), "png", 10**9)
    assert (fit(image, 16, None, keyed_rng(1)) == fit(image, 16, None, keyed_rng(2))).all()
    crops = [fit(image, 16, spec.augment, keyed_rng(n)) for n in (1, 1, 2)]
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()
    assert spec.steady().augment is None


def test_log_mel_finds_the_tone():
    wave = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    mel = log_mel(wave, 16000, 80)
    assert mel.shape == (98, 80)
    centres = 700 * (
        10 ** (np.linspace(*(2595 * np.log10(1 + np.array([20, 8000]) / 700)), 82) / 2595) - 1
    )
    assert abs(centres[1 + mel.mean(0).argmax()] - 1000) < 60


def test_log_mel_against_a_direct_transform():
    wave = np.random.default_rng(0).normal(size=800).astype(np.float32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frame = np.zeros(512)
    frame[:400] = wave[160:560] * window
    angle = -2j * np.pi * np.outer(np.arange(257), np.arange(512)) / 512
    power = np.abs(np.exp(angle) @ frame) ** 2
    expected = np.log(np.maximum(power @ mel_filters(16000, 80, 512), 1e-10))
    assert np.allclose(log_mel(wave, 16000, 80)[1], expected, atol=1e-3)


@pytest.mark.peers
def test_mel_filters_against_transformers():
    audio = pytest.importorskip("transformers.audio_utils")
    expected = audio.mel_filter_bank(257, 80, 20.0, 8000.0, 16000, norm=None, mel_scale="htk")
    assert np.allclose(mel_filters(16000, 80, 512), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "kind"), [(b"noise", "undecodable"), (sound(seconds=0.03), "too short")]
)
def test_sound_that_cannot_be_used(data, kind):
    with pytest.raises(BadSample) as found:
        Speech().decode({"wav": data}, RNG)
    assert found.value.kind == kind


def test_silence_is_named():
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.zeros(16000), 16000, format="WAV")
    with pytest.raises(BadSample, match="silence"):
        Speech().decode({"wav": out.getvalue()}, RNG)


def test_spoken_captions_of_the_world_decode(world):
    shard = open_shards("speech-train-*.tar", world)[0]
    spec = Speech(seconds=3)
    units = spec.decode(shard.read(0), RNG)
    assert 20 < len(units) <= spec.longest() == 75


def test_a_letter_always_sounds_alike_and_letters_differ():
    def mean(letter, language, seed):
        return log_mel(synthesise(letter * 12, language, seed), 16000, 80).mean(0)

    a, again, b = mean("a", "en", 0), mean("a", "sw", 5), mean("b", "en", 0)
    assert np.corrcoef(a, again)[0, 1] > np.corrcoef(a, b)[0, 1] + 0.1


@pytest.mark.peers
def test_xlm_r_layout_gives_the_ids_of_transformers(world, tmp_path):
    """The same model file through transformers' slow tokenizer, where it still has one."""
    tokenizers = pytest.importorskip("transformers")
    import sentencepiece

    lines = [f"word{n} and other words number {n % 7}" for n in range(300)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "sentencepiece.bpe"),
        vocab_size=80, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "sentencepiece.bpe.model"
    spec = Text(vocabulary=str(path), layout="xlm-r", limit=64)
    try:
        peer = tokenizers.XLMRobertaTokenizer.from_pretrained(str(tmp_path))
    except Exception as error:
        pytest.skip(f"this transformers cannot read a bare model file: {type(error).__name__}")
    for line in lines[:50]:
        ids = spec.decode({"text": (Passage("", line),)}, RNG).content["token"].tolist()
        assert ids == peer(line)["input_ids"]
    assert spec.vocab.mask == peer.mask_token_id


def test_xlm_r_layout_by_its_definition(tmp_path):
    import sentencepiece

    lines = ["a b c d e f g"] * 20
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "m"), vocab_size=12,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    raw = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    spec = Text(vocabulary=str(tmp_path / "m.model"), layout="xlm-r")
    ids = spec.decode({"text": (Passage("", "a b ☃"),)}, RNG).content["token"].tolist()
    shifted = [3 if i == raw.unk_id() else i + 1 for i in raw.encode("a b ☃")]
    assert ids == [0, *shifted, 2]
    assert spec.vocab.mask == raw.get_piece_size() + 1 == spec.vocab.size - 1
    assert torch.isfinite(spec.embedder(8).token.weight).all()
