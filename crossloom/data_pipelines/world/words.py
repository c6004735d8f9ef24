"""Words by themselves: a dictionary from English, and what classes are called in each language."""

from __future__ import annotations

from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.data_pipelines.world.scene import CLASS_NAMES


def dictionary() -> str:
    """English word, language, translations, parted by tabs: a line for each word and language."""
    return "".join(
        "\t".join([word, code, *dict.fromkeys(words)]) + "\n"
        for word in LANGUAGES["en"].words
        for code, language in LANGUAGES.items()
        if code != "en"
        for words in [language.words[word]]
    )


def class_table() -> str:
    """The languages, then what each class is called in them, background first, parted by tabs.

    A name is the words for colour and shape as a list of words has them: they do not agree.
    """
    rows = [list(LANGUAGES), [CLASS_NAMES[0]] * len(LANGUAGES)]
    for name in CLASS_NAMES[1:]:
        rows.append([" ".join(x.words[w][0] for w in name.split()) for x in LANGUAGES.values()])
    return "".join("\t".join(row) + "\n" for row in rows)
