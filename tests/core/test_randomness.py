"""Counter-based random numbers: right distribution, no hidden state, one stream for each image and name."""

from __future__ import annotations

import pytest
import torch

from trigflow.core.randomness import SampleRandom, hash_uniform
from trigflow.evaluation.metrics.sliced_wasserstein import sliced_wasserstein

FROZEN_KEYS = [4105797329827204599, -1269098314845445228]
FROZEN_UNIFORM = [0.7320492382018818, 0.5340333918703312]
FROZEN_FAR = [7864179265784971837, 2939183451989844272, 7550875031076663672]  # of the seeds 1, 2^31, 2^32 - 1
MANY = SampleRandom(seed=5, index=torch.arange(50_000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_has_the_moments_of_the_normal_distribution(dtype: torch.dtype) -> None:
    x = MANY.normal("z", (4,), dtype).double()
    assert x.mean().abs() < 0.01
    assert (x.std() - 1).abs() < 0.01
    assert ((x**4).mean() - 3).abs() < 0.1
    off_diagonal = torch.corrcoef(x.T) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_fills_the_unit_interval_evenly(dtype: torch.dtype) -> None:
    u = MANY.uniform("t", dtype=dtype).double()
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=50, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 95  # 49 degrees of freedom: exceeded once in 10,000 seeds


def test_streams_seeds_and_images_are_independent() -> None:
    x = MANY.normal("z")
    others = [
        MANY.normal("noise"),
        SampleRandom(6, MANY.index).normal("z"),
        SampleRandom(5, MANY.index + 1).normal("z"),
        SampleRandom(-5, MANY.index).normal("z"),
    ]
    for y in others:
        assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.02


def test_an_image_has_the_same_numbers_in_any_batch() -> None:
    whole = SampleRandom(1, torch.arange(10)).normal("z", (2, 3))
    parts = torch.cat([SampleRandom(1, index).normal("z", (2, 3)) for index in torch.arange(10).split(3)])
    assert torch.equal(whole, parts)


def test_numbers_are_frozen() -> None:
    """A run resumed under a later version must go on with the same numbers."""
    keys = SampleRandom(0, torch.tensor([0, 1])).keys("z")
    assert keys.tolist() == FROZEN_KEYS
    expected = torch.tensor(FROZEN_UNIFORM, dtype=torch.float64)
    assert torch.equal(hash_uniform(keys, (), torch.float64), expected)


def test_big_seeds_and_indices_are_allowed() -> None:
    random = SampleRandom(2**63, torch.tensor([2**62]))
    assert torch.isfinite(random.normal("z", (5,))).all()


FAR_SEEDS = [
    (5, 5 + 2**32),
    (-1, 2**32 - 1),
    (0, 2**53),
    (2**53, -(2**53)),
    (7 + 2**32, 7 + 2**33),
    (-3, -3 - 2**32),
]


@pytest.mark.parametrize(("one", "other"), FAR_SEEDS)
def test_seeds_that_differ_in_their_high_word_alone(one: int, other: int) -> None:
    x, y = (SampleRandom(seed, MANY.index).normal("z") for seed in (one, other))
    assert not torch.equal(x, y)
    assert torch.corrcoef(torch.stack([x, y]))[0, 1].abs() < 0.02


def test_numbers_of_seeds_of_32_bits_are_frozen() -> None:
    keys = [SampleRandom(seed, torch.tensor([3])).keys("x_T").item() for seed in (1, 2**31, 2**32 - 1)]
    assert keys == FROZEN_FAR


@pytest.mark.parametrize(("one", "other"), FAR_SEEDS)
def test_generators_of_seeds_that_differ_in_their_high_word_alone(one: int, other: int) -> None:
    """Torch's generator on the CPU reads 32 bits of its seed."""
    points, noise = torch.rand(50, 3), torch.rand(50, 3)
    assert sliced_wasserstein(points, noise, seed=one) != sliced_wasserstein(points, noise, seed=other)
