"""A training loop of your own: a diffusion model of a 2-D mixture, then sCD into one step from the exact velocity.

The teacher is a closed form, so the error of the student is known exactly, without a score.
"""

from __future__ import annotations

import torch

from trigflow.core import oracles
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.core.samplers import sample_consistency
from trigflow.core.time_grids import consistency_times
from trigflow.data import load_data, rows
from trigflow.networks import NETWORKS
from trigflow.objectives import SCM, Batch, Diffusion


def fit(objective, nets, dataset, steps: int, lr: float, batch: int = 256, seed: int = 0) -> None:
    optimizer = torch.optim.RAdam(nets["net"].parameters(), lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for nimg in range(0, steps * batch, batch):
        x_0 = dataset.codec.encode(dataset.data[rows(seed, nimg, batch, len(dataset.data))])
        random = SampleRandom(seed, torch.arange(nimg, nimg + batch))  # t, z and dropout of these images
        loss = objective(nets, Batch(x_0), nimg, random).losses["net"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main(steps: int = 3000, width: int = 128) -> float:
    torch.manual_seed(0)
    dataset, teacher = load_data("mixture2d"), oracles.mixture2d()
    network = NETWORKS["mlp"](dataset.data_shape, width=width, time_embedding="fourier", fourier_scale=0.5)
    nets = {"net": TrigFlowPrecond(network), "teacher": teacher}
    # From random weights distillation diverges: it starts from a diffusion model, as in the paper.
    fit(Diffusion(), nets, dataset, steps, lr=2e-3)
    fit(SCM(velocity="teacher", warmup=steps // 4), nets, dataset, steps, lr=3e-4)

    random = SampleRandom(1, torch.arange(1000))
    x_T = 0.5 * random.normal("x_T", (2,))
    ts = consistency_times(1)

    def noise(step: int) -> torch.Tensor:  # the new noise of each further step, of the shape of x_T
        return random.normal(f"noise of step {step}", (2,))

    with torch.no_grad():
        student = sample_consistency(nets["net"].velocity, x_T, ts, noise, sigma_data=0.5)
    exact = teacher.flow_map(x_T, torch.full((1000,), ts[0]), steps=64)
    error = float((student - exact).norm(dim=1).median()) / 0.5
    print(f"median error of the one-step flow map: {error:.3f} sigma_data")
    return error


if __name__ == "__main__":
    main()
