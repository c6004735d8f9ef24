"""Decoding: what is kept equals what would be computed anew; search against plain searches."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.models import presets
from crossloom.models.generation import Said, Search, _beam, generate
from crossloom.models.model import CrossloomModel
from crossloom.models.plan import Attend, Feed, Grid, Layer, Plan
from crossloom.models.presets import encoder_decoder, single_stream
from crossloom.models.speaker import Speaker
from crossloom.objectives.generate import Generate
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.units import make_units

CLASSES, END = 6, 5
STREAMS = ("text", "image")


class Letters(Modality):
    """Ids with learned places; hidden ones show a mask."""

    def decode(self, sample, rng):
        raise NotImplementedError

    def blank(self):
        one = np.zeros(1, np.int64)
        return make_units({"token": one}, targets={"token": one})

    def longest(self):
        return 30

    def predictable(self):
        return {"token": Target(dim=CLASSES, form="index")}

    def embedder(self, width):
        return LettersEmbedder(width)


class LettersEmbedder(Embedder):
    def __init__(self, width):
        super().__init__()
        self.token = torch.nn.Embedding(CLASSES, width)
        self.mask = torch.nn.Parameter(torch.zeros(width))
        self.position = torch.nn.Embedding(30, width)

    def forward(self, stream):
        x = self.token(stream.content["token"])
        return torch.where(stream.hidden[:, None], self.mask, x) + self.position(stream.position)

    def tied(self, target):
        return self.token.weight


def both_ways() -> Plan:
    """An encoder of the image whose weights also decode the text, two streams wide."""
    layer = Layer(
        blocks=(
            Attend(reads={"image": ("image",), "text": ("text",)}, causal=("text",), shared=True),
            Attend(reads={"text": ("image",)}),
            Feed(streams=STREAMS, shared=True),
        )
    )
    return Plan(
        widths=dict.fromkeys(STREAMS, 16), layers=(layer,) * 2, heads=2, inner=16, hidden=32,
        norm="pre", dropout=0.3,
    )  # fmt: skip


def on_grids(kinds) -> Plan:
    """Layers of which each reads the text by another pattern, three units a row."""
    plan = single_stream(STREAMS, layers=len(kinds), width=16, heads=2, norm="pre", dropout=0)
    return presets.on_grids(plan, "text", [Grid(side=3, reads=k, kernel=3) for k in kinds])


def tied(plan: Plan) -> Plan:
    """The same with one set of weights for all layers."""
    layers = tuple(
        Layer(blocks=tuple(replace(b, tied=str(n)) for n, b in enumerate(layer.blocks)))
        for layer in plan.layers
    )
    return replace(plan, layers=layers)


PREFIX = {"causal": ("text",), "reads": {"image": ("image",)}}
PLANS = {
    "encoder-decoder": (
        encoder_decoder("image", "text", layers=2, width=16, heads=2, dropout=0.3), {}),
    "pre-norm": (
        encoder_decoder("image", "text", layers=2, width=16, heads=2, norm="pre", dropout=0), {}),
    "both ways": (both_ways(), {}),
    "grids": (on_grids(("row", "column", "convolution")), PREFIX),
    "sandwich": (
        single_stream(STREAMS, layers=2, width=16, heads=2, norm="sandwich", dropout=0), PREFIX),
    "tied": (tied(both_ways()), {}),
    "prefix": (single_stream(STREAMS, layers=2, width=16, heads=2, dropout=0.3), PREFIX),
}  # fmt: skip


def make(plan, ahead=False, seed=0):
    """A model with large random weights, so that what is said depends on all that is read."""
    spec, options = PLANS[plan]
    view = View(name="v", streams=STREAMS, **options)
    objective = Generate(view=view, stream="text", tied=False)
    if ahead:
        hidden = replace(view, hide={"text": Hide()})
        objective = Reconstruct(view=hidden, stream="text", target="token", tied=False)
    torch.manual_seed(seed)
    letters = dict.fromkeys(STREAMS, Letters(field="x"))
    model = CrossloomModel(letters, spec, {"say": objective})
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            norms = ("norm" in name or ".after." in name) and name.endswith("weight")
            level = float(norms)
            torch.nn.init.normal_(parameter, mean=level, std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.7)
    return model


def flat(rows, hidden=None):
    length = np.array([len(r) for r in rows])
    position = np.concatenate([np.arange(n) for n in length])
    token = np.concatenate([np.array(r, np.int64) for r in rows])
    hide = np.zeros(len(token), bool) if hidden is None else np.concatenate(hidden)
    return Stream.build({"token": token}, {}, position, hide, length)


def shown(model, images, texts, hidden=None):
    view = model.views["say"]
    batch = ViewBatch(
        streams={"text": flat(texts, hidden), "image": flat(images)},
        causal=view.causal,
        reads=view.reads,
    )
    return batch.to("cpu")


IMAGES = [[1, 2, 3], [4], [2, 2, 0, 1, 3]]


@torch.no_grad()
def anew(model, image, text, ahead):
    """Log probabilities of what follows ``text``, by one pass over all of it."""
    model.eval()
    row, hide = list(text), [False] * len(text)
    if ahead:
        row, hide = [*row, 0], [*hide, True]
    encoded = model.encode(shown(model, [image], [row], [np.array(hide)]))
    logits = model.heads["say"].logits(encoded, torch.tensor([len(row) - 1]))
    return logits.log_softmax(1)[0]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_units_said_one_by_one_read_what_a_whole_pass_reads(plan, ahead):
    """Ragged openings and images, rows that multiply, trade places and go on."""
    model = make(plan, ahead)
    texts = [[0], [0, 3, 1], [0, 2]]
    model.eval()
    with torch.inference_mode():
        speaker = Speaker(model, "say", shown(model, IMAGES, texts), room=6)
        found = speaker.begin()

    def check(rows):
        expected = torch.stack([anew(model, image, text, ahead) for image, text in rows])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    rows = list(zip(IMAGES, texts, strict=True))
    check(rows)
    with torch.inference_mode():
        found = speaker.spread(2, found)
    rows = [r for r in rows for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        unit = torch.randint(CLASSES, (6,), generator=generator)
        with torch.inference_mode():
            found = speaker.say(unit)
        rows = [(image, [*text, int(u)]) for (image, text), u in zip(rows, unit, strict=True)]
        check(rows)
        order = [1, 0, 2, 2, 5, 4]
        with torch.inference_mode():
            speaker.pick(torch.tensor(order))
        rows = [rows[n] for n in order]


@pytest.mark.parametrize("plan", ["encoder-decoder", "pre-norm", "prefix"])
@torch.inference_mode()
def test_hidden_units_that_are_unseen_stay_unread(plan):
    model = make(plan).eval()
    hidden = np.array([0, 1, 1, 0, 1, 0, 0, 1, 0], bool)

    def view(texts, **changes):
        whole = shown(model, IMAGES, texts)
        image = replace(whole.streams["image"], hidden=torch.tensor(hidden))
        return replace(whole, streams={**whole.streams, "image": image}, **changes)

    def anew(texts, **changes):
        encoded = model.encode(view(texts, **changes))
        last = encoded.view.streams["text"]
        logits = model.heads["say"].logits(encoded, last.start + last.length - 1)
        return logits.log_softmax(1)

    speaker = Speaker(model, "say", view([[0]] * 3, unseen=("image",)), room=3)
    torch.testing.assert_close(speaker.begin(), anew([[0]] * 3, unseen=("image",)))
    found = speaker.say(torch.tensor([1, 2, 3]))
    rows = [[0, 1], [0, 2], [0, 3]]
    expected = anew(rows, unseen=("image",))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (anew(rows) - expected).abs().max() > 0.01


def every_text(model, image, longest, penalty, ahead=False):
    """All continuations with their scores, best first, by whole passes."""
    found = []
    for length in range(1, longest + 1):
        for text in itertools.product(range(CLASSES), repeat=length):
            body, over = text[:-1], text[-1] == END
            if END in body or (length < longest and not over):
                continue
            total = 0.0
            for n in range(length):
                total += float(anew(model, image, [0, *text[:n]], ahead)[text[n]])
            found.append(Said(body if over else text, total / length**penalty))
    return sorted(found, key=lambda s: -s.score)


@pytest.mark.parametrize(("penalty", "seed"), [(1.0, 0), (0.0, 1), (0.6, 2), (-0.5, 3)])
def test_a_wide_beam_finds_the_best_of_all_texts(penalty, seed):
    """With as many beams as there are prefixes, nothing is lost: the n best of all texts."""
    model = make("prefix", seed=seed)
    search = Search(beams=30, longest=3, penalty=penalty, best=10, early=False)
    view = shown(model, IMAGES[:2], [[0], [0]])
    found = generate(model, "say", view, end=END, search=search)
    for image, texts in zip(IMAGES, found, strict=False):
        expected = every_text(model, image, 3, penalty)[:10]
        assert [s.units for s in texts] == [s.units for s in expected]
        np.testing.assert_allclose([s.score for s in texts], [s.score for s in expected], atol=1e-4)


class Told:
    """A speaker that knows two classes, with chances by place alone."""

    def __init__(self, chances):
        self.chances = iter(chances)

    def pick(self, rows):
        pass

    def say(self, unit):
        return torch.tensor(next(self.chances)).log().expand(len(unit), 2)


@pytest.mark.parametrize(("early", "longest"), [(True, 1), (False, 8)])
def test_a_search_that_is_not_early_waits_for_long_texts_that_may_win(early, longest):
    speaker = Told([(0.3, 0.7)] * 2 + [(0.999, 0.001)] * 6)
    search = Search(beams=2, longest=8, penalty=1.0, early=early)
    ((best,),) = _beam(speaker, speaker.say([0, 0]), 1, search, ())
    total = math.log(0.7) if early else 2 * math.log(0.3) + 6 * math.log(0.999)
    assert best.units == (0,) * (0 if early else 8)
    assert best.score == pytest.approx(total / longest, rel=1e-5)


def plain_beam(model, image, opening, search, never=(), ahead=False):
    """Beam search over one example, written down plainly."""
    live, done = [((), 0.0)], []
    for length in range(1, search.longest + 1):
        candidates = []
        for text, total in live:
            log = anew(model, image, [*opening, *text], ahead).tolist()
            for unit, value in enumerate(log):
                if unit in never or (unit == END and length <= search.shortest):
                    continue
                candidates.append(((*text, unit), total + value))
        candidates.sort(key=lambda c: -c[1])
        full = search.early and len(done) >= search.beams
        for text, total in candidates[: search.beams]:
            if text[-1] == END and not full:
                done.append(Said(text[:-1], total / length**search.penalty))
        done = sorted(done, key=lambda s: -s.score)[: search.beams]
        live = [c for c in candidates if c[0][-1] != END][: search.beams]
        if search.early and len(done) >= search.beams:
            break
    else:
        done += [Said(text, total / search.longest**search.penalty) for text, total in live]
    return sorted(done, key=lambda s: -s.score)[: search.best]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("plan", ["encoder-decoder", "prefix", "both ways"])
@pytest.mark.parametrize(
    "search",
    [
        Search(longest=6),
        Search(beams=3, best=3, longest=6),
        Search(beams=2, best=2, longest=7, penalty=0.0, shortest=2, early=False),
        Search(beams=4, best=2, longest=5, penalty=2.0, early=False),
    ],
)
def test_examples_together_are_searched_as_each_alone(plan, search, ahead):
    model = make(plan, ahead, seed=4)
    texts = [[0], [0, 3, 1], [0, 2]]
    found = generate(model, "say", shown(model, IMAGES, texts), end=END, search=search, never=(0,))
    for image, text, said in zip(IMAGES, texts, found, strict=True):
        expected = plain_beam(model, image, text, search, (0,), ahead)
        assert [s.units for s in said] == [s.units for s in expected]
        np.testing.assert_allclose([s.score for s in said], [s.score for s in expected], atol=1e-4)


@pytest.mark.parametrize(
    "forced", [[[3], [1], [4]], [[3, 1, 2, 0] * 2, [1, 1, 4, 3] * 2, [4, 0, 0, 2] * 2]]
)
def test_forced_units_are_read_but_not_returned(forced):
    model = make("encoder-decoder", seed=2)
    search = Search(beams=2, best=2, longest=4)
    found = generate(
        model, "say", shown(model, IMAGES, [[0]] * 3), end=END, search=search,
        forced=torch.tensor(forced).squeeze(1),
    )  # fmt: skip
    for image, first, said in zip(IMAGES, forced, found, strict=True):
        expected = plain_beam(model, image, [0, *first], search)
        assert [s.units for s in said] == [s.units for s in expected]
        np.testing.assert_allclose([s.score for s in said], [s.score for s in expected], atol=1e-4)


def test_the_end_is_left_out_and_ends():
    """A head that always prefers the end says nothing; barred for two units, it says two."""
    model = make("prefix")
    with torch.no_grad():
        model.heads["say"].bias[END] = 100
    view = shown(model, IMAGES, [[0]] * 3)
    assert [s[0].units for s in generate(model, "say", view, end=END)] == [(), (), ()]
    found = generate(model, "say", view, end=END, search=Search(shortest=2))
    assert [len(s[0].units) for s in found] == [2, 2, 2]


def test_one_search_leaves_nothing_behind_for_the_next():
    model = make("both ways")
    model.train()
    view = shown(model, IMAGES, [[0]] * 3)
    search = Search(beams=3, best=3, longest=6)
    assert generate(model, "say", view, end=END, search=search) == generate(
        model, "say", view, end=END, search=search
    )


def test_what_says_nothing_is_refused():
    model = make("prefix")
    view = shown(model, IMAGES, [[0]] * 3)
    with pytest.raises(ValueError, match="'match' predicts no classes"):
        generate(model, "match", view, end=END)
    ahead = View(name="v", streams=STREAMS, hide={"text": Hide()})
    bidirectional = CrossloomModel(
        dict.fromkeys(STREAMS, Letters(field="x")),
        PLANS["prefix"][0],
        {"say": Reconstruct(view=ahead, stream="text", target="token")},
    )
    with pytest.raises(ValueError, match="reads its later units"):
        generate(bidirectional, "say", view, end=END)
    with pytest.raises(ValueError, match="best in"):
        Search(beams=2, best=3)


def test_a_text_embedded_with_an_eye_on_the_image_is_refused():
    """What it looks at is not run again: its later words would be embedded blind."""
    model = make("prefix")
    model.embed["text"].looks_at = ("image",)
    with pytest.raises(ValueError, match="with an eye on image"):
        Speaker(model, "say", shown(model, IMAGES, [[0]] * 3), room=1)


def test_training_and_decoding_agree():
    """The loss of a text is the sum of the log probabilities with which it is said."""
    model = make("prefix").eval()
    texts = [[0, 2, 4, END], [0, 1, END]]
    view = shown(model, IMAGES[:2], texts)
    aim = AimBatch(
        index=torch.tensor([0, 1, 2, 4, 5]),
        value=torch.tensor([2, 4, END, 1, END]),
        weight=torch.ones(5),
    )
    encoded: Encoded = model.encode(view)
    loss = float(model.heads["say"](encoded, aim)["loss"].detach())
    expected = 0.0
    for image, text in zip(IMAGES, texts, strict=False):
        speaker = Speaker(model, "say", shown(model, [image], [text[:1]]), room=4)
        with torch.inference_mode():
            log = speaker.begin()
            for unit in text[1:]:
                expected -= float(log[0, unit])
                log = speaker.say(torch.tensor([unit]))
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ahead", [False, True])
def test_samples_score_what_the_model_gives_them(ahead):
    model = make("grids", ahead, seed=4)
    search = Search(temperature=2.0, best=6, longest=5, shortest=1, penalty=0.5)
    texts = [[0], [0, 3, 1], [0, 2]]
    view = shown(model, IMAGES, texts)
    found = generate(model, "say", view, end=END, search=search, never=(0,))
    lengths = set()
    for image, text, said in zip(IMAGES, texts, found, strict=True):
        assert [s.score for s in said] == sorted((s.score for s in said), reverse=True)
        assert len({s.units for s in said}) > 1
        for one in said:
            assert 1 <= len(one.units) <= 5
            assert not {0, END} & set(one.units)
            units = [*one.units, *([END] if len(one.units) < 5 else [])]
            lengths.add(len(units))
            total = sum(
                float(anew(model, image, [*text, *units[:n]], ahead)[unit])
                for n, unit in enumerate(units)
            )
            assert one.score == pytest.approx(total / len(units) ** 0.5, abs=1e-4)
    assert len(lengths) > 1
    others = generate(model, "say", view, end=END, search=replace(search, seed=1), never=(0,))
    assert [[s.units for s in x] for x in others] != [[s.units for s in x] for x in found]
