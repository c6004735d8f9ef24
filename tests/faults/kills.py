"""Kills processes of runs at random moments, goes on, and compares with runs that nobody touched.

``python tests/faults/kills.py`` (``make faults``) does so with the demo's model on one process and
on two under every engine. Everything drawn follows from ``--seed``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
EVERY = 4  #: steps between checkpoints
MARK = "CROSSLOOM_KILLS"  #: the variable by which processes of a run are found
_STEP_WITHIN = 120.0  #: seconds for a first step, and for the ends of processes: then it is a hang
_GONE_WITHIN = 20.0  #: seconds in which loader processes learn that nobody waits for them


@dataclass(frozen=True)
class Engine:
    """How a run is spread."""

    name: str
    processes: int
    assignments: tuple[str, ...] = ()


ZERO = [Engine(f"zero-{n}", 2, ("engine=deepspeed", f"engine.stage={n}")) for n in (1, 2, 3)]
ENGINES = {
    e.name: e
    for e in (Engine("single", 1), Engine("ddp", 2), Engine("fsdp", 2, ("engine=fsdp",)), *ZERO)
}


@dataclass(frozen=True)
class Kill:
    """What dies when."""

    step: int  #: not before so many steps are done
    delay: float  #: seconds after that
    writing: bool  #: only while a checkpoint is being written
    role: str  #: rank, loader, launcher (where there is one), or all
    again: float | None = None  #: seconds after which the next start is killed too, wherever it is


def draw(kills: int, steps: int, rng: random.Random) -> list[Kill]:
    """Kills spread over a run, every role among them."""
    roles = [("rank", "loader", "all", "rank", "launcher")[n % 5] for n in range(kills)]
    rng.shuffle(roles)
    span = (steps - 2 * EVERY) / kills  # the last must find a checkpoint to be written yet
    return [
        Kill(
            step=1 + int((n + rng.random()) * span),
            delay=rng.uniform(0.0, 0.02 if n % 3 == 1 else 0.3),
            writing=n % 3 == 1,
            role=role,
            again=rng.uniform(0.3, 4.0) if n % 3 == 2 else None,
        )
        for n, role in enumerate(roles)
    ]


@dataclass
class Restart:
    """What came of one kill."""

    engine: str
    kill: Kill
    met: str = ""  #: whom it met: one that trains, where there was nobody of the role
    done: int = 0  #: steps done when the processes died
    came_from: int = 0  #: the step whose checkpoint was taken up
    seconds: float = 0.0  #: from the start of the command to the end of its first step
    faults: list[str] = field(default_factory=list)


def processes(mark: str) -> list[int]:
    """Living processes of a run's start, by its mark: launchers, those that train, loaders."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0")
            if marked and b"pretrain" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.005)
    return True


def shared_memory() -> dict[str, int]:
    """Names of what lies in shared memory, and their inodes."""
    return {x.name: x.inode() for x in os.scandir("/dev/shm")}


def lost_memory(before: dict[str, int]) -> list[str]:
    """Shared memory that was not there before and that no process has any more."""
    fresh = {n: i for n, i in shared_memory().items() if before.get(n) != i}
    held = set()
    for path in Path("/proc").glob("[0-9]*") if fresh else []:
        try:
            # by inode: the name under which it was mapped may be another
            held |= {int(x.split()[4]) for x in (path / "maps").read_text().splitlines()}
        except OSError:
            continue
    return sorted(n for n, i in fresh.items() if i not in held)


