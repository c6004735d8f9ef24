"""Laying the units of several texts end to end, and cutting what comes out at a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossloom.units import Array, Units, make_units

#: One part of a block: which row, and its first unit and the one past its last.
Part = tuple[int, int, int]


def blocks(lengths: Sequence[int], limit: int, head: int = 1) -> list[list[Part]]:
    """Rows cut to fill blocks: every unit of every row is in one block.

    A row that is longer than a block fills blocks of its own first, so that most of a long
    text is read in one piece; what is left of the rows is joined in their order, and cut where a
    block is full. Only the last block may lack more than one unit.

    Args:
        lengths: of the rows in units, specials not counted.
        limit: most units of a block, of which a block has ``head`` at its beginning (``<s>``) and
            one after each part (``</s>``); at least 3.
        head: 0 where texts begin without a special.
    """
    room = limit - head - 1
    found, rests = list[list[Part]](), list[Part]()
    for row, length in enumerate(lengths):
        whole = length - length % room
        found += [[(row, at, at + room)] for at in range(0, whole, room)]
        if whole < length:
            rests.append((row, whole, length))
    block: list[Part] = []
    left = limit - head
    for row, at, end in rests:
        while at < end:
            part = min(end - at, left - 1)
            block.append((row, at, at + part))
            at, left = at + part, left - part - 1
            if left < 2:  # no room for a unit and its </s>
                found.append(block)
                block, left = [], limit - head
    return [*found, block] if block else found


def turned(units: Units, by: int) -> Units:
    """The units turned round: the last ``by`` come first, or the first ``-by`` last."""
    place = np.roll(np.arange(len(units)), by)
    return make_units(
        {k: v[place] for k, v in units.content.items()},
        targets={k: v[place] for k, v in units.targets.items()},
        maskable=units.maskable[place],
        group=units.group[place],
    )


def lay(rows: Sequence[Units], parts: Sequence[Part], head: int = 1) -> Units:
    """Parts of rows as one example: ``<s> a </s> b </s>``, positions running through.

    Args:
        rows: each with a special at either end, which its parts take over; parts count from the
            unit after the first.
        parts: at least one, as :func:`blocks` gives them.
        head: 0 where rows begin without a special.
    """
    begin = [rows[parts[0][0]], *(rows[row] for row, _, _ in parts)]
    places = [np.arange(head)]
    places += [np.append(np.arange(b, e) + head, len(rows[r]) - 1) for r, b, e in parts]

    def along(arrays: Sequence[Array]) -> Array:
        return np.concatenate([a[p] for a, p in zip(arrays, places, strict=True)])

    content = {k: along([u.content[k] for u in begin]) for k in begin[0].content}
    targets = {k: along([u.targets[k] for u in begin]) for k in begin[0].targets}
    groups, last = [], -1
    for units, place in zip(begin, places, strict=True):
        own = units.group[place]
        groups.append(own - own[:1] + last + 1)
        last = int(groups[-1].max(initial=last))
    return make_units(
        content,
        targets=targets,
        maskable=along([u.maskable for u in begin]),
        group=np.concatenate(groups),
        languages=begin[0].languages[:1],  # what is joined is of one language
    )


def fill(units: Units, limit: int, pad: int) -> Units:
    """Text units followed by ``<pad>`` up to ``limit``; none of them is ever hidden.

    A pad takes the last unit's language and segment, and the next positions.
    """
    count = limit - len(units)
    content = {k: np.concatenate([v, np.repeat(v[-1:], count)]) for k, v in units.content.items()}
    content["token"][len(units) :] = pad
    targets = {"token": content["token"].copy()}
    if "sentence" in units.targets:
        targets["sentence"] = np.append(units.targets["sentence"], np.repeat(-1, count))
    if "characters" in units.targets:
        told = units.targets["characters"]
        targets["characters"] = np.pad(told, ((0, count), (0, 0)), constant_values=-1)
    return make_units(
        content,
        targets=targets,
        position=np.concatenate([units.position, units.position[-1] + 1 + np.arange(count)]),
        maskable=np.concatenate([units.maskable, np.zeros(count, bool)]),
        group=np.concatenate([units.group, np.repeat(units.group[-1:] + 1, count)]),
        languages=units.languages,
    )
