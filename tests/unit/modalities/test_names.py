"""Regions that are asked for a word piece of their class's name."""

import io
from dataclasses import replace

import numpy as np
import pytest

from crossloom.modalities.names import Names
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import vocabulary
from crossloom.units import Passage, keyed_rng

CAPTION = {"text": (Passage("de", "Ein Stern."),)}


@pytest.fixture
def names(world):
    return Names(names=str(world / "classes.tsv"), vocabulary=str(world / "tokenizer.model"))


def rows(world):
    lines = [x.split("\t") for x in (world / "classes.tsv").read_text("utf-8").splitlines()]
    return {code: [line[n] for line in lines[1:]] for n, code in enumerate(lines[0])}


def test_pieces_are_of_the_name_in_the_captions_language(names, world):
    vocab, named = vocabulary(names.vocabulary, "own"), rows(world)
    number = np.array([0, 3, 36, -1, 3])
    for language in ("en", "de", "zh"):
        sample = {"text": (Passage(language, "?"),)}
        seen = [names.ask(number, sample, keyed_rng(n)) for n in range(200)]
        for place, label in enumerate(number):
            drawn = {int(x[place]) for x in seen}
            if label <= 0:
                assert drawn == {-1}
            else:
                # every piece of the name, and no other, is asked for some time
                assert drawn == set(vocab.encode(named[language][label]).tolist())
        assert all((names.ask(number, sample, keyed_rng(7)) == seen[7]).all() for _ in range(2))


def test_languages_without_a_column_are_asked_for_nothing(names):
    for sample in ({"text": (Passage("cs", "?"),)}, {}, {"text": b"?"}):
        assert names.ask(np.array([1, 2]), sample, keyed_rng(0)).tolist() == [-1, -1]


def test_faults_of_the_table_are_named(names, tmp_path):
    with pytest.raises(ValueError, match=r"names 37 classes.*class 37"):
        names.ask(np.array([37]), CAPTION, keyed_rng(0))
    bad = tmp_path / "classes.tsv"
    bad.write_text("en\tde\nbackground\tHintergrund\nstar\n")
    with pytest.raises(ValueError, match=r"each row must have a name for each language"):
        replace(names, names=str(bad)).ask(np.array([1]), CAPTION, keyed_rng(0))
    with pytest.raises(ValueError, match=r"none\.tsv: names of classes cannot be read"):
        replace(names, names=str(tmp_path / "none.tsv")).ask(np.array([1]), CAPTION, keyed_rng(0))


def member(labels):
    data = io.BytesIO()
    count = len(labels)
    np.savez(
        data, features=np.ones((count, 4)), boxes=np.tile([0, 0, 5, 5], (count, 1)),
        size=np.array([10, 10]), labels=np.array(labels),
    )  # fmt: skip
    return data.getvalue()


@pytest.mark.parametrize(("background", "classes"), [(True, 37), (False, 36)])
def test_regions_number_their_names_with_background(names, world, background, classes):
    regions = Regions(features=4, classes=classes, background=background, names=names, overall=True)
    units = regions.decode({"regions.npz": member([1, 0, 36]), **CAPTION}, keyed_rng(0))
    vocab, german = vocabulary(names.vocabulary, "own"), rows(world)["de"]
    token = units.targets["token"].tolist()
    assert (token[0], token[2]) == (-1, -1)  # the whole image, and background
    assert token[1] in vocab.encode(german[1])
    assert token[3] in vocab.encode(german[36])
    target = regions.predictable()["token"]
    assert (target.dim, target.form) == (vocab.size, "index")


def test_names_need_classes(names):
    with pytest.raises(ValueError, match="names needs classes"):
        Regions(features=4, classes=0, names=names)


def test_features_and_boxes_of_length_one_leave_the_target_alone():
    """M3P: ``F.normalize`` of what is shown; hidden regions stay zeros."""
    import torch

    from crossloom.batch import Stream

    regions = Regions(
        features=4, classes=0, box=5, norm="norm_of_sum", unit_length=True, mask="zero", dropout=0.0
    )
    units = regions.decode({"regions.npz": member([1, 2])}, keyed_rng(0))
    assert units.targets["feature"].tolist() == [[1.0] * 4] * 2
    module = regions.embedder(8).double()
    content = {k: torch.tensor(v, dtype=torch.float64) for k, v in units.content.items()}
    stream = Stream(
        content=content, whole={}, position=torch.arange(2), hidden=torch.tensor([False, True]),
        length=torch.tensor([2]), start=torch.tensor([0]), example=torch.zeros(2).long(), longest=2,
    )  # fmt: skip
    box = torch.tensor([0, 0, 0.5, 0.5, 0.25], dtype=torch.float64)
    box = module.box(box / (0.25 + 0.25 + 0.0625) ** 0.5)
    shown = module.feature(torch.full((4,), 0.5, dtype=torch.float64))
    hidden = module.feature(torch.zeros(4, dtype=torch.float64))
    expected = torch.stack([module.norm(shown + box), module.norm(hidden + box)])
    assert torch.allclose(module(stream), expected)
