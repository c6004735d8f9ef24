"""Units that know their characters, and windows of long passages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.modalities.text import Text
from crossloom.objectives.span import units_of_span
from crossloom.objectives.tag import first_units
from crossloom.units import Passage, keyed_rng

SAID = "The red circle is left of the blue square."


@pytest.fixture(scope="module")
def text(world):
    return Text(vocabulary=str(world / "tokenizer.model"), characters=True, limit=64)


def sample(*texts):
    return {"text": tuple(Passage("en", t) for t in texts)}


def test_units_cover_the_characters_of_their_passage(text):
    units = text.decode(sample("Where is it?", SAID), keyed_rng(0))
    characters = units.targets["characters"]
    pieces = text.vocab.pieces
    for place, (passage, first, last) in enumerate(characters):
        piece = pieces[units.content["token"][place]]
        if passage < 0:
            assert piece in ("<s>", "</s>")
            assert not units.maskable[place]
        else:
            said = ("Where is it?", SAID)[passage][first:last]
            assert said.strip() == piece.replace("\N{LOWER ONE EIGHTH BLOCK}", "").strip()
    for passage, length in ((0, 12), (1, len(SAID))):
        own = characters[characters[:, 0] == passage]
        assert own[0, 1] == 0
        assert own[-1, 2] == length
        assert (own[1:, 1] == own[:-1, 2]).all()


def test_the_first_unit_of_each_word(text):
    words, at = [], 0
    for word in SAID.split():
        words.append((at, at + len(word)))
        at += len(word) + 1
    units = text.decode(sample(SAID), keyed_rng(0))
    places = first_units(units.targets["characters"], words)
    starts = np.flatnonzero(text.vocab.starts_word[units.content["token"]] & units.maskable)
    assert places.tolist() == starts.tolist()
    short = Text(vocabulary=text.vocabulary, characters=True, limit=8)
    cut = first_units(short.decode(sample(SAID), keyed_rng(0)).targets["characters"], words)
    held = int((cut >= 0).sum())
    assert 0 < held < len(words)
    assert cut[:held].tolist() == places[:held].tolist()
    assert (cut[held:] == -1).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SAID) - 1), st.integers(1, 12))
def test_a_span_becomes_units_and_back(world, start, length):
    text = Text(vocabulary=str(world / "tokenizer.model"), characters=True)
    span = (start, min(start + length, len(SAID)))
    if not SAID[slice(*span)].strip():
        return
    characters = text.decode(sample("Who?", SAID), keyed_rng(0)).targets["characters"]
    first, last = units_of_span(characters, span, 1)
    assert characters[first, 0] == characters[last, 0] == 1
    assert characters[first, 1] <= span[0] < characters[first, 2]
    assert characters[last, 1] < span[1] <= characters[last, 2]


def test_windows_cover_a_long_passage_and_keep_the_question(text):
    long = " ".join([SAID] * 5)
    stride = 7
    short = Text(vocabulary=text.vocabulary, characters=True, limit=30, stride=stride)
    windows = short.windows(sample("Where is the square?", long))
    question = text.decode(sample("Where is the square?"), keyed_rng(0)).content["token"][:-1]
    spans = text.vocab.spans(long)
    begins, ends = [], []
    for units in windows:
        characters = units.targets["characters"]
        assert len(units) <= 30
        assert units.content["token"][: len(question)].tolist() == question.tolist()
        own = characters[characters[:, 0] == 1, 1:]
        begins.append(int(np.flatnonzero((spans == own[0]).all(1))[0]))
        assert (spans[begins[-1] : begins[-1] + len(own)] == own).all()
        token = units.content["token"][characters[:, 0] == 1]
        whole = text.vocab.encode(long)
        assert token.tolist() == whole[begins[-1] : begins[-1] + len(own)].tolist()
        ends.append(begins[-1] + len(own))
    assert begins == list(range(0, stride * len(windows), stride))
    assert ends[-1] == len(spans)
    # each but the last is full, so that none could have been left out
    assert all(len(u) == 30 for u in windows[:-1])
    assert ends[-2] < len(spans)


def test_a_long_question_leaves_half_of_the_room_to_windows(text):
    asked, long = " ".join(["Where is the square?"] * 9), " ".join([SAID] * 3)
    short = Text(vocabulary=text.vocabulary, characters=True, limit=24, stride=7)
    windows = short.windows(sample(asked, long))
    own = [x[x[:, 0] == 1, 1:] for x in (u.targets["characters"] for u in windows)]
    assert {len(u) for u in windows[:-1]} == {24}
    assert {len(x) for x in own[:-1]} == {10}  # half of what specials leave
    assert {(*x,) for some in own for x in some.tolist()} == {*map(tuple, text.vocab.spans(long))}


def test_a_stride_longer_than_a_window_leaves_nothing_out(text):
    long = " ".join([SAID] * 5)
    short = Text(vocabulary=text.vocabulary, characters=True, limit=30, stride=128)
    seen = np.concatenate([u.targets["characters"] for u in short.windows(sample("Where?", long))])
    own = seen[seen[:, 0] == 1, 1:]
    assert own.tolist() == text.vocab.spans(long).tolist()  # each once


def test_training_sees_one_window_at_a_time(text):
    long = " ".join([SAID] * 5)
    short = Text(vocabulary=text.vocabulary, characters=True, limit=30, stride=7)
    said = sample("Where is the square?", long)
    known = {tuple(u.content["token"].tolist()) for u in short.windows(said)}
    drawn = {tuple(short.decode(said, keyed_rng(n)).content["token"].tolist()) for n in range(60)}
    assert drawn == known
    assert len(short.windows(sample("Where?", SAID))) == 1
    one = short.decode(sample("Where?", SAID), keyed_rng(0)).content["token"]
    plain = text.decode(sample("Where?", SAID), keyed_rng(0)).content["token"]
    assert one.tolist() == plain.tolist()


def test_an_answer_outside_of_the_window_is_nowhere(text):
    long = " ".join([SAID] * 5)
    short = Text(vocabulary=text.vocabulary, characters=True, limit=30, stride=7)
    first, *_, last = short.windows(sample("Where?", long))
    at = len(long) - len("square.")
    span = (at, len(long))
    assert units_of_span(first.targets["characters"], span, 1) == (0, 0)
    begin, end = units_of_span(last.targets["characters"], span, 1)
    characters = last.targets["characters"]
    assert long[characters[begin, 1] : characters[end, 2]].strip() == "square."


def test_an_answer_that_the_window_cuts_is_nowhere():
    characters = np.array([[-1] * 3, [0, 0, 3], [-1] * 3, [1, 10, 14], [1, 14, 20], [-1] * 3])
    assert units_of_span(characters, (11, 16), 1) == (3, 4)
    assert [units_of_span(characters, span, 1) for span in ((9, 16), (11, 21))] == [(0, 0)] * 2
