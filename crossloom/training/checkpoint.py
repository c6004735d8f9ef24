"""Checkpoints: written aside, hashed, renamed; the newest valid one is read.

A checkpoint is a directory ``checkpoints/step-000001000`` with ``model.safetensors``,
``state.safetensors`` (what the engine keeps), ``state.json`` and ``manifest.json``, which lists
sizes and SHA-256 of the others and is written last. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

_NAME = "step-"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the message names the file and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    step: int  #: steps done
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    notes: dict[str, Any]  #: counters and identities


def save(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``.

    Raises:
        OSError: disk full, no permission; nothing older has been touched.
    """
    from safetensors.torch import save_file

    final = folder / f"{_NAME}{step:09d}"
    aside = folder / f".{final.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_file(_plain(weights), aside / "model.safetensors")
        save_file(_plain(state), aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step, **notes}, indent=1))
        listing = {p.name: _fingerprint(p) for p in sorted(aside.iterdir())}
        (aside / "manifest.json").write_text(json.dumps(listing, indent=1))
        for path in aside.iterdir():
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep] if keep > 0 else []:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:
            digest = hashlib.sha256(file.read())
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def checkpoints(folder: Path) -> list[Path]:
    """Complete-looking checkpoints, oldest first."""
    return sorted(folder.glob(f"{_NAME}*")) if folder.is_dir() else []


def verify(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: names the file that is missing or differs.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"{path / 'manifest.json'}: missing or unreadable") from None
    for name, known in manifest.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if _fingerprint(file) != known:
            raise CheckpointError(f"{file}: differs from its manifest (damaged or swapped)")


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    from safetensors.torch import load_file

    verify(path)
    notes = json.loads((path / "state.json").read_text())
    return Checkpoint(
        step=int(notes["step"]),
        weights=load_file(path / "model.safetensors"),
        state=load_file(path / "state.safetensors"),
        notes=notes,
    )


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


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace a file by new content in one step."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)
        _flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
