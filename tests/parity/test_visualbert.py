"""VisualBERT of ``transformers``: states, losses, gradients, and back again."""

import bert_family as family
import numpy as np
import pytest
import torch

from crossloom.interop import visualbert

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
TEXTS, IMAGES = family.TEXTS, family.IMAGES


def reference(cls, **settings):
    config = transformers.VisualBertConfig(
        **family.SMALL, num_hidden_layers=2, visual_embedding_dim=6, pad_token_id=0, **settings
    )
    return family.reference(cls, config)


def test_states_losses_and_gradients_agree(tmp_path):
    theirs = reference(transformers.VisualBertForPreTraining)
    *_, recipe, model = family.imported(visualbert, theirs, tmp_path)
    content = family.words(TEXTS)
    feature = np.random.default_rng(1).normal(size=(sum(IMAGES), 6)).astype(np.float32)
    image = {"feature": feature, "box": np.zeros((sum(IMAGES), 0), np.float32)}
    view = family.view(text=family.flat(content, TEXTS), image=family.flat(image, IMAGES))
    index, value = np.array([1, 3, 7, 8, 15]), np.array([9, 4, 30, 31, 5])
    label = np.full(sum(TEXTS), -100)
    label[index] = value
    unlabelled = torch.full((3, max(IMAGES)), -100)
    matched = torch.tensor([1, 0, 1])
    out = theirs(
        input_ids=family.padded(content["token"], TEXTS),
        token_type_ids=family.padded(content["segment"], TEXTS),
        attention_mask=family.mask(TEXTS),
        visual_embeds=family.padded(feature, IMAGES),
        visual_attention_mask=family.mask(IMAGES),
        labels=torch.cat([family.padded(label, TEXTS, -100), unlabelled], 1),
        sentence_image_labels=matched,
        output_hidden_states=True,
    )
    encoded = model.encode(view)
    last = out.hidden_states[-1]
    for stream, states, lengths in (
        ("text", last[:, : max(TEXTS)], TEXTS),
        ("image", last[:, max(TEXTS) :], IMAGES),
    ):
        family.check_close(encoded.states[stream], family.unpadded(states, lengths), 1e-5)
    mlm = model.heads["mlm"](encoded, family.aim(index, value))["loss"] / len(index)
    same = model.heads["same"](encoded, family.aim([0, 1, 2], matched))["loss"] / 3
    expected = torch.nn.functional.cross_entropy(out.seq_relationship_logits, matched)
    family.check_close(same, expected, 1e-5)
    family.check_close(mlm + same, out.loss, 1e-5)
    (mlm + same).backward()
    out.loss.backward()
    family.check_gradients(visualbert, recipe, model, theirs)


def test_the_round_trip_is_exact(tmp_path):
    cls = transformers.VisualBertForPreTraining
    parts = family.imported(visualbert, reference(cls), tmp_path / "in")
    family.check_written(visualbert, cls, *parts, tmp_path / "out")


def test_another_second_stream_is_refused(tmp_path):
    *_, recipe, model = family.imported(
        visualbert, reference(transformers.VisualBertForPreTraining), tmp_path
    )
    from dataclasses import replace

    image = replace(recipe.modalities["image"], box=4)
    other = replace(recipe, modalities={**recipe.modalities, "image": image})
    with pytest.raises(ValueError, match="image: regions are embedded otherwise"):
        visualbert.write(other, model.state_dict())
