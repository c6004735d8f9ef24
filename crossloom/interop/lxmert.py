"""LXMERT as ``transformers`` keeps it (``modeling_lxmert.py``).

Read are ``LxmertForPreTraining``, ``LxmertForQuestionAnswering`` and ``LxmertModel`` (whose pooler
belongs to no head here and is left out). Answers have no names in a checkpoint: classes are called
by their numbers.

The library's loss on regions is a mean over all regions, masked or not, times 6.67; the detector's
confidence weighs the classes of objects and attributes of regions that are not hidden too. Here a
loss is a mean over the hidden regions, as the paper has it; ``everywhere: true`` and
``trusted: true`` make it the code's. The library never trains the first position and segment (it
takes row 0 of their tables for padding); here they are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.read import Texts
from crossloom.interop import bert
from crossloom.interop.bert import TEXT, require
from crossloom.interop.rules import Rule, both, read_all, same, write_all
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.plan import Attend, Plan
from crossloom.models.presets import cross_encoder
from crossloom.objectives.classify import Classify
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import BERT
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("lxmert",)
IMAGE = "image"
#: What ``config.json`` may leave out (``configuration_lxmert.py``); its norms have no setting.
_DEFAULTS = {
    **bert.DEFAULTS,
    "l_layers": 9,
    "r_layers": 5,
    "x_layers": 5,
    "visual_feat_dim": 2048,
    "visual_pos_dim": 4,
    "num_object_labels": 1600,
    "num_attr_labels": 400,
    "num_qa_labels": 9500,
}
#: By target, what the library calls the loss.
_REGIONS = {"class": "obj", "attribute": "attr", "feature": "feat"}


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of one of LXMERT's models.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    config = bert.checked({**_DEFAULTS, **config})
    weights = bert.modern(weights)
    objectives = _objectives(config, weights)
    captions = tuple(n for n in objectives if n != "answers")
    mixture = {
        "captions": Component(shards="train-*.tar", reader=Texts(), objectives=captions),
        "questions": Component(
            shards="train-*.tar", reader=Questions(), objectives=tuple(objectives)
        ),
    }
    if not captions:
        del mixture["captions"]
    if "answers" not in objectives:
        del mixture["questions"]
    found = Recipe(
        name="lxmert",
        data="shards",
        modalities={TEXT: bert.text_of(config, folder), IMAGE: regions_of(config)},
        plan=_plan(
            TEXT,
            IMAGE,
            tuple(config[f"{kind}_layers"] for kind in "lrx"),
            bert.plan_of({**config, "num_hidden_layers": 0}),
        ),
        objectives=objectives,
        mixture=mixture,
        steps=700_000,
        examples=256,
        optim=Optim(rate=1e-4, betas=(0.9, 0.999), epsilon=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=0.05),
    )
    prefix = "lxmert." if any(k.startswith("lxmert.") for k in weights) else ""
    return found, read_all(_rules(found, prefix), weights)


def regions_of(config: Mapping[str, Any]) -> Regions:
    """36 regions with their boxes; hidden ones show zeros, background is no class."""
    return Regions(
        features=config["visual_feat_dim"],
        classes=config["num_object_labels"],
        background=False,
        attributes=config["num_attr_labels"],
        box=config["visual_pos_dim"],
        limit=36,
        norm="mean_of_norms",
        mask="zero",
        dropout=config["hidden_dropout_prob"],
    )


def _objectives(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Objective]:
    """Section 3.1 of the paper: all of them on one pass, of which half show another sentence."""
    view = View(
        name="joint",
        streams=(TEXT, IMAGE),
        hide={TEXT: BERT, IMAGE: Hide(rate=0.15, show=0.1, swap=0.1)},
        mismatch=TEXT,
    )
    found: dict[str, Objective] = {}
    if "cls.predictions.bias" in weights:
        found["mlm"] = Reconstruct(view=view, stream=TEXT, target="token", matched_only=False)
        found["match"] = Match(view=view, pooled=(TEXT,))
    owner = ""
    for target, name in _REGIONS.items():
        if f"obj_predict_head.decoder_dict.{name}.weight" in weights:
            found[target] = Reconstruct(
                view=view, stream=IMAGE, target=target, tied=False, matched_only=False,
                loss="smooth_l1" if target == "feature" else "auto", shares=owner,
            )  # fmt: skip
            owner = owner or target
    if "answer_head.logit_fc.0.weight" in weights:
        found["answers"] = Classify(
            view=view,
            label="answers",
            classes=_answers(config),
            count=config["num_qa_labels"],
            pooled=(TEXT,),
            shares="match" if "match" in found else "",
        )
    return found


def _answers(config: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Names of the answers, where they are told; else the file that must list them in order."""
    told = {int(n): str(name) for n, name in (config.get("id2label") or {}).items()}
    known = sorted(told) == list(range(config["num_qa_labels"]))
    if not known or any(name == f"LABEL_{n}" for n, name in told.items()):
        return "answers.txt"
    return tuple(told[n] for n in sorted(told))


