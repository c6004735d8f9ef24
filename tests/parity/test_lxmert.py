"""LXMERT of ``transformers``: states, every loss, gradients, and back again."""

import json
from dataclasses import replace

import bert_family as family
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.interop import lxmert
from crossloom.training.run import make_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
TEXTS, IMAGES = family.TEXTS, family.IMAGES
N, R = sum(TEXTS), sum(IMAGES)


def reference(cls, **settings):
    config = transformers.LxmertConfig(
        **family.SMALL, l_layers=3, r_layers=2, x_layers=2, visual_feat_dim=6, num_qa_labels=7,
        num_object_labels=5, num_attr_labels=4, **settings,
    )  # fmt: skip
    return family.reference(cls, config)


def test_states_losses_and_gradients_agree(tmp_path):
    theirs = reference(transformers.LxmertForPreTraining)
    *_, recipe, model = family.imported(lxmert, theirs, tmp_path)
    rng = np.random.default_rng(1)
    content = family.words(TEXTS)
    image = {
        "feature": rng.normal(size=(R, 6)).astype(np.float32),
        "box": rng.random((R, 4)).astype(np.float32),
    }
    view = family.view(text=family.flat(content, TEXTS), image=family.flat(image, IMAGES))
    index, value = np.array([1, 3, 7, 8, 15]), np.array([9, 4, 30, 31, 5])
    label = np.full(N, -100)
    label[index] = value
    #: by target: labels of all regions, and their weights
    regions = {
        "class": (rng.integers(0, 5, R), rng.random(R).astype(np.float32)),
        "attribute": (rng.integers(0, 4, R), rng.random(R).astype(np.float32)),
        "feature": (rng.normal(size=(R, 6)).astype(np.float32), np.arange(R) % 3 == 0),
    }
    regions = {k: (v, w.astype(np.float32)) for k, (v, w) in regions.items()}
    names = {"class": "obj", "attribute": "attr", "feature": "feat"}
    matched, answer = torch.tensor([1, 0, 1]), torch.tensor([6, -100, 2])
    out = theirs(
        input_ids=family.padded(content["token"], TEXTS),
        token_type_ids=family.padded(content["segment"], TEXTS),
        attention_mask=family.mask(TEXTS),
        visual_feats=family.padded(image["feature"], IMAGES),
        visual_pos=family.padded(image["box"], IMAGES),
        visual_attention_mask=family.mask(IMAGES),
        labels=family.padded(label, TEXTS, -100),
        obj_labels={
            names[k]: (family.padded(v, IMAGES), family.padded(w, IMAGES))
            for k, (v, w) in regions.items()
        },
        matched_label=matched,
        ans=answer,
        output_hidden_states=True,
    )
    encoded = model.encode(view)
    for stream, states, lengths in (
        ("text", out.language_hidden_states[-1], TEXTS),
        ("image", out.vision_hidden_states[-1], IMAGES),
    ):
        family.check_close(encoded.states[stream], family.unpadded(states, lengths), 1e-5)

    def loss(name, *aim):
        return model.heads[name](encoded, family.aim(*aim))["loss"]

    ours = {
        "mlm": loss("mlm", index, value) / len(index),
        "match": loss("match", [0, 1, 2], matched) / 3,
        # theirs is a mean over all regions of the padded rectangle, times the normaliser
        **{
            k: loss(k, np.arange(R), v, w) / (3 * max(IMAGES)) * 6.67
            for k, (v, w) in regions.items()
        },
        "answers": loss("answers", [0, 2], torch.eye(7)[[6, 2]]) / 2,
    }
    logits = family.unpadded(out.prediction_logits, TEXTS)
    expected = {
        "mlm": F.cross_entropy(logits, torch.from_numpy(label)),
        "match": F.cross_entropy(out.cross_relationship_score, matched),
        "answers": F.cross_entropy(out.question_answering_score, answer),
    }
    scores = theirs.obj_predict_head(out.vision_hidden_states[-1])
    for key, (v, w) in regions.items():
        score = family.unpadded(scores[names[key]], IMAGES)
        target, weight = torch.from_numpy(v), torch.from_numpy(w)
        each = (
            F.smooth_l1_loss(score, target, reduction="none").mean(1)
            if key == "feature"
            else F.cross_entropy(score, target, reduction="none")
        )
        expected[key] = (each * weight).sum() / (3 * max(IMAGES)) * 6.67
    assert ours.keys() == expected.keys()
    for key in ours:
        family.check_close(ours[key], expected[key], 1e-5)
    total = torch.stack(list(ours.values())).sum()
    family.check_close(total, out.loss, 1e-5)
    total.backward()
    out.loss.backward()
    still = ("position_embeddings.weight", "token_type_embeddings.weight")
    family.check_gradients(lxmert, recipe, model, theirs, still)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ForPreTraining", {}),
        ("ForPreTraining", {"visual_obj_loss": False, "task_qa": False}),
        ("ForPreTraining", {"task_obj_predict": False}),
        ("ForQuestionAnswering", {}),
    ],
)
def test_the_round_trip_is_exact(tmp_path, name, settings):
    cls = getattr(transformers, f"Lxmert{name}")
    config, weights, recipe, model = family.imported(
        lxmert, reference(cls, **settings), tmp_path / "in"
    )
    # settings of heads that are not there come back as "no such head"
    if name == "ForQuestionAnswering":
        config["task_obj_predict"] = False
    if not config["task_qa"]:
        config["num_qa_labels"] = 0
    if not config["task_obj_predict"]:
        config |= dict.fromkeys([k for k in config if k.endswith("_loss")], False)
    family.check_written(lxmert, cls, config, weights, recipe, model, tmp_path / "out")


def test_answers_keep_their_names(tmp_path):
    """Those of numbers would be right for "2" and "3", whatever their class stands for."""
    folder = tmp_path / "nameless"
    _, _, recipe, model = family.imported(
        lxmert, reference(transformers.LxmertForPreTraining), folder
    )
    answers = recipe.objectives["answers"]
    assert (answers.classes, answers.count) == ("answers.txt", 7)
    assert "id2label" not in lxmert.write(recipe, model.state_dict())[0]
    names = ("yes", "no", "2", "red", "blue", "left", "right")
    (tmp_path / "answers.txt").write_text("\n".join(names) + "\n")
    listed = replace(answers, classes=str(tmp_path / "answers.txt"))
    named = replace(recipe, objectives={**recipe.objectives, "answers": listed})
    config, weights = lxmert.write(named, model.state_dict())
    theirs = transformers.LxmertConfig(**config)
    assert theirs.id2label == dict(enumerate(names))
    for told in (theirs.to_dict(), json.loads(json.dumps(config))):
        found, _ = lxmert.read(told, weights, folder)
        assert found.objectives["answers"].classes == names


def test_the_published_size_has_as_many_parameters(tmp_path):
    """At its published size, on no device."""
    with torch.device("meta"):
        theirs = transformers.LxmertForPreTraining(transformers.LxmertConfig())
        recipe = lxmert.read(theirs.config.to_dict(), theirs.state_dict(), tmp_path)[0]
        ours = make_model(recipe)
    counts = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert counts == [228_051_752] * 2
