"""The command line as a person meets it: what it prints, what it leaves, how it ends."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from rich.console import Console

import crossloom
from crossloom import cli, display
from crossloom.cli import _listing
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.checkpoint import CheckpointError
from crossloom.training.loop import Progress, Stopped
from crossloom.training.quarantine import RunError
from crossloom.training.recipe import RecipeError, from_dict, to_yaml


def run(*arguments, cwd=None, **environment):
    out = subprocess.run(
        [sys.executable, "-m", "crossloom", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "COLUMNS": "300", **environment},
    )  # fmt: skip
    return out.returncode, out.stdout, out.stderr


@pytest.fixture(scope="module")
def recipe(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(to_yaml(tiny_recipe(world)))
    return path


@pytest.fixture(scope="module")
def pretrained(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    code, _, said = run("pretrain", recipe, "--out", out, "steps=4")
    assert code == 0, said
    return out


def test_module_and_script_are_the_same():
    script = shutil.which("crossloom", path=str(Path(sys.executable).parent))
    assert script is not None
    wide = {**os.environ, "COLUMNS": "300"}
    out = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, env=wide)
    shown = run("--help")[1]
    assert "pretrain" in shown
    assert shown.replace("python -m crossloom", "crossloom").split() == out.stdout.split()


def test_the_version_is_said():
    assert run("--version") == (0, f"crossloom {crossloom.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "dem"], "no recipe is called 'dem'; did you mean 'demo'?"),
        (["pretrain", "demo", "optim.rat=1"], "did you mean 'rate'?"),
        (["pretrain", "none.yaml"], "none.yaml: cannot be read"),
        (["pretrain", "nowhere:x"], "looked for in the current folder and on PYTHONPATH"),
        (["finetune", "vqqa", "--from", "x"], "no task is called 'vqqa'; did you mean 'vqa'?"),
        (["finetune", "vqa", "--from", "nowhere"], "nowhere: not a run directory"),
        (["evaluate", "vqa", "--from", "nowhere"], "nowhere: not a run directory"),
        (["evaluate", "xnli", "languags=[en]", "--from", "x"], "did you mean 'languages'?"),
        (["finetune", "vqa", "optin.rate=1", "--from", "x"], "optin.rate: there is no 'optin'"),
        (["shards", "make", "worl"], "did you mean 'world'?"),
        (["shards", "make", "coco", "nowhere"], "nowhere"),
        (["shards", "make", "world", "--set", "examplse=3"], "did you mean 'examples'?"),
        (["shards", "index", "nothing-*.tar"], "no such shards"),
        (["report", "nowhere"], "nowhere: not a run directory"),
        (["report"], "Missing argument 'runs'; see "),
        (["pretrian", "demo"], "Did you mean 'pretrain'?"),
        (["evaluate", "vqa", "--form", "x"], "--form"),
        (["pretrain", "demo", "--steps", "5"], "is set without dashes: steps=100; see "),
        (["pretrain", "demo", "--device", "tpu"], "--device tpu: not to be had here"),
    ],
)
def test_configuration_errors_are_one_line_with_status_2(arguments, message, tmp_path):
    code, _, said = run(*arguments, cwd=tmp_path)
    assert message in said
    assert "Traceback" not in said
    assert code == 2
    assert not list(tmp_path.rglob("*.tar"))


def test_a_recipe_in_the_current_folder_needs_no_package(tmp_path):
    code = "from crossloom.recipes.uniter import uniter_tiny as small\n"
    (tmp_path / "mine.py").write_text(code)
    command = Path(sys.executable).with_name("crossloom")
    shown = subprocess.run(
        [command, "recipes", "show", "mine:small"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.stdout.startswith("name: uniter-tiny\n")


def test_a_command_without_its_verb_shows_the_verbs():
    code, out, said = run("shards")
    assert code == 2
    assert "trace" in out + said
    assert "Traceback" not in said


def test_what_cannot_be_written_is_named(recipe, tmp_path):
    (tmp_path / "file").touch()
    code, _, said = run("pretrain", recipe, "steps=1", "--out", "file/run", cwd=tmp_path)
    assert (code, said.splitlines()[-1]) == (1, "error: file/run: Not a directory")


def test_a_log_has_a_line_for_each_report(pretrained):
    code, _, said = run(
        "pretrain", pretrained / "recipe.yaml", "--out", pretrained.parent / "narrow", COLUMNS="40"
    )
    assert code == 0, said
    assert any("4/4" in x and x.endswith(" s") for x in said.splitlines()), said


def test_a_list_on_a_terminal_cuts_neither_names_nor_numbers(monkeypatch, capsys):
    row = {"recipe": "controlled-uniter-tiny", "parameters": "0.9 M + 129 × vocabulary"}
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    _listing([row | {"what it is": "word " * 90}], (*row, "what it is"), ("plan",))
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(value in said for value in row.values())
    assert max(map(len, said.splitlines())) <= 90
    assert "word word" in said


def test_figures_beneath_a_bar_are_shown_whole(monkeypatch):
    told = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(display, "console", told)
    values = {f"objective-{n}/loss": 1.0 for n in range(8)}
    values |= {"examples_per_second": 1, "units_per_second": 1, "waiting": 0.5}
    with display.training("a recipe with a name") as update:
        update(Progress(10, 20, values))
    shown = told.file.getvalue()
    assert "10/20" in shown
    assert "waiting 50%" in " ".join(shown.split())


def test_a_log_tells_how_far_a_count_is(monkeypatch):
    told = Console(file=io.StringIO(), width=60, force_terminal=False)
    monkeypatch.setattr(display, "console", told)
    for every, lines in ((1e9, 0), (0.0, 3)):
        monkeypatch.setattr(display, "EVERY", every)
        told.file.truncate(0)
        with display.counting("reading") as note:
            for done, total in ((0, 2000), (1000, 2000), (2000, None)):
                note(done, total)
        shown = told.file.getvalue().splitlines()
        assert len(shown) == lines + 1
        assert re.search(r"reading: 2,000 in \d+\.\d s", shown[-1])
    assert "reading: 1,000 of 2,000 · left 0 s" in shown[1]


def test_the_component_whose_shards_are_missing_is_named(recipe, tmp_path):
    code, _, said = run("pretrain", recipe, "data=.", cwd=tmp_path)
    assert code == 2
    assert re.search(r"error: mixture\.\w+\.shards: train-\*\.tar: no such shards", said), said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (RecipeError("set tested=[red] or [en]"), 2, "error: set tested=[red] or [en]"),
        (ValueError("two views"), 2, "error: two views"),
        (RunError("too many"), 1, "error: too many"),
        (CheckpointError("damaged"), 1, "error: damaged"),
        (OSError(errno.ENOSPC, "no space"), 1, "error: [Errno 28] no space"),
        (Stopped(3, 75), 75, "stopped after step 3, as asked; --resume goes on from there"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_ends_a_command_is_a_line_and_a_status(monkeypatch, capsys, error, status, said):
    monkeypatch.setattr(cli, "app", Mock(side_effect=error))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    assert capsys.readouterr().err.strip() == said


def test_a_fault_of_our_own_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "app", Mock(side_effect=KeyError("x")))
    with pytest.raises(KeyError):
        cli.main()


def test_a_missing_vocabulary_says_what_to_do(recipe, tmp_path):
    code, _, said = run("pretrain", recipe, "modalities.text.vocabulary=gone.model", cwd=tmp_path)
    assert code == 2
    assert "gone.model: no such vocabulary" in said
    assert "tokenizer train" in said


def test_the_whole_path(pretrained, world, tmp_path):
    tuned = tmp_path / "tiny-xnli"
    code, _, said = run(
        "finetune", "xnli", "--from", pretrained.name, "--out", tuned, "steps=2", "examples=4",
        cwd=pretrained.parent,  # a path relative to where one stands
    )  # fmt: skip
    assert code == 0, said
    code, shown, said = run("evaluate", "xnli", "--from", tuned)
    assert code == 0, said
    assert "zero_shot_mean" in shown  # what was asked for can be piped; what is said beside it not
    assert "weights selected by" not in shown
    result = json.loads((tuned / "results" / "xnli.json").read_text())
    assert result["metrics"]["pairs"] == 20 * 4 * 10
    assert set(result["metrics"]["by_language"]) >= {"en", "zh"}
    records = (tuned / "results" / "xnli.records.jsonl").read_text().splitlines()
    assert len(records) == 800
    moved = pretrained.parent / "tiny-xnli"
    shutil.copytree(tuned, moved)
    code, _, said = run("report", pretrained, "--out", tmp_path / "r.html")
    assert code == 0, said
    page = (tmp_path / "r.html").read_text()
    for loaded in ('src="http', "src='http", "@import", 'link rel="stylesheet"'):
        assert loaded not in page
    assert page.count("<svg") >= 3
    assert "accuracy in all other languages" in page


def test_examples_without_answers_are_said_to_be_unscored(pretrained, world, tmp_path):
    code, _, said = run(
        "finetune", "vqa", "--from", pretrained, "--out", tmp_path / "vqa", "steps=1"
    )
    assert code == 0, said
    (shard,) = open_shards("test-*.tar", world)
    with ShardWriter(tmp_path, "kept") as writer:
        for number in range(3):
            members = dict(shard.read(number))
            body = json.loads(members["json"])
            body["questions"] = [q | {"answers": {}} for q in body["questions"]]
            writer.write(str(number), members | {"json": body})
        del members["regions.npz"]
        writer.write("blind", members | {"json": body})
    code, _, said = run(
        "evaluate", "vqa", "--from", tmp_path / "vqa", f"data={tmp_path}", "test=*.tar"
    )
    assert code == 0, said
    assert "nothing was scored" in said
    lost = r"\d+ missing member: samples that could not be used, .* first: .*tar: blind: no regions"
    assert re.search(lost, " ".join(said.split())), said


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_tasks_with_pictures(pretrained, task, tmp_path):
    tuned = tmp_path / task
    settings = ["tested=[en,de]"] if task == "retrieval" else []
    code, _, said = run(
        "finetune", task, "--from", pretrained, "--out", tuned, "steps=2", "examples=8", *settings
    )
    assert code == 0, said
    code, shown, said = run("evaluate", task, "--from", tuned)
    assert code == 0, said
    metrics = json.loads((tuned / "results" / f"{task}.json").read_text())["metrics"]
    assert f"{task} on test" in shown
    assert f"wrote {tuned}/results/{task}." in said.replace("\n", "")
    if task == "vqa":
        assert 0 <= metrics["accuracy"] <= 1
        assert metrics["questions"] > 100
    else:
        assert metrics["images"] == 20
        assert metrics["texts"] == 40
        assert 0 <= metrics["text_to_image"]["r1"] <= metrics["text_to_image"]["r10"] <= 1


def test_recipes_are_listed_shown_and_described(recipe):
    code, said, _ = run("recipes", "list")
    assert code == 0
    line = next(x for x in said.splitlines() if "│ demo " in x)
    assert "single stream; streams apart" in line
    assert "image (regions)" in line
    code, shown, _ = run("recipes", "show", recipe, "steps=7")
    assert code == 0
    # not on a terminal: YAML alone, that can be run
    assert from_dict(yaml.safe_load(shown)).steps == 7
    code, tables, _ = run("recipes", "show", recipe, "--plan", "plan.layers.1.blocks.0.heads=4")
    assert code == 0
    assert "plan: single stream" in tables
    assert "text, image ← text, image" in tables
    assert "4 heads × 8" in tables
    assert "heads.itm" in tables
    assert "modalities:" not in tables
    code, schema, _ = run("recipes", "schema")
    assert json.loads(schema)["properties"]["steps"]["type"] == "integer"


def test_plans_are_drawn_and_the_page_of_recipes_is_written(recipe, tmp_path):
    code, _, said = run("recipes", "show", recipe, "--svg", tmp_path / "plan.svg")
    assert code == 0, said
    assert "joint attention" in (tmp_path / "plan.svg").read_text()
    code, _, said = run("recipes", "list", "--page", tmp_path / "docs")
    assert code == 0, said
    page = (tmp_path / "docs" / "recipes.md").read_text()
    assert "| `demo` |" in page
    assert "single-stream-of-text-image-12-layers-of-768.svg" in page


def test_plugins_are_listed_with_their_origin():
    code, said, _ = run("plugins", "list")
    assert code == 0
    for name in ("patches", "regions", "speech", "text", "contrast", "storybooks", "vqa", "demo"):
        line = next(x for x in said.splitlines() if f"│ {name} " in x)
        assert "crossloom 0." in line


def test_trace_agrees_over_processes_and_with_training(recipe):
    def trace(world):
        code, out, said = run(
            "shards", "trace", recipe, "micro=4", "--steps", "2:5", "--world", world, "--json"
        )
        assert code == 0, said
        return [json.loads(x) for x in out.splitlines()]

    alone, shared = trace(1), trace(2)
    assert {x["rank"] for x in shared} == {0, 1}
    for step in (2, 3, 4):
        one = next(x["keys"] for x in alone if x["step"] == step)
        two = [x["keys"] for x in shared if x["step"] == step]
        assert sorted(one) == sorted(two[0] + two[1])
        assert len(one) == 16


def damaged(world, out):
    """A copy of the world whose first shard has samples damaged in several ways."""
    shutil.copytree(world, out)
    path = out / "train-000000.tar"
    for index in out.glob("*.index.json"):
        index.unlink()
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    keys = sorted({n.split(".")[0] for n, _ in members})
    harm = {
        (keys[0], "regions.npz"): lambda d: d[:50],
        (keys[1], "json"): lambda d: b"\xff" + d,
        (keys[2], "png"): lambda d: d[: len(d) // 2],
    }
    import io

    with tarfile.open(path, "w") as tar:
        for name, data in members:
            key, _, extension = name.partition(".")
            if key == keys[3] and extension == "regions.npz":
                continue
            data = harm.get((key, extension), lambda d: d)(data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return keys[:4]


def test_check_names_every_damaged_sample(world, tmp_path):
    keys = damaged(world, tmp_path / "bad")
    code, _, said = run("shards", "check", tmp_path / "bad" / "train-*.tar",
                        "--quarantine", tmp_path / "q.jsonl")  # fmt: skip
    assert code == 1
    assert "Traceback" not in said
    found = {
        x["key"]: x["kind"]
        for x in map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    }
    assert found == {keys[0]: "undecodable", keys[1]: "not UTF-8", keys[2]: "undecodable"}


def test_training_goes_on_without_bad_samples_and_lists_them(recipe, world, tmp_path):
    keys = damaged(world, tmp_path / "bad")
    out = tmp_path / "run"
    code, _, said = run("pretrain", recipe, f"data={tmp_path / 'bad'}", "--out", out, "steps=30")
    assert code == 0, said
    lines = [json.loads(x) for x in (out / "quarantine.jsonl").read_text().splitlines()]
    hurt = {x["key"] for x in lines}
    # a picture that does not decode is not read by a recipe over regions
    assert hurt == {keys[0], keys[1], keys[3]}
    assert {x["kind"] for x in lines} == {"undecodable", "not UTF-8", "missing member"}


def test_too_many_bad_samples_end_the_run_with_status_1(recipe, world, tmp_path):
    damaged(world, tmp_path / "bad")
    code, _, said = run("pretrain", recipe, f"data={tmp_path / 'bad'}", "--out", tmp_path / "run",
                        "steps=400", "bad_share=0.001")  # fmt: skip
    assert code == 1
    assert "samples are bad" in said
    assert "Traceback" not in said


def test_show_writes_a_page_that_stands_alone(world, tmp_path):
    code, _, said = run("shards", "show", world / "test-*.tar", "--out", tmp_path / "s.html")
    assert code == 0, said
    page = (tmp_path / "s.html").read_text()
    assert page.count("data:image/png;base64") == 20
    assert "http" not in page


def test_index_writes_checksums_into_a_folder_and_names_damage(world, tmp_path):
    data = (world / "test-000000.tar").read_bytes()
    (tmp_path / "whole.tar").write_bytes(data)
    code, _, said = run("shards", "index", tmp_path / "whole.tar", "--into", tmp_path / "indexes")
    assert code == 0, said
    (index,) = (tmp_path / "indexes").glob("whole-*.index.json")
    assert len(list((tmp_path / "indexes").glob("*.summary.json"))) == 1
    assert len(json.loads(index.read_text())["sha256"]) == 64
    assert not (tmp_path / "whole.tar.index.json").exists()
    (tmp_path / "cut.tar").write_bytes(data[:50_000])
    code, _, said = run("shards", "index", tmp_path)
    assert code == 1
    assert "cut.tar: truncated shard: it ends" in said
    assert json.loads((tmp_path / "cut.tar.index.json").read_text())["samples"]


def test_doctor_speaks():
    code, shown, _ = run("doctor", "--at", "/proc")  # where there is no room at all
    assert code == 1
    assert "torch" in shown
    assert "full: make room" in shown
