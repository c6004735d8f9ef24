"""A page that shows what shards hold: pictures with boxes, texts by language, sound, counts."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.shards import Shard, describe, open_shards
from crossloom.modalities.regions import read_npz
from crossloom.units import BadSample, keyed_rng

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
    places = [(s, n) for s in shards for n in range(len(s.entries))]
    order = keyed_rng("show").permutation(len(places))[:count]
    samples = [_sample(*places[int(n)]) for n in sorted(order)]
    lengths = Counter(min(len(t.split()), 40) for s in samples for _, t in s["texts"])
    totals = describe(shards)
    languages = {
        k.removeprefix("texts."): v for k, v in totals["items"].items() if k.startswith("texts.")
    }
    template = files("crossloom.data_pipelines").joinpath("show.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        title=", ".join([patterns] if isinstance(patterns, str) else patterns),
        totals=totals,
        languages=sorted(languages.items(), key=lambda x: -x[1]),
        lengths=sorted(lengths.items()),
        samples=samples,
    )
    out.write_text(page, "utf-8")


def _sample(shard: Shard, number: int) -> dict[str, Any]:
    entry = shard.entries[number]
    try:
        members = shard.read(number)
        content = json.loads(members["json"]) if "json" in members else {}
    except (BadSample, ValueError) as error:
        members, content = {}, {"error": str(error)}
    texts = [(x, t) for x, some in (content.get("texts") or {}).items() for t in some]
    questions = [
        (next(iter(q.get("text", {}).values()), ""), ", ".join(q.get("answers", {})))
        for q in content.get("questions") or ()
    ]
    for span in content.get("spans") or ():
        language = next(iter(span["text"]))
        answers = ", ".join(a["text"] for a in span["answers"][language])
        questions.append((span["text"][language], answers))
    pairs = [
        (
            next(iter(p.get("premise", {}).values()), ""),
            next(iter(p["hypothesis"].values())),
            p["label"],
        )
        for p in content.get("pairs") or ()
    ]
    return {
        "key": entry.key,
        "shard": Path(shard.path).name,
        "picture": picture(members),
        "sound": data_uri(members, _SOUNDS),
        "boxes": boxes_of(members),
        "texts": texts,
        "questions": questions,
        "pairs": pairs,
        "error": content.get("error", ""),
        "plain": members.get("txt", b"").decode("utf-8", "replace"),
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
