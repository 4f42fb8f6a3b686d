"""A flow map: a network with a second time, an objective that gives it one, and its sampler.

Command: trigflow train mixture2d-scd network=own_flow_map:FlowMap objective=own_flow_map:FollowTheTeacher teacher=exact
    init=scratch sampling.sampler=flow_map sampling.flow_map_num=0 --out runs/map (in this folder; on one line)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import trigflow
from trigflow import flow, recipes
from trigflow.objectives import LossOutput, Objective

OPTIONS = (
    *(
        "network=own_flow_map:FlowMap",
        "objective=own_flow_map:FollowTheTeacher",
        "teacher=exact",
        "init=scratch",
    ),
    *("sampling.sampler=flow_map", "sampling.flow_map_num=0"),
)


class FlowMap(nn.Module):
    """F(x, t, s): a small network of vectors."""

    second_time = True  # tells samplers that it takes s

    def __init__(self, data_shape: tuple[int, ...], width: int = 128) -> None:
        super().__init__()
        (size,) = data_shape
        hidden = (nn.Linear(size + 4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.layers = nn.Sequential(*hidden, nn.Linear(width, size))

    def forward(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        times = torch.stack([t.cos(), t.sin(), s.cos(), s.sin()], dim=1).to(x.dtype)
        return self.layers(torch.cat([x, times], dim=1))


@dataclass(frozen=True, kw_only=True)
class FollowTheTeacher(Objective):
    """x_s = cos(t - s) x_t - sin(t - s) sigma_data F(x_t, t, s) is where `steps` Euler steps of the teacher end."""

    is_consistency: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    steps: int = 16

    def __call__(self, nets, batch, nimg, random) -> LossOutput:
        net, shape = nets["net"], tuple(batch.x_0.shape[1:])
        t = 0.01 + 1.55 * random.uniform("t")
        s = t * random.uniform("s")
        x_t = flow.interpolate(batch.x_0, net.sigma_data * random.normal("z", shape), t)
        x_s = x_t
        for k in range(self.steps):
            v = nets["teacher"].velocity(x_s, t + (s - t) * k / self.steps)
            x_s = x_s + flow.expand((s - t) / self.steps, v) * v
        own = flow.expand((t - s).cos(), x_t) * x_t - flow.expand((t - s).sin(), x_t) * net.velocity(
            x_t, t, s=s
        )
        loss = (own - x_s).square().mean(1)
        return LossOutput({"net": loss.mean()}, {"t": t, "loss": loss.detach()})


def main(out="runs/map", overrides: tuple[str, ...] = ()) -> Tensor:
    folder = trigflow.train(recipes.get("mixture2d-scd", [*OPTIONS, *overrides]), out)
    return trigflow.load(folder, trust_code=True).sample(1000, steps=4)


if __name__ == "__main__":
    print(main().std(dim=0))
