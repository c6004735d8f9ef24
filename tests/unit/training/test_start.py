"""Starting from another run: the same plan, and plans that share no layout."""

import json
from dataclasses import replace

import pytest
import torch

from crossloom.evaluation.finetune import make_task
from crossloom.models.presets import co_attention, cross_encoder, dual_encoder, single_stream
from crossloom.objectives.classify import Classify
from crossloom.objectives.presets import itc_queue, itm, mlm
from crossloom.objectives.view import View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import Component
from crossloom.training.run import WEIGHTS, make_model, prepare_folder
from crossloom.training.start import start

STREAMS = ("text", "image")
SIZE = {"width": 24, "heads": 2, "dropout": 0.0}


def saved(recipe, folder):
    """A run of random weights."""
    from safetensors.torch import save_file

    model = make_model(recipe)
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.normal_(generator=torch.Generator().manual_seed(number))
    prepare_folder(folder, recipe)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
    return model.state_dict()


@pytest.fixture
def base(world):
    return tiny_recipe(world).located()


def textual(base, **more):
    """BERT's shape: text alone."""
    part = next(iter(base.mixture.values()))
    return replace(
        base,
        modalities={"text": base.modalities["text"]},
        plan=single_stream(("text",), layers=4, **SIZE, **more),
        objectives={"mlm": mlm(("text",))},
        mixture={"texts": Component(shards=part.shards, reader=part.reader, objectives=("mlm",))},
    )


def paired(base, plan, source=""):
    part = next(iter(base.mixture.values()))
    both = {s: base.modalities[s] for s in STREAMS}
    return replace(
        base,
        modalities=both,
        plan=plan,
        objectives={"mlm": mlm(STREAMS), "itm": itm(STREAMS)},
        mixture={
            "pairs": Component(shards=part.shards, reader=part.reader, objectives=("mlm", "itm"))
        },
        start=str(source),
    )


def started(recipe):
    model = make_model(recipe)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = start(model, recipe)
    return model.state_dict(), before, report


def test_text_layers_start_a_two_stream_model(base, tmp_path):
    """LXMERT's layout: two layers of text, one of image, then two crossed, each with a pair."""
    source = saved(textual(base), tmp_path / "bert")
    plan = cross_encoder("text", "image", text_layers=2, image_layers=1, cross=2, **SIZE)
    found, before, report = started(paired(base, plan, tmp_path / "bert"))
    # text's own layers: 0, 1, and within the crossed ones 3 and 4 (self-attention is block 1)
    for number, (layer, block) in enumerate([(0, 0), (1, 0), (3, 1), (4, 1)]):
        for part in ("query", "keyvalue", "output", "norm"):
            into = f"fusion.layers.{layer}.blocks.{block}.{part}.text.weight"
            name = f"fusion.layers.{number}.blocks.0.{part}.shared.weight"
            assert torch.equal(found[into], source[name]), into
        for part in ("up", "down", "norm"):
            into = f"fusion.layers.{layer}.blocks.{block + 1}.{part}.text.bias"
            name = f"fusion.layers.{number}.blocks.1.{part}.shared.bias"
            assert torch.equal(found[into], source[name]), into
    fresh = [n for n in found if ".image." in n or ".blocks.0.query.shared" in n]
    assert fresh
    for name in fresh:
        assert torch.equal(found[name], before[name]), name
        assert name in report.fresh
    assert torch.equal(found["embed.text.token.weight"], source["embed.text.token.weight"])
    assert torch.equal(found["heads.mlm.bias"], source["heads.mlm.bias"])
    assert set(report.taken) | set(report.fresh) == set(found)
    assert not set(report.taken) & set(report.fresh)


def test_one_name_of_two_meanings_is_not_taken(base, tmp_path):
    """Layer 2, block 0 is text reading the image in one plan, and the image itself in the other."""
    vilbert = co_attention("text", "image", first=2, pairs=1, **SIZE)
    source = saved(paired(base, vilbert), tmp_path / "vilbert")
    lxmert = cross_encoder("text", "image", text_layers=2, image_layers=1, cross=1, **SIZE)
    found, _, _ = started(paired(base, lxmert, tmp_path / "vilbert"))
    name = "fusion.layers.2.blocks.0.query.image.weight"
    assert source[name].shape == found[name].shape
    assert not torch.equal(found[name], source[name])
    # the image's first own layer is block 4 of ViLBERT's pair: after both texts' and its feed
    own = [k for k in source if k.startswith("fusion.layers.2.") and "query.image.weight" in k]
    assert torch.equal(found[name], source[own[1]])


