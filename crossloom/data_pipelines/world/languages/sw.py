"""Swahili: noun classes (3, 5, 9) agree on adjectives, on -a of colours, and on the verb."""

from crossloom.data_pipelines.world.language import Language, Thing

_NOUN = {
    "circle": ("duara", 5),
    "square": ("mraba", 3),
    "triangle": ("pembetatu", 9),
    "star": ("nyota", 9),
    "heart": ("moyo", 3),
    "moon": ("mwezi", 3),
}
_OF = {3: "wa", 5: "la", 9: "ya"}
#: Subject prefixes: "is at" (-ko) and "has" (-na).
_SUBJECT = {3: "u", 5: "li", 9: "i"}
_AGREEING = {
    "red": {3: "mwekundu", 5: "jekundu", 9: "nyekundu"},
    "black": {3: "mweusi", 5: "jeusi", 9: "nyeusi"},
    "white": {3: "mweupe", 5: "jeupe", 9: "nyeupe"},
    "small": {3: "mdogo", 5: "dogo", 9: "ndogo"},
    "large": {3: "mkubwa", 5: "kubwa", 9: "kubwa"},
}
_INVARIABLE = {
    "green": "kijani", "blue": "bluu", "yellow": "njano",
}  # fmt: skip


def _adjective(word: str, noun_class: int) -> str:
    if word in _AGREEING:
        return _AGREEING[word][noun_class]
    return f"{_OF[noun_class]} {_INVARIABLE[word]}"


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, noun, colour (of ``shape``'s class, else 5), ko, na, kubwa."""
    noun, noun_class = _NOUN.get(thing.shape, ("", 5))
    if form == "colour":
        return _adjective(thing.colour, noun_class)
    if form in ("ko", "na"):
        return _SUBJECT[noun_class] + form
    if form == "kubwa":
        return _adjective("large", noun_class)
    if form == "noun":
        return noun
    return " ".join([noun, *(_adjective(w, noun_class) for w in (thing.size, thing.colour) if w)])


_SIDE = {
    "left": "kushoto kwa",
    "right": "kulia kwa",
    "above": "juu ya",
    "below": "chini ya",
}
LANGUAGE = Language(
    code="sw",
    name="Swahili",
    phrase=phrase,
    words={
        **{w: (noun,) for w, (noun, _) in _NOUN.items()},
        **{w: tuple(classes.values()) for w, classes in _AGREEING.items()},
        **{w: (word,) for w, word in _INVARIABLE.items()},
    },
    last=" na ",
    patterns={
        "list": "Picha inaonyesha {items}.",
        "exists": "Kuna {a}.",
        "absent": "Hakuna {a}.",
        "is": "{a:noun} ni {b:colour}.",
        "larger": "{a:noun} ni {a:kubwa} kuliko {b:noun}.",
        "q_colour": "{a:noun} {a:na} rangi gani?",
        "q_count": "Kuna maumbo mangapi?",
        "q_exists": "Je, kuna {a}?",
        "q_shape": "Umbo gani ni {a:colour}?",
        "q_same": "Je, {a:noun} na {b:noun} vina rangi moja?",
        "q_larger": "Je, {a:noun} ni {a:kubwa} kuliko {b:noun}?",
        **{f"relation.{r}": f"{{a}} {{a:ko}} {s} {{b}}." for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:noun}} {{a:ko}} {s} {{b:noun}}." for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"Je, {{a:noun}} {{a:ko}} {s} {{b:noun}}?" for r, s in _SIDE.items()},
        "refer.colour": "umbo {a:colour}",
        **{f"refer.{r}": f"umbo lililo {s} {{a:noun}}" for r, s in _SIDE.items()},
    },
)
