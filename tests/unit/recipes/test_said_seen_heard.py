"""VLP, XGPT, VideoBERT and SpeechBERT as their papers have them, beside plain tensor operations."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from crossloom.modalities.vocabularies import vocabulary
from crossloom.training.overview import parameters
from crossloom.training.recipe import load_recipe
from crossloom.training.run import make_model, make_stack


def set_up(name, world):
    """A small recipe, its model (no weight is zero), and its first micro-batches by component."""
    recipe = load_recipe(f"{name}-tiny")
    recipe = replace(recipe, data=str(world), examples=6, workers=0).located()
    torch.manual_seed(1)
    model = make_model(recipe).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    stack = make_stack(recipe)
    batches = {}
    for number in range(40):
        batches.setdefault(stack.mixture.at(number)[0], []).append(number)
    return recipe, model, stack, {c: stack.micro(n[0]).to("cpu") for c, n in batches.items()}


def norm(x, like):
    return F.layer_norm(x, x.shape[1:], like.weight, like.bias, like.eps)


def linear(x, like):
    return x @ like.weight.T + like.bias


def attend(x, memory, weights, heads, allowed):
    """Post-norm attention of ``[N, W]`` to ``[M, W]``, where ``allowed [N, M]`` says so."""
    query = linear(x, weights.query.shared).unflatten(1, (heads, -1)).transpose(0, 1)
    pairs = linear(memory, weights.keyvalue.shared).chunk(2, 1)
    key, value = (y.unflatten(1, (heads, -1)).transpose(0, 1) for y in pairs)
    score = query @ key.transpose(1, 2) / query.shape[2] ** 0.5
    read = (score.masked_fill(~allowed, -torch.inf).softmax(2) @ value).transpose(0, 1).flatten(1)
    return norm(x + linear(read, weights.output.shared), weights.norm.shared)


def feed(x, weights):
    inner = F.gelu(linear(x, weights.up.shared))
    return norm(x + linear(inner, weights.down.shared), weights.norm.shared)


def all_of(x):
    return torch.ones(len(x), len(x), dtype=torch.bool)


def past(x):
    return all_of(x).tril()


def embedded(model, view):
    """By example, each stream's units as embedded, and their flat numbers."""
    embedders = model._embedders(model.embed)
    states = {s: embedders[s](x) for s, x in view.streams.items()}
    for example in range(view.examples):
        yield (
            {
                s: torch.arange(int(x.start[example]), int(x.start[example] + x.length[example]))
                for s, x in view.streams.items()
            },
            states,
        )


def joined(model, view, mask=None):
    """Final states of a single stream: ``mask`` makes ``[N, N]`` of the streams' lengths."""
    heads, out = model.fusion.layers[0].blocks[0].heads, {}
    for places, states in embedded(model, view):
        x = torch.cat([states[s][index] for s, index in places.items()])
        allowed = all_of(x) if mask is None else mask({s: len(i) for s, i in places.items()})
        for layer in model.fusion.layers:
            x = feed(attend(x, x, layer.blocks[0], heads, allowed), layer.blocks[1])
        parts = x.split([len(i) for i in places.values()])
        for (stream, index), part in zip(places.items(), parts, strict=True):
            out.setdefault(stream, torch.zeros_like(states[stream]))[index] = part
    return out


def named(x, aim, head, lender, table):
    """Mean cross entropy of BERT's head at the slots that count."""
    first, _, last = lender.transform
    logits = norm(F.gelu(linear(x[aim.index], first)), last) @ table.T + head.bias
    each = F.cross_entropy(logits, aim.value, reduction="none")
    return (each * aim.weight).sum()


# --- VLP ------------------------------------------------------------------------------------------


def test_vlp_reads_as_the_paper_draws_it(world):
    _, model, stack, batches = set_up("vlp", world)
    share = Counter(stack.mixture.at(n)[0] for n in range(400))
    assert share["tell"] == pytest.approx(300, abs=30)

    def prefix(lengths):
        words, regions = lengths["text"], lengths["image"]
        mask = torch.zeros(words + regions, words + regions, dtype=torch.bool)
        mask[:, words:] = True  # regions are read by all
        mask[:words, :words] = torch.ones(words, words, dtype=torch.bool).tril()
        return mask

    table = model.embed["text"].token.weight
    for component, objective, mask in (("tell", "s2s", prefix), ("understand", "mlm", None)):
        batch = batches[component]
        view, aim = batch.views[objective], batch.aims[objective]
        states = joined(model, view, mask)
        for stream, found in model.encode(view).states.items():
            assert torch.allclose(states[stream], found, atol=2e-4), (component, stream)
        lender = model.heads["s2s"]  # one head for both
        expected = named(states["text"], aim, model.heads[objective], lender, table)
        assert torch.allclose(model(batch)[objective]["loss"], expected, rtol=1e-4)
        assert not view.streams["image"].hidden.any()


