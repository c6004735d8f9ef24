"""Pickles of plain values, read without running anything of theirs.

Some data sets are published as pickles alone. A pickle is a program that may call any function it
names; here it can name none but the few that make numbers and arrays, and for those it gets
stand-ins of our own. Lists, tuples, sets, dictionaries, strings, bytes and numbers need no name.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.data_pipelines.sources.common import SourceError

_ARRAYS = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "scalar", "ndarray", "dtype")
}


class NotPlain(ValueError):
    """The pickle wants to call something, or is damaged."""


class _Form:
    """Stands in for ``numpy.dtype``: numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.form = np.dtype(str(code))
        if self.form.kind not in "biuf":
            raise NotPlain(f"it holds an array of type {code}, not of numbers")

    def __setstate__(self, state: Any) -> None:
        self.form = self.form.newbyteorder(">" if ">" in state[1:2] else "<")


class _Array:
    """Stands in for ``numpy.ndarray``."""

    def __init__(self, *_: Any) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, form, fortran, data = state
        self.value = _numbers(form, data, tuple(map(int, shape)), bool(fortran))


class _Scalar:
    def __init__(self, form: _Form, data: Any = b"") -> None:
        self.value = _numbers(form, data, (1,), False)[0].item()


def _numbers(form: Any, data: Any, shape: tuple[int, ...], fortran: bool) -> Any:
    if isinstance(data, str):  # written by Python 2
        data = data.encode("latin-1")
    if not isinstance(form, _Form) or not isinstance(data, bytes):
        raise NotPlain("it holds an array of something else than numbers")
    if len(data) != math.prod(shape) * form.form.itemsize:
        raise NotPlain(f"an array of shape {list(shape)} has {len(data)} bytes")
    return np.frombuffer(data, form.form).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str = "") -> bytes:
    """Stands in for ``_codecs.encode``, by which protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise NotPlain(f"it encodes text as {encoding!r}")
    return text.encode("latin-1")


class _Stand:
    """A stand-in that can be called and nothing else: a pickle may also set attributes."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *given: Any) -> Any:
        return self.make(*given)

    def __setstate__(self, state: Any) -> None:
        raise NotPlain("it changes what it calls")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _Stand(_encode)
        if (module, name) in _ARRAYS:
            return _Stand({"dtype": _Form, "scalar": _Scalar}.get(name, _Array))
        raise NotPlain(f"it calls {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise NotPlain("it refers to something outside itself")


def load_plain(data: bytes) -> Any:
    """The value of a pickle made of plain values and arrays of numbers.

    Raises:
        NotPlain: it would call something, or is no whole pickle.
    """
    try:
        return _values(_Reader(io.BytesIO(data), encoding="latin1").load())
    except NotPlain:
        raise
    except RecursionError:
        raise NotPlain("it is nested too deeply") from None
    except Exception as error:  # damaged bytes make the reader raise almost anything
        raise NotPlain(f"not a whole pickle: {type(error).__name__}: {error}") from None


def _values(value: Any) -> Any:
    """With arrays in place of their stand-ins."""
    if isinstance(value, (_Array, _Scalar)):
        return value.value
    if isinstance(value, dict):
        return {_values(k): _values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_values, value))
    return value


def read_plain(path: Path, holds: str) -> Any:
    """The value of a pickled file.

    Raises:
        SourceError: it cannot be read as plain values.
    """
    try:
        return load_plain(path.read_bytes())
    except (OSError, NotPlain) as error:
        raise SourceError(
            f"{path}: should hold {holds} as plain values ({error}); it is not unpickled further. "
            "Download it again from its publisher, or save it as JSON"
        ) from None
