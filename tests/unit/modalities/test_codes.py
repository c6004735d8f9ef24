"""Codes: what is decoded, what is refused, what a hidden or swapped one shows."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.batch import Stream, ViewBatch
from crossloom.modalities.codes import Codes
from crossloom.testing import check_modality
from crossloom.units import BadSample, Fate, keyed_rng

SPEC = Codes(size=9, limit=6, dropout=0.0)


def sample(codes, dtype=np.uint16):
    out = io.BytesIO()
    np.save(out, np.array(codes, dtype))
    return {"codes.npy": out.getvalue()}


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, begin=False),
        replace(SPEC, stride=3),
        replace(SPEC, side=3),
        replace(SPEC, side=2, begin=False, norm=False),
    ],
)
def test_it_keeps_the_contract_of_modalities(spec):
    check_modality(spec, sample([3, 1, 4, 1, 5, 8, 2, 6]))


def test_the_first_codes_follow_a_unit_that_is_never_hidden_nor_predicted():
    units = SPEC.decode(sample([3, 1, 4, 1, 5, 8, 2, 6]), keyed_rng("a"))
    assert units.content["code"].tolist() == [9, 3, 1, 4, 1, 5, 8]
    assert units.targets["code"].tolist() == [-1, 3, 1, 4, 1, 5, 8]
    assert units.maskable.tolist() == [False] + [True] * 6
    assert units.position.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_strides_are_drawn_from_one_to_the_largest():
    codes = list(range(9))
    spec = replace(SPEC, stride=3, begin=False, limit=9)
    seen = {tuple(spec.decode(sample(codes), keyed_rng("a", n)).content["code"]) for n in range(40)}
    assert seen == {tuple(codes), tuple(codes[::2]), tuple(codes[::3])}
    assert spec.steady().decode(sample(codes), keyed_rng("b")).content["code"].tolist() == codes


def test_a_crop_is_a_stretch_anywhere():
    spec = replace(SPEC, crop=True, begin=False, limit=3)
    seen = {
        tuple(spec.decode(sample([0, 1, 2, 3, 4]), keyed_rng("a", n)).content["code"].tolist())
        for n in range(40)
    }
    assert seen == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "missing member"),
        ({"codes.npy": b"no"}, "undecodable"),
        (sample([0.5], np.float32), "wrong type"),
        (sample([[1]]), "wrong shape"),
        (sample([]), "empty stream"),
        (sample([9]), "code outside codebook"),
        (sample([-1], np.int16), "code outside codebook"),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample(given, kind):
    with pytest.raises(BadSample) as error:
        SPEC.decode(given, keyed_rng("a"))
    assert error.value.kind == kind


def test_pickled_objects_are_not_loaded():
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(BadSample) as error:
        SPEC.decode({"codes.npy": out.getvalue()}, keyed_rng("a"))
    assert error.value.kind == "undecodable"


def test_swapped_codes_are_others_of_the_codebook_and_the_clean_ones_stay():
    units = SPEC.decode(sample([3] * 6), keyed_rng("a"))
    fate = np.array([Fate.KEEP, *[Fate.SWAP] * 5, Fate.SHOW], np.int8)
    shown = SPEC.substitute(units, fate, keyed_rng("b"))["code"]
    assert shown[0] == 9
    assert shown[6] == 3
    assert len(set(shown[1:6].tolist())) > 1
    assert (units.content["code"][1:] == 3).all()


def test_a_hidden_code_is_embedded_as_the_mask_at_its_place():
    embedder = SPEC.embedder(4)
    position = np.arange(3)

    def embed(codes, hidden):
        built = Stream.build(
            {"code": np.array(codes)}, {}, position, np.array(hidden), np.array([3])
        )
        return embedder(ViewBatch(streams={"x": built}).to("cpu").streams["x"])

    out = embed([9, 2, 3], [False, True, False])
    mask = embedder.special.weight[1] + embedder.position.weight[1]
    begin = embedder.special.weight[0] + embedder.position.weight[0]
    plain = embedder.code.weight[3] + embedder.position.weight[2]
    for row, by_hand in zip(out, (begin, mask, plain), strict=True):
        assert torch.allclose(row, embedder.norm(by_hand))


@pytest.mark.parametrize("begin", [False, True])
def test_on_a_grid_a_place_is_its_row_and_its_column(begin):
    spec = replace(SPEC, side=3, begin=begin, norm=False)
    embedder = spec.embedder(4)
    codes = [3, 1, 4, 1, 5]  # the second row is not full
    units = spec.decode(sample(codes), keyed_rng("a"))
    built = Stream.build(
        units.content, {}, units.position, np.zeros(len(units), bool), np.array([len(units)])
    )
    out = embedder(ViewBatch(streams={"x": built}).to("cpu").streams["x"])
    rows = [
        embedder.code.weight[code] + embedder.row.weight[n // 3] + embedder.column.weight[n % 3]
        for n, code in enumerate(codes)
    ]
    first = [embedder.special.weight[0]] if begin else []
    assert torch.allclose(out, torch.stack([*first, *rows]))
    assert not hasattr(embedder, "position")


def test_a_grid_may_be_stored_as_rows():
    spec = replace(SPEC, side=3)
    flat, grid = ([3, 1, 4, 1, 5, 8], [[3, 1, 4], [1, 5, 8]])
    found = [spec.decode(sample(c), keyed_rng("a")).content["code"].tolist() for c in (flat, grid)]
    assert found[0] == found[1] == [9, *flat]
    for wrong in ([[1, 2], [3, 4], [5, 6]], [[[1, 2, 3]]]):
        with pytest.raises(BadSample, match=r"\[rows, 3\]"):
            spec.decode(sample(wrong), keyed_rng("a"))


@pytest.mark.parametrize(
    "wrong", [{"side": 4}, {"side": 3, "stride": 2}, {"side": 3, "crop": True}]
)
def test_a_grid_has_whole_rows(wrong):
    with pytest.raises(ValueError, match="side"):
        replace(SPEC, **wrong)


def test_another_codebook_is_another_identity():
    assert replace(SPEC, codebook="a").identity() != replace(SPEC, codebook="b").identity()
    assert SPEC.identity() != replace(SPEC, size=10).identity()
