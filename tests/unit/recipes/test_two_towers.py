"""CLIP, SigLIP and WenLan as recipes: what the papers say of views, heads, sizes and rules."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossloom.batch import AimBatch
from crossloom.interop import clip as clip_files
from crossloom.interop import siglip as siglip_files
from crossloom.models.model import CrossloomModel
from crossloom.models.plan import Attend, Feed
from crossloom.objectives.contrast import Deep
from crossloom.recipes import clip, siglip, wenlan
from crossloom.training.optim import Optim, freeze
from crossloom.training.overview import parameters
from crossloom.training.recipe import from_dict, to_dict

BOTH = ("text", "image")
PUBLISHED = {
    r.name: r
    for r in (
        clip.clip(), clip.clip_b16(), clip.multilingual_clip(), siglip.siglip(),
        siglip.siglip_multilingual(), wenlan.wenlan(),
    )
}  # fmt: skip


def meta(recipe):
    with torch.device("meta"):
        return CrossloomModel(recipe.modalities, recipe.plan, recipe.objectives, recipe.tied)


@pytest.mark.parametrize("name", PUBLISHED)
def test_towers_never_read_each_other(name):
    recipe = PUBLISHED[name]
    (objective,) = recipe.objectives.values()
    assert objective.view.apart
    assert not objective.view.hide
    for block in recipe.plan.blocks.values():
        if isinstance(block, Attend):
            assert all(read == (stream,) for stream, read in block.reads.items())
            assert not block.shared
    assert from_dict(to_dict(recipe)) == recipe


def test_clip_as_published():
    recipe = clip.clip()
    (found,) = recipe.objectives.values()
    assert (found.form, found.dim, found.temperature, found.learned) == ("softmax", 512, 0.07, True)
    assert (found.pools["text"], found.pool) == ("last", "first")
    assert recipe.examples * recipe.micro == 32_768
    assert recipe.steps * 32_768 == pytest.approx(32 * 400e6)
    causal = {s for b in recipe.plan.blocks.values() if isinstance(b, Attend) for s in b.causal}
    assert causal == {"text"}
    assert recipe.modalities["image"].longest() == 50
    assert clip.clip_b16().modalities["image"].longest() == 197
    assert (recipe.optim.rate, recipe.optim.decay, recipe.schedule.warmup) == (5e-4, 0.2, 2000)
    assert recipe.optim.clip == 0


@pytest.mark.parametrize(
    ("name", "family", "patch"),
    [("clip", "CLIP", 32), ("clip-b16", "CLIP", 16), ("siglip", "Siglip", 16),
     ("siglip-multilingual", "Siglip", 16)],
)  # fmt: skip
def test_weights_are_those_of_the_reference(name, family, patch, tmp_path):
    transformers = pytest.importorskip("transformers")
    recipe = PUBLISHED[name]
    image = {"patch_size": patch, "image_size": recipe.modalities["image"].size}
    text = {"vocab_size": recipe.modalities["text"].size}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=image)
    with torch.device("meta"):
        theirs = getattr(transformers, f"{family}Model")(config)
    files = clip_files if family == "CLIP" else siglip_files
    ours = meta(recipe)
    _, state = files.write(recipe, ours.state_dict())
    wanted = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        k: v for k, v in wanted.items() if not k.endswith("position_ids")
    }
    count = sum(p.numel() for p in theirs.parameters())
    # and a vector that stands for hidden patches, which these systems never hide
    assert sum(p.numel() for p in ours.parameters()) == count + 768


def test_siglip_as_published():
    recipe = siglip.siglip()
    (found,) = recipe.objectives.values()
    head = found.head(recipe.modalities, recipe.plan.widths)
    assert head.scale.item() == pytest.approx(np.log(10))
    assert head.bias.item() == -10
    assert recipe.modalities["text"].filled
    assert not any(b.causal for b in recipe.plan.blocks.values() if isinstance(b, Attend))
    assert recipe.modalities["image"].longest() == 196
    assert recipe.mixture["pairs"].reader.languages == ("en",)
    assert siglip.siglip_multilingual().mixture["pairs"].reader.languages == ()


class Means:
    """An encoded view of which only each stream's mean is asked for, with slow ones beside."""

    view = SimpleNamespace(apart=True)

    def __init__(self, mean, slow=None):
        self.means, self.beside = mean, slow

    def after(self, layer):
        assert layer == 0
        return self

    def mean(self, stream):
        return self.means[stream]

    def slow(self, streams):
        assert set(streams) == {"text", "image"}
        return self.beside


def test_wenlan_asks_two_queues_of_slow_features():
    """Section 3.2 written out: each modality's own slow partner against the queue of the other."""
    torch.manual_seed(0)
    spec = replace(wenlan._queues(dim=8, queue=12), projections=dict.fromkeys(BOTH, Deep(hidden=5)))
    widths = {"text": 6, "image": 7}
    head = spec.head({}, widths)
    fast, slow = ({s: torch.randn(3, w) for s, w in widths.items()} for _ in range(2))
    samples = torch.tensor([11, 12, 13])
    head.queue.sample[:2] = torch.tensor([12, 99])
    aim = AimBatch(index=torch.arange(3), value=samples, weight=torch.ones(3))
    found = head(Means(fast, Means(slow)), aim)["loss"] * spec.weight

    def feature(stream, state):
        first, second = head.project[stream][0], head.project[stream][2]
        out = second(F.relu(first(state)))
        return out / out.norm(dim=1, keepdim=True)

    expected = 0.0
    for number, stream in enumerate(BOTH):
        asker = BOTH[1 - number]
        queue = head.queue.feature[number]
        for row in range(3):
            query, key = feature(asker, fast[asker])[row], feature(stream, slow[stream])[row]
            others = [q for q, owner in zip(queue, head.queue.sample, strict=True)
                      if owner != samples[row]]  # fmt: skip
            scores = torch.stack([query @ key, *(query @ q for q in others)]) / 0.07
            expected += -scores.log_softmax(0)[0]
    torch.testing.assert_close(found, expected)


