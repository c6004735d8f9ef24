"""German: three genders; mixed declension after ein and kein; dative after places."""

from crossloom.data_pipelines.world.language import Language, Thing

_NOUN = {
    "circle": ("Kreis", "m"),
    "square": ("Quadrat", "n"),
    "triangle": ("Dreieck", "n"),
    "star": ("Stern", "m"),
    "heart": ("Herz", "n"),
    "moon": ("Mond", "m"),
}
_ADJECTIVE = {
    "red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "black": "schwarz",
    "white": "weiß", "small": "klein", "large": "groß",
}  # fmt: skip
_EIN = {
    "nom": {"m": "ein", "n": "ein", "f": "eine"},
    "acc": {"m": "einen", "n": "ein", "f": "eine"},
    "dat": {"m": "einem", "n": "einem", "f": "einer"},
}
_ENDING = {
    "nom": {"m": "er", "n": "es", "f": "e"},
    "acc": {"m": "en", "n": "es", "f": "e"},
    "dat": {"m": "en", "n": "en", "f": "en"},
}
_DER = {"nom": {"m": "der", "n": "das", "f": "die"}, "dat": {"m": "dem", "n": "dem", "f": "der"}}


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, acc, dat, kein (accusative), def, def.dat, colour."""
    if form == "colour":
        return _ADJECTIVE[thing.colour]
    noun, gender = _NOUN[thing.shape]
    if form.startswith("def"):
        return f"{_DER['dat' if form.endswith('dat') else 'nom'][gender]} {noun}"
    case = {"indef": "nom", "kein": "acc"}.get(form, form)
    article = ("k" if form == "kein" else "") + _EIN[case][gender]
    ending = _ENDING[case][gender]
    adjectives = [_ADJECTIVE[w] + ending for w in (thing.size, thing.colour) if w]
    return " ".join([article, *adjectives, noun])


def finish(text: str) -> str:
    """Contract ``von dem``; begin with a capital."""
    text = text.replace("von dem ", "vom ")
    return text[:1].upper() + text[1:]


_SIDE = {"left": "links von", "right": "rechts von", "above": "über", "below": "unter"}
LANGUAGE = Language(
    code="de",
    name="German",
    phrase=phrase,
    words={
        **{w: (noun,) for w, (noun, _) in _NOUN.items()},
        **{
            w: (a, *(a + ending for ending in ("e", "er", "es", "en")))
            for w, a in _ADJECTIVE.items()
        },
    },
    item="acc",
    last=" und ",
    finish=finish,
    patterns={
        "list": "Das Bild zeigt {items}.",
        "exists": "Es gibt {a:acc}.",
        "absent": "Es gibt {a:kein}.",
        "is": "{a:def} ist {b:colour}.",
        "larger": "{a:def} ist größer als {b:def}.",
        "q_colour": "Welche Farbe hat {a:def}?",
        "q_count": "Wie viele Formen gibt es?",
        "q_exists": "Gibt es {a:acc}?",
        "q_shape": "Welche Form ist {a:colour}?",
        "q_same": "Haben {a:def} und {b:def} dieselbe Farbe?",
        "q_larger": "Ist {a:def} größer als {b:def}?",
        **{f"relation.{r}": f"{{a}} ist {s} {{b:dat}}." for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} ist {s} {{b:def.dat}}." for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"Ist {{a:def}} {s} {{b:def.dat}}?" for r, s in _SIDE.items()},
        "refer.colour": "die {a:colour}e Form",
        **{f"refer.{r}": f"die Form {s} {{a:def.dat}}" for r, s in _SIDE.items()},
    },
)
