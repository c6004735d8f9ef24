"""Tasks on small shards: fine-tuned beyond chance, scored by hand, handed in as benchmarks ask."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.annotated import Labelled, Questions, Refers
from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tags import Tags
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.features import read_examples
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.grounding import _record
from crossloom.evaluation.predict import gather, predict
from crossloom.evaluation.task import split_of
from crossloom.evaluation.two_pictures import beside, sentence_of
from crossloom.evaluation.vqa import Gqa, Vqa
from crossloom.evaluation.zero_shot import _scores
from crossloom.modalities.patches import Patches
from crossloom.models.presets import co_attention, dual_encoder, single_stream
from crossloom.objectives.presets import itm
from crossloom.objectives.view import View
from crossloom.recipes.world import small_towers
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Pace, Phase, RecipeError, load_recipe
from crossloom.training.run import (
    load_weights,
    make_model,
    open_run,
    prepare_folder,
    start_from,
)
from crossloom.units import BadSample, keyed_rng, make_units

ENGLISH = "languages=[en]"


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A run of two steps: only its recipe matters."""
    out = tmp_path_factory.mktemp("base")
    train(replace(tiny_recipe(world, contrast=True), steps=2), out, start("cpu"))
    return out


def tuned(task, base, out, *assignments):
    """Fine-tuned from fresh weights; the metrics and the run's folder."""
    finetune(task, base, out, start("cpu"), assignments, scratch=True)
    return evaluate(task, out, start("cpu"))


def handed_in(out, name):
    return (out / "results" / name).read_text("utf-8")


# --- grounding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_grounding_learns_on_the_world(base, tmp_path, loss):
    settings = (f"loss={loss}", ENGLISH, "steps=120", "examples=24", "optim.rate=3e-3")
    result = tuned("grounding", base, tmp_path, *settings, "log_every=20")
    journal = read_journal(tmp_path / "metrics.jsonl")
    assert journal[-1]["grounding/loss"] < 0.6 * journal[0]["grounding/loss"]
    # a world's scene has three to five regions
    assert result.metrics["accuracy"] > 0.55
    assert result.metrics["reachable"] == 1
    assert result.metrics["by_kind"].keys() == {"name", "colour", "place"}
    assert result.split == "test"
    written = json.loads((tmp_path / "results" / "grounding.json").read_text())
    assert written["split"] == "test"
    assert written["files"] == ["grounding.predictions.json"]
    rows = json.loads(handed_in(tmp_path, "grounding.predictions.json"))
    assert len(rows) == result.metrics["expressions"] == len(result.records)
    for row, record in zip(rows, result.records, strict=True):
        x, y, width, height = row["pred_box"]
        x1, y1, x2, y2 = record["predicted"]
        assert (x, y) == (x1, y1)
        assert (width, height) == pytest.approx((x2 - x1, y2 - y1), abs=0.011)
        # the score again, in pixels
        a, b = record["box"], record["predicted"]
        wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
        assert record["score"] == float(wide * high / union >= 0.5)


def test_the_whole_image_is_no_answer():
    corners = np.array([[0, 0, 1, 1], [0, 0, 0.4, 1], [0.6, 0, 1, 1]])
    units = make_units({"corners": corners}, maskable=np.array([False, True, True]))
    labels = {"id": "7", "language": "en", "kind": "", "text": "all", "size": [100, 50]}
    labels["box"] = [0.0, 0.0, 1.0, 1.0]
    example = Example(
        key="test-000000/1", sample="test-000000/1", epoch=0, units={"image": units}, labels=labels
    )
    record = _record(example, "image", torch.tensor([5.0, 2.0, 1.0]))
    assert record["predicted"] == [0, 0, 40, 50]
    assert record["overlap"] == pytest.approx(0.4)
    assert (record["score"], record["reachable"]) == (0, False)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return (tmp_path / "a.npz").read_bytes()


def test_boxes_are_shares_of_the_picture_wherever_its_size_is_found(tmp_path, world):
    refer = {"id": "7", "text": {"en": "the lady"}, "box": [10, 10, 20, 40]}
    size = np.array([200, 100])
    regions = npz(tmp_path, size=size, features=np.zeros((1, 2)), boxes=np.zeros((1, 4)))

    def read(members, **content):
        data = json.dumps({"refers": [refer], **content}).encode()
        return Refers().read({"json": data, **members}, 0, keyed_rng(0))[1]

    assert read({"regions.npz": regions})["box"] == [0.05, 0.1, 0.1, 0.4]
    picture = open_shards("test-*.tar", world)[0].read(0)["png"]
    assert read({"png": picture, "regions.npz": regions})["size"] == [96, 96]
    both = {"png": picture, "regions.npz": regions}
    assert read(both, size={"width": 50, "height": 100})["box"] == [0.2, 0.1, 0.4, 0.4]
    with pytest.raises(BadSample, match=r"regions\.npz"):
        read({})


