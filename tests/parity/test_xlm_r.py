"""XLM-R of ``transformers``: states, losses, gradients, and back again."""

import json
from dataclasses import replace

import bert_family as family
import numpy as np
import pytest
import torch

from crossloom.interop import bert, xlm_r

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
LENGTHS = family.TEXTS
SMALL = {**family.SMALL, "max_position_embeddings": 18, "num_hidden_layers": 2}


def small(cls="XLMRobertaForMaskedLM", **settings):
    config = transformers.XLMRobertaConfig(**{**SMALL, "type_vocab_size": 1, **settings})
    return family.reference(getattr(transformers, cls), config)


@pytest.mark.parametrize("segments", [1, 2])
def test_states_loss_and_gradients_agree(tmp_path, segments):
    reference = small(type_vocab_size=segments, layer_norm_eps=1e-5)
    *_, recipe, model = family.imported(xlm_r, reference, tmp_path)
    content = family.words(LENGTHS, segments=segments)
    given = {
        # positions are not given: the library counts what is not <pad> (1), from 2
        "input_ids": family.padded(content["token"], LENGTHS, 1),
        "attention_mask": family.mask(LENGTHS),
        "token_type_ids": family.padded(content["segment"], LENGTHS),
    }
    index, value = np.array([1, 3, 7, 8, 15]), np.array([9, 4, 30, 31, 5])
    label = np.full(sum(LENGTHS), -100)
    label[index] = value
    labels = family.padded(label, LENGTHS, -100)
    out = reference(**given, labels=labels, output_hidden_states=True)
    encoded = model.encode(family.view(text=family.flat(content, LENGTHS)))
    states = family.unpadded(out.hidden_states[-1], LENGTHS)
    family.check_close(encoded.states["text"], states, 1e-5)
    loss = model.heads["mmlm"](encoded, family.aim(index, value))["loss"] / len(index)
    family.check_close(loss, out.loss, 1e-5)
    loss.backward()
    out.loss.backward()
    family.check_gradients(xlm_r, recipe, model, reference)


@pytest.mark.parametrize("segments", [1, 2])
def test_the_round_trip_is_exact(tmp_path, segments):
    parts = family.imported(xlm_r, small(type_vocab_size=segments), tmp_path / "in")
    family.check_written(xlm_r, transformers.XLMRobertaForMaskedLM, *parts, tmp_path / "out")


def test_a_bare_model_comes_without_its_pooler(tmp_path):
    _, weights, recipe, model = family.imported(xlm_r, small("XLMRobertaModel"), tmp_path)
    written, state = xlm_r.write(recipe, model.state_dict())
    assert written["architectures"] == ["XLMRobertaModel"]
    assert set(weights) - set(state) == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"pad_token_id": 0}, "pad_token_id: 0"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "relu"}, "hidden_act: relu"),
    ],
)
def test_what_has_no_counterpart_is_said(tmp_path, setting, words):
    reference = small()
    with pytest.raises(ValueError, match=words):
        xlm_r.read(reference.config.to_dict() | setting, reference.state_dict(), tmp_path)


def test_it_is_told_from_bert(tmp_path):
    """A recipe is one family's: what XLM-R is has no place in BERT's files, and the reverse."""
    *_, recipe, model = family.imported(xlm_r, small(), tmp_path / "xlm-r")
    with pytest.raises(ValueError, match="embedded otherwise"):
        bert.write(recipe, model.state_dict())
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(**family.SMALL, num_hidden_layers=1)
    )
    *_, recipe, model = family.imported(bert, theirs, tmp_path / "bert")
    with pytest.raises(ValueError, match="start at row 2"):
        xlm_r.write(recipe, model.state_dict())


def test_base_has_its_published_size():
    from pathlib import Path

    from crossloom.training.run import make_model

    published = {
        "vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**published))
        config = json.loads(theirs.config.to_json_string(use_diff=False))
        recipe, ours = xlm_r.read(config, theirs.state_dict(), Path("nowhere"))
        own = make_model(recipe).state_dict()
    assert own.keys() == ours.keys()
    assert sum(v.numel() for v in own.values()) == sum(p.numel() for p in theirs.parameters())
    assert sum(v.numel() for v in own.values()) == 278_295_186
    text = recipe.modalities["text"]
    assert (text.limit, text.offset, text._mask()) == (512, 2, 250_001)
    assert replace(text, positions=514).embedder(8).position.weight.shape[0] == 514
