import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from crossloom.models.presets import encoder_decoder
from crossloom.objectives.presets import itc_queue, itm_hard
from crossloom.objectives.view import View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.loop import Badness, RunError, restore
from crossloom.training.optim import Optim, freeze, make_optimiser
from crossloom.training.quarantine import Quarantine
from crossloom.training.recipe import RecipeError, from_dict, from_yaml, override, to_dict, to_yaml
from crossloom.training.run import make_model
from crossloom.training.schedule import Schedule
from crossloom.units import Defect


@pytest.fixture
def recipe(tmp_path):
    return tiny_recipe(tmp_path)


def test_yaml_gives_the_recipe_back(recipe, tmp_path):
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert from_yaml(tmp_path / "r.yaml") == recipe


def test_tied_blocks_and_reading_patterns_survive_yaml(world, tmp_path):
    recipe = tiny_recipe(
        world, plan=encoder_decoder("image", "text", layers=2, width=32, heads=2, tied=True)
    )
    view = View(
        name="s2s", streams=("text", "image"), causal=("text",), reads={"image": ("image",)}
    )
    mlm = replace(recipe.objectives["mlm"], view=view)
    recipe = replace(recipe, objectives={**recipe.objectives, "mlm": mlm})
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    again = from_yaml(tmp_path / "r.yaml")
    assert again == recipe
    assert again.plan.home[2, 2] == (0, 1)
    assert again.objectives["mlm"].view.reads == {"image": ("image",)}


def test_overrides_reach_every_depth(recipe):
    changed = override(
        recipe,
        ["optim.rate=1e-4", "objectives.mlm.view.hide.text.rate=0.3", "modalities.text.limit=32",
         "mixture.captions.weight=5", "plan.layers.0.blocks.1.hidden=64",
         "optim.factors={embed: 0.5}"],
    )  # fmt: skip
    assert changed.optim.rate == 1e-4
    assert changed.objectives["mlm"].view.hide["text"].rate == 0.3
    assert changed.modalities["text"].limit == 32
    assert changed.mixture["captions"].weight == 5
    assert changed.plan.layers[0].blocks[1].hidden == 64
    assert changed.optim.factors == {"embed": 0.5}
    # patterns are keys of the recipe's own
    added = override(changed, ["optim.factors.heads=2", "optim.factors.embed=0"])
    assert added.optim.factors == {"embed": 0, "heads": 2}
    assert recipe.optim.rate == 1e-3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.rat=1", r"optim\.rat: .*did you mean 'rate'"),
        ("stepss=1", "did you mean 'steps'"),
        ("modalities.txt.limit=3", "did you mean 'text'"),
        ("steps", "write key=value"),
        ("steps=many", "valid integer"),
        ("mixture.captions.objectives=[mlm", "valid tuple"),
        ("steps=0", "at least 1"),
        ("objectives.mlm.view.hide.text.rate=3", "0..1"),
        ("precision=fp8", "'fp32' or 'bf16'"),
    ],
)
def test_wrong_overrides_name_key_and_remedy(recipe, assignment, message):
    with pytest.raises(RecipeError, match=message):
        override(recipe, [assignment])


@pytest.mark.parametrize("shards", ["*.tar", "{a,b}-*.tar"])
def test_patterns_of_shards_are_text(recipe, shards):
    found = override(recipe, [f"mixture.captions.shards={shards}"])
    assert found.mixture["captions"].shards == shards


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("optim", "rat"), 1, r"optim\.rat: there is no 'rat'; did you mean 'rate'"),
        (("modalities", "text", "limt"), 1, r"modalities\.text: limt.*did you mean 'limit'"),
        (
            ("modalities", "text", "kind"),
            "texts",
            "no modality is called 'texts'; did you mean 'text'",
        ),
        (("objectives", "mlm", "stram"), "x", "did you mean 'stream'"),
        (("mixture", "captions", "objectives"), ["mlmm"], "did you mean 'mlm'"),
        (("mixture", "captions", "reader", "kind"), "text", "no reader is called 'text'"),
    ],
)
def test_wrong_files_name_key_and_remedy(recipe, path, value, message):
    values = to_dict(recipe)
    node = values
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(RecipeError, match=message):
        from_dict(values)


