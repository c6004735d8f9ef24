"""What ``benchmarks/pictures.py`` and ``grid_regions.py`` make before anything is trained."""

from pathlib import Path

import pytest
import torch

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.training.recipe import load_recipe

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def test_weights_under_other_names_are_those_of_the_same_layers():
    import grid_regions
    import timm

    model = timm.create_model(grid_regions.TOWER, pretrained=False)
    renamed = {f"_{n}": v for n, v in enumerate(model.state_dict().values())}
    picture = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8).numpy()
    features, chances = grid_regions.look(grid_regions.classifier(renamed), picture)
    assert features.shape == (35, 1280)
    assert chances.shape == (35, 1001)
    assert torch.allclose(chances.sum(1), torch.ones(35))
    # the first region is the whole picture: what the classifier makes of all of it
    square = grid_regions.fit(picture, grid_regions.SIDE, None, None)
    pixels = (torch.from_numpy(square).float() - 127) / 128
    with torch.inference_mode():
        whole = model.eval()(pixels[None]).softmax(1)
    assert torch.allclose(chances[:1, 1:], whole, atol=1e-4)
    with pytest.raises(ValueError, match="shapes differ"):
        grid_regions.classifier(dict(list(renamed.items())[1:]))


def test_systems_are_made_for_the_sets(tmp_path):
    import pictures

    for name, seen in pictures.SYSTEMS.values():
        recipe = pictures.fitted(pictures.in_english(load_recipe(name)), seen, tmp_path)
        assert "answers" not in recipe.objectives
        for part in recipe.mixture.values():
            assert part.reader.languages == ("en",)
            assert part.shards == tuple(f"{s}{seen.suffix}/train-*.tar" for s in pictures.SETS)
        image = recipe.modalities["image"]
        assert getattr(image, "features", 0) == seen.features


def test_what_is_held_back_of_several_sets_is_searched_as_one(tmp_path):
    import pictures

    for part in ("coco/dev", "stories/test", "stories/train"):
        with ShardWriter(tmp_path / part.partition("/")[0], part.partition("/")[2]) as writer:
            writer.write("0", {"json": b"{}"})
    patterns = ("coco/dev-*.tar", "stories/test-*.tar")
    for _ in range(2):
        found = open_shards(pictures.as_one(tmp_path, patterns, tmp_path / "held"))
        assert [s.name for s in found] == ["held-000000", "held-000001"]
        assert sum(s.samples for s in found) == 2


def test_english_alone_never_sees_another_language(tmp_path):
    import pictures

    one, all_of_them = (pictures.uc2(languages) for languages in (("en",), ()))
    assert one.objectives == all_of_them.objectives
    assert {c.reader.languages for c in one.mixture.values()} == {("en",)}


def test_chance_is_of_the_pictures_that_a_language_tells_of():
    import pictures

    found = pictures.chance([40, 5])
    assert found == {"r1": (1 / 40 + 1 / 5) / 2, "r10": (1 / 4 + 1) / 2, "median_rank": 11.75}
