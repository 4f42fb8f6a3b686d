"""Loss scaling: what float16 needs so that small gradients are not rounded to zero and large ones not lost."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError

START = 2.0**16
GROWTH_INTERVAL = 2000  # steps without an overflow after which the scale doubles


class LossScale:
    """A factor of the loss in its backward pass, taken out of the gradients before they are used.

    Float16 ends at 65504 and rounds to zero below 6e-8, where the gradients of a mean over many elements lie. An
    overflow shows in gradients that are not finite: their step is lost, and the scale halved; after many steps without
    one it is doubled (Micikevicius et al., arXiv 1710.03740, section 3.2). Its work is done by torch.amp.GradScaler,
    but for the step: its own leaves an overflow to the optimiser's fused kernel, beside which our RAdam writes too.

    Args:
        device: of the gradients.
        on: whether it does anything; else the scale is 1, for float32 and for bfloat16, which has the same range.

    Attributes:
        skipped: steps that were lost so far.
    """

    def __init__(self, device: torch.device, on: bool) -> None:
        self.on = on
        self.skipped = 0
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=START, growth_interval=GROWTH_INTERVAL, enabled=on
        )

    @property
    def scale(self) -> float:
        """By which the next loss is multiplied."""
        return self._scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss, times the scale: start the backward pass here."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer, world: World = SINGLE_PROCESS) -> bool:
        """Takes the scale out of the optimiser's gradients, and moves it for the next step, in all processes alike.

        Returns:
            Whether there was an overflow that a smaller scale may cure: the step must be skipped. At a scale of 1
            there is none: gradients that are not finite there have another cause.
        """
        before = self.scale
        self._scaler.unscale_(optimizer)
        if self.on:
            for found in self._scaler._found_inf_per_device(optimizer).values():
                found.copy_(world.greatest(found))
        self._scaler.update()
        overflow = self.scale < before and before > 1
        self.skipped += overflow
        return overflow

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON; nothing where it is off."""
        if not self.on:
            return {}
        state = self._scaler.state_dict()
        return {"scale": state["scale"], "good_steps": state["_growth_tracker"], "skipped": self.skipped}

    def load(self, state: Any) -> None:
        """The inverse of state.

        Raises:
            UserError: it is the state of something else.
        """
        if not self.on and state == {}:
            return
        if not self.on or not isinstance(state, dict) or state.keys() != self.state().keys():
            raise UserError("its loss scale is that of another precision, or not whole")
        scale, good_steps, skipped = state["scale"], state["good_steps"], state["skipped"]
        if type(scale) is not float or not 0 < scale < math.inf:
            raise UserError(f"its loss scale is {scale!r}, not a positive number")
        if any(type(count) is not int or count < 0 for count in (good_steps, skipped)):
            raise UserError("its loss scale counts no whole steps")
        self._scaler.load_state_dict(
            self._scaler.state_dict() | {"scale": scale, "_growth_tracker": good_steps}
        )
        self.skipped = skipped
