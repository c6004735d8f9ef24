"""The ten languages of the world."""

from crossloom.data_pipelines.world.language import Language
from crossloom.data_pipelines.world.languages import ar, de, en, es, fr, hi, ru, sw, tr, zh

#: By code, in the order in which samples list them.
LANGUAGES: dict[str, Language] = {
    m.LANGUAGE.code: m.LANGUAGE for m in (en, de, fr, es, ru, ar, hi, zh, sw, tr)
}
