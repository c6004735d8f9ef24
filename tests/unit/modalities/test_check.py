"""The contract check lets a good modality pass, and tells what is wrong with bad ones."""

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.testing import check_modality
from crossloom.units import BadSample, make_units


@dataclass(frozen=True, kw_only=True)
class Toy(Modality):
    """One unit a byte: its bits are content, target, and (as a number) a class."""

    kind: ClassVar[str] = "toy"
    field: str = "toy"
    reach: int = 8

    def decode(self, sample, rng):
        if self.field not in sample:
            raise BadSample("missing member", "no toy")
        raw = np.frombuffer(sample[self.field], np.uint8)[: self.reach]
        if len(raw) == 0:
            raise BadSample("empty stream", "toy: no bytes")
        bits = np.unpackbits(raw[:, None], axis=1).astype(np.float32)
        share = (bits + 1) / (bits + 1).sum(1, keepdims=True)
        targets = {"bits": bits.copy(), "number": raw.astype(np.int64), "share": share}
        return make_units({"bits": bits}, targets=targets)

    def blank(self):
        return self.decode({self.field: b"\0"}, None)

    def longest(self):
        return self.reach

    def predictable(self):
        return {
            "bits": Target(dim=8, form="vector"),
            "number": Target(dim=256, form="index"),
            "share": Target(dim=8, form="distribution"),
        }

    def embedder(self, width):
        return ToyEmbedder(width)


class ToyEmbedder(Embedder):
    def __init__(self, width):
        super().__init__()
        self.bits = nn.Linear(8, width)
        self.mask = nn.Parameter(torch.zeros(width))

    def forward(self, stream):
        return torch.where(stream.hidden[:, None], self.mask, self.bits(stream.content["bits"]))

    def tied(self, target):
        return self.bits.weight.T if target == "bits" else None


SAMPLE = {"toy": b"seven b"}


@pytest.mark.parametrize("data", [b"seven b", b"x", b"longer than eight"])
def test_a_good_modality_passes(data):
    check_modality(Toy(), {"toy": data})
    check_modality(Toy(), {"toy": data}, width=5)


def test_it_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    check_modality(Toy(), SAMPLE)
    assert torch.equal(before, torch.random.get_rng_state())


def with_targets(**targets):
    return lambda u, rng: replace(u, targets={**u.targets, **targets})


def shared(u, rng):
    return replace(u, targets={**u.targets, "bits": u.content["bits"]})


def drawn(u, rng):
    noise = 0 if rng is None else rng.normal()
    return replace(u, content={"bits": u.content["bits"] + np.float32(noise)})


def from_elsewhere(u, rng):
    noise = np.random.default_rng().normal()
    return replace(u, content={"bits": u.content["bits"] + np.float32(noise)})


def nan(u, rng):
    return replace(u, content={"bits": u.content["bits"] * np.float32("nan")})


def lacking(u, rng):
    return replace(u, targets={k: v for k, v in u.targets.items() if k != "number"})


SEVEN = np.ones((7, 8), np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (from_elsewhere, "content bits differs between two decodings with one key: draw from the"),
        (drawn, r"content bits differs .* steady\(\)"),
        (nan, "content bits is not all finite"),
        (lacking, r"offers number, but decode\(\) gives no such target"),
        (shared, "target bits shares memory with bits: copy it"),
        (with_targets(number=np.full(7, 256)), "256 is none of 256 classes"),
        (with_targets(number=np.zeros(7, np.int32)), "give int64, not int32"),
        (with_targets(number=np.zeros((7, 1), np.int64)), "an index has one axis"),
        (with_targets(bits=SEVEN[:, :3]), r"rows of shape \[3\]; predictable\(\) says \[8\]"),
        (with_targets(share=SEVEN), "rows sum to 8..8: divide"),
        (with_targets(share=SEVEN - 1.5), "negative probabilities"),
        (lambda u, r: replace(u, maskable=np.ones(7)), r"maskable is float64 \[7\]; give bool"),
        (lambda u, r: replace(u, group=np.zeros(7, np.int32)), "group is int32"),
        (lambda u, r: replace(u, content={"bits": SEVEN[:2]}), "content bits has 2 rows for 7"),
    ],
)
def test_units_that_break_the_contract(change, words, monkeypatch):
    decode = Toy.decode
    monkeypatch.setattr(Toy, "decode", lambda self, s, rng: change(decode(self, s, rng), rng))
    with pytest.raises(AssertionError, match=words):
        check_modality(Toy(), SAMPLE)


class Trusted(Toy):
    """Its numbers are trusted as far as they are large."""

    trust: ClassVar[tuple] = (0.0, 1.0, np.float32)

    def decode(self, sample, rng):
        units = super().decode(sample, rng)
        low, high, kind = self.trust
        trust = np.linspace(low, high, len(units), dtype=kind)
        return replace(units, targets={**units.targets, "number.trust": trust})

    def predictable(self):
        return {"number": Target(dim=256, form="index", trusted=True)}