# --- two pictures -------------------------------------------------------------------------------


def is_there(scene, shape):
    return any(thing["shape"] == shape for thing in scene)


@pytest.fixture(scope="module")
def pictures(world, tmp_path_factory):
    """Pairs of the world's pictures, and whether a shape is in the left one (or the right)."""
    out = tmp_path_factory.mktemp("pictures")
    for split, wanted in (("train", 240), ("dev", 30), ("test", 60)):
        shards = open_shards("train-*.tar" if split == "train" else "dev-*.tar", world)
        samples = [s.read(n) for s in shards for n in range(len(s.entries))]
        rng = keyed_rng("pictures", split)
        with ShardWriter(out, split) as writer:
            for number in range(wanted):
                two = [samples[int(n)] for n in rng.integers(len(samples), size=2)]
                scenes = [json.loads(s["json"])["scene"] for s in two]
                side = int(rng.integers(2))
                shape = str(rng.choice(["circle", "square", "star"]))
                label = is_there(scenes[side], shape)
                text = f"The {'right' if side else 'left'} picture shows a {shape}."
                name = f"{split}-{number // 2}-{number % 2}-0"
                pair = {"id": name, "label": str(label).lower(), "hypothesis": {"en": text}}
                members = {f"{n}.regions.npz": s["regions.npz"] for n, s in enumerate(two)}
                members |= {f"{n}.png": s["png"] for n, s in enumerate(two)}
                writer.write(f"{number:06d}", {**members, "json": {"id": name, "pairs": [pair]}})
    (out / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return out


def official(csv, labels):
    """Accuracy and consistency as nlvr2/eval/metrics.py counts them, written anew."""
    said = dict(line.split(",") for line in csv.splitlines())
    right = {name: said[name].lower() == label for name, label in labels.items()}
    by_sentence = {}
    for name, fits in right.items():
        split, sentence, _, which = name.split("-")
        by_sentence.setdefault((split, sentence, which), []).append(fits)
    consistent = [all(x) for x in by_sentence.values()]
    return sum(right.values()) / len(right), sum(consistent) / len(consistent)


@pytest.mark.parametrize("shape", ["pair", "triplet"])
def test_two_pictures_are_told_apart(base, pictures, tmp_path, shape):
    steps = 40 if shape == "triplet" else 60
    settings = [f"data={pictures}", f"shape={shape}", f"steps={steps}", "examples=16"]
    settings += ["optim.rate=3e-3", "log_every=10"]
    result = tuned("nlvr2", base, tmp_path, *settings)
    journal = read_journal(tmp_path / "metrics.jsonl")
    assert journal[-1]["nlvr2/loss"] < journal[0]["nlvr2/loss"]
    recipe = open_run(tmp_path)
    assert recipe.modalities["image"].field == "0.regions.npz"
    assert recipe.modalities["second_image"].field == "1.regions.npz"
    weights, _ = load_weights(tmp_path)
    assert ("marks.second_image" in weights) == (shape == "triplet")
    assert not any("embed.second" in k for k in weights)
    labels = {r["id"]: r["label"] for r in result.records}
    expected = official(handed_in(tmp_path, "nlvr2.submission.csv"), labels)
    assert (result.metrics["accuracy"], result.metrics["consistency"]) == pytest.approx(expected)
    assert {r["predicted"] for r in result.records} <= {"true", "false"}


def test_two_pictures_are_tested_in_each_language(base, pictures, tmp_path):
    with ShardWriter(tmp_path / "two", "test") as writer:
        source = open_shards("test-*.tar", pictures)[0]
        for number in range(4):
            members = dict(source.read(number))
            content = json.loads(members["json"])
            content["pairs"][0]["hypothesis"]["de"] = "Das linke Bild zeigt einen Kreis."
            writer.write(f"{number}", {**members, "json": content})
    task, _ = make_task("nlvr2", ["tested=[en,de]"])
    recipe = replace(task.recipe(open_run(base), ""), data=str(tmp_path / "two"))
    result = task.evaluate(make_model(recipe), recipe)
    assert [(r["key"], r["language"]) for r in result.records] == [
        (f"test-000000/{n}#{place}", code)
        for n in range(4)
        for place, code in enumerate(("en", "de"))
    ]
    assert set(result.metrics["by_language"]) == {"en", "de"}
    # two sentences, each in two languages
    known = [{**r, "score": r["language"] == "en"} for r in result.records]
    assert task.metrics(known) == {"consistency": 0.5}


def test_two_towers_are_asked_through_both(base):
    recipe = open_run(base)
    towers = replace(
        recipe,
        plan=dual_encoder("text", "image", layers=1, width=32, heads=2),
        objectives={"itc": recipe.objectives["itc"]},
        mixture={"captions": replace(recipe.mixture["captions"], objectives=("itc",))},
    )
    for task in ("vqa", "snli-ve"):
        made = make_task(task)[0].recipe(towers, "")
        assert made.objectives[task].pooled == ("text", "image")
        joint = make_task(task)[0].recipe(replace(towers, plan=recipe.plan), "")
        assert joint.objectives[task].pooled == ("text",)
        assert made.objectives[task].pool == joint.objectives[task].pool == "first"
        read = replace(towers, plan=small_towers(causal=("text",)))
        assert make_task(task)[0].recipe(read, "").objectives[task].pool == "mean"
        last = make_task(task, ["pool=last"])[0]
        assert last.recipe(read, "").objectives[task].pool == "last"


def test_classifiers_summarise_as_matching_does(base):
    """ViLBERT's questions: the product of both summaries, brought to one width through ReLU."""
    given = open_run(base)
    form = {"pooled": ("text", "image"), "width": 24, "activation": "relu", "dropout": 0.1}
    passages = replace(given.objectives["itm"], view=View(name="p", streams=("text",)))
    heads = {
        "passages": replace(passages, passages=True, pool="mean"),
        "itm": replace(given.objectives["itm"], **form),
    }
    parts = {"captions": replace(given.mixture["captions"], objectives=tuple(heads))}
    recipe = replace(given, objectives=heads, mixture=parts)
    asked = make_task("snli-ve")[0].recipe(recipe, "").objectives["snli-ve"]
    assert asked.pooling == heads["itm"].pooling == {"pool": "first", "combine": "product", **form}
    # what is shown the text alone goes by the head that was, too
    assert make_task("pawsx")[0].recipe(recipe, "").objectives["pawsx"].pool == "mean"
    other = make_task("snli-ve", ["pool=last", "pooled=[text]"])[0].recipe(recipe, "")
    assert other.objectives["snli-ve"].pooling == {
        **asked.pooling,
        "pool": "last",
        "pooled": ("text",),
    }


def test_texts_say_what_is_asked_as_they_did(base, world):
    """12-in-1's vector for each data set: a unit after the first."""
    given = open_run(base)
    text = replace(given.modalities["text"], tasks=("coco", "vqa"))
    recipe = replace(given, modalities={**given.modalities, "text": text})

    def said(name, *settings):
        task = make_task(name, settings)[0]
        made = task.recipe(recipe, "")
        readers = {component.reader.task for component in made.mixture.values()}
        source = task.source(made, task.component(made), "dev-*.tar")
        (example, *_) = read_examples(made, source, ("text",), most=2)
        assert {int(example.units["text"].content["task"][1])} | {-1} == {
            -1, *(text.tasks.index(r) for r in readers if r)
        }  # fmt: skip
        return readers

    assert said("vqa", "dev=dev-*.tar") == {"vqa"}
    assert said("vqa", "asked=coco") == {"coco"}
    assert said("vqa", "asked=") == said("retrieval") == {""}
    assert said("retrieval", "asked=coco") == {"coco"}
    with pytest.raises(RecipeError, match="asked: 'gqa', but the texts of tiny know coco, vqa"):
        said("vqa", "asked=gqa")
    with pytest.raises(RecipeError, match="know no task: leave it empty"):
        make_task("vqa", ["asked=vqa"])[0].recipe(given, "")


@pytest.mark.parametrize("name", ["vqa", "snli-ve"])
def test_questions_are_asked_beside_tags(world, tmp_path, name):
    """Oscar's tags are shown in fine-tuning and in the test, as its own components read them."""
    recipe = replace(load_recipe("oscar-tiny"), data=str(world))
    train(replace(recipe, steps=1, examples=4, micro=1), tmp_path / "oscar", start("cpu"))
    settings = ["tags=tags", ENGLISH, "steps=1", "examples=4"]
    finetune(name, tmp_path / "oscar", tmp_path / "tuned", start("cpu"), settings)
    made = open_run(tmp_path / "tuned")
    assert made.objectives[name].view.streams == ("text", "tags", "image")
    kept = json.loads((tmp_path / "tuned" / "start.json").read_text())
    assert [n for n in kept["fresh"] if not n.startswith(f"heads.{name}.mlp.")] == []
    assert evaluate(name, tmp_path / "tuned", start("cpu")).metrics["accuracy"] >= 0
    task = make_task(name, settings[:2])[0]
    source = task.source(made, task.component(made), "test-*.tar")
    (example, *_) = read_examples(made, source, ("text", "tags", "image"), most=1)
    (passage,) = Tags(of="regions.npz", names=str(world / "classes.txt")).read(
        open_shards("test-*.tar", world)[0].read(0), {}
    )["tags"]
    expected = made.modalities["tags"].decode({"tags": (passage,)}, keyed_rng(0))
    assert (example.units["tags"].content["token"] == expected.content["token"]).all()


def test_tags_that_are_not_there_are_refused(base):
    with pytest.raises(RecipeError, match=r"tags: tiny has no such stream .* leave it empty"):
        make_task("vqa", ["tags=tags"])[0].recipe(open_run(base), "")


def test_a_classifier_may_be_linear_and_cross_entropy_of_soft_scores(base, tmp_path):
    """Overrides of the objective: BERT's classifier; VisualBERT's loss. Chances add to 1."""
    settings = (ENGLISH, "steps=2", "examples=4", "objectives.vqa.hidden=false",
                "objectives.vqa.form=softmax")  # fmt: skip
    result = tuned("vqa", base, tmp_path, *settings)
    head = make_model(open_run(tmp_path)).heads["vqa"]
    assert [type(part).__name__ for part in head.mlp] == ["Linear"]
    assert head.mlp[0].in_features == 32
    asked = make_task("vqa", [ENGLISH])[0]
    model, recipe = make_model(open_run(tmp_path)), open_run(tmp_path)
    start_from(model, load_weights(tmp_path)[0])
    component = replace(asked.component(recipe), reader=asked.tested_with(recipe))
    source = asked.source(recipe, component, "test-*.tar")
    logits = gather(predict(model, recipe, source, ("vqa",)), "vqa")[0]
    told = [r["probability"] for r in result.records]
    assert told == pytest.approx(logits.softmax(1).max(1).values.tolist(), rel=1e-4)


def test_a_pair_needs_no_single_stream_and_a_triplet_does(base, pictures):
    recipe = replace(
        open_run(base),
        plan=co_attention("text", "image", first=1, pairs=1, width=32, heads=2),
        objectives={"itm": itm(pooled=("text", "image"))},
        mixture={"captions": replace(open_run(base).mixture["captions"], objectives=("itm",))},
    )
    task, _ = make_task("nlvr2")
    made = task.recipe(recipe, "")
    # dual streams are read through both summaries, as their matching head does
    assert made.objectives["nlvr2"].pooled == ("text", "image")
    assert "second_image" not in made.plan.widths
    head = make_model(made).heads["nlvr2"]
    assert head.mlp[0].in_features == 2 * 32
    with pytest.raises(RecipeError, match="use shape=pair"):
        make_task("nlvr2", ["shape=triplet"])[0].recipe(recipe, "")


def test_two_pictures_as_patches(pictures, tmp_path):
    recipe = tiny_recipe(pictures)
    captions = replace(recipe.mixture["captions"], objectives=("itm",))
    drawn = replace(
        recipe,
        modalities={**recipe.modalities, "image": Patches(size=32, patch=16)},
        objectives={"itm": recipe.objectives["itm"]},
        mixture={"captions": captions},
    )
    task, _ = make_task("nlvr2")
    made = task.recipe(drawn.located(), "")
    assert [made.modalities[s].field for s in ("image", "second_image")] == ["0", "1"]
    train(replace(made, steps=2, examples=4), tmp_path, start("cpu"))
    assert evaluate("nlvr2", tmp_path, start("cpu")).metrics["pairs"] == 60


def test_the_second_picture_reads_and_is_read_like_the_first():
    plan = single_stream(("text", "image"), layers=2, width=8, heads=2)
    grown = beside(plan, "image", "other")
    assert grown == single_stream(("text", "image", "other"), layers=2, width=8, heads=2)


def test_sentences_are_known_by_their_identifier():
    assert sentence_of("test1-0-1-0") == sentence_of("test1-0-3-0") != sentence_of("test1-0-1-1")


# --- classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "file", "form"),
    [
        ("vqa", "vqa.submission.json", {"question_id": int, "answer": str}),
        ("gqa", "gqa.submission.json", {"questionId": str, "prediction": str}),
    ],
)
def test_answers_are_handed_in_and_scored(base, tmp_path, task, file, form):
    result = tuned(task, base, tmp_path, ENGLISH, "steps=3", "examples=8")
    rows = json.loads(handed_in(tmp_path, file))
    assert [{k: type(v) for k, v in row.items()} for row in rows] == [form] * len(rows)
    said = [list(row.values())[1] for row in rows]
    assert said == [r["predicted"] for r in result.records]
    scores = [r["answers"].get(x, 0) for r, x in zip(result.records, said, strict=True)]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(scores))
    kinds = {r["kind"] for r in result.records}
    assert set(result.metrics["by_kind"]) == kinds


