"""Builds the parts of a training run from a recipe. No files are written here, so an error leaves none behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from trigflow.core.flow_map import FlowMapError
from trigflow.core.guidance import scale_in_words
from trigflow.core.oracles import Oracle
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.samplers import SAMPLERS, find_sampler
from trigflow.core.time_grids import consistency_times
from trigflow.data import Dataset, check_order, exact_teacher, load_data
from trigflow.data.codecs import CODECS, Codec, codec_from_json, codec_to_json
from trigflow.models.card import ModelCard, card_of, check_guide
from trigflow.models.model import Model
from trigflow.models.pictures import drawable
from trigflow.models.shipped import model_folder
from trigflow.models.storage import load_model, new_precond
from trigflow.objectives import Objective, new_objective
from trigflow.objectives.batch import LossOutput, losses_of, objective_errors_reported
from trigflow.objectives.networks import check_guidance_input, networks_of
from trigflow.recipes.schema import Recipe
from trigflow.system.config import to_json
from trigflow.system.devices import generators_kept, products_in, seed_generators
from trigflow.system.distributed import SINGLE_PROCESS, World, is_resource_error
from trigflow.system.errors import UserError, did_you_mean
from trigflow.system.tensors import load_tensors
from trigflow.training.batches import Batches
from trigflow.training.optimisers import learning_rate
from trigflow.training.sharding import shard


@dataclass(frozen=True)
class RunParts:
    """The parts of a training run, as the loop needs them.

    Args:
        dataset: the training data, on the device.
        objective: the training objective.
        nets: all networks by name: the trained ones and, where the objective uses them, "target", "teacher", "guide".
        card: the card of the trained model.
        teacher: the teacher as a model to sample from, with its guide; None without a teacher, or with teacher=exact.
        flow_map_error: measures the student's error, if the exact flow map is known and the recipe requests it.
    """

    dataset: Dataset
    objective: Objective
    nets: Mapping[str, TrigFlowPrecond]
    card: ModelCard
    teacher: Model | None = None
    flow_map_error: FlowMapError | None = None

    def model(self, precond: TrigFlowPrecond) -> Model:
        """The trained model with these weights."""
        return Model(precond, self.dataset.codec, self.card, decoder=self.dataset.decoder)


def assemble(
    recipe: Recipe, device: torch.device, world: World = SINGLE_PROCESS, trust_code: bool = False
) -> RunParts:
    """Builds and checks all parts; with several processes, each holds its shard of the networks' weights.

    Args:
        recipe, device, world: of the run.
        trust_code: import the code that the folders of `teacher`, `guide`, `init` and `inits` name.

    Raises:
        UserError: something in the recipe does not exist, does not fit, or is missing.
    """
    with world.together():
        parts = _built(recipe, device, not world.is_main, trust_code)
    for net in parts.nets.values():
        if isinstance(net, TrigFlowPrecond) and not world.is_single:
            shard(net, world)
        else:
            net.to(device)
    for name in parts.objective.trains:
        _try_forward(parts.nets[name], parts.dataset, device, recipe.network.name)
    if (
        ":" in recipe.objective.name and not parts.objective.compile
    ):  # which would compile for this small batch
        _try_objective(recipe, parts, device, world)
    return parts


def _built(recipe: Recipe, device: torch.device, blank: bool, trust_code: bool) -> RunParts:
    """Everything, in this process; blank networks are filled by the main process's."""
    objective = new_objective(recipe.objective)
    _check_names(recipe, objective)
    dataset = load_data(recipe.data, recipe.precond.sigma_data)
    if recipe.sampling.grid_nimg:
        _check_drawable(recipe, dataset)
    loaded = partial(_loaded, recipe, blank, trust_code)
    teacher, guide = _teacher(recipe, objective, dataset, loaded), _guide(recipe, objective, loaded)
    sources = {name: _source(recipe, objective, name) for name in objective.trains}
    # Each is loaded once, however many networks start from it.
    initials = {
        one: _initial(one, recipe, teacher, dataset, loaded) for one in dict.fromkeys(sources.values())
    }
    initial = initials[sources[objective.trains[0]]]
    for other in (initial, teacher):  # the teacher has the last word
        if isinstance(other, Model):
            dataset = replace(dataset, codec=other.codec)
    if recipe.train.label_dropout and not dataset.num_classes:
        raise UserError(
            f"train.label_dropout = {recipe.train.label_dropout}: {dataset.name} has no labels; set it to 0"
        )
    card = _card(recipe, objective, dataset, initial)
    nets = networks_of(
        objective,
        lambda name: _new_network(recipe, card, initials[sources[name]], blank),
        teacher.precond if isinstance(teacher, Model) else teacher,
        guide.precond if guide else None,
    )
    for name in objective.trains:
        check_guidance_input(nets[name], recipe.objective.name, card.guidance_range)
    _check_sampling(Model(nets[objective.trains[0]], dataset.codec, card, recipe.name), objective)
    model = teacher if isinstance(teacher, Model) else None
    if guide:
        check_guide(guide.name, guide.card, card)
        model = model and model.with_guide(guide)
    if recipe.train.synthetic and model is None:
        raise UserError(
            f"train.synthetic = {recipe.train.synthetic}: there is no teacher model to sample from; set it to 0"
        )
    measure = _flow_map_error(recipe, objective, dataset, device)
    return RunParts(dataset.to(device), objective, nets, card, model, measure)


