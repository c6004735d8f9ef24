"""The contract of a modality, as a check for plugin authors."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import torch

from crossloom.batch import Stream, ViewBatch
from crossloom.modalities.modality import Modality
from crossloom.units import Array, Fate, Sample, Units, keyed_rng


def check_modality(modality: Modality, sample: Sample, width: int = 16) -> None:
    """Run the contract on one sample.

    Raises:
        AssertionError: says what is broken and what to do.
    """
    units = _same(modality, sample)
    _lengths(modality, units)
    _targets(modality, units)
    _corruption(modality, units)
    _embedder(modality, units, width)
    assert pickle.loads(pickle.dumps(modality)) == modality, (
        "does not survive pickling: keep fields plain, it travels to the data workers"
    )


def _same(modality: Modality, sample: Sample) -> Units:
    first, second = (modality.decode(sample, keyed_rng("check")) for _ in range(2))
    for name, value in {**first.content, **first.targets, **first.whole}.items():
        other = {**second.content, **second.targets, **second.whole}[name]
        assert np.array_equal(value, other), (
            f"{name} differs between two decodings with one key: draw from the rng given only"
        )
    return first


def _lengths(modality: Modality, units: Units) -> None:
    assert 0 < len(units) <= modality.longest(), (
        f"{len(units)} units, but longest() says {modality.longest()}"
    )
    for name, value in {**units.content, **units.targets}.items():
        assert len(value) == len(units), f"{name} has {len(value)} rows for {len(units)} units"


def _targets(modality: Modality, units: Units) -> None:
    for name, target in modality.predictable().items():
        assert name in units.targets, f"predictable() offers {name}; decode() gives no such target"
        value = units.targets[name]
        if target.form == "index":
            assert value.ndim == 1, f"{name}: an index has one axis, not {value.shape}"
            assert value.dtype == np.int64, f"{name}: give int64, not {value.dtype}"
            assert value.max() < target.dim, f"{name}: {value.max()} in {target.dim} classes"
        else:
            assert value.shape[1:] == (target.dim,), f"{name}: rows of {value.shape[1:]}"
        if target.form == "distribution":
            assert (value >= 0).all(), f"{name}: negative probabilities"
            assert np.allclose(value.sum(1), 1, atol=1e-3), f"{name}: rows must sum to one"
        for other, content in units.content.items():
            assert not np.shares_memory(value, content), (
                f"target {name} shares memory with content {other}: copy it"
            )


def _corruption(modality: Modality, units: Units) -> None:
    before = {k: v.copy() for k, v in {**units.content, **units.targets}.items()}
    fate = np.resize(np.array([Fate.HIDE, Fate.SWAP, Fate.SHOW, Fate.KEEP]), len(units))
    shown = modality.substitute(units, fate.astype(np.int8), keyed_rng("check"))
    for name, value in {**units.content, **units.targets}.items():
        assert np.array_equal(value, before[name]), f"substitute() changed {name} in place: copy it"
    kept = fate == Fate.KEEP
    for name, value in shown.items():
        assert np.array_equal(value[kept], units.content[name][kept]), (
            f"substitute() changed {name} of units that are kept"
        )


def _stream(units: Units, content: dict[str, Array], hidden: Array) -> Stream:
    whole = {k: v[None] for k, v in units.whole.items()}
    stream = Stream.build(content, whole, units.position, hidden, np.array([len(units)]))
    return ViewBatch(streams={"x": stream}).to("cpu").streams["x"]


def _embedder(modality: Modality, units: Units, width: int) -> None:
    torch.manual_seed(0)
    embedder = modality.embedder(width).eval()
    content = dict(units.content)
    out = embedder(_stream(units, content, np.zeros(len(units), bool)))
    assert out.shape == (len(units), width), f"embeds {tuple(out.shape)}, not {len(units), width}"
    for name, target in modality.predictable().items():
        tied = embedder.tied(name)
        assert tied is None or tied.shape == (target.dim, width), (
            f"tied({name!r}) is {tuple(tied.shape)}; give [{target.dim}, {width}]"
        )
    if content:
        _no_leak(embedder, units, content)
        _gradients(embedder, units, content)
    blank = modality.blank()
    embedder(_stream(blank, dict(blank.content), np.zeros(len(blank), bool)))
    assert replace(modality) == modality, "two equal specs must compare equal"


def _no_leak(embedder: torch.nn.Module, units: Units, content: dict[str, Array]) -> None:
    hidden = np.arange(len(units)) % 2 == 0
    noise = dict(content)
    rng = np.random.default_rng(0)
    predicted = {id(v) for v in units.targets.values()}
    for name in content:
        if name not in units.targets and id(content[name]) not in predicted:
            continue  # what is not predicted (a box) may stay visible
        value = content[name].copy()
        if value.dtype.kind == "f":
            value[hidden] = rng.normal(size=value[hidden].shape)
        else:
            value[hidden] = value[hidden][::-1]
        noise[name] = value
    clean, other = (embedder(_stream(units, c, hidden)) for c in (content, noise))
    assert torch.equal(clean, other), (
        "hidden content reaches the output: show a mask where stream.hidden"
    )


def _gradients(embedder: torch.nn.Module, units: Units, content: dict[str, Array]) -> None:
    hidden = np.arange(len(units)) % 2 == 1
    if len(units) == 1:
        return
    out = embedder(_stream(units, content, hidden))
    (out * torch.randn(out.shape)).sum().backward()
    for name, parameter in embedder.named_parameters():
        reached = parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        assert reached, f"no gradient reaches {name}: every parameter must take part"
