"""Speech: features against a transform by hand, decoding, limits, what the embedder shows."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import Stream, ViewBatch
from crossloom.data_pipelines.shards import open_shards
from crossloom.modalities.speech import Speech, decode_sound, log_mel, mel_filters, normalise
from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import vocabulary
from crossloom.testing import check_modality
from crossloom.units import BadSample, keyed_rng

RNG = keyed_rng("test")
SPEC = Speech(dropout=0.0)


def sound(wave, rate=16000, kind="WAV", subtype=None):
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=kind, subtype=subtype)
    return out.getvalue()


def tone(hertz=440.0, seconds=1.0, rate=16000):
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def stream(units, hidden=None, mel=None):
    n = len(units)
    hidden = np.zeros(n, bool) if hidden is None else hidden
    content = {"mel": units.content["mel"] if mel is None else mel}
    built = Stream.build(content, {}, units.position, hidden, np.array([n]))
    return ViewBatch(streams={"x": built}).to("cpu").streams["x"]


def mel_by_hand(wave, rate, bins):
    """The definition, with sums instead of transforms and loops instead of matrices."""
    length, hop, size = rate // 40, rate // 100, 512
    edges = [2595 * np.log10(1 + f / 700) for f in (20, rate / 2)]
    hertz = [
        700 * (10 ** ((edges[0] + (edges[1] - edges[0]) * k / (bins + 1)) / 2595) - 1)
        for k in range(bins + 2)
    ]
    n = np.arange(length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / length)
    rows = []
    for start in range(0, len(wave) - length + 1, hop):
        frame = wave[start : start + length] * window
        power = [abs(np.sum(frame * np.exp(-2j * np.pi * k * n / size))) ** 2 for k in range(257)]
        row = []
        for low, mid, high in zip(hertz, hertz[1:], hertz[2:], strict=False):
            total = 0.0
            for k, p in enumerate(power):
                f = k * rate / size
                total += p * max(0.0, min((f - low) / (mid - low), (high - f) / (high - mid)))
            row.append(np.log(max(total, 1e-10)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("wave", [tone(seconds=0.06), np.random.default_rng(1).normal(size=960)])
def test_log_mel_by_its_definition(wave):
    found = log_mel(wave.astype(np.float32), 16000, 80)
    assert found.shape == (4, 80)
    assert found.dtype == np.float32
    assert np.allclose(found, mel_by_hand(wave.astype(np.float32), 16000, 80), atol=1e-4)


def test_frames_are_counted_without_padding():
    for samples, frames in ((399, 0), (400, 1), (559, 1), (560, 2), (16000, 98)):
        assert log_mel(np.ones(samples, np.float32), 16000, 80).shape == (frames, 80)


@pytest.mark.peers
def test_log_mel_against_transformers():
    audio = pytest.importorskip("transformers.audio_utils")
    wave = np.random.default_rng(2).normal(size=4000)
    expected = audio.spectrogram(
        wave, audio.window_function(400, "hann"), 400, 160, fft_length=512, power=2.0,
        center=False, mel_filters=mel_filters(16000, 80, 512), mel_floor=1e-10, log_mel="log",
    )  # fmt: skip
    assert np.allclose(log_mel(wave, 16000, 80), expected.T, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_normalised_bins_have_mean_0_and_deviation_1(frames, seed):
    mel = np.random.default_rng(seed).normal(3, 2, (frames, 5))
    mel[:, 0] = 7.0
    found = normalise(mel)
    assert np.allclose(found.mean(0), 0, atol=1e-6)
    # exactly 1 but for what keeps a still bin from a division by zero
    spread = mel[:, 1:].std(0)
    assert np.allclose(found[:, 1:].std(0), spread / (spread + 1e-5), atol=1e-9)
    assert (found[:, 0] == 0).all()


def test_loudness_does_not_matter():
    wave = tone() + np.random.default_rng(0).normal(size=16000) * 0.02
    loud, soft = (SPEC.decode({"wav": sound(wave * k, subtype="FLOAT")}, RNG) for k in (1, 0.1))
    assert np.allclose(loud.content["mel"], soft.content["mel"], atol=1e-3)


def test_units_groups_and_targets():
    units = SPEC.decode({"wav": sound(tone())}, RNG)
    assert len(units) == 98 // 4 == 24
    assert units.content["mel"].shape == (24, 4, 80)
    assert units.targets["mel"].shape == (24, 320)
    assert (units.content["mel"].reshape(24, 320) == units.targets["mel"]).all()
    assert units.group.tolist() == [n // 5 for n in range(24)]
    mel = normalise(log_mel(decode_sound(sound(tone()), "wav", 16000, 20), 16000, 80))
    assert (units.content["mel"][3, 2] == mel[14]).all()


@pytest.mark.parametrize(("kind", "atol"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05)])
def test_channels_are_averaged_and_rates_agree(kind, atol):
    """A stereo 44.1 kHz file, one channel silent: half as loud at 16 kHz."""
    wave = tone(300, 0.5, 44100)
    data = sound(np.stack([wave, np.zeros_like(wave)], 1), 44100, kind)
    found = decode_sound(data, kind.lower(), 16000, 20)
    assert found.dtype == np.float32
    assert abs(len(found) - 8000) <= 1
    middle = slice(500, 7500)
    expected = tone(300, 0.5, 16000) / 2
    assert np.allclose(found[middle], expected[middle], atol=max(atol, 1e-3))


def test_mp3_when_the_library_writes_it():
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no MP3")
    assert len(SPEC.decode({"mp3": sound(tone(), kind="MP3")}, RNG)) >= 24


@pytest.mark.parametrize("rate", [16000, 44100])
def test_of_longer_sound_the_beginning_is_used(rate):
    spec = replace(SPEC, seconds=0.5)
    wave = np.concatenate([tone(400, 0.6, rate), tone(2000, 3, rate)])
    units = spec.decode({"wav": sound(wave, rate)}, RNG)
    assert len(units) == (50 - 2) // 4
    assert len(units) <= spec.longest() == 12
    found = decode_sound(sound(wave, rate), "wav", 16000, 0.5)
    assert len(found) == 8000
    assert np.allclose(found, tone(400, 0.5), atol=2e-2)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([8000, 11025, 16000, 22050, 48000]), st.floats(0.056, 1.0))
def test_never_longer_than_longest(rate, seconds):
    spec = replace(SPEC, rate=rate, seconds=seconds)
    units = spec.decode({"wav": sound(tone(440, 1.5, rate), rate)}, RNG)
    assert 0 < len(units) <= spec.longest()


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "undecodable", "not a readable sound file"),
        (b"RIFF but no sound at all", "undecodable", "wav: not a readable sound file"),
        (sound(tone(seconds=0.05)), "too short", r"0\.050 s of sound; expected at least 0\.055"),
        (sound(np.zeros(0)), "silent", "silence in 0"),
        (sound(np.full(9000, 0.3)), "silent", "silence"),
        (sound(np.full(9000, np.nan), subtype="FLOAT"), "NaN features", "not all finite"),
        (sound(np.append(tone(), np.inf), subtype="FLOAT"), "NaN features", "not all finite"),
    ],
)
def test_sound_that_cannot_be_used_says_why(data, kind, words):
    with pytest.raises(BadSample, match=words) as found:
        SPEC.decode({"wav": data}, RNG)
    assert found.value.kind == kind


def test_the_shortest_sound_that_can_be_used():
    assert len(SPEC.decode({"wav": sound(tone(seconds=0.055))}, RNG)) == 1


def test_no_sound_at_all():
    with pytest.raises(BadSample, match=r"no sound \(flac, wav, ogg, mp3\); the sample has jpg"):
        SPEC.decode({"jpg": b""}, RNG)
    with pytest.raises(BadSample, match=r"no sound \(ogg\)"):
        replace(SPEC, field="ogg").decode({"wav": sound(tone())}, RNG)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["WAV", "FLAC", "OGG"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    length=st.none() | st.integers(0, 4000),
)
def test_damaged_bytes_give_units_or_a_bad_sample(kind, changes, length):
    data = bytearray(sound(tone(seconds=0.2), kind=kind))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        units = SPEC.decode({"wav": bytes(data[:length])}, RNG)
    except BadSample:
        return
    assert np.isfinite(units.content["mel"]).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"frames": 0}, "frames 0"), ({"seconds": 0.05}, "less than a unit"), ({"rate": 16}, "rate")],
)
def test_settings_that_make_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(SPEC, **changed)


@pytest.mark.parametrize("changed", [{}, {"frames": 3, "bins": 40}, {"frames": 1, "span": 1}])
def test_contract(changed):
    check_modality(replace(SPEC, **changed), {"flac": sound(tone(), kind="FLAC")})
    # a single unit
    check_modality(replace(SPEC, **changed), {"wav": sound(tone(seconds=0.056))})


def test_a_unit_reads_its_own_frames_only():
    embedder = SPEC.embedder(8).eval()
    units = SPEC.decode({"wav": sound(tone())}, RNG)
    other = units.content["mel"].copy()
    other[5] += 1
    before, after = embedder(stream(units)), embedder(stream(units, mel=other))
    changed = (before != after).any(1)
    assert changed.nonzero().flatten().tolist() == [5]


def test_hidden_units_show_the_mask_at_their_place():
    embedder = SPEC.embedder(8).eval()
    units = SPEC.decode({"wav": sound(tone())}, RNG)
    hidden = np.ones(len(units), bool)
    out = embedder(stream(units, hidden, np.full_like(units.content["mel"], np.nan)))
    expected = embedder.norm(embedder.mask + embedder.position[: len(units)])
    assert torch.allclose(out, expected)
    assert not torch.allclose(out[0], out[1])


def spoken_words(words, seconds=1.0):
    return {"wav": sound(tone(seconds=seconds)), "json": json.dumps({"words": words}).encode()}


def test_units_of_a_word_form_a_group_with_the_pause_after_it():
    # units of 40 ms: the words begin in units 2, 7 and 12; what comes before is a group too
    words = [["one", 0.08, 0.2], ["two", 0.28, 0.4], ["three", 0.5, 0.9]]
    units = replace(SPEC, words=True).decode(spoken_words(words), RNG)
    assert len(units) == 24
    assert units.group.tolist() == [0] * 2 + [1] * 5 + [2] * 5 + [3] * 12


def test_a_hidden_word_is_asked_for_its_first_piece(world):
    path = str(world / "tokenizer.model")
    spec = replace(SPEC, words=True, vocabulary=path)
    words = [["small", 0.0, 0.2], ["star", 0.28, 0.4], ["late", 7.0, 8.0]]
    units = spec.decode(spoken_words(words), RNG)
    vocab = vocabulary(path, "own")
    wanted = {0: vocab.encode("small")[0], 7: vocab.encode("star")[0]}
    token = units.targets["token"]
    assert {n: int(t) for n, t in enumerate(token) if t >= 0} == wanted
    assert spec.predictable()["token"].dim == vocab.size
    assert spec.identity() == vocab.identity
    check_modality(spec, spoken_words(words))


def test_spoken_words_are_scored_with_the_texts_table():
    spec = replace(SPEC, words=True, size=50, lent={"token": "text"})
    text = Text(vocabulary="nowhere", layout="wordpiece", size=50)
    assert spec.predictable()["token"].dim == 50  # without the file
    table, own = text.embedder(8), spec.embedder(8)
    assert own.tied("token") is None
    own.borrow({"text": table, "speech": own})
    assert own.tied("token") is table.token.weight
    assert own.tied("mel") is None
    assert not any("token" in name for name, _ in own.named_parameters())


@pytest.mark.parametrize(
    ("changes", "ids", "said"),
    [
        ({"lent": {"token": "words"}}, 50, "stream 'words' has no table of words to lend"),
        ({}, 40, "'text' has 40 words, spoken ones are named by 50"),
        ({"size": 0}, 50, "spoken ones are named by 0"),
    ],
)
def test_tables_that_cannot_be_lent(changes, ids, said):
    spec = replace(SPEC, words=True, size=50, lent={"token": "text"})
    text = Text(vocabulary="nowhere", layout="wordpiece", size=ids)
    with pytest.raises(ValueError, match=said):
        replace(spec, **changes).embedder(8).borrow({"text": text.embedder(8)})


def test_the_vocabulary_has_the_size_that_is_stated(world):
    path = str(world / "tokenizer.model")
    spec = replace(SPEC, words=True, vocabulary=path, size=7)
    with pytest.raises(ValueError, match="the recipe says size: 7"):
        spec.identity()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{}", "missing field"),
        (b"{", "wrong shape"),
        (b'{"words": []}', "wrong shape"),
        (b'{"words": [["a", 0.3, 0.2]]}', "wrong shape"),
        (b'{"words": [["a", -0.1, 0.2]]}', "wrong shape"),
        (b'{"words": ["a"]}', "wrong shape"),
    ],
)
def test_words_without_times_are_bad_samples(content, kind):
    with pytest.raises(BadSample) as error:
        replace(SPEC, words=True).decode({"wav": sound(tone()), "json": content}, RNG)
    assert error.value.kind == kind


def test_the_worlds_words_are_where_they_sound(world):
    shard = open_shards("speech-train-*.tar", world)[0]
    sample = shard.read(0)
    wave = decode_sound(sample["flac"], "flac", 16000, 20.0)
    words = json.loads(sample["json"])["words"]
    loud = [np.abs(wave[int(a * 16000) : int(b * 16000)]).mean() for _, a, b in words]
    between = [
        np.abs(wave[int(b * 16000) : int(c * 16000)]).mean()
        for (_, _, b), (_, c, _) in pairwise(words)
    ]
    assert min(loud) > 3 * max(between)
    text = next(iter(json.loads(sample["json"])["texts"].values()))[0]
    assert " ".join(w for w, _, _ in words) == text
