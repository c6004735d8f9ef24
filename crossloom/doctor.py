"""What the machine offers."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

from crossloom.data_pipelines import cache


def findings() -> list[tuple[str, str]]:
    """Pairs of (what, found): versions, cores, memory, devices, disk."""
    out = [
        ("python", platform.python_version()),
        ("machine", f"{platform.machine()}, {os.cpu_count()} cores"),
    ]
    for name in ("crossloom", "torch", "torchvision", "timm", "open_clip_torch", "sentencepiece",
                 "webdataset", "deepspeed"):  # fmt: skip
        try:
            out.append((name, version(name)))
        except PackageNotFoundError:
            out.append((name, "missing: install crossloom with its dependencies"))
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        out.append(("torchvision", f"does not import ({error}): install torch and torchvision "
                                   "from the same build family"))  # fmt: skip
    import torch

    if torch.cuda.is_available():
        out += [
            (f"cuda:{n}", torch.cuda.get_device_name(n)) for n in range(torch.cuda.device_count())
        ]
    else:
        out.append(("cuda", "none: everything runs on the CPU"))
    out.append(("shard cache", f"{cache.folder()}, {cache.limit() / 1e9:g} GB at most"))
    free = shutil.disk_usage(".").free / 2**30
    out.append(("disk here", f"{free:.0f} GiB free"))
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").free / 2**30
        advice = "" if shared > 1 else ": little; loader workers may fail"
        out.append(("shared memory", f"{shared:.1f} GiB free{advice}"))
    return out
