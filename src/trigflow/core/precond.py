"""A network F as a TrigFlow model: velocity, denoised, and the learned adaptive weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from trigflow.core import flow
from trigflow.system.devices import autocast_is_on, without_autocast
from trigflow.system.errors import UserError, one_of

NoiseConditioning = Literal["t", "edm"]

# EDM's conditioning has no value at t = 0; below this noise level it is held constant.
_SIGMA_FLOOR = 1e-6


class AdaptiveWeight(nn.Module):
    """The uncertainty u(t) that weighs the loss at each t: err * exp(-u) + u (the paper's w_phi = -u; its Appendix D).

    Positional features of t and one linear layer, zero at the start, so that training begins unweighted.

    Args:
        channels: number of features, even.
    """

    frequencies: Tensor

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0, 4, channels // 2).exp2())
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t of shape (B,) in [0, pi/2] -> u of shape (B,)."""
        angle = t[:, None] * self.frequencies.to(t.dtype)
        features = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.linear.weight.dtype)
        u: Tensor = self.linear(features).squeeze(1)
        return u


class TrigFlowPrecond(nn.Module):
    """TrigFlow's preconditioning around any network (arXiv 2410.11081, section 3.1).

    c_in = 1/sigma_data, c_skip = cos t, c_out = -sigma_data sin t, and c_noise(t) = t (the paper) or log(sigma)/4 (EDM,
    kept for ablations: its derivative 1/(4 sin t cos t) blows up at both ends).

    Args:
        network: forward(x, t, **cond) -> F of the shape of x, for x of unit variance; a flow map's, which has an
            attribute `second_time` that is true, is called as forward(x, t, s=..., **cond).
        sigma_data: standard deviation of the data x_0, > 0.
        c_noise: the network's time input, "t" or "edm".

    Raises:
        UserError: sigma_data is not positive, or c_noise is unknown.
    """

    def __init__(
        self, network: nn.Module, *, sigma_data: float = 0.5, c_noise: NoiseConditioning = "t"
    ) -> None:
        super().__init__()
        if not sigma_data > 0 or math.isinf(sigma_data):
            raise UserError(f"sigma_data must be a positive number, not {sigma_data}")
        one_of("c_noise", c_noise, get_args(NoiseConditioning))
        self.network = network
        self.sigma_data = sigma_data
        self.c_noise: NoiseConditioning = c_noise
        self.adaptive_weight = AdaptiveWeight()

    @property
    def num_classes(self) -> int:
        """Number of classes of the network; 0 where it takes no labels."""
        return int(getattr(self.network, "num_classes", 0))

    @property
    def guidance_input(self) -> bool:
        """Whether the network takes the guidance scale as an input, `guidance` (B,)."""
        return bool(getattr(self.network, "guidance_input", False))

    @property
    def second_time(self) -> bool:
        """Whether the network is a flow map's: it takes a second time, `s` (B,), to which it goes."""
        return bool(getattr(self.network, "second_time", False))

    def normalize_weights(self) -> None:
        """Calls the network's own `normalize_weights`, where it has one (EDM2); for after each optimiser step.

        Not a part of forward, which must not change weights: a training step runs it several times and differentiates
        through it.
        """
        normalize: Callable[[], None] | None = getattr(self.network, "normalize_weights", None)
        if normalize is not None:
            normalize()

    def noise_conditioning(self, t: Tensor) -> Tensor:
        """c_noise(t), shape (B,)."""
        if self.c_noise == "t":
            return t
        return flow.sigma_from_t(t, self.sigma_data).clamp(min=_SIGMA_FLOOR).log() / 4

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """F(x_t / sigma_data, c_noise(t)); of a flow map, F(x_t / sigma_data, c_noise(t), s=c_noise(s)).

        Args:
            x_t: noisy sample, (B, ...).
            t: times in [0, pi/2], (B,), float32 or float64.
            cond: conditions, passed to the network unchanged, except the second time `s` in [0, t], (B,), of a network
                that takes one: it is conditioned as t is, and 0 (data) where it is not given.

        Returns:
            F, of the shape of x_t and with about unit variance.
        """
        if self.second_time:
            cond["s"] = self.noise_conditioning(cond.get("s", torch.zeros_like(t)))
        output: Tensor = self.network(x_t / self.sigma_data, self.noise_conditioning(t), **cond)
        # Under autocast a network may answer in half precision; what follows is the sampler's or the loss's arithmetic.
        return output.to(x_t.dtype) if autocast_is_on(x_t.device) else output

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """dx_t/dt = sigma_data F of the PF-ODE, shape of x_t."""
        F: Tensor = self(x_t, t, **cond)
        return self.sigma_data * F

    def denoised(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """f(x_t, t) = cos(t) x_t - sin(t) sigma_data F: the denoiser of a teacher, the prediction of a student."""
        return flow.denoised(x_t, self.velocity(x_t, t, **cond), t)

    def logvar(self, t: Tensor) -> Tensor:
        """The adaptive weight's u(t), shape (B,)."""
        with without_autocast(t.device):
            weight: Tensor = self.adaptive_weight(t)
        return weight
