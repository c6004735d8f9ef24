"""``benchmarks/gpu.py`` at its small sizes: all sections, their checks, what it says of faults."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = pytest.mark.peers
HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import gpu

    return gpu


def run(gpu, path, *more):
    status = gpu.main(["--small", "--device", "cpu", "--json", str(path), *more])
    return status, json.loads(path.read_text())


def test_all_sections_run_and_what_is_fast_is_right(gpu, tmp_path):
    status, found = run(gpu, tmp_path / "found.json")
    assert status == 0, [r for r in found["rows"] if r["note"]]
    rows = found["rows"]
    assert {r["section"] for r in rows} == set(gpu.SECTIONS)
    errors = [r for r in rows if r["unit"] == "error"]
    # every section but the loader compares something, and states what is right
    assert {r["section"] for r in errors} == set(gpu.SECTIONS) - {"loader"}
    assert all(0 <= r["value"] <= r["goal"] for r in errors)
    assert any(r["value"] > 0 for r in errors)
    # what a CPU cannot tell is empty, not guessed
    empty = {r["unit"] for r in rows if r["value"] is None}
    assert empty == {"GB", "share"}
    assert all(r["value"] is None for r in rows if "MFU" in r["what"] or r["unit"] == "GB")
    assert {"cpu", "torch", "transformers"} <= set(found["machine"])
    assert found["small"]


def test_a_wrong_fast_path_is_told(gpu, tmp_path, monkeypatch, capsys):
    import gpu_losses

    right = gpu_losses.decode_loss

    def wrong(*arguments):
        found = right(*arguments)
        return {**found, "loss": found["loss"] * 1.01}

    monkeypatch.setattr(gpu_losses, "decode_loss", wrong)
    status, _ = run(gpu, tmp_path / "found.json", "--only", "losses")
    assert status == 1
    assert "WRONG: losses: mlm: loss in chunks against float64: 0.01" in capsys.readouterr().out


def test_a_section_that_fails_leaves_the_others(gpu, tmp_path, monkeypatch):
    def broken(device, small):
        yield from ()
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setitem(gpu.SECTIONS, "clip", broken)
    status, found = run(gpu, tmp_path / "found.json", "--only", "clip", "losses")
    assert status == 2
    first, *others = found["rows"]
    assert (first["section"], first["value"], first["note"]) == (
        "clip", None, "OutOfMemoryError: no room",
    )  # fmt: skip
    assert {r["section"] for r in others} == {"losses"}


def test_sections_for_which_no_time_is_left_stay_empty(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ENOUGH", 0)
    _, found = run(gpu, tmp_path / "found.json", "--only", "losses")
    (row,) = found["rows"]
    assert (row["value"], row["note"]) == (None, "no time was left")


def test_full_sizes_are_not_run_on_a_cpu(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--small" in capsys.readouterr().err
