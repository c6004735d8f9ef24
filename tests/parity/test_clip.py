"""CLIP of transformers: states, loss, gradients, and there and back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from agree import (
    GRADIENT,
    batch,
    gradients,
    image_units,
    model,
    near,
    padded,
    pictures,
    pixels,
    same_bits,
    spread,
    text_units,
)

from crossloom.interop import clip

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

SIZE = 60
TEXT = {
    "vocab_size": SIZE, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 9, "bos_token_id": SIZE - 2,
    "eos_token_id": SIZE - 1,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
TEXTS = [[58, 3, 4, 59], [58, 20, 21, 22, 23, 24, 59], [58, 7, 59]]


def reference(activation="quick_gelu"):
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**TEXT, "hidden_act": activation},
        vision_config={**VISION, "hidden_act": activation},
        projection_dim=20,
    )
    return spread(transformers.CLIPModel(config))


def read(theirs):
    config = json.loads(theirs.config.to_json_string(use_diff=False))
    return clip.read(config, theirs.state_dict(), Path("nowhere"))


def shown(recipe, texts=TEXTS):
    images = pictures(len(texts), 16)
    patches = recipe.modalities["image"]
    units = [
        {"text": text_units(t), "image": image_units(i, patches)}
        for t, i in zip(texts, images, strict=True)
    ]
    return batch(recipe, units), pixels(images, patches)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_states_loss_and_gradients_are_those_of_transformers(activation):
    theirs = reference(activation)
    recipe, weights = read(theirs)
    ours = model(recipe, weights)
    given, images = shown(recipe)
    ids, mask = padded(TEXTS, fill=SIZE - 1)

    out = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=images, return_loss=True)
    encoded = ours.encode(given.views["itc"])
    near(encoded.states["text"], out.text_model_output.last_hidden_state[mask])
    image = theirs.vision_model.post_layernorm(out.vision_model_output.last_hidden_state)
    near(encoded.states["image"], image.flatten(0, 1))
    features = ours.heads["itc"].predict(encoded)
    near(features, torch.stack([out.text_embeds, out.image_embeds], 1))

    loss = ours(given)["itc"]["loss"] / len(TEXTS)
    near(loss, out.loss)
    out.loss.backward()
    loss.backward()
    found = clip.write(recipe, gradients(ours))[1]
    expected = gradients(theirs)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        near(found[name], gradient, GRADIENT)
        # a bias of keys shifts all scores of a softmax alike, which changes nothing
        assert gradient.abs().max() > 0 or name.endswith("k_proj.bias"), name


def test_there_and_back_gives_the_same_bits_and_loads(tmp_path):
    from safetensors.torch import save_file

    theirs = reference()
    recipe, weights = read(theirs)
    config, back = clip.write(recipe, model(recipe, weights).state_dict())
    same_bits(back, theirs.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    same_bits(loaded.state_dict(), theirs.state_dict())
    ids, _ = padded(TEXTS[:1], 0)
    images = torch.from_numpy(np.float32(pictures(1, 16)) / 255)
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids, pixel_values=images) for m in (loaded, theirs))
    near(one.logits_per_image, other.logits_per_image)


def test_what_the_text_tower_reads_later_cannot_change_its_first_units():
    recipe, weights = read(reference())
    ours = model(recipe, weights)
    one, _ = shown(recipe, [[58, 3, 4, 59]] * 2)
    other, _ = shown(recipe, [[58, 3, 9, 10, 11, 59]] * 2)
    a, b = (ours.encode(x.views["itc"]).states["text"] for x in (one, other))
    near(a[:2], b[:2], 1e-6)
    assert (a[2] - b[2]).abs().max() > 0.01


def test_other_models_are_refused_with_the_reason():
    recipe, weights = read(reference())
    free = replace(recipe.modalities["text"], norm=True)
    with pytest.raises(ValueError, match="normed"):
        clip.write(replace(recipe, modalities={**recipe.modalities, "text": free}), weights)
    contrast = replace(recipe.objectives["itc"], pools={})
    with pytest.raises(ValueError, match="last unit"):
        clip.write(replace(recipe, objectives={"itc": contrast}), weights)
    with pytest.raises(ValueError, match="hidden_act"):
        clip.read({"text_config": {"hidden_act": "swish"}}, {}, Path("nowhere"))


def test_what_lies_beside_the_model_prepares_inputs_as_the_recipe_does(tmp_path):
    from PIL import Image

    from crossloom.modalities.text import Text
    from crossloom.units import Passage, keyed_rng

    full = replace(read(reference())[0].modalities["text"], size=49408, limit=77)
    recipe = read(reference())[0]
    recipe = replace(recipe, modalities={**recipe.modalities, "text": full})
    for name, content in clip.files(recipe).items():
        (tmp_path / name).write_text(content)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    text = Text(vocabulary="", layout="clip", limit=77)
    for line in ("A photo of two CATS", "it's 7 o'clock!"):
        units = text.decode({"text": (Passage("", line),)}, keyed_rng("x"))
        assert tokenizer(line)["input_ids"] == units.content["token"].tolist()
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    images = pictures(1, 16)
    found = processor(Image.fromarray(images[0].transpose(1, 2, 0)), return_tensors="pt")
    near(found["pixel_values"], pixels(images, recipe.modalities["image"]))
    # and read back, its statistics are taken from there
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 20}
    again = clip.read(config, reference().state_dict(), tmp_path)[0]
    assert again.modalities["image"].mean == (0.1, 0.2, 0.3)
