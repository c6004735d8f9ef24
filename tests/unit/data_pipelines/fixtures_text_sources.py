"""Tiny data sets of text, sound and tables, in the layout of each source."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from fixtures_sources import put, put_json, table


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


def zipped(path: Path, members: Mapping[str, str]) -> Path:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text)
    return put(path, data.getvalue())


def opus(root: Path, count: int = 4) -> Path:
    put(root / "Books.de-en.de", lines(*(f"Satz {n}." for n in range(count))))
    put(root / "Books.de-en.en", lines(*(f"Sentence {n}." for n in range(count))))
    for side in ("fr", "en"):
        text = lines(*(f"{side} {n}" for n in range(2)))
        put(root / f"europarl-v7.fr-en.{side}.gz", gzip.compress(text.encode()))
    members = {f"GNOME.pt_BR-zh_TW.{x}": lines(f"{x} one", f"{x} two") for x in ("pt_BR", "zh_TW")}
    members |= {"GNOME.pt_BR-zh_TW.xml": "<cesAlign/>", "README": "not data\n", "LICENSE": "-\n"}
    zipped(root / "pt_BR-zh_TW.txt.zip", members)
    return root


def cc100(root: Path) -> Path:
    english = "A dog waits.\nNobody comes.\n\n\n  Another document.  \n"
    put(root / "en.txt.xz", lzma.compress(english.encode()))
    put(root / "zh-Hans.txt.xz", lzma.compress("一。\n\n二。\n三。\n".encode()))
    put(root / "bn_rom.txt", "ek\n")
    put(root / "README.txt.md", "not data\n")
    return root


def wikipedia(root: Path) -> Path:
    url = "https://en.wikipedia.org/wiki?curid="
    articles = [
        {
            "id": "12",
            "revid": "1",
            "url": url + "12",
            "title": "AT&T",
            "text": "AT&amp;T is old.\n\nHistory.\nIt was 1 &lt; 2, at ?a=1&copy=2.",
        },
        {"id": "13", "revid": "1", "url": url + "13", "title": "Redirect", "text": ""},
        {"id": "14", "url": url + "14", "title": "Dog", "text": "Dog\n\nThe dog is here."},
    ]
    text = "".join(json.dumps(article) + "\n" for article in articles)
    put(root / "en/AA/wiki_00", text)
    swahili = (
        '<doc id="7" url="https://sw.wikipedia.org/wiki?curid=7" title=""Mbwa" mmoja">\n'
        '"Mbwa" mmoja\n\nMbwa ni mnyama.\n\nAnangoja.\n\n</doc>\n'
        '<doc id="8" revid="3" url="https://sw.wikipedia.org/wiki?curid=8" title="Paka">\n'
        "Paka\n\nPaka ni mdogo.\n</doc>\n"
    )
    put(root / "swwiki/AA/wiki_00.bz2", bz2.compress(swahili.encode()))
    return root


def squad(paragraphs: Sequence[tuple[str, Sequence[tuple[str, str, str, int]]]]) -> Any:
    """Paragraphs with (id, question, answer, start), one article each."""
    return {
        "data": [
            {
                "title": "T",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": id,
                                "question": question,
                                "answers": [{"text": answer, "answer_start": start}],
                            }
                            for id, question, answer, start in questions
                        ],
                    }
                ],
            }
            for context, questions in paragraphs
        ],
        "version": "1.1",
    }


def xquad(root: Path) -> Path:
    put_json(
        root / "xquad.en.json",
        squad(
            [
                (
                    "The dog waits.",
                    [("a1", "Who waits?", "The dog", 0), ("a2", "What?", "waits", 8)],
                ),
                ("It rains.", [("b1", "Does it rain?", "rains", 3)]),
            ]
        ),
    )
    put_json(
        root / "xquad.de.json",
        squad(
            [
                ("Es regnet.", [("b1", "Regnet es?", "regnet", 3)]),
                (" Der 🐕 wartet.", [("a2", "Was?", "wartet", 7), ("a1", "Wer?", "Der 🐕", 1)]),
            ]
        ),
    )
    put_json(root / "train-v1.1.json", squad([("Alone.", [("c1", "How?", "Alone", 0)])]))
    put_json(root / "dev-v1.1.json", squad([("The dog waits.", [("a1", "Who?", "The dog", 0)])]))
    return root


def conll(root: Path) -> Path:
    def word(number: str, form: str, upos: str) -> str:
        return "\t".join([number, form, form.lower(), upos, *["_"] * 6])

    english = ["# sent_id = 1", word("1", "The", "DET"), word("2", "dog", "NOUN"),
               word("3-4", "can't", "_"), word("3", "can", "AUX"), word("4", "n't", "PART"),
               word("4.1", "go", "VERB"), word("5", "10 000", "NUM"), ""]  # fmt: skip
    german = [word("1", "Es", "PRON"), word("2", "regnet", "VERB"), "", "",
              word("1", "Nein", "INTJ")]  # fmt: skip
    put(root / "UD_English/en_ewt-ud-train.conllu", lines(*english))
    put(root / "UD_English/en_ewt-ud-test.conllu", lines(*english, *english))
    put(root / "UD_German/de_gsd-ud-test.conllu", lines(*german))
    return root


def conll_names(root: Path) -> Path:
    rows = ["-DOCSTART- -X- -X- O", "", "EU NNP B-NP B-ORG", "rejects VBZ B-VP O", ""]
    put(root / "eng.train", lines(*rows))
    put(root / "eng.testa", lines(*rows))
    put(root / "deu.testb", lines("Berlin NN I-NC B-LOC", ". $. O O"))
    put(root / "sw.test.tsv", lines("sw:Nairobi\tB-LOC", "sw:ni\tO", "", "sw:x"))
    return root


def pawsx(root: Path) -> Path:
    header = ["id", "sentence1", "sentence2", "label"]
    for language in ("de", "en"):
        train = "train.tsv" if language == "en" else "translated_train.tsv"
        for file, count in {train: 3, "dev_2k.tsv": 2, "test_2k.tsv": 1}.items():
            rows = [
                [str(n), f"{language} a {n}", f'"{language} ""b"" {n}"', str(n % 2)]
                for n in range(1, count + 1)
            ]
            put(root / f"x-final/{language}/{file}", table([header, *rows]))
    return root


def xnli_mt(root: Path) -> Path:
    for language in ("en", "de"):
        rows = [
            [f"{language} p 1", f"{language} h 1", "contradictory"],
            [f"{language} p 2", f"{language} h 2", "entailment"],
        ]
        text = table([["premise", "hypo", "label"], *rows])
        put(root / f"XNLI-MT-1.0/multinli/multinli.train.{language}.tsv", text)
    return root


def sound(form: str = "WAV", hertz: float = 440.0, seconds: float = 0.2) -> bytes:
    wave = 0.4 * np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)
    data = io.BytesIO()
    soundfile.write(data, wave, 16000, format=form)
    return data.getvalue()


def librispeech(root: Path) -> Path:
    chapters = {"train-clean-100": "19/198", "dev-clean": "84/121", "dev-other": "116/288"}
    chapters |= {"test-clean": "61/70968"}
    for division, chapter in chapters.items():
        name = chapter.replace("/", "-")
        text = ""
        for n in range(2):
            put(root / f"LibriSpeech/{division}/{chapter}/{name}-{n:04d}.flac", sound("FLAC"))
            text += f"{name}-{n:04d} THE DOG'S NAME {n}\n"
        put(root / f"LibriSpeech/{division}/{chapter}/{name}.trans.txt", text)
    put(root / "LibriSpeech/SPEAKERS.TXT", "; not data\n")
    return root


def common_voice(root: Path, languages: Sequence[str] = ("de", "sv-SE")) -> Path:
    header = ["client_id", "path", "sentence_id", "sentence", "up_votes", "locale", "segment"]
    for number, code in enumerate(languages):
        place = root / f"cv-corpus-17.0/{code}"
        for split, count in {"train": 2, "dev": 1, "test": 1, "validated": 4}.items():
            rows = []
            for n in range(1, count + 1):
                clip = f"common_voice_{code}_{split}{n}.mp3"
                if split != "validated":
                    put(place / f"clips/{clip}", sound("MP3", 300.0 + 50 * n + number))
                rows.append([f"s{n}", clip, "x", f'"{code} ""{split}"" {n}"', "2", code, ""])
            put(place / f"{split}.tsv", table([header, *rows]))
    return root


def wav_folder(root: Path, count: int = 4) -> Path:
    for number, label in enumerate(("yes", "no", "left turn")):
        for n in range(count):
            put(root / f"{label}/{n:04x}_nohash_0.wav", sound(hertz=300.0 + 100 * number + n))
    return root
