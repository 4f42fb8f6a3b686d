"""Memory of one GPU in a layout: what is permanent, gathered blocks, and the peak of a step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trigflow.tools.plan.dry_run import Footprint

# FSDP holds the unsharded weights of two blocks, the running one and the prefetched next one, and the gradients of one.
GATHERED_BLOCKS = 3


@dataclass(frozen=True)
class Layout:
    """How a training is distributed over GPUs.

    Args:
        name: for reports.
        gpus: number of GPUs.
        sharded: weights, gradients, optimiser state and averages are sharded (FSDP), not replicated (DDP).
    """

    name: str
    gpus: int
    sharded: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU at the peak of a step.

    Args:
        weights, teacher, optimizer, averages: permanent.
        gradients: of the weights, those that exist at the peak.
        gathered: unsharded blocks (with DDP: copies of blocks) while they are computed.
        activations: kept for the backward pass.
        transients: tangents, the teacher's pass, gradients of activations, and other temporary tensors.
    """

    weights: int
    teacher: int
    gradients: int
    optimizer: int
    averages: int
    gathered: int
    activations: int
    transients: int

    @property
    def total(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self))


def need(footprint: Footprint, layout: Layout, microbatch: int, passes: int) -> Need:
    """The memory that one GPU needs.

    Args:
        footprint: of the training.
        layout: over GPUs.
        microbatch: images per pass on one GPU.
        passes: per optimiser step; with more than one, gradients are accumulated.
    """
    share = 1 / layout.gpus if layout.sharded else 1.0
    timeline = footprint.timeline(microbatch)
    temporary, gradients = timeline.peak(share, footprint.gradients if passes > 1 else None)
    activations = min(timeline.activations, temporary)
    return Need(
        weights=int(footprint.weights * share),
        teacher=int(footprint.teacher * share),
        gradients=gradients,
        optimizer=int(footprint.optimizer * share),
        averages=int(footprint.averages * share),
        gathered=GATHERED_BLOCKS * footprint.block if layout.gpus > 1 else 0,
        activations=activations,
        transients=temporary - activations,
    )