def _check_drawable(recipe: Recipe, dataset: Dataset) -> None:
    """Whether grids of samples can be drawn while the model trains: those of latents need their autoencoder."""
    setting = f"sampling.grid_nimg = {recipe.sampling.grid_nimg}"
    if not drawable(dataset.sample_shape):
        raise UserError(f"{setting}: data of shape {dataset.sample_shape} cannot be drawn; set it to 0")
    if dataset.decoder is not None:
        try:
            dataset.decoder.load()
        except UserError as error:
            raise UserError(f"{setting}: {error}; set it to 0 to do without grids") from None


def _flow_map_error(
    recipe: Recipe, objective: Objective, dataset: Dataset, device: torch.device
) -> FlowMapError | None:
    num = recipe.sampling.flow_map_num
    if not num:
        return None
    if objective.guidance_scale != 1:
        raise UserError(
            f"sampling.flow_map_num = {num}: the flow map of a guided teacher is not known; set it to 0"
        )
    if dataset.oracle is None and recipe.teacher != "exact":
        raise UserError(
            f"sampling.flow_map_num = {num}: the flow map of {dataset.name} is not known; set it to 0, or teacher=exact"
        )
    sigma_data = recipe.precond.sigma_data
    return FlowMapError.measure(exact_teacher(dataset), dataset.data_shape, sigma_data, num, device)


def _check_names(recipe: Recipe, objective: Objective) -> None:
    named = [("optimizers", name) for name in recipe.optimizers] + [("inits", name) for name in recipe.inits]
    for key, name in named:
        if name not in objective.trains:
            raise UserError(
                f"{key}.{name}: objective '{recipe.objective.name}' trains no such network"
                f"{did_you_mean(name, objective.trains)}; there are: {', '.join(objective.trains)}"
            )
    for config in (recipe.optimizer, *recipe.optimizers.values()):
        learning_rate(config, recipe.train.batch, recipe.train.total_nimg)
    sampler = find_sampler(recipe.sampling.sampler, "sampling.sampler")
    consistency_times(recipe.sampling.steps, recipe.precond.sigma_data, recipe.sampling.t_mid)
    if sampler.kind != objective.kind:
        others = [name for name, one in SAMPLERS.items() if one.kind == objective.kind]
        raise UserError(
            f"sampling.sampler = {recipe.sampling.sampler}: a model of objective '{recipe.objective.name}' is sampled "
            f"by {' or '.join(others)}"
        )


def _card(recipe: Recipe, objective: Objective, dataset: Dataset, start: Model | None) -> ModelCard:
    # A student that starts as its teacher has no training of its own behind it.
    return replace(
        card_of(recipe, dataset.data_shape, dataset.num_classes, objective.kind, objective.guidance_range),
        codec=codec_to_json(dataset.codec),
        data=dataset.name,
        recipe=to_json(recipe),
        classes=dataset.classes,
        unseen=dataset.labelling.unseen,
        earlier=start.card.phases if start and start.is_student == objective.is_consistency else (),
    )


