"""Dictionaries: code-switched texts, and words that share a fate with their translations."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.data_pipelines.dictionary import Switch, bind, load
from crossloom.data_pipelines.links import Links
from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.modalities.text import Text
from crossloom.modalities.text import bind as joined
from crossloom.objectives.view import Hide, draw_fates
from crossloom.recipes.m3p import m3p_tiny
from crossloom.recipes.uc2 import uc2_tiny
from crossloom.units import BadSample, Passage, keyed_rng

LINES = (
    "dog\tde\tHund\n"
    "dog\tfr\tchien\tchienne\n"
    "Cat\tde\tKatze\n"
    "two\tde\tzwei\n"
    "dog\tde\tHunde\tHund\n"
    "red\tzh\t红色\n"
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "dictionary.tsv"
    path.write_text(LINES, "utf-8")
    return str(path)


def test_lines_of_one_word_are_joined(file):
    table = load(file)
    assert table["dog"] == {"de": ("Hund", "Hunde"), "fr": ("chien", "chienne")}
    assert table["cat"] == {"de": ("Katze",)}


@pytest.mark.parametrize("line", ["dog", "dog\tde", "\tde\tHund", "dog\t\tHund", "dog\tde\t \t"])
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "bad.tsv").write_text(f"cat\tde\tKatze\n{line}\n")
    with pytest.raises(ValueError, match=r"bad\.tsv: line 2 is"):
        load(str(tmp_path / "bad.tsv"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.tsv: the dictionary cannot be read"):
        load(str(tmp_path / "none.tsv"))


TEXT = Passage("en", "A DOG, two cats and a cat: dog-like dogs' dog.")


def test_known_words_alone_are_replaced_punctuation_and_all_else_stays(file):
    switch = Switch(dictionary=file, texts=1, words=1, into=("de",))
    seen = {switch(TEXT, keyed_rng(n)).text for n in range(40)}
    a, b = "Hund", "Hunde"
    assert seen == {
        f"A {x}, zwei cats and a Katze: dog-like dogs' {y}." for x in (a, b) for y in (a, b)
    }
    assert switch(TEXT, keyed_rng(1)).language == "en"


def test_languages_then_translations_are_drawn_alike(file):
    switch = Switch(dictionary=file, texts=1, words=1)
    drawn = Counter(switch(Passage("en", "dog"), keyed_rng(n)).text for n in range(4000))
    assert drawn.keys() == {"Hund", "Hunde", "chien", "chienne"}
    for count in drawn.values():
        assert count == pytest.approx(1000, abs=110)  # four deviations


def test_shares_of_texts_and_words(file):
    switch = Switch(dictionary=file, texts=0.8, words=0.5, into=("de",))
    text = Passage("en", " ".join(["cat"] * 20))
    said = [switch(text, keyed_rng(n)).text.split().count("Katze") for n in range(500)]
    assert np.mean([n > 0 for n in said]) == pytest.approx(0.8, abs=0.07)
    assert np.mean([n for n in said if n]) == pytest.approx(10, abs=0.5)


@given(words=st.lists(st.sampled_from(["dog", "cat", "two", "bird", "Dog!"])), seed=st.integers())
@settings(max_examples=40, deadline=None)
def test_with_no_share_nothing_changes_and_a_key_always_draws_alike(words, seed, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "some.tsv"
    path.write_text(LINES, "utf-8")
    passage = Passage("en", " ".join(words))
    for none in ({"texts": 0.0}, {"words": 0.0}, {"into": ("sw",)}):
        assert Switch(dictionary=str(path), **none)(passage, keyed_rng(seed)) == passage
    switch = Switch(dictionary=str(path))
    assert switch(passage, keyed_rng(seed)) == switch(passage, keyed_rng(seed))
    other = replace(passage, language="de")
    assert switch(other, keyed_rng(seed)) is other


def test_shares_beyond_one_are_refused(file):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        Switch(dictionary=file, words=1.5)
    with pytest.raises(ValueError, match="links"):
        Texts(switch=Switch(dictionary=file), links=Links())


# --- words and their translations ----------------------------------------------------------------


def words_of(passage):
    return {n: passage.text[a:b] for a, b, n in passage.bound}


def test_words_are_bound_to_their_translations(file):
    one = Passage("en", "A dog, two cats and a dog.")
    two = Passage("de", "Zwei Hündchen, ein Hund und noch ein HUNDE-Haufen.")
    a, b = bind(one, two, file)
    assert words_of(a) == {0: "dog", 1: "two", 2: "dog"}
    # longer translations first, whole words only, each place once
    assert words_of(b) == {0: "HUNDE", 1: "Zwei", 2: "Hund"}
    back = bind(two, one, file)
    assert (words_of(back[0]), words_of(back[1])) == (words_of(b), words_of(a))


def test_scripts_without_spaces_have_words_inside_others(file):
    a, b = bind(Passage("en", "a red dog"), Passage("zh", "一个红色的狗"), file)
    assert (words_of(a), words_of(b)) == ({0: "red"}, {0: "红色"})


def test_nothing_known_binds_nothing(file):
    a, b = bind(Passage("en", "dog"), Passage("sw", "mbwa"), file)
    assert not a.bound
    assert not b.bound


def test_groups_are_joined():
    group = np.array([0, 1, 1, 2, 3, 3, 4, 5, 6])
    bound = np.array([-1, 7, 7, -1, -1, -1, 7, 9, 9])
    assert joined(group, bound).tolist() == [0, 1, 1, 2, 3, 3, 1, 5, 5]
    assert joined(group, None).tolist() == group.tolist()


def test_bound_words_share_every_fate(world):
    text = Text(vocabulary=str(world / "tokenizer.model"), limit=96, restart=True)
    pair = bind(
        Passage("en", "A small red star is above a blue square."),
        Passage("de", "Ein kleiner roter Stern ist über einem blauen Quadrat."),
        str(world / "dictionary.tsv"),
    )
    assert [pair[0].text[a:b] for a, b, _ in pair[0].bound] == [
        "small", "red", "star", "blue", "square",
    ]  # fmt: skip
    assert words_of(pair[1]) == {0: "kleiner", 1: "roter", 2: "Stern", 3: "blauen", 4: "Quadrat"}
    units = text.decode({"text": pair}, keyed_rng(0))
    vocab = text.vocab
    second = int(np.flatnonzero(units.position == 0)[1])  # positions start anew

    def said(number, side):
        places = np.flatnonzero(units.group == number)
        places = places[(places >= second) == bool(side)]
        return vocab.decode(units.content["token"][places].tolist()).strip(" .")

    shared = set(units.group[:second]) & set(units.group[second:])
    pairs = {(said(n, 0), said(n, 1)) for n in shared}
    assert pairs == {
        ("small", "kleiner"), ("red", "roter"), ("star", "Stern"), ("blue", "blauen"),
        ("square", "Quadrat"),
    }  # fmt: skip
    hide = Hide(rate=0.5, show=0.2, swap=0.2, by="group")
    for draw in range(30):
        fate = draw_fates(units, hide, keyed_rng(draw))
        assert all(len(set(fate[units.group == n])) == 1 for n in shared)
    alone = replace(pair[1], bound=()), replace(pair[0], bound=())
    plain = text.decode({"text": alone}, keyed_rng(0))
    assert len(set(plain.group)) == len(set(units.group)) + 5


# --- readers and recipes -------------------------------------------------------------------------


def samples(world, count=12):
    shard = open_shards("train-*.tar", world)[0]
    return [shard.read(n) for n in range(count)]


def test_the_worlds_dictionary_switches_captions_and_binds_them(world):
    file = str(world / "dictionary.tsv")
    switched = Texts(
        languages=("en",), switch=Switch(dictionary=file, texts=1, words=1, into=("tr",))
    )
    pairs = Parallel(pivot="en", dictionary=file)
    kinds = Counter()
    for number, members in enumerate(samples(world)):
        sample, labels = switched.read(members, 0, keyed_rng(number))
        (passage,) = sample["text"]
        assert labels["language"] == "en"
        assert not {"red", "blue", "star", "moon", "circle"} & set(passage.text.split())
        sample, _ = pairs.read(members, 0, keyed_rng(number))
        one, two = sample["text"]
        assert (one.language == "en") != (two.language == "en")
        kinds[one.language == "en"] += 1
        named = one if one.language == "en" else two
        content = sum(w in LANGUAGES["en"].words for w in named.text.strip(".").split())
        # Arabic joins its "and" to the next word
        assert len(named.bound) >= content - 2 if "ar" in (one.language, two.language) else content
    assert min(kinds.values()) > 0


def test_a_pivot_that_is_not_there_is_named(world):
    members = samples(world, 1)[0]
    with pytest.raises(BadSample, match="has no text in cs"):
        Parallel(pivot="cs").read(members, 0, keyed_rng(0))
    with pytest.raises(ValueError, match="leave out the dictionary"):
        Parallel(mismatch=0.5, dictionary="d.tsv")


def test_every_form_of_a_word_is_used_and_listed(world):
    """Words of the dictionary are those that captions are made of."""
    table = load(str(world / "dictionary.tsv"))
    assert set(table) == set(LANGUAGES["en"].words)
    assert all(set(x) == set(LANGUAGES) - {"en"} for x in table.values())
    assert table["red"]["de"] == ("rot", "rote", "roter", "rotes", "roten")
    assert table["star"]["hi"] == ("तारा", "तारे")
    assert table["white"]["sw"] == ("mweupe", "jeupe", "nyeupe")


def test_files_are_found_beside_the_data(tmp_path):
    made = replace(m3p_tiny(), data=str(tmp_path)).located()
    switch = made.mixture["captions"].reader.switch
    assert switch.dictionary == str(tmp_path / "dictionary.tsv")
    made = replace(uc2_tiny(), data=str(tmp_path)).located()
    assert made.mixture["vtlm"].reader.dictionary == str(tmp_path / "dictionary.tsv")
    assert made.mixture["vtlm-pieces"].reader.dictionary == ""
    names = made.modalities["image"].names
    assert names.names == str(tmp_path / "classes.tsv")
    assert names.vocabulary == made.modalities["text"].vocabulary
    assert made.located() == made
