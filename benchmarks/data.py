"""How fast data comes, beside the peers: ``python benchmarks/data.py [--json FILE]``.

One process, one core. Everything is measured in turn in one run, several times, and the median is
told; ratios are of medians. Pictures and text are made here unless ``--images`` and ``--lines``
name real ones (tars of ``jpg`` and ``txt``; a text file, one line each).

Peers: open_clip's training transform and tokeniser over ``webdataset``, composed as in its
``open_clip_train/data.py``; Hugging Face ``tokenizers`` with the very same unigram model.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from crossloom.batch import Batch
from crossloom.data_pipelines.collate import Collator
from crossloom.data_pipelines.loader import Part, Stack
from crossloom.data_pipelines.mixture import Mixture
from crossloom.data_pipelines.read import Plain
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.tokenizer import train
from crossloom.data_pipelines.world import write_world
from crossloom.data_pipelines.write import ShardWriter
from crossloom.modalities.patches import Patches
from crossloom.modalities.pictures import Augment
from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import Vocabulary
from crossloom.objectives.presets import itc
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.run import make_stack

SIZE = 224
BATCH = 64


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--images", nargs="*", default=[], help="tars of jpg + txt instead")
    parser.add_argument("--lines", type=Path, help="text file instead of made-up lines")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=512, help="made-up pictures of each size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lines = read_lines(options.lines)
        vocabulary = make_vocabulary(place, lines)
        # the last number makes the files as long as photographs of that size are: COCO's own, and
        # COCO's brought to 256 pixels at quality 95 as img2dataset does
        sizes = {"256-pixel images": (256, 256, 1.2), "images of COCO's size": (640, 480, 1.1)}
        sets = {name: make_pictures(place, options.pictures, *size, lines[:2000])
                for name, size in sizes.items()}  # fmt: skip
        sets |= {path: Path(path) for path in options.images}
        for name, tar in sets.items():
            rows.append(images(name, tar, vocabulary, options.repeats))
        rows.append(text(vocabulary, lines, options.repeats))
        rows.append(first_batch(place))
        rows.append(memory(place))
    for row in rows:
        told = ", ".join(f"{k} {v:,.6g}" for k, v in row.items() if isinstance(v, (int, float)))
        print(f"{row['what']}: {told}")
    if options.json:
        found = {"machine": machine(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        model = names[0].split(":")[1].strip() if names else model
    from importlib.metadata import version

    packages = ("torch", "torchvision", "open_clip_torch", "webdataset", "tokenizers",
                "sentencepiece", "pillow")  # fmt: skip
    return {"cpu": model, "cores used": "1", "python": platform.python_version(),
            **{p: version(p) for p in packages}}  # fmt: skip


def read_lines(path: Path | None, words: int = 120_000) -> list[str]:
    """Lines of a file, or made up: so many words, by a Zipf law, in four alphabets."""
    if path:
        return [x for x in path.read_text("utf-8").splitlines() if x.strip()][:200_000]
    rng = np.random.default_rng(0)
    alphabets = [range(0x61, 0x7B), range(0x430, 0x450), range(0x3B1, 0x3C9), range(0x561, 0x587)]
    made = []
    for _ in range(words):
        letters = [*alphabets[int(rng.choice(4, p=[0.55, 0.2, 0.15, 0.1]))]]
        size = int(rng.integers(2, 11))
        made.append("".join(chr(letters[int(n)]) for n in rng.integers(len(letters), size=size)))
    chosen = np.minimum(rng.zipf(1.15, 12 * words + 60_000) - 1, words - 1)
    ends = np.cumsum(rng.integers(5, 40, words // 2))
    ends = ends[ends < len(chosen)]
    return [" ".join(made[n] for n in part) for part in np.split(chosen, ends)[:-1]]


def make_vocabulary(place: Path, lines: list[str], size: int = 39_000) -> Path:
    """A unigram model of so many pieces (fewer where the lines hold no more)."""
    import sentencepiece

    path = place / "tokenizer.model"
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=size,
        hard_vocab_limit=False, bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2,
        control_symbols=["<mask>"], num_threads=2, input_sentence_size=60_000,
    )  # fmt: skip
    return path


def make_pictures(
    place: Path, count: int, width: int, height: int, slope: float, lines: list[str]
) -> Path:
    """A tar of JPEGs whose spectra fall off as photographs' do, each with a line of text."""
    from PIL import Image

    rng = np.random.default_rng(1)
    across, down = np.meshgrid(np.fft.rfftfreq(width), np.fft.fftfreq(height))
    fall = 1 / np.maximum(np.hypot(across, down), 1 / max(width, height)) ** slope
    prefix = f"pictures-{width}"
    with ShardWriter(place, prefix) as writer:
        for number in range(count):
            planes = []
            for _ in range(3):
                noise = np.fft.rfft2(rng.standard_normal((height, width)))
                plane = np.fft.irfft2(noise * fall, s=(height, width))
                planes.append((plane - plane.mean()) / plane.std() * 48 + 128)
            pixels = np.stack(planes, 2).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            caption = " ".join(lines[number % len(lines)].split()[:12])
            members = {"jpg": buffer.getvalue(), "txt": caption.encode()}
            writer.write(f"{number:06d}", members)
    return place / f"{prefix}-000000.tar"


