"""Parts of heads shared between objectives, one epsilon for all norms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.model import CrossloomModel
from crossloom.models.presets import single_stream
from crossloom.objectives.classify import Classify
from crossloom.objectives.match import Match
from crossloom.objectives.pool import Probe
from crossloom.objectives.presets import itc
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View

STREAMS = ("text", "image")
VIEW = View(name="joint", streams=STREAMS, hide={"image": Hide()}, mismatch="text")
OBJECTIVES = {
    "class": Reconstruct(view=VIEW, stream="image", target="class"),
    "feature": Reconstruct(view=VIEW, stream="image", target="feature", shares="class"),
    "match": Match(view=VIEW),
    "answers": Classify(view=VIEW, label="answers", classes=("a", "b"), shares="match"),
}


def model(objectives=OBJECTIVES, epsilon=1e-5):
    modalities = {
        "text": Text(vocabulary="none", size=20),
        "image": Regions(features=3, classes=4),
    }
    plan = single_stream(STREAMS, layers=1, width=8, heads=2)
    return CrossloomModel(modalities, replace(plan, epsilon=epsilon), objectives)


def test_one_transform_and_one_pooler():
    whole = model()
    heads = whole.heads
    assert heads["feature"].transform is heads["class"].transform
    assert heads["answers"].pooler is heads["match"].pooler
    names = [n for n, _ in whole.named_parameters()]
    assert names == list(whole.state_dict())
    assert not [n for n in names if n.startswith(("heads.feature.tr", "heads.answers.pool"))]
    own = model({n: replace(o, shares="") for n, o in OBJECTIVES.items()})
    shared = 8 * 8 + 8 + 2 * 8, 8 * 8 + 8
    sizes = [sum(p.numel() for p in m.parameters()) for m in (own, whole)]
    assert sizes[0] - sizes[1] == sum(shared)


def test_the_order_of_objectives_does_not_matter():
    whole = model(dict(reversed(OBJECTIVES.items())))
    assert whole.heads["feature"].transform is whole.heads["class"].transform


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"feature": "clas"}, "objectives.feature.shares: there is no other objective 'clas'"),
        ({"feature": "feature"}, "no other objective 'feature'"),
        ({"feature": "match"}, "has no transform of its own"),
        ({"class": "feature"}, "has no transform of its own"),  # each lends to the other
        ({"answers": "class"}, "has no pooler of its own"),
    ],
)
def test_what_cannot_be_shared_is_said(changed, words):
    changed = {n: replace(OBJECTIVES[n], shares=s) for n, s in changed.items()}
    with pytest.raises(ValueError, match=words):
        model(OBJECTIVES | changed)


def test_poolers_of_other_streams_differ():
    other = replace(OBJECTIVES["answers"], pooled=("image",))
    with pytest.raises(ValueError, match="made otherwise"):
        model(OBJECTIVES | {"answers": other})


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "mean"},
        {"pool": Probe(heads=2, hidden=16)},
        {"pooled": STREAMS, "combine": "sum"},
        {"activation": "relu"},
        {"dropout": 0.1},
    ],
)
def test_poolers_that_summarise_otherwise_differ(changes):
    """Also where the parameters are alike: the setting would be ignored silently."""
    match = replace(OBJECTIVES["match"], pooled=changes.get("pooled", ("text",)))
    if "pool" in changes and isinstance(changes["pool"], Probe):
        match = replace(match, pool=replace(changes["pool"], heads=4))
    with pytest.raises(ValueError, match="made otherwise"):
        model(OBJECTIVES | {"match": match, "answers": replace(OBJECTIVES["answers"], **changes)})


def test_contrast_has_nothing_to_share():
    with pytest.raises(ValueError, match=r"objectives.itc.shares: ContrastHead has nothing"):
        model(OBJECTIVES | {"itc": replace(itc(STREAMS), shares="match")})


def test_the_plans_epsilon_holds_everywhere():
    found = {m.eps for m in model(epsilon=1e-3).modules() if isinstance(m, nn.LayerNorm)}
    assert found == {1e-3}
    parts = [model(epsilon=1e-3).embed["text"], model(epsilon=1e-3).heads["class"]]
    assert all(any(isinstance(m, nn.LayerNorm) for m in p.modules()) for p in parts)


def test_shared_parts_gather_both_gradients():
    whole = model()
    x = torch.randn(3, 8)
    for name in ("class", "feature"):
        whole.heads[name].transform(x).sum().backward()
    once = [p.grad.clone() for p in whole.heads["class"].transform.parameters()]
    whole.zero_grad()
    whole.heads["class"].transform(x).sum().backward()
    for both, one in zip(once, whole.heads["class"].transform.parameters(), strict=True):
        assert torch.allclose(both, 2 * one.grad)
