"""Classes that a file lists."""

import numpy as np
import pytest

from crossloom.objectives.classify import Classify
from crossloom.objectives.view import Shown, View

VIEW = View(name="v", streams=("text",))


def shown(**labels):
    return Shown(key="a/0", units={}, fate={}, matched=True, labels=labels)


def test_a_file_and_the_names_themselves_are_the_same(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\ntwo birds\n")
    listed = Classify(view=VIEW, label="a", classes=str(path), count=3, form="distribution")
    named = Classify(view=VIEW, label="a", classes=("yes", "no", "two birds"), form="distribution")
    scores = {"two birds": 0.9, "no": 0.3, "unheard of": 1.0}
    one, other = (o.aim(shown(a=scores)) for o in (listed, named))
    np.testing.assert_allclose(one.value, [[0, 0.25, 0.75]], atol=1e-6)
    np.testing.assert_array_equal(one.value, other.value)
    assert listed.names() == named.names()


def test_a_model_is_made_without_the_file_when_the_number_is_known():
    spec = Classify(view=VIEW, label="a", classes="nowhere.txt", count=7)
    assert spec.head({}, {"text": 4}).mlp[-1].out_features == 7
    assert spec.blank({}).shape == (1, 7)


def test_what_is_wrong_with_the_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.txt: the list of classes cannot be read"):
        Classify(view=VIEW, label="a", classes="nowhere.txt").names()
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n")
    with pytest.raises(ValueError, match=r"answers.txt: 2 classes; the objective"):
        Classify(view=VIEW, label="a", classes=str(path), count=3).names()
