"""Replaced token detection (xlm-e) beside generator and discriminator of ``transformers``."""

from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from crossloom.data_pipelines.read import Parallel
from crossloom.models.presets import Tower, towers
from crossloom.objectives.crosslingual import GENERATED, rtd
from crossloom.objectives.presets import tlm
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component
from crossloom.training.run import make_model, make_stack

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

#: Layers of each, by stream.
LAYERS = {"text": 2, "generator": 1}
#: Width of each, and that of the words: one embedding for both, and that of the small model, whose
#: generator and discriminator come from its width to their own.
SIZES = {"alike": (32, 32, 0), "small": (32, 16, 24)}
INNER = {
    "attention.self.query": "blocks.{a}.query",
    "attention.output.dense": "blocks.{a}.output",
    "attention.output.LayerNorm": "blocks.{a}.norm",
    "intermediate.dense": "blocks.{b}.up",
    "output.dense": "blocks.{b}.down",
    "output.LayerNorm": "blocks.{b}.norm",
}
EMBEDDED = {
    "word_embeddings": "token",
    "position_embeddings": "position",
    "token_type_embeddings": "segment",
    "LayerNorm": "norm",
}
HEADS = {
    "discriminator_predictions.dense": "heads.rtd.transform.0",
    "discriminator_predictions.dense_prediction": "heads.rtd.score",
    "generator_predictions.dense": "heads.mlm.transform.0",
    "generator_predictions.LayerNorm": "heads.mlm.transform.2",
    "generator_lm_head": "heads.mlm",
}


@pytest.fixture(scope="module", params=SIZES)
def recipe(world, request):
    base = tiny_recipe(world)
    *widths, inner = SIZES[request.param]
    text = replace(base.modalities["text"], segments=2, inner=inner)
    sizes = {
        s: Tower(layers=n, width=width, heads=2, hidden=64)
        for (s, n), width in zip(LAYERS.items(), widths, strict=True)
    }
    return replace(
        base,
        modalities={"text": text, "generator": replace(text, words_of="text" if inner else "")},
        tied={} if inner else {"generator": "text"},
        plan=towers(sizes, norm="post", epsilon=1e-12),
        objectives={"mlm": tlm("generator", hide=GENERATED), "rtd": rtd()},
        mixture={
            "pairs": Component(
                shards="train-*.tar", reader=Parallel(), objectives=("mlm", "rtd")
            )
        },
        examples=16,
    ).located()  # fmt: skip


def ours(model, stream):
    """A tensor of ours, or its gradient, by its name in the library."""
    own = dict(model.named_parameters())
    found = {}
    embedder = f"embed.{model.owner[stream]}"
    for kind in ("weight", "bias"):
        for theirs, mine in EMBEDDED.items():
            place = "embed.text" if mine == "token" else embedder
            if (name := f"{place}.{mine}.{kind}") in own:
                found[f"electra.embeddings.{theirs}.{kind}"] = own[name]
        if (name := f"{embedder}.project.{kind}") in own:
            found[f"electra.embeddings_project.{kind}"] = own[name]
        for theirs, mine in HEADS.items():
            if (name := f"{mine}.{kind}") in own:
                found[f"{theirs}.{kind}"] = own[name]
        for number in range(LAYERS[stream]):
            # the discriminator's blocks come first in the layers that both have
            first = 2 if stream == "generator" else 0
            for theirs, mine in INNER.items():
                place = mine.format(a=first, b=first + 1)
                name = f"fusion.layers.{number}.{place}.{stream}.{kind}"
                found[f"electra.encoder.layer.{number}.{theirs}.{kind}"] = own[name]
            both = f"fusion.layers.{number}.blocks.{first}.keyvalue.{stream}.{kind}"
            found[f"electra.encoder.layer.{number}.attention.self.keyvalue.{kind}"] = own[both]
    return found


def split(tensors):
    """Keys and values apart, as the library has them."""
    out = {}
    for name, value in tensors.items():
        if ".keyvalue." in name:
            for part, half in zip(("key", "value"), value.chunk(2), strict=True):
                out[name.replace("keyvalue", part)] = half
        else:
            out[name] = value
    return out


def load(reference, model, stream):
    wanted = {n for n, _ in reference.named_parameters()}
    state = {n: v for n, v in split(ours(model, stream)).items() if n in wanted}
    missing, strange = reference.load_state_dict(state, strict=False)
    assert not strange
    assert not set(missing) & wanted
    reference.tie_weights()
    return reference.eval()


def padded(flat, values):
    return pad_sequence(list(values.split(flat.length.tolist())), batch_first=True)


def test_losses_and_gradients_are_the_librarys(recipe):
    torch.manual_seed(0)
    model = make_model(recipe).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = make_stack(recipe).micro(0).to("cpu")
    text, hidden = batch.views["rtd"].streams["text"], batch.views["tlm"].streams["generator"]
    aim, vocab = batch.aims["mlm"], recipe.modalities["text"].vocab

    def config(stream):
        width, inner = recipe.plan.widths[stream], recipe.modalities[stream].inner
        return transformers.ElectraConfig(
            vocab_size=vocab.size, embedding_size=inner or width, hidden_size=width,
            num_hidden_layers=LAYERS[stream], num_attention_heads=2,
            intermediate_size=64, pad_token_id=vocab.pad,
            max_position_embeddings=len(model.embed["text"].position.weight),
            attn_implementation="eager",
        )  # fmt: skip

    generator = load(transformers.ElectraForMaskedLM(config("generator")), model, "generator")
    told = load(transformers.ElectraForPreTraining(config("text")), model, "text")
    # one embedding, as where the original trains both, or one table of words
    if recipe.tied:
        told.electra.embeddings = generator.electra.embeddings
    else:
        words = generator.electra.embeddings.word_embeddings
        told.electra.embeddings.word_embeddings = words
    token = text.content["token"]
    label = torch.full_like(token, -100).index_copy(0, aim.index, token[aim.index])
    shared = {
        "attention_mask": padded(text, torch.ones_like(token)),
        "token_type_ids": padded(text, text.content["segment"]),
    }
    shown = torch.where(hidden.hidden, vocab.mask, token)
    made = generator(padded(text, shown), **shared)
    logits = torch.cat([x[:n] for x, n in zip(made.logits, text.length.tolist(), strict=True)])
    masked = torch.nn.functional.cross_entropy(logits, label)
    filled = token.index_copy(0, aim.index, logits.argmax(1)[aim.index])
    wrong = filled != token
    assert 0 < wrong.sum() <= len(aim.index)
    found = told(padded(text, filled), labels=padded(text, wrong.long()), **shared)
    (masked + 50 * found.loss).backward()

    loss = model(batch)
    mean = {n: x["loss"] / batch.aims[n].weight.sum() for n, x in loss.items()}
    torch.testing.assert_close(mean["mlm"], masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean["rtd"], found.loss, atol=1e-5, rtol=0)
    sum(recipe.objectives[n].weight * x for n, x in mean.items()).backward()
    checked = set()
    for reference, stream in ((generator, "generator"), (told, "text")):
        theirs = {n: p.grad for n, p in reference.named_parameters()}
        mine = {n: p.grad for n, p in ours(model, stream).items()}
        for name, gradient in split(mine).items():
            if name in theirs:
                rest = {"atol": 1e-4, "rtol": 1e-4, "msg": lambda m, n=name: f"{n}: {m}"}
                torch.testing.assert_close(gradient, theirs[name], **rest)
                checked.add((stream, name))
        assert {n for s, n in checked if s == stream} == set(theirs)
