"""ViLT of transformers: states, losses, gradients, and there and back."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from agree import (
    GRADIENT,
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

from crossloom.batch import AimBatch, Batch, Stream, ViewBatch
from crossloom.interop import vilt

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

CONFIG = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 16, "patch_size": 4, "max_position_embeddings": 9,
}  # fmt: skip
#: 4 stands for the mask
TEXTS = [[2, 10, 4, 12, 3], [2, 20, 3], [2, 4, 31, 32, 33, 4, 35, 36, 3]]
HIDDEN = [(0, 2, 17), (2, 1, 30), (2, 5, 41)]


def reference(head="ViltForMaskedLM"):
    torch.manual_seed(0)
    return spread(getattr(transformers, head)(transformers.ViltConfig(**CONFIG)))


def read(theirs, folder):
    config = json.loads(theirs.config.to_json_string(use_diff=False))
    return vilt.read(config, theirs.state_dict(), folder)


def stream(units):
    return Stream.build(
        {k: np.concatenate([u.content[k] for u in units]) for k in units[0].content},
        {},
        np.concatenate([u.position for u in units]),
        np.zeros(sum(map(len, units)), bool),
        np.array([len(u) for u in units]),
    )


def shown(recipe, images):
    """Both views, the same: what is hidden is written in the ids."""
    starts = np.cumsum([0, *map(len, TEXTS)])
    view = ViewBatch(
        streams={
            "text": stream([text_units(t, segment=0) for t in TEXTS]),
            "image": stream([image_units(i, recipe.modalities["image"]) for i in images]),
        }
    )
    index = np.array([starts[e] + place for e, place, _ in HIDDEN])
    value = np.array([v for _, _, v in HIDDEN])
    aims = {"mlm": AimBatch(index=index, value=value, weight=np.ones(3, np.float32))}
    if "itm" in recipe.objectives:
        matched = AimBatch(
            index=np.arange(3), value=np.array([1, 0, 1]), weight=np.ones(3, np.float32)
        )
        aims["itm"] = matched
    views = {o.view.name: view for o in recipe.objectives.values()}
    return Batch(views=views, aims=aims, counts={}, keys=()).to("cpu")


def test_states_losses_and_gradients_are_those_of_transformers(tmp_path):
    theirs = reference()
    recipe, weights = read(theirs, tmp_path)
    assert set(recipe.objectives) == {"mlm", "itm"}
    ours = model(recipe, weights)
    images = pictures(3, 16)
    given = shown(recipe, images)
    ids, mask = padded(TEXTS, fill=0)
    labels = torch.full_like(ids, -100)
    for example, place, value in HIDDEN:
        labels[example, place] = value
    inputs = {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "pixel_values": pixels(images, recipe.modalities["image"]),
    }

    # the reference draws an order of its patches; every picture is full, so that it can be undone
    torch.manual_seed(3)
    out = theirs.vilt(**inputs)
    encoded = ours.encode(next(iter(given.views.values())))
    length = ids.shape[1]
    near(encoded.states["text"], out.last_hidden_state[:, :length][mask])
    picture = out.last_hidden_state[:, length:]
    mine = encoded.states["image"].view(3, 17, -1)
    near(mine[:, 0], picture[:, 0])
    for one, other in zip(mine[:, 1:], picture[:, 1:], strict=True):
        nearest = torch.cdist(one, other).argmin(1)
        assert sorted(nearest.tolist()) == list(range(16))
        near(one, other[nearest])
    pooled = ours.heads["itm"].pooler(encoded)
    near(pooled, out.pooler_output)

    expected = theirs(**inputs, labels=labels).loss
    score = ours.heads["itm"].score
    matching = F.cross_entropy(
        F.linear(theirs.vilt(**inputs).pooler_output, score.weight, score.bias),
        torch.tensor([1, 0, 1]),
    )
    losses = ours(given)
    near(losses["mlm"]["loss"] / 3, expected)
    near(losses["itm"]["loss"] / 3, matching)
    score_gradients = torch.autograd.grad(matching, list(score.parameters()), retain_graph=True)
    (expected + matching).backward()
    score.zero_grad()
    (losses["mlm"]["loss"] / 3 + losses["itm"]["loss"] / 3).backward()
    for mine, other in zip(score.parameters(), score_gradients, strict=True):
        near(mine.grad, other, GRADIENT)
    found = vilt.write(recipe, gradients(ours))[1]
    for name, gradient in gradients(theirs).items():
        near(found[name], gradient, GRADIENT)
        assert gradient.abs().max() > 0 or name.endswith("key.bias"), name


@pytest.mark.parametrize("head", ["ViltForMaskedLM", "ViltModel"])
def test_there_and_back_gives_the_same_bits_and_loads(head, tmp_path):
    from safetensors.torch import save_file

    theirs = reference(head)
    recipe, weights = read(theirs, tmp_path)
    assert ("mlm" in recipe.objectives) == (head == "ViltForMaskedLM")
    config, back = vilt.write(recipe, model(recipe, weights).state_dict())
    assert config["architectures"] == [head]
    same_bits(back, theirs.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    cls = getattr(transformers, head)
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    same_bits(loaded.state_dict(), theirs.state_dict())


def test_other_models_are_refused_with_the_reason(tmp_path):
    recipe, weights = read(reference(), tmp_path)
    with pytest.raises(ValueError, match="last shared"):
        vilt.write(replace(recipe, plan=replace(recipe.plan, last="each")), weights)
    with pytest.raises(ValueError, match="modality_type_vocab_size"):
        vilt.read({"modality_type_vocab_size": 3}, {}, tmp_path)
    with pytest.raises(ValueError, match="qkv_bias"):
        vilt.read({"qkv_bias": False}, {}, tmp_path)


def test_a_table_longer_than_the_texts_is_told_as_it_is(world):
    from crossloom.recipes.vilt import vilt_tiny
    from crossloom.training.recipe import override
    from crossloom.training.run import make_model

    recipe = override(vilt_tiny(), [f"data={world}", "modalities.text.limit=20"]).located()
    ours = make_model(recipe)
    config, weights = vilt.write(recipe, ours.state_dict())
    name = "text_embeddings.position_embeddings.weight"
    (table,) = (v for k, v in weights.items() if k.endswith(name))
    assert config["max_position_embeddings"] == len(table) > 20
