"""A sampler of your own: the explicit midpoint rule in t, for any teacher.

Command: trigflow sample digits-teacher --sampler own_sampler:midpoint --steps 16 --out samples.png (in this folder)
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import trigflow
from trigflow import samplers


def sample_midpoint(velocity, x_T: Tensor, ts: list[float], on_step=None) -> Tensor:
    """The explicit midpoint rule: each step takes the velocity in its middle, which an Euler step finds.

    Args:
        velocity: velocity(x_t, t) -> dx_t/dt, with t of shape (B,); labels and guidance are inside.
        x_T: (B, ...) noise of std sigma_data, x_t at ts[0].
        ts: descending times.
        on_step: called with each t, x_t and the prediction of x_0; None: with nothing.
    """
    x = x_T
    for t, s in pairwise(ts):
        v = velocity(x, torch.full((len(x),), t, device=x.device))
        if on_step is not None:
            on_step(t, x, trigflow.flow.denoised(x, v, t))
        middle = (t + s) / 2
        x_middle = x + (middle - t) * v
        x = x + (s - t) * velocity(x_middle, torch.full((len(x),), middle, device=x.device))
    return x


# function, time grid (EDM's where none is given), and the models it is for
midpoint = samplers.Sampler(sample_midpoint, kind="teacher")


def even_times(steps: int, sigma_data: float) -> list[float]:
    """Evenly spaced in t, to 0."""
    return [1.5 * (1 - step / steps) for step in range(steps + 1)]


even_ddim = samplers.Sampler(samplers.sample_ddim, times=even_times)


def main(num: int = 16, steps: int = 16) -> Tensor:
    teacher = trigflow.load("digits-teacher")
    return teacher.sample(num, steps=steps, sampler="own_sampler:midpoint")


if __name__ == "__main__":
    print(main().shape)