def _loaded(recipe: Recipe, blank: bool, trust_code: bool, name: str) -> Model:
    """A run folder or a shipped model. Of code, what the recipe itself names is imported; the rest if it is trusted."""
    own = (recipe.network.name, recipe.sampling.sampler)
    precond, card = load_model(model_folder(name), trust_code, trusted=own, blank=blank)
    return Model(precond, codec_from_json(card.codec), card, name)


def _teacher(
    recipe: Recipe, objective: Objective, dataset: Dataset, loaded: Callable[[str], Model]
) -> Model | Oracle | None:
    """A model; of teacher=exact the closed form of the data, which is none."""
    if recipe.teacher is None:
        if objective.needs_teacher:
            raise UserError(
                f"objective '{recipe.objective.name}' needs a teacher: give teacher=FOLDER of a trained teacher"
            )
        return None
    scale = objective.guidance_scale if recipe.guide is None else 1  # a guide needs no null label
    if recipe.teacher == "exact":
        oracle = exact_teacher(dataset)
        _check_guidance(recipe.teacher, None, scale)
        return oracle
    model = loaded(recipe.teacher)
    _check_fit(model, recipe, dataset)
    if model.guidance_range:
        raise UserError(
            f"the teacher '{model.name}' takes the guidance scale as an input: it is a student, give its teacher"
        )
    _check_guidance(model.name, model, scale)
    return model


def _check_guidance(name: str, teacher: Model | None, scale: float | tuple[float, float]) -> None:
    """Checks that a guided teacher was trained with the null label."""
    if scale == 1:
        return
    setting = f"objective.guidance_scale = {scale_in_words(scale)}"
    if teacher is None or teacher.num_classes == 0:
        raise UserError(f"{setting}: the teacher '{name}' has no classes")
    if teacher.card.label_dropout == 0:
        raise UserError(
            f"{setting}: the teacher '{name}' never saw the null label; train it with "
            "train.label_dropout=0.1, or give guide=FOLDER of a weaker model"
        )


def _guide(recipe: Recipe, objective: Objective, loaded: Callable[[str], Model]) -> Model | None:
    """The model that guides the teacher in place of its null label."""
    if recipe.guide is None:
        return None
    if not objective.needs_teacher:
        raise UserError(
            f"guide = {recipe.guide}: objective '{recipe.objective.name}' has no teacher to guide; remove it"
        )
    if objective.guidance_scale == 1:
        raise UserError(
            f"guide = {recipe.guide}: objective.guidance_scale = 1 is no guidance; give a larger one, or a range"
        )
    return loaded(recipe.guide)


def _check_sampling(model: Model, objective: Objective) -> None:
    """Checks that the model can be sampled with sampling.guidance_scale, in its grids and by default."""
    own, distilled = model.card.sampling.guidance_scale, objective.guidance_scale
    if own != 1 and distilled != 1 and model.guidance_range is None:
        raise UserError(
            f"sampling.guidance_scale = {own:g}: the student is distilled from a guided teacher, "
            f"objective.guidance_scale = {scale_in_words(distilled)}, and would be guided twice; set it to 1"
        )
    try:
        model.plan()
    except UserError as error:
        raise UserError(f"sampling.{error}") from None


