"""Hindi: the verb comes last; adjectives in -ā and nouns take the oblique before postpositions."""

from crossloom.data_pipelines.world.language import Language, Thing

#: Direct and oblique singular; all masculine.
_NOUN = {
    "circle": ("वृत्त", "वृत्त"),
    "square": ("वर्ग", "वर्ग"),
    "triangle": ("त्रिभुज", "त्रिभुज"),
    "star": ("तारा", "तारे"),
    "heart": ("दिल", "दिल"),
    "moon": ("चाँद", "चाँद"),
}
#: Masculine direct, masculine oblique, feminine.
_ADJECTIVE = {
    "red": ("लाल", "लाल", "लाल"),
    "green": ("हरा", "हरे", "हरी"),
    "blue": ("नीला", "नीले", "नीली"),
    "yellow": ("पीला", "पीले", "पीली"),
    "black": ("काला", "काले", "काली"),
    "white": ("सफ़ेद", "सफ़ेद", "सफ़ेद"),
    "small": ("छोटा", "छोटे", "छोटी"),
    "large": ("बड़ा", "बड़े", "बड़ी"),
}


def phrase(thing: Thing, form: str) -> str:
    """Forms: indef, obl, koi, def, def.obl, colour, colour.f (agreeing with आकृति)."""
    if form == "colour":
        return _ADJECTIVE[thing.colour][0]
    if form == "colour.f":
        return _ADJECTIVE[thing.colour][2]
    oblique = form.endswith("obl")
    noun = _NOUN[thing.shape][oblique]
    if form.startswith("def"):
        return noun
    article = "कोई" if form == "koi" else "एक"
    return " ".join(
        [article, *(_ADJECTIVE[w][oblique] for w in (thing.size, thing.colour) if w), noun]
    )


_SIDE = {"left": "के बाईं ओर", "right": "के दाईं ओर", "above": "के ऊपर", "below": "के नीचे"}
LANGUAGE = Language(
    code="hi",
    name="Hindi",
    phrase=phrase,
    words={**_NOUN, **_ADJECTIVE},
    last=" और ",
    patterns={
        "list": "चित्र में {items} दिखाई देते हैं।",
        "exists": "{a} है।",
        "absent": "{a:koi} नहीं है।",
        "is": "{a:def} {b:colour} है।",
        "larger": "{a:def} {b:def.obl} से बड़ा है।",
        "q_colour": "{a:def} किस रंग का है?",
        "q_count": "कितनी आकृतियाँ हैं?",
        "q_exists": "क्या {a} है?",
        "q_shape": "कौन-सी आकृति {a:colour.f} है?",
        "q_same": "क्या {a:def} और {b:def} एक ही रंग के हैं?",
        "q_larger": "क्या {a:def} {b:def.obl} से बड़ा है?",
        **{f"relation.{r}": f"{{a}} {{b:obl}} {s} है।" for r, s in _SIDE.items()},
        **{f"place.{r}": f"{{a:def}} {{b:def.obl}} {s} है।" for r, s in _SIDE.items()},
        **{f"q_side.{r}": f"क्या {{a:def}} {{b:def.obl}} {s} है?" for r, s in _SIDE.items()},
        "refer.colour": "{a:colour.f} आकृति",
        **{f"refer.{r}": f"{{a:def.obl}} {s} की आकृति" for r, s in _SIDE.items()},
    },
)
