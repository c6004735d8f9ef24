"""Grounding: overlaps, targets and losses by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.modalities.codes import Codes
from crossloom.modalities.patches import Patches
from crossloom.modalities.regions import Regions
from crossloom.models.model import CrossloomModel, check_reads
from crossloom.models.presets import single_stream
from crossloom.objectives.ground import Ground, overlaps
from crossloom.objectives.view import Shown, View
from crossloom.training.recipe import load_recipe
from crossloom.units import make_units

VIEW = View(name="v", streams=("text", "image"))
REGIONS = {"text": Regions(limit=5), "image": Regions(limit=5)}


def test_overlaps_by_hand():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [0, 0, 0, 0]], np.float32)
    assert overlaps(boxes, np.array([0, 0, 2, 2])).tolist() == pytest.approx([1, 1 / 7, 0, 0])


corner = st.integers(0, 6)


@given(st.tuples(corner, corner, corner, corner), st.tuples(corner, corner, corner, corner))
def test_overlaps_count_cells(one, other):
    """On whole numbers, overlap is a ratio of numbers of cells."""

    def cells(box):
        x1, x2 = sorted(box[::2])
        y1, y2 = sorted(box[1::2])
        return [x1, y1, x2, y2], {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    (a, in_a), (b, in_b) = cells(one), cells(other)
    expected = len(in_a & in_b) / len(in_a | in_b) if in_a | in_b else 0
    found = overlaps(np.array([a], np.float32), np.array(b, np.float32))[0]
    assert found == pytest.approx(expected, abs=1e-6)
    # the same in shares of any width and height
    scale = np.array([0.1, 0.03, 0.1, 0.03])
    scaled = overlaps(np.array([a]) * scale, np.array(b) * scale)[0]
    assert scaled == pytest.approx(expected, abs=1e-6)


def seen(boxes, box, overall=False):
    maskable = np.ones(len(boxes), bool)
    maskable[0] = not overall
    units = make_units({"corners": np.array(boxes, np.float32)}, maskable=maskable)
    return Shown(
        key="k",
        units={"image": units},
        fate={"image": np.zeros(len(boxes), np.int8)},
        matched=True,
        labels={"box": box},
    )


def test_the_aim_is_each_units_overlap_and_the_whole_image_is_no_answer():
    boxes = [[0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    spec = Ground(view=VIEW, most=5)
    aim = spec.aim(seen(boxes, [0, 0, 1, 1], overall=True))
    assert aim.index.tolist() == [0]
    assert aim.value[0].tolist() == [-1, 0.5, 0.5, -1, -1]
    assert spec.aim(seen(boxes, [0, 0, 1, 1])).value[0].tolist() == [1, 0.5, 0.5, -1, -1]


def test_a_box_of_another_picture_is_not_looked_for():
    shown = seen([[0, 0, 1, 1]], [0, 0, 1, 1])
    assert len(Ground(view=VIEW, most=5).aim(shown).index) == 1
    assert len(Ground(view=VIEW, most=5).aim(replace(shown, matched=False)).index) == 0


def test_a_label_that_the_reader_does_not_tell_is_named():
    shown = replace(seen([[0, 0, 1, 1]], [0, 0, 1, 1]), labels={"language": "en"})
    with pytest.raises(ValueError, match=r"k: an objective needs label 'box'; .* tells language: "):
        Ground(view=VIEW, most=5).aim(shown)


def test_softmax_leaves_out_what_no_unit_fits():
    boxes = [[0, 0, 0.2, 0.2], [0.5, 0.5, 1, 1]]
    spec = Ground(view=VIEW, form="softmax", most=5)
    assert len(spec.aim(seen(boxes, [0, 0, 0.4, 0.4])).index) == 0
    assert len(spec.aim(seen(boxes, [0, 0, 0.2, 0.3])).index) == 1
    assert len(Ground(view=VIEW, most=5).aim(seen(boxes, [0, 0, 0.4, 0.4])).index) == 1


def encoded():
    """Examples of three and one units; a unit's state is its score."""
    stream = Stream.build({}, {}, np.arange(4), np.zeros(4, bool), np.array([3, 1]))
    states = {"image": torch.tensor([[0.3], [-1.0], [2.0], [0.7]], requires_grad=True)}
    return Encoded(ViewBatch(streams={"image": stream}).to("cpu"), states, {})


