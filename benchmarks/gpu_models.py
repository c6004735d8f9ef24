"""Training steps of four models beside peers: sections of ``gpu.py``.

Both sides of a pair have the same examples, bf16 autocast, AdamW (fused), gradients clipped, no
dropout. Units that are padding are not counted on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from made import Ours, collated, padded, real, rectangle, regions, vocabularyless, words
from measuring import Row, added, seconds
from torch import Tensor, nn

from crossloom.batch import Batch
from crossloom.data_pipelines.read import Texts
from crossloom.interop import lxmert, open_clip, xlm_r
from crossloom.interop.towers import IMAGE, TEXT
from crossloom.modalities.pictures import cut
from crossloom.models.presets import co_attention, single_stream
from crossloom.recipes import uniter as of_uniter
from crossloom.recipes import vilbert as of_vilbert
from crossloom.training.recipe import Component, Recipe
from crossloom.units import keyed_rng

NOWHERE = Path("nowhere")
#: Relative errors that bf16 may have: of a mean loss, and of all gradients end to end.
LOSS, GRADIENT = 0.01, 0.06


@dataclass(frozen=True)
class Pair:
    """What a section compares on one kind of batch."""

    section: str
    name: str
    unit: str  #: what is counted, a second
    count: float  #: of it in a batch, or in all of them together
    device: torch.device
    goal: float | None = None

    def rows(
        self, who: str, step: Callable[[], Any], mfu: Callable[[float], float | None] | None = None
    ) -> Iterator[Row]:
        """Rate, memory and share of the peak of one side."""
        step()
        memory = added(step, self.device)
        took = seconds(step, self.device, 10 if self.device.type == "cuda" else 1)
        what, goal = f"{self.name}, {who}", self.goal if who == "crossloom" else None
        yield Row(self.section, what, f"{self.unit}/s", self.count / took, goal)
        if mfu:
            yield Row(self.section, f"{what}: MFU", "share", mfu(took))
        yield Row(self.section, f"{what}: memory added by a step", "GB",
                  None if memory is None else memory / 1e9)  # fmt: skip

    def ours(self, model: Ours, batches: Sequence[Batch], who: str) -> Iterator[Row]:
        """The rows of a model here, on one batch or on several in turn."""
        ready = [model.ready(b) for b in batches]

        def step() -> None:
            for batch in ready:
                model.step(batch)

        def mfu(took: float) -> float | None:
            shares = [model.mfu(b, took) for b in batches]
            return None if None in shares else sum(x for x in shares if x is not None)

        yield from self.rows(who, step, mfu)


class Peer:
    """Another library's model, stepped as ours are."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model.to(device).train(), device
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def step(self, loss: Callable[[], Tensor]) -> None:
        """Forward, backward, clip, update."""
        with torch.autocast(self.device.type, torch.bfloat16):
            found = loss()
        found.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def agreement(
    section: str, name: str, recipe: Recipe, batch: Batch, device: torch.device, weights: Any = None
) -> Iterator[Row]:
    """The fast path against plain float32: losses, and gradients."""
    fast, plain = (Ours(recipe, device, weights, half=half) for half in (True, False))
    if weights is None:
        fast.model.load_state_dict(plain.model.state_dict())
    ours, exact = fast.losses(batch), plain.losses(batch)
    off = max(abs(ours[o] / exact[o] - 1) for o in ours)
    yield Row(section, f"{name}: losses in bf16 against float32", "error", off, LOSS)
    found, wanted = fast.gradient(batch), plain.gradient(batch)
    off = float((found - wanted).norm() / wanted.norm())
    yield Row(section, f"{name}: gradients in bf16 against float32", "error", off, GRADIENT)


def beside_peer(section: str, name: str, ours: float, theirs: float) -> Row:
    """A loss in float32 against the peer's."""
    what = f"{name}: loss in float32 against the peer's"
    return Row(section, what, "error", abs(ours / theirs - 1), 1e-3)


