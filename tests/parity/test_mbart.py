"""mBART of ``transformers``: states, loss, gradients, what is said, and back again."""

from dataclasses import replace

import bert_family as family
import numpy as np
import pytest
import torch

from crossloom.interop import mbart
from crossloom.models.generation import Search, generate

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
READ, SAID = (5, 9, 3), (4, 3, 7)
END, LANGUAGES = 2, (50, 51, 52)


def small(**settings):
    config = transformers.MBartConfig(
        **{
            "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "max_position_embeddings": 16, "dropout": 0.0,
            "scale_embedding": True, **settings,
        }
    )  # fmt: skip
    return family.reference(transformers.MBartForConditionalGeneration, config)


def texts():
    """What is read ends with its language; what is said begins with it."""
    rng = np.random.default_rng(3)
    read, said = [], []
    for code, n, m in zip(LANGUAGES, READ, SAID, strict=True):
        read += [*rng.integers(4, 50, n - 2), END, code]
        said += [code, *rng.integers(4, 50, m - 2), END]
    return np.array(read), np.array(said)


def shown(read, said, lengths):
    return family.view(
        text=family.flat({"token": read}, READ), target=family.flat({"token": said}, lengths)
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_states_loss_and_gradients_agree(tmp_path, scaled):
    reference = small(scale_embedding=scaled)
    *_, recipe, model = family.imported(mbart, reference, tmp_path)
    read, said = texts()
    # the library is given the labels ``X </s> language`` and makes ``language X </s>`` of them;
    # its last label, the language once more, is not asked for here
    label = np.concatenate([np.r_[x[1:], -100] for x in np.split(said, np.cumsum(SAID)[:-1])])
    out = reference(
        input_ids=family.padded(read, READ, 1),
        attention_mask=family.mask(READ),
        decoder_input_ids=family.padded(said, SAID, 1),
        labels=family.padded(label, SAID, -100),
        output_hidden_states=True,
    )
    encoded = model.encode(shown(read, said, SAID))
    for stream, states, lengths in (
        ("text", out.encoder_last_hidden_state, READ),
        ("target", out.decoder_hidden_states[-1], SAID),
    ):
        expected = family.unpadded(states, lengths)
        family.check_close(encoded.states[stream], expected, 1e-5)
    index = np.flatnonzero(label >= 0)
    loss = model.heads["denoise"](encoded, family.aim(index, label[index]))["loss"] / len(index)
    family.check_close(loss, out.loss, 1e-5)
    loss.backward()
    out.loss.backward()
    ours = mbart.write(recipe, {n: p.grad for n, p in model.named_parameters()})[1]
    assert ours.pop("final_logits_bias").abs().max() > 0  # there it is never trained
    theirs = {n: p.grad for n, p in reference.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - theirs[name]).abs().max() <= 1e-4, name


def test_one_table_of_words_serves_both_sides(tmp_path):
    *_, model = family.imported(mbart, small(), tmp_path)
    names = [n for n, _ in model.named_parameters() if "token" in n]
    assert names == ["embed.text.token.weight"]
    assert model.embed["target"].token is model.embed["text"].token
    assert model.embed["target"].position is not model.embed["text"].position


def test_the_round_trip_is_exact(tmp_path):
    reference = small()
    reference.final_logits_bias.normal_()
    parts = family.imported(mbart, reference, tmp_path / "in")
    family.check_written(mbart, type(reference), *parts, tmp_path / "out")


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_greedily_is_the_same(tmp_path, seed):
    reference = small()
    with torch.no_grad():
        torch.manual_seed(seed)
        reference.model.shared.weight.normal_(0, 0.5)  # else one word is said for ever
    *_, model = family.imported(mbart, reference, tmp_path)
    read, _ = texts()
    given = {"input_ids": family.padded(read, READ, 1), "attention_mask": family.mask(READ)}
    for code in LANGUAGES:
        theirs = reference.generate(
            **given, decoder_start_token_id=code, max_new_tokens=8, num_beams=1, do_sample=False,
            forced_eos_token_id=None, eos_token_id=END, pad_token_id=1,
        )  # fmt: skip
        opening = shown(read, np.full(3, code), (1, 1, 1))
        ours = generate(model, "denoise", opening, end=END, search=Search(longest=8))
        for row, found in zip(theirs.tolist(), ours, strict=True):
            words = row[1:]
            words = words[: words.index(END)] if END in words else words
            assert list(found[0].units) == words
    assert len({tuple(f[0].units) for f in ours}) > 1


@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (4, 1.0), (4, 0.0), (4, 2.0)])
def test_translations_into_several_languages_at_once_are_the_same(tmp_path, beams, penalty):
    """Each row begins with its own language token."""
    reference = sure_of_itself()
    *_, model = family.imported(mbart, reference, tmp_path)
    read, _ = texts()
    into = [51, 52, 50]
    theirs = reference.generate(
        input_ids=family.padded(read, READ, 1), attention_mask=family.mask(READ),
        decoder_start_token_id=into, max_new_tokens=8, num_beams=beams,
        length_penalty=penalty, do_sample=False, early_stopping=True, forced_eos_token_id=None,
        eos_token_id=END, pad_token_id=1, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    search = Search(beams=beams, longest=8, penalty=penalty)
    ours = generate(model, "denoise", shown(read, np.array(into), (1, 1, 1)), end=END,
                    search=search)  # fmt: skip
    assert [list(f[0].units) for f in ours] == [cut(r[1:]) for r in theirs.sequences.tolist()]
    assert len({tuple(f[0].units) for f in ours}) == 3
    if beams > 1:
        found = [f[0].score for f in ours]
        np.testing.assert_allclose(found, theirs.sequences_scores.tolist(), atol=1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_forced_language_is_the_same(tmp_path, beams):
    """mBART-50's way: what is said begins with an end, then the language is forced."""
    reference = sure_of_itself()
    *_, model = family.imported(mbart, reference, tmp_path)
    read, _ = texts()
    given = {"input_ids": family.padded(read, READ, 1), "attention_mask": family.mask(READ)}
    said = set()
    for code in LANGUAGES:
        theirs = reference.generate(
            **given, decoder_start_token_id=END, forced_bos_token_id=code, max_new_tokens=9,
            num_beams=beams, length_penalty=0.0, do_sample=False, early_stopping=True,
            forced_eos_token_id=None, eos_token_id=END, pad_token_id=1,
        )  # fmt: skip
        opening = shown(read, np.full(3, END), (1, 1, 1))
        search = Search(beams=beams, longest=8, penalty=0.0)
        forced = torch.full((3,), code)
        ours = generate(model, "denoise", opening, end=END, search=search, forced=forced)
        rows = theirs.tolist()
        assert {r[1] for r in rows} == {code}
        assert [list(f[0].units) for f in ours] == [cut(r[2:]) for r in rows]
        said |= {f[0].units for f in ours}
    assert len(said) > 3


def sure_of_itself():
    """Weights by which what is said depends on the language and on what is read."""
    reference = small()
    with torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in reference.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.25)
        reference.model.shared.weight.normal_(0, 0.4)
        # positions count beside embeddings scaled by the root of the width
        reference.model.decoder.embed_positions.weight.normal_(0, 2)
        reference.final_logits_bias[:, END] = 5
    return reference


def cut(row):
    return row[: row.index(END)] if END in row else row


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"decoder_ffn_dim": 32}, "ffn_dim differs"),
        ({"activation_function": "silu"}, "hidden_act: silu"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"tokenizer_class": "MBart50Tokenizer"}, "MBart50Tokenizer .* of 25"),
    ],
)
def test_what_has_no_counterpart_is_said(tmp_path, setting, words):
    reference = small()
    with pytest.raises(ValueError, match=words):
        mbart.read(reference.config.to_dict() | setting, reference.state_dict(), tmp_path)


def test_a_bare_model_says_what_makes_it_whole(tmp_path):
    reference = small().model
    reference.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"MBartForConditionalGeneration\.from_pretrained"):
        mbart.read(reference.config.to_dict(), reference.state_dict(), tmp_path)
    whole = transformers.MBartForConditionalGeneration.from_pretrained(tmp_path)
    _, ours = mbart.read(reference.config.to_dict(), whole.state_dict(), tmp_path)
    assert torch.equal(ours["embed.text.token.weight"], reference.shared.weight)


def test_sides_that_share_more_are_not_written(tmp_path):
    *_, recipe, model = family.imported(mbart, small(), tmp_path)
    said = replace(recipe.modalities["target"], limit=8)
    other = replace(recipe, modalities={**recipe.modalities, "target": said})
    with pytest.raises(ValueError, match="target: differs from text"):
        mbart.write(other, model.state_dict())
