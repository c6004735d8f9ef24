"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def end_with_parent(parent: int | None = None) -> None:
    """Have the system kill this process when the one that started it dies, however it does.

    On Linux (``prctl(2)``, ``PR_SET_PDEATHSIG``); elsewhere nothing happens.

    Args:
        parent: its number, where it is known; it may have died already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
