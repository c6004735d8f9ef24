"""Clips: a camera pans over a scene, from left to right, and a voice says what it sees.

A frame is a feature vector, as a video network gives; its code is the entry of a fixed codebook
that lies nearest. As VideoBERT's data (Sun et al., 2019, section 4.1): numbers of clusters beside
a transcript.
"""

from __future__ import annotations

import io

import numpy as np

from crossloom.data_pipelines.world.scene import (
    COLOURS,
    FEATURES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    direction,
)
from crossloom.units import Array, keyed_rng

#: Entries of the codebook: nothing in view, and each object that there can be.
CODES = 1 + len(SHAPES) * len(COLOURS) * len(SIZES)


def codebook() -> Array:
    """The entries, float64 ``[CODES, FEATURES]``; the first is nothing."""
    things = [direction(s, c, z) for s in SHAPES for c in COLOURS for z in SIZES]
    return np.stack([np.zeros(FEATURES), *things])


def frames(scene: Scene, seed: int) -> Array:
    """Features of a clip's frames, float16 ``[N, 64]``: 7 to 20 of them.

    Each object, from left to right, is in view for two to four frames, with one or two frames of
    background before it and after the last.
    """
    rng = keyed_rng("world", seed, scene.key, "clip")
    seen: list[Object | None] = []
    for thing in sorted(scene.objects, key=lambda o: (o.box[0], o.box[1])):
        seen += [None] * int(rng.integers(1, 3)) + [thing] * int(rng.integers(2, 5))
    seen += [None] * int(rng.integers(1, 3))
    still = [
        np.zeros(FEATURES) if o is None else direction(o.shape, o.colour, o.size) for o in seen
    ]
    return (np.stack(still) + rng.normal(size=(len(seen), FEATURES)) * 0.15).astype(np.float16)


def codes_of(features: Array) -> Array:
    """The nearest entry of the codebook for each frame, uint8 ``[N]``."""
    entries = codebook()
    distance = ((features[:, None, :].astype(np.float64) - entries) ** 2).sum(2)
    return distance.argmin(1).astype(np.uint8)


def npy(array: Array) -> bytes:
    """An array as the bytes of an ``npy`` file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()
