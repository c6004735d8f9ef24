"""Arabic: two genders; adjectives follow and agree; the verb agrees with what exists."""

from crossloom.data_pipelines.world.language import Language, Thing

_NOUN = {
    "circle": ("دائرة", "f"),
    "square": ("مربع", "m"),
    "triangle": ("مثلث", "m"),
    "star": ("نجمة", "f"),
    "heart": ("قلب", "m"),
    "moon": ("هلال", "m"),
}
_ADJECTIVE = {
    "red": ("أحمر", "حمراء"),
    "green": ("أخضر", "خضراء"),
    "blue": ("أزرق", "زرقاء"),
    "yellow": ("أصفر", "صفراء"),
    "black": ("أسود", "سوداء"),
    "white": ("أبيض", "بيضاء"),
    "small": ("صغير", "صغيرة"),
    "large": ("كبير", "كبيرة"),
}


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, def, colour (of ``shape``'s gender, else masculine), yujad (exists)."""
    noun, gender = _NOUN.get(thing.shape, ("", "m"))
    feminine = gender == "f"
    if form == "colour":
        return _ADJECTIVE[thing.colour][feminine]
    if form == "yujad":
        return "توجد" if feminine else "يوجد"
    if form == "def":
        return f"ال{noun}"
    return " ".join([noun, *(_ADJECTIVE[w][feminine] for w in (thing.colour, thing.size) if w)])


_SIDE = {"left": "على يسار", "right": "على يمين", "above": "فوق", "below": "تحت"}
LANGUAGE = Language(
    code="ar",
    name="Arabic",
    phrase=phrase,
    words={**{w: (noun, f"ال{noun}") for w, (noun, _) in _NOUN.items()}, **_ADJECTIVE},
    comma=" و",
    last=" و",
    patterns={
        "list": "في الصورة {items}.",
        "exists": "{a:yujad} {a}.",
        "absent": "لا {a:yujad} {a}.",
        "is": "{a:def} {b:colour}.",
        "larger": "{a:def} أكبر من {b:def}.",
        "q_colour": "ما لون {a:def}؟",
        "q_count": "كم عدد الأشكال؟",
        "q_exists": "هل {a:yujad} {a}؟",
        "q_shape": "أي شكل لونه {a:colour}؟",
        "q_same": "هل {a:def} و{b:def} من اللون نفسه؟",
        "q_larger": "هل {a:def} أكبر من {b:def}؟",
        **{f"relation.{r}": f"{{a:yujad}} {{a}} {s} {{b}}." for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} {s} {{b:def}}." for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"هل {{a:def}} {s} {{b:def}}؟" for r, s in _SIDE.items()},
        "refer.colour": "الشكل ال{a:colour}",
        **{f"refer.{r}": f"الشكل {s} {{a:def}}" for r, s in _SIDE.items()},
    },
)
