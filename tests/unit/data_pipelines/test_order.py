from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.data_pipelines.loader import Shares
from crossloom.data_pipelines.mixture import Mixture, temperature
from crossloom.data_pipelines.order import Order, Place, divide

counts = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda x: sum(x) > 0)


@settings(max_examples=60)
@given(counts, st.integers(1, 12), st.integers(1, 9), st.integers(0, 5))
def test_every_example_once_in_each_epoch(sizes, readers, window, seed):
    order = Order(sizes, seed=seed, readers=readers, window=window)
    for epoch in (0, 1):
        seen = Counter()
        for reader in range(order.readers):
            begin, end = order.arc(reader)
            for position in range(epoch * (end - begin), (epoch + 1) * (end - begin)):
                place = order.at(reader, position)
                assert place.epoch == epoch
                seen[place.shard, place.example] += 1
        expected = {(s, e) for s, n in enumerate(sizes) for e in range(n)}
        assert set(seen) == expected
        assert set(seen.values()) == {1}


def test_epochs_and_seeds_differ():
    def first_epoch(seed, epoch):
        order = Order([50, 50], seed=seed, readers=1, window=100)
        return [order.at(0, epoch * 100 + n).example for n in range(100)]

    assert first_epoch(0, 0) != first_epoch(0, 1)
    assert first_epoch(0, 0) != first_epoch(1, 0)
    assert first_epoch(0, 0) == first_epoch(0, 0)


def test_an_example_far_away_is_found_at_once():
    order = Order([1000] * 50, seed=0)
    assert order.at(3, 10**12).epoch == 10**12 // np.diff(order.arc(3))[0]


def test_a_reader_touches_few_shards():
    order = Order([100] * 64, seed=0, readers=64)
    touched = {order.at(5, n).shard for n in range(100)}
    assert len(touched) <= 2


@settings(max_examples=100)
@given(
    counts,
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_micro_batches_hold_every_example_once_in_each_epoch(
    sizes, readers, window, examples, seed
):
    total = sum(sizes)
    chosen, together = divide(total, readers, window, examples)
    assert 1 <= together <= min(16, readers)
    assert examples % together == chosen % together == 0
    assert chosen <= min(readers, total)
    order = Order(sizes, seed=seed, readers=chosen, window=window, together=together)
    groups, share = chosen // together, examples // together
    turns = -(-2 * max(np.diff(order.arc(r))[0] for r in range(chosen)) // share)
    seen = Counter()
    for number in range(turns * groups):
        places = order.micro(number, examples)
        assert len(places) == examples
        seen.update(places)
        if len({p.epoch for p in places}) == 1 and total >= 4 * examples:
            assert len(set(places)) == examples
    everything = {(s, e) for s, n in enumerate(sizes) for e in range(n)}
    for epoch in (0, 1):
        met = {(p.shard, p.example): n for p, n in seen.items() if p.epoch == epoch}
        assert set(met) == everything
        assert set(met.values()) == {1}


@pytest.mark.parametrize(
    ("total", "examples", "readers", "together"),
    [
        (60, 8, 1, 1),  # one window holds all: a perfect shuffle
        (4096, 64, 1, 1),
        (10_000, 64, 4, 4),  # three windows, and 64 can be shared by four
        (10**9, 64, 64, 16),
        (10**9, 17, 64, 1),  # a prime larger than 16 cannot be shared
        (10**9, 6, 60, 6),  # ten groups of six
        (4097, 2000, 2, 2),  # few micro-batches: one group
        (10_000, 1021, 2, 1),  # three windows, but two groups have four micro-batches each
    ],
)
def test_readers_follow_from_the_size_of_a_source(total, examples, readers, together):
    assert divide(total, 64, 4096, examples) == (readers, together)


def test_a_micro_batch_draws_equally_from_readers_that_lie_apart():
    order = Order([100] * 64, seed=0, readers=64, window=50, together=16)
    arcs = {
        (p.shard, p.example): r for r in range(64) for n in range(100) for p in [order.at(r, n)]
    }
    for number in (0, 3, 17):
        drawn = Counter(arcs[p.shard, p.example] for p in order.micro(number, 64))
        assert sorted(drawn) == list(range(number % 4, 64, 4))
        assert set(drawn.values()) == {4}


def test_ranks_touch_their_own_readers_shards_alone():
    order = Order([100] * 256, seed=0, readers=64, window=4096, together=16)
    shards = [set(), set(), set(), set()]
    for number in range(400):
        shards[number % 4] |= {p.shard for p in order.micro(number, 64)}
    for rank, own in enumerate(shards):
        assert len(own) == 64
        assert not any(own & other for other in shards[:rank])


def test_shards_of_one_class_are_mixed_within_micro_batches_and_batches():
    def distance(batches, classes):
        shares = [np.bincount(b, minlength=classes) / len(b) for b in batches]
        return np.mean([np.abs(s - 1 / classes).sum() / 2 for s in shares])

    def stray(order, classes):
        ours = np.array([[p.shard for p in order.micro(n, 64)] for n in range(64)])
        chance = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), order.counts))
        batches, perfect = ours.reshape(4, -1), chance[: ours.size].reshape(4, -1)
        within = np.mean([len(np.unique(m)) for m in ours])
        return distance(batches, classes) / distance(perfect, classes), within

    alone = stray(Order([2000] * 100, seed=0, readers=64), 100)
    grouped = stray(Order([2000] * 100, seed=0, readers=64, together=16), 100)
    assert grouped[0] < alone[0] / 1.5
    assert grouped[1] > 8 * alone[1]
    readers, together = divide(100 * 100, 64, 4096, 64)
    few = stray(Order([100] * 100, seed=0, readers=readers, together=together), 100)
    assert few[0] < 1.1
    assert few[1] > 40