def test_questions_have_the_benchmarks_own_names():
    records = [{"id": "gqa/0012", "predicted": "red"}, {"id": "x/7b", "predicted": "no"}]
    handed = {task: json.loads(*task().files(records).values()) for task in (Vqa, Gqa)}
    assert [row["question_id"] for row in handed[Vqa]] == [12, "7b"]
    assert [row["questionId"] for row in handed[Gqa]] == ["0012", "7b"]


def test_entailment_of_pictures_learns_its_classes(base, tmp_path):
    result = tuned("snli-ve", base, tmp_path, ENGLISH, "steps=3", "examples=8")
    lines = [json.loads(x) for x in handed_in(tmp_path, "snli-ve.predictions.jsonl").splitlines()]
    assert [x["prediction"] for x in lines] == [r["predicted"] for r in result.records]
    right = [r["predicted"] == r["label"] for r in result.records]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert set(result.metrics["by_label"]) == {"entailment", "neutral", "contradiction"}


def test_questions_whose_answers_are_kept_back_are_answered_not_scored(base, world, tmp_path):
    out = tmp_path / "hidden"
    source = open_shards("test-*.tar", world)[0]
    with ShardWriter(out, "test") as writer:
        for number in range(3):
            members = source.read(number)
            content = json.loads(members["json"])
            for question in content["questions"]:
                question["answers"] = {}
                question["id"] = f"vqa/{number}{question['id']}"
            writer.write(f"{number}", {**members, "json": content})
    run = tmp_path / "run"
    finetune("vqa", base, run, start("cpu"), [ENGLISH, "steps=2", "examples=4"], scratch=True)
    known = json.loads((run / "task.json").read_text())
    assert (run / known["base"]).resolve() == base.resolve()
    result = evaluate("vqa", run, start("cpu"), [f"data={out}"])
    assert "accuracy" not in result.metrics
    rows = json.loads(handed_in(run, "vqa.submission.json"))
    assert len(rows) == result.metrics["questions"] > 3
    assert {str(r["question_id"])[0] for r in rows[-5:]} == {"2"}
    with pytest.raises(BadSample, match="answers"):
        Questions().read({"json": out_json(out)}, 0, keyed_rng(0))


