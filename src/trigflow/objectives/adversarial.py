"""An adversarial term on noised images: a critic tells data from samples, and the samples follow its gradient.

The critic is a network as the others, whose output is a logit for each element of the image, so that it judges details
as well as the whole (Schoenfeld et al., arXiv 2002.12655). It sees both with noise at all t, where their laws overlap
(Wang et al., arXiv 2206.02262), and no features that a metric uses. The loss is the non-saturating one:

    L_critic = mean softplus(-C(x_t)) + mean softplus(C(y_t)),   L_net = mean softplus(-C(y_t)),   y_0 a sample
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.core import flow
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.networks.dropout import seeded_dropout
from trigflow.objectives.diffusion import per_sample


def critic_loss(
    critic: TrigFlowPrecond,
    data: Tensor,
    samples: Tensor,
    z: Tensor,
    t: Tensor,
    cond: Mapping[str, Tensor],
    random: SampleRandom,
) -> tuple[Tensor, Tensor]:
    """The critic's loss of each pair of images, and D times the gradient of L_net with respect to the sample.

    Args:
        critic: the network; its output of the shape of x_t are logits.
        data, samples: x_0 of both, (B, ...), under the same conditions.
        z, t: noise of the samples with standard deviation sigma_data, (B, ...), and times of both, (B,).
        cond: conditions of both.
        random: for the noise of the data.

    Returns:
        The losses (B,), with a graph of the critic's weights, and the gradient (B, ...), without one.
    """
    samples = samples.detach().requires_grad_()
    noise = critic.sigma_data * random.normal("critic z", tuple(data.shape[1:]), data.dtype)
    with torch.enable_grad(), seeded_dropout(critic, random):
        of_samples = critic(flow.interpolate(samples, z, t), t, **cond)
        of_data = critic(flow.interpolate(data, noise, t), t, **cond)
    (gradient,) = torch.autograd.grad(F.softplus(-of_samples).sum(), samples, retain_graph=True)
    return per_sample(F.softplus(-of_data)) + per_sample(F.softplus(of_samples)), gradient
