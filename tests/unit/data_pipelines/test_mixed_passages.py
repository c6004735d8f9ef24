"""Passages that follow each other, and texts in two languages."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.data_pipelines.alignment import phrases, words
from crossloom.data_pipelines.join import join
from crossloom.data_pipelines.passages import Alternating, Following, Switched, switch
from crossloom.data_pipelines.read import Parallel
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.write import ShardWriter
from crossloom.modalities.text import Text
from crossloom.units import BadSample, Passage, keyed_rng

TEXT = frozenset(("text",))


def read(reader, content, seed=0, item=0):
    sample, labels = reader.read({"json": json.dumps(content).encode()}, item, keyed_rng(seed))
    return sample["text"], labels


def visits(reader, content, count=60):
    return [read(reader, content, seed)[0] for seed in range(count)]


# --- following ----------------------------------------------------------------------------------


def test_a_document_is_parted_where_its_sentences_end():
    content = {"texts": {"en": ["One cat. Two cats!", "Three."]}}
    found = {tuple(p.text for p in pair) for pair in visits(Following(), content)}
    assert found == {
        ("One cat.", "Two cats!\nThree."),
        ("One cat. Two cats!", "Three."),
    }


def test_one_sentence_is_parted_between_words():
    content = {"texts": {"zh": ["红心"], "en": ["one two three"]}}
    assert {tuple(p.text for p in x) for x in visits(Following(languages=("en",)), content)} == {
        ("one", "two three"), ("one two", "three")
    }  # fmt: skip
    (one, two), labels = read(Following(languages=("zh",)), content)
    assert (one, two) == (Passage("zh", "红"), Passage("zh", "心"))
    assert labels["language"] == "zh"


def test_one_word_is_a_bad_sample():
    with pytest.raises(BadSample, match="one word"):
        read(Following(), {"texts": {"en": ["alone"]}})


def documents(folder):
    with ShardWriter(folder, "train") as writer:
        for n in range(30):
            code = "de" if n % 3 else "en"
            writer.write(f"{n:02}", {"json": {"texts": {code: [f"first{n}.", f"second{n}."]}}})
    return open_shards("train-*.tar", folder)


class Words(Text):
    """Keeps the passages beside the units."""

    def decode(self, sample, rng):
        self.heard.append(sample["text"])
        return super().decode(sample, rng)


def heard(source, modality):
    object.__setattr__(modality, "heard", [])
    places = source.places()
    found = [source.example(p, {"text": modality}, TEXT, 0, places) for p in places]
    return [
        (*passages, e.labels["matched"]) for passages, e in zip(modality.heard, found, strict=True)
    ]


def test_a_mismatched_passage_is_of_another_document_in_the_same_language(world, tmp_path):
    source = Source("s", documents(tmp_path), Following(mismatch=0.5))
    modality = Words(vocabulary=str(world / "tokenizer.model"))
    found = heard(source, modality)
    assert 0.25 < np.mean([matched for *_, matched in found]) < 0.75
    for first, second, matched in found:
        assert first.language == second.language
        assert (first.text[5:] == second.text[6:]) == matched


def test_a_translation_that_is_none_is_in_the_translations_language(world):
    """Else who saw that both sides are of one language would know that they do not match."""
    source = Source("s", open_shards("train-*.tar", world), Parallel(mismatch=1.0))
    modality = Words(vocabulary=str(world / "tokenizer.model"), limit=96)
    found = heard(source, modality)
    assert not any(matched for *_, matched in found)
    assert all(first.language != second.language for first, second, _ in found)


# --- alternating --------------------------------------------------------------------------------

STORY = {"texts": {x: [f"{x}{n}." for n in range(5)] for x in ("en", "de", "fr")}}


def test_sentences_take_turns():
    for (passage,) in visits(Alternating(), STORY, 30):
        said = passage.text.split(" ")
        first, second = said[0][:2], said[1][:2]
        assert first != second
        assert said == [f"{(first, second)[n % 2]}{n}." for n in range(5)]
        assert passage.language == first
        parts = [(passage.text[a:b], code) for a, b, code in passage.switched]
        assert parts == [(f"{second}1.", second), (f"{second}3.", second)]
    seen = {p.text[:2] for (p,) in visits(Alternating(), STORY, 30)}
    assert seen == {"en", "de", "fr"}


def test_one_language_does_not_alternate():
    with pytest.raises(BadSample, match="only en"):
        read(Alternating(languages=("en", "sw")), STORY)


def test_alternating_documents_are_joined_by_their_languages(world):
    reader = Alternating(languages=("en", "de"))
    source = Source("s", open_shards("train-*.tar", world), reader)
    text = Text(vocabulary=str(world / "tokenizer.model"), limit=64, languages=("en", "de"))
    places = source.places()[:12]
    examples = [source.example(p, {"text": text}, TEXT, 0, places) for p in places]
    assert {e.labels["language"] for e in examples} == {"de-en"}
    blocks = join(examples, {"text": text}, TEXT)
    assert all(len(b.units["text"]) >= 63 for b in blocks[:-1])
    # a block goes to and fro between both languages
    for block in blocks[:-1]:
        assert (np.diff(block.units["text"].content["language"]) != 0).sum() >= 2
    count = sum(len(e.units["text"]) - 2 for e in examples)
    assert sum(int(b.units["text"].maskable.sum()) for b in blocks) == count


# --- switched -----------------------------------------------------------------------------------

PAIR = {
    "texts": {"en": ["a red star and a moon ."], "de": ["ein Mond und ein roter Stern ."]},
    "alignments": {"en-de": ["0-3 1-4 2-5 3-2 4-0 5-1 6-6"]},
}


def test_phrases_are_replaced_by_their_translations():
    words_of = {"a": {"ein"}, "red": {"roter"}, "star": {"Stern"}, "moon": {"Mond"}, "and": {"und"}}
    words_of |= {".": {"."}}
    english = PAIR["texts"]["en"][0].split()
    seen = set()
    for (passage,) in visits(Switched(most=0.5), PAIR, 200):
        seen.add(passage.language)
        if passage.language != "en":
            continue
        said = passage.text.split()
        switched = {passage.text[a:b] for a, b, code in passage.switched}
        assert len(said) == len(english)
        for own, word in zip(english, said, strict=True):
            assert word == own or (word in words_of[own] and word in switched)
        changed = sum(own != word for own, word in zip(english, said, strict=True))
        assert changed <= 0.5 * len(english)
        assert passage.switched
    assert seen == {"en", "de"}


def test_how_many_words_are_replaced():
    """A share drawn evenly up to 0.6: 0.3 and half a phrase on the average."""
    count = 40
    first, second = (Passage(x, " ".join(f"{x}{n}" for n in range(count))) for x in ("a", "b"))
    links = [(n, count - 1 - n) for n in range(count)]
    shares = []
    for seed in range(400):
        passage = switch(first, second, links, 0.6, keyed_rng(seed))
        shares.append(len(passage.switched) / count)
    assert max(shares) <= 0.6
    assert min(shares) == 1 / count
    assert 0.28 < np.mean(shares) < 0.35


def test_long_phrases_and_some_sentences_stay():
    own, its = Passage("en", "one two three four"), Passage("de", "eins zwei drei vier")
    links = [(0, 0), (1, 1), (2, 1), (3, 2), (3, 3)]  # a word, two by one, one by two
    for longest, replaced in ((0, 3), (2, 3), (1, 1)):
        every = {
            passage.text[a:b]
            for n in range(40)
            for passage in [switch(own, its, links, 1.0, keyed_rng(n), longest=longest)]
            for a, b, _ in passage.switched
        }
        assert len(every) == replaced, longest
    changed = [bool(p.switched) for (p,) in visits(Switched(most=0.5, left=0.4), PAIR, 300)]
    assert np.mean(changed) == pytest.approx(0.6, abs=0.1)


sentences = st.lists(st.sampled_from(["red", "Stern", "图", "红", ".", "d'un"]), max_size=8)


@settings(max_examples=200, deadline=None)
@given(sentences, sentences, st.data())
def test_what_is_switched_is_a_phrase_and_the_rest_stays(one, other, data):
    own, its = Passage("en", " ".join(one)), Passage("zh", "".join(other))
    n, m = len(words(own.text)), len(words(its.text))
    cells = [(i, j) for i in range(n) for j in range(m)]
    links = data.draw(st.lists(st.sampled_from(cells), max_size=8)) if cells else []
    passage = switch(own, its, links, 1.0, keyed_rng(data.draw(st.integers(0, 99))))

    def said(text):
        return [text[a:b] for a, b in words(text)]

    left, at = [], 0
    pairs = {tuple(said(its.text)[c:d]): (a, b) for (a, b), (c, d) in phrases(links)}
    for begin, end, code in passage.switched:
        assert code == "zh"
        assert tuple(said(passage.text[begin:end])) in pairs
        left += said(passage.text[at:begin])
        at = end
    left += said(passage.text[at:])
    # what was not replaced is the sentence's, in its order
    rest = iter(said(own.text))
    assert all(word in rest for word in left)
    if passage.switched == ():
        assert passage.text == own.text


def test_without_alignments_it_is_a_bad_sample():
    with pytest.raises(BadSample, match="alignments"):
        read(Switched(), {"texts": PAIR["texts"]})
    with pytest.raises(BadSample, match="none is read"):
        read(Switched(languages=("en", "fr")), PAIR)
    with pytest.raises(BadSample, match="9-9 of 7 and 7 words"):
        read(Switched(), {**PAIR, "alignments": {"en-de": ["9-9"]}})


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="most"):
        Switched(most=0)


def test_codes_with_dashes():
    content = {
        "texts": {"zh-hant": ["星"], "en": ["star"]}, "alignments": {"zh-hant-en": ["0-0"]}
    }  # fmt: skip
    found = {(p.language, p.text, p.switched) for (p,) in visits(Switched(most=1.0), content, 40)}
    assert found == {
        ("en", "星", ((0, 1, "zh-hant"),)), ("zh-hant", "star", ((0, 4, "en"),))
    }  # fmt: skip


# --- what the text makes of it ------------------------------------------------------------------


def test_each_piece_has_the_language_of_its_part(world):
    codes = ("en", "de", "zh")
    text = Text(vocabulary=str(world / "tokenizer.model"), languages=codes)
    said = "The picture shows einen roten Stern and 一个黑色的星形."
    parts = tuple(
        (said.index(x), said.index(x) + len(x), code)
        for x, code in (("einen roten Stern", "de"), ("一个黑色的星形", "zh"))
    )
    passage = Passage("en", said, switched=parts)
    units = text.decode({"text": (passage,)}, keyed_rng(0))
    vocab = text.vocab
    runs = {}
    for token, number in zip(units.content["token"], units.content["language"], strict=True):
        if token not in (vocab.begin, vocab.end):
            runs[codes[number]] = runs.get(codes[number], "") + vocab.pieces[token]
    spoken = {code: run.replace("▁", " ").split() for code, run in runs.items()}
    assert spoken["de"] == ["einen", "roten", "Stern"]
    assert "".join(spoken["zh"]) == "一个黑色的星形"
    assert "".join(spoken["en"]) == "Thepictureshowsand."
    # specials are the sentence's
    assert units.content["language"][[0, -1]].tolist() == [0, 0]


def test_a_part_in_a_language_that_is_not_listed_is_a_bad_sample(world):
    text = Text(vocabulary=str(world / "tokenizer.model"), languages=("en",))
    passage = Passage("en", "a star", switched=((0, 1, "de"),))
    with pytest.raises(BadSample, match="'de' is not listed"):
        text.decode({"text": (passage,)}, keyed_rng(0))
    # without embeddings of languages nobody asks
    Text(vocabulary=str(world / "tokenizer.model")).decode({"text": (passage,)}, keyed_rng(0))