def out_json(out):
    return open_shards("test-*.tar", out)[0].read(0)["json"]


def write_without(member, shards, out, prefix):
    """Three test samples again, which lack a member."""
    source = open_shards("test-*.tar", shards)[0]
    with ShardWriter(out, prefix) as writer:
        for number in range(3):
            members = source.read(number)
            del members[member]
            writer.write(f"{number}", members)


@pytest.mark.parametrize("task", ["vqa", "grounding", "retrieval"])
def test_where_no_example_can_be_used_the_first_is_told(base, world, tmp_path, task):
    write_without("regions.npz", world, tmp_path, "test")
    made, _ = make_task(task, [ENGLISH])
    recipe = made.recipe(open_run(base), "")
    model = make_model(recipe)
    message = rf"{task}: none of the \d+ examples of test .* 0 of .*test-0+.tar: .*regions\.npz"
    with pytest.raises(RecipeError, match=message):
        made.evaluate(model, replace(recipe, data=str(tmp_path)))


def test_splits_are_named_by_their_shards():
    assert split_of("testA-000003/0000012#1") == "testA"
    assert split_of("dev-000000") == "dev"
    assert split_of("imagenet/12") == "imagenet"


def test_several_splits_are_reported_apart(base, tmp_path):
    finetune("vqa", base, tmp_path, start("cpu"), [ENGLISH, "steps=2", "examples=4"], scratch=True)
    result = evaluate("vqa", tmp_path, start("cpu"), ["test={dev,test}-*.tar"])
    assert result.split == "dev, test"
    assert set(result.metrics["by_split"]) == {"dev", "test"}
    counts = {s: sum(r["split"] == s for r in result.records) for s in ("dev", "test")}
    mean = sum(result.metrics["by_split"][s] * n for s, n in counts.items()) / sum(counts.values())
    assert mean == pytest.approx(result.metrics["accuracy"])


