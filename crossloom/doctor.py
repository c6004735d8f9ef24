"""What the machine offers, what the processes of a run reach of each other, and what to mend."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from crossloom.data_pipelines import cache

if TYPE_CHECKING:
    from crossloom.training.environment import Environment

PACKAGES = ("crossloom", "torch", "torchvision", "timm", "open_clip_torch", "sentencepiece",
            "webdataset", "deepspeed")  # fmt: skip
#: Below these, or above them, a run suffers: GiB, MB a second, milliseconds, seconds.
SHARED, DISK, FLUSH, SKEW = 1.0, 50.0, 100.0, 1.0
_SIZE = 32 << 20  #: bytes written to measure a disk
_PATIENCE = timedelta(seconds=60)  #: for the other processes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    mend: str = ""
    """What to do about it; empty where all is well."""

    def __str__(self) -> str:
        return f"{self.found}: {self.mend}" if self.mend else self.found


def findings(
    folders: Sequence[Path] = (), device: str = "", shared: Path = Path("/dev/shm")
) -> Iterator[Finding]:
    """Look at this machine, at folders, and, under a launcher, at the other processes.

    Args:
        folders: where shards and checkpoints lie, to be written to and read from.
        device: ``"cpu"`` or ``"cuda"``, by which processes talk; the best there is when empty.
        shared: where shared memory is mounted.

    Yields:
        What was found, in an order that is the same on all processes.
    """
    yield from software()
    yield from devices()
    yield Finding("shard cache", f"{cache.folder()}, {cache.limit() / 1e9:g} GB at most")
    yield memory(shared)
    for folder in folders or (Path(),):
        yield disk(folder)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield from others(device)


def software() -> Iterator[Finding]:
    """Versions of what crossloom stands on."""
    yield Finding("python", platform.python_version())
    yield Finding("machine", f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores")
    for name in PACKAGES:
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "install crossloom with its dependencies")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        mend = "install torch and torchvision from the same build family"
        yield Finding("torchvision", f"does not import ({error})", mend)


def devices() -> Iterator[Finding]:
    """GPUs, and the backends by which processes can talk."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            mend = "" if free > total / 2 else "end what else runs there"
            room = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
            yield Finding(f"cuda:{number}", f"{name}, {room}", mend)
    elif shutil.which("nvidia-smi"):
        mend = "install a torch that is built for this driver (nvidia-smi shows which)"
        yield Finding("cuda", "there is a driver, but torch sees no GPU", mend)
    else:
        yield Finding("cuda", "none: everything runs on the CPU")
    here = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    yield Finding("backends", ", ".join(k for k, there in here.items() if there) or "none")


def memory(folder: Path, least: float = SHARED) -> Finding:
    """Room in shared memory, through which loader processes hand batches over.

    Args:
        folder: where it is mounted.
        least: GiB that should be there.
    """
    if not folder.is_dir():
        return Finding("shared memory", f"no {folder}", "set workers=0, or mount it")
    found = shutil.disk_usage(folder)
    free = found.free / 2**30
    said = f"{free:.1f} of {found.total / 2**30:.1f} GiB free"
    mend = f"too little, loader processes may die; enlarge {folder} (docker: --shm-size, " \
           "Kubernetes: an emptyDir in memory) or set workers=0"  # fmt: skip
    return Finding("shared memory", said, "" if free >= least else mend)


def disk(folder: Path, size: int = _SIZE) -> Finding:
    """Write a file into a folder, flush it, read it back and remove it.

    Args:
        folder: where shards or checkpoints lie, or will lie.
        size: bytes to write.
    """
    what = f"disk of {folder.resolve()}"
    there = folder
    while not there.exists():
        there = there.resolve().parent
    free = shutil.disk_usage(there).free
    if free < 2 * size:
        return Finding(what, f"{free / 1e6:.0f} MB free", "full: make room")
    path = there / f".crossloom-doctor-{platform.node()}-{os.getpid()}"
    data = os.urandom(size)
    try:
        began = time.perf_counter()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - began
        began = time.perf_counter()
        with path.open("r+b") as file:  # a small change, flushed: what a manifest costs
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
        flushed = 1000 * (time.perf_counter() - began)
        began = time.perf_counter()
        whole = path.read_bytes()[1:] == data[1:]
        read = time.perf_counter() - began
    except OSError as error:
        return Finding(what, f"cannot be written ({error.strerror})", _mended(error))
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    if not whole:
        return Finding(what, "gives back other bytes than were written", "do not use it")
    speed = size / 1e6 / written
    said = (
        f"{free / 2**30:.0f} GiB free, writes {speed:.0f} MB/s, reads "
        f"{size / 1e6 / read:.0f} MB/s (as cached), flushes in {flushed:.0f} ms"
    )
    slow = speed < DISK or flushed > FLUSH
    return Finding(what, said, "slow: save less often, or to a faster disk" if slow else "")


