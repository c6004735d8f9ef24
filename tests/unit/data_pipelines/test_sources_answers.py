"""Answers: the official normalisation and scores of VQA."""

from __future__ import annotations

from itertools import combinations

import pytest

from crossloom.data_pipelines.sources.answers import normalise, soft_scores


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Yes", "yes"),
        ("the dog", "dog"),
        ("an apple and a pear", "apple and pear"),
        ("a", ""),
        # number words up to ten, and none
        ("two", "2"),
        ("ten zero none", "10 0 0"),
        ("eleven", "eleven"),
        # a mark between letters becomes a space, beside a space it goes
        ("T-shirt", "t shirt"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("dog, cat", "dog cat"),
        ("dog,cat", "dog cat"),
        ("really?", "really"),
        # one occurrence beside a space decides for all
        ("a-b -c", "ab c"),
        # a comma between digits takes every mark away
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("1,000 t-shirts", "1000 tshirts"),
        # periods go unless a digit follows
        ("St. Paul.", "st paul"),
        ("3.5", "3.5"),
        ("p.m", "pm"),
        (".5", ".5"),
        # marks that the official list does not have stay
        ("5:30", "5:30"),
        ("10%", "10%"),
        ("m&m's", "m&m's"),
        # contractions
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("don't", "don't"),
        ("id", "id"),
        ("  two   Words ", "2 words"),
    ],
)
def test_normalise(given: str, expected: str) -> None:
    assert normalise(given) == expected


@pytest.mark.parametrize(
    ("count", "score"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_soft_scores_are_averages_over_nine_of_ten(count: int, score: float) -> None:
    answers = ["b"] * count + [f"x{n}" for n in range(10 - count)]
    assert soft_scores(answers)["b"] == pytest.approx(score)
    nines = [min(nine.count("b") / 3, 1) for nine in combinations(answers, 9)]
    assert sum(nines) / 10 == pytest.approx(score)


def test_soft_scores_normalise_where_people_disagree() -> None:
    scores = soft_scores(["T-shirt"] * 3 + ["t shirt"] * 2 + ["St. Paul."] * 4 + ["1,000"])
    assert scores == {"t shirt": 1.0, "st paul": 1.0, "1000": 0.3}
    assert soft_scores(["T-shirt"] * 10) == {"t-shirt": 1.0}  # nobody disagrees
    assert soft_scores(["two"] * 3 + ["2"] * 2 + ["a dog"] * 3 + ["dog", "the"]) == {
        "2": 1.0,
        "dog": 1.0,
    }
    assert list(soft_scores(["b", "c", "c"])) == ["c", "b"]
    assert soft_scores([]) == {}
