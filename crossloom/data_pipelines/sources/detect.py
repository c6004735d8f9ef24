r"""Regions computed by a detector of torchvision, named, with its weights in a file.

Reads a folder of shards that another source made, or a folder of images::

    train-000000.tar …               samples get regions.npz; splits and all else are kept
    9.jpg  25.png …                  each image becomes a sample: its name as the id, and regions

::

    crossloom shards make detect shards/coco --out shards/coco-regions \
        --set model=fasterrcnn_resnet50_fpn_v2 --set weights=fasterrcnn_resnet50_fpn_v2_coco.pth

The detector is one with box heads (the ``fasterrcnn_…``, ``maskrcnn_…`` and ``keypointrcnn_…`` of
torchvision); nothing is downloaded, and the file is read without unpickling. The number of classes
is the weights'. Of each proposal, the likeliest class but background gives box, label and score;
``features`` are what the box head makes of the proposal, ``probabilities`` those of all classes, 0
for background. Of proposals of one class that overlap by more than ``overlap`` the best stays. Then
those that score at least ``threshold`` are taken, best first, but at least ``least`` and at most
``most``: the defaults are the 10 to 100 regions of bottom-up attention; with ``least=36`` and
``most=36`` there are its fixed number.

Skipped, and counted: samples without image, images that cannot be decoded or in which nothing is
proposed. Images of a batch are padded to one size, so that another ``batch`` may change features in
their last digits; the same options give the same bytes on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.region_features import (
    BadRegions,
    Named,
    Regions,
    each_sample,
    encode,
)
from crossloom.data_pipelines.write import SHARD_SIZE, find_shards, sanitise
from crossloom.modalities.pictures import (
    decode_image,
)
from crossloom.units import BadSample

if TYPE_CHECKING:
    from torch import Tensor

_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_MAX_PIXELS = 100_000_000


def convert(
    input: Path | None,
    out: Path,
    *,
    model: str = "",
    weights: str = "",
    device: str = "",
    batch: int = 4,
    least: int = 10,
    most: int = 100,
    threshold: float = 0.2,
    overlap: float = 0.5,
    keep_images: bool = True,
    split: str = "train",
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write regions, with the samples of shards or alone.

    Args:
        input: folder of shards or of images.
        out: folder for the shards; another one.
        model: name of the detector in torchvision.
        weights: file of its weights, ``.pth`` or ``.safetensors``.
        device: where it runs; the GPU when there is one.
        batch: images (samples of shards) at a time.
        least: fewest regions of an image, whatever their scores.
        most: most regions of an image.
        threshold: score from which a region is taken.
        overlap: of two boxes of a class that overlap more (intersection over union) one is taken.
        keep_images: whether the images of shards stay in the samples.
        split: of the samples, from a folder of images.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no such input, detector or weights, or options that contradict each other.
    """
    folder = need_folder(input, "detect", "shards or images")
    if not (1 <= least <= most and batch >= 1):
        raise SourceError(
            f"least={least}, most={most}, batch={batch}: all are at least 1, least at most most"
        )
    shards = find_shards(folder)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not shards and not paths:
        raise SourceError(f"{folder}: neither shards (*-000000.tar) nor images in it")
    to = Conversion("detect", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    detector = Detector(model, weights, device, least, most, threshold, overlap)
    with to:
        if shards:
            each_sample(to, folder, keep_images, detector.look, batch)
        else:
            to.total = len(paths)
            paths = _one_each(to, paths)
            for start in range(0, len(paths), batch):
                _images(to, paths[start : start + batch], detector, split)
    return to.report


def _one_each(to: Conversion, paths: Sequence[Path]) -> list[Path]:
    """The paths without those that would make a sample of the same name."""
    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(path.stem, path) != path:
            to.skip("another image has the name but for its ending", path.name)
    return list(found.values())


def _images(to: Conversion, paths: Sequence[Path], detector: Detector, split: str) -> None:
    found = [(p, image) for p in paths if (image := read_image(p, to, p.name))]
    made = detector.look([Named(p.name, image.data) for p, image in found])
    for (path, image), data in zip(found, made, strict=True):
        if isinstance(data, BadRegions):
            to.skip(str(data), path.name)
        else:
            others = {"regions.npz": data}
            to.write(split, sanitise(path.stem), {"id": path.name}, image, others=others)


class Detector:
    """A detector of torchvision that tells what its box head sees."""

    def __init__(
        self,
        model: str,
        weights: str,
        device: str = "",
        least: int = 10,
        most: int = 100,
        threshold: float = 0.2,
        overlap: float = 0.5,
    ) -> None:
        """Build it and load its weights.

        Raises:
            SourceError: no such detector, or weights that are not its own.
        """
        import torch

        self.least, self.most, self.threshold, self.overlap = least, most, threshold, overlap
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = _model(model, _weights(weights)).eval().to(self.device)

    def look(self, images: Sequence[Named]) -> list[bytes | BadRegions]:
        """The bytes of ``regions.npz`` for each image, or why there are none."""
        import torch

        pictures: list[Tensor] = []
        made: list[bytes | BadRegions | None] = []
        for named in images:
            try:
                if not named.image:
                    raise BadRegions("sample without image")
                pixels = decode_image(named.image, named.name, _MAX_PIXELS)
            except BadSample as error:
                made.append(BadRegions(f"image is {error.kind}"))
            except BadRegions as error:
                made.append(error)
            else:
                made.append(None)
                pictures.append(torch.from_numpy(pixels.copy()).to(self.device) / 255)
        found = iter(self.regions(pictures) if pictures else ())
        return [_encoded(next(found)) if m is None else m for m in made]

    def regions(self, pictures: Sequence[Tensor]) -> list[Regions]:
        """What the detector sees in pictures, ``[3, height, width]`` in 0..1."""
        import torch

        with torch.inference_mode():
            sizes = [(int(p.shape[-2]), int(p.shape[-1])) for p in pictures]
            scaled, _ = self.model.transform(list(pictures))
            features = self.model.backbone(scaled.tensors)
            if isinstance(features, torch.Tensor):
                features = {"0": features}
            proposals, _ = self.model.rpn(scaled, features)
            heads = self.model.roi_heads
            pooled = heads.box_roi_pool(features, proposals, scaled.image_sizes)
            seen = heads.box_head(pooled)
            logits, deltas = heads.box_predictor(seen)
            counts = [len(p) for p in proposals]
            boxes = heads.box_coder.decode(deltas, proposals)
            parts = zip(
                seen.split(counts),
                logits.softmax(-1).split(counts),
                boxes.split(counts),
                strict=True,
            )
            return [
                self._choose(*part, size, inner)
                for part, size, inner in zip(parts, sizes, scaled.image_sizes, strict=True)
            ]

    def _choose(
        self,
        seen: Tensor,
        chance: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        inner: tuple[int, int],
    ) -> Regions:
        """The regions of one image, of ``size`` (height, width), scaled to ``inner`` before."""
        import torch
        from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

        score, label = chance[:, 1:].max(-1)
        label = label + 1
        box = clip_boxes_to_image(boxes[torch.arange(len(boxes)), label], inner)
        whole = remove_small_boxes(box, 1.0)
        kept = whole[batched_nms(box[whole], score[whole], label[whole], self.overlap)]
        good = int((score[kept] >= self.threshold).sum())  # they come best first
        kept = kept[: min(max(good, self.least), self.most)]
        height, width = size
        scale = box.new_tensor([width / inner[1], height / inner[0]] * 2)
        return Regions(
            features=seen[kept].float().cpu().numpy(),
            boxes=(box[kept] * scale).cpu().numpy(),
            size=(float(width), float(height)),
            labels=label[kept].cpu().numpy(),
            probabilities=chance[kept].float().cpu().numpy(),
        )


def _encoded(regions: Regions) -> bytes | BadRegions:
    try:
        return encode(regions)
    except BadRegions as error:
        return error


def _weights(path: str) -> dict[str, Any]:
    import torch

    if not path or not Path(path).is_file():
        raise SourceError(
            f"{path or 'detect'}: no such file of weights; download the detector's weights and "
            "name the file with --set weights=…"
        )
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise almost anything
        raise SourceError(
            f"{path}: no readable weights ({type(error).__name__}); files with pickled objects are "
            "not read"
        ) from None
    found = found.get("model", found) if isinstance(found, dict) else {}
    if _CLASSES not in found:
        raise SourceError(f"{path}: no {_CLASSES} in it; they are no detector's with box heads")
    return dict(found)


def _model(name: str, weights: dict[str, Any]) -> Any:
    from torchvision import models

    known = models.list_models(module=models.detection)
    known = [n for n in known if "rcnn" in n]
    if name not in known:
        raise SourceError(f"model={name}: not a detector with box heads; choose {', '.join(known)}")
    model = models.get_model(
        name, weights=None, weights_backbone=None, num_classes=len(weights[_CLASSES])
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        told = str(error).split("\n")[1:2] or [str(error)]
        raise SourceError(f"the weights are not those of {name}: {told[0].strip()[:200]}") from None
    return model
