"""Single-stream systems: what is hidden, mismatched and scored when, and how large they are."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.data_pipelines.collate import exhibit
from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.mixture import Mixture
from crossloom.models.show import words
from crossloom.recipes.imagebert import WEB, imagebert, imagebert_tiny
from crossloom.recipes.unicoder_vl import unicoder_vl, unicoder_vl_tiny
from crossloom.recipes.uniter import uniter, uniter_large, uniter_tiny
from crossloom.recipes.vilt import vilt, vilt_tiny
from crossloom.recipes.visualbert import visualbert, visualbert_tiny
from crossloom.training.overview import parameters
from crossloom.training.recipe import from_dict, to_dict
from crossloom.training.run import make_model, make_stack

PUBLISHED = [uniter, uniter_large, visualbert, unicoder_vl, imagebert, vilt]


def stack_of(recipe, world, examples=16):
    recipe = replace(recipe, data=str(world), examples=examples)
    return make_stack(recipe.located())


def batches(recipe, world, count=12):
    stack = stack_of(recipe, world)
    return [(stack.places(n)[0], stack.micro(n)) for n in range(count)]


def hidden(batch, view, stream):
    return int(batch.views[view].streams[stream].hidden.sum())


# --- sizes ---------------------------------------------------------------------------------------


def bert(width, layers, ids, positions):
    """Parameters of BERT's table and layers, written out from Devlin et al. 2019."""
    table = (ids + positions + 2) * width + 2 * width
    attention = 4 * (width * width + width) + 2 * width
    feed = 2 * 4 * width * width + 5 * width + 2 * width
    return table, layers * (attention + feed)


def transform(width, out):
    """A dense layer, a norm, and the bias of a decoder whose matrix is another's."""
    return width * width + width + 2 * width + out


def pooler(width):
    return width * width + width + 2 * width + 2


@pytest.mark.parametrize(
    ("recipe", "width", "layers"), [(uniter, 768, 12), (uniter_large, 1024, 24)]
)
def test_uniter_counts_as_its_code_does(recipe, width, layers):
    counted = parameters(recipe()).parts
    table, stack = bert(width, layers, ids=28_996, positions=512)
    # model/model.py: img_linear, its norm, pos_linear, its norm, the sum's norm, the mask's vector
    # (the second row of mask_embedding; the first is always zero)
    image = 2048 * width + width + 7 * width + width + 3 * 2 * width + 2048
    assert counted["embed.text"] == table
    assert counted["embed.image"] == image
    assert counted["layers"] == stack
    assert counted["heads.mlm"] == transform(width, 28_996)
    assert counted["heads.mrfr"] == transform(width, 2048)
    assert counted["heads.mrckl"] == transform(width, 1601) + 1601 * width
    assert counted["heads.itm"] == pooler(width)
    assert set(counted) == {"embed.text", "embed.image", "layers"} | {
        f"heads.{h}" for h in ("mlm", "mrfr", "mrckl", "itm")
    }
    # the paper tells 86 M and 303 M
    assert round(counted["layers"] / 1e6) == {768: 85, 1024: 302}[width]


@pytest.mark.peers
def test_visualbert_counts_as_transformers_does():
    library = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = library.VisualBertConfig(visual_embedding_dim=2048)
        theirs = library.VisualBertForPreTraining(config)
    assert sum(parameters(visualbert()).parts.values()) == sum(
        p.numel() for p in theirs.parameters()
    )


@pytest.mark.peers
def test_vilt_counts_as_transformers_does():
    library = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = library.ViltModel(library.ViltConfig())
    parts = parameters(vilt()).parts
    mask, scores = 768, 2 * 768 + 2
    own = sum(parts.values()) - parts["heads.mlm"] - mask - scores
    assert own == sum(p.numel() for p in model.parameters())
    # the paper counts layers and patches alone: 87.4 M
    patches = 3 * 32**2 * 768 + 768
    assert round((parts["layers"] + patches) / 1e6, 1) == 87.4


