"""Arrays among a sample's members: ``npz``, or ``npy`` each; never unpickled."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from functools import lru_cache
from typing import Any

import numpy as np

from crossloom.units import Array, BadSample, Sample


def read_arrays(sample: Sample, field: str) -> dict[str, Array]:
    """The arrays of regions, in our layout or in others'.

    ``field`` is an ``npz``; where there is none, each array is a member of its own
    (``features.npy``, ``boxes.npy``, ``size.npy``, …). Bottom-up-attention's names are known:
    ``x``, ``bbox``, ``image_w`` and ``image_h`` (with ``num_bbox`` rows that count).

    Raises:
        BadSample: missing, truncated, or neither npz nor npy.
    """
    single = {k.removesuffix(".npy").rpartition(".")[2]: k for k in sample if k.endswith(".npy")}
    if field in sample or not _KNOWN & single.keys():
        arrays = read_npz(sample, field)
    else:
        arrays = {}
        for name, member in single.items():
            try:
                array = _array(sample[member])
                if array is None:
                    raise ValueError("holds pickled objects, which are never loaded")
                arrays[name] = array
            except Exception as error:  # as in an npz
                raise BadSample(
                    "undecodable", f"{member}: not a readable npy ({type(error).__name__}: {error})"
                ) from None
    if "x" not in arrays or "features" in arrays:
        return arrays
    count = int(arrays["num_bbox"]) if arrays.get("num_bbox", _NONE).size == 1 else None
    arrays["features"] = arrays["x"][:count]
    if "bbox" in arrays:
        arrays["boxes"] = arrays["bbox"][:count]
    if all(arrays.get(n, _NONE).size == 1 for n in ("image_w", "image_h")):
        arrays["size"] = np.array([arrays[n].item() for n in ("image_w", "image_h")])
    return arrays


#: Names by which members are taken for arrays of regions: a sample may have others beside them.
_KNOWN = {"features", "boxes", "size", "probabilities", "labels", "x", "bbox"}
_NONE = np.zeros(0)


def read_npz(sample: Sample, field: str) -> dict[str, Array]:
    """The arrays of an ``npz`` member; never unpickles: objects are left out, as if not there.

    NumPy's own reader spends half a millisecond on parsing headers of small arrays; here a header
    that was seen before is not parsed again.

    Raises:
        BadSample: missing, truncated, or not an npz.
    """
    if field not in sample:
        found = ", ".join(sorted(sample)) or "nothing"
        raise BadSample("missing member", f"no {field}; the sample has {found}")
    try:
        with zipfile.ZipFile(io.BytesIO(sample[field])) as archive:
            read = {
                info.filename.removesuffix(".npy"): _array(_stored(sample[field], info, archive))
                for info in archive.infolist()
            }
            return {name: array for name, array in read.items() if array is not None}
    except Exception as error:
        # damaged bytes make the zip and header parsers raise almost anything (zlib.error,
        # NotImplementedError, RuntimeError, tokenize.TokenError, …), and none may end a run
        raise BadSample(
            "undecodable", f"{field}: not a readable npz ({type(error).__name__}: {error})"
        ) from None


def _stored(data: bytes, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> bytes:
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.read(info)
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    content = data[start : start + info.file_size]
    if zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"checksum of {info.filename} differs")
    return content


def _array(data: bytes) -> Array | None:
    version, (size,) = data[6:8], struct.unpack_from("<H", data, 8)
    if data[:6] != b"\x93NUMPY" or version != b"\x01\x00":
        array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return array
    shape, fortran, dtype = _header(data[: 10 + size])
    if dtype.hasobject:  # what extractors note beside their arrays
        return None
    count = math.prod(shape)
    array = np.frombuffer(data, dtype, count, offset=10 + size)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


@lru_cache(maxsize=4096)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)
