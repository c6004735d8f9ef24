"""mBERT beside ``transformers``, from texts in ten languages to both losses and their gradients."""

from dataclasses import replace

import bert_family as family
import numpy as np
import pytest
import torch

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import visit
from crossloom.data_pipelines.tokenizer import sentences
from crossloom.interop import bert
from crossloom.training.recipe import load_recipe
from crossloom.training.run import make_model, make_stack
from crossloom.units import keyed_rng

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.peers
SPECIALS = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def vocab(world, tmp_path_factory):
    """A cased WordPiece vocabulary over the world's languages, made as mBERT's was."""
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    texts = [t for _, t in sentences(open_shards("train-*.tar", world))]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=SPECIALS, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    folder = tmp_path_factory.mktemp("mbert")
    made.model.save(str(folder))
    return folder / "vocab.txt"


@pytest.fixture(scope="module")
def recipe(world, vocab):
    found = load_recipe("mbert-tiny")
    text = replace(
        found.modalities["text"], vocabulary=str(vocab), layout="wordpiece-cased", limit=160,
        positions=160,
    )  # fmt: skip
    return replace(found, data=str(world), modalities={"text": text}, examples=16).located()


def test_ids_of_pairs_are_those_of_the_library(recipe, vocab):
    theirs = transformers.BertTokenizer(str(vocab), do_lower_case=False)
    stack = make_stack(recipe)
    text, source = recipe.modalities["text"], stack.parts["documents"].source
    seen = set()
    for place in source.places()[::7]:
        shard, number, item = source.locate(place)
        sample, labels = visit(source.reader, shard.read(number), item, keyed_rng(place.example))
        units = text.decode(sample, keyed_rng(0))
        expected = theirs(*(p.text for p in sample["text"]))
        if len(expected["input_ids"]) <= text.limit:
            assert units.content["token"].tolist() == expected["input_ids"]
            assert units.content["segment"].tolist() == expected["token_type_ids"]
            seen.add(labels["language"])
    assert len(seen) == 10


def test_states_losses_and_gradients_agree(recipe, tmp_path):
    torch.manual_seed(0)
    model = make_model(recipe).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    config, state = bert.write(recipe, model.state_dict())
    reference = transformers.BertForPreTraining(
        transformers.BertConfig(**config, attn_implementation="eager")
    ).eval()
    missing, strange = reference.load_state_dict(state, strict=False)
    assert not strange
    assert all("decoder" in name or "position_ids" in name for name in missing)  # tied
    reference.tie_weights()
    batch = make_stack(recipe).micro(0).to("cpu")
    words = batch.views["passages"].streams["text"]
    lengths = words.length.tolist()
    mask = recipe.modalities["text"].vocab.mask
    token = torch.where(words.hidden, mask, words.content["token"]).numpy()
    label = np.full(len(token), -100)
    aim, follows = batch.aims["mlm"], batch.aims["next"].value
    label[aim.index] = aim.value
    assert 0 < follows.sum() < len(follows)
    out = reference(
        input_ids=family.padded(token, lengths),
        token_type_ids=family.padded(words.content["segment"].numpy(), lengths),
        attention_mask=family.mask(lengths),
        labels=family.padded(label, lengths, -100),
        next_sentence_label=1 - follows,  # there, 0 is what follows
        output_hidden_states=True,
    )
    states = model.encode(batch.views["passages"]).states["text"]
    family.check_close(states, family.unpadded(out.hidden_states[-1], lengths), 1e-5)
    said = model(batch)
    loss = sum(said[n]["loss"] / batch.counts[n] for n in ("mlm", "next"))
    family.check_close(loss, out.loss, 1e-5)
    loss.backward()
    out.loss.backward()
    family.check_gradients(bert, recipe, model, reference)