def test_an_objective_nobody_trains_is_an_error(recipe):
    with pytest.raises(ValueError, match=r"objectives\.tlm: no component"):
        replace(recipe, mixture={"captions": recipe.mixture["captions"]})


def test_a_file_that_is_no_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("[1, 2]")
    with pytest.raises(RecipeError, match="not a recipe"):
        from_yaml(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("name: x\nsteps: [1,\noptim: {")
    with pytest.raises(RecipeError, match=r"r\.yaml: not YAML \(line 3: .*\)$"):
        from_yaml(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read"):
        from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        (
            "mrc",
            {"target": "colour"},
            "offers no target 'colour'; it offers feature, class, classes",
        ),
        ("mrc", {"loss": "mse"}, "does not fit target 'classes'"),
        ("mlm", {"stream": "image"}, "hides nothing of 'image'"),
    ],
)
def test_objectives_that_do_not_fit_are_named(world, objective, change, message):
    recipe = tiny_recipe(world).located()
    objectives = {**recipe.objectives, objective: replace(recipe.objectives[objective], **change)}
    with pytest.raises(RecipeError, match=rf"objectives\.{objective}: .*{message}"):
        make_model(replace(recipe, objectives=objectives))


def test_two_views_of_one_name_are_refused(world):
    recipe = tiny_recipe(world).located()
    tlm = recipe.objectives["tlm"]
    objectives = {**recipe.objectives, "tlm": replace(tlm, view=replace(tlm.view, name="mlm"))}
    with pytest.raises(RecipeError, match="another view is called 'mlm'"):
        make_model(replace(recipe, objectives=objectives))


def test_schedules_by_hand():
    linear = Schedule(shape="linear", warmup=10)
    assert linear.factor(0, 110) == pytest.approx(1 / 11)
    assert linear.factor(9, 110) == pytest.approx(10 / 11)
    assert linear.factor(10, 110) == 1
    assert linear.factor(60, 110) == pytest.approx(0.5)
    cosine = Schedule(shape="cosine", warmup=0, floor=0.1)
    assert cosine.factor(50, 100) == pytest.approx(0.55)
    assert cosine.factor(100, 100) == pytest.approx(0.1)
    assert Schedule(shape="constant", warmup=0.5).factor(99, 100) == 1
    # XLM's adam_inverse_sqrt: rate * sqrt(warm-up / updates done)
    root = Schedule(shape="inverse_sqrt", warmup=400, floor=0.1)
    assert [root.factor(n, 10**6) for n in (400, 1600, 10_000, 10**5)] == [1, 0.5, 0.2, 0.1]


def test_decay_spares_vectors_and_factors_scale_or_freeze(world):
    model = make_model(tiny_recipe(world).located())
    spec = Optim(decay=0.1, factors={r"^embed\.text": 0.0, r"^fusion": 0.5})
    freeze(model, spec)
    optimiser = make_optimiser(model, spec)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["weight_decay"] == (0.1 if parameter.dim() > 1 else 0.0)
            assert group["factor"] == (0.5 if name.startswith("fusion") else 1.0)
            assert not name.startswith("embed.text")
    assert not model.embed["text"].token.weight.requires_grad


def test_freezing_everything_is_an_error(world):
    model = make_model(tiny_recipe(world).located())
    freeze(model, Optim(factors={"": 0.0}))
    with pytest.raises(ValueError, match="every parameter"):
        make_optimiser(model, Optim(factors={"": 0.0}))


class _Batch:
    def __init__(self, good, bad):
        self.keys = ("k",) * good
        self.defects = (Defect("a.tar", "k", "kind", "message"),) * bad
        self.marks = bytes([0] * good + [1] * bad)


def meet(badness, good, bad):
    badness.take(_Batch(good, bad))
    badness.settle(*badness.pending())


def test_bad_samples_end_the_run_only_past_the_limits(recipe):
    badness = Badness(replace(recipe, bad_in_a_row=5, bad_share=0.01))
    for _ in range(250):
        meet(badness, 4, 0)
    meet(badness, 0, 5)
    with pytest.raises(RunError, match=r"6 bad samples in a row .* a\.tar: k: message"):
        meet(badness, 0, 1)
    badness = Badness(replace(recipe, bad_in_a_row=5))
    meet(badness, 200, 4)
    meet(badness, 200, 4)  # with good ones between
    badness = Badness(replace(recipe, bad_share=0.01))
    meet(badness, 1000, 10)
    with pytest.raises(RunError, match=r"20 of 1110 samples are bad .* 20 kind"):
        meet(badness, 90, 10)


