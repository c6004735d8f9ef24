"""Documents of one language as samples: a text for each paragraph.

What the sources ``cc100`` and ``wikipedia`` share. A document is one sample, whatever its length,
up to ``LONGEST`` characters: one that is longer goes on in further samples, cut between
paragraphs, so that a file in which nothing separates documents does not end up in the memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from crossloom.data_pipelines.sources.common import Conversion, draw_split
from crossloom.data_pipelines.write import sanitise

#: Characters of a sample, unless a single paragraph has more.
LONGEST = 1_000_000


@dataclass
class Documents:
    """Writes the documents of one language, one after another."""

    to: Conversion
    language: str
    test: float
    dev: float
    longest: int = LONGEST
    samples: int = 0  #: written so far; they number the keys

    def write(self, name: str, paragraphs: Iterable[str]) -> bool:
        """Write one document; False when it has no text.

        The split is drawn by its first paragraph, so that copies of a document stay together.
        """
        texts: list[str] = []
        size, part, split = 0, 1, ""
        for paragraph in paragraphs:
            split = split or draw_split("documents", paragraph, self.test, self.dev)
            if texts and size + len(paragraph) > self.longest:
                self._write(split, f"{name}#{part}", texts)
                texts, size, part = [], 0, part + 1
            texts.append(paragraph)
            size += len(paragraph)
        if texts:
            self._write(split, name if part == 1 else f"{name}#{part}", texts)
        return bool(split)

    def _write(self, split: str, name: str, texts: list[str]) -> None:
        self.samples += 1
        key = f"{sanitise(self.language)}-{self.samples:09d}"
        content = {"id": name, "texts": {self.language: texts}}
        self.to.write(split, key, content, numbered=True)
