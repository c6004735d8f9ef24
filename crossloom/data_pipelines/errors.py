"""What ends reading, as opposed to what is skipped (:class:`~crossloom.units.BadSample`)."""

from __future__ import annotations


class ShardError(ValueError):
    """Shards that are missing or cannot be read: the message names the file and the remedy."""


class WorkerError(RuntimeError):
    """A process that loads data was killed or broke down: the message says which and why."""
