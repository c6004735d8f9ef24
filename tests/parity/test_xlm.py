"""XLM of ``transformers``: states, losses of MLM and TLM, gradients, and back again."""

import agree
import bert_family as family
import numpy as np
import pytest

from crossloom.batch import Stream
from crossloom.interop import xlm
from crossloom.units import make_units

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
LENGTHS = family.TEXTS
#: Units of the first sentence of each pair.
FIRST = (2, 5, 1)


def small(cls="XLMWithLMHeadModel", **settings):
    config = transformers.XLMConfig(
        **{
            "vocab_size": 60, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "dropout": 0.0,
            "attention_dropout": 0.0, "n_langs": 3, "max_position_embeddings": 16,
            "lang2id": {"en": 0, "fr": 2, "de": 1}, "id2lang": {"0": "en", "1": "de", "2": "fr"},
            **settings,
        }
    )  # fmt: skip
    return family.reference(getattr(transformers, cls), config)


def pairs(restart):
    """Two sentences in each example, of two languages; the second starts at 0 again, or not."""
    parts = list(zip(FIRST, LENGTHS, strict=True))
    language = np.concatenate([np.repeat([0, 2], [f, n - f]) for f, n in parts])
    if restart:
        position = np.concatenate([np.r_[np.arange(f), np.arange(n - f)] for f, n in parts])
    else:
        position = np.concatenate([np.arange(n) for _, n in parts])
    return language, position


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_states_loss_and_gradients_agree(tmp_path, restart, gelu):
    reference = small(gelu_activation=gelu)
    *_, recipe, model = family.imported(xlm, reference, tmp_path)
    assert recipe.modalities["text"].languages == ("en", "de", "fr")
    token = family.words(LENGTHS)["token"]
    language, position = pairs(restart)
    index, value = np.array([1, 3, 7, 8, 15]), np.array([9, 4, 30, 31, 5])
    label = np.full(sum(LENGTHS), -100)
    label[index] = value
    out = reference(
        input_ids=family.padded(token, LENGTHS, 2),
        attention_mask=family.mask(LENGTHS),
        langs=family.padded(language, LENGTHS),
        position_ids=family.padded(position, LENGTHS),
        labels=family.padded(label, LENGTHS, -100),
        output_hidden_states=True,
    )
    stream = Stream.build(
        {"token": token, "language": language}, {}, position, np.zeros(len(token), bool),
        np.array(LENGTHS),
    )  # fmt: skip
    encoded = model.encode(family.view(text=stream))
    states = family.unpadded(out.hidden_states[-1], LENGTHS)
    family.check_close(encoded.states["text"], states, 1e-5)
    loss = model.heads["mmlm"](encoded, family.aim(index, value))["loss"] / len(index)
    family.check_close(loss, out.loss, 1e-5)
    loss.backward()
    out.loss.backward()
    family.check_gradients(xlm, recipe, model, reference)


@pytest.mark.parametrize("languages", [1, 3])
def test_the_round_trip_is_exact(tmp_path, languages):
    names = {} if languages == 3 else {"lang2id": {}, "id2lang": {}, "use_lang_emb": False}
    parts = family.imported(xlm, small(n_langs=languages, **names), tmp_path / "in")
    family.check_written(xlm, transformers.XLMWithLMHeadModel, *parts, tmp_path / "out")


def test_a_bare_model_is_written_back(tmp_path):
    parts = family.imported(xlm, small("XLMModel"), tmp_path / "in")
    family.check_written(xlm, transformers.XLMModel, *parts, tmp_path / "out")


def test_a_causal_model_agrees(tmp_path):
    """States, loss of the next word, gradients; written back with the same bits."""
    reference = small(causal=True)
    config, weights, recipe, model = family.imported(xlm, reference, tmp_path / "in")
    assert list(recipe.objectives) == ["clm"]
    token = family.words(LENGTHS)["token"]
    language = np.repeat([0, 1, 2], LENGTHS)
    # each word is asked of the state before it
    label = np.concatenate([np.r_[x[1:], -100] for x in np.split(token, np.cumsum(LENGTHS)[:-1])])
    out = reference(
        input_ids=family.padded(token, LENGTHS, 2),
        attention_mask=family.mask(LENGTHS),
        langs=family.padded(language, LENGTHS),
        labels=family.padded(label, LENGTHS, -100),
        output_hidden_states=True,
    )
    units = [
        make_units(
            {"token": t, "language": np.full(len(t), n)}, targets={"token": t.copy()},
            maskable=np.ones(len(t), bool),
        )
        for n, t in enumerate(np.split(token, np.cumsum(LENGTHS)[:-1]))
    ]  # fmt: skip
    batch = agree.batch(recipe, [{"text": u} for u in units])
    states = model.encode(batch.views["clm"]).states["text"]
    family.check_close(states, family.unpadded(out.hidden_states[-1], LENGTHS), 1e-5)
    loss = model(batch)["clm"]["loss"] / batch.counts["clm"]
    family.check_close(loss, out.loss, 1e-5)
    loss.backward()
    out.loss.backward()
    family.check_gradients(xlm, recipe, model, reference)
    cls = transformers.XLMWithLMHeadModel
    family.check_written(xlm, cls, config, weights, recipe, model, tmp_path / "out")


def test_a_bare_causal_model_is_refused(tmp_path):
    reference = small("XLMModel", causal=True)
    with pytest.raises(ValueError, match="causal: known of a model with its head only"):
        xlm.read(reference.config.to_dict(), reference.state_dict(), tmp_path)


@pytest.mark.parametrize("setting", ["asm", "sinusoidal_embeddings"])
def test_what_has_no_counterpart_is_said(tmp_path, setting):
    reference = small()
    with pytest.raises(ValueError, match=f"{setting}: True"):
        xlm.read(reference.config.to_dict() | {setting: True}, reference.state_dict(), tmp_path)


def test_a_head_with_a_transform_is_not_written(tmp_path):
    from dataclasses import replace

    *_, recipe, model = family.imported(xlm, small(), tmp_path)
    objectives = {"mmlm": replace(recipe.objectives["mmlm"], transform=True)}
    with pytest.raises(ValueError, match="mmlm: its head has a transform"):
        xlm.write(replace(recipe, objectives=objectives), model.state_dict())