def test_a_short_run_without_a_good_sample_fails(recipe):
    badness = Badness(recipe)
    badness.end()  # nothing to do is no failure
    meet(badness, 0, 3)
    with pytest.raises(
        RunError, match=r"none of the 3 samples met .* 3 kind; .*a\.tar: k: message"
    ):
        badness.end()
    meet(badness, 1, 0)
    badness.end()


def test_a_resumed_run_goes_on_counting(world):
    recipe = replace(tiny_recipe(world).located(), bad_in_a_row=5, bad_share=1.0)
    badness = Badness(recipe)
    notes = {"bad": 30, "seen": 70, "in_a_row": 4, "kinds": {"kind": 30}}
    restore(SimpleNamespace(notes=notes), "run/checkpoints/step-1", Mock(), recipe, badness, True)
    meet(badness, 0, 1)
    assert (badness.total, badness.seen, badness.kinds["kind"]) == (31, 71, 31)
    with pytest.raises(RunError, match="6 bad samples in a row"):
        meet(badness, 0, 1)


def test_a_list_forgets_the_future_and_names_each_sample_once(tmp_path):
    bad = [Defect("a.tar", key, "kind", "message") for key in "123"]
    Quarantine(tmp_path, 0).add(3, bad[:1])
    Quarantine(tmp_path, 1).add(5, [*bad[:2], bad[1]])
    Quarantine(tmp_path, 1).add(6, bad[2:])
    damaged = Defect("b.tar", "", "truncated shard", "cut")
    Quarantine.prepare(tmp_path, 5, [damaged])
    (path,) = tmp_path.iterdir()
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    assert {(x["step"], x["shard"], x["key"]) for x in lines} == {
        (0, "b.tar", ""), (3, "a.tar", "1"), (5, "a.tar", "2"),
    }  # fmt: skip
    assert len(lines) == 3
    Quarantine(tmp_path, 0).add(7, bad)
    assert len(path.read_text().splitlines()) == 4


def test_damaged_shards_count_among_the_bad_and_every_process_ends(recipe):
    damaged = [Defect("a.tar", "", "truncated shard", "cut")] * 6
    badness = Badness(replace(recipe, bad_share=0.01), damaged)
    meet(badness, 1000, 4)
    with pytest.raises(RunError, match="11 of 1005"):
        meet(badness, 0, 1)
    other = Badness(replace(recipe, bad_in_a_row=5))
    other.take(_Batch(4, 0))
    with pytest.raises(RunError, match="another process"):
        other.settle(6, 10, 1.0)


def test_a_queue_shorter_than_a_step_is_refused_before_the_run(world):
    base = tiny_recipe(world).located()
    captions = base.mixture["captions"]
    captions = replace(captions, objectives=(*captions.objectives, "itc"))
    recipe = replace(
        base,
        objectives=base.objectives | {"itc": itc_queue(queue=15, dim=16)},
        mixture={**base.mixture, "captions": captions},
        examples=5,
        micro=3,
    )
    make_model(recipe)
    with pytest.raises(RecipeError, match=r"objectives\.itc\.queue: 15 .* may bring 16"):
        make_model(replace(recipe, examples=4, micro=4))


def test_who_draws_a_miner_draws_what_is_mined(world):
    base = tiny_recipe(world, contrast=True)
    mined = base.objectives | {"itm": itm_hard()}
    captions = base.mixture["captions"]
    both = {**base.mixture, "web": replace(captions, objectives=("itc",))}
    with pytest.raises(ValueError, match=r"mixture\.web\.objectives: 'itm' .* from 'itc'"):
        replace(base, objectives=mined, mixture=both)
    few = replace(captions, objectives=tuple(o for o in captions.objectives if o != "itc"))
    with pytest.raises(ValueError, match=r"mixture\.captions\.objectives: 'itm' needs 'itc'"):
        replace(base, objectives=mined, mixture={**base.mixture, "captions": few})
