"""Regions: the whole-image unit, groups, classes, tolerances, damaged bytes, the embedder."""

import io
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import Stream, ViewBatch
from crossloom.modalities.boxes import overlap_groups
from crossloom.modalities.regions import Regions
from crossloom.testing import check_modality
from crossloom.units import BadSample, Units, keyed_rng

RNG = keyed_rng("test")
SPEC = Regions(features=2, classes=3, box=4, dropout=0.0)


def member(save=np.savez, **changed):
    arrays = {
        "features": np.array([[1, 2], [3, 4], [5, 9]], np.float16),
        "boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32),
        "probabilities": np.array([[0.2, 0.3, 0.5], [0.9, 0.1, 0], [0, 0.4, 0.6]], np.float32),
        "size": np.array([100, 50]),
    } | changed
    out = io.BytesIO()
    save(out, **{k: v for k, v in arrays.items() if v is not None})
    return out.getvalue()


def decode(spec=SPEC, **changed):
    return spec.decode({"regions.npz": member(**changed)}, RNG)


def stream(units: list[Units], hidden=None, content=None):
    content = content or {
        k: np.concatenate([u.content[k] for u in units]) for k in units[0].content
    }
    position = np.concatenate([u.position for u in units])
    hidden = np.zeros(len(position), bool) if hidden is None else np.array(hidden)
    built = Stream.build(content, {}, position, hidden, np.array([len(u) for u in units]))
    return ViewBatch(streams={"x": built}).to("cpu").streams["x"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_is_stored_comes_out(save):
    units = decode(save=save)
    assert units.content["feature"].tolist() == [[1, 2], [3, 4], [5, 9]]
    assert units.content["feature"].dtype == np.float32
    assert np.allclose(units.content["box"][1], [0.2, 0, 0.3, 0.2])
    assert units.targets["class"].tolist() == [2, 1, 2]
    assert units.maskable.all()
    assert units.group.tolist() == [0, 1, 2]


def test_only_the_first_regions_are_used():
    units = decode(replace(SPEC, limit=2))
    assert units.content["feature"].tolist() == [[1, 2], [3, 4]]
    assert all(len(v) == 2 for v in (*units.targets.values(), units.group))


def test_labels_are_the_class_and_probabilities_the_distribution():
    labels = np.array([0, 2, 1])
    both = decode(labels=labels)
    assert both.targets["class"].tolist() == [0, 2, 1]
    assert np.allclose(both.targets["classes"][0], [0.2, 0.3, 0.5])
    alone = decode(labels=labels, probabilities=None)
    assert alone.targets["class"].tolist() == [0, 2, 1]
    assert alone.targets["classes"].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_without_classes_neither_is_asked_for():
    spec = replace(SPEC, classes=0)
    assert set(decode(spec, probabilities=None).targets) == {"feature"} == set(spec.predictable())
    assert set(spec.blank().targets) == {"feature"}


def test_targets_that_nobody_asks_for_need_no_array():
    spec = replace(SPEC, attributes=4)
    nothing = spec.asked(frozenset({"characters"}))
    assert set(decode(nothing, probabilities=None).targets) == {"feature"}
    assert nothing.embedder(8).state_dict().keys() == spec.embedder(8).state_dict().keys()
    # each alone keeps what it is made of
    kept = {t: spec.asked(frozenset({t})) for t in ("class", "classes", "token", "attribute")}
    assert [(k.classes, k.attributes) for k in kept.values()] == [(3, 0), (3, 0), (3, 0), (0, 4)]
    # and what is shown stays
    assert replace(SPEC, chances=True).asked(frozenset()).classes == 3


@pytest.mark.parametrize("side", [100, 1000])
def test_overhang_is_cut_off_up_to_a_pixel_or_half_a_per_cent(side):
    size = np.array([side, side])
    slack = max(1, 0.005 * side)
    box = np.array([[-slack, 0, side + slack, 10]] * 3, np.float32)
    assert decode(boxes=box, size=size).content["box"][0].tolist()[:3] == [0, 0, 1]
    with pytest.raises(BadSample, match=r"box \[.*\] in an image of \d+x\d+") as found:
        decode(boxes=box + np.array([0, 0, 0.1, 0], np.float32), size=size)
    assert found.value.kind == "box outside image"


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"features": np.zeros((3, 5))}, "wrong shape", r"features has shape \[3, 5\]; .*\[R, 2\]"),
        ({"boxes": np.zeros((2, 4))}, "wrong shape", r"boxes has shape \[2, 4\]; .*\[3, 4\]"),
        ({"features": np.full((3, 2), "x")}, "wrong type", "features is of type <U1"),
        ({"size": None}, "missing member", "has no 'size'; it has features, boxes, prob"),
        ({"size": np.array([0, 50])}, "box outside image", "size 0.0x50.0"),
        ({"size": np.array([np.nan, 50])}, "box outside image", "size nanx50.0"),
        ({"boxes": np.full((3, 4), np.nan)}, "box outside image", r"box \[nan"),
        ({"features": np.full((3, 2), 1e300)}, "NaN features", "of 3 of 3 regions"),
        ({"probabilities": np.full((3, 3), np.nan)}, "NaN features", "sum to nan"),
        ({"probabilities": np.full((3, 3), 0.5)}, "NaN features", r"sum to 1\.5"),
        ({"probabilities": np.array([[1.5, -0.5, 0]] * 3)}, "NaN features", r"least is -0\.5"),
        ({"probabilities": None}, "missing member", "has no 'probabilities'"),
        ({"labels": np.array([0, 1, 3])}, "wrong shape", r"labels are 0\.\.3; expected 0\.\.2"),
        ({"labels": np.array([0, -1, 2])}, "wrong shape", r"labels are -1\.\.2"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_cannot_be_used_names_member_found_and_expected(changed, kind, words):
    with pytest.raises(BadSample, match=words) as found:
        decode(**changed)
    assert found.value.kind == kind
    assert "regions.npz" in str(found.value)


def test_a_sample_without_the_member():
    with pytest.raises(BadSample, match=r"no regions.npz; the sample has jpg, json") as found:
        SPEC.decode({"json": b"", "jpg": b""}, RNG)
    assert found.value.kind == "missing member"


@settings(max_examples=300, deadline=None)
@given(
    compressed=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    length=st.none() | st.integers(0, 2000),
)
def test_damaged_bytes_give_units_or_a_bad_sample(compressed, changes, length):
    data = bytearray(member(np.savez_compressed if compressed else np.savez))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        units = SPEC.decode({"regions.npz": bytes(data[:length])}, RNG)
    except BadSample:
        return
    assert len(units) == 3


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_groups_are_connected_components(count, seed, threshold):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.4, (count, 2))], 1)
    near = np.zeros((count, count), bool)
    for a in range(count):
        for b in range(count):
            w = min(boxes[a, 2], boxes[b, 2]) - max(boxes[a, 0], boxes[b, 0])
            h = min(boxes[a, 3], boxes[b, 3]) - max(boxes[a, 1], boxes[b, 1])
            shared = max(w, 0) * max(h, 0)
            areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (boxes[a], boxes[b])]
            near[a, b] = shared / (sum(areas) - shared) >= threshold
    reach = np.linalg.matrix_power(near.astype(int), count) > 0
    group = overlap_groups(boxes, threshold)
    assert ((group[:, None] == group[None, :]) == reach).all()


