"""Runs whose embedders and heads share parts: trained, written as YAML, resumed, copied slowly."""

import shutil
from dataclasses import replace

import pytest
import torch

from crossloom.data_pipelines.collate import Collator
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.objectives.presets import itc_queue, itm_hard, mrc
from crossloom.objectives.view import Hide
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training import checkpoint
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError, from_yaml, to_yaml
from crossloom.training.run import load_weights, make_model

SWAPPED = Hide(rate=0.3, show=0.1, swap=0.3)


@pytest.fixture(scope="module")
def recipe(world):
    """Words see the image, regions use the text's tables; two heads have one transform."""
    base = tiny_recipe(world)
    text = replace(base.modalities["text"], segments=3, positions=80, looks_at="image")
    image = replace(
        base.modalities["image"], box="waves", join="concat", activation="relu", gain=0.0,
        overall=True, word=True, segment=2,
        lent={"norm": "text", "segment": "text", "position": "text"},
    )  # fmt: skip
    regions = mrc(STREAMS, hide=SWAPPED)
    objectives = base.objectives | {
        "mrc": regions,
        "mrfr": replace(regions, target="feature", shares="mrc"),
        "itc": itc_queue(queue=21, momentum=0.8, dim=16),
    }
    captions = replace(base.mixture["captions"], objectives=("mlm", "mrc", "mrfr", "itm", "itc"))
    return replace(
        base,
        modalities={"text": text, "image": image},
        objectives=objectives,
        mixture=base.mixture | {"captions": captions},
        save_every=6,
        keep=9,
    )


def batch(recipe):
    recipe = recipe.located()
    source = Source("s", open_shards("train-*.tar", recipe.data), recipe.mixture["captions"].reader)
    streams = frozenset(STREAMS)
    found = [source.example(p, recipe.modalities, streams, 0) for p in source.places()[:5]]
    collator = Collator(recipe.modalities, recipe.objectives, 0)
    return collator.batch(found, recipe.mixture["captions"].objectives, 5).to("cpu")


def test_the_recipe_as_yaml_is_the_recipe(recipe, tmp_path):
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert from_yaml(tmp_path / "r.yaml") == recipe


def test_it_trains_and_resumes_exactly(recipe, tmp_path):
    train(recipe, tmp_path / "whole", start("cpu"))
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in checkpoint.checkpoints(tmp_path / "part" / "checkpoints"):
        if path.name != "step-000000006":
            shutil.rmtree(path)
    assert checkpoint.checkpoints(tmp_path / "part" / "checkpoints")
    train(recipe, tmp_path / "part", start("cpu"), resume=True)
    one, two = (load_weights(tmp_path / x)[0] for x in ("whole", "part"))
    assert all(torch.equal(one[n], two[n]) for n in one)
    fresh = make_model(recipe.located()).state_dict()
    assert fresh.keys() == one.keys()
    for name in (
        "embed.text.norm.weight",
        "embed.text.sight_norm.weight",
        "embed.image.word.weight",
    ):
        assert not torch.equal(one[name], fresh[name]), name


def test_every_parameter_has_a_gradient(recipe):
    model = make_model(recipe.located())
    losses = model(batch(recipe))
    sum(x["loss"] for x in losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_slow_copies_borrow_from_slow_copies(recipe):
    model = make_model(recipe.located())
    slow = model.slow.embed
    assert slow["image"]._lent["norm"] is slow["text"].norm
    assert slow["text"]._sight[0] is slow["image"]
    assert slow["text"].norm is not model.embed["text"].norm
    names = [n for n, _ in model.named_parameters()]
    assert len(names) == len(set(names))
    assert not [n for n in names if n.startswith("slow.embed.image.norm")]


def test_pairs_are_not_made_anew_where_words_see_the_image(recipe):
    mined = recipe.objectives | {"itm": replace(itm_hard(), pool="mean")}
    with pytest.raises(RecipeError, match=r"objectives.itm.mined: 'text' is embedded with what"):
        make_model(replace(recipe, objectives=mined).located())
