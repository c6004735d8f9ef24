"""Two processes train as one does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossloom.objectives.contrast import contrast
from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal

pytestmark = pytest.mark.distributed


def run(world: str, out: str, fused: int) -> None:
    recipe = replace(tiny_recipe(Path(world), contrast=fused == 0), steps=20, micro=4, fused=fused)
    train(recipe, Path(out), start("cpu"))


@pytest.mark.parametrize("fused", [0, 1])
def test_two_processes_give_the_losses_of_one(world, tmp_path, fused):
    run(str(world), str(tmp_path / "one"), fused)
    run_ranks(2, run, str(world), str(tmp_path / "two"), fused)
    one, two = (read_journal(tmp_path / x / "metrics.jsonl") for x in ("one", "two"))
    assert len(one) == len(two) == 20
    names = {k for x in one for k in x if k.endswith("/loss")}
    assert names >= {"mlm/loss", "mrc/loss", "mrfr/loss", "itm/loss", "tlm/loss"}
    for first, second in zip(one, two, strict=True):
        for name in names & set(first):
            assert second[name] == pytest.approx(first[name], abs=1e-4), (first["step"], name)


def pairs(form: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    a, b = (
        torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=1) for _ in "ab"
    )
    bias = torch.tensor(-2.0) if form == "sigmoid" else None
    return a, b, torch.tensor([1, 2, 3, 4, 2, 6]), torch.tensor(4.0), bias


def rank_loss(form: str) -> tuple[float, list, list]:
    import torch.distributed as dist

    start("cpu")
    rank, size = dist.get_rank(), 6 // dist.get_world_size()
    a, b, sample, scale, bias = pairs(form)
    rows = slice(rank * size, (rank + 1) * size)
    mine = [x[rows].clone().requires_grad_() for x in (a, b)]
    out = contrast(*mine, sample[rows], torch.ones(size), scale, bias)
    out["loss"].backward()
    return out["loss"].item(), mine[0].grad.tolist(), mine[1].grad.tolist()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_contrast_over_processes_equals_one_with_gradients(form):
    a, b, sample, scale, bias = pairs(form)
    a.requires_grad_(), b.requires_grad_()
    whole = contrast(a, b, sample, torch.ones(6), scale, bias)
    whole["loss"].backward()
    found = run_ranks(2, rank_loss, form)
    assert sum(f[0] for f in found) == pytest.approx(whole["loss"].item(), rel=1e-5)
    for place, gradient in ((1, a.grad), (2, b.grad)):
        together = torch.tensor([row for f in found for row in f[place]])
        torch.testing.assert_close(together, gradient, atol=1e-6, rtol=1e-5)
