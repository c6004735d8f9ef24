"""Alignments: words, phrases, what aligners write, what is made from the pairs, the world's own."""

from itertools import permutations, product

import fixtures_sources as make
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.data_pipelines.alignment import (
    by_spaces,
    linked,
    phrases,
    read_links,
    words,
    write_links,
)
from crossloom.data_pipelines.sources import Skipped, align, opus
from crossloom.data_pipelines.world.describe import describe
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.data_pipelines.world.scene import make_scene
from crossloom.data_pipelines.write import ShardWriter
from crossloom.units import BadSample


def said(text):
    return [text[a:b] for a, b in words(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("L'image est là !", ["L", "'", "image", "est", "là", "!"]),
        ("图中有star。", ["图", "中", "有", "star", "。"]),
        ("एक काला तारा।", ["एक", "काला", "तारा", "।"]),  # vowel signs stay with their letters
        ("ที่นี่", ["ที่", "นี่"]),  # marks do too, where each letter is a word
        (" \t", []),
    ],
)
def test_words(text, found):
    assert said(text) == found


links_of = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=9)


def consistent(links, first, second):
    """No link leads from inside the one to outside the other, and there is one at least."""
    inside = [(first[0] <= i < first[1], second[0] <= j < second[1]) for i, j in links]
    return any(a and b for a, b in inside) and all(a == b for a, b in inside)


@settings(deadline=None)
@given(links_of)
def test_phrases_are_the_smallest_consistent_ones(links):
    found = phrases(links)
    ranges = [(a, b) for a, b in product(range(6), range(1, 7)) if a < b]
    every = [(p, q) for p in ranges for q in ranges if consistent(links, p, q)]

    def holds(outer, inner):
        return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(outer, inner, strict=True))

    smallest = [p for p in every if not any(q != p and holds(p, q) for q in every)]
    assert found == sorted(smallest)


@settings(deadline=None)
@given(links_of)
def test_what_is_written_is_read(links):
    assert read_links(write_links(links), 6, 6) == sorted(links)


@pytest.mark.parametrize(
    ("line", "kind"), [("0-0 1", "undecodable"), ("a-1", "undecodable"), ("0-3", "wrong shape")]
)
def test_lines_that_do_not_fit_are_bad_samples(line, kind):
    with pytest.raises(BadSample) as error:
        read_links(line, 2, 3)
    assert error.value.kind == kind


def test_words_parted_by_spaces_are_counted_anew():
    # Haus. is two words here, 房子。 three
    assert by_spaces("0-0 1-1", "Das Haus.", "the 房子。") == "0-0 1-1 1-2 1-3 2-1 2-2 2-3"
    assert by_spaces("1-0", "the house .", "Haus .") == "1-0"


def test_links_of_phrases():
    both = ("a red star.", "ein Stern, rot")
    assert linked(both, ([(0, 5)], [(0, 3)])) == [(0, 0), (1, 0)]
    assert linked(both, ([(2, 5), (6, 10)], [(11, 14), (4, 9)])) == [(1, 3), (2, 1)]


def test_the_world_aligns_all_that_its_captions_name():
    for number in range(40):
        scene = make_scene(1, "train", number)
        content = describe(scene, 1)
        named = (len(scene.objects), 2, 2)
        assert set(content["alignments"]) == {f"en-{x}" for x in LANGUAGES if x != "en"}
        for code, lines in content["alignments"].items():
            texts = [content["texts"][x] for x in code.split("-")]
            for line, count, *pair in zip(lines, named, *texts, strict=True):
                found = phrases(read_links(line, *(len(words(t)) for t in pair)))
                assert len(found) == count
                for (first, last), _ in found:
                    # what is aligned in English is a thing, and all of it
                    phrase = [x.lower() for x in said(pair[0])[first:last]]
                    assert phrase[0] == "a"
                    assert phrase[-1] in {o.shape for o in scene.objects}


def test_the_worlds_phrases_of_one_thing_translate_each_other():
    scene = make_scene(1, "train", 5)
    content = describe(scene, 1)
    text, other = content["texts"]["en"][0], content["texts"]["de"][0]
    line = content["alignments"]["en-de"][0]
    pairs = [
        (" ".join(said(text)[a:b]), " ".join(said(other)[c:d]))
        for (a, b), (c, d) in phrases(read_links(line, len(words(text)), len(words(other))))
    ]
    nouns = {
        "circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "star": "Stern",
        "heart": "Herz", "moon": "Mond",
    }  # fmt: skip
    assert len(pairs) == len(scene.objects)
    assert all(nouns[e.split()[-1]] == d.split()[-1] for e, d in pairs)


