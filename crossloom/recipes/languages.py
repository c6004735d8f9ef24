"""Languages that published systems were trained on, as the sources name them."""

from __future__ import annotations

#: XLM-R's hundred (``fairseq: examples/xlmr/README.md``), ``-rom`` in Latin letters, ``my-zaw`` in
#: Zawgyi's encoding.
CC100 = (
    "af", "am", "ar", "as", "az", "be", "bg", "bn", "bn-rom", "br", "bs", "ca", "cs", "cy", "da",
    "de", "el", "en", "eo", "es", "et", "eu", "fa", "fi", "fr", "fy", "ga", "gd", "gl", "gu", "ha",
    "he", "hi", "hi-rom", "hr", "hu", "hy", "id", "is", "it", "ja", "jv", "ka", "kk", "km", "kn",
    "ko", "ku", "ky", "la", "lo", "lt", "lv", "mg", "mk", "ml", "mn", "mr", "ms", "my", "my-zaw",
    "ne", "nl", "no", "om", "or", "pa", "pl", "ps", "pt", "ro", "ru", "sa", "sd", "si", "sk", "sl",
    "so", "sq", "sr", "su", "sv", "sw", "ta", "ta-rom", "te", "te-rom", "th", "tl", "tr", "ug",
    "uk", "ur", "ur-rom", "uz", "vi", "xh", "yi", "zh", "zh-hant",
)  # fmt: skip

#: mBERT's 104 (``google-research/bert: multilingual.md``), by the codes of their Wikipedias; both
#: scripts of Chinese are one.
WIKIPEDIAS = (
    "af", "an", "ar", "ast", "az", "azb", "ba", "bar", "be", "bg", "bn", "bpy", "br", "bs", "ca",
    "ce", "ceb", "cs", "cv", "cy", "da", "de", "el", "en", "es", "et", "eu", "fa", "fi", "fr",
    "fy", "ga", "gl", "gu", "he", "hi", "hr", "ht", "hu", "hy", "id", "io", "is", "it", "ja", "jv",
    "ka", "kk", "kn", "ko", "ky", "la", "lb", "lmo", "lt", "lv", "mg", "min", "mk", "ml", "mn",
    "mr", "ms", "my", "nds", "ne", "new", "nl", "nn", "no", "oc", "pa", "pl", "pms", "pnb", "pt",
    "ro", "ru", "scn", "sco", "sh", "sk", "sl", "sq", "sr", "su", "sv", "sw", "ta", "te", "tg",
    "th", "tl", "tr", "tt", "uk", "ur", "uz", "vi", "vo", "war", "yo", "zh",
)  # fmt: skip

#: mBART's 25 (Liu et al. 2020, table 1).
CC25 = (
    "ar", "cs", "de", "en", "es", "et", "fi", "fr", "gu", "hi", "it", "ja", "kk", "ko", "lt", "lv",
    "my", "ne", "nl", "ro", "ru", "si", "tr", "vi", "zh",
)  # fmt: skip

#: XNLI's fifteen: XLM's, Unicoder's and ALM's.
XNLI = (
    "ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh",
)  # fmt: skip
