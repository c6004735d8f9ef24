"""The weights that do best on data held back, kept beside the checkpoints while a run trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.training import checkpoint
from crossloom.training.checkpoint import Piece
from crossloom.training.environment import Environment
from crossloom.training.held import Best, Measured, figure
from crossloom.training.saver import Saver

#: Gives everything that a checkpoint holds (:meth:`~crossloom.training.engine.Engine.state`).
State = Callable[[], Mapping[str, Piece]]


@dataclass
class Selected:
    """Weights in a folder of their own; all but the best are removed, and what goes on needs."""

    by: str  #: component/objective that selects; empty to select none
    checkpoints: Path  #: of the run: a run that goes on from one needs the weights it had selected
    environment: Environment
    best: Best | None = None  #: the measurement whose weights are selected so far

    def __post_init__(self) -> None:
        self._saver = Saver(self.checkpoints / "selected", self.environment, keep=0)

    def consider(self, step: int, measured: Measured, state: State) -> None:
        """Keep the weights of a state if no earlier ones did better; called by all processes."""
        if not self.by:
            return
        now = figure(self.by, measured, step)
        if self.best is not None and not self.best.beaten(now):
            return
        weights = {n: p for n, p in state().items() if n.startswith("model/")}
        self._saver.begin(step, weights, {})
        self._saver.finish()
        if self.environment.told(self._folder(step).is_dir):
            self.best = now
        if self.environment.main:
            self._drop_beaten()

    def notes(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        return asdict(self.best) if self.best else None

    def finish(self) -> dict[str, Tensor]:
        """The weights selected, when the run is over."""
        assert self.best is not None
        self._drop_beaten()
        return checkpoint.load(self._folder(self.best.step)).weights

    def _folder(self, step: int) -> Path:
        return checkpoint.folder_of(self._saver.folder, step)

    def _drop_beaten(self) -> None:
        saved = checkpoint.checkpoints(self.checkpoints)
        notes = [json.loads((path / "state.json").read_text()) for path in saved]
        wanted = {n["best"]["step"] for n in notes if n.get("best")}
        wanted |= {self.best.step} if self.best else set()
        kept = {self._folder(step) for step in wanted}
        for path in checkpoint.checkpoints(self._saver.folder):
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
