"""Distillation: the loss by hand, vectors from shards, and what cannot be one."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.vectors import read_vector
from crossloom.data_pipelines.world.scene import direction
from crossloom.evaluation.features import features, read_examples
from crossloom.objectives.regress import Regress
from crossloom.objectives.view import View
from crossloom.recipes.clip import multilingual_clip_distilled, multilingual_clip_distilled_tiny
from crossloom.training.overview import parameters
from crossloom.training.recipe import from_dict, to_dict
from crossloom.training.run import make_model, make_stack
from crossloom.units import BadSample, keyed_rng


@pytest.fixture(scope="module")
def made(world):
    recipe = replace(multilingual_clip_distilled_tiny(), data=str(world), examples=6).located()
    torch.manual_seed(3)
    return recipe, make_model(recipe).eval(), make_stack(recipe)


def test_the_loss_is_the_mean_square_to_the_stored_vector(made, world):
    _, model, stack = made
    batch = stack.micro(0).to("cpu")
    head = model.heads["taught"]
    stored = {}
    for shard in open_shards("train-*.tar", world):
        for number, entry in enumerate(shard.entries):
            stored[f"{shard.name}/{entry.key}"] = np.load(
                io.BytesIO(shard.read(number)["teacher.npy"])
            )
    with torch.no_grad():
        said = model(batch)["taught"]
        states = model.encode(batch.views["taught"]).states["text"]
        stream, total, cosines = batch.views["taught"].streams["text"], 0.0, 0.0
        for example, key in enumerate(batch.keys):
            first = int(stream.start[example])
            mean = states[first : first + int(stream.length[example])].mean(0)
            out = (head.project.weight @ mean + head.project.bias).numpy()
            value = batch.aims["taught"].value[example].numpy()
            assert any(np.array_equal(value, row.astype(np.float32)) for row in stored[key])
            total += ((out - value) ** 2).sum() / 64
            cosines += out @ value / np.linalg.norm(out) / np.linalg.norm(value)
    assert batch.counts["taught"] == 6
    assert float(said["loss"]) == pytest.approx(total, rel=1e-5)
    assert float(said["cosine"]) == pytest.approx(cosines, rel=1e-5)


def test_each_text_has_its_own_vector_in_every_language(world):
    shard = open_shards("train-*.tar", world)[0]
    members = shard.read(0)
    rows = np.load(io.BytesIO(members["teacher.npy"])).astype(np.float32)
    reader = Texts(languages=("en", "sw"), all_texts=True, vectors="teacher.npy")
    for item in range(6):
        _, labels = reader.read(members, item, keyed_rng(item))
        assert (labels["vector"] == rows[item % 3]).all()
    drawn = [Texts(vectors="teacher.npy").read(members, 0, keyed_rng(n))[1] for n in range(30)]
    for labels in drawn:
        number = labels["references"].index(labels["text"])
        assert (labels["vector"] == rows[number]).all()


def test_the_worlds_teacher_means_what_a_caption_names(world):
    import json

    for number in range(5):
        members = open_shards("train-*.tar", world)[0].read(number)
        content = json.loads(members["json"])
        rows = np.load(io.BytesIO(members["teacher.npy"]))
        seen = [direction(o["shape"], o["colour"], o["size"]) for o in content["scene"]]
        assert np.allclose(rows[0], np.mean(seen, axis=0), atol=2e-3)  # all objects
        two = [
            direction(o["shape"], o["colour"], o["size"]) for o in content["scene"]
            if f"{o['colour']} {o['shape']}" in content["texts"]["en"][2]
        ]  # fmt: skip
        assert np.allclose(rows[2], np.mean(two, axis=0), atol=2e-3)


def npy(array, **how):
    data = io.BytesIO()
    np.save(data, array, **how)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (None, "missing member"),
        (b"nothing", "undecodable"),
        (npy(np.array([{}], object), allow_pickle=True), "undecodable"),
        (npy(np.ones(4)), "wrong shape"),
        (npy(np.ones((1, 4))), "wrong shape"),
        (npy(np.ones((2, 4), int)), "wrong shape"),
        (npy(np.array([[1, 2], [3, np.inf]])), "NaN features"),
    ],
)
def test_faults_of_a_sample_are_counted(data, kind):
    members = {} if data is None else {"v.npy": data}
    with pytest.raises(BadSample) as error:
        read_vector(members, "v.npy", 1)
    assert error.value.kind == kind


def test_what_cannot_be_learned_is_refused(made):
    recipe, model, _ = made
    other = {"taught": replace(recipe.objectives["taught"], dim=32)}
    with pytest.raises(ValueError, match=r"has shape \[64\].*says dim 32"):
        make_stack(replace(recipe, objectives=other)).micro(0)
    view = View(name="v", streams=("text",), mismatch="text")
    with pytest.raises(ValueError, match="drop mismatch"):
        Regress(view=view, dim=4).check(recipe.modalities)
    with pytest.raises(ValueError, match="does not show image"):
        Regress(view=View(name="v", streams=("text",)), stream="image", dim=4).check(
            recipe.modalities
        )
    with pytest.raises(ValueError, match="makes vectors of 'text', not of 'image'"):
        model.heads["taught"].features(None, "image")


def test_features_are_the_predictions(made):
    recipe, model, stack = made
    component = recipe.mixture["translations"]
    source = Source("x", open_shards(component.shards, recipe.data), component.reader)
    examples = read_examples(recipe, source, ("text",), most=5)
    found = features(model, recipe, "taught", "text", examples, size=2)
    assert found.shape == (5, 64)
    view = stack.collator.show(recipe.objectives["taught"].view, examples)
    with torch.no_grad():
        expected = model.heads["taught"].predict(model.encode(view.to("cpu")))
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_published_form():
    recipe = multilingual_clip_distilled()
    assert from_dict(to_dict(recipe)) == recipe
    counted = parameters(recipe).parts
    # XLM-R large: 250,002 + 514 + 1 rows and a norm, 24 layers; then 1024 -> 512
    table = (250_002 + 514 + 1 + 2) * 1024
    layer = 12 * 1024**2 + 13 * 1024
    assert counted == {
        "embed.text": table, "layers": 24 * layer, "heads.taught": 1024 * 512 + 512,
    }  # fmt: skip
    assert recipe.objectives["taught"].pool == "mean"
    assert recipe.examples * recipe.micro == 256