def test_a_single_stream_starts_from_text_and_gives_to_one(base, tmp_path):
    source = saved(textual(base), tmp_path / "bert")
    uniter = paired(base, single_stream(STREAMS, layers=3, **SIZE), tmp_path / "bert")
    found, _, report = started(uniter)
    for layer in range(3):
        name = f"fusion.layers.{layer}.blocks.0.keyvalue.shared.weight"
        assert torch.equal(found[name], source[name])
    assert not [n for n in report.fresh if n.startswith("fusion.")]
    assert {n.split(".")[2] for n in report.unused if n.startswith("fusion.")} == {"3"}


@pytest.mark.parametrize("shared", [False, True])
def test_new_heads_go_on_with_the_pooler_of_matching(base, tmp_path, shared):
    """Also where matching had borrowed it, as LXMERT's does from the questions."""
    plan = single_stream(STREAMS, layers=1, **SIZE)
    recipe = paired(base, plan)
    view = View(name="questions", streams=STREAMS)
    asked = Classify(view=view, label="answers", classes=("yes", "no"))
    if shared:
        borrowed = replace(recipe.objectives["itm"], shares="questions")
        heads = {"mlm": recipe.objectives["mlm"], "itm": borrowed, "questions": asked}
        read = {n: replace(c, objectives=tuple(heads)) for n, c in recipe.mixture.items()}
        recipe = replace(recipe, objectives=heads, mixture=read)
    source = saved(recipe, tmp_path / "run")
    trained = source[f"heads.{'questions' if shared else 'itm'}.pooler.dense.text.weight"]
    for task in ("vqa", "retrieval"):
        made = make_task(task)[0].recipe(recipe, str(tmp_path / "run"))
        name = "itm" if task == "retrieval" else task
        found, _, report = started(made)
        assert torch.equal(found[f"heads.{name}.pooler.dense.text.weight"], trained)
        assert f"heads.{name}.pooler.dense.text.bias" in report.taken
    # what reads another summary, or one of another make, starts afresh
    for other in ({"pool": "mean"}, {"activation": "relu"}, {"pooled": STREAMS}):
        head = replace(asked, **other)
        parts = {n: replace(c, objectives=("new",)) for n, c in recipe.mixture.items()}
        new = replace(recipe, objectives={"new": head}, mixture=parts, start=str(tmp_path / "run"))
        assert "heads.new.pooler.dense.text.weight" in started(new)[2].fresh


def asking(base, **classes):
    """Matching, and a classifier of each name over these classes, all with the pooler of one."""
    recipe = paired(base, single_stream(STREAMS, layers=1, **SIZE))
    view = View(name="questions", streams=STREAMS)
    heads = {
        name: Classify(view=view, label="answers", classes=listed, shares="itm")
        for name, listed in classes.items()
    }
    read = replace(recipe.mixture["pairs"], objectives=("itm", *heads))
    objectives = {"itm": recipe.objectives["itm"], **heads}
    return replace(recipe, objectives=objectives, mixture={"pairs": read})


def answering(base, source, *classes, **more):
    """What a fresh classifier called ``vqa`` takes."""
    recipe = asking(base, vqa=classes)
    head = replace(recipe.objectives["vqa"], shares="", **more)
    parts = {n: replace(c, objectives=("vqa",)) for n, c in recipe.mixture.items()}
    new = replace(recipe, objectives={"vqa": head}, mixture=parts, start=str(source))
    return started(new)


