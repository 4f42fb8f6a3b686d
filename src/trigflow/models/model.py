"""A trained model: load it by name or folder, and sample from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trigflow.core.guidance import ConditionalVelocity, autoguided, guided
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.core.samplers import CountNFE, OnStep, SamplingPlan, Trajectory, find_sampler
from trigflow.core.samplers import sample as run_sampler
from trigflow.data.autoencoder import FOLDER, Decoder, find
from trigflow.data.codecs import Codec, LatentCodec, codec_from_json, sample_shape
from trigflow.models.card import ModelCard, check_guide
from trigflow.models.labels import Labels, cycle_labels
from trigflow.models.shipped import model_folder
from trigflow.models.storage import load_model
from trigflow.system.devices import Precision, check_precision, products_in, resolve_device, true_float32
from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import Diverged, UserError
from trigflow.system.numbers import real_number, whole_numbers


@dataclass(frozen=True)
class Model:
    """A preconditioned network, the codec of its data, and its card.

    Attributes:
        precond: the preconditioned network, in evaluation mode, on the device where it computes.
        codec: conversion between x_0 and data as stored.
        card: provenance and default sampling settings.
        name: the name or folder that it was loaded from.
        guide: a weaker model that guides it in place of its null label (`with_guide`).
        precision: precision of the matrix products inside the network (`in_precision`).
        decoder: decodes the samples of a latent model to images; None for other models.
        chosen_plan: sampling settings that replace the card's defaults (`with_plan`).
    """

    precond: TrigFlowPrecond
    codec: Codec
    card: ModelCard
    name: str = ""
    guide: Model | None = None
    precision: Precision = "float32"
    decoder: Decoder | None = None
    chosen_plan: SamplingPlan | None = None

    @property
    def device(self) -> torch.device:
        """The device where the model computes."""
        return next(self.precond.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, without the adaptive weight, which is used in training only."""
        return sum(parameter.numel() for parameter in self.precond.network.parameters())

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels; the null label is this number."""
        return self.card.num_classes

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample; for a latent model that of the image (the card's data_shape is that of the latent)."""
        return sample_shape(self.codec, tuple(self.card.data_shape))

    @property
    def is_student(self) -> bool:
        """Whether it is a consistency model (which predicts x_0 in one evaluation) rather than a diffusion model."""
        return self.card.kind == "student"

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """(low, high) of the guidance scales of a student that takes the scale as an input; None for other models."""
        return self.card.guidance_range

    def with_guide(self, guide: Model) -> Model:
        """The same model, guided by a weaker model of the same data: autoguidance, see `guidance.autoguided`.

        Raises:
            UserError: one of them is a consistency model, or they are models of different data.
        """
        if self.is_student:
            raise UserError(f"model '{self.name}' is a consistency model: only a diffusion model has a guide")
        check_guide(guide.name, guide.card, self.card)
        return replace(self, guide=guide)

    def with_plan(
        self, steps: int | None = None, guidance_scale: float | None = None, sampler: str | None = None
    ) -> Model:
        """The same model, by default sampled in this way; what is None stays as it is.

        Args, Raises: as of `plan`.
        """
        return replace(self, chosen_plan=self.plan(steps, guidance_scale, sampler))

    def in_precision(self, precision: Precision) -> Model:
        """The same model with the matrix products inside its network in "float32", "bfloat16" or "float16".

        Its weights, times, and the sampler's arithmetic between two evaluations stay in float32.

        Raises:
            UserError: the precision is unknown.
        """
        check_precision(precision)
        return replace(self, precision=precision)

    def sample(
        self,
        n: int,
        steps: int | None = None,
        labels: Labels = None,
        seed: int = 0,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        batch: int = 256,
        latents: bool = False,
        world: World = SINGLE_PROCESS,
        on_device: bool = False,
    ) -> Tensor:
        """n samples: (n, C, H, W) uint8 for images, (n, D) float32 for vectors; on the CPU.

        Sample k of a seed is the same (to rounding) for any n and batch.

        Args:
            n: number of samples, >= 1.
            steps: sampling steps, >= 1 (default: that of `default_plan`; 2 for the shipped students).
            labels: a class by number or name, or several that are taken in turn (default: all that it was trained on).
            seed: random seed of the noise.
            guidance_scale: 1 = no guidance (default: the card's). For a student that takes the scale as an input, a
                scale in its training range; else that of classifier-free guidance, or of autoguidance (`with_guide`).
            sampler: a name in `samplers.SAMPLERS`, or "package.module:object" (default: the card's).
            batch: samples computed at once.
            latents: for a latent model: return latents (n, C, h, w) float32 as its autoencoder takes them, not images.
            world: processes that all have the model; each draws its share, and all return all samples.
            on_device: leave the samples on the model's device, and in each process its share alone.

        Raises:
            UserError: a number out of range, an unknown sampler, labels that are not classes of the model, a guidance
                scale that it was not trained for; a latent model whose autoencoder is missing.
            Diverged: samples that are not finite.
        """
        plan = self.plan(steps, guidance_scale, sampler)
        batches = self.sample_batches(
            n, plan, labels, seed, batch, latents=latents, world=world, on_device=on_device
        )
        return torch.cat(list(batches))

    @property
    def default_plan(self) -> SamplingPlan:
        """How it is sampled where nothing else is asked for: as `with_plan` has chosen, or as its card says."""
        own = self.card.sampling
        return self.chosen_plan or SamplingPlan(own.sampler, own.steps, own.guidance_scale, own.t_mid)

    def plan(
        self, steps: int | None = None, guidance_scale: float | None = None, sampler: str | None = None
    ) -> SamplingPlan:
        """The sampling settings, completed by `default_plan`.

        Raises:
            UserError: steps < 1, an unknown sampler, a guidance scale that the model was not trained for.
        """
        own = self.default_plan
        chosen = own.sampler if sampler is None else sampler
        found = find_sampler(chosen)
        if found.kind != self.card.kind:
            kind = "a consistency" if self.is_student else "a diffusion"
            raise UserError(f"sampler '{chosen}': model '{self.name}' is {kind} model; leave the sampler out")
        if found.second_time and not self.precond.second_time:
            raise UserError(
                f"sampler '{chosen}' needs a network with a second time; that of model '{self.name}' has none"
            )
        (steps,) = whole_numbers(steps=own.steps if steps is None else steps)
        if steps < 1:
            raise UserError(f"steps is {steps}: give 1 or more")
        scale = (
            own.guidance_scale if guidance_scale is None else real_number("guidance_scale", guidance_scale)
        )
        self._check_scale(scale)
        return SamplingPlan(chosen, steps, scale, own.t_mid)

    def _check_scale(self, scale: float) -> None:
        if self.guidance_range is not None:
            low, high = self.guidance_range
            if not low <= scale <= high:
                raise UserError(
                    f"guidance_scale {scale:g}: model '{self.name}' was trained with scales of {low:g} to {high:g}; "
                    "give one in this range"
                )
        elif not math.isfinite(scale):
            raise UserError(f"guidance_scale {scale}: give a finite number, 1 for no guidance")
        elif scale != 1 and self.guide is None and not self.num_classes:
            raise UserError(f"guidance_scale {scale:g}: model '{self.name}' has no classes; use 1")
        elif scale != 1 and self.guide is None and self.card.label_dropout == 0:
            how = (
                "distil it with objective.guidance_scale=[1,2] network.guidance_input=true"
                if self.is_student
                else "train it with train.label_dropout=0.1"
            )
            raise UserError(
                f"guidance_scale {scale:g}: model '{self.name}' never saw the null label; use 1, or {how}"
            )

    def _check_scales(self, n: int, scales: Tensor) -> None:
        if scales.shape != (n,):
            raise UserError(f"guidance scales {tuple(scales.shape)}: give one for each of {n} samples")
        for scale in set(scales.tolist()):
            self._check_scale(scale)

    def sample_batches(
        self,
        n: int,
        plan: SamplingPlan | None = None,
        labels: Labels = None,
        seed: int = 0,
        batch: int = 256,
        scales: Tensor | None = None,
        latents: bool = False,
        world: World = SINGLE_PROCESS,
        counter: CountNFE | None = None,
        on_device: bool = False,
    ) -> Iterator[Tensor]:
        """The samples of `sample`, yielded in batches (of all processes together), on the CPU.

        Args:
            n, labels, seed, batch, latents, world: as in `sample`.
            on_device: as in `sample`; the share of a process is `World.share` of the batch.
            plan: the sampling settings (default: `default_plan`).
            scales: (n,) float32, the guidance scale of each sample, in place of the plan's.
            counter: the model's `counter`; its `nfe` is the NFE per sample once the first batch is there.

        Raises:
            UserError, Diverged: as `sample`.
        """
        plan = plan or self.chosen_plan or self.plan()
        if scales is not None:
            self._check_scales(n, scales)
        n, batch, seed = whole_numbers(n=n, batch=batch, seed=seed)
        if n < 1 or batch < 1:
            raise UserError(f"{n} samples in batches of {batch}: give 1 or more of both")
        if latents and not isinstance(self.codec, LatentCodec):
            raise UserError(f"model '{self.name}' is no latent model: leave latents out")
        decoder = None if latents else self.decoder
        if decoder is not None:
            decoder.load()  # an error in it is raised before anything is computed
        elif isinstance(self.codec, LatentCodec) and not latents:
            raise UserError(f"model '{self.name}' has no autoencoder to decode its samples: sample latents")
        chosen = self.labels(n, labels)
        for first in range(0, n, batch * world.size):
            count = min(batch * world.size, n - first)
            index = world.share(torch.arange(first, first + count))
            own_labels, own_scales = (None if every is None else every[index] for every in (chosen, scales))
            if counter is not None:
                counter.nfe = 0  # those of a batch are those of each sample in it
            x_0 = self._x_0(plan, SampleRandom(seed, index), own_labels, counter, scales=own_scales)
            if world.any(not x_0.isfinite().all()):  # as uint8 they would be black pictures
                why = " or float16 cannot hold its activations" if self.precision == "float16" else ""
                what = f"samples of the model '{self.name}' are not finite"
                raise Diverged(f"{what}: its training diverged{why}")
            stored = self.codec.decode(x_0)
            own = stored if decoder is None else decoder.images(stored)
            yield own if on_device else world.joined(own)[:count]

    def labels(self, n: int, labels: Labels = None) -> Tensor | None:
        """(n,) int64: classes in turn, by default all that it was trained on; None for a model without classes.

        Raises:
            UserError: labels that are not classes of the model.
        """
        if self.num_classes == 0:
            if labels is not None:
                raise UserError(f"model '{self.name}' has no classes: leave the labels out")
            return None
        return cycle_labels(n, labels, self.num_classes, self.name, self.card.classes, self.card.unseen)

    def counter(self) -> CountNFE:
        """A counter of the evaluations of network and guide, for `sample_batches` and `velocity`."""
        return CountNFE(self.precond.velocity)

    def trajectory(
        self,
        n: int,
        steps: int | None = None,
        labels: Labels = None,
        seed: int = 0,
        sampler: str | None = None,
    ) -> Trajectory:
        """The sampling trajectories of n samples, from the same noise as in `sample`.

        Args, Raises: as `sample`.
        """
        n, seed = whole_numbers(n=n, seed=seed)
        plan, chosen, counter = self.plan(steps, None, sampler), self.labels(n, labels), self.counter()
        ts: list[float] = []
        states: list[Tensor] = []

        def record(t: float, x_t: Tensor, x_0: Tensor) -> None:
            ts.append(t)
            states.append(x_t.cpu())

        end = self._x_0(plan, SampleRandom(seed, torch.arange(n)), chosen, counter, record)
        times = torch.tensor([*ts, 0.0], dtype=torch.float64)
        return Trajectory(times, torch.stack([*states, end.cpu()]), chosen, counter.nfe)

    @torch.no_grad()
    @true_float32()
    def predict_x_0(self, x_t: Tensor, t: float, labels: Tensor | None = None) -> Tensor:
        """The prediction f(x_t, t) of x_0, in one evaluation at the card's guidance: (n, ...), on the CPU."""
        times = torch.full((len(x_t),), t, dtype=torch.float32, device=self.device)
        cond = self.conditions(labels, torch.full((len(x_t),), self.card.sampling.guidance_scale))
        with products_in(self.precision, self.device):
            return self.precond.denoised(x_t.to(self.device), times, **cond).cpu()

    def conditions(self, labels: Tensor | None, scales: Tensor) -> dict[str, Tensor]:
        """The network's conditions, on its device: labels (B,), and guidance scales (B,) if it takes them."""
        cond = {} if labels is None else {"labels": labels.to(self.device)}
        if self.guidance_range is not None:
            cond["guidance"] = scales.to(self.device)
        return cond

    @torch.no_grad()
    @true_float32()
    def _x_0(
        self,
        plan: SamplingPlan,
        random: SampleRandom,
        labels: Tensor | None,
        counter: CountNFE | None = None,
        on_step: OnStep | None = None,
        scales: Tensor | None = None,
    ) -> Tensor:
        """x_0 (B, ...) of the samples whose numbers `random` has, on the model's device."""
        random = SampleRandom(random.seed, random.index.to(self.device))
        shape, sigma_data = self.card.data_shape, self.precond.sigma_data
        scale = plan.guidance_scale if scales is None else scales.to(self.device)
        given = torch.full(random.index.shape, plan.guidance_scale) if scales is None else scales
        with products_in(self.precision, self.device):
            return run_sampler(
                plan.sampler,
                partial(self.velocity(scale, counter), **self.conditions(labels, given)),
                sigma_data * random.normal("x_T", shape),
                plan.steps,
                noise=lambda step: random.normal(f"noise of step {step}", shape),
                sigma_data=sigma_data,
                t_mid=plan.t_mid,
                on_step=on_step,
            )

    def velocity(self, scale: float | Tensor, counter: CountNFE | None = None) -> ConditionalVelocity:
        """velocity(x_t, t, **conditions), guided unless the network takes the guidance scale as a condition.

        Args:
            scale: the guidance scale, a number or one for each sample (B,).
            counter: counts the evaluations of `precond.velocity`, and those of the guide.
        """
        counter = counter or self.counter()
        if self.guidance_range is not None:
            return counter
        if self.guide is not None:
            return autoguided(counter, counter.with_guide(self.guide.precond.velocity), scale)
        return guided(counter, scale, self.num_classes)


