"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys


def end_with_parent() -> None:
    """Have the system kill this process when the one that started it dies, however it does.

    On Linux (``prctl(2)``, ``PR_SET_PDEATHSIG``); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
