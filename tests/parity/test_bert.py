"""BERT of ``transformers``: states, losses, gradients, and back again."""

import json

import bert_family as family
import numpy as np
import pytest
import torch

from crossloom.interop import bert

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
LENGTHS = family.TEXTS


def inputs():
    content = family.words(LENGTHS)
    return family.view(text=family.flat(content, LENGTHS)), {
        "input_ids": family.padded(content["token"], LENGTHS),
        "token_type_ids": family.padded(content["segment"], LENGTHS),
        "attention_mask": family.mask(LENGTHS),
    }


def test_states_losses_and_gradients_agree(tmp_path):
    config = transformers.BertConfig(**family.SMALL, num_hidden_layers=3)
    reference = family.reference(transformers.BertForPreTraining, config)
    *_, recipe, model = family.imported(bert, reference, tmp_path)
    view, given = inputs()
    index, value = np.array([1, 3, 7, 8, 15]), np.array([9, 4, 30, 31, 5])
    label = np.full(sum(LENGTHS), -100)
    label[index] = value
    follows = torch.tensor([1, 0, 1])  # there: 0 = the second passage follows
    out = reference(
        **given, labels=family.padded(label, LENGTHS, -100), next_sentence_label=follows,
        output_hidden_states=True,
    )  # fmt: skip
    encoded = model.encode(view)
    states = family.unpadded(out.hidden_states[-1], LENGTHS)
    family.check_close(encoded.states["text"], states, 1e-5)
    mlm = model.heads["mlm"](encoded, family.aim(index, value))["loss"] / len(index)
    same = model.heads["same"](encoded, family.aim([0, 1, 2], 1 - follows))["loss"] / 3
    expected = torch.nn.functional.cross_entropy(
        family.unpadded(out.prediction_logits, LENGTHS), torch.from_numpy(label)
    )
    family.check_close(mlm, expected, 1e-5)
    family.check_close(mlm + same, out.loss, 1e-5)
    (mlm + same).backward()
    out.loss.backward()
    family.check_gradients(bert, recipe, model, reference)


@pytest.mark.parametrize("name", ["PreTraining", "MaskedLM", "NextSentencePrediction"])
def test_the_round_trip_is_exact(tmp_path, name):
    cls = getattr(transformers, f"BertFor{name}")
    config = transformers.BertConfig(**family.SMALL, num_hidden_layers=2, type_vocab_size=3)
    reference = family.reference(cls, config)
    parts = family.imported(bert, reference, tmp_path / "in")
    family.check_written(bert, cls, *parts, tmp_path / "out")


def test_a_bare_model_comes_without_its_pooler(tmp_path):
    config = transformers.BertConfig(**family.SMALL, num_hidden_layers=2)
    reference = family.reference(transformers.BertModel, config)
    _, weights, recipe, model = family.imported(bert, reference, tmp_path)
    view, given = inputs()
    states = family.unpadded(reference(**given).last_hidden_state, LENGTHS)
    family.check_close(model.encode(view).states["text"], states, 1e-5)
    written, state = bert.write(recipe, model.state_dict())
    assert written["architectures"] == ["BertModel"]
    assert set(weights) - set(state) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(torch.equal(v, weights[k]) for k, v in state.items())


def test_files_of_old_are_read(tmp_path):
    """Norms' parts called gamma and beta, decoders saved beside the table they are tied to."""
    config = transformers.BertConfig(**family.SMALL, num_hidden_layers=1)
    reference = family.reference(transformers.BertForPreTraining, config)
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for name, value in reference.state_dict().items():
        last = ".".join(name.split(".")[-2:])
        old[name.removesuffix(last) + new.get(last, last)] = value
    old["bert.embeddings.position_ids"] = torch.arange(16)[None]
    one = bert.read(config.to_dict(), old, tmp_path)[1]
    two = bert.read(config.to_dict(), reference.state_dict(), tmp_path)[1]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act: relu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_hidden_layers": 2}, "incomplete"),
    ],
)
def test_what_has_no_counterpart_is_said(tmp_path, setting, words):
    config = transformers.BertConfig(**family.SMALL, num_hidden_layers=1)
    state = transformers.BertForMaskedLM(config).state_dict()
    with pytest.raises(ValueError, match=words):
        bert.read(config.to_dict() | setting, state, tmp_path)


@pytest.mark.parametrize("cased", [False, True])
def test_the_folder_says_whether_case_counts(tmp_path, cased):
    settings = json.dumps({"do_lower_case": not cased})
    (tmp_path / "tokenizer_config.json").write_text(settings)
    (tmp_path / "vocab.txt").write_text("")
    text = bert.text_of(bert.DEFAULTS, tmp_path)
    assert text.layout == ("wordpiece-cased" if cased else "wordpiece")
    assert text.vocabulary == str(tmp_path / "vocab.txt")
