"""Checkpoints: pieces of tensors, written aside by every process, hashed, renamed.

A checkpoint is a directory ``checkpoints/step-000001000``:

- ``rank-00000.safetensors``, … hold what each process had to save: stretches of tensors laid flat,
  with the shapes of the whole ones, and where each stretch begins, in the file's own header;
- ``state.json``: the step, counters and identities;
- ``manifest.json``: sizes and SHA-256 of the others, written last.

Any number of processes can read what any other number has written, whatever spread the model over
them: a stretch is put together from those that cover it. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAME = "step-"
_FORMAT = 2  #: 1 had `model.safetensors` and `state.safetensors`
_DONE = ".done"  #: beside a process's file until the checkpoint is complete: its size and hash


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and what to do."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a tensor laid flat, as one process holds it."""

    value: Tensor  #: [n], a view of what is trained where there is such a thing
    shape: tuple[int, ...]  #: of the whole tensor
    start: int = 0  #: where the stretch begins in the whole one
    shared: bool = False  #: every process holds the same; the first one saves it

    @classmethod
    def whole(cls, tensor: Tensor) -> Piece:
        """All of a tensor that every process holds."""
        return cls(tensor.detach().view(-1), tuple(tensor.shape), shared=True)

    def beside(self, value: Tensor) -> Piece:
        """Another tensor's stretch, at the same place."""
        return Piece(value.detach().view(-1), self.shape, self.start, self.shared)


# --- writing -------------------------------------------------------------------------------------


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies once it is complete."""
    return folder / f"{_NAME}{step:09d}"


def _aside(folder: Path, step: int) -> Path:
    return folder / f".{_NAME}{step:09d}.partial"


def write_part(folder: Path, step: int, rank: int, pieces: Mapping[str, Piece]) -> None:
    """Write one process's share aside, and then that it is all there.

    Raises:
        OSError: disk full, no permission; complete checkpoints have not been touched.
    """
    from safetensors.torch import save_file

    aside = _aside(folder, step)
    aside.mkdir(parents=True, exist_ok=True)
    path = aside / f"rank-{rank:05d}.safetensors"
    header = {n: {"shape": list(p.shape), "start": p.start} for n, p in pieces.items()}
    save_file({n: p.value for n, p in pieces.items()}, path, {"pieces": json.dumps(header)})
    flush(path)
    write_atomically(path.with_suffix(_DONE), json.dumps(_fingerprint(path)))


def commit(folder: Path, step: int, notes: Mapping[str, Any], names: Collection[str] = ()) -> Path:
    """Make a checkpoint of the parts that lie aside: called once, when all are there.

    Args:
        folder, step: where, and of which step.
        notes: what else is to be known of it.
        names: tensors that must be among the parts.

    Raises:
        OSError: as :func:`write_part`; or the parts are not the whole.
    """
    aside, final = _aside(folder, step), folder_of(folder, step)
    files = {}
    for done in sorted(aside.glob(f"*{_DONE}")):
        files[done.with_suffix(".safetensors").name] = json.loads(done.read_text())
        done.unlink()
    write_atomically(aside / "state.json", json.dumps({"step": step, **notes}, indent=1))
    files["state.json"] = _fingerprint(aside / "state.json")
    manifest = {"format": _FORMAT, "files": files}
    write_atomically(aside / "manifest.json", json.dumps(manifest, indent=1))
    try:
        found = Checkpoint(aside)
        found.check_whole()
        if lacking := sorted(set(names) - found.shapes.keys()):
            raise CheckpointError(f"{aside}: lacks {lacking[0]}")
    except CheckpointError as error:  # a part that this process does not see, or one too many
        raise OSError(f"{error}; do all processes write to one folder?") from None
    flush(aside)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    flush(folder)
    return final


def discard(folder: Path, step: int) -> None:
    """Give up what lies aside of a step."""
    shutil.rmtree(_aside(folder, step), ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove everything that was never completed: before a run begins to write."""
    for path in folder.glob(f".{_NAME}*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints of later steps, which were refused, to ``refused-step-…``.

    They would be taken for the newest ones where a number of them is kept.
    """
    for path in checkpoints(folder):
        if _step(path) > step:
            aside = path.with_name(f"refused-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def prune(folder: Path, keep: int, every: int = 0) -> None:
    """Remove all but the newest ``keep``, and those of steps that ``every`` divides."""
    for old in checkpoints(folder)[:-keep] if keep > 0 else []:
        if not every or _step(old) % every:
            shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file by new content in one step.

    Raises:
        OSError: it cannot be written; it names the file itself, not what stands in for it.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)
        flush(aside)
        os.replace(aside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        aside.unlink(missing_ok=True)


# --- reading -------------------------------------------------------------------------------------


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_NAME))


def checkpoints(folder: Path) -> list[Path]:
    """Complete-looking checkpoints, oldest first."""
    found = folder.glob(f"{_NAME}*") if folder.is_dir() else []
    return sorted(p for p in found if p.name.removeprefix(_NAME).isdigit())


def verify(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: names the file that is missing, differs, or does not belong there.
    """
    known = _manifest(path)
    for name, fingerprint in known.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != fingerprint["size"] or _fingerprint(file) != fingerprint:
            raise CheckpointError(f"{file}: differs from its manifest (damaged or swapped)")
    for file in sorted(path.glob("rank-*")):
        if file.name not in known:
            raise CheckpointError(f"{file}: not in the manifest (of another checkpoint?)")
    if (step := json.loads((path / "state.json").read_text())["step"]) != _step(path):
        raise CheckpointError(f"{path / 'state.json'}: of step {step}, as the whole directory")
    Checkpoint(path).check_whole()


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"{path / 'manifest.json'}: missing or unreadable") from None
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path / 'manifest.json'}: of another version of crossloom; start a new run from the "
            f"run's weights (start=…/{'model.safetensors'})"
        )
    return dict(manifest["files"])


