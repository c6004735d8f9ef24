"""Object tags: what a detector, or a person, named in an image, as a text beside the caption.

Oscar (Li et al. 2020, section 3) shows them as a text of their own. A reader that is given
:class:`Tags` adds ``"tags"`` to the sample; the recipe has a text stream that reads them, tied
to the captions' stream: ``replace(text, field="tags", segment=1)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crossloom.modalities.arrays import read_arrays
from crossloom.units import BadSample, Passage


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Where the tags of a sample come from: each name once, in the order found."""

    of: str = "boxes"
    """A field of the json: ``boxes``, whose labels are taken, or a list of names. Or a member with
    regions, ``regions.npz``, whose classes are named by ``names``; best regions come first."""
    names: str = ""
    """File with the name of each class of the regions on a line, background first, relative to the
    recipe's ``data`` unless absolute."""
    language: str = "en"
    """Of the names."""

    def __post_init__(self) -> None:
        if self.of.endswith(".npz") != bool(self.names):
            raise ValueError("tags: regions need `names`, the file that names their classes")

    def read(
        self, members: Mapping[str, bytes], content: Mapping[str, Any]
    ) -> dict[str, tuple[Passage, ...]]:
        """``{"tags": …}``, to be put beside what the reader gives.

        Raises:
            BadSample: "no tags": nothing is named.
        """
        if self.names:
            names = class_names(self.names)
            labels = classes_of(read_arrays(members, self.of), names)
            found: list[Any] = [names[label] for label in labels if label]
        else:
            named = content.get(self.of) or ()
            found = [x.get("label", "") if isinstance(x, Mapping) else x for x in named]
        once = dict.fromkeys(x for x in found if isinstance(x, str) and x.strip())
        if not once:
            raise BadSample("no tags", f"{self.of}: names nothing; expected a name at least")
        return {"tags": (Passage(self.language, " ".join(once)),)}


def classes_of(arrays: Mapping[str, Any], names: tuple[str, ...]) -> list[int]:
    """The class of each region, 0 for background; the likeliest other where no label is given.

    Raises:
        BadSample: there are no classes, or more than names.
    """
    if "labels" in arrays:
        label = arrays["labels"]
    elif "probabilities" in arrays:
        label = arrays["probabilities"][:, 1:].argmax(1) + 1
    else:
        raise BadSample("missing member", "regions have neither labels nor probabilities")
    for number in label.tolist():
        if not 0 <= number < len(names):
            raise BadSample("wrong shape", f"label {number}; there are names for {len(names)}")
    return list(label.tolist())


@lru_cache(maxsize=8)
def class_names(path: str) -> tuple[str, ...]:
    """The lines of a file, read once per process.

    Raises:
        ValueError: it is missing, or not text.
    """
    try:
        return tuple(Path(path).read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: class names cannot be read ({error}); see tags.names") from None
