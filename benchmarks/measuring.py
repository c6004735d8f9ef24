"""What the benchmarks have in common: clocks, memory, the machine, tables."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

UNMEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """One figure."""

    section: str
    what: str
    unit: str
    value: float | None = None  #: None where it was not measured
    goal: float | None = None
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether an error is no larger than it may be."""
        return self.value is not None and self.goal is not None and self.value <= self.goal


def table(rows: Iterable[Row]) -> str:
    """Figures in columns."""
    lines = [("section", "figure", "value", "unit", "goal", "")]
    for row in rows:
        value = UNMEASURED if row.value is None else f"{row.value:,.4g}"
        goal = "" if row.goal is None else f"{row.goal:,.4g}"
        lines.append((row.section, row.what, value, row.unit, goal, row.note))
    widths = [max(len(line[n]) for line in lines) for n in range(5)]
    return "\n".join(
        "  ".join([*(x.ljust(w) for x, w in zip(line, widths, strict=False)), line[5]]).rstrip()
        for line in lines
    )


def write(path: Path, device: torch.device, rows: Iterable[Row], **more: Any) -> None:
    """Figures and what they were measured on, as JSON; what was not measured is null."""
    found = {"machine": machine(device), **more, "rows": [asdict(r) for r in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n")


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What figures are measured on: processor, threads, versions; of a GPU name, driver, clocks."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in ("transformers", "open_clip_torch", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if torch.device(device).type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        found |= clocks()
    return found


def clocks() -> dict[str, str]:
    """Driver, clocks, temperature and power of the first GPU now, as ``nvidia-smi`` tells them."""
    asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(asked.split(","), (x.strip() for x in told.split(",")), strict=True))


def wait(device: torch.device | str) -> None:
    """Until all queued work is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], Any], device: torch.device | str, repeats: int) -> float:
    """Median time of a step, after two that are not timed."""
    times = []
    for turn in range(repeats + 2):
        wait(device)
        begin = time.perf_counter()
        step()
        wait(device)
        if turn >= 2:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def added(step: Callable[[], Any], device: torch.device | str) -> float | None:
    """Bytes on a GPU that a step adds at its peak to what lay there before; None elsewhere."""
    if torch.device(device).type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    wait(device)
    return float(torch.cuda.max_memory_allocated() - before)


def resident(name: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at the peak."""
    line = next(x for x in open("/proc/self/status") if x.startswith(name))  # noqa: SIM115
    return int(line.split()[1]) * 1024
