"""Systems that read a text and say one: what their encoders see, what is frozen, what is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from crossloom.models.presets import encoder_decoder
from crossloom.training.environment import start as start_environment
from crossloom.training.loop import train
from crossloom.training.recipe import load_recipe
from crossloom.training.run import WEIGHTS, make_model, make_stack
from crossloom.training.start import start


def small(name, world, *more):
    return load_recipe(name, [f"data={world}", "workers=0", "examples=6", *more]).located()


def shown(recipe, objective, examples=40):
    """The first batch that trains an objective."""
    stack = make_stack(replace(recipe, examples=examples))
    return next(b for b in map(stack.micro, range(50)) if b.counts[objective])


def parted(stream, values):
    return np.split(values, stream.start[1:])


def test_mass_says_what_its_encoder_is_not_shown(world):
    recipe = small("mass-tiny", world)
    batch = shown(recipe, "mass")
    view, aim = batch.views["mass"], batch.aims["mass"]
    text, target = view.streams["text"], view.streams["target"]
    vocab = recipe.modalities["text"].vocab
    assert view.unseen == ("text",)
    assert view.causal == ("target",)
    assert set(text.content["language"].tolist()) <= {0, 1}
    sizes, ends = [], 0
    for place, (length, said) in enumerate(zip(text.length, target.length, strict=True)):
        # half of the units after <s>, of which </s> is one
        assert said == round((length - 1) / 2)
        sizes.append(int(said))
        mine = slice(target.start[place], target.start[place] + said)
        position = target.position[mine]
        assert position.tolist() == list(range(position[0], position[0] + said))
        ends += int(aim.value[mine][-1] == vocab.end)
    assert (aim.index == np.arange(sum(sizes))).all()
    assert ends > 0.2 * len(sizes)
    # each unit that is fed stands before the one asked for, both of them clean
    for place in range(len(sizes)):
        mine = slice(target.start[place], target.start[place] + sizes[place])
        assert (target.content["token"][mine][1:] == aim.value[mine][:-1]).all()


def test_mass_decoder_reads_nothing_of_what_was_hidden(world):
    """Over an encoder without layers, where hidden units lie changes nothing; others do."""
    recipe = small("mass-tiny", world)
    plan = encoder_decoder("text", "target", layers=0, decoder_layers=1, width=16, heads=2)
    model = make_model(replace(recipe, plan=plan)).eval()
    view = shown(recipe, "mass").views["mass"].to("cpu")
    text = view.streams["text"]

    def said(moved, **changes):
        elsewhere = replace(text, position=torch.where(moved, text.position + 1, text.position))
        changed = replace(view, streams={**view.streams, "text": elsewhere}, **changes)
        return model.encode(changed).states["target"]

    with torch.inference_mode():
        still = said(torch.zeros_like(text.hidden))
        assert torch.equal(said(text.hidden), still)
        assert (said(~text.hidden) - still).abs().max() > 1e-4
        everything = said(torch.zeros_like(text.hidden), unseen=())
        assert (said(text.hidden, unseen=()) - everything).abs().max() > 1e-4


def test_mbart_restores_documents_in_their_language(world):
    recipe = small("mbart-tiny", world)
    vocab = recipe.modalities["text"].vocab
    batch = shown(recipe, "denoise", examples=60)
    text, target = (batch.views["denoise"].streams[s] for s in ("text", "target"))
    clean, moved = 0, 0
    for read, said in zip(
        parted(text, text.content["token"]), parted(target, target.content["token"]), strict=True
    ):
        assert read[-1] == said[0]
        assert read[-1] in vocab.signs.values()
        clean += len(said) - 2
        left = [i for i in read[:-2] if i != vocab.mask]
        inside = said[1:-1].tolist()
        kept = [i for i in inside if i in left]
        moved += kept != left
    masks = int(text.hidden.sum())
    # 35 % of the words: runs of Poisson(3.5) words, a mask each
    assert 0.05 * clean < masks < 0.35 * clean
    assert moved > len(text.length) / 3
    languages = {int(i) for i in target.content["token"][target.start]}
    assert len(languages) == 10


@pytest.fixture(scope="module")
def encoder(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder")
    train(small("xnlg-encoder-tiny", world, "steps=2"), out, start_environment("cpu"))
    return out


def test_xnlgs_first_stage_tells_languages_and_begins_translations_anew(world):
    recipe = small("xnlg-encoder-tiny", world)
    text = shown(recipe, "xmlm").views["tlm"].streams["text"]
    names = recipe.modalities["text"].languages
    for position, language in zip(
        parted(text, text.position), parted(text, text.content["language"]), strict=True
    ):
        second = int(np.flatnonzero(position == 0)[1])
        codes = [{names[int(i)] for i in part} for part in np.split(language, [second])]
        assert sorted(map(len, codes)) == [1, 1]
        assert "en" in codes[0] | codes[1]
        assert codes[0] != codes[1]


def test_xnlgs_second_stage_starts_from_the_first_and_leaves_its_encoder_alone(
    world, encoder, tmp_path
):
    recipe = small("xnlg-tiny", world, f"start={encoder}", "steps=4", "log_every=1")
    source = load_file(encoder / WEIGHTS)
    model = make_model(recipe)
    begun = start(model, recipe)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # the decoder's own layers and embeddings start from the encoder's; what reads it is new
    for layer in range(2):
        theirs = f"fusion.layers.{layer}.blocks"
        for mine, stream, feed in (
            (f"fusion.layers.{layer}.blocks", "text", 1),
            (f"fusion.layers.{layer + 2}.blocks", "target", 2),
        ):
            for part in ("query", "keyvalue", "output"):
                name = f"{mine}.0.{part}.{stream}.weight"
                assert torch.equal(before[name], source[f"{theirs}.0.{part}.shared.weight"]), name
            name = f"{mine}.{feed}.up.{stream}.weight"
            assert torch.equal(before[name], source[f"{theirs}.1.up.shared.weight"]), name
    for stream in ("text", "target"):
        for part in ("token", "position", "language"):
            name = f"embed.{stream}.{part}.weight"
            assert torch.equal(before[name], source[f"embed.text.{part}.weight"])
    fresh = {n for n in begun.fresh if n.startswith("fusion.")}
    assert fresh == {n for n in before if n.startswith(("fusion.layers.2.blocks.1.",
                                                        "fusion.layers.3.blocks.1."))}  # fmt: skip
    train(recipe, tmp_path, start_environment("cpu"))
    after = load_file(tmp_path / WEIGHTS)
    frozen = ("embed.text.", "fusion.layers.0.", "fusion.layers.1.")
    for name, value in before.items():
        if not name.startswith("heads."):  # some are not drawn in so few steps
            still = after[name].numpy().tobytes() == value.numpy().tobytes()
            assert still == name.startswith(frozen), name


def test_xnlgs_noise_and_its_absence(world):
    recipe = small("xnlg-tiny", world)
    vocab = recipe.modalities["text"].vocab
    view = shown(recipe, "dae").views["dae"]
    text, target = view.streams["text"], view.streams["target"]
    assert text.hidden.any()
    assert text.length.sum() < target.length.sum()
    view = shown(recipe, "xae").views["xae"]
    text, target = view.streams["text"], view.streams["target"]
    assert not text.hidden.any()
    assert vocab.mask not in text.content["token"]
    first = [s.content["language"][s.start] for s in (text, target)]
    assert (first[0] != first[1]).all()


def test_xnlg_and_mass_draw_tasks_and_languages_as_their_code():
    first, second, mass = map(load_recipe, ("xnlg-encoder", "xnlg", "mass"))
    assert all(recipe.alike for recipe in (first, second, mass))
    weights = [{n: c.weight for n, c in r.mixture.items()} for r in (first, second, mass)]
    assert weights == [{"streams": 3, "pairs": 2}, {"texts": 3, "pairs": 4}, {"en": 1, "fr": 1}]
    for part in (first.mixture["streams"], second.mixture["texts"]):
        assert (part.languages, part.alpha) == (("en", "fr", "zh"), 0)
    assert (first.schedule.shape, first.optim.betas) == ("constant", (0.9, 0.999))
    assert second.steps == 7 * 23_000
    assert second.examples * second.micro == 64


def test_the_published_recipes_freeze_their_encoder_alone():
    recipe = load_recipe("xnlg")
    with torch.device("meta"):
        model = make_model(recipe)
    frozen = {n for n, _ in model.named_parameters() if recipe.optim.factor(n) == 0}
    layers = {int(n.split(".")[2]) for n in frozen if n.startswith("fusion.layers.")}
    assert layers == set(range(10))
    assert {n.split(".")[1] for n in frozen if n.startswith("embed.")} == {"text"}
    assert not any(".target." in n or n.startswith("heads.") for n in frozen)
    left = {n for n, _ in model.named_parameters()} - frozen
    assert {int(n.split(".")[2]) for n in left if n.startswith("fusion.layers.")} == set(
        range(10, 16)
    )
