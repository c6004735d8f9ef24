"""All readers by kind: the names that components of recipes give them."""

from __future__ import annotations

from collections.abc import Mapping

from crossloom.data_pipelines import read
from crossloom.data_pipelines.marked import Spans, Words
from crossloom.data_pipelines.read import Reader

READERS: Mapping[str, type[Reader]] = {**read.READERS, **{r.kind: r for r in (Spans, Words)}}