class Checkpoint:
    """A checkpoint on disk; tensors are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Open it, without comparing hashes (:func:`verify` does).

        Raises:
            CheckpointError: it has no manifest, or not all of its files.
        """
        from safetensors import SafetensorError, safe_open

        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: list[Any] = []
        #: by name: where stretches begin and end, and the file that holds them
        self._stretches: dict[str, list[tuple[int, int, Any]]] = {}
        for name in _manifest(path):
            if not name.endswith(".safetensors"):
                continue
            try:
                file = safe_open(path / name, "pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path / name}: cannot be read ({error})") from None
            for tensor, place in json.loads(file.metadata()["pieces"]).items():
                self.shapes[tensor] = tuple(place["shape"])
                (length,) = file.get_slice(tensor).get_shape()
                stretch = (place["start"], place["start"] + length, file)
                self._stretches.setdefault(tensor, []).append(stretch)
        self.notes: dict[str, Any] = json.loads((path / "state.json").read_text())
        self.step = int(self.notes["step"])

    def read(self, name: str, start: int, end: int) -> Tensor:
        """A stretch ``[end - start]`` of a tensor laid flat.

        Raises:
            ValueError: there is no such tensor.
            CheckpointError: processes' files do not hold all of it.
        """
        if name not in self._stretches:
            raise ValueError(f"the checkpoint has no {name}; was it made by another recipe?")
        found, have = [], start
        for first, last, file in sorted(self._stretches[name], key=lambda x: x[:2]):
            if first <= have < min(last, end):
                found.append(file.get_slice(name)[have - first : min(last, end) - first])
                have = min(last, end)
        if start == end:
            return torch.zeros(0)
        if have < end:
            raise CheckpointError(f"{self.path}: {name} lacks what lies from {have} to {end}")
        return torch.cat(found) if len(found) != 1 else found[0]

    def check_whole(self) -> None:
        """Compare the processes' stretches with the tensors' shapes.

        Raises:
            CheckpointError: names the first tensor of which something is lacking, or there twice.
        """
        for name, shape in self.shapes.items():
            have = 0
            for first, last, _ in sorted(self._stretches[name], key=lambda x: x[:2]):
                if first != have:
                    fault = "lacks" if first > have else "has twice"
                    which = "from {} to {}".format(*sorted((first, have)))
                    raise CheckpointError(f"{self.path}: {name} {fault} what lies {which}")
                have = last
            if have != (size := math.prod(shape)):
                raise CheckpointError(f"{self.path}: {name} lacks what lies from {have} to {size}")

    def whole(self, name: str) -> Tensor:
        """A tensor in its own shape."""
        if name not in self.shapes:
            raise ValueError(f"the checkpoint has no {name}; was it made by another recipe?")
        shape = self.shapes[name]
        return self.read(name, 0, math.prod(shape)).view(shape)

    def fill(self, name: str, piece: Piece) -> None:
        """Copy into a piece what the checkpoint has for it.

        Raises:
            ValueError: there is no such tensor, or it has another shape.
        """
        if self.shapes.get(name, piece.shape) != piece.shape:
            raise ValueError(f"{name} has shape {piece.shape} here, {self.shapes[name]} there")
        piece.value.copy_(self.read(name, piece.start, piece.start + len(piece.value)))

    def under(self, room: str) -> dict[str, Tensor]:
        """All tensors whose names begin with ``room/``, by the rest of their names."""
        names = [n for n in self.shapes if n.startswith(f"{room}/")]
        return {n.removeprefix(f"{room}/"): self.whole(n) for n in names}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers."""
        return self.under("model")


def load(path: Path) -> Checkpoint:
    """Verify and open one checkpoint.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    verify(path)
    return Checkpoint(path)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, and why newer ones were refused."""
    refused: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
            return path, refused
        except CheckpointError as error:
            refused.append(str(error))
    return None, refused