class Run:
    """A run directory and the command that fills it, started as often as it must be."""

    def __init__(
        self, engine: Engine, world: Path, out: Path, steps: int, launcher: Sequence[str] = ()
    ) -> None:
        self.engine, self.out, self.starts = engine, out, 0
        self.extensions = out.parent / "extensions"  # where DeepSpeed builds, and locks
        options = [
            "demo", f"data={world}", f"steps={steps}", "examples=8", "micro=2", "workers=1",
            "log_every=1", f"save_every={EVERY}", "stall_after=20", *engine.assignments,
            "--out", str(out), "--device", "cpu", "--resume",
        ]  # fmt: skip
        begin = [sys.executable, "-m", "crossloom", "pretrain"]
        if engine.processes > 1 or launcher:
            script, *settings = launcher or ("local.sh", "-n", str(engine.processes))
            begin = ["bash", str(ROOT / "launch" / script), *settings]
        self.command = [*begin, *options]

    @property
    def mark(self) -> str:
        """That of the latest start."""
        return f"{self.out}-{self.starts}"

    def start(self, *further: str) -> None:
        """Start the command, which goes on where the run was."""
        self.starts += 1
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {MARK: self.mark, "PATH": path, "OMP_NUM_THREADS": "1"}
        env["TORCH_EXTENSIONS_DIR"] = str(self.extensions)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.began = time.monotonic()
            self.process = subprocess.Popen(
                [*self.command, *further], env=env, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> Path:
        """What the command said, of all starts."""
        return self.out.with_suffix(".log")

    def lines(self) -> list[str]:
        """Complete lines of the journal."""
        path = self.out / "metrics.jsonl"
        return path.read_text().split("\n")[:-1] if path.is_file() else []

    def step(self) -> int:
        """Steps done."""
        lines = self.lines()
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def losses(self) -> list[dict[str, float]]:
        """By step: its number, losses and the gradient's norm, to the last digit."""
        told = (json.loads(x) for x in self.lines())
        return [
            {k: v for k, v in x.items() if k in ("step", "gradient_norm") or k.endswith("/loss")}
            for x in told
        ]

    def saved(self) -> int:
        """The step of the newest complete checkpoint."""
        return max((int(p.name[5:]) for p in self.out.glob("checkpoints/step-*")), default=0)

    def writing(self) -> bool:
        """Whether a checkpoint lies there in part."""
        return any(self.out.glob("checkpoints/.step-*.partial/*"))

    def ended(self) -> bool:
        """Whether no process is left that trains or launches; loaders may be."""
        return self.process.poll() is not None and not self.of("rank")

    def of(self, role: str) -> list[int]:
        """Processes of the latest start that have a role."""
        alive, top = processes(self.mark), self.process.pid
        if self.engine.processes == 1:
            ranks = [top] if top in alive else []
        else:
            # loaders lead groups of their own and no session; they may outlive their parents
            ranks = [p for p in alive if p != top and os_session(p) == p]
        if role == "rank":
            return ranks
        if role == "launcher":
            return [top] if top in alive and top not in ranks else []
        loaders = [p for p in alive if p not in ranks and p != top]
        return loaders if role == "loader" else alive

    def kill(self, role: str, rng: random.Random) -> str:
        """Kill one process of a role, or all; where there is none of it, one that trains.

        Returns:
            Whom it met.
        """
        found = self.of(role)
        if not found:
            role, found = ("rank", self.of("rank"))
        if not found:
            role, found = ("all", self.of("all"))
        for pid in found if role == "all" else [rng.choice(found)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return role

    def stop(self) -> None:
        """Leave nothing behind."""
        for number in range(1, self.starts + 1):
            for pid in processes(f"{self.out}-{number}"):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def left_over(self, memory: dict[str, int]) -> list[str]:
        """What a run that is over should not have left: processes, files, locks, shared memory."""
        marks = [f"{self.out}-{n}" for n in range(1, self.starts + 1)]
        wait(lambda: not any(map(processes, marks)), _GONE_WITHIN)
        alive = [f"process {pid}" for mark in marks for pid in processes(mark)]
        parts = [*self.out.rglob("*.partial"), *self.extensions.rglob("*lock*")]
        return [f"left over: {x}" for x in (*alive, *map(str, parts), *lost_memory(memory))]


def os_session(pid: int) -> int:
    """A process's session; 0 when it has ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def differing(found: Sequence[dict[str, float]], wanted: Sequence[dict[str, float]]) -> list[str]:
    """The first step that is not as it should be, if any."""
    for number, (one, two) in enumerate(zip(found, wanted, strict=False), 1):
        if one != two:
            return [f"step {number} differs from the undisturbed run: {one} instead of {two}"]
    return []


def endure(
    engine: Engine,
    kills: Sequence[Kill],
    world: Path,
    out: Path,
    *,
    steps: int,
    within: float,
    rng: random.Random,
    say: Callable[[Restart], None],
    spoil: Sequence[str] = (),
) -> list[Restart]:
    """One engine's run that is killed again and again, beside one that is not.

    Args:
        engine: of both.
        kills: by ascending step.
        world: shards and vocabulary.
        out: for the two runs.
        steps: of each.
        within: seconds in which a start must have done its first step.
        rng: chooses among processes of a role.
        say: told of every restart when its first step is done.
        spoil: assignments given to restarts alone, to see that it is noticed.
    """
    memory = shared_memory()
    whole, run = (Run(engine, world, out / x, steps) for x in ("whole", "killed"))
    whole.start()
    if whole.process.wait() or (faults := whole.left_over(memory)):
        raise RuntimeError(f"the undisturbed run failed, see {whole.log}: {faults}")
    wanted, restarts = whole.losses(), list[Restart]()
    run.start()
    try:
        for kill in kills:
            restart = Restart(engine.name, kill)
            restarts.append(restart)
            restart.faults += _kill(run, restart, rng)
            # what was trained since the restart before
            faults = differing(run.losses(), wanted)
            restarts[max(0, len(restarts) - 2)].faults += faults
            if restart.faults:
                return restarts
            _go_on(run, restart, within, rng, spoil)
            say(restart)
            if run.process.poll() is not None:
                return restarts
        last = restarts[-1].faults
        if status := run.process.wait():
            last.append(f"ended with status {status}")
        last += differing(run.losses(), wanted) + run.left_over(memory)
        if len(run.losses()) != steps:
            last.append(f"{len(run.losses())} lines of {steps} steps")
        one, two = (x.out / "model.safetensors" for x in (whole, run))
        if not two.is_file() or one.read_bytes() != two.read_bytes():
            last.append("the final weights differ from those of the undisturbed run")
    finally:
        run.stop()
    return restarts


def _kill(run: Run, restart: Restart, rng: random.Random) -> list[str]:
    """Wait for the moment, kill, and see the others end by themselves."""
    kill = restart.kill

    def due() -> bool:
        if run.process.poll() is not None:
            return True
        return run.step() >= kill.step and (not kill.writing or run.writing())

    if not wait(due, _STEP_WITHIN) or run.process.poll() is not None:
        return [f"there was no step {kill.step} to be killed at; see {run.log}"]
    time.sleep(kill.delay)
    restart.met = run.kill(kill.role, rng)
    if not wait(run.ended, _STEP_WITHIN):
        return [f"{restart.met} was killed, and the others went on; see {run.log}"]
    return []


def _go_on(
    run: Run, restart: Restart, within: float, rng: random.Random, spoil: Sequence[str]
) -> None:
    """Start again, perhaps in vain once, and measure how long the first step takes."""
    if restart.kill.again is not None:
        run.start(*spoil)
        wait(lambda: run.process.poll() is not None, restart.kill.again)
        run.kill("all", rng)
        wait(run.ended, _STEP_WITHIN)
    before, saved = set(run.lines()), run.saved()
    restart.done, restart.came_from = run.step(), saved
    run.start(*spoil)

    def fresh() -> list[str]:
        return [x for x in run.lines() if x not in before]

    wait(lambda: bool(fresh()) or run.process.poll() is not None, _STEP_WITHIN)
    restart.seconds = time.monotonic() - run.began
    if not (lines := fresh()):
        restart.faults.append(f"did not go on (status {run.process.poll()}); see {run.log}")
        return
    first = int(json.loads(lines[0])["step"]) - 1
    if first != saved:
        restart.faults.append(f"went on from step {first}; the newest checkpoint is of {saved}")
    if saved < restart.done // EVERY * EVERY - EVERY:
        restart.faults.append(f"more than one checkpoint back: from {restart.done} to {saved}")
    if restart.seconds > within:
        restart.faults.append(f"took {restart.seconds:.1f} s, more than {within:g}")


def table(restarts: Sequence[Restart]) -> Table:
    """What came of it, by engine."""
    out = Table("engine", "restarts", "exact", "slowest start", "mean", "most steps again")
    for name in dict.fromkeys(r.engine for r in restarts):
        own = [r for r in restarts if r.engine == name]
        seconds = [r.seconds for r in own]
        out.add_row(
            name,
            str(len(own)),
            str(sum(not r.faults for r in own)),
            f"{max(seconds):.1f} s",
            f"{sum(seconds) / len(own):.1f} s",
            str(max(r.done - r.came_from for r in own)),
        )
    return out


def make_world(out: Path) -> Path:
    """A small world with a vocabulary."""
    from crossloom.data_pipelines.shards import open_shards
    from crossloom.data_pipelines.tokenizer import train
    from crossloom.data_pipelines.world import write_world

    write_world(out, examples=400, dev=10, test=10, clips=10, shard_size=50, processes=1)
    train(open_shards("train-*.tar", out), out / "tokenizer.model", size=600, coverage=1.0)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, go on, report; 0 when every restart succeeded exactly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=54, help="over all engines")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--within", type=float, default=10.0, help="seconds to the first step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the runs here")
    parser.add_argument("--world", type=Path, help="shards with tokenizer.model; else made")
    parser.add_argument("--json", type=Path, help="all restarts as a file")
    parser.add_argument("--spoil", nargs="*", default=[], help="key=value, for restarts alone")
    asked = parser.parse_args(arguments)
    console, began = Console(), time.monotonic()
    restarts: list[Restart] = []
    planned = 0

    def say(restart: Restart) -> None:
        nonlocal planned
        planned += 1
        left = (time.monotonic() - began) / planned * (asked.kills - planned) / 60
        kill = restart.kill
        what = f"{restart.met} at step {restart.done}{' in a checkpoint' * kill.writing}"
        again = ", and once more while starting" * (kill.again is not None)
        console.print(
            f"{planned}/{asked.kills} {restart.engine}: {what}{again}; on from "
            f"{restart.came_from} in {restart.seconds:.1f} s · about {left:.0f} min left",
            *restart.faults,
            soft_wrap=True,
        )

    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        out = asked.out.resolve() if asked.out else Path(scratch)
        world = asked.world.resolve() if asked.world else make_world(out / "world")
        for number, name in enumerate(asked.engines):
            rng = random.Random(f"{asked.seed} {name}")
            many = len(range(number, asked.kills, len(asked.engines)))
            kills = draw(many, asked.steps, rng)
            restarts += endure(
                ENGINES[name], kills, world, out / name, steps=asked.steps, within=asked.within,
                rng=rng, say=say, spoil=asked.spoil,
            )  # fmt: skip
    console.print(table(restarts))
    for restart in restarts:
        for fault in restart.faults:
            said = f"{restart.engine}, killed after step {restart.done}: {fault}"
            console.print(said, soft_wrap=True)
    good = sum(not r.faults for r in restarts)
    if asked.json:
        lines = [asdict(r) for r in restarts]
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"seed": asked.seed, "restarts": lines}, indent=1) + "\n")
    console.print(f"{good} of {asked.kills} restarts succeeded exactly")
    return 0 if good == asked.kills else 1


if __name__ == "__main__":
    sys.exit(main())
