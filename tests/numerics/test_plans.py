"""Every reading pattern against dense attention whose masks are written out, unit by unit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import Stream, ViewBatch
from crossloom.models import flops, presets
from crossloom.models.fusion import Fusion
from crossloom.models.plan import Attend, Feed, Grid, Layer, Plan
from crossloom.models.presets import co_attention, cross_encoder, encoder_decoder, single_stream
from crossloom.objectives.view import View

WIDTH = 12
SMALL = {"width": WIDTH, "heads": 3, "dropout": 0.0}


def view(lengths, **options):
    streams = {}
    for name, length in lengths.items():
        n = sum(length)
        position = np.concatenate([np.arange(k) for k in length])
        streams[name] = Stream.build(
            {}, {}, position, np.zeros(n, bool), np.array(length, np.int64)
        )
    return ViewBatch(streams=streams, **options).to("cpu")


def allowed(units, spec, options):
    """The mask of one example: may unit (stream, place) read unit (stream, place)?"""
    mask = np.zeros((len(units), len(units)), bool)
    for i, (reader, at) in enumerate(units):
        for j, (read, place) in enumerate(units):
            ok = read in spec.reads.get(reader, ())
            if options.get("apart"):
                ok = ok and read == reader
            if reader in options.get("reads", {}):
                ok = ok and read in options["reads"][reader]
            if read == reader and read in (*spec.causal, *options.get("causal", ())):
                ok = ok and place <= at
            if read == reader and read in spec.sparse:
                grid = spec.sparse[read]
                ok = ok and (min(at, place) < grid.first or near(grid, at, place))
            mask[i, j] = ok
    return torch.from_numpy(mask)


def near(grid, at, place):
    """DALL·E, figure 11, by rows and columns; the pattern runs on from a row's end to the next."""
    cells = sorted((at - grid.first, place - grid.first))
    (low, left), (_, right) = (divmod(c, grid.side) for c in cells)
    if grid.reads == "row":
        return cells[1] - cells[0] <= grid.side
    if grid.reads == "column":
        return left == right
    reach = grid.kernel // 2
    square = {(low + r) * grid.side + left + c
              for r in range(reach + 1) for c in range(-reach, reach + 1)}  # fmt: skip
    return cells[1] in square


def may_read(reader, spec, shown, options):
    """Is there any stream in the view that the reader may read?"""
    names = [s for s in spec.reads[reader] if s in shown]
    if options.get("apart"):
        names = [s for s in names if s == reader]
    return bool([s for s in names if s in options.get("reads", {}).get(reader, names)])