def timed(
    pair: Pair, recipe: Recipe, batches: Sequence[Batch], weights: Any = None
) -> Iterator[Row]:
    """Ours as it is, and on a GPU with its layers compiled."""
    if pair.device.type != "cuda":
        yield from pair.ours(Ours(recipe, pair.device, weights), batches, "crossloom")
        return
    plain = replace(pair, goal=None)
    yield from plain.ours(Ours(recipe, pair.device, weights), batches, "crossloom, not compiled")
    try:
        compiled = Ours(recipe, pair.device, weights, compiled=True)
        yield from pair.ours(compiled, batches, "crossloom")
    except Exception as error:  # the figures above stand
        note = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        yield Row(pair.section, f"{pair.name}, crossloom", f"{pair.unit}/s", None, pair.goal, note)
    finally:
        torch._dynamo.reset()


def ratio(rows: Sequence[Row], pair: Pair, other: str, goal: float | None) -> Row:
    """Our rate over another's; the better of ours, compiled or not."""
    rates = {r.what: r.value for r in rows if r.unit == f"{pair.unit}/s"}
    mine = [v for w, v in rates.items() if w.startswith(f"{pair.name}, crossloom") and v]
    theirs = rates.get(f"{pair.name}, {other}")
    value = max(mine) / theirs if mine and theirs else None
    return Row(pair.section, f"{pair.name}: crossloom over {other}", "times", value, goal)


def kept(rows: Iterator[Row], into: list[Row]) -> Iterator[Row]:
    """Rows as they come, kept too."""
    for row in rows:
        into.append(row)
        yield row


