"""Turkish: the predicate comes last; genitive and possessive for places; vowel harmony."""

from crossloom.data_pipelines.world.language import Language, Thing

#: Nominative, genitive, ablative.
_NOUN = {
    "circle": ("daire", "dairenin", "daireden"),
    "square": ("kare", "karenin", "kareden"),
    "triangle": ("üçgen", "üçgenin", "üçgenden"),
    "star": ("yıldız", "yıldızın", "yıldızdan"),
    "heart": ("kalp", "kalbin", "kalpten"),
    "moon": ("hilal", "hilalin", "hilalden"),
}
_WORD = {
    "red": "kırmızı", "green": "yeşil", "blue": "mavi", "yellow": "sarı", "black": "siyah",
    "white": "beyaz", "small": "küçük", "large": "büyük",
}  # fmt: skip


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, gen, bare, def, def.gen, def.abl, colour."""
    if form == "colour":
        return _WORD[thing.colour]
    case = 1 if form.endswith("gen") else 2 if form.endswith("abl") else 0
    noun = _NOUN[thing.shape][case]
    if form.startswith("def"):
        return noun
    words = [_WORD[w] for w in (thing.size, thing.colour) if w]
    return " ".join([*words, *([] if form == "bare" else ["bir"]), noun])


def finish(text: str) -> str:
    """A capital; i has a dot."""
    return ("İ" if text[:1] == "i" else text[:1].upper()) + text[1:]


_SIDE = {
    "left": ("solunda", "mı"),
    "right": ("sağında", "mı"),
    "above": ("üstünde", "mi"),
    "below": ("altında", "mı"),
}
LANGUAGE = Language(
    code="tr",
    name="Turkish",
    phrase=phrase,
    words={**_NOUN, **{w: (word,) for w, word in _WORD.items()}},
    last=" ve ",
    finish=finish,
    patterns={
        "list": "Resimde {items} var.",
        "exists": "{a} var.",
        "absent": "{a:bare} yok.",
        "is": "{a:def} {b:colour}.",
        "larger": "{a:def} {b:def.abl} daha büyük.",
        "q_colour": "{a:def} ne renk?",
        "q_count": "Kaç şekil var?",
        "q_exists": "{a} var mı?",
        "q_shape": "Hangi şekil {a:colour}?",
        "q_same": "{a:def} ve {b:def} aynı renkte mi?",
        "q_larger": "{a:def} {b:def.abl} daha büyük mü?",
        **{f"relation.{r}": f"{{a}} {{b:gen}} {s}." for r, (s, _) in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} {{b:def.gen}} {s}." for r, (s, _) in _SIDE.items()},
        **{f"q_side.{r}": f"{{a:def}} {{b:def.gen}} {s} {m}?" for r, (s, m) in _SIDE.items()},
        "refer.colour": "{a:colour} şekil",
        **{f"refer.{r}": f"{{a:def.gen}} {s}ki şekil" for r, (s, _) in _SIDE.items()},
    },
)