def test_stages_of_pre_training_do_not_hinder(base):
    given = open_run(base)
    parts = {n: replace(c, held="dev-*.tar") for n, c in given.mixture.items()}
    staged = replace(
        given,
        mixture=parts,
        phases=(Phase(step=1, weights={"captions": 1.0}),),
        held_every=5,
        pace=Pace(),
        ema=0.9,
    )
    made = make_task("snli-ve")[0].recipe(staged, "")
    assert (made.phases, made.held_every, made.pace, made.ema) == ((), 0, None, 0.9)
    assert list(made.mixture) == ["snli-ve"]
    # weights that are selected are not averaged, and what selects them is never drawn
    selecting = make_task("snli-ve", ["dev=dev-*.tar"])[0].recipe(staged, "")
    assert (selecting.select, selecting.held_every, selecting.ema) == ("dev/snli-ve", 100, 0)
    assert {n: c.weight for n, c in selecting.mixture.items()} == {"snli-ve": 1, "dev": 0}


def test_what_pre_training_alone_predicted_need_not_be_in_the_shards(base, tmp_path):
    """The world's regions have no attributes, which LXMERT's predict."""
    recipe = open_run(base)
    image = replace(recipe.modalities["image"], attributes=5)
    recipe = replace(recipe, modalities={**recipe.modalities, "image": image})
    prepare_folder(tmp_path / "lxmert", recipe)
    settings = (ENGLISH, "steps=2", "examples=4", "workers=0")
    made = finetune(
        "vqa", tmp_path / "lxmert", tmp_path / "out", start("cpu"), settings, scratch=True
    )
    assert made.modalities["image"] == replace(image, attributes=0, classes=0)