def test_unicoder_vl_and_imagebert_are_bert_and_regions():
    table, stack = bert(768, 12, ids=30_522, positions=512)
    regions = 2048 * 768 + 768 + 5 * 768 + 768
    shared = table + stack + transform(768, 30_522) + transform(768, 1601) + 1601 * 768
    shared += pooler(768)
    # [IMG] and its hidden form; one row of positions, and a head for features
    expected = {
        unicoder_vl: shared + regions + 2 * 768,
        imagebert: shared + regions + 768 + transform(768, 2048) + 2048 * 768,
    }
    for recipe, count in expected.items():
        assert sum(parameters(recipe()).parts.values()) == count


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_recipes_are_one_stream_and_survive_yaml(recipe):
    made = recipe()
    assert words(made.plan).startswith("single stream")
    assert from_dict(to_dict(made)) == made
    assert all(len(s) == 2 for s in ([*o.view.streams] for o in made.objectives.values()))


@pytest.mark.parametrize(
    ("published", "small"),
    [
        (uniter, uniter_tiny),
        (visualbert, visualbert_tiny),
        (unicoder_vl, unicoder_vl_tiny),
        (imagebert, imagebert_tiny),
        (vilt, vilt_tiny),
    ],
)
def test_small_ones_keep_what_makes_the_system(published, small):
    def at_least_one(objective):
        hide = {s: replace(h, at_least=1) for s, h in objective.view.hide.items()}
        return replace(objective, view=replace(objective.view, hide=hide))

    one, other = published(), small()
    assert other.objectives == {n: at_least_one(o) for n, o in one.objectives.items()}
    assert list(other.modalities) == list(one.modalities)
    assert other.plan.norm == one.plan.norm
    assert other.plan.last == one.plan.last
    drawn = {c.objectives for c in one.mixture.values()}
    assert {c.objectives for c in other.mixture.values()} == drawn
    assert bool(one.phases) == bool(other.phases)


# --- UNITER --------------------------------------------------------------------------------------


def test_uniter_draws_tasks_and_sources_as_configured():
    recipe = uniter()
    mixture = Mixture({n: c.weight for n, c in recipe.mixture.items()}, seed=0, cycle=110)
    quota = dict(zip(mixture.names, mixture.quota.tolist(), strict=True))
    per_source = {"coco": 22, "visual-genome": 33, "conceptual-captions": 33, "sbu": 22}
    for source, whole in per_source.items():
        mine = [quota[f"{source}-{t}"] for t in ("itm", "mlm", "mrfr", "mrckl")]
        assert sum(mine) == whole
        assert [m * 11 / whole for m in mine] == [3, 4, 2, 2]
    # one task in a step, whatever the number of micro-batches
    assert recipe.alike
    assert recipe.micro == 48


def test_uniter_never_hides_both_and_hides_nothing_where_pairs_may_not_match(world):
    seen = set()
    for name, batch in batches(uniter_tiny(), world, count=24):
        task = name.removeprefix("world-")
        seen.add(task)
        drawn = {o for o, k in batch.counts.items() if k}
        assert drawn == ({"itm", "wra"} if task == "itm" else {task})
        text = {v: hidden(batch, v, "text") for v in batch.views}
        image = {v: hidden(batch, v, "image") for v in batch.views}
        assert (sum(text.values()) > 0) == (task == "mlm")
        assert (sum(image.values()) > 0) == (task in ("mrfr", "mrckl"))
        if task in ("mrfr", "mrckl"):
            # all that are selected are hidden, one at least in each example
            stream = batch.views["mrm"].streams["image"]
            assert hidden(batch, "mrm", "image") == len(batch.aims[task].index)
            assert set(stream.example[stream.hidden].tolist()) == set(range(16))
        if task == "itm":
            matched = np.asarray(batch.aims["itm"].value)
            assert 0 < matched.sum() < 16
            assert (np.asarray(batch.aims["wra"].value) == 2.0 * matched - 1).all()
    assert seen == {"itm", "mlm", "mrfr", "mrckl"}


def test_uniters_losses_are_those_of_the_paper(world):
    """Formulas of section 3.2, written out one example and unit after the other."""
    torch.manual_seed(0)
    recipe = replace(uniter_tiny(), data=str(world)).located()
    model = make_model(recipe).eval()
    stack = stack_of(uniter_tiny(), world, examples=8)
    done = set()
    for number in range(40):
        name = stack.places(number)[0].removeprefix("world-")
        if name in done:
            continue
        done.add(name)
        batch = stack.micro(number).to("cpu")
        with torch.no_grad():
            sums = model(batch)
            for objective in (o for o, k in batch.counts.items() if k):
                got = float(sums[objective]["loss"]) / batch.counts[objective]
                assert got == pytest.approx(paper(objective, model, batch), rel=1e-4, abs=1e-5)
    assert len(done) == 4


