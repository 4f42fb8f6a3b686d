"""A diagram of distillation: a diffusion path in many steps, and a consistency model's one-step predictions.

Drawn from real models: the teacher's probability-flow ODE solved from a few noises, the student's f(x_t, t) at
points of one of these paths. For a perfect student every arrow would end at the end of the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from trigflow.models.pictures import png
from trigflow.system.files import write_atomically

PATH_COLOUR = "#2563a8"
PREDICTION_COLOUR = "#d1495b"
FAINT = 0.28


@dataclass(frozen=True)
class Paths:
    """What the picture shows.

    Attributes:
        ts: times of the solver's steps, descending from t_max to 0, (S + 1,).
        states: x_t of every path at these times, (S + 1, B, ...); states[-1] is the teacher's data.
        predictions: the student's f(x_t, t) at the same points, same shape.
        pictures: states as stored, (S + 1, B, C, H, W) uint8.
        prediction_pictures: predictions as stored, same shape.
        nfe: network evaluations of the teacher's solver.
    """

    ts: Tensor
    states: Tensor
    predictions: Tensor
    pictures: Tensor
    prediction_pictures: Tensor
    nfe: int


def draw(paths: Paths, file: Path, columns: int = 9) -> None:
    """Write the diagram as a PNG, with the path in the foreground whose end lies furthest from the others.

    Args:
        paths: the trajectories of two or more noises.
        file: to write.
        columns: pictures in each strip.
    """
    shown = torch.linspace(0, len(paths.ts) - 1, columns).round().long().tolist()
    main = int(heights(paths.states)[-1].abs().argmax())
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    grid = GridSpec(3, columns, figure=figure, height_ratios=(4.6, 1, 1))
    _draw_paths(figure.add_subplot(grid[0, :]), paths, shown, main)
    _draw_strip(figure, grid, 1, paths.pictures[shown, main], PATH_COLOUR, "path\n$x_t$")
    _draw_strip(
        figure, grid, 2, paths.prediction_pictures[shown, main], PREDICTION_COLOUR, "prediction\n$f(x_t, t)$"
    )
    write_atomically(file, png(figure))


def heights(states: Tensor) -> Tensor:
    """One number for each state: its place along the direction in which the ends of the paths differ most.

    Args:
        states: (S + 1, B, ...).

    Returns:
        (S + 1, B), centred on the mean of the ends, the furthest end upwards.
    """
    flat = states.flatten(2).double()
    centre = flat[-1].mean(0)
    direction = torch.linalg.svd(flat[-1] - centre, full_matrices=False).Vh[0]
    height: Tensor = (flat - centre) @ direction
    return height * height[-1, height[-1].abs().argmax()].sign()


def _draw_paths(axes: Axes, paths: Paths, shown: list[int], main: int) -> None:
    steps = range(len(paths.ts))
    both = heights(torch.cat([paths.predictions, paths.states])).numpy()
    predicted, path = both[: len(steps)], both[len(steps) :]
    for k in set(range(path.shape[1])) - {main}:
        axes.plot(steps, path[:, k], color=PATH_COLOUR, alpha=FAINT, lw=1.2)
        _arrow(axes, float(path[0, k]), 0, float(predicted[0, k]), len(steps) - 1, alpha=FAINT)
    for step in shown[:-1]:
        _arrow(
            axes,
            float(path[step, main]),
            step,
            float(predicted[step, main]),
            len(steps) - 1,
            alpha=1.0 if step == 0 else 0.5,
        )
    label = f"diffusion: {len(steps) - 1} steps, {paths.nfe} network evaluations"
    axes.plot(steps, path[:, main], "o-", color=PATH_COLOUR, ms=3.5, lw=2, label=label)
    axes.plot(
        [],
        [],
        color=PREDICTION_COLOUR,
        lw=2,
        label="consistency: 1 step, 1 network evaluation, from any point",
    )
    low, high = float(both.min()), float(both.max())
    axes.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))
    axes.legend(loc="upper center", frameon=False, ncols=2)
    _label_axes(axes, paths, shown)


def _arrow(axes: Axes, start: float, step: int, end: float, last: int, alpha: float) -> None:
    style = "arc3,rad=-0.12"
    arrow = FancyArrowPatch(
        (step, start), (last, end), connectionstyle=style, arrowstyle="-|>", mutation_scale=12, lw=1.6
    )
    arrow.set(color=PREDICTION_COLOUR, alpha=alpha, zorder=3 if alpha == 1 else 2)
    axes.add_patch(arrow)


def _label_axes(axes: Axes, paths: Paths, shown: list[int]) -> None:
    axes.set_xticks(shown, [f"{float(paths.ts[i]):.2f}" for i in shown])
    axes.set_yticks([])
    axes.set_xlim(-0.06 * len(paths.ts), 1.05 * len(paths.ts))
    axes.set_xlabel("noise   $\\longleftarrow$   time t   $\\longrightarrow$   data")
    axes.set_ylabel("place along the main\ndirection of the data")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_strip(figure: Figure, grid: GridSpec, row: int, pictures: Tensor, colour: str, name: str) -> None:
    for column, picture in enumerate(pictures):
        axes = figure.add_subplot(grid[row, column])
        axes.imshow(picture.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(color=colour, linewidth=2)
        if column == 0:
            axes.set_ylabel(name, color=colour, rotation=0, ha="right", va="center", labelpad=10)
