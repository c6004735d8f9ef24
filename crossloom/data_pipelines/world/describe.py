"""What can be said of a scene: captions, questions, inferences, in every language at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crossloom.data_pipelines.alignment import Span, linked, write_links
from crossloom.data_pipelines.world.language import Language, Thing
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.data_pipelines.world.scene import (
    COLOURS,
    OPPOSITE,
    SHAPES,
    Object,
    Scene,
    relations,
)
from crossloom.units import keyed_rng

#: All answers to all questions.
ANSWERS = tuple(sorted((*COLOURS, *SHAPES, "2", "3", "no", "yes")))
LABELS = ("entailment", "neutral", "contradiction")
Say = Callable[[Language], str]


def everywhere(say: Say) -> dict[str, str]:
    """The same sentence in each language."""
    return {code: say(language) for code, language in LANGUAGES.items()}


def alignments(says: Sequence[Say]) -> dict[str, list[str]]:
    """Which words of sentences translate which, of English and each other language (``en-de``).

    All words of a phrase that names a thing are linked with all of its translation's.
    """
    found: dict[str, list[str]] = {f"en-{code}": [] for code in LANGUAGES if code != "en"}
    for say in says:
        named = {code: _named(say, language) for code, language in LANGUAGES.items()}
        text, spans = named["en"]
        for code, (other, others) in named.items():
            if code != "en":
                both = [shape for shape in spans if shape in others]
                sides = ([spans[s] for s in both], [others[s] for s in both])
                found[f"en-{code}"].append(write_links(linked((text, other), sides)))
    return found


def _named(say: Say, language: Language) -> tuple[str, dict[str, Span]]:
    """A sentence, and where it names the thing of each shape; contracted phrases are left out."""
    phrases: dict[str, str] = {}

    def phrase(thing: Thing, form: str) -> str:
        said = language.phrase(thing, form)
        # a verb that agrees with a thing is a shorter phrase of it
        phrases[thing.shape] = max(phrases.get(thing.shape, ""), said, key=len)
        return said

    text = say(replace(language, phrase=phrase))
    spans = {}
    for shape, said in phrases.items():
        begins = (text.find(form) for form in (said, language.finish(said)))
        if (begin := next((at for at in begins if at >= 0), -1)) >= 0:
            spans[shape] = (begin, begin + len(said))
    return text, spans


def _thing(thing: Object, sized: bool = False) -> Thing:
    return Thing(thing.shape, thing.colour, thing.size if sized else "")


def describe(scene: Scene, seed: int) -> dict[str, Any]:
    """The ``json`` of a sample: texts, alignments, statements, questions, pairs, references, scene.

    Alignments are of the texts' phrases that name things, in English and each other language.
    """
    rng = keyed_rng("world", seed, scene.key, "text")
    premises = _premises(_shuffled(scene, rng), rng)
    said = [everywhere(say) for _, say in premises]
    return {
        "id": scene.key,
        "texts": _by_language(said),
        "alignments": alignments([say for _, say in premises]),
        "statements": _by_language([everywhere(say) for say in _statements(scene, rng)]),
        "questions": _questions(scene, rng),
        "pairs": _pairs(premises, said, rng),
        "refers": _refers(scene, keyed_rng("world", seed, scene.key, "refers")),
        "scene": [
            {"shape": o.shape, "colour": o.colour, "size": o.size, "cell": o.cell, "box": o.box}
            for o in scene.objects
        ],
    }


def named(scene: Scene, seed: int) -> list[tuple[Object, ...]]:
    """The objects that each caption of :func:`describe` names."""
    rng = keyed_rng("world", seed, scene.key, "text")
    return [objects for objects, _ in _premises(_shuffled(scene, rng), rng)]


def _shuffled(scene: Scene, rng: np.random.Generator) -> list[Object]:
    return [scene.objects[int(n)] for n in rng.permutation(len(scene.objects))]


def _by_language(said: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    return {code: [s[code] for s in said] for code in LANGUAGES}


def _statements(scene: Scene, rng: np.random.Generator) -> list[Say]:
    """Short true sentences: a colour, what there is and is not, a place, sizes compared."""
    objects = scene.objects
    one, two, a, b = (objects[int(n)] for n in rng.integers(len(objects), size=4))
    while b is a:
        b = objects[int(rng.integers(len(objects)))]
    missing = _absent(objects, rng)
    side = str(rng.choice(relations(a, b)))
    found: list[Say] = [
        lambda x: x.say("is", Thing(one.shape), Thing(one.shape, one.colour)),
        lambda x: x.say("exists", _thing(two)),
        lambda x: x.say("absent", missing),
        lambda x: x.say(f"place.{side}", Thing(a.shape), Thing(b.shape)),
    ]
    sizes = [(p, q) for p in objects for q in objects if p.size == "large" and q.size == "small"]
    if sizes:
        p, q = sizes[int(rng.integers(len(sizes)))]
        found.append(lambda x: x.say("larger", Thing(p.shape), Thing(q.shape)))
    return found


def _premises(
    order: Sequence[Object], rng: np.random.Generator
) -> list[tuple[tuple[Object, ...], Say]]:
    """Three captions, each with the objects it names: all of them, how two lie, two of them."""
    sized = rng.random(len(order)) < 0.4
    every = [_thing(o, bool(s)) for o, s in zip(order, sized, strict=True)]
    first, second = order[:2]
    side = str(rng.choice(relations(first, second)))
    two = [order[int(n)] for n in rng.permutation(len(order))[:2]]
    return [
        (tuple(order), lambda x: x.say_list(every)),
        (
            (first, second),
            lambda x: x.say(f"relation.{side}", _thing(first), _thing(second)),
        ),
        (tuple(two), lambda x: x.say_list([_thing(o) for o in two])),
    ]


def _questions(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    objects = scene.objects
    found: list[dict[str, Any]] = []

    def ask(kind: str, answer: str, say: Say) -> None:
        found.append(
            {"id": str(len(found)), "kind": kind, "text": everywhere(say), "answers": {answer: 1.0}}
        )

    def some(count: int) -> list[Object]:
        return [objects[int(n)] for n in rng.permutation(len(objects))[:count]]

    def yes() -> bool:
        return bool(rng.random() < 0.5)

    (one,) = some(1)
    ask("colour", one.colour, lambda x: x.say("q_colour", Thing(one.shape)))
    ask("count", str(len(objects)), lambda x: x.say("q_count"))
    there = yes()
    asked = _thing(some(1)[0]) if there else _absent(objects, rng)
    ask("existence", "yes" if there else "no", lambda x: x.say("q_exists", asked))
    a, b = some(2)
    true = yes()
    side = str(rng.choice(relations(a, b)))
    side = side if true else OPPOSITE[side]
    if rng.random() < 0.4:
        ask(
            "place",
            "yes" if true else "no",
            lambda x: x.say(f"q_side.{side}", Thing(a.shape), Thing(b.shape)),
        )
    alone = [o for o in objects if sum(p.colour == o.colour for p in objects) == 1]
    if alone:
        single = alone[int(rng.integers(len(alone)))]
        ask("shape", single.shape, lambda x: x.say("q_shape", Thing("", single.colour)))
    c, d = some(2)
    ask(
        "same colour",
        "yes" if c.colour == d.colour else "no",
        lambda x: x.say("q_same", Thing(c.shape), Thing(d.shape)),
    )
    larger = [(p, q) for p in objects for q in objects if p.size == "large" and q.size == "small"]
    if larger and rng.random() < 0.5:
        p, q = larger[int(rng.integers(len(larger)))]
        true_size = yes()
        p, q = (p, q) if true_size else (q, p)
        ask(
            "size",
            "yes" if true_size else "no",
            lambda x: x.say("q_larger", Thing(p.shape), Thing(q.shape)),
        )
    return found


def _called(thing: Thing) -> Say:
    return lambda x: x.call(thing)


def _refers(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Expressions that fit one object only: each by name, one by its colour, one by its place."""
    objects = scene.objects
    found: list[dict[str, Any]] = []

    def add(kind: str, one: Object, say: Say) -> None:
        entry = {"id": str(len(found)), "kind": kind, "text": everywhere(say), "box": one.box}
        found.append(entry)

    for one in objects:
        thing = _thing(one, bool(rng.random() < 0.3))
        add("name", one, _called(thing if rng.random() < 0.5 else Thing(one.shape)))
    alone = [o for o in objects if sum(p.colour == o.colour for p in objects) == 1]
    if alone:
        single = alone[int(rng.integers(len(alone)))]
        add("colour", single, lambda x: x.say("refer.colour", Thing("", single.colour)))
    placed = [
        (one, mark, side)
        for one in objects
        for mark in objects
        if one is not mark
        for side in relations(one, mark)
        if sum(side in relations(o, mark) for o in objects if o is not mark) == 1
    ]
    if placed:
        one, mark, side = placed[int(rng.integers(len(placed)))]
        add("place", one, lambda x: x.say(f"refer.{side}", Thing(mark.shape)))
    return found


