"""Scenes: a few coloured objects on a grid, each scene a pure function of (seed, split, number)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from crossloom.units import Array, keyed_rng

SHAPES = ("circle", "square", "triangle", "star", "heart", "moon")
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
SIZES = ("small", "large")
SPLITS = ("train", "dev", "test")
#: Pixels of a picture's side, cells of its grid, half the extent of an object by size.
SIDE, CELLS, EXTENT = 96, 3, {"small": 8, "large": 14}
RGB = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "yellow": (245, 205, 40),
    "black": (25, 25, 25),
    "white": (252, 252, 252),
}
#: By relation: axis of the boxes' centres (0 across, 1 down) and the sign of the difference.
RELATIONS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Object:
    """One object."""

    shape: str
    colour: str
    size: str
    cell: int  #: 0..8, row by row
    box: tuple[int, int, int, int]  #: x1, y1, x2, y2 in pixels, enclosing what is drawn


@dataclass(frozen=True)
class Scene:
    """Two or three objects of different shapes."""

    key: str
    objects: tuple[Object, ...]

    def signature(self) -> str:
        """What makes two scenes the same: shapes, colours, sizes and cells."""
        return ";".join(sorted(f"{o.shape},{o.colour},{o.size},{o.cell}" for o in self.objects))


def relations(a: Object, b: Object) -> list[str]:
    """How ``a`` lies to ``b``, on the grid."""
    here, there = divmod(a.cell, CELLS)[::-1], divmod(b.cell, CELLS)[::-1]
    return [r for r, (axis, sign) in RELATIONS.items() if (here[axis] - there[axis]) * sign > 0]


def split_of(signature: str) -> str:
    """The split that a scene belongs to: one in twenty each for dev and test, by hash."""
    number = int.from_bytes(blake2b(signature.encode(), digest_size=4).digest(), "big") % 20
    return {0: "dev", 1: "test"}.get(number, "train")


def make_scene(seed: int, split: str, number: int) -> Scene:
    """The scene of a number in a split; splits share no scene, by construction."""
    rng = keyed_rng("world", seed, split, number)
    while True:
        scene = Scene(f"{split}-{number:07d}", _draw_objects(rng))
        if split_of(scene.signature()) == split:
            return scene


def _draw_objects(rng: np.random.Generator) -> tuple[Object, ...]:
    count = int(rng.integers(2, 4))
    shapes = rng.permutation(len(SHAPES))[:count]
    cells = rng.permutation(CELLS * CELLS)[:count]
    objects = []
    pitch = SIDE // CELLS
    for shape, cell in zip(shapes, cells, strict=True):
        size = SIZES[int(rng.integers(2))]
        half = EXTENT[size]
        row, column = divmod(int(cell), CELLS)
        free = pitch // 2 - half
        x = column * pitch + pitch // 2 + int(rng.integers(-free, free + 1))
        y = row * pitch + pitch // 2 + int(rng.integers(-free, free + 1))
        colour = COLOURS[int(rng.integers(len(COLOURS)))]
        box = (x - half, y - half, x + half, y + half)
        objects.append(Object(SHAPES[int(shape)], colour, size, int(cell), box))
    return tuple(objects)


def _ring(points: int, inner: float, turn: float = -math.pi / 2) -> list[tuple[float, float]]:
    """A star's outline in -1..1: ``points`` tips, dents at radius ``inner``."""
    out = []
    for n in range(2 * points):
        radius = 1.0 if n % 2 == 0 else inner
        angle = turn + math.pi * n / points
        out.append((radius * math.cos(angle), radius * math.sin(angle)))
    return out


def _heart() -> list[tuple[float, float]]:
    curve = []
    for n in range(60):
        t = 2 * math.pi * n / 60
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((math.sin(t) ** 3, -(y + 2.5) / 14.5))
    return curve


def _moon() -> list[tuple[float, float]]:
    outer = [math.radians(a) for a in range(40, 321, 8)]
    inner = [math.radians(a) for a in range(312, 47, -8)]
    tip = (math.cos(math.radians(40)), math.sin(math.radians(40)))
    out = [(math.cos(a), math.sin(a)) for a in outer]
    centre, radius = 0.45, math.hypot(tip[0] - 0.45, tip[1])
    out += [(centre + radius * math.cos(a), radius * math.sin(a)) for a in inner]
    return out