def load(
    name_or_folder: str | Path,
    device: str | torch.device = "auto",
    trust_code: bool = False,
    vae: str | None = None,
) -> Model:
    """Loads a shipped model by its name, or the model of a run by its folder.

    Args:
        name_or_folder: a name in SHIPPED, or a folder with model.safetensors and model.json.
        device: "auto", "cpu", "cuda" or "mps".
        trust_code: a network "package.module:Class" in the folder's card is imported, and so run, only if this is True.
        vae: the autoencoder of a latent model, as in `autoencoder.find` (default: the one in the folder, `vae/`).

    Raises:
        UserError: the model does not exist, is damaged, or has code that is not trusted; or there is no such device.
    """
    folder = model_folder(name_or_folder)
    with torch.random.fork_rng(devices=[]):  # a new network's weights are drawn, and replaced
        precond, card = load_model(folder, trust_code)
    place, codec = resolve_device(device), codec_from_json(card.codec)
    decoder = None
    if isinstance(codec, LatentCodec):
        decoder = Decoder(
            folder / FOLDER if vae is None else find(vae)[0], codec.autoencoder, codec.source, place
        )
    elif vae is not None:
        raise UserError(f"model '{name_or_folder}' is no latent model: it does not use the autoencoder {vae}")
    return Model(precond.to(place), codec, card, str(name_or_folder), decoder=decoder)
