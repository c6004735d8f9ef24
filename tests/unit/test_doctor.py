"""The doctor says what to mend, and nothing where all is well."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from crossloom import doctor
from crossloom.testing.processes import run_ranks


def test_a_disk_that_is_well(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "DISK", 0.0)
    monkeypatch.setattr(doctor, "FLUSH", float("inf"))
    found = doctor.disk(tmp_path, size=1 << 20)
    assert not found.mend
    assert "MB/s" in found.found
    assert not list(tmp_path.iterdir())  # nothing stays behind
    # a folder that is still to be made lies on the disk of the nearest that is there
    assert "MB/s" in doctor.disk(tmp_path / "runs" / "new", size=1 << 20).found


def test_a_slow_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "DISK", float("inf"))
    assert "save less often" in doctor.disk(tmp_path, size=1 << 20).mend


@pytest.mark.parametrize(
    ("number", "mend"),
    [("EROFS", "right to write"), ("EACCES", "right to write"), ("ENOSPC", "make room"),
     ("EDQUOT", "quota"), ("EIO", "mend the disk")],
)  # fmt: skip
def test_every_refusal_of_a_disk_has_its_remedy(tmp_path, monkeypatch, number, mend):
    import errno

    def refuse(descriptor):
        raise OSError(getattr(errno, number), number)

    monkeypatch.setattr(doctor.os, "fsync", refuse)
    found = doctor.disk(tmp_path, size=1 << 10)
    assert found.found == f"cannot be written ({number})"
    assert mend in found.mend
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("size=1m", "1 MB free: full: make room"),
        ("ro", "cannot be written (Read-only file system)"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_nothing(tmp_path, options, said):
    script = (
        f"mount -t tmpfs -o {options} none {tmp_path} && {sys.executable} -c "
        f"'from crossloom.doctor import *; print(disk(Path(\"{tmp_path}\"), size=1 << 20))'"
    )
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("mounts cannot be made here")
    assert done.stdout.startswith(said)


def test_shared_memory_that_is_too_small_or_missing(tmp_path):
    assert not doctor.memory(tmp_path, least=0).mend
    assert "workers=0" in doctor.memory(tmp_path, least=1e9).mend
    assert doctor.memory(tmp_path / "none").found == f"no {tmp_path / 'none'}"


def test_clocks_that_differ_are_named_with_their_host():
    assert not doctor.clocks([0.0, -0.01], ["a", "b"]).mend
    found = doctor.clocks([0.0, 0.2, -7.0], ["a", "b", "c"])
    assert found.found == "rank 2 (c) is 7.0 s behind rank 0 (a)"
    assert "NTP" in found.mend


def test_other_versions_are_named_with_their_host():
    same, other = ["0.1", "2.11", "0.26"], ["0.1", "2.12", "0.26"]
    assert not doctor.agreement([same, same], ["a", "b"]).mend
    assert doctor.agreement([same, other], ["a", "b"]).found == "torch 2.12 on b, 2.11 on a"


def look() -> dict[str, str]:
    return {f.what: str(f) for f in doctor.others("cpu")}


@pytest.mark.distributed
def test_processes_say_what_they_reach_of_each_other():
    for found in run_ranks(2, look):
        assert found["processes"].startswith("2 on 1 hosts meet by gloo; a sum takes")
        assert found["clocks"].startswith("agree within")
        assert found["versions"] == "the same on all processes"


def test_processes_that_do_not_meet_say_where_they_looked(monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", timedelta(seconds=1))
    variables = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (found,) = doctor.others("cpu")
    assert "do not meet" in found.found
    assert "127.0.0.1:1" in found.mend
