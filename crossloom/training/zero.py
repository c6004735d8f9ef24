"""DeepSpeed: ZeRO 0 to 3, with the optimiser's state or the parameters on the host.

Parameters stay in fp32 and bf16 is autocast, as everywhere else: slow encoders move by less than
bf16 can tell. What a process holds is found through DeepSpeed's own bookkeeping: stages 1 and 2
keep a stretch of each group of parameters laid end to end, stage 3 a stretch of each parameter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossloom.models.model import CrossloomModel
from crossloom.training.checkpoint import Piece
from crossloom.training.ddp import Whole, state_of
from crossloom.training.environment import Environment
from crossloom.training.optim import MOMENTS
from crossloom.training.quarantine import RunError
from crossloom.training.spread import Accept, Backend, Spread, passes

if TYPE_CHECKING:
    from crossloom.training.recipe import Recipe

Host = Literal["optimiser", "parameters"]


@dataclass(frozen=True, kw_only=True)
class DeepSpeed(Backend):
    """DeepSpeed's ZeRO (Rajbhandari et al., 2020)."""

    stage: Literal[0, 1, 2, 3] = 2
    """What is in parts: nothing (0), the optimiser's state (1), gradients too (2), parameters too
    (3)."""
    offload: tuple[Host, ...] = ()
    """What is kept in the host's memory: ``optimiser`` from stage 1 on, ``parameters`` in stage 3
    (beside the optimiser's state)."""

    def __post_init__(self) -> None:
        if self.offload and self.stage == 0:
            raise ValueError("engine.offload: stage 0 keeps everything on the device; use stage 1")
        if "parameters" in self.offload and (self.stage < 3 or "optimiser" not in self.offload):
            raise ValueError(
                "engine.offload: parameters are offloaded in stage 3, together with the optimiser"
            )

    def spread(self, model: CrossloomModel, recipe: Recipe, environment: Environment) -> Spread:
        """See :class:`~crossloom.training.spread.Backend`."""
        if recipe.optim.kind == "lamb" and self.stage:
            raise ValueError(
                "optim.kind: lamb needs whole parameters, which ZeRO lays end to end; use engine "
                "ddp or fsdp, or stage 0"
            )
        if scalars := [n for n, p in model.named_parameters() if p.dim() == 0]:
            raise ValueError(
                f"engine: deepspeed cannot have {scalars[0]}, a scalar; make it a vector of one"
            )
        kind = {0: Zero, 1: Stretches, 2: Stretches, 3: Parts}[self.stage]
        return kind(model, recipe, environment, self)

    def settings(self, recipe: Recipe, environment: Environment) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        zero: dict[str, Any] = {"stage": self.stage}
        names = {"optimiser": "offload_optimizer", "parameters": "offload_param"}
        pinned = environment.device.type == "cuda"
        zero |= {names[x]: {"device": "cpu", "pin_memory": pinned} for x in self.offload}
        if self.stage == 3:
            # nothing stays gathered between steps: what is in parts is then all there is
            zero["stage3_param_persistence_threshold"] = 0
        half = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        return {
            "train_micro_batch_size_per_gpu": recipe.examples,
            "gradient_accumulation_steps": passes(recipe, environment),
            "gradient_clipping": recipe.optim.clip if self.stage else 0.0,
            "steps_per_print": 10**9,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            **({"torch_autocast": half} if recipe.precision == "bf16" else {}),
        }


class Zero(Whole):
    """See :class:`~crossloom.training.spread.Spread`: DeepSpeed with nothing in parts."""

    def __init__(
        self, model: CrossloomModel, recipe: Recipe, environment: Environment, spec: DeepSpeed
    ) -> None:
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        # on CPUs DeepSpeed would compile an extension at the first start, for minutes, and a
        # process killed meanwhile would leave a lock behind that stops all later ones; gloo does
        deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", None)
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        super().__init__(model, model, recipe)
        self.engine: Any
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=model,
            optimizer=self.optimiser,
            config=spec.settings(recipe, environment),
            dist_init_required=False,
        )
        self.module = self.engine

    def turn(self, last: bool) -> AbstractContextManager[Any]:
        """DeepSpeed counts by itself."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DeepSpeed must not divide by the number of batches once more."""
        self.engine.backward(loss, scale_wrt_gas=False)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only counts

    def update(self, accept: Accept | None) -> tuple[Tensor, bool]:
        """Clip, and step if it is accepted."""
        norm = self.clip()
        if taken := accept is None or accept(float(norm)):
            self.engine.step()
        else:
            self.engine.zero_grad()
            self.engine.micro_steps += 1  # it counts where it steps
        return norm, taken