def test_retrieval_goes_on_with_the_heads_there_are(base):
    given = open_run(base)
    assert list(make_task("retrieval")[0].objectives(given)) == ["itc", "itm"]
    assert make_task("retrieval")[0].objectives(given)["itc"] == given.objectives["itc"]
    towers = replace(
        given,
        objectives={"clip": replace(given.objectives["itc"], form="sigmoid")},
        mixture={"captions": replace(given.mixture["captions"], objectives=("clip",))},
    )
    assert make_task("retrieval")[0].objectives(towers) == dict(towers.objectives)


def test_a_head_that_ranks_answers_is_none_that_ranks_pairs(base):
    task, given = make_task("retrieval")[0], open_run(base)
    ranking = make_task("crossloom.evaluation.vcr:Vcr")[0].objectives(given)["vcr"]
    assert set(ranking.view.streams) == set(task.streams(given))
    heads = {**given.objectives, "vcr": ranking}
    both = SimpleNamespace(name="x", modalities=given.modalities, tied={}, objectives=heads)
    assert task._heads(both) == task._heads(given)
    both.objectives = {"vcr": ranking}
    with pytest.raises(RecipeError, match="no contrastive or matching objective over text and im"):
        task._heads(both)


@pytest.mark.parametrize("by", ["contrast", "choice"])
def test_retrieval_goes_on_with_a_head_that_saw_masked_pairs(base, by):
    given = open_run(base)
    task = make_task("retrieval", [f"by={by}"])[0]
    masked = replace(given.objectives["mlm"].view, name="joint", mismatch="text")
    form = {"pooled": ("text", "image"), "combine": "sum", "width": 24, "activation": "relu"}
    joint = replace(given.objectives["itm"], view=masked, **form)
    # mismatched by the reader: no pairs of pictures and texts
    read = replace(joint, view=replace(masked, mismatch=""), passages=True)
    for head, mismatch in ((joint, "text"), (read, "image")):
        parts = {"captions": replace(given.mixture["captions"], objectives=("joint",))}
        recipe = replace(given, objectives={"joint": head}, mixture=parts)
        found = task.objectives(recipe)["joint"]
        heads = (x.head(recipe.modalities, recipe.plan.widths) for x in (head, found))
        before, after = ({n: w.shape for n, w in x.state_dict().items()} for x in heads)
        assert before == after
        assert (found.view.hide, found.combine, found.width) == ({}, "sum", 24)
        if by == "contrast":
            assert found.view.mismatch == mismatch
            assert not found.passages


