"""sCD and VSD together: the gradient of the sum, how the two are matched, and what each image has; in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_vsd import given, networks
from torch import Tensor

from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.objectives import SCDVSD, SCM, VSD, Batch

# A warm-up under way and a target network, which work as they do in scd.
SCD: dict[str, Any] = {"warmup": 10, "target_halflife": 100, "guidance_scale": 2.0}


def with_target() -> dict[str, TrigFlowPrecond]:
    nets = networks()
    nets["target"] = copy.deepcopy(nets["net"]).requires_grad_(False)
    with torch.no_grad():
        for parameter in nets["target"].parameters():
            parameter.mul_(1.1)
        nets["net"].adaptive_weight.linear.weight.normal_(std=0.1)
    return nets


def gradients(loss: Tensor, net: TrigFlowPrecond) -> list[Tensor]:
    parameters = [*net.parameters()]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def output_gradient(loss: Tensor, outputs: list[Tensor]) -> Tensor:
    """D times the gradient of the mean loss of the images with respect to F, RMS of each image, (B,)."""
    (gradient,) = torch.autograd.grad(loss, [outputs[-1]], retain_graph=True)
    return (len(gradient) * gradient[0].numel() * gradient).square().mean(1).sqrt()


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.01])
def test_the_gradient_is_the_sum(matched: bool, share: float) -> None:
    nets, (batch, random) = with_target(), given()
    objective = SCDVSD(**SCD, vsd_weight=0.7, matched=matched, scd_share=share)
    both = objective(nets, batch, 20, random)

    outputs: list[Tensor] = []
    nets["net"].register_forward_hook(lambda module, args, F: outputs.append(F))
    vsd = VSD(guidance_scale=2.0)(nets, batch, 20, random)
    of_vsd = output_gradient(vsd.losses["net"], outputs)
    first = {1.0: 5, 0.6: 3, 0.01: 1}[share]
    part = Batch(batch.x_0[:first], {"labels": batch.cond["labels"][:first]}, step_images=5)
    scd = SCM(velocity="teacher", **SCD)(nets, part, 20, SampleRandom(3, torch.arange(first)))
    of_scd = output_gradient(scd.losses["net"], outputs)
    for key, values in (("output_gradient", of_vsd), ("output_gradient_scd", of_scd)):
        torch.testing.assert_close(both.logs[key], values, rtol=1e-10, atol=0)

    k = (of_scd.square().mean() / of_vsd.square().mean()).sqrt() if matched else 1
    found = gradients(both.losses["net"], nets["net"])
    parts = zip(
        gradients(scd.losses["net"], nets["net"]), gradients(vsd.losses["net"], nets["net"]), strict=True
    )
    for one, (own, other) in zip(found, parts, strict=True):
        torch.testing.assert_close(one, own + 0.7 * k * other, rtol=1e-9, atol=1e-13)
    assert torch.equal(both.losses["fake"], vsd.losses["fake"])
    assert objective.couples_images == (matched or share < 1)


def test_what_is_logged() -> None:
    nets, (batch, random) = with_target(), given()
    logs = SCDVSD(**SCD, scd_share=0.6)(nets, batch, 20, random).logs
    ours = {"t", "loss", "loss_fake", "output_gradient"}
    scds = {"loss_scd", "output_gradient_scd", "tangent_norm"}
    assert logs.keys() == ours | scds
    assert {len(logs[key]) for key in ours} == {5} and {len(logs[key]) for key in scds} == {3}


def test_the_warm_up_counts_steps_of_all_images() -> None:
    """With a share of them, and with accumulation."""
    nets, (batch, random) = with_target(), given()
    norms = [
        SCDVSD(**SCD, scd_share=share)(
            nets, Batch(batch.x_0, batch.cond, step_images=images), 20, random
        ).logs["tangent_norm"][:3]
        for share, images in ((1.0, 0), (0.6, 0), (0.6, 5), (0.6, 10))
    ]
    for norm in norms[1:3]:
        torch.testing.assert_close(norm, norms[0], rtol=1e-10, atol=0)
    assert not torch.allclose(norms[2], norms[3])


@pytest.mark.parametrize("weighting", ["vsd", "dmd", "sid"])
def test_while_fake_is_the_teacher_sCD_trains_alone(weighting: Any) -> None:
    """At the first step: the difference is zero, and k is not infinite."""
    nets, (batch, random) = networks(), given()
    nets["fake"] = copy.deepcopy(nets["teacher"])
    found = SCDVSD(weighting=weighting, warmup=10)(nets, batch, 20, random).losses["net"]
    expected = SCM(velocity="teacher", warmup=10)(nets, batch, 20, random).losses["net"]
    for one, other in zip(*(gradients(loss, nets["net"]) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_its_cost_is_that_of_both() -> None:
    objective = SCDVSD(scd_share=0.5, target_halflife=100)
    assert objective.forwards_of(frozenset({"net", "fake"})) == 8 + 0.5 * 6
    assert objective.forwards_of(frozenset({"net"})) == 5 + 0.5 * 6
    assert objective.forwards_of(frozenset({"fake"})) == VSD().forwards_of(frozenset({"fake"})) == 4


def test_a_stable_target_is_refused() -> None:
    with pytest.raises(ValueError, match="stable_target"):
        SCDVSD(stable_target=True)
