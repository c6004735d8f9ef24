"""What the converters share: errors, counting, reading lines, images and JSON, stable splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from crossloom.data_pipelines.write import (
    SHARD_SIZE,
    Member,
    ShardSet,
    TextError,
    find_shards,
    recover,
)

#: Called with the samples done and, when known, how many there will be.
Progress = Callable[[int, int | None], None]


#: What reading a row of another form than expected raises.
BAD_ROW = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)

REPORT = "report.json"
#: Extensions of members that are sound.
SOUNDS = ("flac", "wav", "ogg", "mp3")
_NAMES = 5  # of the items skipped for one reason


class SourceError(ValueError):
    """The input is not what a converter reads: names the file, what was expected, what to do."""


@dataclass(frozen=True)
class Skipped:
    """Items left out for one reason."""

    count: int
    names: tuple[str, ...]  #: the first of them


@dataclass(frozen=True)
class Report:
    """What became of an input."""

    source: str
    counts: Mapping[str, Mapping[str, int]]
    """By split: ``samples``, members (``images``, ``sounds``, ``regions``), and items of the json
    (``texts.en``, ``questions``, ``pairs``, ``pairs.en``, ``boxes``, ``spans``, ``refers``,
    ``choices``)."""
    skipped: Mapping[str, Skipped]
    """By reason."""

    @property
    def samples(self) -> dict[str, int]:
        """Samples by split."""
        return {split: counts["samples"] for split, counts in self.counts.items()}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "counts": {k: dict(v) for k, v in self.counts.items()},
            "skipped": {
                k: {"count": v.count, "names": list(v.names)} for k, v in self.skipped.items()
            },
        }

    def __str__(self) -> str:
        lines = []
        for split, counts in self.counts.items():
            lines.append(f"{self.source} {split}: {_told(counts)}")
        for reason, items in self.skipped.items():
            more = ", …" if items.count > len(items.names) else ""
            lines.append(f"skipped {items.count}: {reason} ({', '.join(items.names)}{more})")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(str(self))


class Conversion:
    """One run of a converter: writes samples, counts them, and counts what it leaves out.

    Use as a context manager around the writing; ``report`` afterwards. A conversion has its folder
    to itself: with ``overwrite`` the shards of the conversion that wrote the folder's
    ``report.json`` are replaced, all of them, also those of splits that are made no more.
    """

    def __init__(
        self,
        source: str,
        out: Path,
        *,
        shard_size: int = SHARD_SIZE,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Prepare to write.

        Raises:
            SourceError: the folder holds shards and ``overwrite`` is not set.
        """
        self.source = source
        self.total: int | None = None  #: samples expected, for ``progress``
        self._progress = progress
        self._counts: dict[str, Counter[str]] = {}
        self._skipped: dict[str, list[Any]] = {}
        out = Path(out)
        recover(out)
        if not overwrite and (found := find_shards(out)):
            raise SourceError(
                f"{found[0]}: {out} already holds shards; give another folder, or replace them "
                "with --overwrite"
            )
        self._set = ShardSet(
            out, prefixes=_prefixes(out), shard_size=shard_size, overwrite=overwrite
        )

    def write(
        self,
        split: str,
        key: str,
        content: Mapping[str, Any],
        image: Image | None = None,
        *,
        sound: Sound | None = None,
        others: Mapping[str, Member] | None = None,
        numbered: bool = False,
    ) -> None:
        """Write one sample: the bytes of image and sound as they are, other members, and the json.

        A sample whose json is not valid Unicode is left out, and counted. ``numbered`` keys take no
        memory, see :meth:`ShardSet.write`.
        """
        members: dict[str, Member] = {x.extension: x.data for x in (image, sound) if x}
        members |= others or {}
        try:
            self._set.write(split, key, {**members, "json": content}, numbered=numbered)
        except TextError:
            self.skip("text is not valid Unicode", f"{split}/{key}")
            return
        counts = self._counts.setdefault(split, Counter())
        counts["samples"] += 1
        counts.update(map(_member_kind, members))
        counts.update(_item_counts(content))
        if self._progress:
            self._progress(sum(c["samples"] for c in self._counts.values()), self.total)

    def has(self, split: str, key: str) -> bool:
        """Whether a sample of the split has this key, which was not ``numbered``."""
        return self._set.has(split, key)

    def skip(self, reason: str, name: str, count: int = 1) -> None:
        """Count ``count`` items left out for a reason, known by a name."""
        entry = self._skipped.setdefault(reason, [0, []])
        entry[0] += count
        if len(entry[1]) < _NAMES:
            # a name may hold what cannot be written; the report must be
            entry[1].append(name.encode("utf-8", "backslashreplace").decode("utf-8"))

    def add_file(self, name: str, content: str | bytes) -> None:
        """Put a file beside the shards."""
        self._set.add_file(name, content)

    @property
    def report(self) -> Report:
        """Counts so far."""
        counts = {
            split: {k: v for k, v in sorted(c.items(), key=_samples_first) if v}
            for split, c in self._counts.items()
        }
        skipped = {k: Skipped(n, tuple(names)) for k, (n, names) in self._skipped.items()}
        return Report(self.source, counts, skipped)

    def __enter__(self) -> Conversion:
        self._set.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._finish()
            except BaseException as late:
                self._set.__exit__(type(late), late, late.__traceback__)
                raise
        self._set.__exit__(kind, error, trace)

    def _finish(self) -> None:
        if not self._counts:
            why = "; ".join(
                f"{v[0]} skipped: {k}, first {v[1][0]}" for k, v in self._skipped.items()
            )
            raise SourceError(
                f"{self.source}: the input gives no sample ({why or 'its files are empty'}); "
                "compare it with the layout in docs/data.md"
            )
        text = json.dumps(self.report.as_dict(), ensure_ascii=False, indent=1)
        self._set.add_file(REPORT, text + "\n", renewed=True)