def _absent(objects: Sequence[Object], rng: np.random.Generator) -> Thing:
    """A coloured shape that is not there, half the time with a shape, else a colour, that is."""
    there = {(o.shape, o.colour) for o in objects}
    while True:
        one = objects[int(rng.integers(len(objects)))]
        if rng.random() < 0.5:
            shape, colour = one.shape, str(rng.choice(COLOURS))
        else:
            shape, colour = str(rng.choice(SHAPES)), one.colour
        if (shape, colour) not in there:
            return Thing(shape, colour)


def _pairs(
    premises: Sequence[tuple[tuple[Object, ...], Say]],
    said: Sequence[dict[str, str]],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Four premises with hypotheses; the label follows from the premise's text alone."""
    out = []
    for number in range(4):
        which = int(rng.integers(len(premises)))
        label, say = _hypothesis(premises[which][0], which == 1, premises[which][1], rng)
        out.append(
            {
                "id": str(number),
                "label": label,
                "premise": said[which],
                "hypothesis": everywhere(say),
            }
        )
    return out


def _hypothesis(
    named: Sequence[Object], relational: bool, premise: Say, rng: np.random.Generator
) -> tuple[str, Say]:
    """A label and a sentence; every pattern occurs with several labels.

    What the premise does not name may or may not be there (open world): neutral.
    """
    one = named[int(rng.integers(len(named)))]
    unnamed = str(rng.choice([s for s in SHAPES if s not in {o.shape for o in named}]))
    colour = one.colour if rng.random() < 0.5 else str(rng.choice(COLOURS))
    draw = rng.random()
    if draw < 0.25:
        if rng.random() < 0.55:
            return "entailment", lambda x: x.say("exists", _thing(one))
        return "neutral", lambda x: x.say("exists", Thing(unnamed, colour))
    if draw < 0.5:
        if rng.random() < 0.55:
            return "contradiction", lambda x: x.say("absent", _thing(one))
        return "neutral", lambda x: x.say("absent", Thing(unnamed, colour))
    label = LABELS[int(rng.integers(3))]
    if draw < 0.85 or not relational:
        wrong = str(rng.choice([c for c in COLOURS if c != one.colour]))
        shape, said = {
            "entailment": (one.shape, one.colour),
            "contradiction": (one.shape, wrong),
            "neutral": (unnamed, colour),
        }[label]
        return label, lambda x: x.say("is", Thing(shape), Thing(shape, said))
    first, second = named
    side = _side_said(premise, first, second)
    a, b, how = {
        "entailment": (second.shape, first.shape, OPPOSITE[side]),
        "contradiction": (first.shape, second.shape, OPPOSITE[side]),
        "neutral": (first.shape, unnamed, side),
    }[label]
    return label, lambda x: x.say(f"place.{how}", Thing(a), Thing(b))


def _side_said(premise: Say, first: Object, second: Object) -> str:
    """Which of the relations the premise states."""
    english = LANGUAGES["en"]
    stated = premise(english)
    for side in OPPOSITE:
        if english.say(f"relation.{side}", _thing(first), _thing(second)) == stated:
            return side
    raise AssertionError(f"no relation in {stated!r}")
