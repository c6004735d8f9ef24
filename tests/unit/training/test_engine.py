"""Steps beside the same written out with torch alone."""

from dataclasses import replace

import pytest
import torch

from crossloom.data_pipelines.loader import Shares, load
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.optim import Optim
from crossloom.training.run import make_model, make_stack
from crossloom.training.schedule import Schedule

RATES = (1 / 3, 2 / 3, 1, 0.55)  # two steps of warm-up, then half the way down to the floor


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_steps_written_out(world, clip):
    """Weights of losses, accumulation, clipping, decay, rates and the moving average."""
    base = tiny_recipe(world)
    recipe = replace(
        base,
        objectives={**base.objectives, "mlm": replace(base.objectives["mlm"], weight=3.0)},
        optim=Optim(rate=1e-2, clip=clip, decay=0.1, factors={r"^heads\.itm": 0.5}),
        schedule=Schedule(warmup=2, floor=0.1),
        steps=len(RATES),
        fused=1,
        ema=0.2,
    ).located()
    engine = Engine(make_model(recipe), recipe, start("cpu"))
    model = make_model(recipe)
    own = dict(model.named_parameters())
    average = {n: p.detach().clone() for n, p in own.items()}
    plain = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in own.values()],
        betas=recipe.optim.betas,
        eps=recipe.optim.epsilon,
    )
    stack = make_stack(recipe)
    steps = load(stack, Shares(recipe.micro, fused=1), range(recipe.steps), workers=0)
    for number, batches in enumerate(steps):
        assert len(batches) == 2
        counts = {o: sum(b.counts[o] for b in batches) for o in recipe.objectives}
        found = engine.step(number, batches, counts)
        plain.zero_grad()
        sum(
            recipe.objectives[name].weight * sums["loss"] / max(counts[name], 1.0)
            for batch in batches
            for name, sums in model(batch.to("cpu")).items()
        ).backward()
        norm = torch.cat([p.grad.flatten() for p in own.values()]).norm()
        assert float(found["step"]["norm"]) == pytest.approx(float(norm), rel=1e-4)
        assert norm > 0.05
        for (name, parameter), group in zip(own.items(), plain.param_groups, strict=True):
            parameter.grad *= clip / norm if clip else 1.0
            group["lr"] = 1e-2 * RATES[number] * (0.5 if name.startswith("heads.itm") else 1.0)
        plain.step()
        kept, state = min(0.2, (1 + number) / (10 + number)), engine.state()
        for name, parameter in own.items():
            average[name] = kept * average[name] + (1 - kept) * parameter.detach()
            for room, wanted in (("model", parameter.detach()), ("ema", average[name])):
                value = state[f"{room}/{name}"].value.view_as(wanted)
                torch.testing.assert_close(value, wanted, atol=2e-5, rtol=1e-4)
