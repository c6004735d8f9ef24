"""Russian: three genders; genitive after слева от and нет, instrumental after над and под."""

from crossloom.data_pipelines.world.language import Language, Thing

#: Gender; nominative, genitive, instrumental.
_NOUN = {
    "circle": ("m", "круг", "круга", "кругом"),
    "square": ("m", "квадрат", "квадрата", "квадратом"),
    "triangle": ("m", "треугольник", "треугольника", "треугольником"),
    "star": ("f", "звезда", "звезды", "звездой"),
    "heart": ("n", "сердце", "сердца", "сердцем"),
    "moon": ("f", "луна", "луны", "луной"),
}
_CASES = ("nom", "gen", "ins")
_HARD = {"m": ("ый", "ого", "ым"), "n": ("ое", "ого", "ым"), "f": ("ая", "ой", "ой")}
_SOFT = {"m": ("ий", "его", "им"), "n": ("ее", "его", "им"), "f": ("яя", "ей", "ей")}
_VELAR = {"m": ("ий", "ого", "им"), "n": ("ое", "ого", "им"), "f": ("ая", "ой", "ой")}
_STRESSED = {"m": ("ой", "ого", "им"), "n": ("ое", "ого", "им"), "f": ("ая", "ой", "ой")}
_ADJECTIVE = {
    "red": ("красн", _HARD),
    "green": ("зелён", _HARD),
    "blue": ("син", _SOFT),
    "yellow": ("жёлт", _HARD),
    "black": ("чёрн", _HARD),
    "white": ("бел", _HARD),
    "small": ("маленьк", _VELAR),
    "large": ("больш", _STRESSED),
}


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef and def (nominative), gen, ins, noun.gen, noun.ins, noun, colour."""
    gender, *cases = _NOUN.get(thing.shape, ("f", "", "", ""))

    def adjective(word: str, case: int) -> str:
        stem, endings = _ADJECTIVE[word]
        return stem + endings[gender][case]

    if form == "colour":
        return adjective(thing.colour, 0)
    case = next((n for n, c in enumerate(_CASES) if form.endswith(c)), 0)
    if form.startswith("noun"):
        return cases[case]
    words = [adjective(w, case) for w in (thing.size, thing.colour) if w]
    return " ".join([*words, cases[case]])


_SIDE = {
    "left": ("слева от", "gen"),
    "right": ("справа от", "gen"),
    "above": ("над", "ins"),
    "below": ("под", "ins"),
}
LANGUAGE = Language(
    code="ru",
    name="Russian",
    phrase=phrase,
    words={
        **{w: tuple(cases) for w, (_, *cases) in _NOUN.items()},
        **{
            w: tuple(stem + e for g in endings.values() for e in g)
            for w, (stem, endings) in _ADJECTIVE.items()
        },
    },
    last=" и ",
    patterns={
        "list": "На картинке {items}.",
        "exists": "Есть {a}.",
        "absent": "Нет {a:gen}.",
        "is": "{a:noun} {b:colour}.",
        "larger": "{a:noun} больше {b:noun.gen}.",
        "q_colour": "Какого цвета {a:noun}?",
        "q_count": "Сколько здесь фигур?",
        "q_exists": "Есть ли {a}?",
        "q_shape": "Какая фигура {a:colour}?",
        "q_same": "{a:noun} и {b:noun} одного цвета?",
        "q_larger": "{a:noun} больше {b:noun.gen}?",
        **{f"relation.{r}": f"{{a}} находится {s} {{b:{c}}}." for r, (s, c) in _SIDE.items()},
        **{
            f"place.{r}": f"{{a:noun}} находится {s} {{b:noun.{c}}}." for r, (s, c) in _SIDE.items()
        },
        **{f"q_side.{r}": f"{{a:noun}} {s} {{b:noun.{c}}}?" for r, (s, c) in _SIDE.items()},
        "refer.colour": "{a:colour} фигура",
        **{f"refer.{r}": f"фигура {s} {{a:noun.{c}}}" for r, (s, c) in _SIDE.items()},
    },
)
