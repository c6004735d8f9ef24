"""Several hosts on one machine: network namespaces on one switch, each with its own address."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def address(host: int) -> str:
    """The address of a host, which only the other hosts reach."""
    return f"10.83.0.{host + 1}"


class Hosts:
    """Namespaces joined by a bridge that lies in a namespace of its own."""

    def __init__(self, count: int) -> None:
        self.count, self.name = count, f"cl{os.getpid()}"

    def make(self) -> None:
        """Plug every host into the switch; nothing leads out of it."""
        switch = f"{self.name}s"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in range(self.count):
            name = f"{self.name}h{host}"
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", f"port{host}", "type", "veth",
                "peer", "name", "eth0", "netns", name)  # fmt: skip
            _ip("-n", switch, "link", "set", f"port{host}", "master", "bridge", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")

    def start(self, host: int, command: list[str], **options) -> subprocess.Popen:
        """Start a command on a host."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "PATH": path}
        inside = ["ip", "netns", "exec", f"{self.name}h{host}", *command]
        return subprocess.Popen(inside, env=env, start_new_session=True, **options)

    def cut(self, host: int) -> None:
        """Pull a host's plug: its packets go nowhere, and nobody is told."""
        _ip("-n", f"{self.name}s", "link", "set", f"port{host}", "down")

    def remove(self) -> None:
        """Remove what was made."""
        for name in [f"{self.name}s", *(f"{self.name}h{n}" for n in range(self.count))]:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Hosts for the time of a test, which is skipped where none can be made."""
    if not shutil.which("ip"):
        pytest.skip("network namespaces need the program `ip` (iproute2)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Hosts(count)
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.remove()
