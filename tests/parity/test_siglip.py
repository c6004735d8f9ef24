"""SigLIP of transformers: states, loss, gradients, and there and back."""

import json
from dataclasses import replace

import pytest
import torch
from agree import (
    GRADIENT,
    batch,
    gradients,
    image_units,
    model,
    near,
    pictures,
    pixels,
    same_bits,
    spread,
    text_units,
)

from crossloom.interop import siglip
from crossloom.modalities.lay import fill

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

SIZE, LIMIT, PAD = 50, 8, 1
TEXT = {
    "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": LIMIT,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
TEXTS = [[3, 4, 1], [20, 21, 22, 23, 24, 30, 31, 1], [7, 1]]


def reference():
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    out = spread(transformers.SiglipModel(config))
    with torch.no_grad():  # the library starts both at zero; published weights are like these
        out.logit_scale.fill_(4.77)
        out.logit_bias.fill_(-12.9)
    return out


def read(theirs, folder):
    config = json.loads(theirs.config.to_json_string(use_diff=False))
    return siglip.read(config, theirs.state_dict(), folder)


def test_states_loss_and_gradients_are_those_of_transformers(tmp_path):
    theirs = reference()
    recipe, weights = read(theirs, tmp_path)
    ours = model(recipe, weights)
    images, patches = pictures(3, 16), recipe.modalities["image"]
    units = [
        {"text": fill(text_units(t), LIMIT, PAD), "image": image_units(i, patches)}
        for t, i in zip(TEXTS, images, strict=True)
    ]
    given = batch(recipe, units)
    ids = torch.tensor([t + [PAD] * (LIMIT - len(t)) for t in TEXTS])

    out = theirs(input_ids=ids, pixel_values=pixels(images, patches), return_loss=True)
    encoded = ours.encode(given.views["itc"])
    near(encoded.states["text"], out.text_model_output.last_hidden_state.flatten(0, 1))
    near(encoded.states["image"], out.vision_model_output.last_hidden_state.flatten(0, 1))
    features = ours.heads["itc"].predict(encoded)
    near(features, torch.stack([out.text_embeds, out.image_embeds], 1))

    # a scale beyond CLIP's limit of 100 is taken as it is
    loss = ours(given)["itc"]["loss"] / len(TEXTS)
    assert loss > 1
    torch.testing.assert_close(loss, out.loss, rtol=1e-5, atol=1e-5)
    out.loss.backward()
    loss.backward()
    found = siglip.write(recipe, gradients(ours))[1]
    expected = gradients(theirs)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        # the loss is scaled by 118: gradients are large, and so is their rounding
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=GRADIENT)
        # a bias of keys shifts all scores of a softmax alike, which changes nothing
        assert gradient.abs().max() > 0 or name.endswith("k_proj.bias"), name


def test_there_and_back_gives_the_same_bits_and_loads(tmp_path):
    from safetensors.torch import save_file

    theirs = reference()
    recipe, weights = read(theirs, tmp_path)
    config, back = siglip.write(recipe, model(recipe, weights).state_dict())
    same_bits(back, theirs.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = transformers.SiglipModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.rand(1, 3, 16, 16)
    ids = torch.tensor([[3, 4, *[PAD] * 6]])
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids, pixel_values=images) for m in (loaded, theirs))
    near(one.logits_per_image, other.logits_per_image)


def test_the_pads_are_read(tmp_path):
    recipe, weights = read(reference(), tmp_path)
    ours = model(recipe, weights)
    image = image_units(pictures(1, 16)[0], recipe.modalities["image"])
    features = []
    for pad in (PAD, 9):
        units = {"text": fill(text_units([3, 4, 1]), LIMIT, pad), "image": image}
        given = batch(recipe, [units])
        features.append(ours.heads["itc"].predict(ours.encode(given.views["itc"]))[0])
    assert (features[0][0] - features[1][0]).abs().max() > 0.01
    near(features[0][1], features[1][1], 1e-7)


def test_other_models_are_refused_with_the_reason(tmp_path):
    recipe, weights = read(reference(), tmp_path)
    text = replace(recipe.modalities["text"], filled=False)
    with pytest.raises(ValueError, match="filled"):
        siglip.write(replace(recipe, modalities={**recipe.modalities, "text": text}), weights)
    with pytest.raises(ValueError, match="vision_use_head"):
        siglip.read({"vision_config": {"vision_use_head": False}}, {}, tmp_path)


def test_ids_are_those_of_transformers(tmp_path):
    import sentencepiece

    lines = ["a red ball lies on the table", "two dogs run", "the small cat sleeps well"] * 20
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "spiece"), vocab_size=60,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "spiece.model"
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    from crossloom.modalities.text import Text
    from crossloom.units import Passage, keyed_rng

    theirs = SiglipTokenizer(str(path))
    text = Text(vocabulary=str(path), layout="siglip", limit=24, filled=True)
    for line in ("A red ball, lies!", "Two   DOGS (run).", "zebra", "the cat " * 30):
        units = text.decode({"text": (Passage("en", line),)}, keyed_rng("x"))
        expected = theirs(line, padding="max_length", truncation=True, max_length=24)["input_ids"]
        assert units.content["token"].tolist() == expected
        assert not units.maskable[units.content["token"] == 1].any()
    assert text.predictable() == {}
