"""Layers of plans beside those of other libraries, with the same weights on padded batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.batch import Stream, ViewBatch
from crossloom.models.fusion import Fusion
from crossloom.models.presets import cross_encoder, encoder_decoder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
WIDTH, HEADS = 32, 4


def view(lengths):
    streams = {}
    for name, length in lengths.items():
        n = sum(length)
        streams[name] = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), np.array(length))
    return ViewBatch(streams=streams).to("cpu")


def padded(x, lengths):
    """``[N, W]`` to ``[E, L, W]``, a bool mask of what is there, and an additive one."""
    parts = x.split(lengths)
    out = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    mask = torch.arange(out.shape[1]) < torch.tensor(lengths)[:, None]
    return out, mask, (~mask).float()[:, None, None] * -1e9


def linear(name, *modules):
    return {
        f"{name}.weight": torch.cat([m.weight for m in modules]),
        f"{name}.bias": torch.cat([m.bias for m in modules]),
    }


def attend(at, stream, query, key, value, output, norm, read=None):
    return {
        **linear(f"{at}.query.{stream}", query),
        **linear(f"{at}.keyvalue.{read or stream}", key, value),
        **linear(f"{at}.output.{stream}", output),
        **linear(f"{at}.norm.{stream}", norm),
    }


def feed(at, stream, up, down, norm):
    return {
        **linear(f"{at}.up.{stream}", up),
        **linear(f"{at}.down.{stream}", down),
        **linear(f"{at}.norm.{stream}", norm),
    }


def randomise(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def test_lxmert():
    config = transformers.LxmertConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=64, l_layers=2, r_layers=1,
        x_layers=2, vocab_size=8, attn_implementation="eager",
    )  # fmt: skip
    peer = randomise(transformers.LxmertModel(config)).encoder
    peer.visn_fc.forward = lambda features, places: features
    plan = cross_encoder(
        "text", "image", text_layers=2, image_layers=1, cross=2, width=WIDTH, heads=HEADS, dropout=0
    )
    fusion = Fusion(replace(plan, hidden=64)).eval()

    def self_attend(at, stream, module):
        one, out = module.self, module.output
        return attend(at, stream, one.query, one.key, one.value, out.dense, out.LayerNorm)

    weights = {}
    alone = [("text", x) for x in peer.layer] + [("image", x) for x in peer.r_layers]
    for number, (stream, layer) in enumerate(alone):
        at = f"layers.{number}.blocks"
        weights |= self_attend(f"{at}.0", stream, layer.attention)
        weights |= feed(f"{at}.1", stream, layer.intermediate.dense, layer.output.dense,
                        layer.output.LayerNorm)  # fmt: skip
    for number, layer in enumerate(peer.x_layers, len(alone)):
        at = f"layers.{number}.blocks"
        both, out = layer.visual_attention.att, layer.visual_attention.output
        weights |= attend(f"{at}.0", "shared", both.query, both.key, both.value, out.dense,
                          out.LayerNorm)  # fmt: skip
        weights |= self_attend(f"{at}.1", "text", layer.lang_self_att)
        weights |= self_attend(f"{at}.1", "image", layer.visn_self_att)
        for stream, up, down in (
            ("text", layer.lang_inter, layer.lang_output),
            ("image", layer.visn_inter, layer.visn_output),
        ):
            weights |= feed(f"{at}.2", stream, up.dense, down.dense, down.LayerNorm)
    fusion.load_state_dict(weights)

    lengths = {"text": [3, 5], "image": [4, 2]}
    states = {s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}
    ours = fusion(dict(states), view(lengths))
    (text, there, text_mask), (image, seen, image_mask) = (
        padded(states[s], lengths[s]) for s in ("text", "image")
    )
    (vision, _), (language, _), _ = peer(text, text_mask, image, None, image_mask)
    torch.testing.assert_close(ours["text"], language[-1][there], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours["image"], vision[-1][seen], atol=1e-5, rtol=1e-5)


def test_mbart_whose_decoder_reads_memory_behind_its_last_norm():
    config = transformers.MBartConfig(
        vocab_size=8, d_model=WIDTH, encoder_layers=2, decoder_layers=2, dropout=0.0,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=64,
        decoder_ffn_dim=64, attn_implementation="eager",
    )  # fmt: skip
    peer = randomise(transformers.MBartModel(config))
    plan = encoder_decoder(
        "source", "target", layers=2, width=WIDTH, heads=HEADS, hidden=64, norm="pre", dropout=0
    )
    fusion = Fusion(plan).eval()

    def mine(at, stream, module, norm, read=None):
        parts = (module.q_proj, module.k_proj, module.v_proj, module.out_proj, norm)
        return attend(at, stream, *parts, read=read)

    weights = {
        **linear("last.source", peer.encoder.layer_norm),
        **linear("last.target", peer.decoder.layer_norm),
    }
    for number, layer in enumerate(peer.encoder.layers):
        at = f"layers.{number}.blocks"
        weights |= mine(f"{at}.0", "source", layer.self_attn, layer.self_attn_layer_norm)
        weights |= feed(f"{at}.1", "source", layer.fc1, layer.fc2, layer.final_layer_norm)
    for number, layer in enumerate(peer.decoder.layers, 2):
        at = f"layers.{number}.blocks"
        weights |= mine(f"{at}.0", "target", layer.self_attn, layer.self_attn_layer_norm)
        weights |= mine(f"{at}.1", "target", layer.encoder_attn, layer.encoder_attn_layer_norm,
                        read="source")  # fmt: skip
        weights |= feed(f"{at}.2", "target", layer.fc1, layer.fc2, layer.final_layer_norm)
    fusion.load_state_dict(weights)

    lengths = {"source": [3, 5], "target": [4, 2]}
    states = {s: torch.randn(sum(n), WIDTH) for s, n in lengths.items()}
    ours = fusion(dict(states), view(lengths))
    source, there, source_mask = padded(states["source"], lengths["source"])
    target, told, target_mask = padded(states["target"], lengths["target"])
    for layer in peer.encoder.layers:
        source = layer(source, source_mask)
    source = peer.encoder.layer_norm(source)
    later = torch.full((4, 4), -1e9).triu(1)
    for layer in peer.decoder.layers:
        target = layer(target, target_mask + later, source, source_mask)
    target = peer.decoder.layer_norm(target)
    torch.testing.assert_close(ours["source"], source[there], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours["target"], target[told], atol=1e-5, rtol=1e-5)
