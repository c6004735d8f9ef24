"""Plans told and drawn: what is folded, who reads whom, what counts where."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.models.draw import draw
from crossloom.models.fusion import Fusion
from crossloom.models.plan import Attend, Feed, Grid, Layer, Plan
from crossloom.models.presets import (
    co_attention,
    cross_encoder,
    dual_encoder,
    encoder_decoder,
    single_stream,
)
from crossloom.models.show import columns, folded, size_of, table, title, words

BOTH = ("text", "image")
PLANS = {
    "single stream": single_stream(BOTH),
    "one stream": single_stream(("text",)),
    "single stream, tied layers": single_stream(BOTH, tied=True),
    "single stream, one norm": replace(single_stream(BOTH, norm="pre"), last="shared"),
    "single stream, sandwich": single_stream(BOTH, norm="sandwich"),
    "two towers": dual_encoder("text", "image"),
    "co-attention": co_attention("text", "image", image_width=1024, bridge=1024, bridge_heads=8),
    "co-attention, shared weights": cross_encoder("text", "image"),
    "encoder-decoder": encoder_decoder(BOTH, "out", norm="pre"),
    "encoder-decoder, tied layers": encoder_decoder(BOTH, "out", tied=True),
}


@pytest.mark.parametrize("said", PLANS)
def test_a_plan_is_told_in_words(said):
    assert words(PLANS[said]) == said.removesuffix(", one norm").removesuffix(", sandwich")


def test_a_drawing_is_told_by_its_plan_streams_and_size():
    assert title(PLANS["single stream"]) == "single stream of text, image: 12 layers of 768"
    wide = PLANS["co-attention"]
    assert title(wide) == f"co-attention of text, image: {len(wide.layers)} layers of 768 and 1024"
    assert "out left to right" in title(PLANS["encoder-decoder"])
    # streams that no layer changes have no part in the size
    alone = replace(single_stream(("text",), layers=1), widths={"text": 768, "image": 512})
    assert size_of(alone) == "1 layer of 768"


@pytest.mark.parametrize("said", PLANS)
def test_the_table_counts_every_parameter_once(said):
    with torch.device("meta"):
        total = sum(p.numel() for p in Fusion(PLANS[said]).parameters())
    assert sum(row.parameters for row in table(PLANS[said])) == total


def test_equal_layers_are_folded():
    def runs(plan):
        return [r.numbers for r in folded(plan)]

    assert runs(PLANS["single stream"]) == ["0–11"]
    assert runs(PLANS["co-attention, shared weights"]) == ["0–8", "9–13", "14–18"]
    # the first lends its weights, the others use them
    assert runs(PLANS["single stream, tied layers"]) == ["0", "1–11"]
    # each decoder layer has another layer's weights, one after the other
    assert runs(PLANS["encoder-decoder, tied layers"]) == ["0–11", "12–23"]
    # what is left of a restricted plan keeps its numbers
    assert runs(PLANS["co-attention, shared weights"].restricted(("text",))) == ["0–8", "14–18"]


def test_patterns_on_a_grid_are_told_once_for_all_layers():
    def layer(reads):
        grid = Grid(side=16, reads=reads)
        attend = Attend(reads={"a": ("a",)}, causal=("a",), sparse={"a": grid})
        return Layer(blocks=(attend, Feed(streams=("a",))))

    kinds = ("row", "column", "row", "convolution")
    plan = Plan(
        widths={"a": 8}, layers=tuple(map(layer, kinds)), heads=2, inner=8, hidden=8, norm="pre"
    )
    assert [r.numbers for r in folded(plan)] == ["0–3"]
    said = "a by row (2), column (1), convolution of 11 × 11 (1)"
    assert table(plan)[0].does == f"a ← a (a left to right) · {said}"
    assert said in draw(plan)
    alike = replace(plan, layers=(layer("row"),) * 2)
    assert table(alike)[0].does.endswith(" · a by row")


def test_layers_that_differ_in_anything_are_not_folded():
    def layer(**options):
        return Layer(blocks=(Attend(reads={"a": ("a",)}, **options),))

    plan = Plan(
        widths={"a": 8},
        layers=(layer(), layer(), layer(heads=4), layer(causal=("a",)), layer()),
        heads=2, inner=8, hidden=8,
    )  # fmt: skip
    assert [r.numbers for r in folded(plan)] == ["0–1", "2", "3", "4"]


def test_rows_say_who_reads_whom_with_which_weights():
    rows = columns(table(PLANS["encoder-decoder, tied layers"]))
    assert rows[0][:4] == ("0–11 (× 12)", "0", "text, image ← text, image", "one for all")
    assert rows[2][:4] == ("12–23 (× 12)", "0", "out ← out (out left to right)", "of layers 0–11")
    assert rows[2][5] == "–"
    assert rows[3][:4] == ("", "1", "out ← text, image", "one for all")
    rows = columns(table(PLANS["co-attention"]))
    assert rows[2][2:5] == ("text ← image; image ← text", "each its own", "8 heads × 128")
    assert rows[4][2:5] == ("feed image", "own", "1024 → 4096")


def parsed(plan):
    """Boxes as (left, top, right, bottom), arrows as colours, and all that is written."""
    root = ElementTree.fromstring(draw(plan))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [
        (float(r.get("x")), float(r.get("y")),
         float(r.get("x")) + float(r.get("width")), float(r.get("y")) + 40)
        for r in root.iter(f"{space}rect") if r.get("height") == "40"
    ]  # fmt: skip
    arrows = [p.get("d") for p in root.iter(f"{space}path") if "H" in p.get("d", "")]
    return boxes, arrows, [t.text for t in root.iter(f"{space}text")]


@pytest.mark.parametrize(
    ("said", "boxes", "arrows", "texts"),
    [
        ("single stream", 2, 0, ["joint attention", "feed-forward", "× 12", "layers 0–11"]),
        ("two towers", 4, 0, ["self-attention", "× 12"]),
        ("co-attention", 10, 2, ["reads image", "reads text", "× 6", "1024 wide"]),
        ("co-attention, shared weights", 10, 2, ["12 heads × 64 · shared weights", "× 9", "× 5"]),
        ("encoder-decoder", 5, 2, ["causal self-attention", "reads text, image"]),
        ("encoder-decoder, tied layers", 5, 2, ["weights of layers 0–11"]),
    ],
)
def test_drawings_have_a_box_for_each_block_and_an_arrow_for_each_other_stream(
    said, boxes, arrows, texts
):
    found, lines, written = parsed(PLANS[said])
    assert len(found) == boxes
    assert len(lines) == arrows
    assert set(texts) <= set(written)


def test_a_decoder_stands_above_what_it_reads():
    _, arrows, _ = parsed(encoder_decoder("text", "out", layers=2))
    boxes, _, _ = parsed(encoder_decoder("text", "out", layers=2))
    encoder = [b for b in boxes if b[0] == min(x for x, *_ in boxes)]
    height = float(re.match(r"M[\d.]+,([\d.]+)", arrows[0])[1])
    assert height < min(top for _, top, _, _ in encoder)


def test_long_names_are_written_small():
    name = "frames of the second camera of the left arm"
    root = ElementTree.fromstring(draw(encoder_decoder(name, "b", layers=1)))
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert len(text.text) * 0.5 * float(text.get("font-size")) < 190


def test_names_are_escaped():
    name = "<a&{0}>"
    plan = single_stream((name, "b"), layers=1)
    assert name in parsed(plan)[2]


def test_a_box_over_several_columns_leaves_room_for_those_between():
    fed = Layer(blocks=(Feed(streams=("a", "c"), shared=True), Feed(streams=("b",))))
    plan = Plan(widths={"a": 8, "b": 8, "c": 8}, layers=(fed,), heads=2, inner=8, hidden=8)
    (_, top, _, _), (_, _, _, bottom) = parsed(plan)[0]
    assert bottom <= top


@st.composite
def plans(draw_):
    streams = tuple("abc"[: draw_(st.integers(1, 3))])
    some = st.lists(st.sampled_from(streams), unique=True, min_size=1).map(tuple)

    def block():
        if draw_(st.booleans()):
            return Attend(reads={s: draw_(some) for s in draw_(some)}, causal=draw_(some))
        return Feed(streams=draw_(some), shared=draw_(st.booleans()))

    layers = tuple(
        Layer(blocks=tuple(block() for _ in range(draw_(st.integers(1, 4)))))
        for _ in range(draw_(st.integers(1, 4)))
    )
    return Plan(widths=dict.fromkeys(streams, 8), layers=layers, heads=2, inner=4, hidden=6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(plans())
def test_boxes_of_any_plan_lie_apart_and_inside(plan):
    boxes, _, _ = parsed(plan)
    root = ElementTree.fromstring(draw(plan))
    width, height = float(root.get("width")), float(root.get("height"))
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        for other in boxes[:number]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart
