"""A training loop of your own: distil the exact velocity of a 2-D mixture into one step.

The teacher here is a formula, so the error of the student is known exactly: no score, no judge.
"""

from __future__ import annotations

import torch

from trigflow import oracles
from trigflow.data import load_data, rows
from trigflow.networks import NETWORKS
from trigflow.objectives import SCM, Batch
from trigflow.precond import TrigFlowPrecond
from trigflow.randomness import SampleRandom
from trigflow.samplers import consistency_times, sample_consistency


def main(steps: int = 3000, batch: int = 256, channels: int = 128, seed: int = 0) -> float:
    torch.manual_seed(seed)
    dataset = load_data("mixture2d")
    net = TrigFlowPrecond(NETWORKS["mlp"](dataset.data_shape, channels=channels))
    teacher = oracles.mixture2d(sigma_data=net.sigma_data)
    objective = SCM(velocity="teacher", warmup=steps // 4)
    optimizer = torch.optim.RAdam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)

    for step in range(steps):
        nimg = step * batch
        x_0 = dataset.codec.encode(dataset.data[rows(seed, nimg, batch, len(dataset.data))])
        random = SampleRandom(seed, torch.arange(nimg, nimg + batch))
        output = objective({"net": net, "teacher": teacher}, Batch(x_0), nimg, random)
        optimizer.zero_grad()
        output.losses["net"].backward()
        optimizer.step()
        schedule.step()

    x_T = net.sigma_data * SampleRandom(1, torch.arange(2000)).normal("x_T", (2,))
    ts = consistency_times(1)
    with torch.no_grad():
        student = sample_consistency(net.velocity, x_T, ts, torch.randn, net.sigma_data)
        exact = teacher.flow_map(x_T, ts[0])
    error = float((student - exact).norm(dim=1).median()) / net.sigma_data
    print(f"median error of the one-step flow map: {error:.3f} sigma_data")
    return error


if __name__ == "__main__":
    main()