def test_boxes_without_area_are_groups_of_their_own():
    assert overlap_groups(np.array([[0.5] * 4, [0.2] * 4, [0, 0, 1, 1]]), 0.5).tolist() == [0, 1, 2]


def test_the_whole_image_comes_first_and_is_never_hidden():
    spec = replace(SPEC, overall=True, box=5)
    units = decode(spec)
    assert len(units) == 4
    assert spec.longest() == spec.limit + 1
    assert units.maskable.tolist() == [False, True, True, True]
    assert units.group.tolist() == [0, 1, 2, 3]
    assert units.content["box"][0].tolist() == [0, 0, 1, 1, 1]
    assert units.targets["class"].tolist() == [-1, 2, 1, 2]
    assert np.allclose(units.targets["classes"].sum(1), 1)
    assert np.allclose(units.content["feature"][0], [3, 5])


def test_the_whole_image_shows_the_mean_of_visible_regions():
    """By hand, through an embedder that passes features on: example 1 hides its first region,
    example 2 hides all, example 3 none."""
    spec = replace(SPEC, overall=True, norm="norm_of_sum")
    embedder = spec.embedder(2).eval()
    with torch.no_grad():
        embedder.feature.weight.copy_(torch.eye(2))
        embedder.feature.bias.zero_()
        embedder.box.weight.zero_()
        embedder.box.bias.zero_()
        embedder.mask.copy_(torch.tensor([-7.0, 7.0]))
    embedder.norm = torch.nn.Identity()
    hidden = [False, True, False, False] + [False, True, True, True] + [False] * 4
    units = decode(spec)
    # a hidden NaN or infinity must not reach the mean either
    content = {k: np.concatenate([v] * 3) for k, v in units.content.items()}
    content["feature"][np.array(hidden)] = np.nan
    out = embedder(stream([units] * 3, hidden, content))
    assert out[0].tolist() == [4, 6.5]
    assert out[1].tolist() == [-7, 7]
    assert out[2].tolist() == [3, 4]
    assert out[4].tolist() == [-7, 7]
    assert out[8].tolist() == [3, 5]


