"""VCR: a choice is learned and handed in, and figures are those that one finds by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.links import Links
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.vcr import columns, summary, table, told
from crossloom.models.presets import co_attention
from crossloom.objectives.presets import itm
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError
from crossloom.training.run import make_model, open_run

TASK = "crossloom.evaluation.vcr:Vcr"
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A run of two steps: only its recipe matters."""
    out = tmp_path_factory.mktemp("base")
    train(replace(tiny_recipe(world), steps=2), out, start("cpu"))
    return out


def write(folder, split, samples, rng, source, answered=True):
    """Two questions a sample, which name the colour that the right answer and its reason name."""
    with ShardWriter(folder, split) as writer:
        for number in range(samples):
            members = {k: v for k, v in source.read(number % 20).items() if k == "regions.npz"}
            choices = []
            for question in range(2):
                some = [str(c) for c in rng.permutation(COLOURS)[:4]]
                right, reason = (int(n) for n in rng.integers(4, size=2))
                others = [some[right], *(c for c in COLOURS if c != some[right])][:4]
                reasons = [others[(n - reason) % 4] for n in range(4)]
                told = {"answer": right, "rationale": reason} if answered else {}
                choices.append(
                    {
                        "id": f"{split}-{2 * number + question}",
                        "question": {"en": f"Which is {some[right]}?"},
                        "answers": {"en": some},
                        "rationales": {"en": [f"It is {c}." for c in reasons]},
                        **told,
                    }
                )
            writer.write(f"{number:04d}", {**members, "json": {"choices": choices}})


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("choices"), np.random.default_rng(0)
    source = open_shards("train-*.tar", world)[0]
    write(folder, "train", 100, rng, source)
    write(folder, "dev", 30, rng, source)
    write(folder, "test", 3, rng, source, answered=False)
    (folder / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return folder


def settings(asked, steps, *others):
    return (f"data={asked}", f"steps={steps}", "examples=16", "optim.rate=3e-3", "log_every=20",
            *others)  # fmt: skip


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_choice_is_learned_and_handed_in(base, asked, tmp_path, loss):
    given = settings(asked, 150, f"loss={loss}")
    finetune(TASK, base, tmp_path, start("cpu"), given, scratch=True)
    result = evaluate(TASK, tmp_path, start("cpu"))
    assert result.split == "dev"
    assert result.metrics["answer"] > 0.7
    assert result.metrics["rationale"] > 0.7
    assert result.metrics["both"] > 0.5
    assert result.metrics["questions"] == 60
    header, *lines = result.files["vcr.submission.csv"].splitlines()
    assert header.split(",")[:6] == [
        "annot_id", "answer_0", "answer_1", "answer_2", "answer_3",
        "rationale_conditioned_on_a0_0",
    ]  # fmt: skip
    assert header.split(",")[-1] == "rationale_conditioned_on_a3_3"
    # the figures again, from the table that is handed in
    key = {}
    for number in range(30):
        content = open_shards("dev-*.tar", asked)[0].read(number)["json"]
        key |= {c["id"]: c for c in json.loads(content)["choices"]}
    both = []
    for line in lines:
        name, *chances = line.split(",")
        group = np.array(chances, float).reshape(5, 4)
        if loss == "softmax":
            np.testing.assert_allclose(group.sum(1), 1, rtol=1e-4)
        right = key[name]["answer"]
        both.append(
            (group[0].argmax() == right, group[1 + right].argmax() == key[name]["rationale"])
        )
    assert len(both) == 60
    both = np.array(both)
    assert result.metrics["answer"] == pytest.approx(both[:, 0].mean())
    assert result.metrics["rationale"] == pytest.approx(both[:, 1].mean())
    assert result.metrics["both"] == pytest.approx(both.all(1).mean())
    # a test without labels is answered, not scored
    hidden = evaluate(TASK, tmp_path, start("cpu"), ("test=test-*.tar",))
    assert hidden.metrics == {"questions": 6}
    assert [r["score"] for r in hidden.records] == [None] * 6
    rows = hidden.files["vcr.submission.csv"].splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [f"test-{n}" for n in range(6)]
    assert {len(row.split(",")) for row in rows} == {21}


def test_one_of_the_two_is_trained_by_itself(base, asked, tmp_path):
    finetune(TASK, base, tmp_path, start("cpu"), settings(asked, 2, "what=[answer]"), scratch=True)
    result = evaluate(TASK, tmp_path, start("cpu"))
    assert set(result.metrics) == {"answer", "by_split", "questions"}
    assert result.files["vcr.submission.csv"].startswith("annot_id,answer_0,answer_1,")
    assert {line.count(",") for line in result.files["vcr.submission.csv"].splitlines()} == {4}


def test_selected_on_questions_as_trained(base, asked, tmp_path):
    given = settings(asked, 4, "dev=dev-*.tar", "dev_every=2")
    finetune(TASK, base, tmp_path, start("cpu"), given, scratch=True)
    assert evaluate(TASK, tmp_path, start("cpu")).selected_by.startswith("share right on dev-*.tar")


def test_any_plan_scores_choices_as_its_matching_head_does(base):
    recipe = replace(
        open_run(base),
        plan=co_attention("text", "image", first=1, pairs=1, width=32, heads=2),
        objectives={"itm": itm(pooled=("text", "image"))},
        mixture={"captions": replace(open_run(base).mixture["captions"], objectives=("itm",))},
    )
    made = make_task(TASK, ["limit=100"])[0].recipe(recipe, "")
    assert made.objectives["vcr"].pooled == ("text", "image")
    assert set(made.plan.widths) == {"text", "image"}
    assert made.tied == dict.fromkeys(("choice1", "choice2", "choice3"), "text")
    assert {made.modalities[s].limit for s in ("text", *made.tied)} == {100}
    make_model(made)
    with pytest.raises(RecipeError, match="is of kind 'regions', not a text"):
        make_task(TASK, ["text=image", "image=text"])[0].recipe(recipe, "")


def test_names_refer_to_regions_when_asked(base):
    task = make_task(TASK, ["links={of: boxes}"])[0]
    assert task.component(open_run(base)).reader.links == Links()


def item(what, after, answer, choice, *chances, key="dev-000000/a", number=0):
    labels = {
        "id": "d", "language": "en", "question": "q", "what": what, "after": after,
        "answer": answer, "choice": choice, "choices": list("abcd"),
    }  # fmt: skip
    return f"{key}#{number}", labels, torch.tensor(chances)


def question(key, first, answer, reason, said, reasons):
    """A question of a sample: its number, the right choices, and which are chosen."""
    onehot = np.eye(4).tolist()
    found = [item("answer", -1, answer, answer, *onehot[said], key=key, number=5 * first)]
    for after, best in enumerate(reasons):
        number = 5 * first + 1 + after
        found.append(
            item("rationale", after, answer, reason, *onehot[best], key=key, number=number)
        )
    return found


def test_both_must_be_right():
    both = ("answer", "rationale")
    found = [
        *question("dev-000000/a", 0, 1, 2, 1, (0, 2, 0, 0)),  # both
        *question("dev-000000/a", 1, 1, 2, 1, (2, 0, 2, 2)),  # the answer
        *question("dev-000000/b", 0, 3, 2, 0, (0, 0, 0, 2)),  # the reason, after the right answer
        *question("test-000000/b", 0, 3, 2, 0, (2, 2, 2, 0)),  # neither
    ]
    records = told(found, 5)
    assert [r["score"] for r in records] == [1, 0, 0, 0]
    assert [r["answer"]["score"] for r in records] == [1, 1, 0, 0]
    assert [r["rationale"]["score"] for r in records] == [1, 0, 1, 0]
    assert summary(records, both) == {
        "answer": 0.5, "rationale": 0.5, "both": 0.25,
        "by_split": {"dev": pytest.approx(1 / 3), "test": 0.0}, "questions": 4,
    }  # fmt: skip
    # one of whose examples could not be used is told, not scored
    fewer = told([f for f in found if f[0] != "dev-000000/a#2"], 5)
    assert summary(fewer, both)["both"] == 0
    assert summary(fewer, both)["answer"] == pytest.approx(1 / 3)
    assert summary(fewer, both)["questions"] == 4
    assert summary(told(question("test-000000/b", 0, None, None, 0, (0,) * 4), 5), both) == {
        "questions": 1
    }


def test_the_leaderboards_table():
    found = [item("answer", -1, None, None, 0.25, 0.5, 0.125, 0.125)]
    found += [
        item("rationale", n, None, None, *np.roll((0.7, 0.1, 0.1, 0.1), n).tolist(), number=n + 1)
        for n in range(4)
    ]
    both = ("answer", "rationale")
    head, row = table(told(found, 5), both).splitlines()
    names = [f"rationale_conditioned_on_a{a}_{n}" for a in range(4) for n in range(4)]
    assert head.split(",") == ["annot_id", *(f"answer_{n}" for n in range(4)), *names]
    values = dict(zip(head.split(","), row.split(","), strict=True))
    assert (values["annot_id"], values["answer_1"]) == ("d", "0.5")
    assert [values[f"rationale_conditioned_on_a{n}_{n}"] for n in range(4)] == ["0.7"] * 4
    assert columns(("rationale",)) == columns(both)[1:]