def head(form):
    made = Ground(view=VIEW, form=form, most=5).head(REGIONS, {"image": 1})
    with torch.no_grad():
        made.score.weight.fill_(1)
        made.score.bias.zero_()
    return made


VALUES = torch.tensor([[-1, 0.6, 0.2, -1, -1], [0.0, -1, -1, -1, -1]])


def sigmoid_loss(score, target):
    return -target * math.log(1 / (1 + math.exp(-score))) - (1 - target) * math.log(
        1 - 1 / (1 + math.exp(-score))
    )


def test_losses_by_hand():
    aim = AimBatch(index=torch.tensor([0, 1]), value=VALUES, weight=torch.tensor([1.0, 0.5]))
    out = head("sigmoid")(encoded(), aim)
    # the first unit is not to be chosen; 0.2 is below the threshold, 0.6 the soft target
    first = sigmoid_loss(-1.0, 0.6) + sigmoid_loss(2.0, 0)
    assert out["loss"].item() == pytest.approx(first + 0.5 * sigmoid_loss(0.7, 0), rel=1e-5)
    assert out["correct"].item() == 0  # the best unit, 2.0, overlaps too little
    out = head("softmax")(encoded(), replace(aim, index=torch.tensor([0, 0])))
    among = math.log(math.exp(-1.0) + math.exp(2.0))
    # of the blank value's one unit the choice is certain
    assert out["loss"].item() == pytest.approx(among + 1.0, rel=1e-5)


def test_gradients_are_finite_where_units_are_missing():
    for form in ("sigmoid", "softmax"):
        given, made = encoded(), head(form)
        aim = AimBatch(index=torch.tensor([0, 1]), value=VALUES, weight=torch.ones(2))
        made(given, aim)["loss"].backward()
        assert torch.isfinite(given.states["image"].grad).all()
        assert torch.isfinite(made.score.weight.grad).all()
        assert given.states["image"].grad[0] == 0


def test_predictions_are_by_example():
    scores = head("sigmoid").predict(encoded())
    expected = [[0.3, -1.0, 2.0, -np.inf, -np.inf], [0.7] + [-np.inf] * 4]
    assert torch.allclose(scores, torch.tensor(expected))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Ground(view=VIEW, most=4), "set most=5"),
        (Ground(view=VIEW, stream="other"), "does not show"),
        (Ground(view=View(name="v", streams=("text", "pixels")), stream="pixels"), "no boxes"),
    ],
)
def test_what_cannot_be_grounded(spec, message):
    with pytest.raises(ValueError, match=message):
        spec.check({**REGIONS, "pixels": Patches(size=32)})


def test_regions_that_read_nothing_cannot_be_chosen():
    both = ("text", "image")
    ground = {"grounding": Ground(view=View(name="v", streams=both))}
    text, image = Codes(size=9), Regions(features=4, classes=0, limit=5)
    small = {"layers": 1, "width": 16, "heads": 2}
    CrossloomModel({"text": text, "image": image}, single_stream(both, **small), ground)
    alone = replace(single_stream(("text",), **small), widths={"text": 16, "image": 16})
    with pytest.raises(ValueError, match=r"objectives\.grounding: 'image' reads no other stream"):
        CrossloomModel({"text": text, "image": image}, alone, ground)
    # the view can forbid it as well
    apart = {"grounding": Ground(view=View(name="v", streams=both, apart=True))}
    with pytest.raises(ValueError, match="whose regions read the text"):
        CrossloomModel({"text": text, "image": image}, single_stream(both, **small), apart)


def test_grounding_is_refused_for_early_fusion():
    """B2T2's regions are seen on words and read nothing themselves."""
    recipe = load_recipe("b2t2-tiny")
    with pytest.raises(ValueError, match="'image' reads no other stream"):
        check_reads(recipe.plan, View(name="grounding", streams=("text", "image")), "image")