def paper(objective, model, batch):
    aim = batch.aims[objective]
    view = {"mlm": "mlm", "mrfr": "mrm", "mrckl": "mrm", "itm": "itm", "wra": "itm"}[objective]
    encoded = model.encode(batch.views[view])
    head = model.heads[objective]
    state = encoded.states
    streams = batch.views[view].streams

    def rows(stream, example):
        first = int(streams[stream].start[example])
        return state[stream][first : first + int(streams[stream].length[example])]

    total = 0.0
    if objective in ("mlm", "mrfr", "mrckl"):
        stream = "text" if objective == "mlm" else "image"
        matrix = {
            "mlm": lambda: model.embed["text"].token.weight,
            "mrfr": lambda: model.embed["image"].feature.weight.T,
            "mrckl": lambda: head.decoder,
        }[objective]()
        dense, norm = head.transform[0], head.transform[2]
        for place, value in zip(aim.index.tolist(), aim.value, strict=True):
            x = F.gelu(dense.weight @ state[stream][place] + dense.bias)
            x = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
            out = matrix @ (x * norm.weight + norm.bias) + head.bias
            if objective == "mrfr":
                total += float(((out - value) ** 2).sum() / len(out))
            elif objective == "mlm":
                total += float(out.exp().sum().log() - out[int(value)])
            else:
                log = out - out.exp().sum().log()
                pairs = zip(value, log, strict=True)
                total += sum(float(p * (p.log() - q)) for p, q in pairs if p > 0)
        return total / len(aim.index)
    for example, value in enumerate(aim.value.tolist()):
        words_, regions = rows("text", example), rows("image", example)
        if objective == "itm":
            dense = head.pooler.dense["text"]
            pooled = torch.tanh(dense.weight @ words_[0] + dense.bias)
            out = head.score.weight @ pooled + head.score.bias
            total += float(out.exp().sum().log() - out[int(value)])
        else:
            total += value * transport(words_, regions)
    return total / len(aim.value)


def transport(words_, regions, beta=0.5, rounds=50):
    """Distance under the plan of IPOT (Xie et al. 2020, algorithm 1), on one example."""
    cost = torch.tensor(
        [[1 - float(F.cosine_similarity(w, r, dim=0)) for r in regions] for w in words_]
    )
    n, m = cost.shape
    kernel, plan, sigma = (-cost / beta).exp(), torch.ones(n, m), torch.full((m,), 1 / m)
    for _ in range(rounds):
        q = kernel * plan
        delta = 1 / (n * (q @ sigma))
        sigma = 1 / (m * (q.T @ delta))
        plan = delta[:, None] * q * sigma[None]
    return float((plan * cost).sum())


# --- VisualBERT ----------------------------------------------------------------------------------


def test_visualbert_pairs_captions_and_scores_words_of_false_ones_too(world):
    matched, spoilt = [], 0
    for _, batch in batches(visualbert_tiny(), world):
        assert list(batch.views) == ["captions"]
        assert hidden(batch, "captions", "image") == 0
        assert hidden(batch, "captions", "text") > 0
        text = batch.views["captions"].streams["text"]
        label = np.asarray(batch.aims["captions"].value)
        matched += label.tolist()
        scored = text.example[np.asarray(batch.aims["mlm"].index)]
        spoilt += int((label[scored] == 0).sum())
        # two captions in every example
        segment = text.content["segment"]
        assert all(set(segment[text.example == e]) == {0, 1} for e in range(16))
    assert 0.35 < np.mean(matched) < 0.65
    assert spoilt > 0


def test_visualberts_second_caption_is_another_one(world):
    reader = visualbert_tiny().mixture["captions"].reader
    content = {"texts": {"en": ["one", "two", "three"]}}
    members = {"json": json.dumps(content).encode()}
    for seed in range(40):
        sample, _ = reader.read(members, 0, np.random.default_rng(seed))
        first, second = sample["text"]
        assert first.text != second.text
    alone = {"json": json.dumps({"texts": {"en": ["one"]}}).encode()}
    sample, _ = reader.read(alone, 0, np.random.default_rng(0))
    assert [p.text for p in sample["text"]] == ["one", "one"]


