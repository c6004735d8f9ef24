"""Queues, slow encoders and contrast against them: by hand, by plain MoCo, over whole runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.batch import Encoded, Stream, ViewBatch
from crossloom.data_pipelines.collate import Collator
from crossloom.data_pipelines.loader import Shares, load
from crossloom.data_pipelines.read import Parallel
from crossloom.evaluation.features import features, read_examples
from crossloom.models.attention import Layout
from crossloom.models.presets import dual_encoder, single_stream
from crossloom.objectives.contrast import queue_contrast
from crossloom.objectives.presets import itc, itc_queue, xlco_queue
from crossloom.objectives.queue import Queue
from crossloom.objectives.view import View
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component
from crossloom.training.run import load_weights, make_model, make_stack
from crossloom.training.start import start as begin


def rows(n, dim, seed):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_known_loss_of_a_far_queue():
    # a key at cosine 1 against 9600 at cosine 0, temperature 0.07
    one = torch.eye(2)[:1]
    queue = torch.eye(2)[1:].expand(9600, 2)
    zeros = torch.zeros(9600, dtype=torch.int64)
    out = queue_contrast(
        one, one, queue, torch.tensor([1]), zeros, torch.ones(1), torch.tensor(1 / 0.07)
    )
    assert out["loss"].item() == pytest.approx(math.log1p(9600 * math.exp(-1 / 0.07)), rel=1e-4)
    assert out["correct"].item() == 1


def test_own_samples_are_left_out_and_pieces_add_up():
    asker, key, queue = rows(5, 4, 0), rows(5, 4, 1), rows(9, 4, 2)
    sample, samples = torch.arange(1, 6), torch.tensor([1, 1, 2, 9, 9, 0, 0, 4, 8])
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5])
    expected = 0.0
    for i in range(5):
        others = [j for j in range(9) if samples[j] != sample[i]]
        logits = torch.tensor([asker[i] @ key[i], *(asker[i] @ queue[j] for j in others)]) * 3
        expected += float(weight[i] * (logits.logsumexp(0) - logits[0]))
    found = []
    for at_once in (10**9, 18):
        a, scale = asker.clone().requires_grad_(), torch.tensor(3.0, requires_grad=True)
        out = queue_contrast(a, key, queue, sample, samples, weight, scale, at_once)
        out["loss"].backward()
        found.append((out["loss"].detach(), a.grad, scale.grad))
    assert found[0][0].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found[0], found[1])
    assert found[0][2].isfinite()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 11))
def test_a_queue_holds_the_latest_good_rows(seed, size):
    rng = np.random.default_rng(seed)
    queue = Queue(2, size, 3)
    start_ = queue.feature.clone()
    history = []
    for _ in range(int(rng.integers(1, 6))):
        n = int(rng.integers(1, size + 1))
        feature = torch.from_numpy(rng.normal(size=(2, n, 3))).float()
        sample = torch.from_numpy(rng.integers(1, 100, n))
        weight = torch.from_numpy((rng.random(n) < 0.6).astype(np.float32))
        queue.push(feature, sample, weight)
        history += [(feature[:, i], sample[i]) for i in range(n) if weight[i] > 0]
    assert queue.place.item() == len(history) % size
    assert queue.full().item() == (len(history) >= size)
    wanted, marks = start_.clone(), torch.zeros(size, dtype=torch.int64)
    for number, (feature, sample) in enumerate(history):
        wanted[:, number % size], marks[number % size] = feature, sample
    assert torch.equal(queue.feature, wanted)
    assert torch.equal(queue.sample, marks)


def test_a_queue_starts_on_the_sphere_and_must_hold_a_batch():
    queue = Queue(1, 3, 8)
    torch.testing.assert_close(queue.feature.norm(dim=2), torch.ones(1, 3))
    with pytest.raises(ValueError, match="make it longer"):
        queue.push(torch.zeros(1, 4, 8), torch.ones(4, dtype=torch.int64), torch.ones(4))


def queued(world, **changes):
    """Two towers over text and regions with slow copies and a queue, beside other objectives."""
    base = tiny_recipe(world, plan=dual_encoder(*STREAMS, layers=2, width=32, heads=2))
    spec = replace(itc_queue(queue=24, momentum=0.9, dim=16), **changes)
    names = ("mlm", "tlm")
    return replace(
        base,
        objectives={**{n: base.objectives[n] for n in names}, "itc": spec},
        mixture={
            "captions": replace(base.mixture["captions"], objectives=("mlm", "itc")),
            "translations": base.mixture["translations"],
        },
    ).located()


def batches(recipe, steps):
    stack = make_stack(recipe)
    return [b[0] for b in load(stack, Shares(recipe.micro), range(steps), workers=0, pin=False)]


@pytest.mark.parametrize("both", [True, False])
def test_a_run_is_plain_momentum_contrast(world, both):
    """Losses, slow weights and queue beside MoCo's algorithm written out, over some steps."""
    recipe = queued(world, both=both)
    model = make_model(recipe)
    engine = Engine(model, recipe, start("cpu"))
    head = model.heads["itc"]
    slow = {
        k: v.clone() for k, v in model.state_dict().items() if k.startswith(("embed", "fusion"))
    }
    project = {k: v.clone() for k, v in head.project.state_dict().items()}
    streams = STREAMS if both else STREAMS[1:]
    queue = {s: head.queue.feature[n].clone() for n, s in enumerate(streams)}
    owners = torch.zeros(24, dtype=torch.int64)
    place, drawn = 0, 0
    for number, batch in enumerate(batches(recipe, 8)):
        aim, view = batch.to("cpu").aims["itc"], batch.to("cpu").views["itc"]
        fast = {k: v.clone() for k, v in model.state_dict().items()}
        other = make_model(recipe)
        with torch.no_grad():
            other.load_state_dict({**fast, **slow})
            made = other.encode(view)
            key = {
                s: F.normalize(made.mean(s) @ project[f"{s}.weight"].T, dim=1)[aim.index]
                for s in streams
            }
            other.load_state_dict(fast)
            made = other.encode(view)
            ask = {s: other.heads["itc"].features(made, s)[aim.index] for s in STREAMS}
            losses = []
            for s in streams:
                query = ask[STREAMS[1 - STREAMS.index(s)]]
                for row, weight in enumerate(aim.weight.tolist()):
                    if weight:
                        barred = owners == aim.value[row]
                        far = (query[row] @ queue[s].T)[~barred]
                        logits = torch.cat([(query[row] @ key[s][row])[None], far]) / 0.07
                        losses.append(logits.logsumexp(0) - logits[0])
            expected = float(sum(losses)) / len(streams)
        drawn += int(aim.weight.sum())
        out = engine.step(number, [batch], batch.counts)
        assert out["itc"]["loss"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        for row, weight in enumerate(aim.weight.tolist()):
            if weight:
                for s in streams:
                    queue[s][place] = key[s][row]
                owners[place] = aim.value[row]
                place = (place + 1) % 24
        now = model.state_dict()
        slow = {k: 0.9 * v + 0.1 * now[k] for k, v in slow.items()}
        project = {k: 0.9 * v + 0.1 * head.project.state_dict()[k] for k, v in project.items()}
        for k, v in slow.items():
            torch.testing.assert_close(now[f"slow.{k}"], v, atol=1e-6, rtol=1e-5)
        for number_, s in enumerate(streams):
            torch.testing.assert_close(head.queue.feature[number_], queue[s], atol=1e-5, rtol=1e-4)
        assert torch.equal(head.queue.sample, owners)
    assert drawn > 24, "the queue should have gone round"


def test_measuring_leaves_queue_and_slow_copies_alone(world):
    recipe = queued(world)
    engine = Engine(make_model(recipe), recipe, start("cpu"))
    one, two = batches(recipe, 2)
    engine.step(0, [one], one.counts)
    before = {k: v.clone() for k, v in engine.model.state_dict().items()}
    with torch.no_grad():
        engine.evaluate([two])
    engine.model.settle()
    now = engine.model.state_dict()
    assert all(torch.equal(now[k], v) for k, v in before.items() if "queue" in k)


def test_slow_copies_have_no_gradient_and_are_not_optimised(world):
    recipe = queued(world)
    engine = Engine(make_model(recipe), replace(recipe, ema=0.9), start("cpu"))
    model = engine.model
    batch = batches(recipe, 1)[0]
    model(batch.to("cpu"))["itc"]["loss"].backward()
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert still == {n for n, _ in model.named_parameters() if ".slow." in f".{n}"}
    assert not any(p.grad is not None for n, p in model.named_parameters() if n in still)
    engine.step(0, [batch], batch.counts)
    kept = [name for name in engine.state() if not name.startswith("model/")]
    assert any(name.startswith("ema/") for name in kept)
    assert not any("slow." in name for name in kept)


def test_a_run_from_other_weights_starts_with_slow_copies_of_them(world, tmp_path):
    plain = replace(queued(world), objectives={**queued(world).objectives, "itc": itc(dim=16)})
    train(replace(plain, steps=2), tmp_path, start("cpu"))
    recipe = queued(world)
    model = make_model(recipe)
    weights, _ = load_weights(tmp_path)
    begin(model, replace(recipe, start=str(tmp_path)))
    state = model.state_dict()
    for name in weights:
        if name.startswith(("embed.", "fusion.")):
            assert torch.equal(state[f"slow.{name}"], weights[name])
    assert torch.equal(
        state["heads.itc.slow.1.text.weight"], weights["heads.itc.project.text.weight"]
    )


def test_nothing_is_lost_before_the_queue_is_full(world):
    recipe = queued(world, wait=True)
    engine = Engine(make_model(recipe), recipe, start("cpu"))
    queue, seen = engine.model.heads["itc"].queue, []
    for number, batch in enumerate(batches(recipe, 8)):
        full = bool(queue.full())
        loss = engine.step(number, [batch], batch.counts)["itc"]["loss"].item()
        assert (loss > 0) == (full and batch.counts["itc"] > 0)
        seen.append(full)
    assert seen[0] is False
    assert seen[-1] is True


def test_the_middle_layer_is_contrasted_and_no_further_one_is_run(world):
    recipe = queued(world, layer=1)
    model = make_model(recipe)
    assert len(model.slow.fusion.layers) == 1
    batch = next(b for b in batches(recipe, 8) if b.counts["itc"]).to("cpu")
    model(batch)["itc"]["loss"].backward()
    assert model.fusion.layers[0].blocks[0].query["text"].weight.grad is not None
    assert model.fusion.layers[1].blocks[0].query["text"].weight.grad is None
    # a model of that layer alone, without the last norm, sees the same
    head = model.heads["itc"]
    states = {n: model.embed[n](s) for n, s in batch.views["itc"].streams.items()}
    middle = {1: {}}
    model.fusion(states, batch.views["itc"], None, middle)
    by_hand = model.fusion.layers[0](states, Layout(batch.views["itc"]))
    torch.testing.assert_close(middle[1], by_hand)
    encoded = replace(model.encode(batch.views["itc"]), middle=middle)
    mean = replace(encoded, states=by_hand).mean("text")
    expected = F.normalize(head.project["text"](mean), dim=1)
    torch.testing.assert_close(head.features(encoded, "text"), expected)


def test_the_features_that_tasks_rank_by_are_of_the_layer_contrasted(world):
    recipe = queued(world, layer=1)
    model = make_model(recipe).eval()
    source = make_stack(recipe).parts["captions"].source
    examples = read_examples(recipe, source, ("text",), most=5)
    found = features(model, recipe, "itc", "text", examples)
    stream = Collator(recipe.modalities, recipe.objectives, 0).show(
        View(name="v", streams=("text",)), examples
    )
    stream = stream.to("cpu")
    states = model.fusion.layers[0]({"text": model.embed["text"](stream.streams["text"])},
                                    Layout(stream))  # fmt: skip
    mean = Encoded(stream, states, {}).mean("text")
    torch.testing.assert_close(found, F.normalize(model.heads["itc"].project["text"](mean), dim=1))


def test_features_at_their_own_length():
    spec = xlco_queue(queue=8, dim=4, layer=0)
    head = spec.head({}, {"text": 4, "second": 4})
    assert head.scale.exp().item() == pytest.approx(4)
    assert "scale" not in dict(head.named_parameters())
    assert head.queued == ("second",)
    stream = Stream.build({}, {}, np.arange(2), np.zeros(2, bool), np.array([1, 1]))
    view = ViewBatch(streams={"text": stream, "second": stream}).to("cpu")
    states = {s: torch.randn(2, 4) * 5 for s in ("text", "second")}
    found = head.features(Encoded(view, states, {}), "second")
    torch.testing.assert_close(found, states["second"] @ head.project["text"].weight.T)


def test_sentences_of_two_languages_share_slow_encoders(world, tmp_path):
    """InfoXLM's contrast: tied streams, a middle layer, masked inputs, one queue."""
    base = tiny_recipe(world)
    streams = (*STREAMS, "second")
    spec = replace(xlco_queue(queue=24, momentum=0.9, dim=16, layer=1), pool="mean")
    recipe = replace(
        base,
        modalities={**base.modalities, "second": replace(base.modalities["text"], field="second")},
        tied={"second": "text"},
        plan=single_stream(streams, layers=2, width=32, heads=2, dropout=0.0),
        objectives={"mlm": base.objectives["mlm"], "xlco": spec},
        mixture={
            "captions": replace(base.mixture["captions"], objectives=("mlm",)),
            "apart": Component(
                shards="train-*.tar", reader=Parallel(apart=True), objectives=("xlco",), weight=3
            ),
        },
        steps=40,
        log_every=20,
    )
    model = make_model(recipe.located())
    assert set(model.slow.embed) == {"text"}
    assert model.heads["xlco"].queue.feature.shape == (1, 24, 16)
    assert set(model.heads["xlco"].slow[1]) == {"text"}
    train(recipe, tmp_path, start("cpu"))
    lines = read_journal(tmp_path / "metrics.jsonl")
    assert all(math.isfinite(x["xlco/loss"]) for x in lines)
    weights, _ = load_weights(tmp_path)
    assert (weights["heads.xlco.queue.sample"] > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "sigmoid"}, "goes with softmax"),
        ({"queue": 0, "wait": True}, "for a queue"),
        ({"queue": 0, "both": False}, "for a queue"),
        ({"momentum": 1.5}, "momentum 1.5"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(itc_queue(), **changes)


def test_plans_that_cannot_be(world):
    with pytest.raises(ValueError, match=r"layer: 3 of a plan of 2 layers"):
        make_model(queued(world, layer=3))
    lone = queued(world, layer=1)
    captions = replace(lone.mixture["captions"], objectives=("itc",))
    lone = replace(lone, objectives={"itc": lone.objectives["itc"]}, mixture={"captions": captions})
    with pytest.raises(ValueError, match="no objective scores the last layer"):
        make_model(lone)
    two = queued(world)
    other = replace(two.objectives["itc"], momentum=0.5, view=View(name="b", streams=STREAMS))
    captions = replace(two.mixture["captions"], objectives=("mlm", "itc", "other"))
    with pytest.raises(ValueError, match="one momentum"):
        make_model(
            replace(
                two,
                objectives={**two.objectives, "other": other},
                mixture={**two.mixture, "captions": captions},
            )
        )


def test_it_learns(world, tmp_path):
    train(replace(queued(world), steps=60, log_every=20), tmp_path, start("cpu"))
    losses = [x["itc/loss"] for x in read_journal(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0]
