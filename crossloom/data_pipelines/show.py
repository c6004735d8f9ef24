"""A page that shows what shards hold: pictures with boxes, texts by language, sound, counts."""

from __future__ import annotations

import base64
import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.reader import sample_json
from crossloom.data_pipelines.remote import shown
from crossloom.data_pipelines.shards import Shard, describe, open_shards
from crossloom.modalities.arrays import read_npz
from crossloom.units import BadSample, keyed_rng

_COUNTED = 1000  # samples whose texts and labels are counted
_PICTURES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}
_SOUNDS = {"flac": "audio/flac", "wav": "audio/wav", "ogg": "audio/ogg", "mp3": "audio/mpeg"}


def data_uri(members: Mapping[str, bytes], kinds: Mapping[str, str]) -> str:
    """The first member of the kinds as a data URI, or ``""``."""
    for extension, kind in kinds.items():
        if extension in members:
            return f"data:{kind};base64,{base64.b64encode(members[extension]).decode()}"
    return ""


def picture(members: Mapping[str, bytes]) -> str:
    """The sample's picture as a data URI, or ``""``."""
    return data_uri(members, _PICTURES)


def show_shards(patterns: str | Sequence[str], out: Path, count: int = 24) -> None:
    """Write the page: ``count`` samples spread over the shards by a fixed draw, and totals.

    Raises:
        ShardError: shards are missing or no tars.
    """
    import jinja2

    shards = open_shards(patterns)
    ends = list(accumulate(s.samples for s in shards))

    def place(number: int) -> tuple[Shard, int]:
        which = bisect_right(ends, number)
        return shards[which], number - (ends[which] - shards[which].samples)

    samples = [_sample(*place(n)) for n in order_of(ends[-1], count)]
    lengths: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    for number in order_of(ends[-1], _COUNTED):
        content = _content(*place(number))
        lengths.update(min(len(t.split()), 40) for t in _texts(content))
        labels.update(_labels(content))
    totals = describe(shards)
    languages = {
        k.removeprefix("texts."): v for k, v in totals["items"].items() if k.startswith("texts.")
    }
    template = files("crossloom.data_pipelines").joinpath("show.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        title=", ".join(map(shown, [patterns] if isinstance(patterns, str) else patterns)),
        totals=totals,
        languages=sorted(languages.items(), key=lambda x: -x[1]),
        lengths=sorted(lengths.items()),
        labels=labels.most_common(40),
        counted=min(ends[-1], _COUNTED),
        defects=[d for s in shards for d in s.defects],
        samples=samples,
    )
    out.write_text(page, "utf-8")


def order_of(total: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``total``, by a fixed draw, in their order."""
    return sorted(int(n) for n in keyed_rng("show").permutation(total)[:count])


def _content(shard: Shard, number: int) -> dict[str, Any]:
    try:
        return sample_json(shard.read(number))
    except BadSample:
        return {}


def _texts(content: Mapping[str, Any]) -> list[str]:
    texts = content.get("texts")
    some = texts.values() if isinstance(texts, dict) else ()
    return [t for x in some if isinstance(x, list) for t in x if isinstance(t, str)]


def _labels(content: Mapping[str, Any]) -> list[str]:
    """Labels of boxes and pairs, and the best answers of questions."""
    found = [x.get("label") for n in ("boxes", "pairs") for x in _listed(content, n)]
    for question in _listed(content, "questions"):
        if isinstance(answers := question.get("answers"), dict) and answers:
            found.append(max(answers, key=lambda a: (answers[a], a)))
    found.append(content.get("label"))
    return [str(x) for x in found if isinstance(x, str | int)]


def _listed(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = content.get(name)
    return [x for x in value if isinstance(x, dict)] if isinstance(value, list) else []


def _sample(shard: Shard, number: int) -> dict[str, Any]:
    entry = shard.entries[number]
    try:
        members = shard.read(number)
        words = "json" in members or any(m.endswith("txt") for m in members)
        content = sample_json(members) if words else {}
    except BadSample as error:
        members, content = {}, {"error": str(error)}
    texts, questions, pairs = [], [], []
    try:
        texts = [(x, t) for x, some in (content.get("texts") or {}).items() for t in some]
        questions = [
            (next(iter(q.get("text", {}).values()), ""), ", ".join(q.get("answers", {})))
            for q in content.get("questions") or ()
        ]
        for span in content.get("spans") or ():
            language = next(iter(span["text"]))
            answers = ", ".join(a["text"] for a in span["answers"][language])
            questions.append((span["text"][language], answers))
        for choice in content.get("choices") or ():
            language = next(iter(choice["question"]))
            right = choice.get("answer")
            offered = choice["answers"][language]
            answers = " / ".join(offered) if right is None else offered[right]
            questions.append((choice["question"][language], answers))
        pairs = [
            (
                next(iter(p.get("premise", {}).values()), ""),
                next(iter(p["hypothesis"].values())),
                p["label"],
            )
            for p in content.get("pairs") or ()
        ]
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:
        content = {"error": f"json: not in our form ({type(error).__name__}: {error})"}
    return {
        "key": entry.key,
        "shard": shard.name,
        "picture": picture(members),
        "sound": data_uri(members, _SOUNDS),
        "boxes": boxes_of(members) or _listed_boxes(members, content),
        "texts": texts,
        "questions": questions,
        "pairs": pairs,
        "error": content.get("error", ""),
        "plain": "" if texts else members.get("txt", b"").decode("utf-8", "replace"),
    }


def boxes_of(members: Mapping[str, bytes]) -> list[list[float]]:
    """``[x1, y1, x2, y2]`` in shares of width and height; none when there are no regions."""
    if "regions.npz" not in members:
        return []
    try:
        arrays = read_npz(members, "regions.npz")
        width, height = (float(x) for x in arrays["size"])
        return [
            [x1 / width, y1 / height, x2 / width, y2 / height]
            for x1, y1, x2, y2 in arrays["boxes"].tolist()
        ]
    except (BadSample, KeyError, ValueError):
        return []


def _listed_boxes(members: Mapping[str, bytes], content: Mapping[str, Any]) -> list[list[float]]:
    """Boxes of the json, in shares of the picture's width and height."""
    from PIL import Image

    data = next((members[x] for x in _PICTURES if x in members), b"")
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            width, height = image.size
        return [
            [x1 / width, y1 / height, x2 / width, y2 / height]
            for x1, y1, x2, y2 in (b["box"] for b in _listed(content, "boxes"))
        ]
    except Exception:  # Pillow raises almost anything on damaged bytes
        return []
