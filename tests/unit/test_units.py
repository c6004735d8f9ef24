import numpy as np
import pytest

from crossloom.units import BadSample, keyed_rng, make_units


def test_keyed_rng_depends_on_its_key_alone():
    first = keyed_rng(1, "a", 2).random(4)
    keyed_rng(9).random(100)
    assert (keyed_rng(1, "a", 2).random(4) == first).all()
    assert (keyed_rng(1, "a", 3).random(4) != first).any()


def test_keys_do_not_run_together():
    assert keyed_rng("ab", "c").random() != keyed_rng("a", "bc").random()


def test_known_value_so_that_an_order_never_changes_unnoticed():
    assert keyed_rng(0, "view", "key").integers(1000, size=3).tolist() == [623, 987, 755]


def test_units_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="target x has 2 entries for 3 units"):
        make_units({"a": np.zeros(3)}, targets={"x": np.zeros(2)})


def test_bad_sample_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(BadSample("kind", "message")))
    assert (error.kind, str(error)) == ("kind", "message")
