"""Published sizes: every parameter of the libraries' default models, and no other."""

import json
from pathlib import Path

import pytest
import torch

from crossloom.interop import clip, mbart, open_clip, siglip, vilt
from crossloom.training.recipe import load_recipe
from crossloom.training.run import make_model

pytestmark = pytest.mark.peers


@pytest.mark.parametrize(
    ("family", "name", "count"),
    [
        (clip, "CLIP", 151_277_313),  # ViT-B/32, as published
        (siglip, "Siglip", 203_155_970),  # B/16, 224
        (vilt, "Vilt", 111_595_008),
    ],
)
def test_of_transformers(family, name, count):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())
        weights = theirs.state_dict()
        config = json.loads(theirs.config.to_json_string(use_diff=False))
        recipe, ours = family.read(config, weights, Path("nowhere"))
        model = make_model(recipe)
    assert sum(p.numel() for p in theirs.parameters()) == count
    own = model.state_dict()
    extra = {n for n in own if n not in ours}
    # a mask that hides patches, and the matching head's last layer
    assert extra <= {"embed.image.mask", "heads.itm.score.weight", "heads.itm.score.bias"}
    assert sum(own[n].numel() for n in ours) == count
    # what an old and short configuration leaves out is the same
    short = {k: {} for k in ("text_config", "vision_config") if k in config}
    assert family.read(short, weights, Path("nowhere"))[0].plan == recipe.plan


def test_mbart():
    """The published configuration, and one bias over words that is trained here."""
    transformers = pytest.importorskip("transformers")
    recipe = load_recipe("mbart")
    with torch.device("meta"):
        config = transformers.MBartConfig(vocab_size=250_027, scale_embedding=True)
        theirs = transformers.MBartForConditionalGeneration(config)
        ours = make_model(recipe).state_dict()
    count = sum(p.numel() for p in theirs.parameters())
    assert count == 610_851_840
    assert sum(v.numel() for v in ours.values()) == count + 250_027
    # in every part: the recipe is the one that a published checkpoint is read into
    settings, written = mbart.write(recipe, ours)
    own = theirs.state_dict()
    assert {k: v.shape for k, v in written.items()} == {k: own[k].shape for k in written}
    assert settings["max_position_embeddings"] == 1024


def _layer(width, attentions=1):
    """One of XLM's layers: attentions, a feed-forward four times as wide, a norm after each."""
    linear = lambda n, m: n * m + m  # noqa: E731
    attention = 4 * linear(width, width) + 2 * width
    feed = linear(width, 4 * width) + linear(4 * width, width) + 2 * width
    return attentions * attention + feed


def _embedding(words, languages, width=1024):
    return (words + 512 + languages) * width + 2 * width


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # encoder and decoder of six, nothing shared; one bias over words for each objective
        ("mass", 2 * _embedding(60_000, 2) + 6 * (_layer(1024) + _layer(1024, 2)) + 60_000),
        ("xnlg-encoder", _embedding(95_000, 15) + 12 * _layer(1024) + 2 * 95_000),
        (
            "xnlg",
            2 * _embedding(95_000, 15) + 10 * _layer(1024) + 6 * _layer(1024, 2) + 2 * 95_000,
        ),
    ],
)
def test_of_xlms_kind(name, count):
    with torch.device("meta"):
        model = make_model(load_recipe(name))
    assert sum(p.numel() for p in model.parameters()) == count


def test_of_open_clip():
    import open_clip as library

    config = library.get_model_config("ViT-B-32-quickgelu")
    with torch.device("meta"):
        theirs = library.CLIP(**config)
        recipe, ours = open_clip.read({"model_cfg": config}, theirs.state_dict(), Path("nowhere"))
        own = make_model(recipe).state_dict()
    assert set(own) - set(ours) == {"embed.image.mask"}
    assert sum(own[n].numel() for n in ours) == 151_277_313
