"""The contract of a modality, as a check for plugin authors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from crossloom.batch import Stream, ViewBatch
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import Array, BadSample, Fate, Sample, Units, keyed_rng


def check_modality(modality: Modality, sample: Sample, width: int = 16) -> None:
    """Run the contract of :class:`~crossloom.modalities.modality.Modality` on one good sample.

    What is hidden must not reach the embedder's output: content that is also a target (by name) is
    replaced by noise there; when no target has the name of a content, all content is.

    Args:
        modality: as a recipe would hold it.
        sample: members of a shard, as bytes by extension, that ``decode`` can use. Samples of two
            or more units check more than those of one.
        width: of the embedder that is tried.

    Raises:
        AssertionError: says what is broken and what to do.
    """
    _spec(modality)
    units = _decoding(modality, sample)
    _units(units, modality, "decode()")
    _targets(modality, units)
    _corruption(modality, units)
    _blank(modality, units)
    _embedding(modality, units, width)


def _need(kept: bool, message: str) -> None:
    # not a bare assert: those vanish under python -O
    if not kept:
        raise AssertionError(message)


def _spec(modality: Modality) -> None:
    _need(
        bool(getattr(modality, "kind", "")),
        f'{type(modality).__name__} has no kind: set `kind: ClassVar[str] = "..."`',
    )
    try:
        again = pickle.loads(pickle.dumps(modality))
    except Exception as error:
        raise AssertionError(
            f"does not survive pickling ({error}): keep fields plain, it travels to data workers"
        ) from error
    _need(
        again == modality and replace(modality) == modality,
        "a copy is not equal to it: make it a frozen dataclass whose fields compare by value",
    )
    _need(isinstance(modality.identity(), str), "identity() must give a string")
    names = [f.name for f in fields(modality)]
    if strange := [x for x in modality.own if x not in names]:
        _need(False, f"own names {strange[0]}, which is no field: there are {', '.join(names)}")


def _decoding(modality: Modality, sample: Sample) -> Units:
    before = dict(sample)
    first, second = (modality.decode(sample, keyed_rng("check")) for _ in range(2))
    _equal(first, second, "two decodings with one key: draw from the rng given, and from it only")
    steady = modality.steady()
    one, two = (steady.decode(sample, keyed_rng("check", n)) for n in range(2))
    _equal(
        one, two, "two decodings of steady(), which must not depend on the rng: drop augmentation"
    )
    _need(dict(sample) == before, "decode() changed the sample: leave it as it is")
    try:
        modality.decode({}, keyed_rng("check"))
    except BadSample as error:
        _need(bool(error.kind), "BadSample for a missing member has no kind: give a short name")
    except Exception as error:
        raise AssertionError(
            f"a sample without the member raises {type(error).__name__}: raise BadSample, so that "
            "it is counted and skipped"
        ) from error
    else:
        raise AssertionError("a sample without the member decodes: raise BadSample")
    return first


def _arrays(units: Units) -> dict[str, Array]:
    return {
        **{f"content {k}": v for k, v in units.content.items()},
        **{f"target {k}": v for k, v in units.targets.items()},
        **{f"whole {k}": v for k, v in units.whole.items()},
        "position": units.position,
        "maskable": units.maskable,
        "group": units.group,
    }


def _equal(first: Units, second: Units, between: str) -> None:
    one, two = _arrays(first), _arrays(second)
    _need(one.keys() == two.keys(), f"names differ between {between}")
    for name, value in one.items():
        floating = value.dtype.kind == "f"
        same = np.array_equal(value, two[name], equal_nan=floating)
        _need(same, f"{name} differs between {between}")


def _units(units: Units, modality: Modality, source: str) -> None:
    n = len(units)
    _need(n > 0, f"{source} gives no units: raise BadSample instead")
    longest = modality.longest()
    _need(n <= longest, f"{source} gives {n} units, but longest() says {longest}: cut, or say more")
    for name, kind in (("position", "int64"), ("maskable", "bool"), ("group", "int64")):
        value = getattr(units, name)
        _need(
            value.shape == (n,) and value.dtype == kind,
            f"{source}: {name} is {value.dtype} {list(value.shape)}; give {kind} [{n}]",
        )
    for name, value in _arrays(units).items():
        per_unit = not name.startswith("whole")
        _need(
            not per_unit or len(value) == n,
            f"{source}: {name} has {len(value) if value.ndim else 'no'} rows for {n} units: "
            "give one each, or put it into whole",
        )
        _need(value.dtype.kind in "fiub", f"{source}: {name} is {value.dtype}; give numbers")
        _need(
            value.dtype.kind != "f" or bool(np.isfinite(value).all()),
            f"{source}: {name} is not all finite: raise BadSample for such samples",
        )


def _targets(modality: Modality, units: Units) -> None:
    for name, target in modality.predictable().items():
        _need(
            name in units.targets,
            f"predictable() offers {name}, but decode() gives no such target: add it to targets",
        )
        _form(name, target, units.targets[name])
        if target.trusted:
            _trust(name, units)
    shown = {**units.content, **units.whole}
    for name, value in units.targets.items():
        for other, content in shown.items():
            _need(
                not np.shares_memory(value, content),
                f"target {name} shares memory with {other}: copy it",
            )


def _form(name: str, target: Target, value: Array) -> None:
    if target.form == "index":
        _need(value.ndim == 1, f"target {name}: an index has one axis, not {list(value.shape)}")
        _need(value.dtype == np.int64, f"target {name}: give int64, not {value.dtype}")
        _need(
            int(value.max(initial=-1)) < target.dim,
            f"target {name}: {value.max(initial=-1)} is none of {target.dim} classes: "
            "raise dim in predictable(), or mark units without a class by -1",
        )
        return
    _need(
        value.shape[1:] == (target.dim,),
        f"target {name}: rows of shape {list(value.shape[1:])}; predictable() says [{target.dim}]",
    )
    _need(value.dtype.kind == "f", f"target {name}: give floats, not {value.dtype}")
    if target.form == "distribution":
        _need(bool((value >= 0).all()), f"target {name}: negative probabilities")
        total = value.astype(np.float64).sum(1)
        _need(
            bool(np.allclose(total, 1, atol=1e-3)),
            f"target {name}: rows sum to {total.min():.4g}..{total.max():.4g}: divide by the sum",
        )


def _trust(name: str, units: Units) -> None:
    trust = units.targets.get(f"{name}.trust")
    _need(
        trust is not None,
        f"target {name} is trusted, but decode() gives no {name}.trust: add it to targets",
    )
    assert trust is not None
    _need(
        trust.shape == (len(units),) and trust.dtype == np.float32,
        f"{name}.trust is {trust.dtype} {list(trust.shape)}; give float32 [{len(units)}]",
    )
    _need(
        bool(((trust >= 0) & (trust <= 1)).all()),
        f"{name}.trust lies in {trust.min():.4g}..{trust.max():.4g}: keep to 0..1",
    )


def _corruption(modality: Modality, units: Units) -> None:
    if strange := [x for x in modality.swapped if x not in units.content]:
        _need(
            False,
            f"swapped names {strange[0]}, which is no content: there is {', '.join(units.content)}",
        )
    before = {k: v.copy() for k, v in _arrays(units).items()}
    fate = np.zeros(len(units), np.int8)
    places = np.flatnonzero(units.maskable)
    fate[places] = np.resize([Fate.HIDE, Fate.SWAP, Fate.SHOW, Fate.KEEP], len(places))
    shown = modality.substitute(units, fate, keyed_rng("check"))
    for name, value in _arrays(units).items():
        _need(np.array_equal(value, before[name]), f"substitute() changed {name} in place: copy it")
    _need(
        shown.keys() == units.content.keys(),
        f"substitute() gives {', '.join(shown)}: give all content, {', '.join(units.content)}",
    )
    visible = (fate == Fate.KEEP) | (fate == Fate.SHOW)
    again = modality.substitute(units, fate, keyed_rng("check"))
    for name, value in shown.items():
        clean = units.content[name]
        _need(
            value.shape == clean.shape and value.dtype == clean.dtype,
            f"substitute() gives {name} as {value.dtype} {list(value.shape)}; "
            f"keep {clean.dtype} {list(clean.shape)}",
        )
        _need(
            np.array_equal(value[visible], clean[visible]),
            f"substitute() changed {name} of units that are kept or shown: leave those",
        )
        _need(
            np.array_equal(value, again[name]),
            f"substitute() gives {name} in two ways for one key: draw from the rng given only",
        )
        for target, truth in units.targets.items():
            _need(
                not np.shares_memory(value, truth),
                f"substitute() gives {name} in the memory of target {target}: copy it",
            )


def _blank(modality: Modality, units: Units) -> None:
    blank = modality.blank()
    _units(blank, modality, "blank()")
    one, two = _arrays(units), _arrays(blank)
    _need(
        one.keys() == two.keys(),
        f"blank() gives {', '.join(two)}; like decode(), give {', '.join(one)}",
    )
    for name, value in one.items():
        skip = 0 if name.startswith("whole") else 1
        _need(
            value.shape[skip:] == two[name].shape[skip:] and value.dtype == two[name].dtype,
            f"blank() gives {name} as {two[name].dtype} {list(two[name].shape)}, decode() as "
            f"{value.dtype} {list(value.shape)}: they must fit into one batch",
        )


def _stream(
    examples: Sequence[Units], hidden: Array, content: Mapping[str, Array] | None = None
) -> Stream:
    """A stream of tensors, as a batch holds it."""
    first = examples[0]
    joined = {k: np.concatenate([u.content[k] for u in examples]) for k in first.content}
    stream = Stream.build(
        joined if content is None else content,
        {k: np.stack([u.whole[k] for u in examples]) for k in first.whole},
        np.concatenate([u.position for u in examples]),
        hidden,
        np.array([len(u) for u in examples], np.int64),
    )
    return ViewBatch(streams={"x": stream}).to("cpu").streams["x"]


def _embedding(modality: Modality, units: Units, width: int) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        embedder = modality.embedder(width).eval()
        n, blank = len(units), modality.blank()
        none = np.zeros(n, bool)
        with torch.no_grad():
            out = embedder(_stream([units], none))
            _need(
                out.shape == (n, width),
                f"embeds as {list(out.shape)}; give [{n}, {width}], [N, width]",
            )
            _need(bool(torch.isfinite(out).all()), "embeds as numbers that are not finite")
            _apart(embedder, units, blank, out)
            _no_leak(embedder, units)
        for name, target in modality.predictable().items():
            tied = embedder.tied(name)
            _need(
                tied is None or (tied.dim() == 2 and len(tied) == target.dim),
                f"tied({name!r}) is {None if tied is None else list(tied.shape)}; "
                f"give [{target.dim}, {width}], [dim, width], or of an inner width",
            )
        hidden = np.concatenate([units.maskable, none])
        _gradients(embedder, _stream([units, units], hidden), "hidden and visible units")
        _gradients(embedder, _stream([blank], np.zeros(len(blank), bool)), "blank()")


def _apart(embedder: Embedder, units: Units, blank: Units, alone: Tensor) -> None:
    hidden = np.zeros(len(units) + len(blank), bool)
    beside = embedder(_stream([blank, units], hidden))[len(blank) :]
    _need(
        torch.allclose(beside, alone, rtol=1e-3, atol=1e-4),
        "an example's vectors depend on the example beside it: the units of all examples lie end "
        "to end, stream.example and stream.position say which is which",
    )


def _no_leak(embedder: Embedder, units: Units) -> None:
    content = units.content
    secret = [name for name in content if name in units.targets] or list(content)
    rng = keyed_rng("noise")
    maskable = np.flatnonzero(units.maskable)
    for chosen in (maskable[::2], maskable):
        hidden = np.zeros(len(units), bool)
        hidden[chosen] = True
        noise = {k: _noise(v, hidden, rng) if k in secret else v for k, v in content.items()}
        clean, other = (embedder(_stream([units], hidden, c)) for c in (content, noise))
        _need(
            torch.equal(clean, other),
            f"content ({', '.join(secret)}) of hidden units reaches the output: show a mask where "
            "stream.hidden is set, before anything mixes units",
        )


def _noise(value: Array, where: Array, rng: np.random.Generator) -> Array:
    """A copy with other values where said, of the same type and range."""
    value = value.copy()
    if value.dtype.kind == "f":
        value[where] += rng.normal(size=value[where].shape).astype(value.dtype) + 3
    elif value.dtype == np.uint8:
        value[where] = 255 - value[where]
    elif value.dtype == np.bool_:
        value[where] = ~value[where]
    else:  # ids: only those that occur are known to be valid
        value[where] = np.roll(value, 1, axis=0)[where]
    return value


def _gradients(embedder: Embedder, stream: Stream, of: str) -> None:
    embedder.zero_grad()
    out = embedder(stream)
    (out * torch.randn(out.shape)).sum().backward()
    for name, parameter in embedder.named_parameters():
        if not parameter.requires_grad:
            continue
        _need(
            parameter.grad is not None,
            f"no gradient reaches {name} from {of}: every parameter must take part in every step "
            "(torch.where instead of if), or be frozen by requires_grad_(False)",
        )
        assert parameter.grad is not None
        _need(
            bool(torch.isfinite(parameter.grad).all()),
            f"the gradient of {name} from {of} is not finite",
        )
