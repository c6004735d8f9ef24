"""Collections as others lay them out, read as they are.

A sample's ``json`` here says ``texts`` by language (docs/data.md). img2dataset, LAION and DataComp
write one caption in ``txt`` and in ``json``; COCO-like sets list several; parallel text comes as
``translation``, or as one ``LANGUAGE.txt`` member for each language. :func:`adapt` gives each the
common form, so that every reader reads every layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from crossloom.units import BadSample

#: Fields of the common form; a json with one of them is taken as it is.
_OWN = ("texts", "questions", "pairs", "statements", "spans", "refers")
_CAPTIONS = ("captions", "caption", "sentences", "annotations", "text", "translation")
_LANGUAGE = ("language", "lang", "LANGUAGE")
#: Two or three letters, and perhaps a script or region: ``de``, ``yue``, ``zh-Hant``, ``pt_BR``.
_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})?")
#: Names of fields that look like codes and rarely are.
_NO_CODE = {"id", "uid", "url", "key", "md5", "sha"}


def adapt(content: Any, members: Mapping[str, bytes]) -> dict[str, Any]:
    """A sample's json in the common form.

    Texts whose language is not said have the code ``""``.

    Args:
        content: the parsed json; None when the sample has none.
        members: of the sample, whose ``txt`` members are read where the json has no text.

    Raises:
        BadSample: "not UTF-8" (a ``txt`` member), "undecodable" (neither an object nor captions).
    """
    if isinstance(content, dict) and any(k in content for k in _OWN):
        texts = content.get("texts")
        if isinstance(texts, dict) and any(isinstance(t, str) for t in texts.values()):
            return {**content, "texts": _by_language(texts, "")}  # one text where we list several
        return content
    if isinstance(content, list):
        if not (texts := _strings(content)):
            raise BadSample("undecodable", "json: not an object, and no list of captions")
        return {"texts": {"": texts}}
    if content is not None and not isinstance(content, dict):
        raise BadSample("undecodable", "json: not an object")
    content = content or {}
    found: dict[str, list[str]] = {}
    for name in _CAPTIONS:
        if found := _by_language(content.get(name), _language(content)):
            break
    found = found or _by_language(_coded(content), "") or _members(members, _language(content))
    parallel = {"parallel": True} if "translation" in content else {}
    return {**content, **parallel, "texts": found} if found else content


def _language(content: Mapping[str, Any]) -> str:
    said = next((content[n] for n in _LANGUAGE if isinstance(content.get(n), str)), "")
    return said if _CODE.fullmatch(said) else ""


def _coded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields when all are languages (``{"en": …, "de": …}``); ``id`` names the sample."""
    return (
        {k: v for k, v in content.items() if k not in _NO_CODE}
        if all(map(_CODE.fullmatch, content))
        else {}
    )


def _by_language(value: Any, language: str) -> dict[str, list[str]]:
    if isinstance(value, dict):
        return {str(code): texts for code, some in value.items() if (texts := _strings(some))}
    return {language: texts} if (texts := _strings(value)) else {}


def _strings(value: Any) -> list[str]:
    """Texts of a string, a list of strings, or a list of COCO's annotations."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if not isinstance(value, list):
        return []
    texts = []
    for one in value:
        text = next((one[n] for n in ("caption", "raw", "text") if n in one), None) if isinstance(
            one, dict
        ) else one  # fmt: skip
        if isinstance(text, str) and text.strip():
            texts.append(text)
    return texts


def _members(members: Mapping[str, bytes], language: str) -> dict[str, list[str]]:
    """One text for each of ``txt`` (in the language that the json says) and ``LANGUAGE.txt``."""
    found = {}
    for name, data in members.items():
        if name != "txt" and not name.endswith(".txt"):
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadSample("not UTF-8", f"{name}: {error}") from None
        code = name.removesuffix("txt").removesuffix(".") or language
        if text.strip():
            found[code] = [text.strip()]
    return found


_MAGIC = (
    (b"\xff\xd8\xff", "a JPEG", "picture"),
    (b"\x89PNG", "a PNG", "picture"),
    (b"GIF8", "a GIF", "picture"),
    (b"fLaC", "FLAC sound", "sound"),
    (b"OggS", "Ogg sound", "sound"),
    (b"ID3", "MP3 sound", "sound"),
    (b"PK\x03\x04", "a zip", "npz"),
    (b"\x93NUMPY", "an npy", "npy"),
    (b"%PDF", "a PDF", ""),
    (b"\x1f\x8b", "gzip", ""),
    (b"<", "HTML or XML", ""),
    (b"{", "JSON", "json"),
)
_FAMILIES = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "picture"),
    **dict.fromkeys(("flac", "wav", "ogg", "mp3"), "sound"),
    **dict.fromkeys(("npz", "npy", "json"), None),
}


def misnamed(members: Mapping[str, bytes]) -> str:
    """Which member's first bytes are of another kind than its extension says, or ``""``.

    A picture of another format than its name says is no defect: it decodes.

    >>> misnamed({"jpg": b"<html>"})
    'jpg is HTML or XML'
    """
    for name, data in members.items():
        last = name.rpartition(".")[2]
        if last not in _FAMILIES:
            continue
        family = _FAMILIES[last] or last
        head = data[:64].lstrip()
        for magic, what, really in _MAGIC:
            if head.startswith(magic) and really != family:
                return f"{name} is {what}"
        if data[:4] == b"RIFF" and family != ("sound" if data[8:12] == b"WAVE" else "picture"):
            return f"{name} is {'WAVE sound' if data[8:12] == b'WAVE' else 'a WebP'}"
        if family in ("picture", "sound", "npz", "npy") and len(data) > 8 and _plain(data):
            return f"{name} is plain text"
    return ""


def _plain(data: bytes) -> bool:
    try:
        head = data[:256].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < 250:
            return False
        head = data[: error.start].decode("utf-8")
    return all(c.isprintable() or c.isspace() for c in head)
