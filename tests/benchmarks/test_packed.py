"""``benchmarks/packed.py`` at its small sizes."""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def packed(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import packed

    return packed


def test_it_compares_and_tells_how_much_is_padding(packed, tmp_path):
    path = tmp_path / "found.json"
    packed.main(["--small", "--repeats", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    found = {(r["section"], r["what"]): r["value"] for r in rows}
    for section in ("Tatoeba's lengths", "UNITER's mixture"):
        assert found[section, "losses, padded against packed"] <= 1e-4
        assert 0.2 < found[section, "padding"] < 0.8
        assert found[section, "packed over padded"] > 0
    assert found["vocabulary loss", "in chunks against at once"] <= 1e-5


def test_padding_that_changes_losses_is_no_comparison(packed, monkeypatch):
    right = packed.padded

    def wrong(batch, recipe):
        found = right(batch, recipe)
        for aim in found.aims.values():
            aim.index.zero_()
        return found

    monkeypatch.setattr(packed, "padded", wrong)
    with pytest.raises(ValueError, match="padding changes the losses"):
        packed.main(["--small", "--repeats", "1"])
