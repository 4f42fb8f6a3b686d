"""What images are like as a whole: counts, sizes, pixel values, duplicates; taken in one by one."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from trigflow.system.errors import printable


@dataclass
class Statistics:
    """Sums over images, all of them whole numbers, so that they do not depend on the order.

    Attributes:
        shapes: how many images have which shape (C, H, W).
        sums, squares, pixels: of the pixel values, by (channels of the image, channel).
        lowest, highest: pixel value.
        labels: how many images have which label.
        hashes: of the pixels.
        damaged: the images that could not be used.
    """

    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    sums: Counter[tuple[int, int]] = field(default_factory=Counter)
    squares: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: Counter[tuple[int, int]] = field(default_factory=Counter)
    lowest: int = 255
    highest: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    hashes: set[bytes] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)

    def add(self, image: np.ndarray, label: int | None) -> None:
        """Takes in one image (C, H, W) uint8."""
        self.shapes[image.shape] += 1
        for channel, plane in enumerate(image):
            wide = plane.astype(np.int64)
            place = (len(image), channel)
            self.sums[place] += int(wide.sum())
            self.squares[place] += int(np.square(wide).sum())
            self.pixels[place] += wide.size
        self.lowest, self.highest = (min(self.lowest, int(image.min())), max(self.highest, int(image.max())))
        if label is not None:
            self.labels[label] += 1
        self.hashes.add(
            hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=16).digest()
        )

    @property
    def count(self) -> int:
        """Number of images that could be used."""
        return self.shapes.total()

    def moments(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of each channel, black = 0, white = 1; grey among colours counts in each."""
        found = []
        for channel in range(max((channels for channels, _ in self.pixels), default=0)):
            places = [place for place in self.pixels if place[1] == channel or place[0] == 1]
            total, squares, pixels = (
                sum(counts[place] for place in places) for counts in (self.sums, self.squares, self.pixels)
            )
            mean = total / pixels
            # The numerator is a whole number: nothing cancels.
            variance = (squares * pixels - total**2) / pixels**2
            found.append((mean / 255, variance**0.5 / 255))
        return found

    def table(self, classes: tuple[str, ...] = ()) -> str:
        """The report: a line for each property."""
        shapes = [f"{' x '.join(map(str, shape))} ({n})" for shape, n in self.shapes.most_common(3)]
        more = f", and {len(self.shapes) - 3} more" if len(self.shapes) > 3 else ""
        lines = {
            "images": str(self.count),
            "channels x height x width": ", ".join(shapes) + more,
            "mean, each channel": ", ".join(f"{mean:.4f}" for mean, _ in self.moments()),
            "std, each channel": ", ".join(f"{std:.4f}" for _, std in self.moments()),
            "lowest, highest pixel value": f"{self.lowest}, {self.highest}",
            "classes": self._classes(classes),
            "exact duplicates": str(self.count - len(self.hashes)),
            "damaged": f"{len(self.damaged)}"
            + (f" (first: {', '.join(self.damaged[:3])})" if self.damaged else ""),
        }
        return "\n".join(f"{name:<28}{printable(value)}" for name, value in lines.items())

    def _classes(self, names: tuple[str, ...]) -> str:
        if not self.labels:
            return "none: no labels"
        shown = [
            f"{names[label] if label < len(names) else label}: {n}"
            for label, n in sorted(self.labels.items())[:20]
        ]
        more = ", ..." if len(self.labels) > 20 else ""
        return f"{len(self.labels)} ({', '.join(shown)}{more})"


def label_at(labels: Tensor | None, row: int) -> int | None:
    """The label of one image, None without labels."""
    return None if labels is None else int(labels[row])