# --- retrieval ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["choice", "triplet"])
def test_ranking_learns_on_the_world(base, tmp_path, by):
    settings = [f"by={by}", ENGLISH, "steps=150", "examples=12", "optim.rate=2e-3", "log_every=25"]
    result = tuned("retrieval", base, tmp_path, *settings)
    journal = read_journal(tmp_path / "metrics.jsonl")
    assert journal[-1]["itm/loss"] < 0.8 * journal[0]["itm/loss"]
    assert journal[-1]["itm/correct"] > 0.4  # one of four
    assert "dual_encoder" not in result.metrics
    assert result.metrics["text_to_image"]["r5"] > 0.4  # of 20


def test_hard_negatives_are_taken_over_and_trained(base, tmp_path):
    settings = ["by=triplet", "others=6", "hard=2", ENGLISH, "steps=3", "examples=8"]
    finetune("retrieval", base, tmp_path, start("cpu"), settings)
    spec = open_run(tmp_path).objectives["itm"]
    assert spec.view.against == ("image", "text") * 3
    assert spec.hard == 2
    before, after = (load_weights(x)[0]["heads.itm.score.weight"] for x in (base, tmp_path))
    assert before.shape == after.shape
    assert 0 < (before - after).abs().max() < 0.02


def test_folds_are_means_and_rankings_are_written(base, tmp_path):
    for file in base.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    result = evaluate("retrieval", tmp_path, start("cpu"), ["texts=0", "fold=5", "rerank=3"])
    metrics = result.metrics
    assert (metrics["images"], metrics["texts"], metrics["folds"]) == (20, 60, 4)
    lines = [x.split() for x in handed_in(tmp_path, "retrieval.text_to_image.trec").splitlines()]
    assert len(lines) == 60 * 5
    owner = {r["key"]: r["image"] for r in result.records}
    place = {}
    for query, zero, candidate, rank, _, _ in lines:
        assert zero == "Q0"
        if candidate == owner[query]:
            place[query] = int(rank)
    folds = [[place[r["key"]] for r in result.records[n * 15 : n * 15 + 15]] for n in range(4)]
    expected = np.mean([np.mean(np.array(f) <= 1) for f in folds])
    assert metrics["text_to_image"]["r1"] == pytest.approx(expected)
    assert metrics["text_to_image"]["r5"] == 1
    back = [x.split() for x in handed_in(tmp_path, "retrieval.image_to_text.trec").splitlines()]
    assert len(back) == 20 * 15
    best = {}
    for query, _, candidate, rank, _, _ in back:
        if owner[candidate] == query:
            best.setdefault(query, int(rank))
    expected = np.mean([rank <= 1 for rank in best.values()])
    assert metrics["image_to_text"]["r1"] == pytest.approx(expected)


# --- classes without training -------------------------------------------------------------------


@pytest.fixture
def labelled(world, tmp_path):
    """The world's test scenes, each with the number of the colour and shape of one object."""
    names = ["red circle", "blue star", "green heart", "white moon"]
    source = open_shards("test-*.tar", world)[0]
    with ShardWriter(tmp_path / "classes", "test") as writer:
        for number in range(8):
            members = {k: v for k, v in source.read(number).items() if k != "json"}
            writer.write(f"{number}", {**members, "cls": str(number % 4).encode()})
    (tmp_path / "classes" / "classes.txt").write_text("\n".join(names) + "\n")
    return tmp_path / "classes", names