def test_windows_of_an_arc_are_equal():
    order = Order([1] * 4166, seed=0, readers=1, window=4096)
    line = {int(s): n for n, s in enumerate(order._line(0)[0])}
    half = sorted(line[order.at(0, n).shard] for n in range(2083))
    assert half == list(range(2083))


def test_what_one_window_holds_is_shuffled_as_a_whole():
    firsts = {Order([8], seed=seed, readers=1, window=8).at(0, 0).example for seed in range(40)}
    assert firsts == set(range(8))


def test_the_draws_are_pinned():
    """A change here is another order for every run: raise ``order.VERSION``, say so in the log."""
    order = Order([5, 7, 2], seed=0, readers=4, window=3, together=2)
    assert order.micro(5, 4) == [Place(1, 0, 2), Place(1, 1, 4), Place(1, 0, 1), Place(1, 1, 3)]


def test_readers_that_cannot_share_equally_are_refused():
    with pytest.raises(ValueError, match="groups of 3"):
        Order([50], seed=0, readers=4, together=3)
    with pytest.raises(ValueError, match="share 5 examples"):
        Order([50], seed=0, readers=4, together=2).micro(0, 5)


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        Order([0, 0], seed=0)


@settings(max_examples=40)
@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 3), st.integers(0, 20))
def test_processes_only_divide_the_micro_batches(world, times, step):
    micro = 24 * times
    alone = [n for g in Shares(micro).of_step(step) for n in g]
    shared = [n for r in range(world) for g in Shares(micro, r, world, 0).of_step(step) for n in g]
    assert sorted(shared) == alone == list(range(step * micro, (step + 1) * micro))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        Shares(4, 0, 3)


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=5), st.integers(0, 3))
def test_shares_of_a_mixture_are_exact_over_a_cycle_and_counts_agree(weights, seed):
    mixture = Mixture({str(n): w for n, w in enumerate(weights)}, seed=seed)
    cycle = int(mixture.quota.sum())
    seen = Counter()
    for micro in range(cycle):
        name, before = mixture.at(micro)
        assert before == seen[name]
        seen[name] += 1
    for n, weight in enumerate(weights):
        assert abs(seen[str(n)] / cycle - weight / sum(weights)) < 0.005
    assert mixture.at(cycle + 7) == (mixture.at(7)[0], mixture.at(7)[1] + seen[mixture.at(7)[0]])


@pytest.mark.parametrize(
    ("weights", "quota"),
    [
        ((1, 2), [3, 7]),  # the larger remainder gets what is left
        ((3, 3, 1), [4, 4, 2]),
        ((1, 0, 1e6), [1, 0, 9]),  # what weighs anything has a turn
    ],
)
def test_quotas_by_hand(weights, quota):
    mixture = Mixture({str(n): w for n, w in enumerate(weights)}, seed=0, cycle=10)
    assert mixture.quota.tolist() == quota


def test_temperature_flattens():
    flat = temperature({"a": 1000, "b": 10}, 0.3)
    assert flat["a"] == pytest.approx(1000**0.3 / (1000**0.3 + 10**0.3))
    assert temperature({"a": 3, "b": 1}, 1) == {"a": 0.75, "b": 0.25}
    assert temperature({"a": 3, "b": 1, "c": 0}, 0) == {"a": 0.5, "b": 0.5, "c": 0}
