"""Speech as windows of log-mel frames.

Sound is decoded by soundfile (wav, flac, ogg, mp3), averaged to one channel and resampled by soxr.
Features: 80 mel bins (HTK's scale, 20 Hz to half the rate), Hann windows of 25 ms every 10 ms,
natural log of the power with a floor of 1e-10, each bin brought to mean 0 and deviation 1 over the
utterance.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import Array, BadSample, Sample, Units, make_units

#: Members looked for when ``field`` is ``"audio"``.
EXTENSIONS = ("flac", "wav", "ogg", "mp3")


@dataclass(frozen=True, kw_only=True)
class Speech(Modality):
    """Units of ``frames`` consecutive frames (four: 40 ms), without overlap.

    Nothing of a hidden unit is in its neighbours, but for the 15 ms by which analysis windows
    reach over. Target: ``mel`` (vector), the unit's frames.
    """

    kind: ClassVar[str] = "speech"
    field: str = "audio"
    """A member, or ``"audio"`` for whichever of flac, wav, ogg, mp3 there is."""
    rate: int = 16_000
    """Samples a second after resampling."""
    bins: int = 80
    frames: int = 4
    span: int = 5
    """Units of a group: hidden together (200 ms)."""
    seconds: float = 20.0
    """Longer sound is cut off."""
    dropout: float = 0.1

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Windows of the utterance."""
        names = EXTENSIONS if self.field == "audio" else (self.field,)
        name = next((n for n in names if n in sample), None)
        if name is None:
            found = ", ".join(sorted(sample))
            raise BadSample("missing member", f"none of {', '.join(names)}; it has {found}")
        wave = decode_sound(sample[name], name, self.rate, self.seconds)
        mel = normalise(log_mel(wave, self.rate, self.bins))
        count = len(mel) // self.frames
        if count == 0:
            raise BadSample("too short", f"{name}: {len(wave) / self.rate:.3f} s of sound")
        unit = np.ascontiguousarray(mel[: count * self.frames].reshape(count, -1), np.float32)
        return make_units(
            {"mel": unit},
            targets={"mel": unit.copy()},
            group=np.arange(count, dtype=np.int64) // self.span,
        )

    def blank(self) -> Units:
        """One silent unit."""
        zero = np.zeros((1, self.frames * self.bins), np.float32)
        return make_units({"mel": zero}, targets={"mel": zero.copy()})

    def longest(self) -> int:
        """Units of ``seconds``."""
        return int(self.seconds * 100) // self.frames

    def predictable(self) -> Mapping[str, Target]:
        """The unit's frames."""
        return {"mel": Target(dim=self.frames * self.bins, form="vector")}

    def embedder(self, width: int) -> SpeechEmbedder:
        """Two strided convolutions over the frames of each unit."""
        return SpeechEmbedder(self, width)


def decode_sound(data: bytes, name: str, rate: int, seconds: float) -> Array:
    """One channel, float32 ``[samples]`` at ``rate``, at most ``seconds``.

    Raises:
        BadSample: it does not decode, is silent, or holds no finite numbers.
    """
    import soundfile
    import soxr

    try:
        wave, found = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise BadSample("undecodable", f"{name}: {error}") from None
    mono = wave[: int(seconds * found) + 1].mean(1)
    if not np.isfinite(mono).all():
        raise BadSample("NaN features", f"{name}: samples are not all finite")
    if len(mono) == 0 or not mono.any():
        raise BadSample("silent", f"{name}: nothing but silence")
    if found != rate:
        mono = soxr.resample(mono, found, rate)
    return mono[: int(seconds * rate)].astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(rate: int, bins: int, size: int) -> Array:
    """Triangular filters ``[size // 2 + 1, bins]`` on HTK's mel scale, 20 Hz to ``rate / 2``."""

    def mel(hertz: Array) -> Array:
        return 2595 * np.log10(1 + hertz / 700)

    edges = np.linspace(mel(np.array(20.0)), mel(np.array(rate / 2)), bins + 2)
    points = 700 * (10 ** (edges / 2595) - 1)
    hertz = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    rise = (hertz - points[:-2]) / (points[1:-1] - points[:-2])
    fall = (points[2:] - hertz) / (points[2:] - points[1:-1])
    return np.maximum(0, np.minimum(rise, fall))


def log_mel(wave: Array, rate: int, bins: int) -> Array:
    """Log power in mel bins, ``[frames, bins]``: 25 ms Hann windows every 10 ms, no padding."""
    length, hop = rate * 25 // 1000, rate // 100
    size = 1 << (length - 1).bit_length()
    if len(wave) < length:
        return np.zeros((0, bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, length)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(length + 1)[:-1], size)) ** 2
    return np.log(np.maximum(power @ mel_filters(rate, bins, size), 1e-10)).astype(np.float32)


def normalise(mel: Array) -> Array:
    """Each bin with mean 0 and deviation 1 over the utterance."""
    if len(mel) == 0:
        return mel
    return (mel - mel.mean(0)) / (mel.std(0) + 1e-5)


class SpeechEmbedder(Embedder):
    """Convolutional subsampling by four inside each unit; sinusoidal positions."""

    def __init__(self, spec: Speech, width: int) -> None:
        super().__init__()
        self.bins = spec.bins
        self.first = nn.Conv1d(spec.bins, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.mask = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(spec.dropout)
        self.register_buffer("position", sinusoids(spec.longest(), width), persistent=False)

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        frames = stream.content["mel"].unflatten(1, (-1, self.bins)).transpose(1, 2)
        x = self.first(frames.to(self.mask.dtype))
        x = self.second(nn.functional.gelu(x)).mean(2)
        x = torch.where(stream.hidden[:, None], self.mask, x)
        place: Tensor = self.position  # type: ignore[assignment]
        return self.dropout(self.norm(x + place[stream.position]))


def sinusoids(count: int, width: int) -> Tensor:
    """Positions ``[count, width]`` of Vaswani et al. (2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-np.log(10000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]
