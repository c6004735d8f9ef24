"""Spoken captions: a small synthesiser in which a character always sounds alike."""

from __future__ import annotations

import io
import re

import numpy as np

from crossloom.units import Array, keyed_rng

RATE = 16_000  #: samples a second
_LETTER = 0.06  #: seconds a character


def _formants(character: str) -> Array:
    """Two resonances of a character, Hz; spread over the plane by its code."""
    rng = keyed_rng("formants", character)
    return np.array([rng.uniform(250, 900), rng.uniform(1000, 3200)])


def synthesise(text: str, language: str, seed: int = 0) -> Array:
    """A waveform, float32 ``[samples]`` at 16 kHz in -1..1.

    A voiced source at the speaker's pitch (drawn from ``seed``, shifted by the language) excites
    two resonances for each letter; other characters are pauses. The same character has the same
    resonances in every utterance, so that speech can be learned.
    """
    rng = keyed_rng("voice", language, seed)
    pitch = rng.uniform(90, 220)
    size = int(RATE * _LETTER)
    time = np.arange(size) / RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.008)
    pieces = []
    for number, character in enumerate(text.lower()):
        if not character.isalpha():
            pieces.append(np.zeros(size))
            continue
        low, high = _formants(character)
        tone = pitch * (1 + 0.08 * np.sin(number / 3))
        wave = np.zeros(size)
        for harmonic in range(1, int(3600 / tone)):
            frequency = harmonic * tone
            gain = np.exp(-(((frequency - low) / 120) ** 2))
            gain += 0.7 * np.exp(-(((frequency - high) / 200) ** 2)) + 0.02
            wave += gain * np.sin(2 * np.pi * frequency * time)
        pieces.append(wave * fade)
    wave = np.concatenate(pieces) if pieces else np.zeros(size)
    wave = 0.5 * wave / max(1e-6, float(np.abs(wave).max()))
    noisy: Array = (wave + rng.normal(size=len(wave)) * 0.003).clip(-1, 1).astype(np.float32)
    return noisy


def word_times(text: str) -> list[list[object]]:
    """Each word with the seconds at which it begins and ends: ``[word, start, end]``."""
    out: list[list[object]] = []
    for found in re.finditer(r"\S+", text):
        start, end = (round(n * _LETTER, 2) for n in found.span())
        out.append([found.group(), start, end])
    return out


def spoken(text: str, language: str, seed: int = 0) -> bytes:
    """The same as FLAC, 16 kHz mono."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, synthesise(text, language, seed), RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()
