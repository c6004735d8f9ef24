"""What this process runs on: device, rank, process group, random streams."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from crossloom.processes import end_with_parent
from crossloom.units import keyed_rng


@dataclass(frozen=True)
class Environment:
    """One training process."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def total(self, values: list[float]) -> list[float]:
        """Host numbers summed over processes, by the host: no device is waited for."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(x) for x in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """A small value of every process, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def told(self, find: Callable[[], Any]) -> Any:
        """A small value that the first process finds, on all processes."""
        found = [find() if self.main else None]
        if self.world > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


def start(device: str = "", patience: timedelta | None = None) -> Environment:
    """Join the process group that the launcher describes, or be alone.

    A process that a launcher started is killed when the launcher is.

    Args:
        device: ``"cpu"``, ``"cuda"``, …; the best there is when empty.
        patience: how long processes wait for each other; torch's default when None.

    Raises:
        ValueError: torch knows no such device, or this machine does not have it.
    """
    if "RANK" in os.environ:
        # else it would train on, in a session of its own, beside the run that is started anew
        end_with_parent()
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = _device(f"{kind}:{local}" if kind == "cuda" else kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world > 1 and not dist.is_initialized():
        # gloo beside NCCL: what hosts tell each other need not wait for a device
        backends = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backends, timeout=patience)
    rank = dist.get_rank() if dist.is_initialized() else 0
    return Environment(place, rank, world)


def _device(name: str) -> torch.device:
    """The device of this name, tried with one number."""
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"--device {name}: not to be had here ({reason})") from None
    return place


def seed_torch(*key: object) -> None:
    """Make torch's random streams (dropout, initial weights) a function of a key."""
    torch.manual_seed(int(keyed_rng(*key).integers(2**63 - 1)))


def workers(wanted: int, world: int) -> int:
    """Loader processes for each training process: as wanted, or by the machine's cores."""
    if wanted >= 0:
        return wanted
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    spare = cores // max(1, local) - (0 if torch.cuda.is_available() else 1)
    return max(0, min(8, spare))


#: Dense bf16 peaks in operations a second, by a part of the device's name (vendor data sheets).
_PEAKS = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def peak(device: torch.device) -> float | None:
    """The device's peak for bf16 matrix products, when it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((v for k, v in _PEAKS.items() if k in name), None)
