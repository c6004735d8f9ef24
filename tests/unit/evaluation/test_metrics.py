import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossloom.evaluation.metrics import best_ranks, flat, mean_by, recall, run_lines


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.2, 0.8], [0.5, 0.5, 0.5]])
    assert best_ranks(scores, [[0], [0, 1], [2]]).tolist() == [1, 2, 3]


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_ranks_equal_counting(queries, candidates, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(queries, candidates))
    right = [[int(rng.integers(candidates))] for _ in range(queries)]
    expected = [
        1 + sum(scores[q, c] > scores[q, r[0]] for c in range(candidates))
        for q, r in enumerate(right)
    ]
    assert best_ranks(scores, right).tolist() == expected


def test_recall_and_median():
    found = recall(np.array([1, 1, 5, 6, 30]))
    assert found == {"r1": 0.4, "r5": 0.6, "r10": 0.8, "median_rank": 5.0}


def test_a_run_lists_the_best_of_each_query():
    scores = np.array([[0.25, 2.0, 1.0], [0.5, 0.5, -1.0]])
    lines = run_lines(scores, ["q 1", "q2"], ["a", "b c", "d"], depth=2, name="my run")
    assert lines.splitlines() == [
        "q_1 Q0 b_c 1 2 my_run",
        "q_1 Q0 d 2 1 my_run",
        "q2 Q0 a 1 0.5 my_run",
        "q2 Q0 b_c 2 0.5 my_run",
    ]


def test_groups_and_flattening():
    assert mean_by([1, 0, 1], ["b", "a", "b"]) == {"a": 0.0, "b": 1.0}
    assert flat({"a": {"b": 1, "c": "x"}, "d": 2.5}) == {"a.b": 1.0, "d": 2.5}