@pytest.mark.parametrize("overall", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_contract(overall, count):
    arrays = {"features": np.ones((count, 2)), "boxes": np.array([[0, 0, 9, 9]] * count)}
    arrays["probabilities"] = np.full((count, 3), 1 / 3)
    spec = replace(SPEC, overall=overall)
    check_modality(spec, {"regions.npz": member(**arrays)})
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize("overall", [False, True])
def test_examples_do_not_see_each_other(overall):
    """Embedded together, or alone with an example of no regions beside: the same vectors."""
    spec = replace(SPEC, overall=overall)
    embedder = spec.embedder(8).eval()
    one, two = decode(spec), decode(spec, features=np.array([[9, 8], [7, 6], [5, 4]]))
    together = embedder(stream([one, two]))
    none = Units(
        content={k: v[:0] for k, v in one.content.items()},
        position=one.position[:0],
        maskable=one.maskable[:0],
        group=one.group[:0],
    )
    assert torch.allclose(together[: len(one)], embedder(stream([one, none])), atol=1e-6)
    assert torch.allclose(together[len(one) :], embedder(stream([none, two])), atol=1e-6)


def test_all_hidden_regions_in_one_place_look_alike():
    embedder = SPEC.embedder(8).eval()
    units = decode(boxes=np.array([[0, 0, 10, 10]] * 3))
    out = embedder(stream([units], [True] * 3))
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])


@pytest.mark.parametrize("norm", ["norm_of_norms", "mean_of_norms", "norm_of_sum"])
def test_norms_by_their_formulas(norm):
    embedder = replace(SPEC, norm=norm).embedder(8).eval()
    units = decode()

    def normed(x):
        return (x - x.mean(1, keepdim=True)) / (
            x.var(1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()

    f = embedder.feature(torch.from_numpy(units.content["feature"]))
    b = embedder.box(torch.from_numpy(units.content["box"]))
    expected = {
        "norm_of_norms": normed(normed(f) + normed(b)),
        "mean_of_norms": (normed(f) + normed(b)) / 2,
        "norm_of_sum": normed(f + b),
    }[norm]
    assert torch.allclose(embedder(stream([units])), expected, atol=1e-5)


def test_the_tied_weight_is_the_feature_layer_transposed():
    embedder = SPEC.embedder(8)
    tied = embedder.tied("feature")
    assert tied.shape == (2, 8)
    assert tied.data_ptr() == embedder.feature.weight.data_ptr()
    assert embedder.tied("class") is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"classes": 1}, "2 or more"), ({"limit": 0}, "limit 0"), ({"overlap": 0.0}, "share")],
)
def test_settings_that_make_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(SPEC, **changed)


def test_decoding_six_regions_is_quick():
    """Measured at 0.1 ms on one core; the bound only catches a return to slow ways."""
    data = {"regions.npz": member()}
    spent = []
    for _ in range(200):
        start = time.perf_counter()
        SPEC.decode(data, RNG)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 1e-3
