"""Losses on data held back, and components that rest when they learn no more."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from crossloom.data_pipelines.loader import Shares
from crossloom.modalities.patches import Patches
from crossloom.modalities.pictures import Augment
from crossloom.models.presets import single_stream
from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import tiny_recipe
from crossloom.training import checkpoint
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.held import Held, figure, paced
from crossloom.training.loop import _Run, train
from crossloom.training.meters import read_journal
from crossloom.training.quarantine import RunError
from crossloom.training.recipe import Pace, from_yaml
from crossloom.training.run import make_model

CPU = start("cpu")


def with_held(world, **changes):
    recipe = tiny_recipe(world, contrast=True)
    mixture = {n: replace(c, held="dev-*.tar") for n, c in recipe.mixture.items()}
    return replace(recipe, mixture=mixture, held_every=4, held_steps=2, **changes)


def curve(folder):
    found = read_journal(folder / "metrics.jsonl")
    return {x["step"]: {k: v for k, v in x.items() if k.startswith("held/")} for x in found}


def test_losses_are_the_models_own_on_the_held_shards(world):
    recipe = with_held(world)
    recipe = replace(recipe, plan=replace(recipe.plan, dropout=0.3))
    engine = Engine(make_model(recipe.located()).train(), recipe, CPU)
    held = Held(recipe.located(), Shares(recipe.micro), CPU)
    found = held.measure(engine, lambda _: None)
    assert set(found) == {"captions", "translations"}
    assert set(found["captions"]) == {"mlm", "mrc", "mrfr", "itm", "itc"}
    # again, written out: every batch by itself, losses over their slots
    stack = held.stacks["translations"]
    total = slots = 0.0
    engine.model.eval()
    for number in range(2 * recipe.micro):
        batch = stack.micro(number)
        assert all(k.startswith("dev-") for k in batch.keys)
        with torch.no_grad():
            total += float(engine.model(batch.to("cpu"))["tlm"]["loss"])
        slots += batch.counts["tlm"]
    assert found["translations"]["tlm"]["loss"] == pytest.approx(total / slots, rel=1e-5)


def test_what_is_held_back_is_not_augmented(world):
    recipe = with_held(world).located()
    image = Patches(size=32, patch=16, augment=Augment())
    recipe = replace(recipe, modalities={**recipe.modalities, "image": image})
    stacks = Held(recipe, Shares(recipe.micro), CPU).stacks
    assert len(stacks) == 2
    for stack in stacks.values():
        assert stack.collator.modalities["image"] == replace(image, augment=None)


def test_measuring_changes_nothing_of_the_training(world, tmp_path):
    for name, recipe in (
        ("with", replace(with_held(world), held_every=5)),
        ("without", tiny_recipe(world, contrast=True)),
    ):
        recipe = replace(recipe, plan=replace(recipe.plan, dropout=0.1))
        train(recipe, tmp_path / name, CPU)
    one, other = (tmp_path / n / "model.safetensors" for n in ("with", "without"))
    assert one.read_bytes() == other.read_bytes()
    assert [s for s, x in curve(tmp_path / "with").items() if x] == [5, 10, 12]  # the last too


def run(world, out):
    from pathlib import Path

    train(replace(with_held(Path(world)), log_every=4), Path(out), start("cpu"))


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(world, tmp_path):
    run(str(world), str(tmp_path / "one"))
    run_ranks(2, run, str(world), str(tmp_path / "two"))
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one[12]
    for step, losses in one.items():
        assert two[step] == pytest.approx(losses, abs=1e-4)


def test_bad_samples_among_those_held_back_are_listed(world, tmp_path):
    import shutil
    import tarfile

    folder = tmp_path / "world"
    shutil.copytree(world, folder)
    for index in folder.glob("*.index.json"):
        index.unlink()
    with tarfile.open(folder / "dev-000000.tar") as tar:
        at = next(m for m in tar if m.name.endswith(".npz")).offset_data
    with open(folder / "dev-000000.tar", "r+b") as file:
        file.seek(at)
        file.write(b"nothing" * 40)
    recipe = replace(with_held(folder), held_steps=100, micro=1)
    train(recipe, tmp_path / "run", CPU)
    assert "dev-0000000" in (tmp_path / "run" / "quarantine.jsonl").read_text()


def histories(*losses):
    return [{"a": x, "b": 1.0 / (n + 1)} for n, x in enumerate(losses)]


def test_a_component_rests_after_its_patience_and_returns_when_it_gets_worse():
    pace = Pace(patience=2, threshold=0.01, gap=4, back=0.1)
    weights = {"a": 2.0, "b": 1.0, "c": 3.0}

    def a(*losses):
        found = paced(pace, weights, histories(*losses))
        assert (found["b"], found["c"]) == (1.0, 3.0)  # one still learns, one is not measured
        return found["a"]

    assert a() == 2.0
    assert a(5.0, 4.0, 3.99) == 2.0  # once without progress of 1 %
    assert a(5.0, 4.0, 3.99, 4.1) == 0.5  # twice
    assert a(5.0, 0.0, 0.0) == 2.0
    assert a(5.0, 0.0, 0.0, 0.0) == 0.5  # as low as it can be
    assert a(5.0, 4.0, 3.99, 4.1, 4.3) == 0.5  # worse, but not by a tenth
    assert a(5.0, 4.0, 3.99, 4.1, 4.5) == 2.0  # by more than a tenth: back
    assert a(5.0, 4.0, 3.99, 4.1, 4.5, 4.6) == 2.0  # its patience is new
    assert a(5.0, 4.0, 3.99, 4.1, 4.5, 4.6, 4.5) == 0.5  # and to rest again
    assert a(5.0, 4.0, 3.99, 4.1, 3.0) == 0.5  # better while it rests: it stays at rest


def test_a_pace_follows_the_weighted_sum_over_objectives(world):
    recipe = tiny_recipe(world)
    objectives = {**recipe.objectives, "mlm": replace(recipe.objectives["mlm"], weight=3.0)}
    run = SimpleNamespace(recipe=replace(recipe, objectives=objectives), measured=[])
    measured = {"captions": {"mlm": {"loss": 2.0}, "itm": {"loss": 0.5}}}
    assert not _Run._change_pace(run, 4, measured)
    assert run.measured == [{"captions": 6.5}]


def test_what_a_pace_decides_is_recorded_and_a_resumed_run_decides_alike(world, tmp_path):
    import shutil

    from crossloom.training import checkpoint

    # nothing can learn so much: after the second measurement all rest, but those at rest already
    recipe = with_held(world, pace=Pace(patience=1, threshold=0.99), steps=16, save_every=4, keep=9)
    train(recipe, tmp_path / "whole", CPU)
    found = from_yaml(tmp_path / "whole" / "recipe.yaml").phases
    assert [p.step for p in found] == [8]
    assert found[0].weights == {"captions": 0.5, "translations": 0.25}
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / "model.safetensors").unlink()
    for path in checkpoint.checkpoints(tmp_path / "again" / "checkpoints"):
        if int(path.name.split("-")[1]) > 4:
            shutil.rmtree(path)
    train(recipe, tmp_path / "again", CPU, resume=True)
    assert from_yaml(tmp_path / "again" / "recipe.yaml").phases == found
    one, other = (tmp_path / n / "model.safetensors" for n in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_pace_without_anything_to_follow_is_refused(world):
    with pytest.raises(ValueError, match="set held_every"):
        replace(tiny_recipe(world), pace=Pace())
    with pytest.raises(ValueError, match="no component of the mixture has `held` shards"):
        replace(tiny_recipe(world), held_every=5)


# --- selection ----------------------------------------------------------------------------------


def selecting(world, monkeypatch, values, **changes):
    """A run that measures what it is told, every second step of eight."""
    recipe = tiny_recipe(world)
    parts = {"translations": replace(recipe.mixture["translations"], held="dev-*.tar")}
    told = {2 * n + 2: v for n, v in enumerate(values)}
    monkeypatch.setattr(
        "crossloom.training.selected.figure",
        lambda by, measured, step: replace(figure(by, measured, step), value=told[step]),
    )
    return replace(
        recipe,
        modalities={"text": recipe.modalities["text"]},
        plan=single_stream(("text",), layers=1, width=16, heads=2),
        objectives={"tlm": recipe.objectives["tlm"]},
        mixture=parts,
        select="translations/tlm",
        held_every=2,
        held_steps=1,
        steps=2 * len(values),
        save_every=2,
        **changes,
    )


def test_the_weights_that_do_best_on_held_shards_are_the_final_ones(world, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    train(selecting(world, monkeypatch, (0.5, 0.9, 0.9, 0.2), keep=9), tmp_path, CPU)
    told = json.loads((tmp_path / "selected.json").read_text())
    assert told == {"by": "translations/tlm", "figure": "correct", "value": 0.9, "step": 4}
    final = load_file(tmp_path / "model.safetensors")
    then, last = (
        checkpoint.load(tmp_path / "checkpoints" / f"step-{n:09d}").weights for n in (4, 8)
    )
    assert all(torch.equal(final[k], then[k]) for k in then)
    assert not all(torch.equal(final[k], last[k]) for k in last)


def test_a_resumed_run_selects_alike_and_keeps_no_weights_that_were_beaten(
    world, tmp_path, monkeypatch
):
    import shutil

    recipe = selecting(world, monkeypatch, (0.4, 0.1, 0.7), keep=9)
    train(recipe, tmp_path / "whole", CPU)
    # as if it had ended after the second measurement, and an older checkpoint were gone on from
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for path in sorted((tmp_path / "again" / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(path)
    for name in ("model.safetensors", "selected.json"):
        (tmp_path / "again" / name).unlink()
    train(recipe, tmp_path / "again", CPU, resume=True)
    for name in ("model.safetensors", "selected.json"):
        one, other = (tmp_path / n / name for n in ("whole", "again"))
        assert one.read_bytes() == other.read_bytes()
    train(replace(recipe, keep=1), tmp_path / "one", CPU)
    left = [p.name for p in (tmp_path / "one" / "checkpoints" / "selected").iterdir()]
    assert left == ["step-000000006"]


def test_the_share_right_decides_and_else_the_loss():
    measured = {"a": {"x": {"loss": 2.0, "correct": 0.5}, "y": {"loss": 3.0}}}
    x, y = (figure(by, measured, 7) for by in ("a/x", "a/y"))
    assert (x.figure, x.value, x.step) == ("correct", 0.5, 7)
    assert (y.figure, y.value) == ("loss", 3.0)
    assert x.beaten(replace(x, value=0.6))
    assert not x.beaten(replace(x, value=0.5))
    assert y.beaten(replace(y, value=2.9))
    assert not y.beaten(replace(y, value=3.0))
    assert not y.beaten(replace(y, value=3.1))
    with pytest.raises(RunError, match="select: a/z: the objective scores nothing"):
        figure("a/z", measured, 7)


def test_what_cannot_select_is_refused(world):
    recipe = with_held(world)
    for by in ("captions", "captions/tlm", "nothing/mlm"):
        with pytest.raises(ValueError, match=r"component/objective"):
            replace(recipe, select=by)
    with pytest.raises(ValueError, match="set ema to 0"):
        replace(recipe, select="captions/mlm", ema=0.9)
