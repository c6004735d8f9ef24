"""Boxes of regions: in shares of the picture, as numbers, and which of them overlap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crossloom.units import Array, BadSample

#: Between the shortest and the longest wavelength of a box in VL-BERT.
WAVE_BASE = 1000


def shares(box: Array, size: Array, field: str) -> Array:
    """Corners in 0..1. Overhang of a pixel, or of half a per cent, is cut off; more is an error."""
    width, height = (float(x) for x in size)
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise BadSample("box outside image", f"{field}: size {width}x{height}; expected pixels")
    scale = np.array([width, height, width, height], np.float32)
    corners = box.astype(np.float32) / scale
    # detectors differ by one in whether x2 is the last pixel or the one after it
    slack = np.maximum(1 / scale, 0.005) + 1e-6
    inside = (corners >= -slack).all(1) & (corners <= 1 + slack).all(1)
    inside &= (corners[:, 2:] >= corners[:, :2]).all(1)
    if not inside.all():
        bad = box[int(np.argmin(inside))].tolist()
        raise BadSample(
            "box outside image",
            f"{field}: box {bad} in an image of {width:.0f}x{height:.0f}; "
            "expected x1 <= x2, y1 <= y2 in pixels, inside the image",
        )
    return corners.clip(0, 1)


def encoded(corners: Array, form: int | str) -> Array:
    """Boxes as numbers, float32 ``[R, 0..7]``; for waves, centre, width and height in per cent."""
    size = corners[:, 2:] - corners[:, :2]
    area = size[:, :1] * size[:, 1:]
    parts = {
        0: [corners[:, :0]],
        4: [corners],
        5: [corners, area],
        6: [corners, size],
        7: [corners, size, area],
        "waves": [50 * (corners[:, :2] + corners[:, 2:]), 100 * size],
    }[form]
    return np.concatenate(parts, axis=1).astype(np.float32)


def overlap_groups(corners: Array, threshold: float) -> Array:
    """Group numbers ``[R]``: connected by intersection over union of at least ``threshold``."""
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    union = area[:, None] + area[None, :] - shared
    near = shared >= threshold * np.maximum(union, 1e-12)
    group = np.arange(len(corners), dtype=np.int64)
    if near.sum() > len(corners):
        while True:
            reached = np.where(near, group[None, :], len(corners)).min(1)
            reached = np.minimum(reached, group)
            if (reached == group).all():
                break
            group = reached
    return group


def waves(box: Tensor, count: int = 256) -> Tensor:
    """Sines, then cosines, of each number at so many wavelengths: ``[N, 4]`` to ``[N, 8 · count]``.

    VL-BERT, section 3.2, after Relation Networks: number / 1000^(i/256) for i in 0..255.
    """
    scale = WAVE_BASE ** (torch.arange(count, device=box.device, dtype=box.dtype) / count)
    phase = box[:, :, None] / scale
    return torch.cat([phase.sin(), phase.cos()], dim=2).flatten(1)
