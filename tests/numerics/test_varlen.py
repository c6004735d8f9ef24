"""Variable-length kernels: what they are handed, through a stand-in that runs anywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen as torch_varlen

from crossloom.batch import Stream, ViewBatch
from crossloom.models import attention as module
from crossloom.models.attention import Layout, attention, varlen

LENGTHS = {"text": (3, 1, 5, 2), "image": (2, 4, 2, 3)}
BOTH = ("text", "image")


def one_by_one(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
    """``varlen_attn`` as its documentation has it: each example by itself."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    out = torch.empty_like(q)
    assert int(cu_seq_q[-1]) == len(q)
    assert int(cu_seq_k[-1]) == len(k)
    for number in range(len(cu_seq_q) - 1):
        mine, read = (slice(*x[number : number + 2].tolist()) for x in (cu_seq_q, cu_seq_k))
        assert mine.stop - mine.start <= max_q
        assert read.stop - read.start <= max_k
        scores = torch.einsum("qhc,khc->hqk", q[mine], k[read]) / q.shape[-1] ** 0.5
        if window_size == (-1, 0):
            later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        out[mine] = torch.einsum("hqk,khc->qhc", scores.softmax(-1), v[read])
    return out


def flagged(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    """As in torch 2.10, which had a flag and no windows."""
    window = (-1, 0) if is_causal else (-1, -1)
    return one_by_one(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window)


def case(queries, keys):
    streams = {}
    for name, length in LENGTHS.items():
        n = sum(length)
        streams[name] = Stream.build(
            {}, {}, np.arange(n), np.zeros(n, bool), np.array(length, np.int64)
        )
    layout = Layout(ViewBatch(streams=streams).to("cpu"))
    generator = torch.Generator().manual_seed(0)
    counts = [sum(sum(LENGTHS[n]) for n in names) for names in (queries, keys, keys)]
    q, k, v = (torch.randn(n, 2, 4, generator=generator, requires_grad=True) for n in counts)
    return layout, q, k, v


@pytest.mark.parametrize("kernel", [one_by_one, flagged])
@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [
        (BOTH, BOTH, ()),
        (BOTH[::-1], BOTH, ()),
        (("image",), BOTH, ()),
        (("text",), ("image",), ()),
        (("text",), ("text",), ()),
        (("text",), ("text",), ("text",)),
    ],
)
def test_it_gives_what_the_masked_path_gives(queries, keys, causal, kernel, monkeypatch):
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    monkeypatch.setattr(module, "_FLAGGED", kernel is flagged)
    layout, *given = case(queries, keys)
    to, of = layout.together(queries), layout.together(keys)
    ours = varlen(*given, to, of, causal=bool(causal))
    expected = attention(*given, layout, queries, keys, causal)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((ours * weights).sum(), given)
    wanted = torch.autograd.grad((expected * weights).sum(), given)
    torch.testing.assert_close(found, wanted)


class OnDevice(torch.Tensor):
    """Says that it lies on a GPU, so that the choice of the path can be seen."""

    is_cuda = property(lambda _: True)


@pytest.mark.parametrize(
    ("queries", "keys", "causal", "change", "width", "taken"),
    [
        (BOTH, BOTH, (), {}, 8, True),
        (("text",), ("text",), ("text",), {}, 256, True),
        # a text that reads an image and its own past; both in one block
        (("text",), BOTH, ("text",), {}, 8, False),
        (BOTH, BOTH, ("text",), {}, 8, False),
        (("text",), ("text",), (), {"across": True}, 8, False),
        # heads that its kernels do not take
        (BOTH, BOTH, (), {}, 12, False),
        (BOTH, BOTH, (), {}, 264, False),
    ],
)
def test_it_serves_where_a_mask_would_say_nothing_more(
    queries, keys, causal, change, width, taken, monkeypatch
):
    seen = []
    monkeypatch.setattr(module, "varlen", lambda q, *_, causal: seen.append(causal) or q)
    layout, *given = case(queries, keys)
    layout.view = replace(layout.view, **change)
    wide = [torch.zeros(*x.shape[:2], width) for x in given]
    half = [x.bfloat16().as_subclass(OnDevice) for x in wide]
    with pytest.MonkeyPatch.context() as patch:
        masked = []
        patch.setattr(
            module.F,
            "scaled_dot_product_attention",
            lambda q, *_, **__: masked.append(1) or q,
        )
        patch.setattr(module, "to_rectangle", lambda x, _: x)
        patch.setattr(module, "to_flat", lambda x, _: x)
        patch.setattr(Layout, "mask", lambda *_: None)
        attention(*half, layout, queries, keys, causal)
    assert bool(seen) == taken
    assert bool(masked) != taken
    assert not taken or seen == [bool(causal)]


def test_one_full_stream_is_not_copied():
    streams = {"image": Stream.build({}, {}, np.arange(6), np.zeros(6, bool), np.array([3, 3]))}
    where = Layout(ViewBatch(streams=streams).to("cpu")).together(("image",))
    x = torch.arange(12.0).view(6, 2)
    rows = module.to_rectangle(x, where)
    assert rows.data_ptr() == x.data_ptr()
    assert torch.equal(module.to_flat(rows, where), x)
