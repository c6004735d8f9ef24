"""Oscar and Oscar+: as the papers and their code say, against the formulas written out."""

from collections import Counter

import pytest
import torch
from written_out import (
    assert_every_parameter_learns,
    bert,
    cross_entropy,
    drawn,
    layers,
    linear,
    logits,
    mean_losses,
    norm,
    part,
    set_up,
    transform,
)

from crossloom.training.overview import parameters
from crossloom.training.recipe import load_recipe


@pytest.mark.parametrize(("name", "classes", "normed"), [("oscar", 2, 0), ("oscar-plus", 3, 1)])
def test_parameters(name, classes, normed):
    counted = parameters(load_recipe(name)).parts
    # BertImgForPreTraining with its pooler, 2,054 numbers of a region
    head = transform(768) + 30_522 + 768 * 768 + 768 + classes * 768 + classes
    code = bert(30_522, 768, 12) + head + 2054 * 768 + 768 + normed * 2 * 768
    assert sum(counted.values()) == code + 30_522  # the tags' own bias


@pytest.mark.parametrize("name", ["oscar", "oscar-plus"])
def test_one_view_of_three_streams(name):
    recipe = load_recipe(name)
    assert len({o.view.name for o in recipe.objectives.values()}) == 1
    view = recipe.objectives["words"].view
    assert view.streams == ("text", "tags", "image")
    assert set(view.hide) == {"text", "tags"}
    assert all((h.rate, h.show, h.swap, h.by) == (0.15, 0.1, 0.1, "unit") for h in
               view.hide.values())  # fmt: skip
    assert recipe.tied == {"tags": "text"}
    assert recipe.modalities["tags"].segment == 1
    assert recipe.modalities["image"].limit == 50
    reads = recipe.plan.layers[0].blocks[0].reads
    assert all(read == view.streams for read in reads.values())
    weights = [recipe.objectives[o].weight for o in ("words", "tags", "contrast")]
    assert weights == [0.5, 0.5, 1]
    assert (recipe.optim.rate, recipe.optim.clip, recipe.schedule.warmup) == (5e-5, 10, 0)


@pytest.mark.parametrize("name", ["oscar-tiny", "oscar-plus-tiny"])
def test_losses(name, world):
    model, stack = set_up(name, world, seed=2)
    text, image = model.embed["text"], model.embed["image"]
    for component in ("captions", "questions"):
        (batch,) = drawn(stack, component)
        view, aims = batch.views["tagged"], batch.aims
        words, tags = [], []
        for example in range(view.examples):
            rows = []
            for segment, stream in enumerate(view.streams[s] for s in ("text", "tags")):
                at = part(stream, example)
                token = torch.where(stream.hidden[at], text.mask, stream.content["token"][at])
                x = text.token.weight[token] + text.position.weight[: len(at)]
                rows.append(norm(x + text.segment.weight[segment], text.norm))
            regions = view.streams["image"]
            at = part(regions, example)
            both = torch.cat([regions.content[n][at].float() for n in ("box", "feature")], 1)
            assert both.shape[1] == 64 + 6
            seen = linear(both, image.feature)
            rows.append(norm(seen, image.norm) if name == "oscar-plus-tiny" else seen)
            states = layers(model, torch.cat(rows))
            words.append(states[: len(rows[0])])
            tags.append(states[len(rows[0]) : len(rows[0]) + len(rows[1])])
        said = mean_losses(model, batch)
        lender = model.heads["words"].transform
        for objective, states in (("words", words), ("tags", tags)):
            aim, head = aims[objective], model.heads[objective]
            out = logits(torch.cat(states)[aim.index], head, text.token.weight, lender)
            assert torch.allclose(said[objective], cross_entropy(out, aim.value), atol=1e-5)
        head = model.heads["contrast"]
        first = torch.stack([w[0] for w in words])
        out = linear(torch.tanh(linear(first, head.pooler.dense["text"])), head.score)
        expected = cross_entropy(out, aims["contrast"].value)
        assert torch.allclose(said["contrast"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shares"), [("oscar-tiny", {1: 0.5, 0: 0.5}),
                         ("oscar-plus-tiny", {0: 0.5, 1: 0.25, 2: 0.25})],
)  # fmt: skip
def test_half_of_the_triples_are_spoiled(name, shares, world):
    """Oscar: 0 is foreign tags; Oscar+: 1 is foreign tags, 2 a foreign text. All are predicted."""
    _, stack = set_up(name, world, examples=30)
    said, asked = Counter(), Counter()
    for batch in drawn(stack, "captions", 15, before=80):
        labels = batch.aims["contrast"].value
        said.update(labels.tolist())
        example = batch.views["tagged"].streams["tags"].example
        asked.update(labels[example[batch.aims["tags"].index].unique()].tolist())
    total = sum(said.values())
    assert total >= 400
    for label, share in shares.items():
        assert said[label] / total == pytest.approx(share, abs=0.07)
        assert asked[label] > 0
    assert set(said) == set(shares)


def test_oscar_plus_reads_answers_as_tags(world):
    """VinVL, section 3.2: a question with its answer, a caption with its tags."""
    _, stack = set_up("oscar-plus-tiny", world)
    _, oscar = set_up("oscar-tiny", world)
    answers = set((world / "answers.txt").read_text("utf-8").split())
    names = set((world / "classes.txt").read_text("utf-8").split())
    pieces = stack.collator.modalities["tags"].vocab.pieces

    def tags(one):
        (batch,) = drawn(one, "questions")
        stream = batch.views["tagged"].streams["tags"]
        token = stream.content["token"].clone()
        token[batch.aims["tags"].index] = batch.aims["tags"].value
        for example in range(len(stream.length)):
            at = part(stream, example)[1:-1]
            yield "".join(pieces[t] for t in token[at]).replace("▁", " ").split()

    assert all(len(x) == 1 and set(x) <= answers for x in tags(stack))
    assert all(len(x) > 1 and set(x) <= names for x in tags(oscar))


@pytest.mark.parametrize("name", ["oscar-tiny", "oscar-plus-tiny"])
def test_every_parameter_learns_in_every_step(name, world):
    assert_every_parameter_learns(*set_up(name, world), ["captions", "questions"])
