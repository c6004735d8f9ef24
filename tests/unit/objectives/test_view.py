import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossloom.objectives.presets import MASS, NOISE
from crossloom.objectives.view import Hide, View, _closed_up, draw_fates, draw_relaid
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
    for drop, wanted in (
        (0, [0.85, 0.12, 0.015, 0.015, 0]),
        (0.2, [0.85, 0.09, 0.015, 0.015, 0.03]),
    ):
        hide = Hide(rate=0.15, show=0.1, swap=0.1, drop=drop, at_least=0)
        fate = draw_fates(units(200_000), hide, keyed_rng(3))
        share = [(fate == f).mean() for f in Fate]
        assert np.allclose(share, wanted, atol=0.003)


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


@pytest.mark.parametrize("law", ["geometric", "poisson"])
def test_no_run_is_longer_than_longest(law):
    hide = Hide(rate=0.5, show=0, swap=0, by="span", law=law, span=30, longest=4, merge=True)
    fate, laid = draw_relaid(units(400), hide, keyed_rng(6))
    assert (fate == Fate.HIDE).sum() == 200
    assert (laid.fate == Fate.HIDE).sum() >= 200 / 4  # a mask for each run


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
    return (text, *draw_relaid(text, hide, keyed_rng(seed)))


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


def test_mass_segment_law():
    """``shuffle_segments`` of the code, over n - 1 places, the first unit left alone, the end not.

    p >= 0.8: first; p >= 0.6: last; else the segment is shuffled among what is left.
    """
    n, size, draws = 21, 10, 4000
    maskable = np.ones(n, bool)
    maskable[[0, -1]] = False
    text = units(n, maskable)
    starts = np.zeros(n, int)
    fates = np.zeros(len(Fate), int)
    for seed in range(draws):
        fate = draw_fates(text, MASS, keyed_rng(seed))
        selected = np.flatnonzero(fate != Fate.KEEP)
        assert selected.tolist() == list(range(selected[0], selected[0] + size))
        starts[selected[0]] += 1
        fates += np.bincount(fate[selected], minlength=len(Fate))
    share = 0.6 / (n - 1 - size + 1)
    wanted = [0.2 + share, *[share] * 9, 0.2 + share]
    assert starts[[0, *range(12, n)]].sum() == 0
    assert np.allclose(starts[1:12] / draws, wanted, atol=0.025)
    assert np.allclose(fates / draws / size, [0, 0.8, 0.1, 0.1, 0], atol=0.01)


def test_a_segment_of_few_units():
    for n in range(1, 7):
        maskable = np.arange(n + 2) % (n + 1) > 0
        sizes = {int((draw_fates(units(n + 2, maskable), MASS, keyed_rng(s)) > 0).sum())
                 for s in range(20)}  # fmt: skip
        assert sizes == {round((n + 1) / 2)}


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_shuffled_units_stay_near_their_place(n, seed):
    maskable = np.arange(n + 2) % (n + 1) > 0
    text = make_units({"x": np.arange(n + 2)}, maskable=maskable)
    fate, laid = draw_relaid(text, Hide(rate=0, at_least=0, shuffle=3), keyed_rng(seed))
    assert not fate.any()
    assert sorted(laid.place.tolist()) == list(range(n + 2))
    assert (laid.place[0], laid.place[-1]) == (0, n + 1)
    assert np.abs(laid.place - np.arange(n + 2)).max() <= 2  # XLM: a unit moves by less than k
    assert laid.position.tolist() == list(range(n + 2))


def test_shuffling_is_that_of_xlm():
    """The share of units that stay, against ``argsort(arange + U(0, 3))`` written out."""
    n = 30_000
    text = make_units({"x": np.arange(n)})
    place = draw_relaid(text, Hide(rate=0, at_least=0, shuffle=3), keyed_rng(5))[1].place
    other = (np.arange(n) + 3 * np.random.default_rng(1).random(n)).argsort(kind="stable")
    moved = [np.bincount(x - np.arange(n) + 2, minlength=5) / n for x in (place, other)]
    assert np.allclose(*moved, atol=0.01)
    assert moved[0][2] < 0.6


def test_noise_is_xlms():
    """A tenth left out, a tenth of the rest hidden; the order from shuffling alone."""
    n = 50_000
    maskable = np.arange(n) % (n - 1) > 0
    text = make_units({"x": np.arange(n)}, maskable=maskable)
    fate, laid = draw_relaid(text, NOISE, keyed_rng(2))
    assert (fate == Fate.DROP).mean() == pytest.approx(0.1, abs=0.005)
    assert (fate == Fate.HIDE).mean() == pytest.approx(0.09, abs=0.005)
    assert set(fate.tolist()) == {Fate.KEEP, Fate.HIDE, Fate.DROP}
    assert len(laid.place) == n - (fate == Fate.DROP).sum()
    assert (fate[laid.place] == laid.fate).all()
    assert (np.diff(laid.place) < 0).any()


