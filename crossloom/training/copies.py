"""Batches on their way to the device."""

from __future__ import annotations

import torch

from crossloom.batch import Batch


class Copies:
    """Brings batches to a device, those that are announced ahead of their turn.

    On CUDA, batches in page-locked memory are copied on a stream of their own while the model
    computes on another. Elsewhere nothing is done ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun: dict[int, tuple[Batch, Batch]] = {}

    def begin(self, batch: Batch) -> None:
        """Start to copy a batch that will be taken."""
        if self._stream is None or id(batch) in self._begun:
            return
        with torch.cuda.stream(self._stream):
            # the original is kept with its copy: its id is not given to another meanwhile
            self._begun[id(batch)] = (batch, batch.to(self.device))

    def take(self, batch: Batch) -> Batch:
        """The batch on the device, for work that is queued on the current stream from now on."""
        if self._stream is None:
            return batch.to(self.device)
        self.begin(batch)
        _, copy = self._begun.pop(id(batch))
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)  # the device waits, not the host
        copy.record_stream(current)  # else its memory is given away as soon as it is let go of
        return copy