def _plan(text: str, image: str, counts: tuple[int, ...], like: Plan) -> Plan:
    """LXMERT's plan with so many layers of text, of regions and of both, and a width like."""
    plan = cross_encoder(
        text,
        image,
        text_layers=counts[0],
        image_layers=counts[1],
        cross=counts[2],
        width=like.inner,
        heads=like.heads,
    )
    return bert.shaped(plan, like)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of one of LXMERT's models, as its heads ask for.

    Raises:
        ValueError: the recipe's model is not one of LXMERT's.
    """
    text, image = _streams(recipe)
    counts, plan = _counts(recipe), recipe.plan
    require(plan == _plan(text, image, counts, plan), "its layers are not those of LXMERT")
    require(plan.epsilon == 1e-12, f"plan.epsilon is {plan.epsilon}; it is always 1e-12 there")
    regions = recipe.modalities[image]
    assert isinstance(regions, Regions)
    heads = _heads(recipe)
    answers = recipe.objectives.get(heads.get("answers", ""))
    config = {
        "model_type": "lxmert",
        **bert.config_of(recipe, text),
        **{f"{kind}_layers": n for kind, n in zip("lrx", counts, strict=True)},
        "visual_feat_dim": regions.features,
        "visual_pos_dim": regions.box,
        "num_object_labels": regions.classes,
        "num_attr_labels": regions.attributes,
        "num_qa_labels": 0,
        "task_qa": "answers" in heads,
        "task_obj_predict": any(t in heads for t in _REGIONS),
        **{f"visual_{name}_loss": target in heads for target, name in _REGIONS.items()},
    }
    del config["layer_norm_eps"]
    if isinstance(answers, Classify):
        config["num_qa_labels"] = answers.count or len(answers.names())
        # of a list that is not here, or not this one, they stay as nameless as they came
        with suppress(ValueError):
            config["id2label"] = dict(enumerate(answers.names()))
    asked = replace(
        regions_of(config), field=regions.field, limit=regions.limit, overlap=regions.overlap,
        dropout=regions.dropout,
    )  # fmt: skip
    require(regions == asked, f"{image}: regions are embedded otherwise than there")
    if "token" in heads:
        require("match" in heads, "it has a head on words and none on matches")
        architecture = "LxmertForPreTraining"
    else:
        architecture = "LxmertForQuestionAnswering" if "answers" in heads else "LxmertModel"
    config["architectures"] = [architecture]
    prefix = "" if architecture == "LxmertModel" else "lxmert."
    return config, write_all(_rules(recipe, prefix), weights)


def _streams(recipe: Recipe) -> tuple[str, str]:
    texts = [s for s, m in recipe.modalities.items() if isinstance(m, Text)]
    images = [s for s, m in recipe.modalities.items() if isinstance(m, Regions)]
    require(
        len(recipe.modalities) == 2 and len(texts) == len(images) == 1,
        "its streams are not one text and one of regions",
    )
    return texts[0], images[0]


def _counts(recipe: Recipe) -> tuple[int, ...]:
    """Layers of text alone, of regions alone, and of both."""
    kinds = []
    for layer in recipe.plan.layers:
        start = layer.blocks[0]
        kinds.append(tuple(start.reads) if isinstance(start, Attend) else ())
    text, image = _streams(recipe)
    return tuple(kinds.count(k) for k in ((text,), (image,), (text, image)))


def _heads(recipe: Recipe) -> dict[str, str]:
    """Names of objectives, by what they predict: a target, ``match`` or ``answers``.

    Raises:
        ValueError: heads that have one part between them there do not share it here.
    """
    text, image = _streams(recipe)
    found: dict[str, str] = {}
    for target, stream in (("token", text), *((t, image) for t in _REGIONS)):
        name = bert.first(
            recipe, Reconstruct, lambda o, s=stream, t=target: o.stream == s and o.target == t
        )
        found |= {target: name} if name else {}
    for kind, what in ((Match, "match"), (Classify, "answers")):
        name = bert.first(recipe, kind, lambda o: o.pooled == (text,) and o.pool == "first")
        found |= {what: name} if name else {}
    for group in (tuple(_REGIONS), ("match", "answers")):
        names = [found[x] for x in group if x in found]
        for name in names[1:]:
            shares = recipe.objectives[name].shares
            require(shares == names[0], f"objectives.{name}: does not share with {names[0]}")
    return found


def _rules(recipe: Recipe, prefix: str) -> list[Rule]:
    (text, image), heads = _streams(recipe), _heads(recipe)
    encoder, ours = f"{prefix}encoder", f"embed.{image}"
    rules = bert.embedding(text, f"{prefix}embeddings")
    for part, theirs in (("feature", "visn"), ("box", "box")):
        fc = "visn_fc.visn_fc" if part == "feature" else "visn_fc.box_fc"
        rules += both(f"{ours}.{part}", f"{encoder}.{fc}")
        rules += both(f"{ours}.{part}_norm", f"{encoder}.visn_fc.{theirs}_layer_norm")
    words, regions, crossed = _counts(recipe)
    for number in range(words):
        rules += bert.layer(number, text, f"{encoder}.layer.{number}")
    for number in range(regions):
        rules += bert.layer(words + number, image, f"{encoder}.r_layers.{number}")
    for number in range(crossed):
        rules += _crossed(
            words + regions + number, {text: "lang", image: "visn"}, f"{encoder}.x_layers.{number}"
        )
    if "token" in heads:
        rules += bert.prediction(heads["token"])
    objects = [t for t in _REGIONS if t in heads]
    if objects:
        rules += bert.transform(heads[objects[0]], "obj_predict_head.transform")
    for target in objects:
        theirs = f"obj_predict_head.decoder_dict.{_REGIONS[target]}"
        head = f"heads.{heads[target]}"
        rules += [
            same(f"{head}.decoder", f"{theirs}.weight"),
            same(f"{head}.bias", f"{theirs}.bias"),
        ]
    pooled = [t for t in ("match", "answers") if t in heads]
    if pooled:
        rules += both(f"heads.{heads[pooled[0]]}.pooler.dense.{text}", f"{prefix}pooler.dense")
    if "match" in heads:
        rules += both(f"heads.{heads['match']}.score", "cls.seq_relationship")
    if "answers" in heads:
        for number in (0, 2, 3):
            theirs = f"answer_head.logit_fc.{number}"
            rules += both(f"heads.{heads['answers']}.mlp.{number}", theirs)
    return rules


def _crossed(number: int, names: Mapping[str, str], theirs: str) -> list[Rule]:
    """A layer in which both read each other, then themselves, then feed forward."""
    at = f"{theirs}.visual_attention"
    rules = bert.attend(number, 0, "shared", f"{at}.att", f"{at}.output")
    for stream, name in names.items():
        at = f"{theirs}.{name}_self_att"
        rules += bert.attend(number, 1, stream, f"{at}.self", f"{at}.output")
        rules += bert.feed(number, 2, stream, f"{theirs}.{name}_inter", f"{theirs}.{name}_output")
    return rules