def test_of_a_text_that_would_be_dropped_whole_one_unit_is_shown():
    text = make_units({"x": np.arange(4)})
    fate, laid = draw_relaid(text, Hide(rate=1, show=0, swap=0, drop=1), keyed_rng(0))
    assert laid.place.tolist() == [0]
    assert fate.tolist() == [Fate.SHOW, *[Fate.DROP] * 3]


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
        ({"drop": 0.9}, "sum of these three"),
        ({"shuffle": -1}, "shuffle"),
    ],
)
def test_hiding_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Hide(**wrong)


def sentences(*lengths):
    """Sentences of such lengths between two specials; units are numbered."""
    n = sum(lengths) + 2
    value = np.concatenate([[-1], np.repeat(np.arange(len(lengths)), lengths), [-1]])
    maskable = value >= 0
    return make_units({"x": np.arange(n)}, targets={"sentence": value}, maskable=maskable)


def test_sentences_change_places_as_wholes_in_every_order_alike():
    text = sentences(2, 3, 1)
    hide = Hide(rate=0, at_least=0, permute="sentence")
    orders = {}
    for seed in range(1200):
        fate, laid = draw_relaid(text, hide, keyed_rng(seed))
        assert not fate.any()
        assert not laid.fate.any()
        assert laid.position.tolist() == list(range(8))
        key = tuple(laid.place.tolist())
        orders[key] = orders.get(key, 0) + 1
    parts = [(1, 2), (3, 4, 5), (6,)]
    wanted = {
        (0, *parts[a], *parts[b], *parts[c], 7)
        for a, b, c in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    }
    assert orders.keys() == wanted
    assert min(orders.values()) > 150  # 200 each


def test_a_special_moves_with_the_sentence_before_it():
    value = np.array([-1, 0, 0, -1, 0, -1, -1])  # <s> a a </s> b </s> language
    text = make_units({"x": np.arange(7)}, targets={"sentence": value}, maskable=value >= 0)
    hide = Hide(rate=0, at_least=0, permute="sentence")
    seen = {tuple(draw_relaid(text, hide, keyed_rng(n))[1].place.tolist()) for n in range(40)}
    assert seen == {(0, 1, 2, 3, 4, 5, 6), (0, 4, 1, 2, 3, 5, 6)}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 10**6))
def test_what_is_moved_and_infilled_is_all_of_the_text_once(lengths, seed):
    text = sentences(*lengths)
    hide = Hide(rate=0.35, show=0, swap=0, by="span", law="poisson", span=3.5, longest=64,
                merge=True, permute="sentence")  # fmt: skip
    fate, laid = draw_relaid(text, hide, keyed_rng(seed))
    assert (fate == Fate.HIDE).sum() == max(1, round(0.35 * sum(lengths)))
    kept = laid.place[laid.fate == Fate.KEEP]
    assert sorted(kept.tolist()) == np.flatnonzero(fate == Fate.KEEP).tolist()
    assert laid.place[0] == 0
    assert laid.place[-1] == len(text) - 1
    # within a sentence the order is the clean one, and sentences are not torn
    shown = text.targets["sentence"][kept][1:-1]
    assert (np.diff(shown) != 0).sum() == len(set(shown.tolist())) - 1 if len(shown) else True
    for number in set(shown.tolist()):
        mine = kept[1:-1][shown == number]
        assert (np.diff(mine) > 0).all()


def test_words_stay_whole_where_sentences_move():
    """A word's number is its place as laid: groups that met in the clean text may be far apart."""
    value = np.concatenate([[-1], np.repeat(np.arange(6), 4), [-1]])
    group = np.concatenate([[0], 1 + np.arange(24) // 2, [13]])
    text = make_units({"x": np.arange(26)}, targets={"sentence": value}, maskable=value >= 0,
                      group=group)  # fmt: skip
    hide = Hide(rate=0.5, show=0, swap=0, by="span", law="poisson", span=2, merge=True,
                whole=True, permute="sentence")  # fmt: skip
    for seed in range(30):
        fate, laid = draw_relaid(text, hide, keyed_rng(seed))
        words = fate[1:-1].reshape(12, 2)
        assert (words == words[:, :1]).all()
        assert (words[:, 0] == Fate.HIDE).sum() == 6
        # a run is of neighbours as laid: between two masks there is a unit, or two runs met
        assert (laid.fate == Fate.HIDE).sum() <= 6


@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 10**6))
def test_deleted_units_are_not_shown(n, rate, seed):
    text = make_units({"x": np.arange(n)})
    fate, laid = draw_relaid(text, Hide(rate=rate, show=0, swap=0, drop=1), keyed_rng(seed))
    left = np.flatnonzero(fate == Fate.KEEP).tolist()
    assert laid.place.tolist() == (left or [0])
    assert laid.position.tolist() == list(range(len(laid.place)))
    assert not (laid.fate == Fate.HIDE).any()