def test_answers_go_by_their_names(base, tmp_path):
    """LXMERT's answers learned in pre-training, under a head of another name and in other order."""
    source = saved(asking(base, answers=("red", "two", "yes"), other=("cat",)), tmp_path / "run")
    found, before, report = answering(base, tmp_path / "run", "yes", "cat", "red")
    for part in ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight"):
        assert torch.equal(found[f"heads.vqa.{part}"], source[f"heads.answers.{part}"])
    for kind in ("weight", "bias"):
        rows, known = found[f"heads.vqa.mlp.3.{kind}"], source[f"heads.answers.mlp.3.{kind}"]
        assert torch.equal(rows[0], known[2])
        assert torch.equal(rows[2], known[0])
        # what it does not know scores nothing: cat is of a head that knows less
        assert not rows[1].any()
    assert not [n for n in report.fresh if n.startswith("heads.vqa.")]
    assert not [n for n in report.unused if n.startswith("heads.answers.")]
    # a model of another width takes none of it, and does not fail
    wide = single_stream(STREAMS, layers=1, width=48, heads=2, dropout=0.0)
    other = replace(asking(base, vqa=("yes",)), plan=wide, start=str(tmp_path / "run"))
    assert "heads.vqa.mlp.3.weight" in started(other)[2].fresh
    # nothing in common, or made otherwise: all afresh
    for classes, more in ((("dog",), {}), (("yes", "red"), {"hidden": False})):
        found, before, report = answering(base, tmp_path / "run", *classes, **more)
        made = [n for n in found if n.startswith("heads.vqa.mlp.")]
        assert set(made) <= set(report.fresh)
        assert all(torch.equal(found[n], before[n]) for n in made)


def test_a_classifier_reads_classes_as_they_were_read(base, tmp_path):
    """With the pooler they were learned with, not the first of the same make."""
    recipe = asking(base, first=("cat", "dog"), answers=("yes", "red"))
    apart = {n: replace(o, shares="") for n, o in recipe.objectives.items()}
    source = saved(replace(recipe, objectives=apart), tmp_path / "run")
    found, _, report = answering(base, tmp_path / "run", "red", "yes")
    for part in ("pooler.dense.text.weight", "pooler.dense.text.bias", "mlp.0.weight"):
        assert torch.equal(found[f"heads.vqa.{part}"], source[f"heads.answers.{part}"])
    assert not [n for n in report.fresh if n.startswith("heads.vqa.")]


def test_a_head_of_one_name_and_size_may_have_other_classes(base, tmp_path):
    source = saved(asking(base, vqa=("red", "two")), tmp_path / "run")
    found, before, _ = answering(base, tmp_path / "run", "two", "red")
    name = "heads.vqa.mlp.3.weight"
    assert torch.equal(found[name], source[name].flip(0))
    found, before, report = answering(base, tmp_path / "run", "cat", "dog")
    assert torch.equal(found[name], before[name])
    assert name in report.fresh


def test_numbers_that_stand_for_unnamed_answers_are_no_names(base, tmp_path):
    """An imported checkpoint calls its answers 0, 1, …; here 1 is an answer."""
    source = saved(asking(base, answers=("0", "1", "2")), tmp_path / "run")
    _, _, report = answering(base, tmp_path / "run", "yes", "1")
    assert "heads.vqa.mlp.3.weight" in report.fresh
    same = replace(asking(base, answers=("0", "1", "2")), start=str(tmp_path / "run"))
    name = "heads.answers.mlp.3.weight"
    assert torch.equal(started(same)[0][name], source[name])


def test_norms_of_what_is_added_are_taken_too(base, tmp_path):
    source = saved(textual(base, norm="sandwich"), tmp_path / "text")
    plan = single_stream(STREAMS, layers=3, norm="sandwich", **SIZE)
    found, _, report = started(paired(base, plan, tmp_path / "text"))
    name = "fusion.layers.2.blocks.1.after.shared.bias"
    assert torch.equal(found[name], source[name])
    assert not [n for n in report.fresh if n.startswith("fusion.layers.")]


def test_norms_before_and_after_are_not_mixed(base, tmp_path):
    saved(textual(base, norm="pre"), tmp_path / "pre")
    post = paired(base, single_stream(STREAMS, layers=3, **SIZE), tmp_path / "pre")
    _, _, report = started(post)
    assert not [n for n in report.taken if n.startswith("fusion.")]
    assert "embed.text.token.weight" in report.taken


