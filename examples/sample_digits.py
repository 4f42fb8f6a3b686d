"""Handwritten digits from the shipped student in one and two steps, and from its teacher in 32."""

from __future__ import annotations

from pathlib import Path

import torch

import trigflow
from trigflow.models.pictures import save_grid


def main(num: int = 50, out: Path = Path("digits.png")) -> None:
    labels = torch.arange(num) % 10
    student, teacher = trigflow.load("digits"), trigflow.load("digits-teacher")
    rows = [
        student.sample(num, steps=1, labels=labels, seed=0),
        student.sample(num, steps=2, labels=labels, seed=0),
        teacher.sample(num, steps=32, labels=labels, seed=0),  # 63 network evaluations
    ]
    # The same seed means the same noise: the student predicts in one step what the teacher reaches in many.
    save_grid(torch.cat(rows), out, columns=num)
    print(f"{out}: first row one step, second row two steps, third row the teacher")


if __name__ == "__main__":
    main()
