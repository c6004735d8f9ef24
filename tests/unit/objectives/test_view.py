import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossloom.objectives.view import Hide, View, draw_fates
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
