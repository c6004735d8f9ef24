"""Stopped and resumed runs continue exactly; damaged checkpoints are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crossloom.models.presets import co_attention, dual_encoder, single_stream
from crossloom.objectives.presets import itc_queue, itm_hard
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training import checkpoint
from crossloom.training.environment import start
from crossloom.training.loop import RunError, train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import RecipeError, from_yaml
from crossloom.training.run import load_weights, make_model, make_stack

CPU = start("cpu")


def losses(folder):
    return [
        {k: v for k, v in line.items() if k.endswith("/loss") or k == "step"}
        for line in read_journal(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    recipe = replace(tiny_recipe(world, contrast=True), save_every=1, keep=100)
    recipe = replace(recipe, plan=replace(recipe.plan, dropout=0.2), ema=0.9)
    train(recipe, out, CPU)
    return recipe, out


def test_a_queue_and_slow_encoders_resume_exactly(world, tmp_path):
    base = tiny_recipe(world)
    queue = itc_queue(queue=21, momentum=0.8, dim=16)
    mined = replace(itm_hard(), pool="mean")
    recipe = replace(
        base,
        plan=replace(base.plan, dropout=0.2),
        objectives={**base.objectives, "itc": queue, "itm": mined},
        mixture={
            **base.mixture,
            "captions": replace(
                base.mixture["captions"], objectives=("mlm", "mrc", "mrfr", "itm", "itc")
            ),
        },
        save_every=5,
        keep=9,
    )
    train(recipe, tmp_path / "whole", CPU)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in checkpoint.checkpoints(tmp_path / "part" / "checkpoints"):
        if path.name != "step-000000005":
            shutil.rmtree(path)
    assert checkpoint.checkpoints(tmp_path / "part" / "checkpoints")
    train(recipe, tmp_path / "part", CPU, resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    one, two = (load_weights(tmp_path / x)[0] for x in ("whole", "part"))
    assert set(one) == set(two)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert "heads.itc.queue.feature" in one


@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_run_stopped_anywhere_and_resumed_equals_one_never_stopped(whole, tmp_path, step):
    recipe, out = whole
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "model.safetensors").unlink()
    for path in checkpoint.checkpoints(copy / "checkpoints"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    train(recipe, copy, CPU, resume=True)
    assert losses(copy) == losses(out)
    one, other = (
        checkpoint.load(checkpoint.checkpoints(x / "checkpoints")[-1]) for x in (out, copy)
    )
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name]), name
    assert (copy / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_run_leaves_its_average_and_tells_its_rates(whole):
    _, out = whole
    last = checkpoint.load(checkpoint.checkpoints(out / "checkpoints")[-1])
    average, final = last.under("ema"), load_file(out / "model.safetensors")
    assert average.keys() == final.keys() == last.weights.keys()
    for name, value in final.items():
        assert torch.equal(value, average[name]), name
    rates = [line["rate"] for line in read_journal(out / "metrics.jsonl")]
    # 1.2 steps of warm-up, then down to 0 after twelve
    assert rates[:3] == pytest.approx([1e-3 * x for x in (1 / 2.2, 2 / 2.2, 10 / 10.8)])
    assert rates[-1] == pytest.approx(1e-3 * 1 / 10.8)


def test_workers_change_nothing(whole, tmp_path):
    recipe, out = whole
    train(replace(recipe, workers=2, save_every=100), tmp_path / "run", CPU)
    assert losses(tmp_path / "run") == losses(out)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "swap"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_used(whole, tmp_path, damage):
    _, out = whole
    folder = tmp_path / "checkpoints"
    shutil.copytree(out / "checkpoints", folder)
    last, before = checkpoint.checkpoints(folder)[-1], checkpoint.checkpoints(folder)[-2]
    file = last / "rank-00000.safetensors"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "cut":
        file.write_bytes(data[:-100])
    elif damage == "remove":
        file.unlink()
    else:
        shutil.copyfile(before / "rank-00000.safetensors", file)
    path, refused = checkpoint.newest(folder)
    assert path == before
    assert "rank-00000.safetensors" in refused[0]
    with pytest.raises(checkpoint.CheckpointError, match=r"rank-00000\.safetensors"):
        checkpoint.load(last)


def test_a_refused_checkpoint_is_not_kept_for_the_newest(whole, tmp_path):
    recipe, out = whole
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    folder = copy / "checkpoints"
    (checkpoint.folder_of(folder, recipe.steps) / "state.json").unlink()
    for step in range(1, recipe.steps - 1):
        shutil.rmtree(checkpoint.folder_of(folder, step))
    train(replace(recipe, keep=1), copy, CPU, resume=True)
    assert [p.name for p in checkpoint.checkpoints(folder)] == [f"step-{recipe.steps:09d}"]
    checkpoint.load(checkpoint.folder_of(folder, recipe.steps))
    assert (folder / f"refused-step-{recipe.steps:09d}").is_dir()
    assert losses(copy) == losses(out)


def test_fewer_steps_than_were_taken_are_refused(whole, tmp_path):
    recipe, out = whole
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    with pytest.raises(RecipeError, match=r"steps: 7, but .*step-000000012 is of step 12"):
        train(replace(recipe, steps=7), copy, CPU, resume=True)


def test_a_runs_own_recipe_goes_on_with_it(world, tmp_path, monkeypatch):
    """Its paths are those of the recipe it was made from, below the same relative folder."""
    monkeypatch.chdir(world.parent)
    recipe = replace(tiny_recipe(Path(world.name)), steps=2, save_every=1)
    train(recipe, tmp_path / "run", CPU)
    again = from_yaml(tmp_path / "run" / "recipe.yaml")
    assert again.located() == again
    train(replace(again, steps=4), tmp_path / "run", CPU, resume=True)
    assert [line["step"] for line in losses(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_folder_with_a_run_is_not_overwritten(whole):
    recipe, out = whole
    with pytest.raises(RecipeError, match="--resume"):
        train(recipe, out, CPU)


def test_another_vocabulary_is_refused(whole, world, tmp_path):
    recipe, out = whole
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    path = checkpoint.checkpoints(copy / "checkpoints")[-1]
    notes = json.loads((path / "state.json").read_text())
    notes["identities"]["text"] = "0123456789abcdef"
    (path / "state.json").write_text(json.dumps(notes))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = checkpoint._fingerprint(path / "state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecipeError, match=r"modalities\.text\.vocabulary.*0123456789abcdef"):
        train(replace(recipe, steps=20), copy, CPU, resume=True)


def test_a_full_disk_leaves_the_checkpoint_before_intact(world, tmp_path, monkeypatch):
    recipe = replace(tiny_recipe(world), steps=8, save_every=4)
    train(replace(recipe, steps=4), tmp_path / "run", CPU)
    before = {
        p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()
    }

    def full(tensors, path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunError, match="No space left"):
        train(recipe, tmp_path / "run", CPU, resume=True)
    after = {
        p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()
    }
    assert after == before


@pytest.mark.parametrize(
    "plan",
    [
        dual_encoder("text", "image", layers=1, width=16, heads=2),
        co_attention("text", "image", first=1, pairs=1, width=16, heads=2, image_width=24,
                     bridge=24, bridge_heads=2, image_hidden=24),
        single_stream(("text", "image"), layers=2, width=16, heads=2, tied=True),
    ],
)  # fmt: skip
def test_other_plans_train(world, tmp_path, plan):
    recipe = replace(tiny_recipe(world, plan=plan), steps=4)
    train(recipe, tmp_path / "run", CPU)
    seen = {name for line in losses(tmp_path / "run") for name in line}
    assert {"mlm/loss", "mrfr/loss", "itm/loss"} <= seen


def test_a_prefix_trains_and_its_image_knows_nothing_of_the_caption(world, tmp_path):
    view = View(
        name="s2s", streams=("text", "image"), hide={"text": Hide()}, causal=("text",),
        reads={"image": ("image",)},
    )  # fmt: skip
    recipe = tiny_recipe(world)
    objectives = {"s2s": Reconstruct(view=view, stream="text", target="token")}
    mixture = {"captions": replace(recipe.mixture["captions"], objectives=("s2s",))}
    recipe = replace(recipe, objectives=objectives, mixture=mixture, steps=4).located()
    train(recipe, tmp_path / "run", CPU)
    assert all(line["s2s/loss"] > 0 for line in losses(tmp_path / "run"))

    shown = make_stack(recipe).micro(0).to("cpu").views["s2s"]
    model = make_model(recipe).eval()
    encoded = model.encode(shown)
    other = dict(shown.streams["text"].content)
    other["token"] = other["token"].flip(0)
    text = replace(shown.streams["text"], content=other)
    again = model.encode(replace(shown, streams={**shown.streams, "text": text}))
    assert torch.equal(encoded.states["image"], again.states["image"])
    assert not torch.equal(encoded.states["text"], again.states["text"])


def test_training_lowers_every_loss(world, tmp_path):
    recipe = replace(tiny_recipe(world, contrast=True), steps=120, log_every=1, save_every=1000)
    recipe = replace(recipe, optim=replace(recipe.optim, rate=3e-3), examples=16, micro=1)
    train(recipe, tmp_path / "run", CPU)
    lines = losses(tmp_path / "run")
    for name in ("mlm", "tlm", "mrc", "mrfr", "itc"):
        values = [x[f"{name}/loss"] for x in lines if f"{name}/loss" in x]
        third = len(values) // 3
        assert sum(values[-third:]) < 0.95 * sum(values[:third]), name