def test_zero_shot_classes_by_hand(base, labelled, tmp_path):
    data, names = labelled
    run = tmp_path / "run"
    run.mkdir()
    for file in base.iterdir():
        if file.is_file():
            (run / file.name).write_bytes(file.read_bytes())
    templates = ["There is a {}.", "The picture shows a {}."]
    settings = [f"data={data}", f"templates={json.dumps(templates)}"]
    result = evaluate("zero-shot", run, start("cpu"), settings)

    from crossloom.data_pipelines.collate import Collator, Example
    from crossloom.run import load
    from crossloom.units import Passage

    loaded = load(run)
    collate = Collator(loaded.recipe.modalities, loaded.recipe.objectives, 0)
    decode = {s: loaded.recipe.modalities[s].decode for s in ("text", "image")}

    def vectors(text, picture):
        """Both features, the example shown as the objective is trained."""
        units = {
            "text": decode["text"]({"text": (Passage("en", text),)}, keyed_rng(0)),
            "image": decode["image"](picture, keyed_rng(0)),
        }
        example = Example(key="k", sample="k", epoch=0, units=units, labels={})
        batch = collate.batch([example], ("itc",), 1, others=False).to("cpu")
        with torch.no_grad():
            return loaded.model(batch, predict=("itc",))["itc"][0].numpy()

    shard = open_shards("test-*.tar", data)[0]
    described = []
    for name in names:
        mean = np.mean([vectors(t.format(name), shard.read(0))[0] for t in templates], axis=0)
        described.append(mean / np.linalg.norm(mean))
    expected, scale = [], float(loaded.model.heads["itc"].factor())
    for number, record in enumerate(result.records):
        scores = scale * np.array(described) @ vectors("x", shard.read(number))[1]
        expected.append(np.argsort(-scores)[:4].tolist())
        chance = 1 / np.exp(scores - scores.max()).sum()
        assert record["probability"] == pytest.approx(chance, rel=1e-4)
    assert len(expected) == 8
    assert [r["found"] for r in result.records] == expected
    right = [e[0] == n % 4 for n, e in enumerate(expected)]
    assert result.metrics["top1"] == pytest.approx(np.mean(right))
    assert result.metrics["top5"] == 1
    by_class = [np.mean([right[n] for n in range(8) if n % 4 == c]) for c in range(4)]
    assert result.metrics["mean_per_class"] == pytest.approx(np.mean(by_class))
    line = handed_in(run, "zero-shot.predictions.txt").splitlines()[3]
    assert line == f"test-000000/3 {' '.join(map(str, expected[3]))}"


def test_classes_count_alike_however_many_pictures_they_have():
    found = [("a", 1.0), ("a", 1.0), ("a", 0.0), ("b", 0.0), ("c", None)]
    scores = _scores([{"label": c, "score": s, "among_five": s} for c, s in found])
    assert scores == {
        "top1": 0.5, "top5": 0.5, "mean_per_class": pytest.approx((2 / 3 + 0) / 2),
    }  # fmt: skip


def test_zero_shot_says_what_it_lacks(base, labelled, tmp_path):
    data, _ = labelled
    with pytest.raises(RecipeError, match="nothing is trained"):
        finetune("zero-shot", base, tmp_path / "x", start("cpu"))
    for assignment, message in [
        ("templates=[a photo]", "has no {}"),
        ("classes=none.txt", "names of classes"),
    ]:
        with pytest.raises(RecipeError, match=message):
            evaluate("zero-shot", base, start("cpu"), [f"data={data}", assignment])
    (data / "two.txt").write_text("cat\ndog\n")
    with pytest.raises(RecipeError, match="2 classes, and none is '2'"):
        evaluate("zero-shot", base, start("cpu"), [f"data={data}", "classes=two.txt"])


def test_pictures_whose_classes_are_kept_back_are_answered_not_scored(base, labelled, tmp_path):
    data, _ = labelled
    write_without("cls", data, data, "hidden")
    run = tmp_path / "run"
    shutil.copytree(base, run)
    settings = [f"data={data}", "test=hidden-*.tar"]
    result = evaluate("zero-shot", run, start("cpu"), settings)
    assert result.metrics == {"images": 3, "classes": 4}
    assert not result.defects
    assert [(r["label"], r["score"]) for r in result.records] == [(None, None)] * 3
    assert len(handed_in(run, "zero-shot.predictions.txt").splitlines()) == 3
    # beside pictures whose classes are told
    settings[1] = "test={test,hidden}-*.tar"
    both = evaluate("zero-shot", run, start("cpu"), settings)
    known = evaluate("zero-shot", run, start("cpu"), settings[:1])
    assert both.metrics == {**known.metrics, "images": 8 + 3}


def test_labels_are_read_from_either_member():
    def read(unlabelled=False, **members):
        return Labelled(unlabelled=unlabelled).read(members, 0, keyed_rng(0))[1]["label"]

    assert read(cls=b"17\n") == "17"
    assert read(json=b'{"label": "cat"}') == "cat"
    assert read(json=b'{"label": 0}') == "0"
    with pytest.raises(BadSample, match="no cls"):
        read(json=b'{"id": "1"}')
    with pytest.raises(BadSample, match="no cls"):
        read(png=b"")
    assert read(unlabelled=True, json=b'{"id": "1"}') == read(unlabelled=True, png=b"") == ""
    with pytest.raises(BadSample, match="no cls"):
        read(unlabelled=True, json=b'{"label": [1]}')