def tensors(values: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """All on a device."""
    return {k: v.to(device) for k, v in values.items()}


# --- 1 ------------------------------------------------------------------------------------------


def mmlm(device: torch.device, small: bool) -> Iterator[Row]:
    """XLM-R-base, 15 % of the ids hidden: blocks of 512, and texts as long as texts are."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    width, layers, size, longest, total = (
        (32, 2, 300, 32, 256) if small else (768, 12, 250_002, 512, 32_768)
    )
    torch.manual_seed(0)
    theirs = XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=size, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64), intermediate_size=4 * width,
        max_position_embeddings=longest + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    ))  # fmt: skip
    weights = {k: v.clone() for k, v in theirs.state_dict().items()}
    recipe, own = xlm_r.read(theirs.config.to_dict(), weights, NOWHERE)
    recipe = vocabularyless(recipe)
    rng = keyed_rng("gpu", "mmlm")
    # paragraphs of the web: log-normal, half of them below 40 pieces, the longest cut
    texts = np.clip(rng.lognormal(np.log(40), 0.9, total), 6, longest).astype(int)
    kinds = {
        "blocks of 512": np.full(total // longest, longest),
        "texts of all lengths": texts[: int(np.searchsorted(texts.cumsum(), total))],
    }
    for name, lengths in kinds.items():
        modality: Any = recipe.modalities[TEXT]
        batch = collated(recipe, [{TEXT: words(rng, n, modality)} for n in lengths])
        stream = batch.views[recipe.objectives["mmlm"].view.name].streams[TEXT]
        yield from agreement("mmlm", name, recipe, batch, device, own)
        given = tensors(_masked(batch.aims["mmlm"], stream, modality.mask), device)
        exact = Ours(recipe, device, own, half=False)
        theirs.load_state_dict(weights)
        theirs.to(device)
        with torch.no_grad():
            yield beside_peer(
                "mmlm", name, exact.losses(batch)["mmlm"], float(_told(exact, batch, theirs, given))
            )
        del exact
        goal = None if small or name != "blocks of 512" else 400_000.0
        pair, rows = Pair("mmlm", name, "token", float(lengths.sum()), device, goal), list[Row]()
        yield from kept(timed(pair, recipe, [batch], own), rows)
        yield from kept(_peer_mmlm(pair, theirs, given), rows)
        yield ratio(rows, pair, "transformers", None)
        share = 1 - lengths.sum() / given["input_ids"].numel()
        yield Row("mmlm", f"{name}: padding of the peer's batch", "share", float(share))


def _told(exact: Ours, batch: Batch, theirs: Any, given: Mapping[str, Tensor]) -> Tensor:
    """Their loss, a few examples at a time: logits of all places in float32 would not fit."""
    total, count = torch.zeros((), device=exact.device), 0
    for start in range(0, len(given["input_ids"]), 4):
        some = {k: v[start : start + 4] for k, v in given.items()}
        scored = int((some["labels"] >= 0).sum())
        if scored:
            total, count = total + theirs(**some).loss * scored, count + scored
    return total / count


def _peer_mmlm(pair: Pair, theirs: nn.Module, given: Mapping[str, Tensor]) -> Iterator[Row]:
    """The largest part of the batch that the peer has room for."""
    peer = Peer(theirs, pair.device)
    whole = len(given["input_ids"])
    for part in (1, 2, 4, 8):
        some = {k: v[: whole // part] for k, v in given.items()}
        here = replace(pair, count=float(some["attention_mask"].sum()), goal=None)
        try:
            yield from here.rows(
                "transformers", lambda some=some: peer.step(lambda: peer.model(**some).loss)
            )
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return


def _masked(aim: Any, stream: Any, mask: int) -> dict[str, Tensor]:
    """What a masked model of ``transformers`` is given; -100 where nothing is predicted."""
    token = np.where(stream.hidden, mask, stream.content["token"])
    label = np.full(len(token), -100)
    label[aim.index[aim.weight > 0]] = aim.value[aim.weight > 0]
    return {
        "input_ids": rectangle(token, stream, 1),
        "attention_mask": torch.from_numpy(real(stream).astype(np.int64)),
        "labels": rectangle(label, stream, -100),
    }


# --- 2 ------------------------------------------------------------------------------------------


def clip(device: torch.device, small: bool) -> Iterator[Row]:
    """CLIP ViT-B/16, captions of 8 to 30 pieces (open_clip fills them up to 77)."""
    tower = {"width": 32, "layers": 2}
    config: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8,
                     "layers": 12},
    }  # fmt: skip
    if small:
        config = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "patch_size": 4, "head_width": 16, **tower},
            "text_cfg": {"context_length": 32, "vocab_size": 100, "heads": 2, **tower},
        }
    examples = 6 if small else 512
    theirs = None
    if small and not find_spec("open_clip"):
        yield Row("clip", "section", "", note="open_clip is not installed")
        return
    if find_spec("open_clip"):
        from open_clip import CLIP

        torch.manual_seed(0)
        theirs = CLIP(**config, output_dict=True)
    recipe, own = _clip(config, theirs)
    rng = keyed_rng("gpu", "clip")
    text: Any = recipe.modalities[TEXT]
    image: Any = recipe.modalities[IMAGE]
    made = config["vision_cfg"]["image_size"]
    pictures = rng.integers(0, 256, (examples, 3, made, made), np.uint8)
    lengths = rng.integers(8, 31, examples)
    units = [
        {TEXT: words(rng, n, text), IMAGE: image._units(cut(p, image.patch))}
        for n, p in zip(lengths, pictures, strict=True)
    ]
    batch = collated(recipe, units)
    name, rows = "ViT-B/16", list[Row]()
    part = collated(recipe, units[:64])
    yield from agreement("clip", name, recipe, part, device, own)
    pair = Pair("clip", name, "example", examples, device, None if small else 2400.0)
    if theirs is None:
        yield from timed(pair, recipe, [batch], own)
        yield Row("clip", f"{name}, open_clip", "example/s", note="open_clip is not installed")
        return
    from open_clip.loss import ClipLoss

    theirs.to(device)
    ids = torch.zeros(examples, config["text_cfg"]["context_length"], dtype=torch.int64)
    for row, one in zip(ids, units, strict=True):
        token = torch.from_numpy(one[TEXT].content["token"])
        row[: len(token)] = token
        row[len(token) - 1] = config["text_cfg"]["vocab_size"] - 1  # found as the highest id
    for one in units:
        one[TEXT].content["token"][-1] = config["text_cfg"]["vocab_size"] - 1
    batch, part = collated(recipe, units), collated(recipe, units[:64])
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (image.mean, image.deviation))
    pixels = ((torch.from_numpy(pictures).float() / 255 - mean) / deviation).to(device)
    ids = ids.to(device)

    def loss(model: Any, count: int = examples) -> Tensor:
        out = model(pixels[:count], ids[:count])
        return ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])

    exact = Ours(recipe, device, own, half=False)
    with torch.no_grad():
        yield beside_peer("clip", name, exact.losses(part)["itc"], float(loss(theirs, 64)))
    del exact
    yield from kept(timed(pair, recipe, [batch], own), rows)
    peer = Peer(theirs, device)
    run = torch.compile(theirs) if device.type == "cuda" else theirs
    peers = replace(pair, goal=None).rows("open_clip", lambda: peer.step(lambda: loss(run)))
    yield from kept(peers, rows)
    torch._dynamo.reset()
    yield ratio(rows, pair, "open_clip", None if small else 1.05)


def _clip(config: Mapping[str, Any], theirs: nn.Module | None) -> tuple[Recipe, Any]:
    if theirs is None:
        from crossloom.recipes.clip import clip_b16

        return vocabularyless(clip_b16()), None
    weights = {k: v.clone() for k, v in theirs.state_dict().items()}
    recipe, own = open_clip.read({"model_cfg": dict(config)}, weights, NOWHERE)
    return vocabularyless(recipe), own


# --- 3 ------------------------------------------------------------------------------------------


def uniter_case(small: bool, examples: int) -> tuple[Recipe, list[Batch]]:
    """UNITER's tasks 2 : 2 : 1 : 1, captions of some 18 pieces with 10 to 100 regions, some 36."""
    recipe = of_uniter.uniter()
    plan = recipe.plan
    if small:
        plan = replace(single_stream((TEXT, IMAGE), layers=2, width=32, heads=2), epsilon=1e-12)
    objectives = {n: o for n, o in recipe.objectives.items() if n != "wra"}
    drawn = Component(shards="none.tar", reader=Texts(), objectives=tuple(objectives))
    recipe = replace(
        _shrunk(recipe, small), plan=plan, objectives=objectives, mixture={"all": drawn}
    )
    recipe = vocabularyless(recipe)
    text: Any = recipe.modalities[TEXT]
    image: Any = recipe.modalities[IMAGE]
    rng = keyed_rng("gpu", "uniter")
    batches = []
    for task in ("mlm", "itm", "mlm", "itm", "mrfr", "mrckl"):
        captions = np.clip(rng.lognormal(np.log(17), 0.35, examples), 6, 60).astype(int)
        seen = np.clip(rng.lognormal(np.log(33), 0.45, examples), 10, 100).astype(int)
        units = [
            {TEXT: words(rng, n, text), IMAGE: regions(rng, m, image)}
            for n, m in zip(captions, seen, strict=True)
        ]
        batches.append(collated(recipe, units, (task,)))
    return recipe, batches


def _shrunk(recipe: Recipe, small: bool) -> Recipe:
    """With small tables and features."""
    if not small:
        return recipe
    text = replace(recipe.modalities[TEXT], size=200)  # type: ignore[call-arg]
    image = replace(recipe.modalities[IMAGE], features=16, classes=12)  # type: ignore[call-arg]
    return replace(recipe, modalities={TEXT: text, IMAGE: image})


def uniter(device: torch.device, small: bool) -> Iterator[Row]:
    """UNITER-base beside the same model on the same batches filled up to their longest."""
    examples = 4 if small else 256
    recipe, batches = uniter_case(small, examples)
    weights = Ours(recipe, torch.device("cpu")).model.state_dict()
    for batch in (batches[0], batches[1], batches[4], batches[5]):
        (task,) = (n for n, count in batch.counts.items() if count)
        yield from agreement("uniter", task, recipe, batch, device, weights)
    full = [padded(b, recipe) for b in batches]
    exact = Ours(recipe, device, weights, half=False)
    pairs = [(exact.losses(b), exact.losses(p)) for b, p in zip(batches, full, strict=True)]
    off = max(abs(a[o] / b[o] - 1) for a, b in pairs for o in a)
    yield Row("uniter", "losses in float32, padded against not", "error", off, 1e-4)
    del exact
    goal = None if small else 8000.0
    pair, rows = Pair("uniter", "mixture", "example", 6 * examples, device, goal), list[Row]()
    yield from kept(timed(pair, recipe, batches, weights), rows)
    model = Ours(recipe, device, weights)
    yield from kept(pair.ours(model, full, "padded"), rows)
    yield ratio(rows, pair, "padded", None if small else 2.5)


# --- 4 ------------------------------------------------------------------------------------------


def crossed(device: torch.device, small: bool) -> Iterator[Row]:
    """LXMERT and ViLBERT (captions of 8 to 30 pieces, 36 regions) beside transformers' LXMERT."""
    from transformers import LxmertConfig, LxmertForPreTraining

    shape: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if small:
        shape |= {
            "vocab_size": 200, "hidden_size": 32, "num_attention_heads": 2, "l_layers": 2,
            "intermediate_size": 64, "r_layers": 1, "x_layers": 1, "visual_feat_dim": 16,
            "num_object_labels": 12, "num_attr_labels": 5, "max_position_embeddings": 64,
        }  # fmt: skip
    torch.manual_seed(0)
    theirs = LxmertForPreTraining(LxmertConfig(task_qa=False, **shape))
    saved = {k: v.clone() for k, v in theirs.state_dict().items()}
    recipe, own = lxmert.read(theirs.config.to_dict(), saved, NOWHERE)
    recipe = vocabularyless(recipe)
    examples = 4 if small else 256
    batch = _captioned(recipe, examples, 36)
    yield from agreement("crossed", "lxmert", recipe, batch, device, own)
    theirs.to(device)
    given, labels = _of_lxmert(batch, device, recipe.modalities[TEXT].mask)  # type: ignore[attr-defined]
    exact = Ours(recipe, device, own, half=False)
    with torch.no_grad():
        told = F.cross_entropy(
            theirs(**given).prediction_logits.flatten(0, 1).float(), labels["labels"].flatten()
        )
        yield beside_peer("crossed", "lxmert: mlm", exact.losses(batch)["mlm"], float(told))
    del exact
    rows: list[Row] = []
    pair = Pair("crossed", "lxmert", "example", examples, device)
    yield from kept(timed(pair, recipe, [batch], own), rows)
    peer = Peer(theirs, device)
    for row in pair.rows("transformers", lambda: peer.step(lambda: theirs(**given, **labels).loss)):
        # the peer of both
        rows += [row, replace(row, what=row.what.replace("lxmert", "vilbert"))]
        yield row
    yield ratio(rows, pair, "transformers", None if small else 2.0)
    other = _shrunk(of_vilbert.vilbert(), small)
    if small:
        plan = co_attention(TEXT, IMAGE, first=1, pairs=1, width=32, heads=2, image_width=48,
                            bridge=32, bridge_heads=2, image_hidden=48)  # fmt: skip
        other = replace(other, plan=plan)
    other = vocabularyless(other)
    batch = _captioned(other, examples, 36)
    yield from agreement("crossed", "vilbert", other, batch, device)
    pair = replace(pair, name="vilbert")
    yield from kept(timed(pair, other, [batch]), rows)
    yield ratio(rows, pair, "transformers", None if small else 2.0)


def _captioned(recipe: Recipe, examples: int, count: int) -> Batch:
    rng = keyed_rng("gpu", "crossed")
    text: Any = recipe.modalities[TEXT]
    image: Any = recipe.modalities[IMAGE]
    return collated(recipe, [
        {TEXT: words(rng, int(n), text), IMAGE: regions(rng, count, image)}
        for n in rng.integers(8, 31, examples)
    ])  # fmt: skip


def _of_lxmert(
    batch: Batch, device: torch.device, mask: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What LXMERT of ``transformers`` is given, and its labels: words, regions and matches."""
    (view,) = batch.views.values()
    text, image = view.streams[TEXT], view.streams[IMAGE]
    words = _masked(batch.aims["mlm"], text, mask)
    shown = image.content["feature"] * ~image.hidden[:, None]
    given = {
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "visual_feats": rectangle(shown, image),
        "visual_pos": rectangle(image.content["box"], image),
    }
    targets = {}
    for ours, theirs in (("class", "obj"), ("attribute", "attr"), ("feature", "feat")):
        aim = batch.aims[ours]
        value = np.zeros((len(image.position), *aim.value.shape[1:]), aim.value.dtype)
        weight = np.zeros(len(image.position), np.float32)
        value[aim.index], weight[aim.index] = aim.value, aim.weight
        pair = (rectangle(value, image), rectangle(weight, image))
        targets[theirs] = tuple(x.to(device) for x in pair)
    matched = torch.from_numpy(batch.aims["match"].value).to(device)
    labels = {"labels": words["labels"].to(device), "matched_label": matched}
    return tensors(given, device), {**labels, "obj_labels": targets}