def test_what_is_said_of_trust_is_checked(monkeypatch):
    check_modality(Trusted(), SAMPLE)
    for trust, words in (
        ((0.0, 1.5, np.float32), "number.trust lies in 0..1.5: keep to 0..1"),
        ((0.0, 1.0, np.float64), "number.trust is float64"),
    ):
        monkeypatch.setattr(Trusted, "trust", trust)
        with pytest.raises(AssertionError, match=words):
            check_modality(Trusted(), SAMPLE)
    monkeypatch.setattr(Trusted, "decode", Toy.decode)
    with pytest.raises(AssertionError, match=r"decode\(\) gives no number.trust"):
        check_modality(Trusted(), SAMPLE)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own", "own names strange, which is no field: there are field, reach"),
        ("swapped", "swapped names strange, which is no content: there is bits"),
    ],
)
def test_names_of_fields_and_content_are_checked(name, words, monkeypatch):
    monkeypatch.setattr(Toy, name, ("strange",))
    with pytest.raises(AssertionError, match=words):
        check_modality(Toy(), SAMPLE)


class TooLong(Toy):
    def longest(self):
        return 3


class TakesAnything(Toy):
    def decode(self, sample, rng):
        return super().decode({"toy": b"default", **sample}, rng)


class RaisesKeyError(Toy):
    def decode(self, sample, rng):
        sample[self.field]
        return super().decode(sample, rng)


class ChangesInPlace(Toy):
    def substitute(self, units, fate, rng):
        units.content["bits"][fate != 0] = 0
        return units.content


class ChangesKept(Toy):
    def substitute(self, units, fate, rng):
        return {"bits": units.content["bits"] * 0}


class ForgetsContent(Toy):
    def substitute(self, units, fate, rng):
        return {}


class GivesTheTarget(Toy):
    def substitute(self, units, fate, rng):
        return {"bits": units.targets["bits"]}


class DrawsElsewhere(Toy):
    def substitute(self, units, fate, rng):
        bits = units.content["bits"].copy()
        bits[fate == 2] = np.random.default_rng().normal(size=8)
        return {"bits": bits}


class OddBlank(Toy):
    def blank(self):
        return make_units({"bits": np.zeros((1, 4), np.float32)}, targets=super().blank().targets)


class BareBlank(Toy):
    def blank(self):
        return make_units({"bits": np.zeros((1, 8), np.float32)})


class NoKind(Toy):
    kind = ""


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (TooLong, r"gives 7 units, but longest\(\) says 3"),
        (TakesAnything, "a sample without the member decodes"),
        (RaisesKeyError, "raises KeyError: raise BadSample"),
        (ChangesInPlace, "changed content bits in place"),
        (ChangesKept, "changed bits of units that are kept or shown"),
        (ForgetsContent, "give all content, bits"),
        (GivesTheTarget, "in the memory of target bits"),
        (DrawsElsewhere, "in two ways for one key"),
        (OddBlank, r"blank\(\) gives content bits as float32 \[1, 4\]"),
        (BareBlank, r"blank\(\) gives content bits, position.*; like decode"),
        (NoKind, "has no kind"),
    ],
)
def test_modalities_that_break_the_contract(broken, words):
    with pytest.raises(AssertionError, match=words):
        check_modality(broken(), SAMPLE)


def test_what_does_not_pickle():
    class Local(Toy):
        pass

    with pytest.raises(AssertionError, match="does not survive pickling"):
        check_modality(Local(), SAMPLE)


class Leaks(ToyEmbedder):
    def forward(self, stream):
        mixed = self.bits(stream.content["bits"])
        return torch.where(stream.hidden[:, None], self.mask + 0.01 * mixed, mixed)


class IgnoresHidden(ToyEmbedder):
    def forward(self, stream):
        return self.bits(stream.content["bits"]) + self.mask


class MixesExamples(ToyEmbedder):
    def forward(self, stream):
        shown = super().forward(stream)
        return shown + shown.mean(0) * (~stream.hidden).all()


class Idle(ToyEmbedder):
    def __init__(self, width):
        super().__init__(width)
        self.idle = nn.Parameter(torch.zeros(width))


class OnlyWhenHidden(ToyEmbedder):
    def forward(self, stream):
        if stream.hidden.any():
            return super().forward(stream)
        return self.bits(stream.content["bits"])


class Narrow(ToyEmbedder):
    def forward(self, stream):
        return super().forward(stream)[:, 1:]


class TiedTheWrongWay(ToyEmbedder):
    def tied(self, target):
        return self.bits.weight if target == "bits" else None


@pytest.mark.parametrize(
    ("embedder", "words"),
    [
        (Leaks, r"content \(bits\) of hidden units reaches the output"),
        (IgnoresHidden, "of hidden units reaches the output"),
        (MixesExamples, "depend on the example beside it"),
        (Idle, "no gradient reaches idle from hidden and visible units"),
        (OnlyWhenHidden, r"no gradient reaches mask from blank\(\)"),
        (Narrow, r"embeds as \[7, 15\]; give \[7, 16\]"),
        (TiedTheWrongWay, r"tied\('bits'\) is \[16, 8\]; give \[8, 16\]"),
    ],
)
def test_embedders_that_break_the_contract(embedder, words, monkeypatch):
    monkeypatch.setattr(Toy, "embedder", lambda self, width: embedder(width))
    with pytest.raises(AssertionError, match=words):
        check_modality(Toy(), SAMPLE)


def test_it_checks_without_assert_statements_too():
    """Under ``python -O`` a bare assert would check nothing."""
    code = (
        "from crossloom.modalities.regions import Regions\n"
        "from crossloom.testing import check_modality\n"
        "class Bad(Regions):\n"
        "    kind = ''\n"
        "try:\n"
        "    check_modality(Bad(features=2, classes=0), {})\n"
        "except AssertionError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
    )
    assert "has no kind" in out.stdout