#: Outlines in -1..1 (right, down).
OUTLINES: dict[str, Callable[[], list[tuple[float, float]]]] = {
    "circle": lambda: [
        (math.cos(2 * math.pi * n / 48), math.sin(2 * math.pi * n / 48)) for n in range(48)
    ],
    "square": lambda: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": lambda: [(0, -1), (1, 0.9), (-1, 0.9)],
    "star": lambda: _ring(5, 0.42),
    "heart": _heart,
    "moon": _moon,
}


def draw(scene: Scene, seed: int) -> bytes:
    """The picture as PNG, 96 × 96 RGB, smooth edges, a background that varies a little."""
    from PIL import Image, ImageDraw

    rng = keyed_rng("world", seed, scene.key, "picture")
    tone = [int(x) for x in rng.integers(196, 226, 3)]
    fine = 3
    image = Image.new("RGB", (SIDE * fine, SIDE * fine), tuple(tone))
    pen = ImageDraw.Draw(image)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        x, y, half = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2
        outline = [
            ((x + half * u) * fine, (y + half * v) * fine) for u, v in OUTLINES[thing.shape]()
        ]
        shade = tuple(int(min(255, max(0, c + d))) for c, d in
                      zip(RGB[thing.colour], rng.integers(-12, 13, 3), strict=True))  # fmt: skip
        pen.polygon(outline, fill=shade)
    out = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BOX).save(out, "PNG", compress_level=3)
    return out.getvalue()


#: Numbers in a region's feature, and classes (0 is background).
FEATURES, CLASSES = 64, 1 + len(SHAPES) * len(COLOURS)
CLASS_NAMES = ("background", *(f"{c} {s}" for s in SHAPES for c in COLOURS))
_PARTS = len(SHAPES) + len(COLOURS) + len(SIZES)
#: Fixed directions of shapes, colours and sizes in feature space, as if learned by a detector.
_DIRECTIONS = np.random.Generator(np.random.Philox(key=2021)).normal(size=(_PARTS, FEATURES)) / 2


def direction(shape: str, colour: str, size: str) -> Array:
    """What an object looks like to a network, ``[FEATURES]``: the sum of its parts' directions."""
    return (
        _DIRECTIONS[SHAPES.index(shape)]
        + _DIRECTIONS[len(SHAPES) + COLOURS.index(colour)]
        + _DIRECTIONS[len(SHAPES) + len(COLOURS) + SIZES.index(size)]
    )


def class_of(thing: Object) -> int:
    """The object's class, 1..36."""
    return 1 + SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour)


def regions(scene: Scene, seed: int) -> bytes:
    """What a detector would see, as an ``npz``.

    One region for each object and one or two more (background, or an object seen twice), in random
    order. A feature is the sum of the directions of shape, colour and size with noise; nothing in
    it tells the place.
    """
    rng = keyed_rng("world", seed, scene.key, "regions")
    feature, box, chance = [], [], []
    seen: list[Object | None] = list(scene.objects)
    for _ in range(int(rng.integers(1, 3))):
        twice = rng.random() < 0.3
        seen.append(scene.objects[int(rng.integers(len(scene.objects)))] if twice else None)
    for number, thing in enumerate(seen):
        probability = rng.random(CLASSES) * 0.2 / CLASSES
        if thing is None:
            vector = np.zeros(FEATURES)
            x, y = rng.integers(0, SIDE - 24, 2)
            corners = np.array([x, y, x + 24, y + 24], np.float64)
            probability[0] += 0.8
        else:
            vector = direction(thing.shape, thing.colour, thing.size)
            jitter = rng.normal(size=4) * (1.5 if number >= len(scene.objects) else 0.4)
            corners = np.array(thing.box, np.float64) + jitter
            probability[class_of(thing)] += 0.8
        feature.append(vector + rng.normal(size=FEATURES) * 0.15)
        box.append(corners.clip(0, SIDE))
        chance.append(probability / probability.sum())
    order = rng.permutation(len(seen))
    out = io.BytesIO()
    np.savez(
        out,
        features=np.array(feature, np.float16)[order],
        boxes=np.array(box, np.float32)[order],
        probabilities=np.array(chance, np.float16)[order],
        size=np.array([SIDE, SIDE], np.int32),
    )
    return out.getvalue()
