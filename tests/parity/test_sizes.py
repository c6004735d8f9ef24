"""Published sizes: every parameter of the libraries' default models, and no other."""

import json
from pathlib import Path

import pytest
import torch

from crossloom.interop import bert, clip, mbart, open_clip, siglip, vilt, xlm, xlm_r
from crossloom.plugins import find
from crossloom.training.overview import parameters
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


def test_of_those_that_go_on_from_xlm_r():
    """XLM-R's own parameters, and what its docstring says each system adds."""
    transformers = pytest.importorskip("transformers")
    config = transformers.XLMRobertaConfig(
        vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1
    )
    with torch.device("meta"):
        theirs = transformers.XLMRobertaForMaskedLM(config)
        size = sum(p.numel() for p in theirs.parameters())
        bias, matrix = 250_002, 768 * 768
        embedding = sum(p.numel() for p in theirs.roberta.embeddings.parameters())
        layer = sum(p.numel() for p in theirs.roberta.encoder.layer[0].parameters())
        added = {
            "infoxlm": bias + 2 * matrix + embedding + 8 * layer,
            "hictl": bias,
            "ernie-m": 4 * bias,
            "xlm-e": 4 * layer + matrix + 768 + 768 + 1 + bias,
        }
        for name, more in added.items():
            recipe = load_recipe(name)
            count = sum(p.numel() for p in make_model(recipe).parameters())
            assert count == size + more
            said = " ".join(find("recipe", name).__doc__.split())
            assert f"{count:,} parameters: XLM-R's {size:,}" in said


@pytest.mark.parametrize(
    ("name", "widths", "words"), [("electra", (768, 256), 768), ("electra-small", (256, 64), 128)]
)
def test_a_generator_and_a_discriminator_with_one_table_of_words(name, widths, words):
    transformers = pytest.importorskip("transformers")

    def count(model):
        return sum(p.numel() for p in model.parameters())

    with torch.device("meta"):
        told, made = (
            transformers.ElectraConfig(
                embedding_size=words, hidden_size=width, num_attention_heads=width // 64,
                intermediate_size=4 * width,
            )
            for width in widths
        )  # fmt: skip
        theirs = count(transformers.ElectraForPreTraining(told))
        theirs += count(transformers.ElectraForMaskedLM(made)) - 30_522 * words
        assert count(make_model(load_recipe(name))) == theirs


XLM = {"emb_dim": 1024, "n_heads": 8, "max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("recipe", "family", "name", "settings", "count"),
    [
        ("mbert", bert, "BertForPreTraining", {"vocab_size": 119_547}, 178_566_653),
        ("xlm-clm", xlm, "XLMWithLMHeadModel",
         {**XLM, "vocab_size": 64_139, "n_layers": 6, "n_langs": 2}, 141_848_203),
        ("alm", xlm, "XLMWithLMHeadModel",
         {**XLM, "vocab_size": 95_000, "n_layers": 12, "n_langs": 15}, 249_071_384),
        ("xlm", xlm, "XLMWithLMHeadModel",
         {**XLM, "vocab_size": 95_000, "n_layers": 12, "n_langs": 15}, 249_071_384),
        ("xlm-r", xlm_r, "XLMRobertaForMaskedLM",
         {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1},
         278_295_186),
        ("xlm-r-large", xlm_r, "XLMRobertaForMaskedLM",
         {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1,
          "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
          "intermediate_size": 4096}, 560_142_482),
    ],
)  # fmt: skip
def test_recipes_of_text_have_the_librarys_shapes(recipe, family, name, settings, count):
    """What a recipe's model is written as has every shape of the library's, and no other."""
    transformers = pytest.importorskip("transformers")
    ours = load_recipe(recipe)
    with torch.device("meta"):
        cls = getattr(transformers, name)
        theirs = cls(cls.config_class(**settings))
        model = make_model(ours)
        state = family.write(ours, model.state_dict())[1]
    assert sum(p.numel() for p in theirs.parameters()) == count
    shapes = {n: p.shape for n, p in theirs.state_dict().items()}
    assert {n: v.shape for n, v in state.items()} == {n: shapes[n] for n in state}
    assert sum(v.numel() for v in state.values()) == count
    # TLM's head has a bias of its own
    further = 95_000 if recipe == "xlm" else 0
    assert sum(p.numel() for p in model.parameters()) == count + further


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
        ("mass", 2 * _embedding(64_139, 2) + 6 * (_layer(1024) + _layer(1024, 2)) + 64_139),
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


@pytest.mark.parametrize(
    ("config", "names", "sizes"),
    [
        # xlm-roberta-base, and -large: as their config.json has them
        ("XLMRoberta", ("xuniter", "m3p", "uc2"), (250_002, 514, 1, 768, 12, 12, 3072)),
        ("XLMRoberta", ("multilingual-clip-distilled",), (250_002, 514, 1, 1024, 24, 16, 4096)),
        # bert-base-multilingual-cased
        ("Bert", ("muniter",), (119_547, 512, 2, 768, 12, 12, 3072)),
    ],
)
def test_encoders_that_systems_begin_from(config, names, sizes):
    """Table of words and layers are those of the library's model, which has a pooler beside."""
    transformers = pytest.importorskip("transformers")
    fields = (
        "vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size",
        "num_hidden_layers", "num_attention_heads", "intermediate_size",
    )  # fmt: skip
    made = getattr(transformers, f"{config}Config")(**dict(zip(fields, sizes, strict=True)))
    with torch.device("meta"):
        model = getattr(transformers, f"{config}Model")(made, add_pooling_layer=False)
    for name in names:
        counted = parameters(load_recipe(name)).parts
        ours = counted["embed.text"] + counted["layers"]
        assert ours == sum(p.numel() for p in model.parameters())
