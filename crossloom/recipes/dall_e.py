"""DALL·E: a caption and the codes of its picture, said one after the other."""

from __future__ import annotations

from crossloom.data_pipelines.read import Texts
from crossloom.modalities.codes import Codes
from crossloom.modalities.text import Text
from crossloom.models.plan import Grid
from crossloom.models.presets import on_grids, single_stream
from crossloom.objectives.generate import Generate
from crossloom.objectives.objective import Objective
from crossloom.objectives.view import View
from crossloom.recipes.parts import IMAGE, STREAMS, TEXT, train
from crossloom.recipes.world import tiny, world_codes
from crossloom.training.fsdp import Fsdp
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def dall_e() -> Recipe:
    """DALL·E (Ramesh et al. 2021): words, then 32 × 32 codes, in sparse patterns; 12 B.

    Followed: section 2.2 and appendix B of the paper (the Transformer was not released), and where
    it is silent a re-implementation (``lucidrains/DALLE-pytorch``). 64 layers of 62 heads × 64,
    norms before. A caption is up to 256 byte pairs of 16,384 in lower case, a picture 1,024 codes
    of 8,192, whose places are rows and columns. A word reads the words before it; a code all words
    and, of the codes before it, by layer: those up to a row away, those of its column (the second
    layer and every fourth after it), in the last layer those of a square of 11. Words are said from
    words and codes from codes, each by its own table; the loss is 1/8 of the mean over words and
    7/8 of that over codes. Adam with a decay of 4.5e-2, 5,000 steps of warm-up, batches of 1,024.

    Data: samples with captions and ``codes.npy`` of a discrete VAE (``shards make codes --set
    codes=…``). It is not trained here; OpenAI released theirs (``openai/DALL-E``).

    Otherwise than there: captions end where they end, and are not filled up to 256 places, so that
    there are no padding tokens (theirs have one for each place, read and scored). The first code is
    said from a unit before the codes, not from the last word. Patterns are masks, which save no
    time: there they are kernels of block-sparse attention, and columns are read transposed. bf16
    throughout instead of a loss scale for each residual block in fp16, and plain gradients instead
    of PowerSGD's. Byte pairs are not dropped out. The rate stays up: there it was halved five
    times, whenever the loss stood still (``optim.rate`` at a resume). Uncertain: that the tables
    said from are not those read (the re-implementation's default), dropout of 0, the epsilon.

    Parameters: 12.10 B in the layers, 98.9 M for words, codes and places, 97.5 M to say them with.
    """
    plan = single_stream(STREAMS, layers=64, width=3968, heads=62, norm="pre", dropout=0.0)
    return Recipe(
        name="dall-e",
        data="shards",
        modalities={
            TEXT: Text(
                vocabulary="dall-e/tokenizer.model", size=16_384, limit=256, norm=False, dropout=0.0
            ),
            IMAGE: Codes(
                size=8192, limit=32 * 32, side=32, norm=False, dropout=0.0, codebook="dvae"
            ),
        },
        plan=on_grids(plan, IMAGE, patterns(64, side=32, kernel=11)),
        objectives=said_together(weights=(1 / 8, 7 / 8), tied=False),
        mixture={
            "pairs": Component(
                shards=train("conceptual-captions"),
                reader=Texts(languages=("en",)),
                objectives=(TEXT, IMAGE),
            )
        },
        steps=430_000,
        examples=8,
        micro=128,
        optim=Optim(rate=4.5e-4, betas=(0.9, 0.96), epsilon=1e-8, decay=0.045, clip=4.0),
        schedule=Schedule(shape="constant", warmup=5000),
        precision="bf16",
        engine=Fsdp(),
        recompute=1,
    )


def dall_e_tiny() -> Recipe:
    """DALL·E over the world's pictures, 12 × 12 codes each, in English.

    Make the codes first: ``crossloom shards make codes WORLD --out WORLD/codes``, where ``WORLD``
    is the folder that ``data`` names.
    """
    plan = single_stream(STREAMS, layers=4, width=128, heads=4, norm="pre")
    plan = on_grids(plan, IMAGE, patterns(4, side=12, kernel=5))
    return world_codes(tiny(dall_e(), plan, steps=1500))


def patterns(layers: int, *, side: int, kernel: int) -> list[Grid]:
    """What codes read of each other, by layer: rows and columns, a square last (appendix B.1)."""
    grids = [
        Grid(side=side, reads="column" if number % 4 == 1 else "row") for number in range(layers)
    ]
    return [*grids[:-1], Grid(side=side, reads="convolution", kernel=kernel)]


def said_together(
    *, weights: tuple[float, float] = (1.0, 1.0), tied: bool = True, mean: str = ""
) -> dict[str, Objective]:
    """Words and codes said in one pass: words from words, codes from all words and codes before.

    Args:
        weights: of the words' loss and of the codes'.
        tied: what is said is scored by the tables that are read.
        mean: name of their one mean; empty where each has its own.
    """
    view = View(name="said", streams=STREAMS, causal=STREAMS, reads={TEXT: (TEXT,)})
    return {
        stream: Generate(
            view=view, stream=stream, target=target, weight=weight, tied=tied, transform=False,
            mean=mean,
        )
        for stream, target, weight in zip(STREAMS, ("token", "code"), weights, strict=True)
    }  # fmt: skip
