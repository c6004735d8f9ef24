"""Layers compiled one by one: the same losses and gradients, few graphs, whatever the lengths."""

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen as torch_varlen

from crossloom.batch import Stream, ViewBatch
from crossloom.models import attention
from crossloom.models.attention import Layout
from crossloom.models.fusion import Fusion
from crossloom.models.presets import co_attention, single_stream

SIZE = {"width": 24, "heads": 2, "dropout": 0.0}
#: A plan, how many kinds of layers it has
PLANS = {
    "single": (single_stream(("text", "image"), layers=3, **SIZE), 1),
    "co": (co_attention("text", "image", first=1, pairs=2, **SIZE), 2),
}  # fmt: skip


@pytest.fixture
def graphs():
    """A backend that counts the graphs it is given, and runs them as they are."""
    torch._dynamo.reset()
    found = []

    def backend(graph, _):
        found.append(graph)
        return graph.forward

    yield found, backend
    torch._dynamo.reset()


def shown(number):
    rng = np.random.default_rng(number)
    streams = {}
    for name in ("text", "image"):
        length = rng.integers(2, 9, 3 + number)
        n = int(length.sum())
        streams[name] = Stream.build({}, {}, np.arange(n), np.zeros(n, bool), length)
    return ViewBatch(streams=streams).to("cpu")


@pytest.mark.parametrize("name", PLANS)
def test_few_graphs_serve_all_layers_and_lengths(name, graphs):
    found, backend = graphs
    plan, kinds = PLANS[name]
    torch.manual_seed(0)
    plain = Fusion(plan)
    compiled = Fusion(plan)
    compiled.load_state_dict(plain.state_dict())
    for layer in compiled.layers:
        layer.compile(dynamic=True, backend=backend)
    counts = []
    for number in range(3):
        view = shown(number)
        given = {s: torch.randn(len(x.position), 24) for s, x in view.streams.items()}
        sums = []
        for fusion in (plain, compiled):
            fusion.zero_grad()
            loss = torch.stack([x.square().sum() for x in fusion(given, view).values()]).sum()
            loss.backward()
            sums.append(loss.detach())
        torch.testing.assert_close(*sums)
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
        counts.append(len(found))
    # the layer that first asks where units lie is a kind of its own; others find it known
    assert kinds <= counts[-1] <= 2 * kinds + 1
    assert counts[1] == counts[-1]


def test_the_kernel_of_varying_lengths_is_in_the_graph(graphs, monkeypatch):
    found, backend = graphs
    kernel = lambda q, k, v, *_, window_size: q * window_size[0]  # noqa: E731
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    run = torch.compile(attention.varlen, backend=backend, fullgraph=True)
    where = Layout(shown(0)).together(("text",))
    q = torch.randn(len(where.back), 2, 4)
    assert torch.equal(run(q, q, q, where, where, causal=True), -q)
    assert len(found) == 1
