"""The page of a run: what was evaluated is what it shows."""

import html
import json
import re
import shutil
from dataclasses import replace

import pytest

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.show import picture
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.plots import curves, moves, spreads
from crossloom.evaluation.report import write_report
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """A run of one step, and what was fine-tuned from it in two."""
    out = tmp_path_factory.mktemp("runs")
    train(replace(tiny_recipe(world), steps=1), out / "run", start("cpu"))
    settings = ["languages=[en]", "steps=2", "examples=4"]
    finetune("vqa", out / "run", out / "run-vqa", start("cpu"), settings)
    return out


def samples(shards, data):
    shard = open_shards(shards, data)[0]
    return {f"{shard.name}/{e.key}": shard.read(n) for n, e in enumerate(shard.entries)}


def report(runs, *assignments):
    """The page after an evaluation, and the records of what it is of."""
    result = evaluate("vqa", runs / "run-vqa", start("cpu"), assignments)
    write_report([runs / "run"], runs / "report.html")
    return (runs / "report.html").read_text(), result.records


def shown(page, members):
    return {key for key, sample in members.items() if picture(sample) in page}


def test_another_split_is_shown_and_told(runs, world):
    page, records = report(runs, "test=dev-*.tar", "tested=[de, en]")
    assert "scratch" not in page[page.index("<h2>Results") : page.index("<h2>How it was made")]
    assert '<td>vqa <span class="tag">dev</span></td>' in page
    assert (
        "crossloom evaluate vqa &#39;test=dev-*.tar&#39; &#39;tested=[de, en]&#39; --from run-vqa"
        in page
    )
    members = samples("dev-*.tar", world)
    assert {r["key"].split("#")[0] for r in records} == set(members)
    # what is said to look is the question of the record
    cards = re.findall(r'<div class="words" dir="auto">(.*?)</div>', page)
    words = [re.sub(r"<.*?>|\s", "", html.unescape(card)) for card in cards]
    asked = {"".join(r["question"].split()) for r in records if r["language"] == "de"}
    assert any(question in said for said in words for question in asked)
    assert len(shown(page, members)) > 1
    assert not shown(page, samples("test-*.tar", world))
    body = json.loads((runs / "run-vqa" / "results" / "vqa.json").read_text())
    assert (body["settings"]["test"], body["data"]) == ("dev-*.tar", str(world))


def test_pictures_are_those_of_the_data_evaluated(runs, world, tmp_path):
    """Of shards that have the same names and keys, with other pictures."""
    own = samples("test-*.tar", world)
    others = [m["png"] for m in samples("dev-*.tar", world).values()]
    with ShardWriter(tmp_path / "other", "test") as writer:
        for members, png in zip(own.values(), others, strict=True):
            content = json.loads(members["json"])
            writer.write(content["id"], {**members, "png": png, "json": content})
    page, _ = report(runs, f"data={tmp_path / 'other'}")
    assert len(shown(page, samples("test-*.tar", tmp_path / "other"))) > 1
    assert not shown(page, own)
    assert '<span class="tag">test of other</span>' in page


def test_what_cannot_be_scored_is_not_shown(runs, world, tmp_path):
    with ShardWriter(tmp_path / "hidden", "test") as writer:
        for number, members in enumerate(samples("test-*.tar", world).values()):
            content = json.loads(members["json"])
            for question in content["questions"]:
                question["answers"] = {}
            writer.write(f"{number:06d}", {**members, "json": content})
    page, records = report(runs, f"data={tmp_path / 'hidden'}")
    assert {r["score"] for r in records} == {None}
    assert not shown(page, samples("test-*.tar", world))


def test_results_of_before_whose_samples_are_not_found_are_told_all_the_same(runs, world):
    report(runs, "test=dev-*.tar")
    file = runs / "run-vqa" / "results" / "vqa.json"
    body = json.loads(file.read_text())
    for name in ("settings", "data", "assignments"):
        del body[name]
    file.write_text(json.dumps(body))
    write_report([runs / "run"], runs / "report.html")
    assert '<span class="tag">dev</span>' in (runs / "report.html").read_text()


def test_inferences_that_pre_training_learned_are_shown(runs, world):
    recipe = make_task("xnli")[0].recipe(tiny_recipe(world), "")
    run = runs / "inferring"
    train(replace(recipe, steps=1, held_every=0, select=""), run, start("cpu"))
    evaluate("xnli", run, start("cpu"), ["tested=[de]"])
    write_report([run], runs / "inferring.html")
    assert "<h2>Infer" in (runs / "inferring.html").read_text()


def test_a_result_scored_otherwise_is_kept(runs, world):
    run, (german, english) = runs / "run-vqa", (["tested=[de]"], ["tested=[en]"])
    first = evaluate("vqa", run, start("cpu"), german)
    kept = {p.name: p.read_bytes() for p in (run / "results").iterdir() if p.is_file()}
    assert evaluate("vqa", run, start("cpu"), german).earlier is None
    second = evaluate("vqa", run, start("cpu"), english)
    assert first.records != second.records
    assert {p.name: p.read_bytes() for p in second.earlier.iterdir()} == kept
    third = evaluate("vqa", run, start("cpu"), [*english, "modalities.image.limit=2"])
    assert third.earlier.name != second.earlier.name


def test_how_far_an_unfinished_run_came_is_told(runs):
    run = runs / "half"
    shutil.copytree(runs / "run", run)
    (run / "model.safetensors").unlink()
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("\nsteps: 1\n", "\nsteps: 2000\n"))
    result = evaluate("sentence-retrieval", run, start("cpu"), ["languages=[en,de]"])
    assert result.selected_by.endswith("the run is unfinished, 1 of 2,000 steps")
    write_report([run], runs / "half.html")
    assert "<li>steps<b>1 of 2,000</b></li>" in (runs / "half.html").read_text()


def test_one_point_of_a_curve_and_shares_in_percent_can_be_read():
    one = curves([{"step": 6, "mlm/loss": 7.0}], {"mlm/loss": "mlm"}, "Loss")
    two = curves([{"step": n, "mlm/loss": 7.0} for n in (6, 7)], {"mlm/loss": "mlm"}, "Loss")
    assert (one.count("fill: #1f77b4"), two.count("fill: #1f77b4")) == (2, 0)
    steps = re.findall(r">([\d.]+)</text>", two[: two.index("matplotlib.axis_2")])
    assert steps == ["6", "7"]
    shares = moves({"a": (0.25, 0.5), "b": (0.75, 0.05)}, "Shares", ("data", "run"))
    assert ">10%</text>" in shares
    assert "10^" not in shares


def test_what_lies_close_together_looks_so():
    """The axis is a tenth of the values wide, or as wide as they lie apart."""

    def shown(*values):
        svg = spreads({"a": values}, "R@1", set())
        ticks = re.findall(r">([\d.]+)</text>", svg[: svg.index("matplotlib.axis_2")])
        return float(ticks[-1]) - float(ticks[0])

    assert shown(0.900, 0.901) >= 0.07
    assert 0.5 <= shown(0.2, 0.7) <= 0.8  # one deviation to either side
