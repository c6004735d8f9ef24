"""Vectors that another model made of a sample's texts, kept in a member beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from crossloom.units import Array, BadSample


def read_vector(members: Mapping[str, bytes], name: str, number: int) -> Array:
    """One row of a member, float32 ``[D]``.

    Args:
        members: of the sample.
        name: of an ``npy``, ``[T, D]`` of any float type.
        number: of the text.

    Raises:
        BadSample: "missing member", "undecodable", "wrong shape" (fewer rows than texts, or no
            matrix), "NaN features".
    """
    if name not in members:
        found = ", ".join(sorted(members))
        raise BadSample("missing member", f"no {name}; the sample has {found}")
    try:
        rows = np.lib.format.read_array(io.BytesIO(members[name]), allow_pickle=False)
    except Exception as error:  # damaged headers raise almost anything
        raise BadSample(
            "undecodable", f"{name}: not a readable npy ({type(error).__name__}: {error})"
        ) from None
    if rows.ndim != 2 or rows.dtype.kind != "f" or number >= len(rows):
        raise BadSample(
            "wrong shape",
            f"{name}: {rows.dtype} {list(rows.shape)}; text {number} needs a row of numbers, as "
            "each text of one language has",
        )
    vector = rows[number].astype(np.float32)
    if not np.isfinite(vector).all():
        raise BadSample("NaN features", f"{name}: row {number} is not all finite")
    return vector
