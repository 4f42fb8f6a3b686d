"""Your flow-matching network as a TrigFlow velocity, exactly: sample it here, or make it the teacher of a student.

The "network" below is the known velocity of Gaussian data, so that the result can be checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trigflow.core.randomness import SampleRandom
from trigflow.core.samplers import sample_heun
from trigflow.core.schedules import Conversion, FlowMatching
from trigflow.core.time_grids import edm_times

DATA_STD = 2.0  # standard deviation of your data


def your_network(x: Tensor, s: Tensor) -> Tensor:
    """E[eps - x_0 | x] at x = (1 - s) x_0 + s eps, for x_0 ~ N(0, DATA_STD^2)."""
    s = s[:, None]
    variance = ((1 - s) * DATA_STD) ** 2 + s**2
    return (s - (1 - s) * DATA_STD**2) / variance * x


def main(num: int = 4000, steps: int = 32) -> float:
    sigma_data = 0.5
    conversion = Conversion(FlowMatching(), sigma_data=sigma_data, data_scale=DATA_STD / sigma_data)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        s = conversion.time(t)
        prediction = your_network(conversion.foreign_point(x_t, s), s)
        return conversion.velocity(prediction, x_t, s, "flow")

    x_T = sigma_data * SampleRandom(0, torch.arange(num)).normal("x_T", (2,))
    x_0 = sample_heun(velocity, x_T, edm_times(steps, sigma_data))
    std = float(x_0.std()) * DATA_STD / sigma_data
    print(f"standard deviation of the samples: {std:.3f} (data: {DATA_STD})")
    return std


if __name__ == "__main__":
    main()
