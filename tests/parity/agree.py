"""Comparing a model here with a reference: batches from arrays, states, losses, gradients."""

import numpy as np
import torch

from crossloom.data_pipelines.collate import Collator, Example
from crossloom.modalities.pictures import cut
from crossloom.training.run import make_model
from crossloom.units import make_units

NEAR, GRADIENT = 1e-5, 1e-4


def pictures(count, size, seed=0):
    """uint8 [count, 3, size, size]"""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)


def pixels(images, patches):
    """What a reference is given: the pictures, normalised."""
    x = torch.from_numpy(images).float() / 255
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (patches.mean, patches.deviation))
    return (x - mean) / deviation


def padded(texts, fill):
    """[E, L] ids and mask."""
    ids = torch.full((len(texts), max(map(len, texts))), fill)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    mask = torch.tensor([[i < len(t) for i in range(ids.shape[1])] for t in texts])
    return ids, mask


def text_units(ids, **content):
    token = np.array(ids, np.int64)
    extra = {k: np.full(len(ids), v, np.int64) for k, v in content.items()}
    return make_units({"token": token, **extra}, targets={"token": token.copy()})


def image_units(picture, patches):
    return patches._units(cut(picture, patches.patch))


def model(recipe, weights):
    """Our model with these weights and no others; evaluation mode."""
    out = make_model(recipe)
    missing = out.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    return out.eval()


def batch(recipe, units, labels=({},)):
    """All objectives on examples given as a mapping from stream to units."""
    labels = list(labels) * len(units) if len(labels) == 1 else labels
    examples = [
        Example(key=str(n), sample=str(n), epoch=0, units=u, labels=known)
        for n, (u, known) in enumerate(zip(units, labels, strict=True))
    ]
    collator = Collator(recipe.modalities, recipe.objectives, recipe.seed)
    return collator.batch(examples, tuple(recipe.objectives), len(examples), others=False).to("cpu")


def gradients(module):
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def near(one, other, within=NEAR):
    torch.testing.assert_close(one, other, rtol=0, atol=within)


def same_bits(one, other):
    assert set(one) == set(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def spread(module, seed=0):
    """Weights at random everywhere: zeros and ones of a fresh model would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.empty(p.shape).normal_(std=0.05, generator=generator)
    return module.eval()
