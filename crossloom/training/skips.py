"""Steps that are not taken: gradients that are not finite, or far larger than lately."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossloom.batch import Batch
from crossloom.training.checkpoint import write_atomically
from crossloom.training.environment import Environment
from crossloom.training.quarantine import RunError
from crossloom.training.recipe import Recipe

#: The list in a run directory.
FILE = "skipped.jsonl"
_KEPT = 0.99  #: of the mean of norms, at each step
_FIRST = 20  #: norms before which their mean says nothing


@dataclass
class Skips:
    """Which steps are taken, by the norm of the whole gradient, which all processes share."""

    spike: float
    """Norms of more than so many times their running mean are not believed; 0 to believe them."""
    most: int
    """Steps skipped that are too many when one more follows."""
    total: int = 0
    mean: float = 0.0
    seen: int = 0
    reason: str = ""
    """Why the latest step was skipped; empty where it was taken."""

    def accept(self, norm: float) -> bool:
        """Whether a step with a gradient of this norm is to be taken: before clipping."""
        self.reason = ""
        if not math.isfinite(norm):
            self.reason = f"the gradient's norm is {norm}"
        elif self.spike and self.seen >= _FIRST and norm > self.spike * self.mean:
            times = norm / self.mean
            self.reason = f"the gradient's norm is {norm:.3g}, {times:.1f} times its mean of late"
        if self.reason:
            self.total += 1
            return False
        # as long as few were seen, their plain mean
        self.seen += 1
        self.mean += (norm - self.mean) * max(1 - _KEPT, 1 / self.seen)
        return True

    def note(
        self, step: int, batches: Sequence[Batch], folder: Path, environment: Environment
    ) -> None:
        """Write down the batch of a step that was skipped; called by all processes.

        Raises:
            RunError: more steps were skipped than the recipe allows.
        """
        found = environment.gather([k for b in batches for k in b.keys])
        if environment.main:
            line = {
                "step": step,
                "reason": self.reason,
                "keys": [k for some in found for k in some],
            }
            with (folder / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.total > self.most:
            raise RunError(
                f"step {step}: {self.reason}; {self.total} steps were skipped (skips allows "
                f"{self.most}), see {folder / FILE}; lower optim.rate or optim.clip, or look at "
                f"one with --debug-step {step}"
            )

    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run decides alike."""
        return {"total": self.total, "mean": self.mean, "seen": self.seen}


def begin(recipe: Recipe, notes: Mapping[str, Any]) -> Skips:
    """Where a run stands: at its start, or by what :meth:`Skips.notes` kept."""
    return Skips(recipe.spike, recipe.skips, **notes)


def forget(folder: Path, after: int) -> None:
    """Drop what was listed of steps that a resumed run takes again."""
    path = folder / FILE
    if path.is_file():
        lines = [x for x in path.read_text("utf-8").splitlines(True) if _step(x) <= after]
        write_atomically(path, "".join(lines))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short
