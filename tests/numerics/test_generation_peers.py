"""Loss and decoding of an encoder-decoder against `transformers`' BART with the same weights."""

import numpy as np
import pytest
import torch
from torch import nn

from crossloom.batch import AimBatch, Stream, ViewBatch
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.models.generation import Search, generate
from crossloom.models.model import CrossloomModel
from crossloom.models.presets import encoder_decoder
from crossloom.objectives.generate import Generate
from crossloom.objectives.view import View
from crossloom.units import make_units

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

CLASSES, WIDTH, START, PAD, END, PLACES = 23, 16, 2, 1, 2, 20


class Words(Modality):
    def decode(self, sample, rng):
        raise NotImplementedError

    def blank(self):
        one = np.zeros(1, np.int64)
        return make_units({"token": one}, targets={"token": one})

    def longest(self):
        return PLACES

    def predictable(self):
        return {"token": Target(dim=CLASSES, form="index")}

    def embedder(self, width):
        return WordsEmbedder(width)


class WordsEmbedder(Embedder):
    def __init__(self, width):
        super().__init__()
        self.token, self.position = nn.Embedding(CLASSES, width), nn.Embedding(PLACES, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, stream):
        return self.norm(self.token(stream.content["token"]) + self.position(stream.position))

    def tied(self, target):
        return self.token.weight


def peer(seed=0):
    config = transformers.BartConfig(
        vocab_size=CLASSES, d_model=WIDTH, max_position_embeddings=PLACES, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, decoder_start_token_id=START, bos_token_id=0, pad_token_id=PAD,
        eos_token_id=END, forced_eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(seed)
    bart = transformers.BartForConditionalGeneration(config).eval()
    for name, parameter in bart.named_parameters():
        # large where words are mixed, so that what is said depends on all that is read
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.5 if parameter.ndim > 1 else 0.1)
        else:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    nn.init.normal_(bart.final_logits_bias)
    bart.final_logits_bias[:, END] = 2
    model = bart.model
    with torch.no_grad():  # one embedder for both sides
        for part in ("embed_positions", "layernorm_embedding"):
            one, other = getattr(model.encoder, part), getattr(model.decoder, part)
            other.load_state_dict(one.state_dict())
    return bart


def ours(bart):
    """A model with the weights of the peer."""
    plan = encoder_decoder("text", "target", layers=2, width=WIDTH, heads=2, hidden=24, dropout=0)
    view = View(name="v", streams=("text", "target"))
    words = dict.fromkeys(("text", "target"), Words(field="x"))
    objective = Generate(view=view, stream="target", transform=False)
    model = CrossloomModel(words, plan, {"say": objective}, {"target": "text"}).eval()
    found = bart.state_dict()
    new = {
        "embed.text.token.weight": found["model.shared.weight"],
        "embed.text.position.weight": found["model.encoder.embed_positions.weight"][2:],
        "heads.say.bias": found["final_logits_bias"][0],
    }
    for kind in ("weight", "bias"):
        new[f"embed.text.norm.{kind}"] = found[f"model.encoder.layernorm_embedding.{kind}"]

        def attend(here, there, reader, read, norm, kind=kind):
            projections = [found[f"{there}.{x}_proj.{kind}"] for x in ("k", "v")]
            new[f"{here}.query.{reader}.{kind}"] = found[f"{there}.q_proj.{kind}"]
            new[f"{here}.keyvalue.{read}.{kind}"] = torch.cat(projections)
            new[f"{here}.output.{reader}.{kind}"] = found[f"{there}.out_proj.{kind}"]
            new[f"{here}.norm.{reader}.{kind}"] = found[f"{norm}.{kind}"]

        def feed(here, there, stream, kind=kind):
            new[f"{here}.up.{stream}.{kind}"] = found[f"{there}.fc1.{kind}"]
            new[f"{here}.down.{stream}.{kind}"] = found[f"{there}.fc2.{kind}"]
            new[f"{here}.norm.{stream}.{kind}"] = found[f"{there}.final_layer_norm.{kind}"]

        for n in range(2):
            there, here = f"model.encoder.layers.{n}", f"fusion.layers.{n}.blocks"
            norm = f"{there}.self_attn_layer_norm"
            attend(f"{here}.0", f"{there}.self_attn", "text", "text", norm)
            feed(f"{here}.1", there, "text")
            there, here = f"model.decoder.layers.{n}", f"fusion.layers.{n + 2}.blocks"
            norm = f"{there}.self_attn_layer_norm"
            attend(f"{here}.0", f"{there}.self_attn", "target", "target", norm)
            norm = f"{there}.encoder_attn_layer_norm"
            attend(f"{here}.1", f"{there}.encoder_attn", "target", "text", norm)
            feed(f"{here}.2", there, "target")
    model.load_state_dict(new)
    return model


SOURCES = [[0, 5, 9, 14, 2], [0, 7, 2], [0, 3, 4, 22, 21, 20, 6, 2]]


def padded(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[*r, *[PAD] * (longest - len(r))] for r in rows])
    return ids, (ids != PAD).long()


def flat(rows):
    length = np.array([len(r) for r in rows])
    position = np.concatenate([np.arange(n) for n in length])
    token = np.concatenate([np.array(r, np.int64) for r in rows])
    return Stream.build({"token": token}, {}, position, np.zeros(len(token), bool), length)


def view(targets):
    return ViewBatch(streams={"text": flat(SOURCES), "target": flat(targets)}).to("cpu")


def test_the_loss_is_the_same():
    bart = peer()
    model = ours(bart)
    said = [[8, 9, 2], [10, 11, 12, 13, 2], [2]]
    ids, mask = padded(SOURCES)
    labels = padded(said)[0].masked_fill(padded(said)[1] == 0, -100)
    shifted = [[START, *row[:-1]] for row in said]
    with torch.no_grad():
        expected = bart(
            input_ids=ids, attention_mask=mask, labels=labels, decoder_input_ids=padded(shifted)[0]
        ).loss
        value = torch.tensor([unit for row in said for unit in row])
        aim = AimBatch(index=torch.arange(9), value=value, weight=torch.ones(9))
        found = model.heads["say"](model.encode(view(shifted)), aim)["loss"] / 9
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("beams", "penalty", "early"),
    [(1, 1.0, True), (4, 1.0, True), (3, 0.0, True), (4, 2.0, "never"), (3, -1.0, "never")],
)
@pytest.mark.parametrize("seed", [0, 3, 5])
def test_the_same_is_said(beams, penalty, early, seed):
    bart = peer(seed)
    model = ours(bart)
    ids, mask = padded(SOURCES)
    with torch.no_grad():
        out = bart.generate(
            ids, attention_mask=mask, num_beams=beams, num_return_sequences=beams, max_length=9,
            length_penalty=penalty, early_stopping=early if beams > 1 else False, do_sample=False,
            return_dict_in_generate=True, output_scores=True, bad_words_ids=[[0], [PAD]],
        )  # fmt: skip
    search = Search(beams=beams, best=beams, longest=8, penalty=penalty, early=early is True)
    opening = view([[START]] * 3)
    found = generate(model, "say", opening, end=END, search=search, never=(0, PAD))
    expected = [[u for u in row.tolist()[1:] if u not in (PAD, END)] for row in out.sequences]
    assert [list(s.units) for some in found for s in some] == expected
    if beams > 1:
        scores = [s.score for some in found for s in some]
        np.testing.assert_allclose(scores, out.sequences_scores.tolist(), atol=1e-4)
