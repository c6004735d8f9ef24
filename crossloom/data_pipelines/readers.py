"""All readers by kind: the names that components of recipes give them."""

from __future__ import annotations

from collections.abc import Mapping

from crossloom.data_pipelines.annotated import Labelled, Pairs, Questions, Refers
from crossloom.data_pipelines.choices import Choices
from crossloom.data_pipelines.marked import Spans, Words
from crossloom.data_pipelines.passages import Alternating, Following, Switched
from crossloom.data_pipelines.read import Blocks, Parallel, Plain, Texts
from crossloom.data_pipelines.reader import Reader

READERS: Mapping[str, type[Reader]] = {
    r.kind: r
    for r in (
        Plain, Texts, Blocks, Following, Parallel, Alternating, Switched, Questions, Pairs, Refers,
        Labelled, Spans, Words, Choices,
    )
}  # fmt: skip
