"""LAMB beside the paper's formula; rates by layer."""

import math

import pytest
import torch
from torch import nn

from crossloom.training.optim import Lamb, Optim, make_optimiser


def test_lamb_is_the_papers_algorithm():
    """You et al. (2020), algorithm 2, written out with Python's numbers."""
    first, second, eps, rate, decay = 0.9, 0.99, 0.01, 0.1, 0.05
    weights, mean, square = [3.0, -4.0], [0.0, 0.0], [0.0, 0.0]
    parameter = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
    optimiser = Lamb([{"params": [parameter], "weight_decay": decay}], rate, (first, second), eps)
    for step, gradient in enumerate(([0.5, -2.0], [1.0, 0.25], [-3.0, 0.0]), 1):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
        mean = [first * m + (1 - first) * g for m, g in zip(mean, gradient, strict=True)]
        square = [second * v + (1 - second) * g * g for v, g in zip(square, gradient, strict=True)]
        update = [
            (m / (1 - first**step)) / (math.sqrt(v / (1 - second**step)) + eps) + decay * w
            for m, v, w in zip(mean, square, weights, strict=True)
        ]
        trust = math.hypot(*weights) / math.hypot(*update)
        weights = [w - rate * trust * u for w, u in zip(weights, update, strict=True)]
        assert parameter.tolist() == pytest.approx(weights, rel=1e-5)


def test_lamb_moves_a_parameter_of_zeros_by_its_update():
    parameter = nn.Parameter(torch.zeros(2))
    optimiser = Lamb([{"params": [parameter], "weight_decay": 0.0}], 0.1, (0.9, 0.99), 0.0)
    parameter.grad = torch.tensor([2.0, -1.0])
    optimiser.step()
    assert parameter.tolist() == pytest.approx([-0.1, 0.1])


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.ModuleDict({"text": nn.Embedding(3, 2)})
        self.fusion = nn.Module()
        self.fusion.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.heads = nn.ModuleDict({"mlm": nn.Linear(2, 3)})


def test_layers_further_from_the_heads_learn_more_slowly():
    model = Deep()
    spec = Optim(layer_decay=0.5, factors={r"layers\.1\.bias": 3.0})
    factors = {
        name: group["factor"]
        for group in make_optimiser(model, spec).param_groups
        for parameter in group["params"]
        for name, own in model.named_parameters()
        if own is parameter
    }
    assert factors["heads.mlm.weight"] == 1
    assert [factors[f"fusion.layers.{n}.weight"] for n in range(3)] == [0.25, 0.5, 1]
    assert factors["embed.text.weight"] == 0.125
    assert factors["fusion.layers.1.bias"] == 3
