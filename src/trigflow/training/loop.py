"""The training loop, one for all objectives."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trigflow.core.precond import TrigFlowPrecond
from trigflow.models.card import ModelCard
from trigflow.models.storage import read_card, save_model
from trigflow.networks.blocks import checkpoint_blocks
from trigflow.objectives.batch import LossOutput, losses_of, objective_errors_reported
from trigflow.recipes.schema import EMAConfig, Recipe
from trigflow.system.config import to_json
from trigflow.system.devices import generators_kept, products_in, seed_generators, true_float32
from trigflow.system.distributed import SINGLE_PROCESS, Strategy, World, open_world, whole
from trigflow.system.errors import Diverged, OwnMistake, UserError
from trigflow.system.signals import interrupt_with_resume_hint, stop_on_signals
from trigflow.training.assembly import RunParts, assemble
from trigflow.training.batches import Batches
from trigflow.training.ema import EMASnapshot, update_target
from trigflow.training.progress import Averages, Reporter, Silent, say
from trigflow.training.run_folder import RunFolder, open_run_of_all
from trigflow.training.run_state import RunState
from trigflow.training.sharding import check_shares, reduce_over_replicas
from trigflow.training.synthetic import synthetic_data
from trigflow.training.trained import Trained, new_trained


def train(
    recipe: Recipe,
    run_dir: str | Path,
    resume: bool = False,
    device: str | torch.device = "auto",
    progress: bool = True,
    parallel: Strategy | None = None,
    checkpointing: bool = False,
    trust_code: bool = False,
) -> Path:
    """Trains a recipe in a folder, which at the end contains the model (the averaged weights).

    Under torchrun all processes form one run: each takes its share of every batch, and the result is that of a single
    process (up to rounding). Their number and `parallel` may change when a run is resumed.

    Args:
        recipe: the recipe to train.
        run_dir: a new folder, or with `resume` that of an interrupted run (or of a finished run, with a
            larger train.total_nimg).
        resume: resume from the newest intact checkpoint. The result is bit for bit that of an uninterrupted run. The
            recipe must be the same, except for fields that do not affect the result (`run_folder.FREE`) and
            train.microbatch, which changes it by rounding (and is an error where the loss of an image depends
            on its microbatch: objective.stable_target, or scd_vsd with matched).
        device: the device for training.
        progress: show a progress bar on stderr.
        parallel: the layout of the networks over several processes (`distributed.open_world`).
        checkpointing: activation checkpointing of the networks' blocks: less memory for a third more compute, with the
            same result.
        trust_code: import the code "package.module:name" that the folders of `teacher`, `guide`, `init`, `inits` name.

    Returns:
        The folder.

    Raises:
        UserError: an error in the recipe, a folder in use, no space, or a loss that is not finite.
        KeyboardInterrupt: the run was asked to stop (Ctrl-C, SIGTERM); the message says how to resume.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"the recipe is a {type(recipe).__name__}: give a Recipe, as by trigflow.recipes.get(name)"
        )
    with open_world(device, parallel) as world, generators_kept(world.device), true_float32():
        check_shares(recipe.train, world)
        parts = assemble(recipe, world.device, world, trust_code)
        if checkpointing:
            _checkpoint_blocks(parts)
        # Whether the loss of an image depends on the others in its microbatch.
        by_batch = parts.objective.couples_images
        with (
            interrupt_with_resume_hint(),
            open_run_of_all(Path(run_dir), recipe, resume, world, by_batch, say) as folder,
        ):
            world.by_first(folder.keep_autoencoder, parts.dataset.decoder)
            if world.is_main:
                for line in (*parts.dataset.notes, parts.dataset.labelling.line):
                    say(line)
            parts = _with_synthetic_data(parts, recipe, folder, progress, world)
            Run(recipe, parts, folder, world).go(progress)
    return folder.path