def _check_fit(other: Model, recipe: Recipe, dataset: Dataset) -> None:
    """Checks that another model has the same data shape, classes, sigma_data and codec."""
    card = other.card
    kinds, autoencoders = zip(*map(_kind_of_codec, (other.codec, dataset.codec)), strict=True)
    pairs = {
        "data shape": (tuple(card.data_shape), dataset.data_shape),
        "number of classes": (card.num_classes, dataset.num_classes),
        "sigma_data": (card.precond.sigma_data, recipe.precond.sigma_data),
        "codec": kinds,
        "autoencoder": autoencoders,
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(
                f"the model '{other.name}' does not fit {dataset.name}: its {what} is {theirs}, not {ours}"
            )
    check_order(f"the model '{other.name}'", card.classes, dataset.classes, dataset.labels_from)


def _kind_of_codec(codec: Codec) -> tuple[str, str | None]:
    """Its name, and the digest of the autoencoder of its latents."""
    name = next(name for name, kind in CODECS.items() if type(codec) is kind)
    return name, getattr(codec, "autoencoder", None)


def _source(recipe: Recipe, objective: Objective, name: str) -> str:
    """What a trained network starts from, as `Recipe.init` names it."""
    return recipe.inits.get(name) or objective.initial_weights.get(name) or recipe.init


def _initial(
    source: str,
    recipe: Recipe,
    teacher: Model | Oracle | None,
    dataset: Dataset,
    loaded: Callable[[str], Model],
) -> Model | None:
    """The model whose weights a network starts from, None for fresh ones."""
    if source == "scratch":
        return None
    if source == "teacher":
        return teacher if isinstance(teacher, Model) else None
    model = loaded(source)
    _check_fit(model, recipe, dataset)
    return model


@torch.no_grad()
def _try_forward(net: TrigFlowPrecond, dataset: Dataset, device: torch.device, name: str) -> None:
    """One pass on two images: a network of the user's that cannot do it should say so before anything is written."""
    x = dataset.codec.encode(dataset.data[:2]).to(device)
    cond = {} if dataset.labels is None else {"labels": dataset.labels[:2].to(device)}
    if net.guidance_input:
        cond["guidance"] = torch.ones(len(x), device=device)
    wanted = f"forward({', '.join(['x', 't', *cond])}) -> F of the shape of x"
    with torch.random.fork_rng(devices=[]):
        net.eval()
        try:
            F = net(x, torch.full((len(x),), 0.5, device=device), **cond)
        except Exception as error:  # whatever a foreign network raises
            if is_resource_error(error):
                raise
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"network '{name}' fails on {dataset.name} ({what}); it must have {wanted}"
            ) from error
        net.train()
    shape = tuple(getattr(F, "shape", ()))
    if not isinstance(F, torch.Tensor) or shape != tuple(x.shape):
        found = f"a tensor {shape}" if isinstance(F, torch.Tensor) else f"a {type(F).__name__}"
        raise UserError(f"network '{name}' returns {found} for x {tuple(x.shape)}; it must have {wanted}")


def _try_objective(recipe: Recipe, parts: RunParts, device: torch.device, world: World) -> None:
    """The losses of two images: an objective of the user's that cannot do it should say so, too."""
    modules = [part for net in parts.nets.values() if isinstance(net, nn.Module) for part in net.modules()]
    training = [module.training for module in modules]
    with (
        generators_kept(device),
        closing(Batches(parts.dataset, recipe.train, world)) as batches,
        products_in(recipe.train.precision, device),
    ):
        for module in modules:
            module.training = False  # statistics of batches stay
        try:
            batch, random = batches.of(0, min(recipe.train.batch, 2))
            output = losses_of(parts.objective, recipe.objective.name, parts.nets, batch, 0, random)
        finally:
            for module, mode in zip(modules, training, strict=True):
                module.training = mode
        if world.is_single:  # shards would keep the gradients
            _try_backward(output, parts.nets, recipe.objective.name)


def _try_backward(output: LossOutput, nets: Mapping[str, TrigFlowPrecond], name: str) -> None:
    for net, loss in output.losses.items():
        parameters = [parameter for parameter in nets[net].parameters() if parameter.requires_grad]
        with objective_errors_reported(name):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise UserError(
                f"objective '{name}': the loss of '{net}' does not depend on the weights of '{net}'"
            )


def _new_network(recipe: Recipe, card: ModelCard, start: Model | None, blank: bool) -> TrigFlowPrecond:
    """A network with its initial weights: another model's average, or fresh ones that follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        seed_generators(recipe.train.seed, torch.device("cpu"))  # where the weights are made
        net = new_precond(card, blank)
    if start and start.guidance_range and not net.guidance_input:
        raise UserError(
            f"the model '{start.name}' takes the guidance scale as an input, and this network does not: start from "
            "its teacher, or give network.guidance_input=true"
        )
    if start and not blank:
        # The adaptive weight is not taken over: it belongs to the other objective's scale.
        tensors = _additions(net.network) | start.precond.network.state_dict()
        load_tensors(net.network, tensors, f"the model '{start.name}'")
    return net


def _additions(network: nn.Module) -> dict[str, Tensor]:
    """The fresh tensors of parts that the initial weights need not have (`UNet.additions`)."""
    parts = tuple(f"{part}." for part in getattr(network, "additions", ()))
    return {name: tensor for name, tensor in network.state_dict().items() if f"{name}.".startswith(parts)}