class Stretches(Zero):
    """Stages 1 and 2: of each group, laid end to end, the optimiser has one stretch here."""

    def clip(self) -> Tensor:
        """DeepSpeed clips when it steps."""
        return torch.zeros(())

    def update(self, accept: Accept | None) -> tuple[Tensor, bool]:
        """Clip and step; DeepSpeed knows the norm only when it has stepped."""
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), device=self.engine.device)
        if accept is not None and not accept(float(norm)):
            raise RunError(
                f"the gradient's norm is {float(norm):.6g}, and DeepSpeed leaves out no step from "
                "stage 1 on; go on from the last checkpoint with --resume, by engine=ddp or fsdp"
            )
        return norm.detach(), True

    def parameters(self) -> Mapping[str, Piece]:
        """Stretches of those trained; those frozen are whole."""
        out = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                out[name] = Piece.whole(parameter)
            elif found := parameter._hp_mapping:  # type: ignore[attr-defined]
                shape, start = tuple(parameter.shape), found.lp_fragment_address.start
                out[name] = Piece(found.hp_fragment.detach(), shape, start)
        return out

    def moments(self) -> Mapping[str, Piece]:
        """The same stretches of the optimiser's state."""
        out = {}
        pieces = self.parameters()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name in pieces:
                found = parameter._hp_mapping  # type: ignore[attr-defined]
                flat = self.zero.single_partition_of_fp32_groups[found.param_group_index]
                at = found.hp_fragment_address
                state = state_of(self.optimiser, flat)
                for key in MOMENTS:
                    part = state[key].narrow(0, at.start, at.numel)
                    out[f"{key}/{name}"] = pieces[name].beside(part)
        return out

    def renew(self) -> None:
        """Let all processes have the whole parameters anew."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                whole = torch.zeros_like(parameter).view(-1)
                if found := parameter._hp_mapping:  # type: ignore[attr-defined]
                    at = found.lp_fragment_address
                    whole.narrow(0, at.start, at.numel).copy_(found.hp_fragment)
                dist.all_reduce(whole)
                parameter.data.view(-1).copy_(whole)


class Parts(Stretches):
    """Stage 3: of each parameter, one stretch is here."""

    def rest(self) -> None:
        """DeepSpeed lets go of each layer after its turn."""

    def local(self, parameter: nn.Parameter) -> Tensor:
        """The stretch that forward will see a part of, with its padding."""
        part: Tensor = parameter.ds_tensor.detach()  # type: ignore[attr-defined]
        return part

    def _place(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Where the stretch begins, and how many values of it are not padding."""
        each: int = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        start = dist.get_rank() * each
        return start, max(0, min(each, parameter.ds_numel - start))  # type: ignore[attr-defined]

    def _flat(self, parameter: nn.Parameter) -> tuple[Tensor, int]:
        """The tensor that the optimiser steps, and where the parameter's stretch begins there."""
        group, offset, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
        return self.zero.fp32_partitioned_groups_flat[group], offset

    def parameters(self) -> Mapping[str, Piece]:
        """Stretches: as the optimiser steps them, of those trained."""
        out = {}
        for name, parameter in self.model.named_parameters():
            start, length = self._place(parameter)
            value = self.local(parameter)[:length]
            if parameter.requires_grad:
                flat, offset = self._flat(parameter)
                value = flat.detach().narrow(0, offset, length)
            shape = tuple(parameter.ds_shape)  # type: ignore[attr-defined]
            out[name] = Piece(value, shape, start)
        return out

    def moments(self) -> Mapping[str, Piece]:
        """The same stretches of the optimiser's state."""
        out = {}
        pieces = self.parameters()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                flat, offset = self._flat(parameter)
                state, length = state_of(self.optimiser, flat), len(pieces[name].value)
                for key in MOMENTS:
                    part = state[key].narrow(0, offset, length)
                    out[f"{key}/{name}"] = pieces[name].beside(part)
        return out

    def renew(self) -> None:
        """Let forward see what the optimiser steps."""
        pieces = self.parameters()
        for name, parameter in self.model.named_parameters():
            value = pieces[name].value
            self.local(parameter)[: len(value)].copy_(value)
