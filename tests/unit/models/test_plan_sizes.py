"""Published sizes: parameters of the layers beside the references', or counted from the papers."""

import pytest
import torch

from crossloom.models.fusion import Fusion
from crossloom.models.presets import (
    co_attention,
    cross_encoder,
    dual_encoder,
    encoder_decoder,
    single_stream,
)

transformers = pytest.importorskip("transformers")


def count(plan):
    with torch.device("meta"):
        return sum(p.numel() for p in Fusion(plan).parameters())


def size(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.fixture(autouse=True)
def _on_meta():
    with torch.device("meta"):
        yield


def test_bert_base_and_large():
    for layers, width, heads in ((12, 768, 12), (24, 1024, 16)):
        config = transformers.BertConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
            intermediate_size=4 * width,
        )  # fmt: skip
        expected = size(transformers.BertModel(config).encoder)
        plan = single_stream(("text", "image"), layers=layers, width=width, heads=heads)
        assert count(plan) == expected


def test_lxmert():
    encoder = transformers.LxmertModel(transformers.LxmertConfig()).encoder
    expected = size(encoder.layer, encoder.r_layers, encoder.x_layers)
    assert count(cross_encoder("text", "image")) == expected


def test_albert():
    config = transformers.AlbertConfig(
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12
    )
    expected = size(transformers.AlbertModel(config).encoder.albert_layer_groups)
    assert count(single_stream(("text",), tied=True)) == expected


def test_clip():
    config = transformers.CLIPTextConfig()
    model = transformers.CLIPTextModel(config)
    towers = size(*(m for n, m in model.named_modules() if n.endswith("encoder")))
    last = size(*(m for n, m in model.named_modules() if n.endswith("final_layer_norm")))
    plan = dual_encoder("text", "image", layers=12, width=512, heads=8)
    assert count(plan) == 2 * (towers + last)


def test_mbart():
    config = transformers.MBartConfig(
        vocab_size=8, d_model=64, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256,
    )  # fmt: skip
    model = transformers.MBartModel(config)
    halves = (model.encoder, model.decoder)
    expected = size(*(h.layers for h in halves), *(h.layer_norm for h in halves))
    plan = encoder_decoder(
        "source", "target", layers=3, decoder_layers=2, width=64, heads=4, norm="pre"
    )
    assert count(plan) == expected


def test_vilbert_counted_from_its_description():
    # vilbert_beta: config/bert_base_6layer_6conect.json
    def linear(inputs, outputs):
        return inputs * outputs + outputs

    def norm(width):
        return 2 * width

    def feed(width, hidden):
        return linear(width, hidden) + linear(hidden, width) + norm(width)

    text = 4 * linear(768, 768) + norm(768) + feed(768, 3072)
    vision = 4 * linear(1024, 1024) + norm(1024) + feed(1024, 1024)
    bridge = (
        3 * linear(768, 1024) + linear(1024, 768) + norm(768) + feed(768, 3072)
        + 4 * linear(1024, 1024) + norm(1024) + feed(1024, 1024)
    )  # fmt: skip
    plan = co_attention(
        "text", "image", first=6, pairs=6, image_width=1024, bridge=1024, bridge_heads=8,
        image_hidden=1024,
    )  # fmt: skip
    assert count(plan) == 12 * text + 6 * vision + 6 * bridge


def test_halves_that_share_their_weights():
    free = encoder_decoder(("image", "noised"), "text", layers=6)
    tied = encoder_decoder(("image", "noised"), "text", layers=6, tied=True)
    layer = count(single_stream(("text",), layers=1))
    assert count(free) - count(tied) == 6 * layer
    with pytest.raises(ValueError, match="one depth, not 6 and 3"):
        encoder_decoder("image", "text", layers=6, decoder_layers=3, tied=True)


def test_several_streams_said_with_one_set_of_weights():
    one = encoder_decoder(("image", "noised"), "text", layers=2, tied=True)
    two = encoder_decoder(("image", "noised"), ("text", "regions"), layers=2, tied=True)
    assert count(two) == count(one)
    own, crossed = (two.layers[2].blocks[n] for n in (0, 1))
    assert own.reads == {"text": ("text",), "regions": ("regions",)}
    assert own.causal == ("text", "regions")
    assert crossed.reads == dict.fromkeys(("text", "regions"), ("image", "noised"))
    free = encoder_decoder("image", ("text", "regions"), layers=2)
    assert count(free) == count(encoder_decoder("image", "text", layers=2))