def test_the_rate_of_deletion():
    text = make_units({"x": np.arange(50_000)})
    laid = draw_relaid(text, Hide(rate=0.15, show=0, swap=0, drop=1), keyed_rng(1))[1]
    assert len(laid.place) / 50_000 == pytest.approx(0.85, abs=0.005)
    assert (np.diff(laid.place) > 0).all()


@given(st.integers(2, 80), st.floats(0.05, 0.9), st.floats(1, 6), st.integers(0, 10**6))
def test_parted_runs_have_both_counts_fixed(n, rate, span, seed):
    """As ``random_spans_noise_mask`` of T5: so many units in so many runs, the first one left."""
    hide = Hide(rate=rate, show=0, swap=0, by="span", law="parted", span=span, merge=True)
    text = make_units({"x": np.arange(n)})
    fate, laid = draw_relaid(text, hide, keyed_rng(seed))
    size = max(1, round(rate * n))
    runs = min(max(1, round(size / span)), size, n - size)
    assert (fate == Fate.HIDE).sum() == size
    assert (laid.fate == Fate.HIDE).sum() == max(1, runs)  # 1 where nothing is left
    assert fate[0] == (Fate.KEEP if size < n else Fate.HIDE)
    assert fate[-1] == Fate.HIDE


def test_parted_runs_are_as_likely_as_each_other():
    """Five units in two runs, five left in two: 4 × 4 ways, each as often as the others."""
    hide = Hide(rate=0.5, show=0, swap=0, by="span", law="parted", span=2.5)
    text = make_units({"x": np.arange(10)})
    found = {}
    for seed in range(3200):
        key = tuple(draw_fates(text, hide, keyed_rng(seed)).tolist())
        found[key] = found.get(key, 0) + 1
    assert len(found) == 16
    assert 140 < min(found.values()) <= max(found.values()) < 260


@pytest.mark.parametrize(
    ("name", "rate", "span", "kept"),
    [("INFILL", 0.30, 3.0, 0.7), ("INFILL_WORDS", 0.35, 3.5, 0.65), ("T5", 0.15, 3.0, 0.85)],
)
def test_published_corruption(name, rate, span, kept):
    """BART 30 % and Poisson(3); mBART 35 % of words and 3.5; T5 15 % and a mean of 3."""
    from crossloom.objectives import presets

    hide = getattr(presets, name)
    hidden = masks = units_left = total = 0
    for seed in range(60):
        _, fate, laid = merged(512, hide, seed)
        hidden += int((fate == Fate.HIDE).sum())
        masks += int((laid.fate == Fate.HIDE).sum())
        units_left += int((laid.fate == Fate.KEEP).sum()) - 2
        total += 512
    assert hidden / total == pytest.approx(rate, abs=0.002)
    assert units_left / total == pytest.approx(kept, abs=0.002)
    # masks for each hidden unit; runs may meet or overlap where places are drawn freely
    assert hidden / masks == pytest.approx(span, rel=0.03 if name == "T5" else 0.25)
    for permuted in (presets.BART, presets.MBART):
        assert (permuted.permute, permuted.merge) == ("sentence", True)


def test_units_without_sentences_cannot_be_permuted():
    with pytest.raises(ValueError, match="units have no 'sentence'"):
        draw_relaid(units(5), Hide(permute="sentence"), keyed_rng(0))


def test_what_cannot_be_scored_says_so():
    from crossloom.modalities.text import Text
    from crossloom.objectives.presets import mlm

    text = Text(vocabulary="none", size=60)
    for hide in (Hide(drop=1, show=0, swap=0), Hide(permute="sentence")):
        with pytest.raises(ValueError, match="merges, deletes or moves"):
            mlm(("text",), hide=hide).check({"text": text})
    with pytest.raises(ValueError, match="drop and merge"):
        Hide(drop=0.5, merge=True, by="span")