def dense(weights, plan, x, options):
    """One example, ``x: stream -> [n, width]``, by state-dict names alone."""
    pre, eps = plan.norm != "post", plan.epsilon
    changed = {
        s: max((n for n, layer in enumerate(plan.layers) for b in layer.blocks
                if s in (b.reads if isinstance(b, Attend) else b.streams)), default=-1)
        for s in plan.widths
    }  # fmt: skip
    homes = {}

    def last(done):
        for s in x:
            if pre and changed[s] == done:
                x[s] = norm(f"last.{s}", x[s])

    def linear(name, value):
        return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, value):
        one, two = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(value, one.shape, one, two, eps)

    x = dict(x)
    last(-1)
    for number, layer in enumerate(plan.layers):
        for place, spec in enumerate(layer.blocks):
            here = f"layers.{number}.blocks.{place}"
            at = homes.setdefault(spec.tied, here) if spec.tied else here
            new = dict(x)

            def own(part, s, at=at, spec=spec):
                return f"{at}.{part}.{'shared' if spec.shared else s}"

            def added(s, gain, own=own):
                # CogView, figure 2: a norm on either side of what a block does
                return norm(own("after", s), gain) if plan.norm == "sandwich" else gain

            if isinstance(spec, Feed):
                for s in [s for s in spec.streams if s in x]:
                    inside = norm(own("norm", s), x[s]) if pre else x[s]
                    gain = linear(own("down", s), F.gelu(linear(own("up", s), inside)))
                    total = x[s] + added(s, gain)
                    new[s] = total if pre else norm(own("norm", s), total)
                x = new
                continue
            readers = [s for s in spec.reads if s in x]
            read = [s for s in x if any(s in names for names in spec.reads.values())]
            inner, heads = spec.inner or plan.inner, spec.heads or plan.heads
            units = [(s, i) for s in x for i in range(len(x[s]))]
            mask = allowed(units, spec, options)
            q, k, v = (torch.zeros(len(units), inner) for _ in range(3))
            for s in x:
                rows = [i for i, (name, _) in enumerate(units) if name == s]
                inside = x[s]
                if pre and changed[s] >= number and (spec.reads.get(s) or s in read):
                    inside = norm(own("norm", s), x[s])
                if s in readers and spec.reads[s]:
                    q[rows] = linear(own("query", s), inside)
                if s in read:
                    k[rows], v[rows] = linear(own("keyvalue", s), inside).chunk(2, 1)
            q, k, v = (t.view(len(units), heads, inner // heads).transpose(0, 1) for t in (q, k, v))
            scores = (q @ k.transpose(1, 2)) / (inner / heads) ** 0.5
            scores = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
            out = (scores @ v).transpose(0, 1).reshape(len(units), inner)
            for s in readers:
                rows = [i for i, (name, _) in enumerate(units) if name == s]
                gain = torch.zeros_like(x[s])
                if may_read(s, spec, x, options):
                    gain = linear(own("output", s), out[rows])
                total = x[s] + added(s, gain)
                new[s] = total if pre else norm(own("norm", s), total)
            x = new
        last(number)
    return x


def compare(plan, lengths, options):
    torch.manual_seed(0)
    fusion = Fusion(plan).eval()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    states = {s: torch.randn(sum(n), plan.widths[s]) for s, n in lengths.items()}
    out = fusion(states, view(lengths, **options))
    starts = {s: np.cumsum([0, *n]) for s, n in lengths.items()}
    weights = dict(fusion.state_dict())
    for e in range(len(next(iter(lengths.values())))):
        one = {s: x[starts[s][e] : starts[s][e + 1]] for s, x in states.items()}
        expected = dense(weights, plan, one, options)
        for s in lengths:
            found = out[s][starts[s][e] : starts[s][e + 1]]
            torch.testing.assert_close(found, expected[s], atol=3e-5, rtol=3e-5)
    return fusion


def on_grids(plan, side, first=1):
    """Each layer of a single stream with another pattern for the image."""
    kinds = ("row", "column", "convolution")
    return presets.on_grids(
        plan, "image", [Grid(side=side, reads=k, kernel=3, first=first) for k in kinds]
    )


BOTH = ("text", "image")
PREFIX = {"causal": ("text",), "reads": {"image": ("image",)}}
CASES = {
    "prefix: the image reads itself, the caption all and its past": (
        single_stream(BOTH, layers=2, **SMALL), {"text": [3, 5], "image": [2, 4]}, PREFIX,
    ),
    "prefix over an image that is not there": (
        single_stream(BOTH, layers=2, **SMALL), {"text": [3, 5], "image": [0, 0]}, PREFIX,
    ),
    "causal, alone": (
        single_stream(("text",), layers=2, **SMALL), {"text": [3, 5]}, {"causal": ("text",)},
    ),
    "each reads the other only": (
        single_stream(BOTH, layers=2, norm="pre", **SMALL),
        {"text": [3, 5], "image": [2, 0]},
        {"reads": {"text": ("image",), "image": ("text",)}},
    ),
    "one layer's weights for all": (
        single_stream(BOTH, layers=3, tied=True, **SMALL), {"text": [1, 2], "image": [2, 3]}, {},
    ),
    "one layer's weights for all, pre-norm and prefix": (
        single_stream(BOTH, layers=3, tied=True, norm="pre", **SMALL),
        {"text": [1, 2], "image": [2, 3]},
        PREFIX,
    ),
    "sandwich": (
        single_stream(BOTH, layers=2, norm="sandwich", **SMALL),
        {"text": [3, 5], "image": [2, 4]},
        {"causal": BOTH, "reads": {"text": ("text",)}},
    ),
    "sandwich, weights of each stream's own, and an image that is not read": (
        encoder_decoder("image", "text", layers=2, norm="sandwich", **SMALL),
        {"image": [2, 0], "text": [4, 1]},
        {"apart": True},
    ),
    "an image on a grid, by row, column and convolution": (
        on_grids(single_stream(BOTH, layers=3, norm="pre", **SMALL), side=4),
        {"text": [3, 5, 1], "image": [17, 11, 1]},
        {"causal": BOTH, "reads": {"text": ("text",)}},
    ),
    "an image on a grid read both ways, without a unit before it": (
        on_grids(single_stream(("image", "text"), layers=3, **SMALL), side=3, first=0),
        {"image": [9, 4, 0], "text": [3, 1, 2]},
        {},
    ),
    "a grid alone": (
        on_grids(single_stream(("image",), layers=3, **SMALL), side=3, first=0),
        {"image": [9, 4, 7]},
        {"causal": ("image",)},
    ),
    "decoder": (
        encoder_decoder("image", "text", layers=2, **SMALL), {"image": [2, 3], "text": [4, 1]}, {},
    ),
    "decoder of two sources, fewer layers": (
        encoder_decoder(BOTH, "out", layers=2, decoder_layers=1, norm="pre", **SMALL),
        {"text": [1, 2], "image": [2, 3], "out": [3, 4]},
        {},
    ),
    "decoder with the encoder's weights": (
        encoder_decoder(BOTH, "out", layers=2, tied=True, **SMALL),
        {"text": [1, 2], "image": [2, 0], "out": [3, 4]},
        {},
    ),
    "decoder with the encoder's weights, pre-norm": (
        encoder_decoder("text", "out", layers=2, tied=True, norm="pre", **SMALL),
        {"text": [1, 2], "out": [3, 4]},
        {},
    ),
    "connection of other widths, causal text": (
        co_attention(
            "text", "image", first=1, pairs=1, width=12, heads=3, image_width=16, bridge=8,
            bridge_heads=2, image_hidden=20, dropout=0.0,
        ),
        {"text": [3, 1, 2], "image": [1, 2, 0]},
        {"causal": ("text",)},
    ),
    "co-attention in one direction": (
        cross_encoder("text", "image", text_layers=1, image_layers=2, cross=2, **SMALL),
        {"text": [3, 1], "image": [1, 2]},
        {"reads": {"image": ("image",)}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_reading_pattern(case):
    plan, lengths, options = CASES[case]
    compare(plan, lengths, options)


@st.composite
def plans(draw):
    streams = tuple("abc"[: draw(st.integers(1, 3))])
    some = st.lists(st.sampled_from(streams), unique=True).map(tuple)

    def block():
        shared, tied = draw(st.booleans()), draw(st.booleans())
        if draw(st.booleans()):
            reads = {s: draw(some) for s in draw(some)}
            return Attend(
                reads=reads, shared=shared, causal=draw(some), tied=f"a{shared}" if tied else ""
            )
        return Feed(streams=draw(some), shared=shared, tied=f"f{shared}" if tied else "")

    layers = tuple(
        Layer(blocks=tuple(block() for _ in range(draw(st.integers(1, 3)))))
        for _ in range(draw(st.integers(1, 3)))
    )
    plan = Plan(
        widths=dict.fromkeys(streams, 8), layers=layers, heads=2, inner=4, hidden=6,
        norm=draw(st.sampled_from(["pre", "post"])), dropout=0.0,
    )  # fmt: skip
    shown = tuple(s for s in streams if draw(st.booleans())) or streams
    lengths = {s: [draw(st.integers(0, 3)) for _ in range(2)] for s in shown}
    options = {"causal": draw(some)}
    if draw(st.booleans()):
        options["reads"] = {s: draw(some) for s in draw(some)}
    elif draw(st.booleans()):
        options["apart"] = True
    return plan, lengths, options


@settings(max_examples=150, deadline=None, derandomize=True)
@given(plans())
def test_any_plan(drawn):
    compare(*drawn)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans())
def test_a_stream_knows_those_that_its_last_states_hang_on(drawn):
    plan, _, _ = drawn
    torch.manual_seed(0)
    fusion = Fusion(plan).double().eval()
    x = {s: torch.randn(4, 8, dtype=torch.double, requires_grad=True) for s in plan.streams}
    out = fusion(x, view({s: [2, 2] for s in plan.streams}))
    for name in plan.streams:
        weighed = (out[name] * torch.randn_like(out[name])).sum()
        found = torch.autograd.grad(weighed, list(x.values()), allow_unused=True, retain_graph=True)
        felt = {s for s, g in zip(x, found, strict=True) if g is not None and g.abs().max() > 1e-12}
        assert plan.known(name) == felt


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans(), st.sets(st.sampled_from("abc"), min_size=1))
def test_a_restricted_plan_finds_its_weights_by_name(drawn, kept):
    plan, _, _ = drawn
    streams = tuple(s for s in plan.widths if s in kept) or plan.streams
    weights = Fusion(plan).state_dict()
    less = plan.restricted(streams)
    own = Fusion(less).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: weights[k].shape for k in own}
    if streams == plan.streams:
        assert less == plan
        assert set(own) == set(weights)


def test_a_restricted_plan_computes_what_the_whole_one_does_over_these_streams():
    plan = cross_encoder("text", "image", text_layers=1, image_layers=1, cross=1, **SMALL)
    whole = Fusion(plan).eval()
    part = Fusion(plan.restricted(("text",))).eval()
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    states, shown = {"text": torch.randn(5, WIDTH)}, view({"text": [3, 2]})
    torch.testing.assert_close(part(states, shown)["text"], whole(states, shown)["text"])
    assert any(k.startswith("layers.2.blocks.1.query.text") for k in part.state_dict())
    assert not any("image" in k for k in part.state_dict())
    # all that is left is used
    sum(x.sum() for x in part(states, shown).values()).backward()
    assert all(p.grad is not None for p in part.parameters())


def test_the_decoder_alone_keeps_the_encoders_weights_that_it_uses():
    plan = encoder_decoder("text", "out", layers=2, tied=True, **SMALL)
    part = Fusion(plan.restricted(("out",)))
    names = set(part.state_dict())
    assert "layers.0.blocks.0.query.shared.weight" in names
    assert not any(n.startswith(("layers.2.blocks.0", "layers.2.blocks.2")) for n in names)


def test_tied_layers_are_one_set_of_weights_whose_gradients_add_up():
    torch.manual_seed(0)
    tied = single_stream(BOTH, layers=3, tied=True, **SMALL)
    free = single_stream(BOTH, layers=3, **SMALL)
    one, three = Fusion(tied), Fusion(free)
    assert sum(p.numel() for p in three.parameters()) == 3 * sum(
        p.numel() for p in one.parameters()
    )
    own = one.state_dict()
    three.load_state_dict({k: own[k.replace(k.split(".")[1], "0", 1)] for k in three.state_dict()})
    lengths = {"text": [3, 1], "image": [2, 2]}
    states = {s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}
    for fusion in (one, three):
        out = fusion(states, view(lengths))
        (out["text"].pow(2).sum() + out["image"].sin().sum()).backward()
    gradients = {n: p.grad for n, p in three.named_parameters()}
    for name, parameter in one.named_parameters():
        parts = [gradients[name.replace("layers.0", f"layers.{n}")] for n in range(3)]
        torch.testing.assert_close(parameter.grad, sum(parts), atol=1e-5, rtol=1e-4)


def test_a_copied_model_is_tied_to_itself():
    import copy

    plan = single_stream(("text",), layers=2, tied=True, **SMALL)
    one = Fusion(plan).eval()
    other = copy.deepcopy(one)
    for parameter in other.parameters():
        parameter.data.zero_()
    states, shown = {"text": torch.randn(3, WIDTH)}, view({"text": [3]})
    assert one(states, shown)["text"].abs().sum() > 0
    assert other(states, shown)["text"].abs().sum() == 0


@pytest.mark.parametrize("case", CASES)
def test_every_weight_has_a_gradient_even_when_there_is_nothing_to_read(case):
    plan, lengths, _ = CASES[case]
    fusion = Fusion(plan)
    streams = {s: [0, 0] for s in lengths}
    one = {"text": [1, 0], **streams} if "text" in plan.widths else streams
    states = {s: torch.randn(sum(one[s]), plan.widths[s]) for s in one}
    out = fusion(states, view(one))
    sum(x.sum() for x in out.values()).backward()
    lacking = [n for n, p in fusion.named_parameters() if p.grad is None]
    assert not lacking
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters())


def test_weights_of_a_stream_that_nobody_scores_get_a_gradient_of_zero():
    plan = cross_encoder("text", "image", text_layers=1, image_layers=1, cross=2, **SMALL)
    fusion, lengths = Fusion(plan), {"text": [3, 1], "image": [2, 2]}
    states = {s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}
    out = fusion(states, view(lengths))
    out["text"].square().sum().backward()
    last = {
        n: p.grad
        for n, p in fusion.named_parameters()
        if n.startswith(("layers.3.blocks.1", "layers.3.blocks.2")) and "image" in n
    }
    assert len(last) == 14
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad == 0).all()) == (name in last), name
    same = fusion.eval()(states, view(lengths))
    assert all(torch.equal(out[s], same[s]) for s in out)