def _mended(error: OSError) -> str:
    import errno

    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "checkpoints cannot go there; give this user the right to write, or choose another"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "full: make room, or raise the quota"
    return "mend the disk, or choose another"


def others(device: str = "") -> Iterator[Finding]:
    """What the processes of a launcher reach of each other, and whether their clocks agree."""
    import torch.distributed as dist

    from crossloom.training.environment import start

    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        environment = start(device, _PATIENCE)
        speed = _speed(environment)
    except (RuntimeError, ValueError) as error:
        mend = (
            f"look whether every machine reaches {address} (firewall, MASTER_ADDR), and set "
            "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the interface that the others reach"
        )
        yield Finding("processes", f"do not meet ({_first_line(error)})", mend)
        return
    world, names = environment.world, environment.gather(platform.node())
    met = f"{world} on {len(set(names))} hosts meet by {dist.get_backend()}"
    yield Finding("processes", f"{met}; {speed}")
    yield agreement(environment.gather([str(f) for f in software() if f.what in PACKAGES]), names)
    yield clocks(_offsets(environment), names)


def agreement(versions: Sequence[Sequence[str]], names: Sequence[str]) -> Finding:
    """Whether all processes have the same packages.

    Args:
        versions: of ``PACKAGES``, by rank.
        names: of the hosts, by rank.
    """
    strange = {
        f"{package} {here} on {name}, {first} on {names[0]}"
        for some, name in zip(versions, names, strict=True)
        for package, here, first in zip(PACKAGES, some, versions[0], strict=False)
        if here != first
    }
    if not strange:
        return Finding("versions", "the same on all processes")
    return Finding("versions", "; ".join(sorted(strange)), "install the same on all machines")


def clocks(offsets: Sequence[float], names: Sequence[str], most: float = SKEW) -> Finding:
    """How far the processes' clocks lie apart.

    Args:
        offsets: seconds ahead of rank 0, by rank.
        names: of the hosts, by rank.
        most: seconds that do no harm.
    """
    rank = max(range(len(offsets)), key=lambda n: abs(offsets[n]))
    skew = offsets[rank]
    if abs(skew) <= most:
        return Finding("clocks", f"agree within {abs(skew):.3f} s")
    way = "ahead of" if skew > 0 else "behind"
    said = f"rank {rank} ({names[rank]}) is {abs(skew):.1f} s {way} rank 0 ({names[0]})"
    return Finding("clocks", said, "synchronise them (NTP): logs mislead, shards look out of date")


def _offsets(environment: Environment) -> list[float]:
    """Seconds that each process's clock is ahead of the first one's: the least of some looks."""
    looks = []
    for _ in range(5):
        environment.barrier()
        found = environment.gather(time.time())
        looks.append([x - found[0] for x in found])
    return [min(some, key=abs) for some in zip(*looks, strict=True)]


def _speed(environment: Environment) -> str:
    """How long sums over all processes take, small and large."""
    import torch
    import torch.distributed as dist

    values = torch.zeros(4 << 20, device=environment.device)
    times = []
    for some in (values[:1], values[:1], values):
        environment.barrier()
        began = time.perf_counter()
        dist.all_reduce(some)
        float(some[0])  # waits for the device
        times.append(time.perf_counter() - began)
    return f"a sum takes {1000 * times[1]:.1f} ms, of 16 MiB {1000 * times[2]:.0f} ms"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
