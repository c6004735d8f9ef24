import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossloom.objectives.view import Hide, View, _closed_up, draw_fates, draw_merged
from crossloom.units import Fate, keyed_rng, make_units


def units(n, maskable=None, group=None):
    return make_units({"x": np.zeros(n)}, maskable=maskable, group=group)


@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from(["unit", "group", "span"]),
       st.integers(0, 3), st.integers(0, 10**6))  # fmt: skip
def test_only_maskable_units_are_selected_and_at_least_as_many_as_asked(n, rate, by, least, seed):
    rng = keyed_rng(seed)
    maskable = rng.random(n) < 0.7
    group = np.sort(rng.integers(0, max(1, n // 2), n))
    fate = draw_fates(units(n, maskable, group), Hide(rate=rate, by=by, at_least=least), rng)
    assert (fate[~maskable] == Fate.KEEP).all()
    places = len(np.unique(group[maskable])) if by == "group" else int(maskable.sum())
    selected = fate != Fate.KEEP
    found = len(np.unique(group[selected])) if by == "group" else int(selected.sum())
    assert found >= min(least, places)


def test_rates_of_selection_and_of_fates():
    hide = Hide(rate=0.15, show=0.1, swap=0.1, at_least=0)
    fate = draw_fates(units(200_000), hide, keyed_rng(3))
    share = [(fate == f).mean() for f in Fate]
    assert np.allclose(share, [0.85, 0.12, 0.015, 0.015], atol=0.003)


def test_units_of_a_group_share_their_fate():
    group = np.repeat(np.arange(400), 3)
    fate = draw_fates(units(1200, group=group), Hide(rate=0.5, by="group"), keyed_rng(1))
    assert (fate.reshape(400, 3) == fate.reshape(400, 3)[:, :1]).all()
    assert len(set(fate.tolist())) == 4


def test_spans_cover_the_rate_in_runs():
    hide = Hide(rate=0.2, by="span", show=0, swap=0)
    fate = draw_fates(units(1000), hide, keyed_rng(5))
    assert (fate == Fate.HIDE).sum() == 200
    runs = np.flatnonzero(np.diff(np.concatenate([[0], fate == Fate.HIDE, [0]]).astype(int)))
    lengths = runs[1::2] - runs[::2]
    assert 2 < lengths.mean() < 8


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_and_everything(rate):
    hide = Hide(rate=rate, show=0, swap=0, at_least=0)
    fate = draw_fates(units(7), hide, keyed_rng(0))
    assert (fate == (Fate.HIDE if rate else Fate.KEEP)).all()


def test_one_unit_that_cannot_be_hidden():
    fate = draw_fates(units(1, np.zeros(1, bool)), Hide(rate=1), keyed_rng(0))
    assert fate.tolist() == [Fate.KEEP]


def test_a_view_names_only_its_streams():
    with pytest.raises(ValueError, match="not image"):
        View(name="v", streams=("text",), hide={"image": Hide()})


def merged(n, hide, seed, group=None, position=None):
    """A text of n pieces between two units that are never hidden."""
    maskable = np.ones(n + 2, bool)
    maskable[[0, -1]] = False
    text = make_units({"x": np.arange(n + 2)}, maskable=maskable, group=group, position=position)
    return (text, *draw_merged(text, hide, keyed_rng(seed)))


@given(st.integers(1, 60), st.floats(0, 1), st.booleans(), st.integers(0, 10**6))
def test_a_hidden_run_shows_as_one_mask(n, rate, insert, seed):
    hide = Hide(rate=rate, show=0, swap=0, by="span", law="poisson", span=3, longest=99,
                merge=True, insert=insert)  # fmt: skip
    _, fate, laid = merged(n, hide, seed)
    assert (fate == Fate.HIDE).sum() == max(1, round(rate * n))
    # what is kept is shown once, in order; the ends never move
    kept = laid.place[laid.fate == Fate.KEEP]
    assert kept.tolist() == np.flatnonzero(fate == Fate.KEEP).tolist()
    assert laid.fate[0] == laid.fate[-1] == Fate.KEEP
    assert laid.position.tolist() == list(range(len(laid.place)))
    # every hidden stretch between two kept units has a mask, and nothing else has without inserts
    masks = (laid.fate == Fate.HIDE).sum()
    stretches = (np.diff((fate == Fate.HIDE).astype(int)) == 1).sum()
    assert masks >= stretches
    assert masks <= (fate == Fate.HIDE).sum()
    assert len(laid.place) <= n + 2


def test_runs_have_the_law_asked_for_and_empty_ones_are_inserted():
    """At a low rate runs rarely meet, so that the masks are the runs drawn (BART: Poisson(3))."""
    lengths, inserted, runs = [], 0, 0
    for seed in range(150):
        hide = Hide(rate=0.05, show=0, swap=0, by="span", law="poisson", span=3, longest=99,
                    merge=True, insert=True)  # fmt: skip
        _, fate, laid = merged(600, hide, seed)
        masks = laid.place[laid.fate == Fate.HIDE]
        inserted += int((fate[masks] == Fate.KEEP).sum())
        edges = np.flatnonzero(np.diff(np.concatenate([[0], fate == Fate.HIDE, [0]]).astype(int)))
        lengths += (edges[1::2] - edges[::2]).tolist()
        runs += len(masks)
    # lengths given that they are not zero: 3 / (1 - e^-3) = 3.157
    assert np.mean(lengths) == pytest.approx(3.157, abs=0.15)
    # the last run of each text, cut to fit, is one more that cannot be empty
    assert inserted / (runs - 150) == pytest.approx(np.exp(-3), abs=0.015)


def test_whole_words_are_infilled():
    group = np.concatenate([[0], 1 + np.repeat(np.arange(40), 3), [41]])
    hide = Hide(rate=0.35, show=0, swap=0, by="span", law="poisson", span=3.5, merge=True,
                whole=True)  # fmt: skip
    _, fate, laid = merged(120, hide, 4, group=group)
    words = fate[1:-1].reshape(40, 3)
    assert (words == words[:, :1]).all()
    assert (words[:, 0] == Fate.HIDE).sum() == 14
    assert (laid.fate == Fate.HIDE).sum() < 14


def test_swapped_runs_shrink_and_visible_ones_do_not():
    hide = Hide(rate=0.5, show=0.5, swap=0.5, by="span", span=4, merge=True)
    _, fate, laid = merged(200, hide, 2)
    assert not (fate == Fate.HIDE).any()
    assert (laid.fate == Fate.SHOW).sum() == (fate == Fate.SHOW).sum()
    assert 0 < (laid.fate == Fate.SWAP).sum() < (fate == Fate.SWAP).sum()


def test_positions_close_up_and_restart_with_the_second_passage():
    position = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3])
    place = np.array([0, 1, 3, 4, 5, 6, 8])
    assert _closed_up(position, place).tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert _closed_up(position + 2, np.array([0, 2, 2, 5])).tolist() == [2, 3, 4, 2]


def test_a_segment_is_half_of_the_text_and_often_at_its_ends():
    starts, fates = [], []
    for seed in range(600):
        _, fate, _ = merged(20, Hide(rate=0.5, show=0.1, swap=0.1, by="segment"), seed)
        selected = np.flatnonzero(fate != Fate.KEEP)
        starts.append(int(selected[0]))
        fates += fate[selected[0] : selected[0] + 10].tolist()
        assert selected[-1] - selected[0] < 10
    # a fifth, and an eleventh of three fifths
    assert np.mean(np.array(starts) == 1) == pytest.approx(0.2545, abs=0.05)
    # fates within the segment are each unit's own
    assert np.mean(np.array(fates) == Fate.HIDE) == pytest.approx(0.8, abs=0.03)


def test_the_last_unit_can_be_selected_when_asked():
    maskable = np.array([False, True, True, False])
    for last, wanted in ((False, [0, 1, 1, 0]), (True, [0, 1, 1, 1])):
        fate = draw_fates(units(4, maskable), Hide(rate=1, show=0, swap=0, last=last), keyed_rng(0))
        assert fate.tolist() == wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"merge": True}, "set by to span"),
        ({"whole": True, "by": "group"}, "set by to span"),
        ({"insert": True, "by": "span", "merge": True}, "law: poisson"),
        ({"span": 0.5, "by": "span"}, "at least 1"),
    ],
)
def test_hiding_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Hide(**wrong)
