"""Spanish: two genders; adjectives after the noun; de + el contracts."""

from crossloom.data_pipelines.world.language import Language, Thing

_NOUN = {
    "circle": ("círculo", "m"),
    "square": ("cuadrado", "m"),
    "triangle": ("triángulo", "m"),
    "star": ("estrella", "f"),
    "heart": ("corazón", "m"),
    "moon": ("luna", "f"),
}
_ADJECTIVE = {
    "red": ("rojo", "roja"),
    "green": ("verde", "verde"),
    "blue": ("azul", "azul"),
    "yellow": ("amarillo", "amarilla"),
    "black": ("negro", "negra"),
    "white": ("blanco", "blanca"),
    "small": ("pequeño", "pequeña"),
    "large": ("grande", "grande"),
}


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, ningun, def, colour (of ``shape``'s gender, else feminine)."""
    noun, gender = _NOUN.get(thing.shape, ("", "f"))
    feminine = gender == "f"
    if form == "colour":
        return _ADJECTIVE[thing.colour][feminine]
    if form == "def":
        return f"{'la' if feminine else 'el'} {noun}"
    article = {"indef": ("un", "una"), "ningun": ("ningún", "ninguna")}[form][feminine]
    words = [_ADJECTIVE[w][feminine] for w in (thing.colour, thing.size) if w]
    return " ".join([article, noun, *words])


def finish(text: str) -> str:
    """Contract ``de el``; begin with a capital, behind the opening mark."""
    text = text.replace(" de el ", " del ")
    start = 1 if text.startswith("¿") else 0
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


_SIDE = {
    "left": "a la izquierda de",
    "right": "a la derecha de",
    "above": "encima de",
    "below": "debajo de",
}
LANGUAGE = Language(
    code="es",
    name="Spanish",
    phrase=phrase,
    words={**{w: (noun,) for w, (noun, _) in _NOUN.items()}, **_ADJECTIVE},
    last=" y ",
    finish=finish,
    patterns={
        "list": "La imagen muestra {items}.",
        "exists": "Hay {a}.",
        "absent": "No hay {a:ningun}.",
        "is": "{a:def} es {b:colour}.",
        "larger": "{a:def} es más grande que {b:def}.",
        "q_colour": "¿De qué color es {a:def}?",
        "q_count": "¿Cuántas formas hay?",
        "q_exists": "¿Hay {a}?",
        "q_shape": "¿Qué forma es {a:colour}?",
        "q_same": "¿Son {a:def} y {b:def} del mismo color?",
        "q_larger": "¿Es {a:def} más grande que {b:def}?",
        **{f"relation.{r}": f"{{a}} está {s} {{b}}." for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} está {s} {{b:def}}." for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"¿está {{a:def}} {s} {{b:def}}?" for r, s in _SIDE.items()},
        "refer.colour": "la forma {a:colour}",
        **{f"refer.{r}": f"la forma {s} {{a:def}}" for r, s in _SIDE.items()},
    },
)
