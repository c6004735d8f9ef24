"""A guard against hangs: one thread in each process that says where it stands, and ends it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

#: Exit status of a process that stood still: that of ``timeout``.
STATUS = 124
#: What is slow by nature (a first step, a checkpoint, held-out losses) may take so many times as
#: long.
PATIENCE = 10.0
_LINGER = 2.0  #: seconds in which the other processes get to say where they stand


class Guard:
    """Ends the process when a step does not end.

    Time counts from the last point where all processes met, so that it is up on all of them at
    once: on the one that hangs, and on those that wait for it. Marking a stage stores one tuple.
    """

    def __init__(self, after: float, rank: int) -> None:
        """Make a guard; ``with`` sets it up.

        Args:
            after: seconds that may pass between two meetings; 0 for no guard.
            rank: of this process.
        """
        self.after, self.rank = after, rank
        self._stage: tuple[str, Callable[[], str]] = ("starting", str)
        self._done = threading.Event()
        self.met(slow=True)

    def at(self, stage: str, about: Callable[[], str] = str) -> None:
        """The process is at a stage now; ``about`` can tell more of it when it is wanted."""
        self._stage = (stage, about)

    def met(self, slow: bool = False) -> None:
        """All processes have met; ``slow`` when what follows is slow by nature."""
        self._limit = time.monotonic() + self.after * (PATIENCE if slow else 1.0)

    def __enter__(self) -> Guard:
        if self.after:
            self.met(slow=True)
            threading.Thread(target=self._watch, name="guard", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()

    def _watch(self) -> None:
        # the limit moves both ways: after what is slow it is nearer than before
        while not self._done.wait(min(1.0, max(0.0, self._limit - time.monotonic()))):
            if time.monotonic() >= self._limit:
                self._end()

    def _end(self) -> None:
        stage, about = self._stage
        out = sys.__stderr__ or sys.stderr
        # on a line of its own, even where another process is writing its stack
        print(
            f"\nrank {self.rank}: no step has ended for {self.after:g} s or more (stall_after); "
            f"this process is at: {stage}",
            file=out,
            flush=True,
        )
        faulthandler.dump_traceback(file=out, all_threads=True)
        children = multiprocessing.active_children()
        for child in children:
            if child.pid is not None:
                os.kill(child.pid, signal.SIGUSR2)  # loader processes answer with their stacks
        # may itself wait for what hangs: a disk, a lock
        telling = threading.Thread(target=lambda: print(about(), file=out, flush=True), daemon=True)
        telling.start()
        telling.join(_LINGER)
        time.sleep(_LINGER)
        for child in children:
            child.kill()  # one that hangs would outlive its parent
        os._exit(STATUS)
