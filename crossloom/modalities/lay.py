"""Laying the units of several texts end to end, and cutting what comes out at a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossloom.units import Array, Units, make_units

#: One part of a block: which row, and its first unit and the one past its last.
Part = tuple[int, int, int]


def fill(lengths: Sequence[int], limit: int) -> list[list[Part]]:
    """Rows cut to fill blocks: every unit of every row is in one block.

    A row that is longer than a block fills blocks of its own first, so that most of a long
    text is read in one piece; what is left of the rows is joined in their order, and cut where a
    block is full. Only the last block may lack more than one unit.

    Args:
        lengths: of the rows in units, specials not counted.
        limit: most units of a block, of which a block has one at its beginning (``<s>``) and one
            after each part (``</s>``); at least 3.
    """
    room = limit - 2
    blocks, rests = [], []
    for row, length in enumerate(lengths):
        whole = length - length % room
        blocks += [[(row, at, at + room)] for at in range(0, whole, room)]
        if whole < length:
            rests.append((row, whole, length))
    block: list[Part] = []
    left = limit - 1
    for row, at, end in rests:
        while at < end:
            part = min(end - at, left - 1)
            block.append((row, at, at + part))
            at, left = at + part, left - part - 1
            if left < 2:  # no room for a unit and its </s>
                blocks.append(block)
                block, left = [], limit - 1
    return [*blocks, block] if block else blocks


def lay(rows: Sequence[Units], parts: Sequence[Part]) -> Units:
    """Parts of rows as one example: ``<s> a </s> b </s>``, positions running through.

    Args:
        rows: each with one special at either end, which its parts take over; parts count from the
            unit after the first.
        parts: at least one, as :func:`fill` gives them.
    """
    begin = [rows[parts[0][0]], *(rows[row] for row, _, _ in parts)]
    places = [np.zeros(1, np.int64)]
    places += [np.append(np.arange(b, e) + 1, len(rows[r]) - 1) for r, b, e in parts]

    def along(arrays: Sequence[Array]) -> Array:
        return np.concatenate([a[p] for a, p in zip(arrays, places, strict=True)])

    content = {k: along([u.content[k] for u in begin]) for k in begin[0].content}
    targets = {k: along([u.targets[k] for u in begin]) for k in begin[0].targets}
    groups, last = [], -1
    for units, place in zip(begin, places, strict=True):
        own = units.group[place]
        groups.append(own - own[0] + last + 1)
        last = int(groups[-1].max())
    return make_units(
        content,
        targets=targets,
        maskable=along([u.maskable for u in begin]),
        group=np.concatenate(groups),
    )
