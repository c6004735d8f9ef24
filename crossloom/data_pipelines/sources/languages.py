"""Language codes as the samples carry them: two letters where ISO 639-1 has them, else three.

ISO 639-3 codes are mapped by the table of ISO 639-1 (both the terminological and the
bibliographic codes of ISO 639-2 are known), and individual languages whose macrolanguage has a
two-letter code in common use for them by that code, as BCP 47 recommends: ``cmn`` is ``zh``,
``pes`` is ``fa``, ``zsm`` is ``ms``, ``swh`` is ``sw``, ``lvs`` is ``lv``. Other members of a
macrolanguage keep their code, so that they stay apart: ``yue``, ``wuu``, ``arz``, ``arq``.
"""

from __future__ import annotations

import re
from functools import lru_cache

_ISO_639_1 = """
aar:aa abk:ab afr:af aka:ak amh:am ara:ar arg:an asm:as ava:av ave:ae aym:ay aze:az bak:ba bam:bm
bel:be ben:bn bis:bi bod:bo bos:bs bre:br bul:bg cat:ca ces:cs cha:ch che:ce chu:cu chv:cv cor:kw
cos:co cre:cr cym:cy dan:da deu:de div:dv dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo
fas:fa fij:fj fin:fi fra:fr fry:fy ful:ff gla:gd gle:ga glg:gl glv:gv grn:gn guj:gu hat:ht hau:ha
heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy ibo:ig ido:io iii:ii iku:iu ile:ie ina:ia ind:id
ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks kat:ka kau:kr kaz:kk khm:km kik:ki kin:rw
kir:ky kom:kv kon:kg kor:ko kua:kj kur:ku lao:lo lat:la lav:lv lim:li lin:ln lit:lt ltz:lb lub:lu
lug:lg mah:mh mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nav:nv nbl:nr
nde:nd ndo:ng nep:ne nld:nl nno:nn nob:nb nor:no nya:ny oci:oc oji:oj ori:or orm:om oss:os pan:pa
pli:pi pol:pl por:pt pus:ps que:qu roh:rm ron:ro run:rn rus:ru sag:sg san:sa sin:si slk:sk slv:sl
sme:se smo:sm sna:sn snd:sd som:so sot:st spa:es sqi:sq srd:sc srp:sr ssw:ss sun:su swa:sw swe:sv
tah:ty tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr twi:tw
uig:ug ukr:uk urd:ur uzb:uz ven:ve vie:vi vol:vo wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh
zul:zu
alb:sq arm:hy baq:eu bur:my chi:zh cze:cs dut:nl fre:fr geo:ka ger:de gre:el ice:is mac:mk mao:mi
may:ms per:fa rum:ro slo:sk tib:bo wel:cy
"""
_MACROLANGUAGE = """
arb:ar azj:az cmn:zh ekk:et khk:mn lvs:lv npi:ne ory:or pes:fa plt:mg swh:sw uzn:uz ydd:yi zsm:ms
"""


@lru_cache(maxsize=1)
def _table() -> dict[str, str]:
    rows = (_ISO_639_1 + _MACROLANGUAGE).split()
    return dict(row.split(":") for row in rows)


def language_code(code: str) -> str:
    """The code a sample uses for a language: short where there is a short one.

    >>> language_code("deu"), language_code("cmn"), language_code("yue"), language_code("nb")
    ('de', 'zh', 'yue', 'nb')
    """
    return _table().get(code.lower(), code.lower())


def locale_code(code: str) -> str:
    """The code for a language named together with a region or a script.

    A region goes, since it says little about the writing, except in Chinese, where it tells the
    script: ``zh`` is simplified, ``zh-hant`` traditional. Anything longer than a region stays.

    >>> locale_code("pt_BR"), locale_code("sv-SE"), locale_code("zh_TW"), locale_code("zh-Hans")
    ('pt', 'sv', 'zh-hant', 'zh')
    >>> locale_code("deu"), locale_code("bn_rom"), locale_code("sr-Latn")
    ('de', 'bn-rom', 'sr-latn')
    """
    first, *rest = re.split("[-_]", code.lower())
    language = language_code(first)
    if language == "zh" and rest:
        if set(rest) & {"hant", "tw", "hk", "mo"}:
            return "zh-hant"
        rest = [part for part in rest if part != "hans"]
    kept = [part for part in rest if not re.fullmatch("[a-z]{2}|[0-9]{3}", part)]
    return "-".join([language, *kept])


def chosen_language(option: object) -> str:
    """The code for a language given as an option: YAML reads ``no``, Norwegian, as false."""
    return locale_code("no" if option is False else str(option))
