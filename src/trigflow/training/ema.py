"""Averages of the weights over training: power-function EMA with post-hoc reconstruction, and half-life EMA.

Power-function EMA: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
(EDM2, arXiv 2312.02696), section 3 and Appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from trigflow.system.distributed import own_part
from trigflow.system.errors import UserError

Tensors = dict[str, Tensor]
# A half-life is at most this share of the images seen (EDM).
RAMPUP_RATIO = 0.05


def gamma_from_std(ema_std: float) -> float:
    """The exponent gamma of the profile t^gamma whose relative standard deviation is ema_std.

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (equation 123), so gamma is the largest root of
    (gamma + 2)^2 (gamma + 3) - (gamma + 1) / sigma_rel^2.

    Args:
        ema_std: relative standard deviation in (0, 0.2886), from a very short average to the mean of all weights.
    """
    square = ema_std**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(roots[np.abs(roots.imag) < 1e-6].real.max())


def power_beta(gamma: float, nimg: int, batch: int) -> float:
    """beta = (1 - 1/t)^(gamma + 1), with the time t counted in steps of the batch (equation 127)."""
    return float((1 - batch / nimg) ** (gamma + 1))


def half_life_beta(halflife_nimg: float, rampup_ratio: float | None, nimg: int, batch: int) -> float:
    """beta = 2^(-batch / half-life); the half-life is at most rampup_ratio nimg (EDM, arXiv 2206.00364)."""
    if rampup_ratio is not None:
        halflife_nimg = min(halflife_nimg, nimg * rampup_ratio)
    return float(0.5 ** (batch / max(halflife_nimg, 1e-8)))


def _lerp(average: Tensors, net: nn.Module, beta: float) -> None:
    """average <- beta average + (1 - beta) weights; what is not floating point is copied."""
    current = net.state_dict()
    moving = [name for name, tensor in average.items() if tensor.is_floating_point()]
    old, new = ([own_part(tensors[name]) for name in moving] for tensors in (average, current))
    torch._foreach_lerp_(old, new, 1 - beta)
    for name in average.keys() - set(moving):
        average[name].copy_(current[name])


class EMA:
    """One or more running averages of a network's weights.

    Args:
        net: the network whose weights are averaged; the averages start with its weights.
        betas: by the name of an average, beta(nimg, batch) of a step of `batch` images that ends at `nimg` images.
    """

    def __init__(self, net: nn.Module, betas: Mapping[str, Callable[[int, int], float]]) -> None:
        self.names = tuple(betas)
        self.averages: tuple[Tensors, ...] = tuple(
            {name: tensor.detach().clone() for name, tensor in net.state_dict().items()} for _ in betas
        )
        self._betas = tuple(betas.values())

    @torch.no_grad()
    def update(self, net: nn.Module, nimg: int, batch: int) -> None:
        """Updates the averages with the weights after a step of `batch` images that ended at `nimg` images."""
        for average, beta in zip(self.averages, self._betas, strict=True):
            _lerp(average, net, beta(nimg, batch))


def power_ema(net: nn.Module, ema_std: Sequence[float]) -> EMA:
    """Power-function EMA: the share of the weights at time tau is proportional to tau^gamma, so its length grows.

    Args:
        net: the network whose weights are averaged.
        ema_std: the relative standard deviation of each average.
    """
    return EMA(net, {f"{std:.3f}": partial(power_beta, gamma_from_std(std)) for std in ema_std})


def half_life_ema(net: nn.Module, halflife_nimg: float, rampup_ratio: float | None = RAMPUP_RATIO) -> EMA:
    """Exponential moving average with a half-life of halflife_nimg images.

    Args:
        net: the network whose weights are averaged.
        halflife_nimg: half-life in images.
        rampup_ratio: the half-life is at most this share of the images seen; None switches it off.
    """
    return EMA(net, {"halflife": partial(half_life_beta, halflife_nimg, rampup_ratio)})


@torch.no_grad()
def update_target(target: nn.Module, net: nn.Module, halflife_nimg: float, nimg: int, batch: int) -> None:
    """Updates a target network, an EMA of net's weights, after a step of `batch` images that ended at nimg images.

    As in `half_life_ema`, the half-life is at most a twentieth of the images seen.
    """
    _lerp(dict(target.state_dict()), net, half_life_beta(halflife_nimg, RAMPUP_RATIO, nimg, batch))


# Post-hoc reconstruction


@dataclass(frozen=True)
class EMASnapshot:
    """A power-function average at one time of the run.

    Args:
        nimg: images seen.
        ema_std: relative standard deviation of the average.
        tensors: the averaged weights.
    """

    nimg: int
    ema_std: float
    tensors: Mapping[str, Tensor]


def profile_product(nimg_a: float, gamma_a: float, nimg_b: float, gamma_b: float) -> float:
    """Inner product of two profiles p(tau) = (gamma + 1) tau^gamma / nimg^(gamma + 1) on [0, nimg] (Appendix C).

    (gamma_a + 1) (gamma_b + 1) m^(gamma_a + gamma_b + 1)
      / [(gamma_a + gamma_b + 1) nimg_a^(gamma_a + 1) nimg_b^(gamma_b + 1)]
    with m = min(nimg_a, nimg_b), written with ratios so that no power overflows.
    """
    shortest = min(nimg_a, nimg_b)
    ratios = (shortest / nimg_a) ** gamma_a * (shortest / nimg_b) ** gamma_b
    scale = shortest / (nimg_a * nimg_b)
    return float((gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratios * scale)


def post_hoc_weights(stored: Sequence[tuple[int, float]], ema_std: float, nimg: int) -> np.ndarray:
    """The coefficients of the stored averages whose linear combination is closest, in L2, to the wanted average.

    Args:
        stored: (nimg, ema_std) of each snapshot.
        ema_std, nimg: length and time of the wanted average.

    Returns:
        One coefficient for each snapshot, float64, with sum 1: a least-squares solution, as the system is nearly
        singular.
    """
    points = [(n, gamma_from_std(std)) for n, std in stored]
    matrix = np.array([[profile_product(*a, *b) for b in points] for a in points])
    wanted = np.array([profile_product(*a, nimg, gamma_from_std(ema_std)) for a in points])
    scale = 1 / np.sqrt(np.diag(matrix))  # profiles of unit norm: much better conditioned
    solution, *_ = np.linalg.lstsq(matrix * np.outer(scale, scale), wanted * scale, rcond=1e-13)
    shares: np.ndarray = solution * scale
    return np.asarray(shares / shares.sum())  # a weight that never moved keeps its value exactly


def reconstructed_weights(
    snapshots: Sequence[EMASnapshot], ema_std: float, nimg: int | None = None
) -> Tensors:
    """The average of another length, reconstructed after the run from its snapshots.

    Args:
        snapshots: snapshots of one network; two or more lengths at several times give the best fit.
        ema_std: the wanted relative standard deviation, in (0, 0.2886).
        nimg: the wanted time of the run, in images (default: the last snapshot's).

    Returns:
        Tensors by name; those that are not floating point are taken from the last snapshot.

    Raises:
        UserError: no snapshots, a length out of range, or a time after the last snapshot.
    """
    if not snapshots:
        raise UserError("no EMA snapshots to reconstruct from: train with ema.snapshot_nimg > 0")
    if not 0 < ema_std < 0.2886:
        raise UserError(f"ema_std must lie between 0 and 0.2886, not {ema_std}")
    last = max(snapshots, key=lambda snapshot: snapshot.nimg)
    nimg = last.nimg if nimg is None else nimg
    if not 0 < nimg <= last.nimg:
        raise UserError(f"the snapshots reach from 1 to {last.nimg} images: {nimg} lies outside")
    shares = post_hoc_weights([(s.nimg, s.ema_std) for s in snapshots], ema_std, nimg)
    return {name: _weighted_sum(snapshots, shares, name, tensor) for name, tensor in last.tensors.items()}


def _weighted_sum(snapshots: Sequence[EMASnapshot], shares: np.ndarray, name: str, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return like.clone()
    total = torch.zeros_like(like, dtype=torch.float64)
    for snapshot, share in zip(snapshots, shares, strict=True):
        total += float(share) * snapshot.tensors[name].double()
    return total.to(like.dtype)
