"""The script that a language is usually written in."""

from __future__ import annotations

#: Languages by script, where it is not Latin (CLDR's likely scripts).
_LANGUAGES = {
    "Arabic": "ar arq ary arz ckb dv fa ks ku-arab pnb ps sd ug ur uz-arab",
    "Armenian": "hy",
    "Bengali": "as bn",
    "Burmese": "my",
    "Chinese": "cdo gan hak lzh nan wuu yue zh",
    "Cyrillic": "ab av ba be bg ce chv cu cv kk ky mk mn os ru rue sah sr tg tt tyv udm uk",
    "Devanagari": "awa bh bho gom hi mai mr ne new sa",
    "Ethiopic": "am ti",
    "Georgian": "ka xmf",
    "Greek": "el grc",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Hebrew": "he yi",
    "Japanese": "ja",
    "Kannada": "kn",
    "Khmer": "km",
    "Korean": "ko",
    "Lao": "lo",
    "Malayalam": "ml",
    "Odia": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Tibetan": "bo dz",
}
_SCRIPT = {code: script for script, codes in _LANGUAGES.items() for code in codes.split()}
#: Scripts that codes name themselves.
_NAMED = {
    "arab": "Arabic",
    "cyrl": "Cyrillic",
    "deva": "Devanagari",
    "hans": "Chinese",
    "hant": "Chinese",
    "latn": "Latin",
    "rom": "Latin",
}


def script_of(language: str) -> str:
    """The script of a language's code, Latin where no other is known.

    >>> script_of("de"), script_of("uk"), script_of("sr-latn"), script_of("zh-hant")
    ('Latin', 'Cyrillic', 'Latin', 'Chinese')
    """
    first, *rest = language.lower().replace("_", "-").split("-")
    named = [_NAMED[part] for part in rest if part in _NAMED]
    return named[0] if named else _SCRIPT.get(first, "Latin")