# --- made from the pairs ------------------------------------------------------------------------

NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}


def test_the_aligner_learns_a_dictionary_whatever_the_order():
    pairs = []
    for english in permutations(NUMBERS, 3):
        german = [NUMBERS[e] for e in english]
        pairs += [(english, german), (english, german[::-1])]
    for (english, german), links in zip(pairs, align.align(pairs), strict=True):
        assert {(english[i], german[j]) for i, j in links} == {(e, NUMBERS[e]) for e in english}


def test_the_aligner_agrees_with_the_world():
    contents = [describe(make_scene(0, "train", n), 0) for n in range(60)]
    pairs = [
        tuple([w.casefold() for w in said(c["texts"][x][k])] for x in ("en", "de"))
        for c in contents
        for k in range(3)
    ]
    true = [line for c in contents for line in c["alignments"]["en-de"]]
    right = wrong = 0
    for (english, german), found, line in zip(pairs, align.align(pairs), true, strict=True):
        links = set(read_links(line, len(english), len(german)))
        words_of_things = {i for i, _ in links}
        inside = [x for x in found if x[0] in words_of_things]
        right += sum(x in links for x in inside)
        wrong += sum(x not in links for x in inside)
    assert right > 1000
    assert wrong < 0.02 * right


def test_nothing_is_aligned_with_nothing():
    assert align.align([]) == []
    assert align.align([([], ["a"])]) == [[]]


def test_shards_are_written_again_with_alignments(tmp_path):
    with ShardWriter(tmp_path / "in", "train") as writer:
        for n, (english, german) in enumerate(NUMBERS.items()):
            texts = {"en": [f"{english} ."], "de": [f"{german} ."]}
            writer.write(str(n), {"json": {"texts": texts}, "txt": "kept"})
        given = {"en": ["x y"], "de": ["z"]}
        writer.write("known", {"json": {"texts": given, "alignments": {"en-de": ["1-0"]}}})
        writer.write("alone", {"json": {"texts": {"en": ["x"]}}})
        writer.write("uneven", {"json": {"texts": {"en": ["x", "y"], "de": ["z"]}}})
        writer.write("bad", {"json": b"{"})
    report = align.convert(tmp_path / "in", tmp_path / "out")
    assert report.skipped == {"undecodable": Skipped(1, ("train-000000/bad",))}
    found = make.samples(tmp_path / "out", "train")
    assert len(found) == 8
    for n in range(5):
        assert found[str(n)]["json"]["alignments"] == {"de-en": ["0-0 1-1"]}
        assert found[str(n)]["txt"] == b"kept"
    assert found["known"]["json"]["alignments"] == {"en-de": ["1-0"]}
    assert "alignments" not in found["alone"]["json"]
    assert "alignments" not in found["uneven"]["json"]


# --- brought in ---------------------------------------------------------------------------------


def test_opus_takes_alignments_beside_its_pairs(tmp_path):
    folder = tmp_path / "in"
    make.put(folder / "Books.de-en.de", "Das Haus.\nEin Hund\nja\n")
    make.put(folder / "Books.de-en.en", "The house.\nA dog\nyes\n")
    make.put(folder / "Books.de-en.align", "0-0 1-1\n1-1\n0-7\n")
    report = opus.convert(folder, tmp_path / "out")
    found = [c.get("alignments") for c in make.contents(tmp_path / "out", "train")]
    # the full stop is a word of its own
    assert found == [{"de-en": ["0-0 1-1 1-2 2-1 2-2"]}, {"de-en": ["1-1"]}, None]
    skipped = {"alignment that does not fit its sentences": Skipped(1, ("Books.de-en.align:3",))}
    assert report.skipped == skipped


def test_alignments_of_another_length_are_an_error(tmp_path):
    make.put(tmp_path / "in/Books.de-en.de", "a\nb\n")
    make.put(tmp_path / "in/Books.de-en.en", "c\nd\n")
    make.put(tmp_path / "in/Books.de-en.align", "0-0\n")
    with pytest.raises(ValueError, match=r"Books.de-en.align has 1 lines"):
        opus.convert(tmp_path / "in", tmp_path / "out")
