"""Pictures said code by code: what a model learned by heart, sampled or not, begun or not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.collate import Example
from crossloom.evaluation.predict import evaluation_collator
from crossloom.modalities.codebook import Codebook
from crossloom.models.generation import Search, choose
from crossloom.models.presets import on_grids, single_stream
from crossloom.recipes.dall_e import patterns
from crossloom.run import Loaded
from crossloom.training.recipe import RecipeError, load_recipe
from crossloom.training.run import make_model
from crossloom.units import keyed_rng

SIDE, CODES = 4, 10
SAID = ("A red circle.", "A blue star.", "A green heart.")
BOOK = Codebook(np.arange(CODES * 12, dtype=np.uint8).reshape(CODES, 2, 2, 3))


@pytest.fixture(scope="module")
def learned(world):
    """Three captions and their pictures, learned by heart; every pattern of reading takes part."""
    recipe = load_recipe("dall-e-tiny")
    streams = ("text", "image")
    plan = single_stream(streams, layers=4, width=64, heads=2, norm="pre", dropout=0.0)
    image = replace(recipe.modalities["image"], size=CODES, limit=SIDE**2, side=SIDE)
    recipe = replace(
        recipe,
        data=str(world),
        plan=on_grids(plan, "image", patterns(4, side=SIDE, kernel=3)),
        modalities={**recipe.modalities, "image": image},
    ).located()
    pictures = np.random.default_rng(0).integers(0, CODES, (len(SAID), SIDE**2))
    torch.manual_seed(0)
    run = Loaded(recipe, make_model(recipe))
    examples = [
        Example(
            key=str(n), sample=str(n), epoch=0, labels={},
            units={"text": run._example(n, {"text": text}).units["text"], "image": image.units(x)},
        )
        for n, (text, x) in enumerate(zip(SAID, pictures, strict=True))
    ]  # fmt: skip
    view = recipe.objectives["image"].view
    shown = evaluation_collator(recipe).show(view, examples).to("cpu")
    index = torch.cat([s + torch.arange(SIDE**2) for s in shown.streams["image"].start])
    optimiser = torch.optim.Adam(run.model.parameters(), 5e-3)
    aims = torch.from_numpy(pictures.reshape(-1))
    for _ in range(90):
        logits = run.model.heads["image"].logits(run.model.encode(shown), index)
        loss = torch.nn.functional.cross_entropy(logits, aims)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05
    return run, pictures


def test_what_was_learned_is_said(learned):
    run, pictures = learned
    found = run.draw("image", codebook=BOOK, text=list(SAID))
    for (drawing,), codes in zip(found, pictures, strict=True):
        assert drawing.codes == tuple(codes)
        assert np.array_equal(np.asarray(drawing.picture), BOOK.paste(codes))
        assert -0.2 < drawing.score <= 0
    assert run.draw("image", text=SAID[:1])[0][0].picture is None
    searched = run.draw("image", Search(beams=3), text=list(SAID))
    assert [some[0].codes for some in searched] == [tuple(x) for x in pictures]


def test_samples_are_drawn_by_the_seed(learned):
    run, pictures = learned

    def drawn(**options):
        return [[d.codes for d in some] for some in
                run.draw("image", Search(**options), text=list(SAID))]  # fmt: skip

    cold = drawn(temperature=0.1, best=3)
    assert cold == [[tuple(x)] * 3 for x in pictures]
    hot = drawn(temperature=4.0, best=3, seed=1)
    assert hot == drawn(temperature=4.0, best=3, seed=1) != drawn(temperature=4.0, best=3, seed=2)
    assert len({x for some in hot for x in some}) == 9
    assert drawn(temperature=4.0, top_k=1) == drawn()
    assert drawn(temperature=4.0, top_p=1e-6) == drawn()
    # a sample scores as the model would score it, whatever the temperature
    (one, two), *_ = run.draw("image", Search(temperature=4.0, best=2), text=list(SAID))
    assert two.score <= one.score < -0.5


def test_a_picture_goes_on_from_its_first_rows(learned):
    run, pictures = learned
    given = pictures[:, : 2 * SIDE]
    found = run.draw("image", given=given.tolist(), text=list(SAID))
    assert [some[0].codes for some in found] == [tuple(x) for x in pictures]
    other = [[0] * SIDE] * 3
    assert all(d.codes[:SIDE] == (0,) * SIDE
               for (d,) in run.draw("image", given=other, text=list(SAID)))  # fmt: skip


def test_what_cannot_be_drawn_is_told(learned):
    run, _ = learned
    with pytest.raises(RecipeError, match="'text' is of kind 'text', not 'codes'"):
        run.draw("text", image=[b""])
    with pytest.raises(RecipeError, match="'image' is of kind 'codes', not 'text'"):
        run.say("image", text=list(SAID))
    with pytest.raises(ValueError, match="equally many codes for each of 3"):
        run.draw("image", given=[[1], [1, 2], [1]], text=list(SAID))
    with pytest.raises(ValueError, match=r"codes are 0\.\.9"):
        run.draw("image", given=[[10]] * 3, text=list(SAID))
    book = Codebook(np.zeros((11, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="codebook has 11 entries"):
        run.draw("image", codebook=book, text=list(SAID))


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.6}],
)
def test_units_are_drawn_as_often_as_is_said(options):
    search = Search(**{"temperature": 1.0, **options})
    chance = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = torch.from_numpy(np.log(chance)).float().expand(20_000, -1)
    unit = choose(logits, search, torch.from_numpy(keyed_rng("lots").random(20_000)))
    expected = chance ** (1 / search.temperature)
    expected /= expected.sum()
    order = np.argsort(-expected)
    if search.top_k:
        expected[order[search.top_k :]] = 0
        expected /= expected.sum()
    kept, mass = set(), 0.0
    for place in order:
        if mass < search.top_p:
            kept.add(int(place))
        mass += expected[place]
    expected[[n for n in range(5) if n not in kept]] = 0
    expected /= expected.sum()
    found = np.bincount(unit.numpy(), minlength=5) / 20_000
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert (found[expected == 0] == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"temperature": 1.0, "beams": 2}],
)
def test_searches_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="temperature"):
        Search(**wrong)