# --- Unicoder-VL, ImageBERT ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "masked", "match"),
    [
        (unicoder_vl_tiny, ("mlm", "moc"), "vlm"),
        (imagebert_tiny, ("mlm", "moc", "mrfr"), "itm"),
    ],
)
def test_one_pass_hides_both_and_scores_what_matches(recipe, masked, match, world):
    taken = {"text": 0, "image": 0}
    for _, batch in batches(recipe(), world):
        (view,) = batch.views
        streams = batch.views[view].streams
        assert hidden(batch, view, "text") > 0
        assert hidden(batch, view, "image") > 0
        label = np.asarray(batch.aims[match].value)
        for objective in masked:
            stream = "text" if objective == "mlm" else "image"
            weighed = np.asarray(batch.aims[objective].weight) > 0
            scored = np.asarray(batch.aims[objective].index)[weighed]
            assert (label[np.asarray(streams[stream].example)[scored]] == 1).all()
    recipe = replace(recipe(), data=str(world)).located()
    stack = stack_of(recipe, world)
    found = [e for n in range(3) for e in examples_of(stack, n)]
    view = recipe.objectives[match].view
    shown = [exhibit(e, view, recipe.modalities, 0, found).shown for e in found]
    for one in shown:
        if one.taken:
            taken[one.taken] += 1
    assert min(taken.values()) > 0
    assert 0.3 < sum(taken.values()) / len(shown) < 0.7


def examples_of(stack, number):
    name, places = stack.places(number)
    streams = frozenset(stack.collator.modalities)
    good, bad = decode(stack.parts[name].source, places, stack.collator, streams)
    assert not bad
    return good


def test_nine_hidden_regions_in_ten_show_zeros():
    for recipe in (unicoder_vl(), imagebert()):
        hide = recipe.objectives["moc"].view.hide["image"]
        assert (hide.rate, hide.show, hide.swap, hide.by) == (0.15, 0.1, 0.0, "unit")
        assert recipe.modalities["image"].mask == "zero"


def test_imageberts_stages_are_web_then_captions():
    recipe = imagebert()
    mixture = Mixture(
        {n: c.weight for n, c in recipe.mixture.items()},
        seed=0,
        changes=[(p.step * recipe.micro, p.weights) for p in recipe.phases],
    )
    edge = WEB * recipe.micro
    assert {mixture.at(n)[0] for n in (0, 1, edge // 2, edge - 1)} == {"web"}
    assert {mixture.at(n)[0] for n in (edge, edge + 1, recipe.steps * recipe.micro - 1)} == {
        "captions"
    }
    assert math.isclose(WEB / (recipe.steps - WEB), 10 / 3.8, rel_tol=0.01)


# --- ViLT ----------------------------------------------------------------------------------------


def test_vilt_makes_two_passes_and_hides_whole_words(world):
    groups = hits = 0
    for _, batch in batches(vilt_tiny(), world, count=4):
        assert set(batch.views) == {"mlm-words", "itm"}
        assert hidden(batch, "mlm-words", "text") > 0
        assert all(hidden(batch, v, "image") == 0 for v in batch.views)
        assert hidden(batch, "itm", "text") == 0
        assert all(batch.counts[o] > 0 for o in ("mlm", "itm", "wpa"))
    recipe = replace(vilt_tiny(), data=str(world)).located()
    view = recipe.objectives["mlm"].view
    for example in examples_of(stack_of(recipe, world), 0):
        shown = exhibit(example, view, recipe.modalities, 0, ()).shown
        assert shown.matched
        group, fate = shown.units["text"].group, shown.fate["text"]
        for one in np.unique(group):
            assert len(set(fate[group == one].tolist())) == 1
            groups += (group == one).sum() > 1
            hits += (group == one).sum() > 1 and fate[group == one][0] != 0
    assert groups > 0
    assert hits > 0


def test_vilts_alignment_leaves_out_ends_and_the_summary(world):
    recipe = replace(vilt_tiny(), data=str(world)).located()
    torch.manual_seed(0)
    model = make_model(recipe).eval()
    batch = stack_of(vilt_tiny(), world, examples=4).micro(0).to("cpu")
    with torch.no_grad():
        encoded = model.encode(batch.views["itm"])
        got = model.heads["wpa"].distances(encoded)
    for example in range(4):
        parts = []
        for stream in ("text", "image"):
            flat = batch.views["itm"].streams[stream]
            first = int(flat.start[example])
            parts.append(encoded.states[stream][first : first + int(flat.length[example])])
        expected = transport(parts[0][1:-1], parts[1][1:])
        assert float(got[example]) == pytest.approx(expected, rel=1e-4)
