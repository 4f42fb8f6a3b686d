"""Other libraries' networks as F(x, t, labels)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DiffusersAdapter(nn.Module):
    """A diffusers network such as UNet2DModel: its forward(sample, timestep, class_labels).sample as F(x, t, labels).

    Diffusers checks torch.is_tensor(timestep), which is false for a value with a tangent. So the model is called with
    the plain values, and its `time_proj`, which computes the sinusoids, receives t itself.

    Args:
        model: has a submodule `time_proj` that takes the times of shape (B,).
        time_scale: factor of t; diffusers' sinusoids are made for times up to 1000. Values above 1 make the
            derivative with respect to t larger, and sCM training less stable (section 4.1 of the paper).
    """

    def __init__(self, model: nn.Module, time_scale: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.time_scale = time_scale
        self.num_classes = int(getattr(getattr(model, "config", None), "num_class_embeds", None) or 0)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) of unit variance, t (B,), labels (B,) int64 or None -> F, shaped as x."""
        time = t * self.time_scale

        def real_time(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (time, *args[1:])

        time_proj: Any = self.model.time_proj
        handle = time_proj.register_forward_pre_hook(real_time)
        try:
            output = self.model(x, time.detach(), class_labels=labels)
        finally:
            handle.remove()
        sample: Tensor = output.sample
        return sample
