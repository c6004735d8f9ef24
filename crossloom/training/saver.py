"""Saving while training goes on: copies at once, files by a thread, completion between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from crossloom.training import checkpoint
from crossloom.training.checkpoint import Piece
from crossloom.training.environment import Environment


class Saver:
    """Writes checkpoints of a run, one at a time.

    Every process copies its share to the host and writes it from a thread. Whether all have written
    is learned with numbers that processes exchange in every step anyway (:meth:`pending`,
    :meth:`settle`); then the first one completes the checkpoint. So a checkpoint is there a step
    or more after it was asked for, and nothing waits unless the next one is due before that. What
    cannot be written costs that checkpoint, no earlier one, and not the run.
    """

    def __init__(
        self, folder: Path, environment: Environment, *, keep: int, keep_every: int = 0
    ) -> None:
        self.folder, self.environment = folder, environment
        self.keep, self.keep_every = keep, keep_every
        self.failed = 0  #: checkpoints that could not be written
        self.reason = ""  #: why the last of them could not
        self._stall = 0.0
        self._step: int | None = None
        self._notes: Mapping[str, Any] = {}
        self._names: tuple[str, ...] = ()
        self._thread: Thread | None = None
        self._error = ""

    def begin(self, step: int, state: Mapping[str, Piece], notes: Mapping[str, Any]) -> None:
        """Copy what this process has to save, and begin to write it; all processes call this."""
        self.finish()
        began = time.perf_counter()
        main = self.environment.main
        mine = {n: p for n, p in state.items() if (main or not p.shared) and len(p.value)}
        copies = {n: p.beside(p.value.to("cpu", copy=True)) for n, p in mine.items()}
        self._step, self._notes, self._error = step, notes, ""
        self._names = tuple(n for n, p in state.items() if math.prod(p.shape))
        # not a daemon: what was begun is written even if the run ends by an error
        self._thread = Thread(target=self._write, args=(step, copies), name=f"checkpoint {step}")
        self._thread.start()
        self._stall += time.perf_counter() - began

    def _write(self, step: int, pieces: Mapping[str, Piece]) -> None:
        try:
            if pieces:
                checkpoint.write_part(self.folder, step, self.environment.rank, pieces)
        except Exception as error:  # whatever it is, training can go on
            self._error = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)

    def pending(self) -> tuple[float, float]:
        """Whether this process has written its share, and whether it has failed to: 0 or 1."""
        done = self._thread is not None and not self._thread.is_alive()
        return float(done and not self._error), float(done and bool(self._error))

    def settle(self, written: float, failed: float) -> None:
        """Complete the checkpoint, or give it up, if no process is writing any more.

        Args:
            written: processes that have written their share (the sum of :meth:`pending`).
            failed: processes that could not.
        """
        if self._step is None or written + failed < self.environment.world:
            return
        step, self._step, self._thread = self._step, None, None
        if not failed and self.environment.main:
            try:
                checkpoint.commit(self.folder, step, self._notes, self._names)
            except OSError as error:
                self._error, failed = f"{error.strerror or error}", 1.0
        if self._error:
            print(f"warning: the checkpoint of step {step} cannot be written ({self._error}); "
                  "earlier ones are intact, and the next one will be tried")  # fmt: skip
        if failed:
            self.failed += 1
            self.reason = self._error or "another process could not write its share"
        if self.environment.main and failed:
            checkpoint.discard(self.folder, step)
        elif self.environment.main:
            checkpoint.prune(self.folder, self.keep, self.keep_every)

    def finish(self) -> None:
        """Wait until the checkpoint that was begun is complete or given up, on all processes."""
        began = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
        if self._step is not None:
            self.settle(*self.environment.total(list(self.pending())))
        self._stall += time.perf_counter() - began

    def seconds(self) -> float:
        """For how long training has stood still for saving since this was last asked."""
        stall, self._stall = self._stall, 0.0
        return stall
