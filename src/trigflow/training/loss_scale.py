"""Loss scaling for float16, so that small gradients do not underflow and large gradients do not overflow."""

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
    """Dynamic loss scaling: the loss is multiplied by a scale for the backward pass, and the gradients divided by it.

    The largest float16 number is 65504, and below 6e-8 it rounds to zero, where the gradients of a mean over many
    elements are. After an overflow, that is gradients that are not finite, the step is skipped and the scale halved;
    after many steps without overflow it is doubled (Micikevicius et al., arXiv 1710.03740, section 3.2). It uses
    torch.amp.GradScaler except for its step, which lets the optimiser's fused kernel skip an overflow: RAdam also
    changes parameters outside of that kernel.

    Args:
        device: device of the gradients.
        on: false for float32 and for bfloat16, which has the same range: the scale is 1.

    Attributes:
        skipped: number of skipped steps.
    """

    def __init__(self, device: torch.device, on: bool) -> None:
        self.on = on
        self.skipped = 0
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=START, growth_interval=GROWTH_INTERVAL, enabled=on
        )

    @property
    def scale(self) -> float:
        """The factor of the next loss."""
        return self._scaler.get_scale()

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale, for the backward pass."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer, world: World = SINGLE_PROCESS) -> bool:
        """Divides the optimiser's gradients by the scale, and updates the scale, identically in all processes.

        Returns:
            Whether there was an overflow, so that the step must be skipped. At a scale of 1 it is false: gradients that
            are not finite then have another cause.
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
        """The state for a checkpoint, as JSON; empty if it is off."""
        if not self.on:
            return {}
        state = self._scaler.state_dict()
        return {"scale": state["scale"], "good_steps": state["_growth_tracker"], "skipped": self.skipped}

    def load(self, state: Any) -> None:
        """Restores a state.

        Raises:
            UserError: it is not a state of loss scaling in this precision.
        """
        if not self.on and state == {}:
            return
        if not self.on or not isinstance(state, dict) or state.keys() != self.state().keys():
            raise UserError("its loss scale is that of another precision, or incomplete")
        scale, good_steps, skipped = state["scale"], state["good_steps"], state["skipped"]
        if type(scale) is not float or not 0 < scale < math.inf:
            raise UserError(f"its loss scale is {scale!r}, not a positive number")
        if any(type(count) is not int or count < 0 for count in (good_steps, skipped)):
            raise UserError("its loss scale has an invalid number of steps")
        self._scaler.load_state_dict(
            self._scaler.state_dict() | {"scale": scale, "_growth_tracker": good_steps}
        )
        self.skipped = skipped