def test_vlp_hides_words_and_the_end_of_a_caption(world):
    recipe, _, stack, _ = set_up("vlp", world)
    end = recipe.modalities["text"].vocab.end
    ends, selected, words = 0, 0, 0
    for number in range(60):
        batch = stack.micro(number).to("cpu")
        for name in ("s2s", "mlm"):
            if batch.counts[name]:
                text = batch.views[name].streams["text"]
                ends += int((batch.aims[name].value == end).sum())
                selected += int(batch.counts[name])
                words += len(text.position) - text.length.numel()
    assert selected / words == pytest.approx(0.15, abs=0.025)  # <s> is no candidate
    assert 60 * 6 * 0.08 < ends < 60 * 6 * 0.25


# --- XGPT -----------------------------------------------------------------------------------------


def decoded(model, view, sources, target):
    """Final states of what is said: an encoder-decoder whose halves share their weights."""
    layers = model.fusion.layers
    half, heads, out = len(layers) // 2, layers[0].blocks[0].heads, {}
    for places, states in embedded(model, view):
        x = torch.cat([states[s][places[s]] for s in sources])
        for layer in layers[:half]:
            x = feed(attend(x, x, layer.blocks[0], heads, all_of(x)), layer.blocks[1])
        y = states[target][places[target]]
        for one, layer in zip(layers[:half], layers[half:], strict=True):
            y = attend(y, y, one.blocks[0], heads, past(y))
            whole = torch.ones(len(y), len(x), dtype=torch.bool)
            y = feed(attend(y, x, layer.blocks[1], heads, whole), one.blocks[1])
        out.setdefault(target, torch.zeros_like(states[target]))[places[target]] = y
    return out[target]


def test_xgpt_says_captions_and_regions(world):
    _, model, _, batches = set_up("xgpt", world)
    (batch,) = batches.values()
    found = model(batch)
    assert all(batch.counts.values())  # four tasks in each step
    table, image = model.embed["text"].token.weight, model.embed["image"]
    for name, sources in (
        ("ic", ["image"]),
        ("imlm", ["text", "image"]),
        ("ida", ["text", "image"]),
    ):
        view, head = batch.views[name], model.heads[name]
        states = decoded(model, view, sources, "target")
        expected = named(states, batch.aims[name], head, head, table)
        assert torch.allclose(found[name]["loss"], expected, rtol=1e-4), name
    view, aim, head = batch.views["tifg"], batch.aims["tifg"], model.heads["tifg"]
    first, _, last = head.transform
    states = decoded(model, view, ["text"], "regions")[aim.index]
    features = norm(F.gelu(linear(states, first)), last) @ image.feature.weight + head.bias
    assert torch.allclose(
        found["tifg"]["loss"], (features - aim.value).pow(2).mean(1).sum(), rtol=1e-4
    )
    # what is aimed at is the clean feature of the next region
    regions = view.streams["regions"]
    assert torch.equal(aim.value, regions.content["feature"][aim.index + 1])
    assert batch.counts["tifg"] == len(regions.position) - len(regions.length)


def test_xgpt_hides_half_a_caption_or_shrinks_runs(world):
    recipe, _, _, batches = set_up("xgpt", world)
    (batch,) = batches.values()
    vocab = recipe.modalities["text"].vocab
    clean = batch.views["ic"].streams["target"]
    # IMLM: a segment of half of the words is said, from the words before each
    said = batch.aims["imlm"]
    words = clean.length - 2
    assert batch.counts["imlm"] == sum(max(1, round(0.5 * int(n))) for n in words)
    assert len(said.index) == len(batch.views["imlm"].streams["target"].position)
    # IDA: the whole caption with its end is said, from fewer units
    shown = batch.views["ida"].streams["text"]
    assert len(shown.position) < len(clean.position)
    assert (shown.content["token"] == vocab.mask).any()
    assert batch.counts["ida"] == batch.counts["ic"] == int((clean.length - 1).sum())
    assert torch.equal(
        batch.views["ida"].streams["target"].content["token"], clean.content["token"]
    )