def _samples_first(item: tuple[str, int]) -> tuple[bool, bool, bool, str]:
    return item[0] != "samples", item[0] != "images", item[0] != "sounds", item[0]


def _member_kind(name: str) -> str:
    """What a member counts as: ``images``, or what stands before the last dot (``regions``)."""
    first, _, form = name.rpartition(".")
    if form in SOUNDS:
        return "sounds"
    return "images" if form in ("jpg", "png") else first.rpartition(".")[2] or form


def _item_counts(content: Mapping[str, Any]) -> Mapping[str, int]:
    counts = {k: len(v) for k, v in content.items() if isinstance(v, list)}
    counts |= {f"texts.{k}": len(v) for k, v in content.get("texts", {}).items()}
    for language in (k for pair in content.get("pairs", ()) for k in pair["hypothesis"]):
        counts[f"pairs.{language}"] = counts.get(f"pairs.{language}", 0) + 1
    return counts


def _told(counts: Mapping[str, int]) -> str:
    """Counts in a line; many languages are summed up."""
    parts = []
    for name, count in counts.items():
        languages = [k for k in counts if k.startswith(f"{name.partition('.')[0]}.")]
        if "." not in name or len(languages) <= 12:
            parts.append(f"{count} {name}")
        elif name == languages[0]:
            total = sum(counts[k] for k in languages)
            parts.append(f"{total} {name.partition('.')[0]} in {len(languages)} languages")
    return ", ".join(parts)


