"""Speech as windows of log-mel frames.

Sound is decoded by soundfile (wav, flac, ogg, mp3), averaged to one channel and resampled by soxr.
Features: 80 mel bins (HTK's scale, peak 1, 20 Hz to half the rate), periodic Hann windows of 25 ms
every 10 ms, zero-padded to a power of two, no padding at the ends, no pre-emphasis or dither;
natural log of the power with a floor of 1e-10; each bin brought to mean 0 and deviation 1 over the
utterance. (Kaldi's fbank, which wav2vec-like systems use, differs in window and pre-emphasis.)
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.modalities.vocabularies import AnyVocabulary, Layout, vocabulary
from crossloom.units import Array, BadSample, Sample, Units, make_units

#: Members looked for when ``field`` is ``"audio"``.
EXTENSIONS = ("flac", "wav", "ogg", "mp3")
#: A word, and the seconds at which it begins and ends.
Word = tuple[str, float, float]
#: Samples that stay within so much of each other are silence (a step of 16 bits is 3e-5).
QUIET = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech(Modality):
    """Units of ``frames`` consecutive frames (four: 40 ms), without overlap.

    Content ``mel`` (float32 ``[N, frames, bins]``); target ``mel`` (vector, ``frames · bins``).
    With ``vocabulary`` also target ``token`` (index), at the first unit of each word: the id of the
    word's first piece, which SpeechBERT (Chuang et al., 2020, section 3.2) asks of a hidden word.
    There a unit is a word; here a word is a group of units.

    Nothing of a hidden unit is in its neighbours, but for the 15 ms by which analysis windows
    reach over, and its part in the utterance's mean and deviation. Hiding whole groups leaves 15 ms
    in 200.
    """

    kind: ClassVar[str] = "speech"
    field: str = "audio"
    """A member, or ``"audio"`` for whichever of flac, wav, ogg, mp3 there is."""
    rate: int = 16_000
    """Samples a second after resampling."""
    bins: int = 80
    """Mel bins."""
    frames: int = 4
    """Frames of a unit: so many times 10 ms."""
    span: int = 5
    """Units of a group: hidden together (200 ms)."""
    words: bool = False
    """Groups are words: the json's ``words`` lists each with its begin and end, in seconds. What
    lies between words goes with the word before it."""
    vocabulary: str = ""
    """Path of the text's SentencePiece model, for the target ``token``; needs ``words``."""
    layout: Layout = "own"
    """Of the vocabulary's ids."""
    size: int = 0
    """Number of ids the vocabulary must have, as in :class:`~crossloom.modalities.text.Text`: with
    it, a model can be built without the file."""
    lent: Mapping[Literal["token"], str] = dataclasses.field(default_factory=dict)
    """``{token: text}``: what a word is called is scored with that stream's table of words, so that
    written and spoken words have one vocabulary (SpeechBERT, section 3.3); else with a table of
    the head's own."""
    seconds: float = 20.0
    """Of longer sound the first so many are used, in training as in evaluation."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.bins, self.frames, self.span) < 1:
            raise ValueError(
                f"bins {self.bins}, frames {self.frames} and span {self.span} must be at least 1"
            )
        if self.vocabulary and not self.words:
            raise ValueError("vocabulary: the ids of spoken words need words: true")
        if self.rate < 2000:
            raise ValueError(f"rate is {self.rate} samples a second; write 2000 or more")
        if self.seconds < self._least():
            raise ValueError(
                f"seconds {self.seconds} are less than a unit of {self.frames} frames takes: "
                f"{self._least():.3f}"
            )

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Windows of the utterance; nothing is random.

        Raises:
            BadSample: "missing member", "undecodable", "NaN features", "silent", "too short"; with
                ``words`` "missing field" and "wrong shape".
        """
        names = EXTENSIONS if self.field == "audio" else (self.field,)
        name = next((n for n in names if n in sample), None)
        if name is None:
            found = ", ".join(sorted(sample)) or "nothing"
            raise BadSample(
                "missing member", f"no sound ({', '.join(names)}); the sample has {found}"
            )
        wave = decode_sound(sample[name], name, self.rate, self.seconds)
        mel = normalise(log_mel(wave, self.rate, self.bins))
        count = min(len(mel) // self.frames, self.longest())
        if count == 0:
            raise BadSample(
                "too short",
                f"{name}: {len(wave) / self.rate:.3f} s of sound; expected at least "
                f"{self._least():.3f} s",
            )
        unit = np.ascontiguousarray(mel[: count * self.frames], np.float32)
        unit = unit.reshape(count, self.frames, self.bins)
        targets = {"mel": unit.reshape(count, -1).copy()}
        group = np.arange(count, dtype=np.int64) // self.span
        if self.words:
            spoken = _words(sample)
            starts = self._unit_at(np.array([start for _, start, _ in spoken]))
            group = np.searchsorted(starts, np.arange(count), side="right").astype(np.int64)
            if self.vocabulary:
                targets["token"] = self._tokens(spoken, starts, count)
        return make_units({"mel": unit}, targets=targets, group=group)

    def _unit_at(self, seconds: Array) -> Array:
        """The units in which moments lie, ``[W]`` int64."""
        return np.floor(seconds * 100 / self.frames + 1e-6).astype(np.int64)

    def _tokens(self, spoken: Sequence[Word], starts: Array, count: int) -> Array:
        """First piece of each word at its first unit, -1 elsewhere: ``[N]`` int64."""
        vocab = self._vocab
        token = np.full(count, -1, np.int64)
        for (text, _, _), start in zip(spoken, starts, strict=True):
            pieces = vocab.encode(text)
            if len(pieces) and start < count:
                token[start] = pieces[0]
        return token

    def _least(self) -> float:
        """Seconds of one unit: its frames' hops, and what the last window reaches over."""
        return 0.015 + self.frames * 0.01

    def blank(self) -> Units:
        """One silent unit."""
        zero = np.zeros((1, self.frames, self.bins), np.float32)
        targets: dict[str, Array] = {"mel": zero.reshape(1, -1).copy()}
        targets |= {"token": np.zeros(1, np.int64)} if self._named else {}
        return make_units({"mel": zero}, targets=targets)

    def longest(self) -> int:
        """Units of ``seconds``."""
        return int(round(self.seconds * 100, 6)) // self.frames

    def predictable(self) -> Mapping[str, Target]:
        """The unit's frames; the id of the word that begins."""
        offer = {"mel": Target(dim=self.frames * self.bins, form="vector")}
        if self._named:
            offer["token"] = Target(dim=self.size or self._vocab.size, form="index")
        return offer

    def identity(self) -> str:
        """Of the vocabulary, where there is one."""
        return self._vocab.identity if self.vocabulary else ""

    @property
    def _named(self) -> bool:
        """Whether words have names to be predicted."""
        return bool(self.vocabulary or self.size)

    @property
    def _vocab(self) -> AnyVocabulary:
        found = vocabulary(self.vocabulary, self.layout)
        if self.size and found.size != self.size:
            raise ValueError(
                f"{self.vocabulary}: has {found.size} ids, but the recipe says size: {self.size}; "
                "give the vocabulary the model was made for, or set size to 0"
            )
        return found

    def embedder(self, width: int) -> SpeechEmbedder:
        """Two strided convolutions over the frames of each unit."""
        return SpeechEmbedder(self, width)


def _words(sample: Sample) -> list[Word]:
    """The json's ``words``, in order of time."""
    try:
        listed = json.loads(sample["json"])["words"]
        found = [(str(text), float(start), float(end)) for text, start, end in listed]
    except KeyError:
        raise BadSample("missing field", "json has no 'words': when each word is said") from None
    except (ValueError, TypeError) as error:
        raise BadSample(
            "wrong shape", f"json words: expected [[word, begin, end], …] in seconds ({error})"
        ) from None
    times = [t for _, start, end in found for t in (start, end)]
    if not found or times != sorted(times) or times[0] < 0:
        raise BadSample("wrong shape", "json words: none, or not one after another in time")
    return found


def decode_sound(data: bytes, name: str, rate: int, seconds: float) -> Array:
    """One channel, float32 ``[samples]`` at ``rate``, at most ``seconds``.

    Raises:
        BadSample: it does not decode, is silent, or holds no finite numbers.
    """
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            found = file.samplerate
            # resampling needs a little more than what is kept
            wave = file.read(int((seconds + 0.1) * found) + 1, dtype="float32", always_2d=True)
    except Exception as error:
        # SoundFileError, and TypeError or RuntimeError for what has no header
        raise BadSample(
            "undecodable", f"{name}: not a readable sound file ({type(error).__name__}: {error})"
        ) from None
    mono = wave.mean(1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise BadSample("NaN features", f"{name}: samples are not all finite")
    if len(mono) == 0 or np.ptp(mono) < QUIET:
        raise BadSample("silent", f"{name}: nothing but silence in {len(mono) / found:.3f} s")
    if found != rate:
        mono = soxr.resample(mono, found, rate)
    return np.ascontiguousarray(mono[: int(seconds * rate)], np.float32)


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
    spectrum = np.fft.rfft(frames * np.hanning(length + 1)[:-1], size)
    power = spectrum.real**2 + spectrum.imag**2
    # torch keeps to one thread in data workers; NumPy's BLAS would start its own in each of them
    mel = torch.mm(torch.from_numpy(power), torch.from_numpy(mel_filters(rate, bins, size)))
    return np.log(np.maximum(mel.numpy(), 1e-10)).astype(np.float32)


def normalise(mel: Array) -> Array:
    """Each bin with mean 0 and deviation 1 over the utterance."""
    if len(mel) == 0:
        return mel
    return (mel - mel.mean(0)) / (mel.std(0) + 1e-5)


class SpeechEmbedder(Embedder):
    """Convolutional subsampling by four inside each unit; sinusoidal positions.

    As in the Transformers of ESPnet and S2T (Conv1d or Conv2d, stride 2, twice), but with zeros at
    the unit's edges instead of its neighbours, which keeps hidden frames out of visible units.
    """

    def __init__(self, spec: Speech, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(spec.bins, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.mask = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(spec.dropout)
        self.register_buffer("position", sinusoids(spec.longest(), width), persistent=False)
        self.spec = spec
        self._names: tuple[Embedder, ...] = ()

    def borrow(self, embedders: Mapping[str, Embedder]) -> None:
        """Take the table of words from the stream that ``Speech.lent`` names.

        Raises:
            ValueError: there is no such stream, or its words are other ones.
        """
        for part, stream in self.spec.lent.items():
            owner = embedders.get(stream)
            table = owner.tied(part) if owner is not None else None
            if owner is None or table is None:
                raise ValueError(f"lent.{part}: stream {stream!r} has no table of words to lend")
            offer = self.spec.predictable()
            if part not in offer or len(table) != offer[part].dim:
                ids = offer[part].dim if part in offer else 0
                raise ValueError(
                    f"lent.{part}: {stream!r} has {len(table)} words, spoken ones are named by "
                    f"{ids}; give both one vocabulary"
                )
            # in a tuple, so that the table stays registered with its owner alone
            self._names = (owner,)

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        frames = stream.content["mel"].transpose(1, 2)
        x = self.first(frames.to(self.mask.dtype))
        x = self.second(nn.functional.gelu(x)).mean(2)
        x = torch.where(stream.hidden[:, None], self.mask, x)
        place: Tensor = self.position  # type: ignore[assignment]
        return self.dropout(self.norm(x + place[stream.position]))

    def tied(self, target: str) -> Tensor | None:
        """The table of words that is lent, for the target ``token``."""
        return self._names[0].tied(target) if target == "token" and self._names else None


def sinusoids(count: int, width: int) -> Tensor:
    """Positions ``[count, width]`` of Vaswani et al. (2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-np.log(10000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]