def _checkpoint_blocks(parts: RunParts) -> None:
    if parts.objective.compile:
        raise UserError(
            "--checkpointing: objective.compile = true already decides what to recompute; use only one of the two"
        )
    for name in parts.objective.trains:
        checkpoint_blocks(parts.nets[name].network)


def _with_synthetic_data(
    parts: RunParts, recipe: Recipe, folder: RunFolder, progress: bool, world: World
) -> RunParts:
    """The same parts, with samples of the teacher as training data if the recipe requests them."""
    if not recipe.train.synthetic or parts.teacher is None:
        return parts
    dataset = synthetic_data(
        parts.teacher,
        parts.dataset,
        recipe.train.synthetic,
        recipe.train.seed,
        parts.objective.guidance_scale,
        folder.path / "synthetic.safetensors",
        progress,
        world,
    )
    return replace(parts, dataset=dataset)


class Run:
    """A run in progress: the loop, and the state that checkpoints contain.

    Args:
        recipe: the recipe of the run.
        parts: data, objective and networks.
        folder: the folder of the run.
        world: the processes of the run, of which this is one.
    """

    def __init__(
        self, recipe: Recipe, parts: RunParts, folder: RunFolder, world: World = SINGLE_PROCESS
    ) -> None:
        self.recipe, self.parts, self.folder, self.world = recipe, parts, folder, world
        self.device = device = world.device
        self.nimg = 0
        trains = parts.objective.trains
        self.trained = {
            name: new_trained(name, parts.nets[name], recipe, device, world, among_others=len(trains) > 1)
            for name in trains
        }
        self.averages = Averages(world)
        self.batches = Batches(parts.dataset, recipe.train, world)
        # For networks of the user's that draw from torch's own generator.
        seed_generators(recipe.train.seed + world.rank, device)

    @property
    def state(self) -> RunState:
        """The state that a checkpoint contains."""
        batch = self.recipe.train.batch
        labels = self.parts.dataset.labelling
        return RunState(self.trained, self.target, self.averages, self.device, self.world, batch, labels)

    @property
    def main(self) -> Trained:
        """The network that is saved as the model: the first that the objective trains."""
        return self.trained[self.parts.objective.trains[0]]

    @property
    def target(self) -> TrigFlowPrecond | None:
        """The target network, an EMA with which the objective computes the tangent; None without one."""
        return self.parts.nets.get("target")

    # The loop

    def go(self, progress: bool) -> None:
        """Trains from the current number of images to train.total_nimg."""
        config = self.recipe.train
        self._restore()
        self.world.by_first(self.folder.truncate_metrics, self.nimg)
        if self.nimg >= config.total_nimg:
            # Killed between the last checkpoint and the model, or the recipe has changed.
            if self.world.any(not self._model_is_written()):
                self._save_model()
            self._say(
                f"{self.folder.path} is finished ({self.nimg} images); continue it with a larger train.total_nimg"
            )
            return
        self.reporter = self._reporter(progress)
        try:
            with stop_on_signals() as stop, closing(self.batches):
                while self.nimg < config.total_nimg:
                    self._step()
                    self._write_what_is_due()
                    stopped = self.world.any(stop.signal is not None)
                    if stopped and self.nimg < config.total_nimg:
                        self._stop(stop.signal.name if stop.signal else "a signal to another process")
        finally:
            self.reporter.close()

    def _reporter(self, progress: bool) -> Reporter | Silent:
        """Of the main process."""
        config = self.recipe.train
        with self.world.together():
            if not self.world.is_main:
                return Silent()
            events = self.folder.path if config.tensorboard else None
            return Reporter(self.folder.metrics, events, self.nimg, config.total_nimg, progress)

    def _say(self, text: str) -> None:
        if self.world.is_main:
            say(text)

    def _stop(self, why: str) -> None:
        self._save()
        raise KeyboardInterrupt(
            f"stopped by {why} after {self.nimg} images, all saved; add --resume to the same command to continue"
        )

    def _is_due(self, interval: int) -> bool:
        """Whether the step that just ended crossed a multiple of the interval; 0: never."""
        before = self.nimg - self.recipe.train.batch
        return interval > 0 and self.nimg // interval > before // interval

    def _write_what_is_due(self) -> None:
        config, ema = self.recipe.train, self.recipe.ema
        finished = self.nimg >= config.total_nimg
        if self._is_due(config.log_nimg) or finished:
            line = self.averages.take() | self._loss_scales() | self._flow_map_error()
            with self.world.together():
                self.reporter.write(self.nimg, line)
        if ema.kind == "power" and self._is_due(ema.snapshot_nimg):
            self._save_snapshots(ema)
        if self._is_due(self.recipe.sampling.grid_nimg):
            self._draw_grid()
        if self._is_due(config.checkpoint_nimg) or finished:
            self._save()

    # One step

    def _step(self) -> None:
        """Forward and backward passes over the microbatches, then one update of each network that is due."""
        batch = self.recipe.train.batch
        turn = self.nimg // batch
        due = {name: trained for name, trained in self.trained.items() if turn % trained.update_period == 0}
        for trained in due.values():
            trained.zero_grad()
        share = batch // self.world.size  # of the batch, in this process
        first = self.nimg + self.world.rank * share
        size = min(self.recipe.train.microbatch or share, share)
        parts = [self._accumulate(one, size, due, first + share) for one in range(first, first + share, size)]
        norms = self._gradient_norms(due, parts)
        for name in norms:
            due[name].step(self.nimg)
        self.nimg += batch
        if self.target is not None:
            halflife = self.parts.objective.target_halflife
            update_target(self.target, self.main.net, halflife, self.nimg, batch)
        for trained in self.trained.values():  # also those not updated: the average is over time
            trained.ema.update(trained.net, self.nimg, batch)
        self.averages.add({self._of("grad_norm", name): norm for name, norm in norms.items()})
        for part in parts:
            self.averages.add(part.logs)
        self.reporter.advance(batch)

    def _gradient_norms(self, due: Mapping[str, Trained], parts: list[LossOutput]) -> dict[str, Tensor]:
        """The gradient norm of each network that can be updated. The gradients of the others overflowed float16: their
        update is skipped, and their loss scale reduced, which does not help if the loss itself is not finite.
        """
        norms: dict[str, Tensor] = {}
        for name, trained in due.items():
            trained.take_gradients()
            overflow = trained.unscale()
            norm = trained.gradient_norm()
            loss = self.world.total(torch.stack([part.losses[name].detach() for part in parts]).sum())
            if overflow and torch.isfinite(loss):
                continue
            if not torch.isfinite(norm + loss):
                self._stop_at_nan(name, [part.logs for part in parts])
            norms[name] = norm
        return norms

    def _of(self, what: str, name: str) -> str:
        """The name of a logged value of a network, with the network's name unless it is the main one."""
        return what if self.trained[name] is self.main else f"{what}_{name}"

    def _loss_scales(self) -> dict[str, float]:
        """The current loss scales, and the number of skipped steps; empty unless in float16."""
        scales: dict[str, float] = {}
        for name, trained in self.trained.items():
            if trained.loss_scale.on:
                scales[self._of("loss_scale", name)] = trained.loss_scale.scale
                scales[self._of("skipped_steps", name)] = trained.loss_scale.skipped
        return scales

    def _accumulate(self, first: int, size: int, due: Mapping[str, Trained], end: int) -> LossOutput:
        """Adds the gradients of images first .. first + size - 1, a microbatch of this process's share, up to `end`.

        They are weighted by the microbatch's part of this share; the mean over the processes is the gradient.
        """
        batch, random = self.batches.of(first, size)
        batch = replace(batch, due=frozenset(due))
        recipe, parts = self.recipe, self.parts
        with products_in(recipe.train.precision, self.device):
            output = losses_of(
                parts.objective, recipe.objective.name, parts.nets, batch, self.nimg, random, OwnMistake
            )
        share = size * self.world.size / recipe.train.batch
        names = [name for name in output.losses if name in due]
        for name in names:
            if not self.world.is_single:
                reduce_over_replicas(due[name].net, last=first + size == end)
            with objective_errors_reported(recipe.objective.name, OwnMistake):
                due[name].backward(output.losses[name] * share, retain_graph=name != names[-1])
        return output

    def _stop_at_nan(self, name: str, logs: list[dict[str, Tensor]]) -> None:
        """Raises Diverged; the weights are those before the step, and the last checkpoint and model are unchanged."""
        self.folder.checkpoints.save(self.nimg, *self.state.pack(self.nimg), self.world)
        key = self._of("loss", name) if self._of("loss", name) in logs[0] else "loss"
        # An objective may not log the loss of this network.
        nowhere = torch.full_like(logs[0]["t"], torch.nan)
        t = self.world.joined(torch.cat([values["t"] for values in logs]))
        loss = self.world.joined(torch.cat([values.get(key, nowhere) for values in logs]))
        worst = torch.where(loss.isfinite(), loss.abs(), torch.inf).argmax()
        where = "largest loss at image" if loss[worst].isfinite() else "image"
        step = self.nimg // self.recipe.train.batch
        instead = " or train.precision=bfloat16" if self.recipe.train.precision == "float16" else ""
        raise Diverged(
            f"objective '{self.recipe.objective.name}' has no finite loss or gradient for '{name}' at step "
            f"{step} ({where} {self.nimg + int(worst)}, t = {t[worst].item():.4f}, "
            f"loss {loss[worst].item():g}); the last checkpoint is in {self.folder.path}; "
            f"try a smaller optimizer.lr{instead} in another --out"
        )

    # State

    def _restore(self) -> None:
        """Loads the newest checkpoint, if there is one.

        Raises:
            UserError: it is intact, but of another run.
        """
        found = self.folder.checkpoints.load_newest(say, self.world)
        if found is None:
            return
        try:
            self.nimg = self.state.take_up(*found)
        except UserError as error:
            source = f"the newest checkpoint in {self.folder.checkpoints.folder}"
            raise UserError(
                f"{source} does not belong to this run ({error}): remove it, or choose another --out"
            ) from None

    def _save(self) -> None:
        """Write a checkpoint, then the model."""
        self.folder.checkpoints.save(self.nimg, *self.state.pack(self.nimg), self.world)
        self._save_model()

    def _model_is_written(self) -> bool:
        """The card is written last: the model is complete if the card has the current nimg and recipe."""
        path = self.folder.path
        return (path / "model.json").exists() and to_json(read_card(path)) == to_json(self._card())

    def _card(self) -> ModelCard:
        return replace(self.parts.card, nimg=self.nimg, ema=self.main.ema.names[0])

    def _save_model(self) -> None:
        tensors = whole(self.main.ema.averages[0], self.world)
        self.world.by_first(save_model, self.folder.path, tensors, self._card())

    def _save_snapshots(self, config: EMAConfig) -> None:
        """A snapshot of the averages, for post-hoc reconstruction."""
        for std, average in zip(config.ema_std, self.main.ema.averages, strict=True):
            snapshot = EMASnapshot(self.nimg, std, whole(average, self.world))
            self.world.by_first(self.folder.save_snapshot, snapshot)

    def _flow_map_error(self) -> dict[str, float]:
        """The flow-map error of the averaged weights, if the exact flow map is known."""
        measure = self.parts.flow_map_error
        if measure is None:
            return {}
        with self.main.averaged() as net:
            return measure(net.denoised)

    def _draw_grid(self) -> None:
        """Writes samples/nimg-....png from the averaged weights, with the same noise each time."""
        from trigflow.models.pictures import save_grid

        sampling = self.recipe.sampling
        with self.main.averaged() as net:
            samples = self.parts.model(net).sample(
                sampling.grid_count,
                steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                world=self.world,
            )
        self.world.by_first(save_grid, samples, self.folder.samples / f"nimg-{self.nimg:012d}.png")
