"""Which processes are slow: the time that each spends on its own in a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

#: Times the median at which a process is named as slow.
SLOW = 1.5


class Forwards:
    """Time of the model's forward passes in training, the part of a step that waits for nobody.

    In the backward pass all processes wait for the slowest, and look alike. (A contrast over the
    global batch, or parameters in parts, make forward passes wait too; the time spent waiting for
    data, which is added, does not.) On a GPU, events measure, read when they are asked for.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Watch a model: the innermost one, whatever wraps it."""
        self.cuda = device.type == "cuda"
        self._began: list[Any] = []
        self._ended: list[Any] = []
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._began.append(self._now())

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self._ended.append(self._now())

    def seconds(self) -> float:
        """Seconds since they were last asked for."""
        pairs = list(zip(self._began, self._ended, strict=False))
        self._began, self._ended = [], []
        if not self.cuda:
            return sum(last - first for first, last in pairs)
        torch.cuda.synchronize()
        return sum(first.elapsed_time(last) for first, last in pairs) / 1000


def report(seconds: Sequence[float]) -> dict[str, float]:
    """Metrics of the processes' own seconds in a step.

    Args:
        seconds: by rank.

    Returns:
        ``own_seconds/RANK``, and ``own_seconds/spread``, the largest over the median.
    """
    middle = median(seconds)
    spread = max(seconds) / middle if middle > 0 else 1.0
    return {f"own_seconds/{n}": x for n, x in enumerate(seconds)} | {"own_seconds/spread": spread}


def slow(seconds: Sequence[float]) -> str:
    """Who is slow, in words; empty where nobody is."""
    middle = median(seconds)
    found = [f"rank {n} ({x:.2f} s)" for n, x in enumerate(seconds) if x > SLOW * middle > 0]
    return f"slow: {', '.join(found)}; the median is {middle:.2f} s a step" if found else ""