def test_gelu_by_tanh():
    plan = replace(single_stream(("text",), layers=1, **SMALL), activation="gelu_tanh")
    fusion = Fusion(plan)
    x = torch.linspace(-3, 3, 50)
    expected = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(fusion.layers[0].blocks[1].activation(x), expected)


def test_operations_of_a_prefix_are_counted_pair_by_pair():
    plan = single_stream(BOTH, layers=1, width=4, heads=2, hidden=8, dropout=0.0)
    shown = view({"text": [3, 1], "image": [2, 5]}, reads={"image": ("image",)})
    pairs = 3 * (3 + 2) + 2 * 2 + 1 * (1 + 5) + 5 * 5
    projections = 11 * (4 * 4 * 4) * 2  # queries, keys, values, output; multiply and add
    feed = 11 * 2 * (4 * 8) * 2
    assert flops.of_view(plan, shown) == projections + feed + pairs * 4 * 2 * 2


def _plan(*blocks, **options):
    layers = (Layer(blocks=(Feed(streams=("a",)),)), Layer(blocks=blocks))
    return Plan(
        widths={"a": 8, "b": 8, "c": 16}, layers=layers, heads=2, inner=8, hidden=8, **options
    )


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((Feed(streams=("a",), tied="x"), Attend(reads={"a": ("a",)}, tied="x")),
         "layer 1, block 1: tied 'x': layer 1, block 0 is of another kind"),
        ((Feed(streams=("a",), tied="x"), Feed(streams=("a",), tied="x", hidden=4)),
         "layer 1, block 1: tied 'x': hidden is 4, but 8 in layer 1, block 0"),
        ((Feed(streams=("a",), tied="x"), Feed(streams=("a",), tied="x", shared=True)),
         "layer 1, block 1: tied 'x': set shared on layer 1, block 0 too"),
        ((Feed(streams=("a",), tied="x", shared=True), Feed(streams=("c",), tied="x", shared=True)),
         "layer 1, block 1: tied 'x': its streams differ in width"),
        ((Attend(reads={"a": ("a",)}, heads=3),), "layer 1, block 0: inner 8 is not a multiple"),
        ((Attend(reads={"a": ("c",)}, shared=True),), "layer 1, block 0: streams of several"),
        ((Attend(reads={"a": ("z",)}),), "layer 1, block 0: no stream z; there are a, b, c"),
    ],
)  # fmt: skip
def test_errors_name_the_layer_and_the_block(blocks, message):
    with pytest.raises(ValueError, match=message):
        _plan(*blocks)


def test_a_view_names_streams_that_it_does_not_show():
    with pytest.raises(ValueError, match=r"shows .*, not image"):
        View(name="v", streams=("text",), reads={"text": ("image",)})
    with pytest.raises(ValueError, match="drop `reads`"):
        View(name="v", streams=BOTH, apart=True, reads={"text": ("text",)})