def test_wenlan_as_published():
    recipe = wenlan.wenlan()
    (found,) = recipe.objectives.values()
    assert (found.queue, found.dim, found.momentum, found.temperature) == (9600, 2048, 0.99, 0.07)
    assert found.both
    assert not found.learned
    assert not found.wait
    plan = recipe.plan
    heads = {s: [b.heads for b in plan.blocks.values() if isinstance(b, Attend) and s in b.reads]
             for s in BOTH}  # fmt: skip
    assert heads == {"text": [12] * 12 + [4] * 4, "image": [4] * 4}
    assert [b.hidden for b in plan.blocks.values() if isinstance(b, Feed)].count(2048) == 8
    assert recipe.modalities["image"].longest() == 12 * 12
    # the released code's parts: towers, four layers of nn.TransformerEncoder, two linear layers
    parts = parameters(recipe).parts
    with torch.device("meta"):
        layer = torch.nn.TransformerEncoderLayer
        extra = sum(
            p.numel()
            for width in (768, 2048)
            for p in torch.nn.TransformerEncoder(
                layer(width, 4), 4, enable_nested_tensor=False
            ).parameters()
        )
        transformers = pytest.importorskip("transformers")
        bert = transformers.BertModel(
            transformers.BertConfig(vocab_size=21_128), add_pooling_layer=False
        )
    count = sum(p.numel() for p in bert.parameters()) + extra
    assert parts["embed.text"] + parts["layers"] == count
    both = sum(w * 2048 + 2048 + 2048 * 2048 + 2048 for w in (768, 2048))
    assert parts["heads.itc"] == 2 * both  # and slow ones
    # released: no norm over the cells, but a classifier and a pooler that nothing uses
    ours = sum(parts.values()) // 2
    assert ours - 2 * 2048 + 2049 * 1000 + 769 * 768 == 273_818_904
    towers = sum(n for part, n in parts.items() if part.startswith("embed.") or part == "layers")
    assert sum(n for part, n in parts.items() if part.startswith("slow.")) == towers


def test_what_wenlan_leaves_frozen():
    model = meta(wenlan.wenlan())
    freeze(model, Optim(factors=wenlan.FROZEN))
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    layers = {re.match(r"fusion\.layers\.(\d+)\..*\.(text|image)\.", n) for n in learned}
    layers = {(m[2], int(m[1])) for m in layers if m}
    text = {("text", n) for n in range(8, 16)}  # BERT's last four, and those on top
    assert layers == text | {("image", n) for n in range(4)}
    tower = {n.removeprefix("embed.image.tower.")[:8] for n in learned if ".tower." in n}
    assert {n for n in tower if not n.startswith("slow")} == {f"blocks.{n}" for n in range(3, 7)}
    assert not any(n.startswith("embed.text") for n in learned)
    assert any(n.startswith("heads.itc.project") for n in learned)


def test_multilingual_clip_projects_the_mean_through_two_layers():
    recipe = clip.multilingual_clip()
    (found,) = recipe.objectives.values()
    with torch.device("meta"):
        head = found.head(recipe.modalities, recipe.plan.widths)
    assert {k: tuple(v.shape) for k, v in head.project.state_dict().items()} == {
        "text.0.weight": (640, 768), "text.2.weight": (512, 640),
    }  # fmt: skip
    assert isinstance(head.project["text"][1], torch.nn.GELU)
    assert found.pools["text"] == "mean"
    assert recipe.mixture["pairs"].reader.languages == ()
    parts = parameters(recipe).parts
    # XLM-R base without pooler and row of segments, as open_clip counts it
    assert parts["embed.text"] + parts["layers"] == 277_453_056 - 768
    assert sum(parts.values()) == 366_778_113


@pytest.mark.parametrize(
    "tiny",
    [clip.clip_tiny, clip.multilingual_clip_tiny, siglip.siglip_tiny,
     siglip.siglip_multilingual_tiny, wenlan.wenlan_tiny],
)  # fmt: skip
def test_small_ones_keep_what_makes_the_system(tiny):
    small = tiny()
    big = PUBLISHED[small.name.removesuffix("-tiny")]
    (one,), (other,) = small.objectives.values(), big.objectives.values()
    kept = ("form", "pool", "temperature", "learned", "cosine", "momentum", "both", "weight")
    assert [getattr(one, k) for k in kept] == [getattr(other, k) for k in kept]
    assert bool(one.queue) == bool(other.queue)
    assert {s: type(p) for s, p in one.pools.items()} == {
        s: type(p) for s, p in other.pools.items()
    }
    assert small.modalities["text"].filled == big.modalities["text"].filled
    causal = [{s for b in r.plan.blocks.values() if isinstance(b, Attend) for s in b.causal}
              for r in (small, big)]  # fmt: skip
    assert causal[0] == causal[1]
