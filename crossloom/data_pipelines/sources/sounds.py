"""Sound as it was found, told by its first bytes: what the sources of speech share."""

from __future__ import annotations

from pathlib import Path

from crossloom.data_pipelines.sources.common import Conversion, Sound

#: How files are named that may hold sound.
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


def as_sound(data: bytes) -> Sound | None:
    """The sound that bytes are, told by the first of them; None if of no form that is read."""
    if data.startswith(b"fLaC"):
        return Sound("flac", data)
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return Sound("wav", data)
    if data.startswith(b"OggS"):
        return Sound("ogg", data)
    # eleven bits set begin a frame; the next ones, layer III, are 01
    frame = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2
    return Sound("mp3", data) if frame or data.startswith(b"ID3") else None


def read_sound(path: Path, to: Conversion, name: str) -> Sound | None:
    """A file's sound; when it is missing or of no form that is read, None, and counted.

    It is not decoded: ``crossloom shards check`` does that.
    """
    if not path.is_file():
        to.skip("sound missing", name)
        return None
    sound = as_sound(path.read_bytes())
    if sound is None:
        to.skip("sound is neither FLAC, WAV, Ogg nor MP3", name)
    return sound
