"""Running a function in several processes that form a gloo group."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(*arguments)`` on ``world`` processes; return their results by rank.

    Each process has the variables that a launcher sets (``RANK``, ``WORLD_SIZE``, …) and may join
    the group with :func:`crossloom.training.environment.start`. The function must be importable.

    Raises:
        RuntimeError: a process failed; carries its message.
    """
    context = get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        context.Process(target=_rank, args=(n, world, port, results, function, arguments))
        for n in range(world)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    error = None
    for _ in ranks:
        rank, value, message = results.get()
        found[rank] = value
        if message:
            error = f"rank {rank}: {message}"
            break
    for process in ranks:
        if error:
            process.kill()  # training takes SIGTERM as a wish, and may wait for the one that failed
        process.join()
    if error:
        raise RuntimeError(error)
    return [found[n] for n in range(world)]


def _rank(
    rank: int, world: int, port: int, results: Any, function: Any, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    torch.set_num_threads(1)
    try:
        results.put((rank, function(*arguments), ""))
    except Exception as error:
        results.put((rank, None, f"{type(error).__name__}: {error}"))
    finally:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