def _prefixes(out: Path) -> tuple[str, ...]:
    """Splits that an earlier conversion wrote to the folder."""
    try:
        return tuple(json.loads((out / REPORT).read_bytes())["counts"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


# --- stable choices -----------------------------------------------------------------------------


def stable_fraction(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = blake2b("\x1f".join(map(str, key)).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def hold_back(names: Iterable[str], salt: str, **counts: int) -> dict[str, str]:
    """Split by name: so many of each held-back split, the rest ``train``, chosen by hash."""
    ordered = sorted(names, key=lambda name: (stable_fraction(salt, name), name))
    splits = dict.fromkeys(ordered, "train")
    rest = iter(ordered)
    for split, count in counts.items():
        for _ in range(count):
            splits[next(rest)] = split
    return splits


def draw_split(salt: str, name: str, test: float, dev: float) -> str:
    """The split of what has a name, by hash, with these shares held back."""
    share = stable_fraction(salt, name)
    return "test" if share < test else "dev" if share < test + dev else "train"


def check_shares(**shares: float) -> None:
    """Shares held back must be in 0..1 and leave something to train on.

    Raises:
        SourceError: they are not.
    """
    if any(not 0 <= s < 1 for s in shares.values()) or sum(shares.values()) >= 1:
        told = ", ".join(f"{k}={v}" for k, v in shares.items())
        raise SourceError(f"{told}: shares held back are fractions, together below 1")


# --- files --------------------------------------------------------------------------------------


def need_input(path: Path | None, source: str, holds: str, what: str = "file") -> Path:
    """The input, there or not.

    Raises:
        SourceError: not given.
    """
    if path is None:
        raise SourceError(f"{source}: give the {what} to convert ({holds})")
    return Path(path)


def need_folder(path: Path | None, source: str, holds: str) -> Path:
    """The input folder.

    Raises:
        SourceError: not given, or not there.
    """
    path = need_input(path, source, holds, "folder")
    if not path.is_dir():
        raise SourceError(f"{path}: no such folder; {source} reads a folder with {holds}")
    return path


def need_package(name: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        SourceError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise SourceError(
            f"{name}: not installed; `pip install 'crossloom[{extra}]'` brings what this reads"
        ) from None


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first path that is there."""
    return next((p for p in candidates if p.exists()), None)


def read_json(path: Path, expected: str, hook: Callable[[Any], Any] | None = None) -> Any:
    """A parsed JSON file.

    Args:
        path: the file.
        expected: what it should hold, for the error.
        hook: applied to each object as soon as it is read, so that what is not needed of a large
            file never adds up.

    Raises:
        SourceError: missing or not JSON.
    """
    if not path.is_file():
        raise SourceError(f"{path}: missing; it should hold {expected}")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, object_hook=hook)
    except ValueError as error:
        raise SourceError(
            f"{path}: not JSON ({error}); it should hold {expected}; download it again"
        ) from None


@dataclass(frozen=True)
class Image:
    """An encoded image as it was found."""

    extension: Literal["jpg", "png"]
    data: bytes


@dataclass(frozen=True)
class Sound:
    """Encoded sound as it was found."""

    extension: Literal["flac", "wav", "ogg", "mp3"]
    data: bytes


def as_image(data: bytes) -> Image | None:
    """The image that bytes are, told by the first of them; None if neither JPEG nor PNG."""
    if data.startswith(b"\xff\xd8\xff"):
        return Image("jpg", data)
    return Image("png", data) if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def read_image(path: Path, to: Conversion, name: str, count: int = 1) -> Image | None:
    """An image's bytes; when there are none or they are neither JPEG nor PNG, None, and counted.

    Args:
        path: of the image.
        to: where it is counted.
        name: what to call it there.
        count: how many items are lost with it.
    """
    if not path.is_file():
        to.skip("image missing", name, count)
        return None
    return to_image(path.read_bytes(), to, name, count)


def to_image(data: bytes, to: Conversion, name: str, count: int = 1) -> Image | None:
    """An image of its bytes; None, and counted, when they are neither JPEG nor PNG."""
    image = as_image(data)
    if image is None:
        to.skip("image is neither JPEG nor PNG", name, count)
    return image


def answer_list(answers: Sequence[str]) -> str:
    """The text of ``answers.txt``: one answer a line; those that are not valid Unicode go."""
    return "".join(f"{answer}\n" for answer in answers).encode("utf-8", "ignore").decode("utf-8")
