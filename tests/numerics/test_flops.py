"""Operations counted by formula against those that torch counts as they are run."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from crossloom.data_pipelines.collate import Collator, Example
from crossloom.models import flops
from crossloom.models.presets import co_attention, cross_encoder, dual_encoder, single_stream
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.run import make_model
from crossloom.units import make_units

SIZE = {"width": 32, "heads": 2, "dropout": 0.0}
PLANS = {
    "single": single_stream(STREAMS, layers=3, **SIZE),
    "co": co_attention("text", "image", first=1, pairs=1, image_width=48, bridge=64, **SIZE),
    "cross": cross_encoder("text", "image", text_layers=2, image_layers=1, cross=1, **SIZE),
    "towers": dual_encoder("text", "image", layers=2, width=32, heads=2),
}


def example(number, words, regions):
    rng = np.random.default_rng(number)
    token = rng.integers(10, 90, words)
    feature = rng.normal(size=(regions, 64)).astype(np.float32)
    classes = rng.dirichlet(np.ones(37), regions).astype(np.float32)
    units = {
        "text": make_units({"token": token}, targets={"token": token}),
        "image": make_units(
            {"feature": feature, "box": rng.random((regions, 7)).astype(np.float32)},
            targets={"feature": feature, "classes": classes},
        ),
    }
    return Example(key=str(number), sample=str(number), epoch=0, units=units, labels={})


def made(world, plan, sizes, contrast=True):
    recipe = tiny_recipe(world, plan=plan, contrast=contrast).located()
    collator = Collator(recipe.modalities, recipe.objectives, 0)
    examples = [example(n, *size) for n, size in enumerate(sizes)]
    batch = collator.batch(examples, tuple(recipe.objectives), len(examples))
    assert all(count > 0 for count in batch.counts.values())  # else a blank slot would be run
    return make_model(recipe), batch


def counted(model, batch):
    """Operations of a forward pass, attention in matrix products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found:
        model(batch.to("cpu"))
    return found.get_total_flops()


@pytest.mark.parametrize("name", PLANS)
def test_the_formula_counts_what_is_run(name, world):
    # as long as each other: nothing is padded
    model, batch = made(world, PLANS[name], [(12, 7)] * 3)
    assert flops.of_batch(model, batch) == 3 * counted(model, batch)


def test_a_step_has_three_times_the_operations_of_the_forward_pass(world):
    model, batch = made(world, PLANS["single"], [(12, 7)] * 3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found:
        sums = model(batch.to("cpu"))
        torch.stack([x["loss"] for x in sums.values()]).sum().backward()
    # what is embedded first asks for no gradient
    assert 0.9 < found.get_total_flops() / flops.of_batch(model, batch) <= 1


def test_padding_is_run_and_not_counted(world):
    model, batch = made(world, PLANS["single"], [(3, 4), (40, 7), (9, 2)], contrast=False)
    some = flops.of_batch(model, batch)
    assert some < 3 * counted(model, batch)
    one = sum(flops.of_view(model.plan, batch.views[n]) for n in batch.views)
    padded = made(world, PLANS["single"], [(40, 7)] * 3, contrast=False)[1]
    assert one < sum(flops.of_view(model.plan, v) for v in padded.views.values()) / 1.5


def test_layers_that_are_not_run_are_not_counted(world):
    model, batch = made(world, PLANS["single"], [(12, 7)] * 2)
    view = next(iter(batch.views.values()))
    whole, part = (flops.of_view(model.plan, view, depth) for depth in (0, 2))
    assert part == pytest.approx(whole * 2 / 3)