# --- VideoBERT ------------------------------------------------------------------------------------


def test_videobert_completes_words_and_codes_and_tells_pairs(world):
    _, model, _, batches = set_up("videobert", world)
    tables = {"text": model.embed["text"].token.weight, "video": model.embed["video"].code.weight}
    drawn = {
        "text": ["text"],
        "video": ["video"],
        "both": ["text-of-both", "video-of-both", "aligned"],
    }
    assert set(batches) == set(drawn)
    for component, objectives in drawn.items():
        batch = batches[component]
        found = model(batch)
        assert {o for o, n in batch.counts.items() if n} == set(objectives)
        view = batch.views[component]
        states = joined(model, view)
        for name in objectives[:2]:
            head, aim, stream = model.heads[name], batch.aims[name], name.split("-")[0]
            expected = named(states[stream], aim, head, model.heads["text"], tables[stream])
            assert torch.allclose(found[name]["loss"], expected, rtol=1e-4), name
            assert (view.streams[stream].position[aim.index[aim.weight > 0]] > 0).all()
    aim, head = batch.aims["aligned"], model.heads["aligned"]
    summary = states["text"][view.streams["text"].start]
    scores = linear(torch.tanh(linear(summary, head.pooler.dense["text"])), head.score)
    expected = F.cross_entropy(scores, aim.value, reduction="sum")
    assert torch.allclose(found["aligned"]["loss"], expected, rtol=1e-4)
    assert set(aim.value.tolist()) == {0, 1}
    # units of pairs that do not match are not asked for
    for stream in ("text", "video"):
        some = batch.aims[f"{stream}-of-both"]
        examples = view.streams[stream].example[some.index[some.weight > 0]]
        assert (aim.value[examples] == 1).all()


# --- SpeechBERT -----------------------------------------------------------------------------------


def test_speechbert_names_hidden_words_by_the_texts_table(world):
    recipe, model, _, batches = set_up("speechbert", world)
    batch, table = batches["spoken"], model.embed["text"].token.weight
    assert batch.counts["spoken"] < batch.counts["sound"]
    assert not batch.counts["mlm"]
    view, aim = batch.views["heard"], batch.aims["spoken"]
    states = joined(model, view)["speech"]
    found = model(batch)
    lender = model.heads["mlm"]
    expected = named(states, aim, model.heads["spoken"], lender, table)
    assert torch.allclose(found["spoken"]["loss"], expected, rtol=1e-4)
    assert not any("decoder" in n for n, _ in model.heads["spoken"].named_parameters())
    model.zero_grad()
    found["spoken"]["loss"].backward()
    assert float(table.grad.norm()) > 0
    # every slot of sound is a window of a hidden word; its first window is the one that is named
    sound = set(batch.aims["sound"].index.tolist())
    assert set(aim.index.tolist()) <= sound
    assert len(sound) > len(aim.index)
    pieces = vocabulary(recipe.modalities["text"].vocabulary, "own").pieces
    assert all(pieces[t].startswith("▁") for t in aim.value.tolist())


# --- sizes ----------------------------------------------------------------------------------------


def bert(vocabulary, width, layers):
    """BERT's embeddings and layers, without its pooler."""
    return (vocabulary + 512 + 2 + 2) * width + layers * (12 * width**2 + 13 * width)


def transform(width):
    return width**2 + 3 * width


def test_published_sizes():
    base, cased = bert(30_522, 768, 12), bert(28_996, 768, 12)
    attention = 4 * (768**2 + 768) + 2 * 768
    regions = 2048 * 2048 + 2048 + 2048 * 768 + 768 + (6 + 1601) * 768 + 768 + 2048
    plain = 2048 * 768 + 768 + 5 * 768 + 768 + 2 * 768 + 2048
    windows = 3 * 768 * 80 + 3 * 768**2 + 5 * 768
    codes = (20_736 + 2 + 65 + 2) * 1024
    expected = {
        "vlp": cased + regions + transform(768) + 2 * 28_996,
        "xgpt": base + 12 * attention + plain + 4 * transform(768) + 3 * 30_522 + 2048,
        "videobert": bert(30_522, 1024, 24) + codes + transform(1024) + 2 * (30_522 + 20_736)
        + 1024**2 + 1024 + 2 * 1024 + 2,
        "speechbert": base + windows + 2 * transform(768) + 2 * 30_522 + 320 * 768 + 320,
    }  # fmt: skip
    for name, count in expected.items():
        assert sum(parameters(load_recipe(name)).parts.values()) == count, name
