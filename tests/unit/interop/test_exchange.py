"""Checkpoints in and out through the command line, and what is refused."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import crossloom
from crossloom.cli import app
from crossloom.interop.exchange import (
    _written,
    export_run,
    families,
    import_checkpoint,
    locate,
    read_config,
    read_weights,
)
from crossloom.interop.rules import Noted, joined, parted, pixels, read_all, turned, write_all
from crossloom.training.recipe import RecipeError, load_recipe
from crossloom.training.run import WEIGHTS

CLIP = {
    "model_type": "clip",
    "projection_dim": 16,
    "text_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 24,
    },
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as a library leaves it: a run of ours written, with a weight nobody asked for."""
    from safetensors.torch import save_file

    from crossloom.interop import clip
    from crossloom.training.run import make_model

    folder = tmp_path_factory.mktemp("published")
    recipe = clip.recipe(
        "clip",
        clip.clip_text(49408, 24),
        clip.clip_patches(32, 8),
        clip.towers(
            {"text": clip.size({**clip._TEXT, **CLIP["text_config"]}),
             "image": clip.size({**clip._VISION, **CLIP["vision_config"]})},
            causal=("text",), activation="quick_gelu",
        ),
        clip.clip_contrast(16),
        clip.OPTIM,
    )  # fmt: skip
    config, weights = clip.write(recipe, make_model(recipe).state_dict())
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    weights["text_model.adapter.weight"] = torch.zeros(2)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def png(seed):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def command(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_checkpoint_becomes_a_run_that_is_used_and_trained(published, world, tmp_path):
    run = tmp_path / "clip"
    done = command("import", published, "--out", run)
    assert done.exit_code == 0, done.output
    assert "1 weight started afresh: embed.image.mask" in done.output
    assert "1 weight left out: text_model.adapter.weight" in done.output
    assert "clip: run in" in done.output

    loaded = crossloom.load(run)
    found = loaded.encode(text=["a dog", "Two CATS"], image=[png(0), png(1)])
    assert found["text"].shape == found["image"].shape == (2, 16)
    assert torch.equal(found["text"][0], loaded.encode(text=["A  dog"])["text"][0])

    again = tmp_path / "again"
    done = command(
        "pretrain", run / "recipe.yaml", f"start={run}", f"data={world}", "steps=2", "examples=4",
        "workers=0", "readers=4", "window=8", "modalities.image.field=png", "--out", again,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads((again / "start.json").read_text())
    assert told["fresh"] == []
    assert told["unused"] == []

    out = tmp_path / "out"
    assert command("export", again, "--to", "transformers", "--out", out).exit_code == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "clip"
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(read_weights(out)[name], read_weights(published)[name])
    assert command("export", again, "--to", "transformers", "--out", out).exit_code != 0


def test_two_steps_of_rules_are_each_others_inverse(published, tmp_path):
    import_checkpoint(str(published), tmp_path / "run")
    export_run(tmp_path / "run", "transformers", tmp_path / "out")
    before, after = read_weights(published), read_weights(tmp_path / "out")
    assert set(before) - set(after) == {
        "text_model.embeddings.position_ids",
        "text_model.adapter.weight",
    }
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


def test_plain_weights_come_with_their_recipe(published, tmp_path):
    import_checkpoint(str(published), tmp_path / "run")
    export_run(tmp_path / "run", "safetensors", tmp_path / "out")
    one, other = (crossloom.load(tmp_path / x) for x in ("run", "out"))
    assert one.recipe == other.recipe
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


def test_overrides_and_a_run_that_is_there(published, tmp_path):
    import_checkpoint(str(published), tmp_path / "run", ["steps=7", "name=mine"])
    assert crossloom.load(tmp_path / "run").recipe.steps == 7
    with pytest.raises(RecipeError, match="holds a run already"):
        import_checkpoint(str(published), tmp_path / "run")


def test_shards_of_weights_are_read_by_their_index(published, tmp_path):
    from safetensors.torch import save_file

    weights = read_weights(published)
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({n: weights[n] for n in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = read_weights(tmp_path)
    assert set(found) == set(weights)
    assert all(torch.equal(found[n], weights[n]) for n in weights)


def test_what_cannot_be_read_says_what_to_do(published, tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt9"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model.bin\).*save_pretrained"):
        read_weights(tmp_path)
    # by its own class: AutoModel would leave out what predicts
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertForPreTraining"]}'
    )
    with pytest.raises(ValueError, match=r"s\.BertForPreTraining\.from_.*\(DIR\)\.save_.*\(DIR\)$"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(
        ValueError, match=r"no model\.safetensors; .*BertForPreTraining.*vocabulary"
    ):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt9"}')
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"'gpt9' is not known; there are .*clip.*vilt"):
        import_checkpoint(str(tmp_path), tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps(CLIP | {"projection_dim": 17}))
    with pytest.raises(ValueError, match=r"is \[16, 16\], the configuration makes it \[17, 16\]"):
        import_checkpoint(str(tmp_path), tmp_path / "run")
    deeper = {**CLIP, "text_config": {**CLIP["text_config"], "num_hidden_layers": 2}}
    (tmp_path / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ValueError, match=r"no 'text_model.encoder.layers.1"):
        import_checkpoint(str(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pickled_towers_are_converted_under_their_own_name(tmp_path):
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"save_file\(torch\.load.*/open_clip_model\.safetensors'"):
        read_weights(tmp_path)


def test_a_vocabulary_that_is_not_there_is_told_at_once(tmp_path):
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = BertConfig(vocab_size=6, num_attention_heads=2, max_position_embeddings=8, **size)
    BertModel(config).save_pretrained(tmp_path / "bert")
    result = command("import", tmp_path / "bert", "--out", tmp_path / "without")
    assert result.exit_code == 0, result.output
    assert "text: no vocabulary in" in result.output
    assert "modalities.text.vocabulary=FILE" in result.output
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    result = command("import", tmp_path / "bert", "--out", tmp_path / "with")
    assert "no vocabulary" not in result.output


@pytest.mark.parametrize("lower", [True, False])
def test_case_is_read_from_wherever_it_is_told(tmp_path, lower):
    """A ``tokenizer.json`` saved by itself has no setting of that name beside it."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    from crossloom.interop.bert import layout_of
    from crossloom.modalities.vocabularies import vocabulary

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "dog", "é", "e"]
    made = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alone = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    alone.save_pretrained(tmp_path)
    assert "do_lower_case" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    layout = layout_of(tmp_path)
    assert layout == ("wordpiece" if lower else "wordpiece-cased")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = vocabulary(str(tmp_path / "tokenizer.json"), layout).encode("A dog é")
    assert ours.tolist() == theirs("A dog é", add_special_tokens=False)["input_ids"]
    # the settings have the last word
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not lower}))
    assert layout_of(tmp_path) != layout


@pytest.mark.parametrize(
    "told",
    [
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"tokenizer_class": "BertJapaneseTokenizer"},
    ],
)
def test_words_that_are_cut_in_another_way_are_refused(tmp_path, told):
    from crossloom.interop.bert import layout_of

    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: .* not known here"):
        layout_of(tmp_path)
    usual = {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(usual))
    assert layout_of(tmp_path) == "wordpiece-cased"


def test_the_hub_is_asked_only_for_ids(monkeypatch):
    with pytest.raises(ValueError, match="no such folder; give one"):
        locate("./nothing")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'crossloom\[hf\]'"):
        locate("someone/model")


def test_of_the_hub_no_code_and_no_pickle_is_fetched(monkeypatch, tmp_path):
    import types

    asked = {}

    def snapshot(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot)
    )
    assert locate("someone/model") == tmp_path
    assert set(asked) == {"someone/model"}
    assert not {p for p in asked["someone/model"] if p.endswith((".py", ".bin", ".pt", "*"))}

    def fails(name, allow_patterns):
        raise OSError("no route")

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=fails)
    )
    with pytest.raises(ValueError, match=r"nor to be had from the Hub \(OSError: no route\)"):
        locate("someone/model")


def test_a_model_that_a_library_has_not_is_refused_with_the_reasons(world, tmp_path):
    from safetensors.torch import save_file

    from crossloom.testing.recipes import tiny_recipe
    from crossloom.training.run import make_model, prepare_folder

    recipe = tiny_recipe(world).located()
    run = tmp_path / "run"
    prepare_folder(run, recipe)
    save_file(make_model(recipe).state_dict(), run / WEIGHTS)
    with pytest.raises(ValueError, match=r"open_clip has no such model \(open_clip: "):
        export_run(run, "open_clip", tmp_path / "out")
    with pytest.raises(ValueError, match=r"no such model .*vilt: .*--to safetensors writes"):
        export_run(run, "transformers", tmp_path / "out")
    with pytest.raises(ValueError, match="is a run already"):
        import_checkpoint(str(run), tmp_path / "again")
    with pytest.raises(ValueError, match="--to onnx: there are"):
        export_run(run, "onnx", tmp_path / "out")
    with pytest.raises(ValueError, match="--family gpt9: there are"):
        export_run(run, "transformers", tmp_path / "out", "gpt9")
    assert not (tmp_path / "out").exists()


def test_words_of_another_width_are_refused(tmp_path):
    recipe = load_recipe("xlm-r-tiny", ["modalities.text.inner=16"])
    with pytest.raises(ValueError, match=r"modalities\.text\.inner: no family"):
        _written(recipe, {}, "transformers", "")


def test_families_are_found_without_their_libraries():
    code = "from crossloom.interop.exchange import families; import sys; print(*families())"
    out = subprocess.run(
        [sys.executable, "-c", f"{code}; print('transformers' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names, loaded = out.stdout.splitlines()
    assert {"clip", "siglip", "vilt", "open_clip"} <= set(names.split())
    assert loaded == "False"
    assert len({t for f in families().values() for t in f.MODEL_TYPES}) >= len(families())


def test_rules_by_hand():
    one, two = torch.arange(6.0).view(2, 3), torch.arange(6.0, 12).view(2, 3)
    theirs = {"k": one, "v": two, "in": torch.cat([one, two, one]), "m": one}
    theirs["conv"] = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    rules = [
        joined("kv", ["k", "v"]),
        parted(["q", "rest"], "in", (1, 2)),
        turned("t", "m"),
        pixels("linear", "conv", 2),
    ]
    noted = Noted({**theirs, "more": one})
    ours = read_all(rules, noted)
    assert noted.unused() == ["more"]
    assert ours["kv"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert ours["q"].tolist() == one.tolist()
    assert ours["rest"].tolist() == [*two.tolist(), *one.tolist()]
    assert ours["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    # the first output: rows of pixels, channels last; a channel of the filter holds four numbers
    assert ours["linear"][0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    back = write_all(rules, ours)
    assert all(torch.equal(back[n], theirs[n]) for n in theirs)
    with pytest.raises(ValueError, match="no 'k'; the checkpoint is incomplete"):
        read_all(rules[:1], {"v": two})


@pytest.mark.parametrize("layout", ["wordpiece", "wordpiece-cased"])
def test_word_pieces_go_out_with_their_case(tmp_path, layout):
    from transformers import AutoTokenizer, BertConfig

    from crossloom.interop import bert
    from crossloom.interop.exchange import _vocabulary
    from crossloom.modalities.text import Text

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "dog"]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    text = Text(vocabulary=str(tmp_path / "words.txt"), layout=layout)
    out = tmp_path / "out"
    out.mkdir()
    for name, data in _vocabulary(tmp_path / "words.txt", text).items():
        (out / name).write_bytes(data.encode() if isinstance(data, str) else data)
    config = BertConfig(vocab_size=8)
    config.save_pretrained(out)
    theirs = AutoTokenizer.from_pretrained(out)
    pieces = theirs.convert_ids_to_tokens(theirs("A dog")["input_ids"])
    assert pieces == ["[CLS]", "A" if layout.endswith("cased") else "a", "dog", "[SEP]"]
    assert bert.text_of(config.to_dict(), out).layout == layout


def test_a_text_not_in_clips_vocabulary_is_no_clip(world):
    from crossloom.interop import clip, open_clip
    from crossloom.recipes.clip import clip_tiny
    from crossloom.training.recipe import override
    from crossloom.training.run import make_model

    recipe = override(clip_tiny(), [f"data={world}"]).located()
    weights = make_model(recipe).state_dict()
    for family in (clip, open_clip):
        with pytest.raises(ValueError, match="not in CLIP's vocabulary"):
            family.write(recipe, weights)


def test_files_of_another_are_not_replaced(published, tmp_path):
    run = tmp_path / "run"
    import_checkpoint(str(published), run)
    out = tmp_path / "out"
    out.mkdir()
    (out / "preprocessor_config.json").write_text("mine")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        export_run(run, "transformers", out)
    assert [p.name for p in out.iterdir()] == ["preprocessor_config.json"]
