"""An objective of your own that trains two networks: distribution matching (arXiv 2311.18828) into one step.

"net" makes x_0 of noise in one step; "fake" learns the diffusion of what net makes. net follows the difference of the
two denoisers, the gradient of a divergence between its samples and the teacher's data, averaged over t.

Command: trigflow train mixture2d-scd objective=own_objective:DistributionMatching teacher=exact init=scratch
    optimizers.net.update_period=5 --out runs/matching (in this folder; on one line)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

import trigflow
from trigflow import flow, recipes
from trigflow.objectives import LossOutput, Objective

OPTIONS = ("objective=own_objective:DistributionMatching", "teacher=exact", "init=scratch")


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(Objective):
    """Losses of net and fake; its fields are options of a recipe: objective.P_mean=-0.5."""

    trains: ClassVar[tuple[str, ...]] = ("net", "fake")  # the first is saved as the model
    is_consistency: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    forwards_per_image: ClassVar[float] = 8.0  # net 3, fake 1 + 3, teacher 1
    P_mean: float = -0.8
    P_std: float = 1.6

    def __call__(self, nets, batch, nimg, random) -> LossOutput:
        net, fake, sigma_data = nets["net"], nets["fake"], nets["net"].sigma_data
        shape = tuple(batch.x_0.shape[1:])
        z, x_T = (sigma_data * random.normal(name, shape) for name in ("z", "x_T"))
        x_0 = net.denoised(x_T, torch.full((len(x_T),), 1.5), **batch.cond)
        t = flow.t_from_sigma((self.P_mean + self.P_std * random.normal("t", ())).exp(), sigma_data)
        x_t = flow.interpolate(x_0, z, t)
        with torch.no_grad():  # neither network learns from this
            gap = fake.denoised(x_t, t, **batch.cond) - nets["teacher"].denoised(x_t, t, **batch.cond)
        v_t = flow.velocity_target(x_0.detach(), z, t)
        error = (fake.velocity(x_t.detach(), t, **batch.cond) - v_t).square().mean()
        loss = 0.5 * (x_0 - (x_0 - gap).detach()).square().flatten(1).mean(1)
        return LossOutput({"net": loss.mean(), "fake": error}, {"t": t, "loss": loss.detach()})


def main(out: Path = Path("runs/matching"), overrides: tuple[str, ...] = ()) -> torch.Tensor:
    folder = trigflow.train(recipes.get("mixture2d-scd", [*OPTIONS, *overrides]), out)
    return trigflow.load(folder).sample(1000, steps=1)


if __name__ == "__main__":
    print(main().std(dim=0))
