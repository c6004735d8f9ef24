"""Every family through the door: as its library saves it, imported, exported, loaded again."""

import json

import pytest
import torch
from agree import spread

from crossloom.interop.exchange import export_run, import_checkpoint, read_weights
from crossloom.training.run import open_run

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 16,
}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2}  # fmt: skip
PICTURE = {**TOWER, "image_size": 16, "patch_size": 8}
WORDS = {**TOWER, "vocab_size": 60, "max_position_embeddings": 8}
CASES = {
    "BertForPreTraining": ("BertConfig", {**SMALL, "num_hidden_layers": 1}),
    "BertForMaskedLM": ("BertConfig", {**SMALL, "num_hidden_layers": 1}),
    "LxmertForPreTraining": (
        "LxmertConfig",
        {**SMALL, "l_layers": 1, "r_layers": 1, "x_layers": 1, "visual_feat_dim": 6,
         "num_qa_labels": 7, "num_object_labels": 5, "num_attr_labels": 4},
    ),
    "VisualBertForPreTraining": (
        "VisualBertConfig",
        {**SMALL, "num_hidden_layers": 1, "visual_embedding_dim": 6, "pad_token_id": 0},
    ),
    "ViltForMaskedLM": (
        "ViltConfig", {**SMALL, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    ),
    "XLMRobertaForMaskedLM": (
        "XLMRobertaConfig",
        {**SMALL, "num_hidden_layers": 1, "max_position_embeddings": 18, "type_vocab_size": 1},
    ),
    "XLMWithLMHeadModel": (
        "XLMConfig",
        {"vocab_size": 60, "emb_dim": 32, "n_layers": 1, "n_heads": 4, "n_langs": 3,
         "max_position_embeddings": 16},
    ),
    "MBartForConditionalGeneration": (
        "MBartConfig",
        {"vocab_size": 60, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "max_position_embeddings": 16},
    ),
    "CLIPModel": ("CLIPConfig", {"text_config": WORDS, "vision_config": PICTURE}),
    "SiglipModel": ("SiglipConfig", {"text_config": WORDS, "vision_config": PICTURE}),
}  # fmt: skip


def published(name, folder):
    """A checkpoint as its library saves it, with a vocabulary where words are pieces."""
    torch.manual_seed(0)
    config, settings = CASES[name]
    model = spread(getattr(transformers, name)(getattr(transformers, config)(**settings)))
    model.save_pretrained(folder)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(55))]
    if config in ("BertConfig", "LxmertConfig", "VisualBertConfig", "ViltConfig"):
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return model


@pytest.mark.parametrize("name", CASES)
def test_saved_imported_exported_loaded(name, tmp_path):
    theirs = published(name, tmp_path / "in")
    done = import_checkpoint(str(tmp_path / "in"), tmp_path / "run")
    assert done.left_out == ()
    recipe = open_run(tmp_path / "run")
    assert all(c.objectives for c in recipe.mixture.values())
    if (tmp_path / "in" / "vocab.txt").exists():
        assert recipe.modalities["text"].vocab.size == 60
    export_run(tmp_path / "run", "transformers", tmp_path / "out")
    before, after = (read_weights(tmp_path / x) for x in ("in", "out"))
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == [name]
    loaded, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    state = loaded.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value), key
    if (tmp_path / "in" / "vocab.txt").exists():
        same = [(tmp_path / x / "vocab.txt").read_text() for x in ("in", "out")]
        assert same[0] == same[1]


def test_weights_without_a_counterpart_are_told(tmp_path):
    from safetensors.torch import save_file

    published("BertForMaskedLM", tmp_path / "in")
    weights = read_weights(tmp_path / "in") | {"bert.extra.weight": torch.zeros(3)}
    save_file(weights, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    done = import_checkpoint(str(tmp_path / "in"), tmp_path / "run")
    assert done.left_out == ("bert.extra.weight",)


def test_bert_starts_the_text_of_lxmert(tmp_path):
    """What the command line's start=RUN does with a published BERT."""
    from dataclasses import replace

    from crossloom.training.run import make_model
    from crossloom.training.start import start

    for name in ("BertForMaskedLM", "LxmertForPreTraining"):
        published(name, tmp_path / f"{name}-in")
        import_checkpoint(str(tmp_path / f"{name}-in"), tmp_path / name)
    recipe = replace(
        open_run(tmp_path / "LxmertForPreTraining"), start=str(tmp_path / "BertForMaskedLM")
    )
    model = make_model(recipe)
    report = start(model, recipe)
    source = read_weights(tmp_path / "BertForMaskedLM-in")
    own = model.state_dict()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    taken = [n for n in report.taken if ".query.text." in n and n.endswith("weight")]
    assert len(taken) == 1
    assert torch.equal(own[taken[0]], source[name])
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(own["embed.text.token.weight"], source[words])
