"""Within a step the host asks the device for nothing: it would wait until all queued work is done.

On a CPU nothing shows that, so every operation of forward, backward, clipping and update is looked
at as it is run: those that bring a number to the host, or whose result is as long as the numbers
in it say, are refused.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crossloom.plugins import listed
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.recipe import load_recipe
from crossloom.training.run import make_model, make_stack

WAITING = (
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount",
)  # fmt: skip


#: What reads a tensor past the dispatcher, or brings it here (on a CPU it is here already).
READING = ("tolist", "numpy", "cpu", "__array__")


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the device."""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in READING:
            self.patch.setattr(torch.Tensor, name, _refuse(name))
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        wait = name in WAITING
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            # a mask as an index is looked up on the host
            wait = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name == "repeat_interleave":
            wait = (kwargs or {}).get("output_size") is None
        if wait:
            raise AssertionError(f"aten.{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


def _refuse(name):
    def read(*_, **__):
        raise AssertionError(f"{name} makes the host wait for the device")

    return read


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.zeros(4).masked_scatter(x > 0, x)[(x > 0).nonzero()],
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 1, 2])),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.where(x > 0),
    ],
)
def test_what_waits_is_noticed(ask):
    with NoWaiting(), pytest.raises(AssertionError, match="wait"):
        ask(torch.randn(4))


def test_what_waits_is_noticed_in_the_backward_pass():
    x = torch.randn(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda g: g * g.max().item())
    with NoWaiting(), pytest.raises(AssertionError, match="wait"):
        y.sum().backward()


#: Between them, most kinds of plans and heads; the others are looked at in the long suite.
QUICK = ("uniter", "lxmert", "clip", "infoxlm", "mass", "vl-bert", "unicoder", "speechbert")
RECIPES = [
    pytest.param(p.name, marks=() if p.name.removesuffix("-tiny") in QUICK else pytest.mark.slow)
    for p in listed("recipe")
    if p.name.endswith("-tiny")
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_asks_for_nothing(name, world):
    recipe = load_recipe(name)
    recipe = replace(recipe, data=str(world), examples=4, micro=1, fused=0, workers=0)
    recipe = recipe.located()
    stack = make_stack(recipe)
    engine = Engine(make_model(recipe), recipe, start("cpu"))
    batches, drawn = [], set()
    for number in range(60):
        batch = stack.micro(number)
        new = {n for n, count in batch.counts.items() if count} - drawn
        if new:
            batches.append(batch)
            drawn |= new
        if drawn == set(recipe.objectives):
            break
    # what is not drawn runs all the same, on a blank
    assert batches
    for number, batch in enumerate(batches):
        with NoWaiting():
            engine.step(number, [batch], batch.counts)
