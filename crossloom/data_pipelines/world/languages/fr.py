"""French: two genders; colour after the noun, size before; de contracts and elides."""

from crossloom.data_pipelines.world.language import Language, Thing

_NOUN = {
    "circle": ("cercle", "m"),
    "square": ("carré", "m"),
    "triangle": ("triangle", "m"),
    "star": ("étoile", "f"),
    "heart": ("cœur", "m"),
    "moon": ("lune", "f"),
}
_ADJECTIVE = {
    "red": ("rouge", "rouge"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "yellow": ("jaune", "jaune"),
    "black": ("noir", "noire"),
    "white": ("blanc", "blanche"),
    "small": ("petit", "petite"),
    "large": ("grand", "grande"),
}


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, bare, de (de + definite), def, colour (of ``shape``'s gender), pron, grand."""
    noun, gender = _NOUN.get(thing.shape, ("", "f"))
    feminine = gender == "f"

    def adjective(word: str) -> str:
        return _ADJECTIVE[word][feminine]

    if form == "colour":
        return adjective(thing.colour)
    if form == "pron":
        return "elle" if feminine else "il"
    if form == "grand":
        return "grande" if feminine else "grand"
    vowel = noun[0] in "éaeiou"
    if form == "def":
        return f"l'{noun}" if vowel else f"{'la' if feminine else 'le'} {noun}"
    if form == "de":
        return f"de l'{noun}" if vowel else f"{'de la' if feminine else 'du'} {noun}"
    words = [adjective(thing.size)] if thing.size else []
    words += [noun] + ([adjective(thing.colour)] if thing.colour else [])
    body = " ".join(words)
    if form == "bare":
        return f"d'{body}" if body[0] in "éaeiou" else f"de {body}"
    return f"{'une' if feminine else 'un'} {body}"


_SIDE = {
    "left": "à gauche",
    "right": "à droite",
    "above": "au-dessus",
    "below": "au-dessous",
}
LANGUAGE = Language(
    code="fr",
    name="French",
    phrase=phrase,
    words={**{w: (noun,) for w, (noun, _) in _NOUN.items()}, **_ADJECTIVE},
    last=" et ",
    patterns={
        "list": "L'image montre {items}.",
        "exists": "Il y a {a}.",
        "absent": "Il n'y a pas {a:bare}.",
        "is": "{a:def} est {b:colour}.",
        "larger": "{a:def} est plus {a:grand} que {b:def}.",
        "q_colour": "De quelle couleur est {a:def} ?",
        "q_count": "Combien de formes y a-t-il ?",
        "q_exists": "Y a-t-il {a} ?",
        "q_shape": "Quelle forme est {a:colour} ?",
        "q_same": "Est-ce que {a:def} et {b:def} sont de la même couleur ?",
        "q_larger": "{a:def} est-{a:pron} plus {a:grand} que {b:def} ?",
        **{f"relation.{r}": f"{{a}} est {s} d'{{b}}." for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} est {s} {{b:de}}." for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"{{a:def}} est-{{a:pron}} {s} {{b:de}} ?" for r, s in _SIDE.items()},
        "refer.colour": "la forme {a:colour}",
        **{f"refer.{r}": f"la forme {s} {{a:de}}" for r, s in _SIDE.items()},
    },
)
