"""A separate package adds a modality: installed, found, listed, checked, trained with."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossloom.data_pipelines.write import ShardWriter

HERE = Path(__file__).parent
TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
from crossloom.data_pipelines.read import Plain, Texts
from crossloom.models.presets import single_stream
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import itc, itm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.plugins import find
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component, from_yaml, to_yaml

data, out = Path(sys.argv[1]), Path(sys.argv[2])
base = tiny_recipe(data)
streams = ("text", "touch")
touch = Reconstruct(
    view=View(name="touch", streams=streams, hide={"touch": Hide(rate=0.3, swap=0, by="group")}),
    stream="touch", target="pressure")
recipe = replace(
    base, name="touch", steps=200, examples=8, micro=1,
    modalities={"text": base.modalities["text"], "touch": find("modality", "tactile")()},
    plan=single_stream(streams, layers=2, width=32, heads=2, dropout=0.0),
    objectives={"touch": touch, "itm": itm(streams, mismatch="touch"), "itc": itc(streams, dim=16)},
    mixture={"all": Component(
        shards="touch-*.tar", reader=Texts(), objectives=("touch", "itm", "itc"))},
    optim=replace(base.optim, rate=3e-3), log_every=20)
out.mkdir()
(out / "asked.yaml").write_text(to_yaml(recipe))
assert "kind: tactile" in to_yaml(recipe)
train(from_yaml(out / "asked.yaml"), out / "run", start("cpu"))
losses = [x["touch/loss"] for x in read_journal(out / "run" / "metrics.jsonl")]
assert losses[-1] < 0.7 * losses[0], losses
print("trained", losses[0], losses[-1])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package, installed into a folder of its own."""
    site = tmp_path_factory.mktemp("site")
    source = shutil.copytree(HERE / "tactile", tmp_path_factory.mktemp("source") / "tactile")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(site), str(source)],
        check=True,
    )  # fmt: skip
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_it_is_listed_with_its_origin(installed):
    out = subprocess.run(
        [sys.executable, "-m", "crossloom", "plugins", "list"],
        env={**installed, "COLUMNS": "200"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(x for x in (out.stdout + out.stderr).splitlines() if "tactile" in x)
    assert "crossloom-tactile 0.0.1" in line
    assert "modality" in line


def test_it_keeps_the_contract(installed):
    code = (
        "import io, numpy as np\n"
        "from crossloom.plugins import find\n"
        "from crossloom.testing.modality import check_modality\n"
        "data = io.BytesIO(); np.save(data, np.random.default_rng(0).normal(size=(40, 16)))\n"
        "check_modality(find('modality', 'tactile')(), {'tactile.npy': data.getvalue()})\n"
    )
    subprocess.run([sys.executable, "-c", code], env=installed, check=True)


def test_every_kind_of_objective_trains_with_it(installed, world, tmp_path):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "data", "touch") as writer:
        for number in range(40):
            wave = np.sin(np.arange(32)[:, None] * 0.3 + rng.uniform(0, 6) + np.arange(16) / 4)
            data = io.BytesIO()
            np.save(data, wave.astype(np.float32))
            texts = {"en": [f"a wave of number {number}"]}
            writer.write(f"t{number}", {"tactile.npy": data.getvalue(), "json": {"texts": texts}})
    shutil.copy(world / "tokenizer.model", tmp_path / "data")
    out = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "data"), str(tmp_path / "out")],
        env=installed, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    assert "trained" in out.stdout
