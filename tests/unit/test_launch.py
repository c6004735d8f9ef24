"""Launchers: each ends in the same ``crossloom pretrain``, and says so when it runs dry."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
GIVEN = ["demo", "examples=32", "--out", "runs/a b"]
SIGNALS = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]


def launch(script, *arguments, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMP", "CROSSLOOM"))}
    command = ["bash", str(LAUNCH / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env | variables, cwd=ROOT)


def dry(script, *arguments, **variables):
    """The command that a dry run prints last, its settings left out."""
    done = launch(script, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[0].startswith("OMP_NUM_THREADS=")
    return [Path(words[1]).name, *words[2:]]


def test_local_starts_processes_of_one_machine():
    assert dry("local.sh", "-n", 2, "--dry-run", *GIVEN) == [
        "torchrun", "--standalone", "--nproc-per-node", "2", *SIGNALS,
        "-m", "crossloom", "pretrain", *GIVEN,
    ]  # fmt: skip
    again = dry("local.sh", "-n", 2, "--restarts", 3, "--dry-run", *GIVEN)
    assert again[6:] == ["--max-restarts", "3", "-m", "crossloom", "pretrain", *GIVEN, "--resume"]


def test_a_shell_that_looks_for_folders_elsewhere_changes_nothing():
    plain, other = (
        launch("local.sh", "-n", 2, "--dry-run", *GIVEN, **more).stdout
        for more in ({}, {"CDPATH": f".:{ROOT}"})
    )
    assert plain == other


@pytest.mark.parametrize(
    ("processes", "given", "threads"),
    [(5, {}, 2), (20, {}, 1), (5, {"OMP_NUM_THREADS": "7"}, 7)],
)
def test_processes_share_the_cores(tmp_path, processes, given, threads):
    (tmp_path / "nproc").write_text("#!/bin/sh\necho 12\n")
    (tmp_path / "nproc").chmod(0o755)
    given = given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = launch("local.sh", "-n", processes, "--dry-run", *GIVEN, **given).stdout
    assert said.startswith(f"OMP_NUM_THREADS={threads} ")


def test_nodes_meet_at_the_first_of_them():
    first, second = (
        dry("nodes.sh", "--nodes", 2, "--node", n, "--at", "a:29500", "-n", 4, "--dry-run", *GIVEN)
        for n in (0, 1)
    )
    assert first == [
        "torchrun", "--nnodes", "2", "--nproc-per-node", "4", *SIGNALS, "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "a:29500", "--rdzv-id", "crossloom", "--rdzv-conf", "is_host=true",
        "-m", "crossloom", "pretrain", *GIVEN,
    ]  # fmt: skip
    assert [x for x, y in zip(second, first, strict=True) if x != y] == ["is_host=false"]


def test_deepspeed_reads_the_hostfile(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines\none slots=2\ntwo slots=4\n")
    assert dry("deepspeed.sh", "--hostfile", hosts, "--dry-run", *GIVEN) == [
        "deepspeed", "--master_port", "29500", "--no_local_rank", "--hostfile", str(hosts),
        "--module", "crossloom", "pretrain", *GIVEN,
    ]  # fmt: skip
    hosts.write_text("one slots=2\ntwo 4\n")
    done = launch("deepspeed.sh", "--hostfile", hosts, "--dry-run", *GIVEN)
    assert done.returncode == 2
    assert f"{hosts}:2:two 4: write HOST slots=PROCESSES" in done.stderr


def test_slurm_starts_one_task_on_each_node_and_goes_on_where_it_was():
    found = {"SLURM_NNODES": "3", "SLURM_JOB_ID": "70042", "SLURM_NODEID": "2"}
    done = launch("slurm.sbatch", "--dry-run", *GIVEN, **found, SLURM_GPUS_ON_NODE="8")
    task = next(x for x in done.stdout.splitlines() if x.startswith("srun "))
    assert "--ntasks-per-node=1" in shlex.split(task)
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[2:6] == ["--nnodes", "3", "--nproc-per-node", "8"]
    assert command[command.index("--rdzv-id") + 1] == "70042"
    assert command[command.index("--rdzv-endpoint") + 1].endswith(":20042")
    assert command[command.index("-m") :] == ["-m", "crossloom", "pretrain", *GIVEN, "--resume"]
    assert "SLURM_NNODES=3" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_hands_signals_on_and_goes_back_into_the_queue(tmp_path, number):
    heard = tmp_path / "heard"
    fakes = {
        # a step that takes its time to leave, as one that writes a checkpoint does
        "srun": "trap 'echo USR1 >>$HEARD; sleep 0.3; exit 1' USR1\n"
        "trap 'echo TERM >>$HEARD; sleep 0.3; exit 1' TERM\n"
        "echo started >>$HEARD; for i in $(seq 200); do sleep 0.1; done",
        "scontrol": 'echo "scontrol $*" >>$HEARD',
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HEARD": str(heard)}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    job = subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch"), *GIVEN], env=env, cwd=ROOT)
    limit = time.monotonic() + 20
    while "started" not in (heard.read_text() if heard.exists() else ""):
        assert time.monotonic() < limit
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(20) == 1
    name = number.name.removeprefix("SIG")
    lines = [x for x in heard.read_text().splitlines() if "hostnames" not in x]
    assert lines == ["started", name, "scontrol requeue 7"]


@pytest.mark.parametrize("status", [0, 3])
def test_a_slurm_job_that_nobody_stopped_ends_as_its_run_does(tmp_path, status):
    for name, body in {"srun": f"exit {status}", "scontrol": 'echo "asked: $*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = launch("slurm.sbatch", *GIVEN, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == status
    assert "requeue" not in done.stdout


def test_pods_of_the_kubernetes_job_run_what_nodes_would():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 2
    variables = {x["name"]: x["value"] for x in container["env"]} | {"JOB_COMPLETION_INDEX": "1"}
    words = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], x) for x in container["args"]]
    (script,) = container["command"]
    command = dry(Path(script).name, "-n", 8, "--dry-run", *words)
    assert command[command.index("--nnodes") + 1] == str(spec["completions"])
    at = command[command.index("--rdzv-endpoint") + 1]
    # the name that Kubernetes gives the first pod, within the headless service
    assert at.split(":")[0] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert command[command.index("-m") :][:4] == ["-m", "crossloom", "pretrain", "demo"]
    assert command[-1] == "--resume"


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("local.sh", ["-n", "two", "demo"], "-n two: not a number of processes"),
        ("local.sh", ["-n", "2"], "usage: launch/local.sh"),
        ("nodes.sh", ["--nodes", 2, "--at", "a:1", "demo"], "usage: launch/nodes.sh"),
        ("nodes.sh", ["--nodes", 2, "--node", 0, "--at", "a", "demo"], "--at a: write HOST:PORT"),
        ("deepspeed.sh", ["--hostfile", "/nowhere", "demo"], "/nowhere: cannot be read"),
        ("slurm.sbatch", ["--dry-run"], "usage: sbatch launch/slurm.sbatch"),
    ],
)
def test_what_is_missing_is_named(script, arguments, said):
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("script", ["local.sh", "nodes.sh", "deepspeed.sh"])
def test_scripts_say_how_they_are_called(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script} [" in done.stdout or f"launch/{script} --" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    done = subprocess.run(
        ["shellcheck", "-x", "-P", str(ROOT), *map(str, SCRIPTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