def test_what_does_not_fit_is_told_with_both_shapes(base, tmp_path):
    """Attention fits, the feed-forward of another width does not; what is new is no misfit."""
    saved(textual(base), tmp_path / "bert")
    wider = paired(base, single_stream(STREAMS, layers=1, hidden=40, **SIZE), tmp_path / "bert")
    _, _, report = started(wider)
    names = [f"fusion.layers.0.blocks.1.{k}" for k in ("up.shared.weight", "up.shared.bias")]
    assert report.misfits[:2] == (
        f"{names[0]} ([40, 24] here, [96, 24] there)",
        f"{names[1]} ([40] here, [96] there)",
    )
    assert [m.split()[0] for m in report.misfits[2:]] == [names[0].replace("up", "down")]
    assert {m.split()[0] for m in report.misfits} < set(report.fresh)
    assert str(report).endswith(f"start afresh, of them 3 for their shape, as {report.misfits[0]}")
    same = paired(base, single_stream(STREAMS, layers=1, **SIZE), tmp_path / "bert")
    assert str(started(same)[2]).endswith("start afresh")


def test_position_tables_of_other_lengths_give_their_first_rows(base, tmp_path):
    short = replace(base.modalities["text"], limit=base.modalities["text"].limit // 2)
    small = replace(textual(base), modalities={"text": short})
    source = saved(small, tmp_path / "short")["embed.text.position.weight"]
    found, before, _ = started(replace(textual(base), start=str(tmp_path / "short")))
    table = found["embed.text.position.weight"]
    assert torch.equal(table[: len(source)], source)
    assert torch.equal(table[len(source) :], before["embed.text.position.weight"][len(source) :])


def test_words_of_another_vocabulary_are_not_taken(base, world, tmp_path):
    from crossloom.data_pipelines.shards import open_shards
    from crossloom.data_pipelines.tokenizer import train

    shards = open_shards("train-*.tar", world)
    recipes = []
    for number in (1, 2):
        path = tmp_path / f"{number}.model"
        train(shards, path, size=260, coverage=1.0, seed=number, lines=100)
        text = replace(base.modalities["text"], vocabulary=str(path))
        recipes.append(replace(textual(base), modalities={"text": text}))
    source = saved(recipes[0], tmp_path / "one")
    recipe = replace(recipes[1], start=str(tmp_path / "one"))
    found, _, report = started(recipe)
    assert found["embed.text.token.weight"].shape == source["embed.text.token.weight"].shape
    assert "embed.text.token.weight" in report.fresh
    assert "heads.mlm.bias" in report.fresh
    name = "fusion.layers.0.blocks.0.query.shared.weight"
    assert torch.equal(found[name], source[name])


def test_the_report_is_kept_beside_the_run(base, tmp_path):
    saved(textual(base), tmp_path / "bert")
    _, _, report = started(replace(textual(base), start=str(tmp_path / "bert")))
    report.save(tmp_path / "start.json")
    kept = json.loads((tmp_path / "start.json").read_text())
    assert kept["fresh"] == []
    assert kept["unused"] == []
    assert "embed.text.token.weight" in kept["taken"]


def queued(base, plan, source=""):
    recipe = paired(base, plan, source)
    part = recipe.mixture["pairs"]
    return replace(
        recipe,
        objectives=recipe.objectives | {"itc": itc_queue(queue=64, dim=8)},
        mixture={"pairs": replace(part, objectives=(*part.objectives, "itc"))},
    )


def test_slow_copies_of_another_plan_follow_what_was_taken(base, tmp_path):
    towers = dual_encoder(*STREAMS, layers=2, **SIZE)
    source = saved(queued(base, towers), tmp_path / "towers")
    same = make_model(queued(base, towers))
    start(same, queued(base, towers, tmp_path / "towers"))
    assert all(torch.equal(v, source[k]) for k, v in same.state_dict().items())
    assert not all(torch.equal(x, y) for x, y in followed(same))
    other = queued(base, single_stream(STREAMS, layers=2, **SIZE), tmp_path / "towers")
    model = make_model(other)
    report = start(model, other)
    assert all(torch.equal(x, y) for x, y in followed(model))
    assert "heads.itc.queue.feature" in report.fresh
    assert "embed.text.token.weight" in report.taken


def followed(model):
    """Parameters of slow copies beside those they follow."""
    pairs = model._pairs()
    return [p for a, b in pairs for p in zip(a.parameters(), b.parameters(), strict=True)]