def ours(tar: Path, vocabulary: Path) -> Iterator[Batch]:
    """crossloom's batches: uint8 pictures for a tower, ids of captions."""
    shards = open_shards(str(tar))
    source = Source("pictures", shards, Plain())
    augment = Augment(scale=(0.9, 1.0))  # open_clip's default
    modalities = {
        "text": Text(vocabulary=str(vocabulary), limit=77),
        "image": Patches(size=SIZE, tower="timm:vit_base_patch32_224", augment=augment),
    }
    objective = itc()
    collator = Collator(modalities, {"itc": objective}, 0)
    order = source.order(0, 1, 4096, BATCH)
    part = Part(source=source, order=order, objectives=("itc",))
    stack = Stack({"pictures": part}, Mixture({"pictures": 1}, seed=0), collator, BATCH)
    number = 0
    while True:
        yield stack.micro(number)
        number += 1


def open_clips(tar: Path) -> Iterator[Any]:
    """open_clip's pipeline over webdataset: float pictures, normalised, and ids of captions."""
    import open_clip
    import webdataset as wds

    transform = open_clip.image_transform(SIZE, is_train=True)
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    steps = [
        wds.SimpleShardList([str(tar)]), wds.tarfile_to_samples(), wds.shuffle(1000),
        wds.decode("pilrgb"), wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=transform, text=lambda x: tokenize(x)[0]),
        wds.to_tuple("image", "text"), wds.batched(BATCH, partial=False),
    ]  # fmt: skip
    while True:
        yield from wds.DataPipeline(*steps)


def per_second(batches: Iterator[Any], count: int) -> float:
    """Examples a second over some batches, after a first one."""
    next(batches)
    gc.collect()
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - begin)


def compare(
    one: Callable[[], float], other: Callable[[], float], repeats: int
) -> tuple[float, float]:
    """Medians of two measurements, taken in turn."""
    pairs = [(one(), other()) for _ in range(repeats)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def images(name: str, tar: Path, vocabulary: Path, repeats: int) -> dict[str, Any]:
    """Tar of JPEGs to batches of random crops and ids."""
    own, theirs = compare(
        lambda: per_second(ours(tar, vocabulary), 8),
        lambda: per_second(open_clips(tar), 6),
        repeats,
    )
    return {"what": f"{name}, examples/s", "crossloom": own, "open_clip": theirs,
            "ratio": own / theirs}  # fmt: skip


def blocks(vocabulary: Vocabulary, lines: list[str], size: int = 512) -> np.ndarray:
    """Lines end to end, each closed by ``</s>``, cut in blocks; a rest is left out."""
    end = np.array([vocabulary.end])
    ids = np.concatenate([x for line in lines for x in (vocabulary.encode(line), end)])
    return ids[: len(ids) // size * size].reshape(-1, size)


def peer_tokenizer(path: Path) -> Any:
    """The same model in ``tokenizers``."""
    import sentencepiece
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [(model.IdToPiece(n), model.GetScore(n)) for n in range(model.GetPieceSize())]
    found = Tokenizer(Unigram(pieces, unk_id=model.unk_id(), byte_fallback=False))
    found.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(" {2,}", " "), normalizers.Strip()]
    )
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    return found


def text(path: Path, lines: list[str], repeats: int) -> dict[str, Any]:
    """Lines to blocks of ids, one thread."""
    vocabulary, peer = Vocabulary(path), peer_tokenizer(path)
    end = vocabulary.end

    def theirs() -> np.ndarray:
        ids = [i for e in peer.encode_batch(lines, add_special_tokens=False) for i in (*e.ids, end)]
        return np.array(ids[: len(ids) // 512 * 512]).reshape(-1, 512)

    same, different = 0, 0
    for line in lines[:5000]:
        equal = vocabulary.encode(line).tolist() == peer.encode(line, add_special_tokens=False).ids
        same, different = same + equal, different + (not equal)

    def rate(make: Callable[[], np.ndarray]) -> float:
        begin = time.perf_counter()
        count = make().size
        return count / (time.perf_counter() - begin)

    own, other = compare(
        lambda: rate(lambda: blocks(vocabulary, lines)), lambda: rate(theirs), repeats
    )
    return {"what": "text to blocks of 512, tokens/s", "crossloom": own, "tokenizers": other,
            "ratio": own / other, "vocabulary": vocabulary.size, "lines alike": same,
            "lines unlike": different}  # fmt: skip


def first_batch(place: Path) -> dict[str, Any]:
    """Seconds from nothing to the first batch of the built-in world, index included."""
    world = place / "world"
    write_world(world, examples=2000)
    train(open_shards("train-*.tar", world), world / "tokenizer.model", size=1200, coverage=1.0)
    for file in (*world.glob("*.index.json"), world / "shards.summary.json"):
        file.unlink(missing_ok=True)
    begin = time.perf_counter()
    stack = make_stack(tiny_recipe(world).located())
    stack.micro(0)
    cold = time.perf_counter() - begin
    begin = time.perf_counter()
    make_stack(tiny_recipe(world).located()).micro(0)
    return {"what": "first batch of the world, s", "without index": cold,
            "with index": time.perf_counter() - begin}  # fmt: skip


def memory(place: Path) -> dict[str, Any]:
    """Resident memory of a process that makes batches, over three epochs of the world."""
    recipe = tiny_recipe(place / "world").located()
    stack = make_stack(recipe)
    epoch = 2000 // recipe.examples

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    found = []
    for number in range(3 * epoch):
        stack.micro(number)
        if number in (100, epoch, 3 * epoch - 1):
            gc.collect()
            found.append(resident())
    return {"what": "memory of a worker, MiB", "batch 100": found[0], "one epoch": found[1],
            "three epochs": found[2], "growth": found[2] / found[0] - 1}  # fmt: skip


if __name__ == "__main__":
    main()
