"""What a training run is: a recipe is plain data, checked when it is made, and round-trips through JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from trigflow.core.flow import T_MID
from trigflow.system.config import STRICT_KEYS, Component, StartsFrom
from trigflow.system.devices import Precision

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**12)]
CountOrOff = Annotated[int, Field(ge=0, le=10**12)]
Steps = Annotated[int, Field(ge=1, le=10**5)]  # of a sampler, which lists their times; 1,000 are many
BatchSize = Annotated[int, Field(ge=1, le=10**6)]  # what is in memory at once
Seed = Annotated[int, Field(ge=-(2**53), le=2**53)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class PrecondConfig:
    """TrigFlow's preconditioning.

    Args:
        sigma_data: standard deviation of x_0.
        c_noise: what the network receives as the time: "t", or "edm" for log(sigma)/4.
    """

    sigma_data: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.5
    c_noise: Literal["t", "edm"] = "t"


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class OptimizerConfig:
    """The optimiser of one network.

    Args:
        name: "adam" or "radam".
        lr: learning rate, before its schedule.
        betas, eps: as in Adam.
        schedule: factor of the learning rate over the run: constant, inverse_sqrt, linear or cosine.
        rampup_nimg: images over which the rate rises linearly from 0.
        update_period: the network is updated at every update_period-th step.
    """

    name: Literal["adam", "radam"] = "radam"
    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    eps: Positive = 1e-8
    schedule: Component = field(default_factory=lambda: Component("constant"))
    rampup_nimg: CountOrOff = 0
    update_period: Count = 1


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class EMAConfig:
    """Averages of the weights; the first is what is sampled and saved as the model.

    Args:
        kind: "power" (power function, relative standard deviations ema_std) or "halflife".
        ema_std: for "power": one average for each; two or more allow post-hoc reconstruction.
        halflife_nimg: for "halflife": images in which an old weight loses half of its share.
        rampup_ratio: for "halflife": the half-life is at most this share of the images seen; null switches it off.
        snapshot_nimg: for "power": images between snapshots for post-hoc reconstruction, 0 is off.
    """

    kind: Literal["power", "halflife"] = "power"
    ema_std: tuple[Annotated[float, Field(gt=0, lt=0.28)], ...] = Field(default=(0.05,), min_length=1)
    halflife_nimg: Count = 500_000
    rampup_ratio: Positive | None = 0.05
    snapshot_nimg: CountOrOff = 0

    @model_validator(mode="after")
    def _averages_have_names(self) -> EMAConfig:
        if len({f"{std:.3f}" for std in self.ema_std}) < len(self.ema_std):
            raise ValueError(
                f"an ema_std that differs from the others in its third decimal, not {self.ema_std}"
            )
        if self.snapshot_nimg and self.kind != "power":
            raise ValueError(
                f'kind "power", or snapshot_nimg 0: the average "{self.kind}" has no reconstruction'
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class SamplingConfig:
    """How the finished model is sampled by default, and the grids that are drawn while it trains.

    Args:
        sampler: "consistency" for a student ("flow_map" for one with a second time); "heun", "ddim" or "dpmpp_2m" for a
            teacher; or "package.module:object" of a `samplers.Sampler`.
        steps: of the sampler.
        guidance_scale: classifier-free guidance, 1 is none.
        t_mid: where the last of a student's steps starts, see `time_grids.consistency_times`.
        grid_nimg: images between sample grids, 0 is off.
        grid_count: samples in a grid.
        flow_map_num: noises on which the error of the flow map is logged, where the data is known exactly; 0 is off.
    """

    sampler: str = "consistency"
    steps: Steps = 2
    guidance_scale: float = Field(default=1.0, ge=0)
    t_mid: float = Field(default=T_MID, gt=0, lt=math.pi / 2)
    grid_nimg: CountOrOff = 0
    grid_count: BatchSize = 64
    flow_map_num: CountOrOff = 0


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class TrainConfig:
    """The loop. Progress is counted in images.

    Args:
        total_nimg: images to train on.
        batch: images in one step of the optimiser.
        microbatch: images in one pass through the network (gradients are accumulated up to batch); null is the batch.
        seed: of everything random: initial weights, data order, t, z, dropout.
        synthetic: samples of the teacher that take the place of the data; 0 keeps the data itself. A teacher knows more
            than a small data set shows: its samples follow the distribution that its velocity belongs to.
        label_dropout: share of labels replaced by the null label, for guided teachers.
        precision: of the products inside the networks. "bfloat16" and "float16" take them in autocast, nearly twice as
            fast on processors that have them, slower on others; weights, times, coefficients, loss, optimiser and
            averages stay in float32. float16 rounds eight times finer than bfloat16 but ends at 65504: its loss is
            scaled (`loss_scale.LossScale`), and steps that overflow are skipped. docs/precision.md has the errors of
            both.
            A network of your own must take its time embedding out of autocast itself, as `networks.layers.Embedding`
            does: half precision cannot tell near times apart.
        log_nimg: images between lines of metrics.jsonl.
        checkpoint_nimg: images between checkpoints.
        keep_checkpoints: how many are kept, at least 2, so that a damaged one has one before it.
        tensorboard: write TensorBoard events.
    """

    total_nimg: Count = 1_000_000
    batch: BatchSize = 128
    microbatch: BatchSize | None = None
    seed: Seed = 0
    synthetic: CountOrOff = 0
    label_dropout: Fraction = 0.0
    precision: Precision = "float32"
    log_nimg: Count = 12_800
    checkpoint_nimg: Count = 128_000
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**6)] = 3
    tensorboard: bool = True

    @model_validator(mode="after")
    def _microbatch_divides_batch(self) -> TrainConfig:
        if self.microbatch is not None and self.batch % self.microbatch:
            raise ValueError(f"a microbatch ({self.microbatch}) that divides the batch ({self.batch})")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Recipe:
    """Everything that a run depends on.

    Args:
        name: of the recipe.
        data: a data set and its options.
        network: a network and its options ("package.module:Class" for one's own).
        objective: what is minimised, and its hyper-parameters.
        precond: TrigFlow's preconditioning.
        teacher: a run folder, a shipped model, or "exact" (the data set's closed form); null where none is needed.
        guide: a weaker model (a run folder or a shipped model) that guides the teacher in the place of its null label:
            autoguidance, by objective.guidance_scale; null for none.
        init: initial weights: "teacher" (those of its average, where the teacher has weights), "scratch", a run folder
            or a shipped model.
        inits: by name of a network, where it starts from something else (`inits.fake=teacher`).
        train, sampling: the loop, and how the model is sampled.
        optimizer, ema: of each trained network; its optimiser, unless `optimizers` names the network.
        optimizers: by name of a network (`optimizers.net.lr=1e-4`); an override of a name that is not there starts from
            `optimizer`.
    """

    name: str
    data: Component
    network: Component
    objective: Component
    precond: PrecondConfig = field(default_factory=PrecondConfig)
    teacher: str | None = None
    guide: str | None = None
    init: str = "teacher"
    inits: Annotated[dict[str, str], StartsFrom("init")] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    optimizers: Annotated[dict[str, OptimizerConfig], StartsFrom("optimizer")] = field(default_factory=dict)
    ema: EMAConfig = field(default_factory=EMAConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def optimizer_of(self, network: str) -> OptimizerConfig:
        """The optimiser of a trained network."""
        return self.optimizers.get(network, self.optimizer)

    def update_periods(self, networks: Iterable[str]) -> dict[str, int]:
        """Every how many steps each of these networks is updated."""
        return {name: self.optimizer_of(name).update_period for name in networks}


def with_current_names(recipe: Any) -> Any:
    """A recipe as a run, a card or a file has stored it, its options named as today; anything else as it is.

    The objective's `time_distribution` was `proposal`.
    """
    objective: Any = recipe.get("objective") if isinstance(recipe, dict) else None
    options = objective.get("options") if isinstance(objective, dict) else None
    if not isinstance(options, dict) or "proposal" not in options:
        return recipe
    others = {name: value for name, value in options.items() if name != "proposal"}
    options = {**others, "time_distribution": options["proposal"]}
    return {**recipe, "objective": {**objective, "options": options}}
