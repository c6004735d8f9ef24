"""CLIP of open_clip: features, losses, gradients, and there and back; its tokenizer."""

import json
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
    pictures,
    pixels,
    same_bits,
    spread,
    text_units,
)

from crossloom.interop import open_clip as family
from crossloom.interop.exchange import export_run, import_checkpoint
from crossloom.modalities.text import Text
from crossloom.objectives.contrast import contrast
from crossloom.units import Passage, keyed_rng

pytestmark = pytest.mark.peers

SIZE, LIMIT = 60, 9
CONFIG = {
    "model_cfg": {
        "embed_dim": 20,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": 16, "patch_size": 4, "width": 32, "layers": 3, "head_width": 8,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": LIMIT, "vocab_size": SIZE, "width": 24, "heads": 3, "layers": 2,
        },
    }
}  # fmt: skip
TEXTS = [[58, 3, 4, 59], [58, 20, 21, 22, 23, 24, 59], [58, 7, 59]]


def reference(quick=False):
    import open_clip

    torch.manual_seed(0)
    c = {**CONFIG["model_cfg"], "quick_gelu": quick}
    return spread(open_clip.CLIP(**c, output_dict=True))


@pytest.mark.parametrize("quick", [False, True])
def test_features_loss_and_gradients_are_those_of_open_clip(quick):
    from open_clip.loss import ClipLoss

    theirs = reference(quick)
    config = {"model_cfg": {**CONFIG["model_cfg"], "quick_gelu": quick}}
    recipe, weights = family.read(config, theirs.state_dict(), Path("nowhere"))
    ours = model(recipe, weights)
    images, patches = pictures(3, 16), recipe.modalities["image"]
    units = [
        {"text": text_units(t), "image": image_units(i, patches)}
        for t, i in zip(TEXTS, images, strict=True)
    ]
    given = batch(recipe, units)
    ids = torch.tensor([t + [0] * (LIMIT - len(t)) for t in TEXTS])
    out = theirs(pixels(images, patches), ids)
    features = ours.heads["itc"].predict(ours.encode(given.views["itc"]))
    near(features, torch.stack([out["text_features"], out["image_features"]], 1))

    expected = ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    loss = ours(given)["itc"]["loss"] / len(TEXTS)
    near(loss, expected)
    expected.backward()
    loss.backward()
    found = family.write(recipe, gradients(ours))[1]
    wanted = gradients(theirs)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        near(found[name], gradient, GRADIENT)


def test_the_sigmoid_loss_is_that_of_open_clip():
    from open_clip.loss import SigLipLoss

    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    scale, bias = torch.tensor(11.0), torch.tensor(-3.0)
    expected = SigLipLoss()(a, b, scale, bias)
    found = contrast(a, b, torch.arange(1, 6), torch.ones(5), scale, bias)["loss"] / 5
    near(found, expected)


def test_a_run_written_for_open_clip_loads_there_and_comes_back(tmp_path):
    import open_clip
    from safetensors.torch import load_file, save_file

    theirs = reference()
    given = tmp_path / "given"
    given.mkdir()
    (given / "open_clip_config.json").write_text(json.dumps(CONFIG))
    save_file(theirs.state_dict(), given / "open_clip_model.safetensors")
    done = import_checkpoint(str(given), tmp_path / "run")
    assert done.family == "open_clip"
    assert done.fresh == ("embed.image.mask",)  # CLIP hides no patches
    assert done.left_out == ()
    out = tmp_path / "out"
    export_run(tmp_path / "run", "open_clip", out)
    same_bits(load_file(out / "open_clip_model.safetensors"), theirs.state_dict())

    images = torch.rand(2, 3, 16, 16)
    ids = torch.tensor([[58, 3, 59, 0, 0, 0, 0, 0, 0], [58, 8, 9, 10, 11, 12, 13, 14, 59]])
    with torch.no_grad():
        expected = [theirs.encode_image(images), theirs.encode_text(ids)]
        loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
        near(loaded.eval().encode_image(images), expected[0])
        near(loaded.encode_text(ids), expected[1])
        # and by name, for versions that know no folders
        named = tmp_path / "tiny-of-ours.json"
        named.write_text(
            json.dumps(json.loads((out / "open_clip_config.json").read_text())["model_cfg"])
        )
        open_clip.add_model_config(named)
        loaded, _, _ = open_clip.create_model_and_transforms(
            "tiny-of-ours", pretrained=str(out / "open_clip_model.safetensors")
        )
        near(loaded.eval().encode_text(ids), expected[1])
    assert "size=(16, 16)" in str(preprocess)


def test_what_has_no_counterpart_is_refused():
    for part, key, value in (
        ("vision_cfg", "timm_model_name", "vit_tiny"),
        ("text_cfg", "hf_model_name", "xlm-roberta-base"),
        ("text_cfg", "no_causal_mask", True),
    ):
        c = {**CONFIG["model_cfg"], part: {**CONFIG["model_cfg"][part], key: value}}
        with pytest.raises(ValueError, match=f"{part}.{key}"):
            family.read({"model_cfg": c}, {}, Path("nowhere"))


@pytest.mark.parametrize(
    "line",
    [
        "A photo of a CAT.",
        "two  dogs &amp; a ball",
        "Ça va? 東京 🙂",
        "it's 12 o'clock",
        "x " * 200,
    ],
)
def test_ids_are_those_of_open_clip(line):
    import open_clip

    text = Text(vocabulary="", layout="clip", limit=77)
    units = text.decode({"text": (Passage("", line),)}, keyed_rng("x"))
    expected = open_clip.tokenize([line])[0]
    ids = units.content["token"]
    assert ids.tolist() == expected[: len(ids)].tolist()
    assert not expected[len(ids) :].any()
    assert np.flatnonzero(~units.maskable).tolist() == [0, len(ids) - 1]


def test_nothing_of_clips_text_can_be_hidden():
    from crossloom.objectives.presets import mlm

    text = Text(vocabulary="", layout="clip", size=49408)
    with pytest.raises(ValueError, match="offers none"):
        mlm(("text",)).check({"text": text})
    with pytest.raises(ValueError, match="49408 ids, but the recipe says size: 60"):
        Text(vocabulary="", layout="clip", size=60).vocab  # noqa: B018
