from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.data_pipelines.loader import Shares
from crossloom.data_pipelines.mixture import Mixture, temperature
from crossloom.data_pipelines.order import Order

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


def test_temperature_flattens():
    flat = temperature({"a": 1000, "b": 10}, 0.3)
    assert flat["a"] == pytest.approx(1000**0.3 / (1000**0.3 + 10**0.3))
    assert temperature({"a": 3, "b": 1}, 1) == {"a": 0.75, "b": 0.25}
