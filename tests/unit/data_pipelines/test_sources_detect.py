"""Regions computed by a detector of torchvision."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fixtures_sources as make
import numpy as np
import pytest
import torch
from PIL import Image

from crossloom.data_pipelines.sources import Skipped, SourceError, coco, detect
from crossloom.data_pipelines.sources.detect import Detector
from crossloom.data_pipelines.sources.region_features import BadRegions, Named
from crossloom.modalities.regions import Regions
from crossloom.units import keyed_rng

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
CLASSES = 7


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> bytes:
    """A JPEG of noise, so that the detector sees something everywhere."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(NAME, weights=None, weights_backbone=None, num_classes=CLASSES)
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save(model.state_dict(), path)
    return path


def arrays(data: Any) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def test_detect_in_a_folder_of_images(tmp_path: Path, weights: Path) -> None:
    for name, seed in (("a.jpg", 1), ("b.jpg", 2), ("c.jpg", 3)):
        make.put(tmp_path / f"in/{name}", picture(seed))
    make.put(tmp_path / "in/d.jpg", "no image")
    make.put(tmp_path / "in/e.jpg", b"\xff\xd8\xff and no more")
    make.put(tmp_path / "in/c.png", picture(4))
    options: Any = {"model": NAME, "weights": str(weights), "batch": 2, "device": "cpu"}
    report = detect.convert(tmp_path / "in", tmp_path / "out", **options, least=5, most=6)
    assert report.counts == {"train": {"samples": 3, "images": 3, "regions": 3}}
    assert report.skipped == {
        "another image has the name but for its ending": Skipped(1, ("c.png",)),
        "image is neither JPEG nor PNG": Skipped(1, ("d.jpg",)),
        "image is undecodable": Skipped(1, ("e.jpg",)),
    }
    members = make.samples(tmp_path / "out", "train")["b"]
    assert members["json"] == {"id": "b.jpg"}
    found = arrays(members["regions.npz"])
    assert 5 <= len(found["features"]) <= 6
    assert found["size"].tolist() == [48, 32]
    assert found["probabilities"].shape[1] == CLASSES
    np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=5e-3)
    chance = found["probabilities"]
    chosen = chance[np.arange(len(chance)), found["labels"]]
    assert (found["labels"] > 0).all()
    np.testing.assert_allclose(chosen, chance[:, 1:].max(1), atol=2e-4)
    units = Regions(features=1024, classes=CLASSES).decode(members, keyed_rng("x"))
    assert len(units) == len(found["features"])
    detect.convert(tmp_path / "in", tmp_path / "again", **options, least=5, most=6)
    assert make.files(tmp_path / "out") == make.files(tmp_path / "again")


def test_detect_agrees_with_torchvision(weights: Path) -> None:
    detector = Detector(NAME, str(weights), "cpu", least=1, most=50, threshold=0.0)
    images = [torch.rand(3, 40, 60), torch.rand(3, 64, 48)]
    model = detector.model
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 10_000
    heads: list[Any] = []
    handle = model.roi_heads.box_head.register_forward_hook(lambda *x: heads.append(x[2]))
    ours = detector.regions(images)
    with torch.inference_mode():
        theirs = model(images)
    handle.remove()
    for mine, official in zip(ours, theirs, strict=True):
        assert mine.labels is not None
        assert mine.probabilities is not None
        boxes, scores = official["boxes"].numpy(), official["scores"].numpy()
        best = int(scores.argmax())
        assert mine.labels[0] == official["labels"][best]
        np.testing.assert_allclose(mine.boxes[0], boxes[best], atol=1e-3)
        np.testing.assert_allclose(mine.probabilities[0, mine.labels[0]], scores[best], atol=1e-6)
        for feature in mine.features:  # each is what the box head made of some proposal
            gap = np.abs(heads[0].numpy() - feature).max(1)
            assert gap.min() < 1e-6
    assert ours[0].size == (60, 40)


def test_detect_adds_regions_to_shards(tmp_path: Path, weights: Path) -> None:
    folder = make.coco(tmp_path / "coco")
    for path in folder.rglob("*.jpg"):
        path.write_bytes(picture(1, (8, 8)))
    coco.convert(folder, tmp_path / "shards")
    report = detect.convert(
        tmp_path / "shards", tmp_path / "out", model=NAME, weights=str(weights), least=3, most=3
    )
    assert report.samples == {"train": 2, "dev": 1}
    before = make.samples(tmp_path / "shards", "train")
    for key, members in make.samples(tmp_path / "out", "train").items():
        assert len(arrays(members.pop("regions.npz"))["boxes"]) == 3
        assert members == before[key]


def test_detect_says_what_it_cannot_look_at(weights: Path) -> None:
    detector = Detector(NAME, str(weights), "cpu", least=2, most=2)
    found = detector.look([Named("a", b""), Named("b", picture(1)), Named("c", b"x")])
    assert [str(x) for x in found if isinstance(x, BadRegions)] == [
        "sample without image",
        "image is undecodable",
    ]
    assert isinstance(found[1], bytes)


def test_detect_errors(tmp_path: Path, weights: Path) -> None:
    make.put(tmp_path / "in/a.jpg", picture(1))

    def run(folder: str = "in", **options: Any) -> None:
        given = {"model": NAME, "weights": str(weights), **options}
        detect.convert(tmp_path / folder, tmp_path / "out", **given)

    with pytest.raises(SourceError, match=r"not a detector with box heads; choose fasterrcnn_"):
        run(model="retinanet_resnet50_fpn")
    with pytest.raises(SourceError, match=r"no such file of weights; download"):
        run(weights="")
    with pytest.raises(SourceError, match=r"the weights are not those of fasterrcnn_resnet50_fpn:"):
        run(model="fasterrcnn_resnet50_fpn")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SourceError, match=r"other.pth: no roi_heads.*box heads"):
        run(weights=str(tmp_path / "other.pth"))
    torch.save(Path("x"), tmp_path / "objects.pth")
    with pytest.raises(SourceError, match=r"objects.pth: no readable weights .*pickled objects"):
        run(weights=str(tmp_path / "objects.pth"))
    with pytest.raises(SourceError, match=r"least=5, most=4, batch=4: all are at least 1"):
        run(least=5, most=4)
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"none: neither shards .* nor images"):
        run("none")
    assert not (tmp_path / "out").exists()
