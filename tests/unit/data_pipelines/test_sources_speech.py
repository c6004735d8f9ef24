"""Sources of speech and sound: librispeech, common-voice, wav-folder."""

from __future__ import annotations

from pathlib import Path

import fixtures_sources as make
import fixtures_text_sources as text
import pytest

from crossloom.data_pipelines.check import check_shards
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.sources import (
    Skipped,
    SourceError,
    common_voice,
    librispeech,
    wav_folder,
)
from crossloom.data_pipelines.sources.sounds import as_sound
from crossloom.modalities.speech import Speech


@pytest.mark.parametrize("form", ["FLAC", "WAV", "OGG", "MP3"])
def test_sound_is_told_by_its_first_bytes(form: str) -> None:
    data = text.sound(form)
    found = as_sound(data)
    assert found is not None
    assert found.extension == form.lower()
    assert found.data == data


def test_what_is_no_sound() -> None:
    for data in (b"", b"\xff", b"<html>", b"RIFF1234AVI ", b"\xff\xd8\xff\xe0", b"\xff\xfe\0\0"):
        assert as_sound(data) is None
    tagged = as_sound(b"ID3\x04")
    assert tagged is not None
    assert tagged.extension == "mp3"


def test_librispeech(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = librispeech.convert(text.librispeech(tmp_path / "in"), out)
    assert report.samples == {"train": 2, "dev": 2, "dev_other": 2, "test": 2}
    assert report.counts["train"] == {"samples": 2, "sounds": 2, "texts.en": 2}
    assert not report.skipped
    assert make.samples(out, "train")["19-198-0001"] == {
        "flac": text.sound("FLAC"),
        "json": {
            "id": "19-198-0001",
            "texts": {"en": ["THE DOG'S NAME 1"]},
            "speaker": "19",
        },
    }
    assert [c["id"][:3] for c in make.contents(out, "dev")] == ["84-", "84-"]
    report = librispeech.convert(tmp_path / "in/LibriSpeech", out, lower=True, overwrite=True)
    assert make.contents(out, "test")[0]["texts"] == {"en": ["the dog's name 0"]}
    assert report.samples["test"] == 2


def test_librispeech_counts_bad_utterances(tmp_path: Path) -> None:
    chapter = text.librispeech(tmp_path / "in") / "LibriSpeech/dev-clean/84/121"
    make.put(chapter / "84-121-0002.flac", b"<html>not found</html>")
    make.put(
        chapter / "84-121.trans.txt",
        b"84-121-0002 A\n84-121-0000 B\n84-121-0000 C\n84-121-0003 D\n84-121-0004\n84-121 \xff\n",
    )
    report = librispeech.convert(tmp_path / "in", tmp_path / "out")
    assert report.samples["dev"] == 1
    assert report.skipped == {
        "utterance given twice": Skipped(1, ("84-121.trans.txt:3",)),
        "line without text": Skipped(1, ("84-121.trans.txt:5",)),
        "not UTF-8": Skipped(1, ("84-121.trans.txt:6",)),
        "sound is neither FLAC, WAV, Ogg nor MP3": Skipped(1, ("84-121-0002.flac",)),
        "sound missing": Skipped(1, ("84-121-0003.flac",)),
        "sound without text": Skipped(1, ("84-121-0001.flac",)),
    }


def test_common_voice(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = common_voice.convert(text.common_voice(tmp_path / "in"), out)
    assert report.samples == {"train": 4, "dev": 2, "test": 2}
    assert report.counts["train"] == {
        "samples": 4, "sounds": 4, "texts.de": 2, "texts.sv": 2,
    }  # fmt: skip
    assert not report.skipped
    members = [*make.samples(out, "train").values()]
    assert members[3] == {
        "mp3": text.sound("MP3", 401.0),
        "json": {
            "id": "common_voice_sv-SE_train2",
            "texts": {"sv": ['sv-SE "train" 2']},
            "speaker": "s2",
        },
    }


def test_common_voice_is_read_by_the_speech_modality(tmp_path: Path) -> None:
    common_voice.convert(text.common_voice(tmp_path / "in"), tmp_path / "out")
    source = Source("test", open_shards("train-*.tar", tmp_path / "out"), Texts())
    modality = Speech()
    for place in source.places():
        example = source.example(place, {"speech": modality}, frozenset({"speech"}), 0)
        assert not isinstance(example, tuple), example
        assert 4 <= len(example.units["speech"]) <= 6  # 0.2 s in windows of 40 ms
        assert example.labels["text"].startswith(example.labels["language"])
    assert check_shards(str(tmp_path / "out"), processes=1).defects == {}


def test_common_voice_of_one_language_with_converted_clips(tmp_path: Path) -> None:
    folder = text.common_voice(tmp_path / "in") / "cv-corpus-17.0/de"
    clip = folder / "clips/common_voice_de_dev1.mp3"
    clip.unlink()
    make.put(clip.with_suffix(".wav"), text.sound())
    common_voice.convert(folder, tmp_path / "out")
    samples = make.samples(tmp_path / "out", "dev")
    assert list(samples) == ["de-00000001"]
    assert samples["de-00000001"]["wav"] == text.sound()


def test_common_voice_counts_bad_rows(tmp_path: Path) -> None:
    folder = text.common_voice(tmp_path / "in", ["de"]) / "cv-corpus-17.0/de"
    rows = [
        ["client_id", "path", "sentence", "locale"],
        ["s", "gone.mp3", "Weg.", "de"],
        ["s", "common_voice_de_dev1.mp3", " ", "de"],
        ["s", "", "Ohne.", "de"],
        ["s", "common_voice_de_dev1.mp3", "zu", "viel", "de"],
        ["s", "common_voice_de_dev1.mp3", "Gut.", "de"],
    ]
    make.put(folder / "dev.tsv", make.table(rows).encode() + b"s\tx\t\xff\tde\n")
    report = common_voice.convert(folder, tmp_path / "out")
    assert report.samples["dev"] == 1
    assert report.skipped == {
        "sound missing": Skipped(1, ("de/gone.mp3",)),
        "empty sentence": Skipped(1, ("de/common_voice_de_dev1.mp3:3",)),
        "row without clip": Skipped(1, ("de/:4",)),
        "row with another number of columns": Skipped(1, ("dev.tsv:5 (5, header 4)",)),
        "not UTF-8": Skipped(1, ("dev.tsv:7",)),
    }
    make.put(folder / "dev.tsv", "client_id\tpath\ttext\n")
    with pytest.raises(SourceError, match=r"dev.tsv: .*sentence, locale is missing"):
        common_voice.convert(folder, tmp_path / "other")
    with pytest.raises(SourceError, match=r"beside a folder clips/"):
        common_voice.convert(folder / "clips", tmp_path / "other")


def test_wav_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = text.wav_folder(tmp_path / "in", count=40)
    make.put(folder / "no/a.flac", text.sound("FLAC"))
    make.put(folder / "no/notes.txt", "not sound\n")
    make.put(folder / "no/broken.wav", "not sound\n")
    make.put(folder / "_background_noise_/rain.wav", text.sound())
    report = wav_folder.convert(folder, out)
    assert sum(report.samples.values()) == 121
    assert set(report.samples) == {"train", "dev", "test"}
    assert report.counts["train"]["sounds"] == report.samples["train"]
    assert (out / "labels.txt").read_text() == "left turn\nno\nyes\n"
    assert report.skipped == {
        "folder that is no label": Skipped(1, ("_background_noise_",)),
        "file that is no sound": Skipped(1, ("no/notes.txt",)),
        "sound is neither FLAC, WAV, Ogg nor MP3": Skipped(1, ("no/broken.wav",)),
    }
    speakers = {
        split: {c["id"].partition("/")[2].partition("_")[0] for c in make.contents(out, split)}
        for split in report.samples
    }
    assert not speakers["train"] & speakers["test"]
    assert not speakers["train"] & speakers["dev"]
    train = make.samples(out, "train")
    key = next(k for k in train if k.startswith("yes-"))
    assert train[key]["json"]["label"] == "yes"
    assert set(train[key]) == {"wav", "json"}


def test_wav_folder_follows_lists(tmp_path: Path) -> None:
    folder = text.wav_folder(tmp_path / "in", count=2)
    make.put(folder / "validation_list.txt", "yes/0000_nohash_0.wav\nyes/ffff_nohash_0.wav\n")
    make.put(folder / "testing_list.txt", "left turn/0001_nohash_0.wav\n")
    report = wav_folder.convert(folder, tmp_path / "out")
    assert report.samples == {"train": 4, "dev": 1, "test": 1}
    assert make.contents(tmp_path / "out", "dev") == [
        {"id": "yes/0000_nohash_0.wav", "label": "yes"}
    ]
    assert report.skipped == {
        "name on a list, but no such recording": Skipped(1, ("yes/ffff_nohash_0.wav",))
    }
