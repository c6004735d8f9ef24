"""Pickles of plain values: what is read, and what is refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossloom.data_pipelines.sources import SourceError
from crossloom.data_pipelines.sources.plain_pickle import NotPlain, load_plain, read_plain


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_values_and_arrays(protocol: int) -> None:
    value = {"a": [1, 2.5, "é", b"\x00\xff", (None, True)], 7: {"b": -3}}
    assert load_plain(pickle.dumps(value, protocol=protocol)) == value
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "t": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
        "n": np.int64(640),
    }
    found = load_plain(pickle.dumps(arrays, protocol=protocol))
    assert found["n"] == 640
    for name in ("f", "t", "big"):
        assert found[name].tolist() == arrays[name].tolist()
        assert found[name].dtype == arrays[name].dtype


def test_a_pickle_of_python_2() -> None:
    assert load_plain(b"(lp0\n(dp1\nS'sent'\np2\nS'man \\xe9'\np3\nsa.") == [{"sent": "man é"}]


class Calls:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("made-by-a-pickle"),)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps(Calls()), "it calls pathlib"),
        (pickle.dumps(OrderedDict(a=1)), "it calls collections.OrderedDict"),
        (pickle.dumps(print), "it calls builtins.print"),
        (pickle.dumps(np.array(["x", None], dtype=object)), "array of type O"),
        (pickle.dumps(np.array(["text"])), "array of type U4"),
        (b"c_codecs\nencode\n}b.", "it changes what it calls"),
        (b"c_codecs\nencode\n(VA\nVbz2\ntR.", "encodes text as 'bz2'"),
        (b"Pother\n.", "outside itself"),
        (pickle.dumps([1, 2])[:-3], "not a whole pickle"),
        (b"", "not a whole pickle"),
    ],
)
def test_what_is_refused(
    data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotPlain, match=said):
        load_plain(data)
    (tmp_path / "x.p").write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.p: should hold refs as plain values"):
        read_plain(tmp_path / "x.p", "refs")
    assert [p.name for p in tmp_path.iterdir()] == ["x.p"]
