"""English."""

from crossloom.data_pipelines.world.language import Language, Thing
from crossloom.data_pipelines.world.scene import COLOURS, SHAPES, SIZES


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, def, bare, colour."""
    if form == "colour":
        return thing.colour
    words = " ".join(w for w in (thing.size, thing.colour, thing.shape) if w)
    article = {"indef": "a ", "def": "the ", "bare": ""}[form]
    return article + words


_SIDE = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
LANGUAGE = Language(
    code="en",
    name="English",
    phrase=phrase,
    words={w: (w,) for w in (*SHAPES, *COLOURS, *SIZES)},
    patterns={
        "list": "The picture shows {items}.",
        "exists": "There is {a}.",
        "absent": "There is no {a:bare}.",
        "is": "{a:def} is {b:colour}.",
        "larger": "{a:def} is larger than {b:def}.",
        "q_colour": "What colour is {a:def}?",
        "q_count": "How many shapes are there?",
        "q_exists": "Is there {a}?",
        "q_shape": "Which shape is {a:colour}?",
        "q_same": "Are {a:def} and {b:def} the same colour?",
        "q_larger": "Is {a:def} larger than {b:def}?",
        **{f"relation.{r}": f"{{a}} is {s} {{b}}." for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} is {s} {{b:def}}." for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"Is {{a:def}} {s} {{b:def}}?" for r, s in _SIDE.items()},
        "refer.colour": "the {a:colour} shape",
        **{f"refer.{r}": f"the shape {s} {{a:def}}" for r, s in _SIDE.items()},
    },
)
