"""Grids and panels: every pixel where it belongs, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from trigflow.models.pictures import GAP, grid, panels, png, save_grid, scatter
from trigflow.system.errors import UserError


def pixels(picture: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
        picture.height, picture.width, -1
    )


def test_images_stand_in_reading_order() -> None:
    """Five grey images of one level each, three columns: two rows, the last place empty (white)."""
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 48, 48) * 10
    values = pixels(grid(images, columns=3))[..., 0]
    assert values.shape == (2 * 48 + GAP, 3 * 48 + 2 * GAP)
    places = [
        [int(values[row * (48 + GAP) + 5, column * (48 + GAP) + 5]) for column in range(3)]
        for row in range(2)
    ]
    assert places == [[0, 10, 20], [30, 40, 255]]
    assert int(values[48, 0]) == 255


def test_small_images_are_magnified_without_smoothing() -> None:
    image = torch.tensor([[0, 100], [200, 255]], dtype=torch.uint8).view(1, 1, 2, 2)
    values = pixels(grid(image))[..., 0]
    assert values.shape == (48, 48)
    assert set(values.flatten().tolist()) == {0, 100, 200, 255}
    assert int(values[0, 24]) == 100 and int(values[24, 0]) == 200


def test_colours_survive(tmp_path: Path) -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 64, 64)
    save_grid(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "RGB" and picture.size == (64 * 2 + GAP, 64 * 2 + GAP)
        assert picture.getpixel((3, 3)) == (10, 20, 30)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_vectors_become_points(tmp_path: Path) -> None:
    save_grid(torch.randn(50, 2), tmp_path / "points.png")
    with Image.open(tmp_path / "points.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_panels_name_each_set(count: int) -> None:
    samples = {f"set {k}": torch.zeros(6, 1, 8, 8, dtype=torch.uint8) for k in range(count)}
    figure = panels(samples, columns=3)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == list(samples)
    assert png(figure).startswith(b"\x89PNG")
    assert png(panels({"points": torch.randn(9, 3)})).startswith(b"\x89PNG")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs uint8 images"):
        grid(torch.zeros(4, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="needs uint8 images"):
        grid(torch.zeros(4, 1, 8, 8))
    with pytest.raises(UserError, match="needs uint8 images"):
        grid(torch.zeros(0, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="columns is 0"):
        grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), columns=0)
    with pytest.raises(UserError, match="two elements"):
        scatter(torch.zeros(4, 1))
    with pytest.raises(UserError, match="cannot write"):
        save_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), tmp_path / "nowhere" / "a.png")
