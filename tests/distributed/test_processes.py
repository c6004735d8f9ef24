"""Two processes train as one does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.models.presets import dual_encoder, single_stream
from crossloom.objectives.contrast import contrast
from crossloom.objectives.crosslingual import btmlm, sctl
from crossloom.objectives.presets import itc_queue
from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import STREAMS, tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Component
from crossloom.training.run import load_weights

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


def sum_beside_a_device(out: str) -> None:
    # a device that no number can come back from
    environment = replace(start("cpu"), device=torch.device("meta"))
    total = environment.total([1.0, 10.0 * environment.rank])
    Path(out, str(environment.rank)).write_text(str(total))


def test_host_numbers_are_summed_without_the_device(tmp_path):
    run_ranks(2, sum_beside_a_device, str(tmp_path))
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["[2.0, 10.0]"] * 2


def run_queued(world: str, out: str) -> None:
    base = tiny_recipe(Path(world), plan=dual_encoder(*STREAMS, layers=1, width=32, heads=2))
    captions = replace(base.mixture["captions"], objectives=("mlm", "itc"))
    recipe = replace(
        base,
        steps=10,
        micro=4,
        objectives={
            **{n: base.objectives[n] for n in ("mlm", "tlm")},
            # a queue that no number of batches fills evenly: the order of its rows matters
            "itc": itc_queue(queue=37, momentum=0.9, dim=16),
        },
        mixture={**base.mixture, "captions": captions},
    )
    train(recipe, Path(out), start("cpu"))


def test_queues_and_slow_encoders_are_the_same_on_two_processes(world, tmp_path):
    run_queued(str(world), str(tmp_path / "one"))
    run_ranks(2, run_queued, str(world), str(tmp_path / "two"))
    one, two = (read_journal(tmp_path / x / "metrics.jsonl") for x in ("one", "two"))
    assert len(one) == len(two) == 10
    for first, second in zip(one, two, strict=True):
        if "itc/loss" in first:
            assert second["itc/loss"] == pytest.approx(first["itc/loss"], abs=1e-4)
    one, two = (load_weights(tmp_path / x)[0] for x in ("one", "two"))
    assert torch.equal(one["heads.itc.queue.sample"], two["heads.itc.queue.sample"])
    assert one["heads.itc.queue.place"] == two["heads.itc.queue.place"]
    assert (one["heads.itc.queue.sample"] > 0).all()
    for name, value in one.items():
        if "slow" in name or "queue" in name:
            torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)


def run_tied(world: str, out: str) -> None:
    """Pseudo tokens that the model makes, and negatives that move as it gets surer."""
    base = tiny_recipe(Path(world))
    pair = ("text", "second")
    text = base.modalities["text"]
    recipe = replace(
        base,
        steps=10,
        micro=4,
        modalities={"text": text, "second": replace(text, field="second")},
        tied={"second": "text"},
        plan=single_stream(pair, layers=1, width=32, heads=2, dropout=0.0),
        objectives={"btmlm": btmlm(*pair), "sentences": sctl(pair, dim=32)},
        mixture={
            "text": Component(
                shards="train-*.tar", reader=Texts(copies=("second",)), objectives=("btmlm",)
            ),
            "pairs": Component(
                shards="train-*.tar", reader=Parallel(apart=True), objectives=("sentences",)
            ),
        },
    )
    train(recipe, Path(out), start("cpu"))


def test_what_the_model_fills_in_and_how_sure_it_is_are_the_same_on_two_processes(world, tmp_path):
    run_tied(str(world), str(tmp_path / "one"))
    run_ranks(2, run_tied, str(world), str(tmp_path / "two"))
    one, two = (read_journal(tmp_path / x / "metrics.jsonl") for x in ("one", "two"))
    assert len(one) == len(two) == 10
    for first, second in zip(one, two, strict=True):
        for name in ("btmlm/loss", "sentences/loss"):
            if name in first:
                assert second[name] == pytest.approx(first[name], abs=1e-4), (first["step"], name)
    one, two = (load_weights(tmp_path / x)[0] for x in ("one", "two"))
    latest = one["heads.sentences.confidence.latest"]
    assert (latest > 0).sum() == one["heads.sentences.confidence.place"] > 2
    torch.testing.assert_close(two["heads.sentences.confidence.latest"], latest)


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
