"""Recipes for ImageNet at 64x64 pixels and, as latents, at 512x512: the paper's constants (arXiv 2410.11081, A.2, G).

Every size has a teacher, a student trained with it (sCD) and one trained from its weights on the data alone (sCT). All
are EDM2's network with sCM's changes, 0.3 to 1.6 billion parameters; `trigflow plan NAME` tells what they need.

One thing differs from the paper: products are taken in bfloat16, the paper's in float16. An sCD student of ImageNet-512
takes the guidance scale as an input, drawn from `Table.scales`. The latents of ImageNet-512 are made from the images by

    trigflow data encode IMAGES --size 512 --vae stabilityai/sd-vae-ft-mse --out data/imagenet-512-latents

and standardised by the paper's constants (`data.latents.PUBLISHED`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe, SamplingConfig, TrainConfig
from trigflow.system.config import Component

BATCH = 2048
STEPS_OF_TEACHER = 32  # of Heun's method: 63 evaluations
LOG_NIMG, CHECKPOINT_NIMG = 50 * BATCH, 2_500 * BATCH


@dataclass(frozen=True, kw_only=True)
class Table:
    """The constants of a data set; a tuple has an entry for each of `sizes`, a share is a number in [0, 1).

    Args:
        data: the data set; its pictures can be drawn where they are pixels.
        pixels: whether they are pixels, or latents.
        sizes, channels: of EDM2's networks.
        t_ref: steps after which the learning rate falls as 1/sqrt.
        P_teacher, P_student: (P_mean, P_std).
        label_dropout: of the teacher: 0 where nothing is guided.
        lr_teacher, lr_student: learning rates before their decay.
        steps_teacher, steps_sct, steps_scd: thousands of steps.
        dropout_teacher, dropout_sct, dropout_scd: the students' on levels of at most 16 pixels, as the paper says.
        ema_teacher, ema_student: relative standard deviation of the average.
        scales: guidance scales that a student distils, conditioned on them; None: it distils without guidance.
        guidance: at which teachers, and such students, are sampled; 1 is none.
        fid_teacher: in 63 evaluations, twice as many with guidance.
        fid_sct, fid_scd: in 1 and in 2 evaluations.
    """

    data: Component
    pixels: bool
    sizes: tuple[str, ...]
    channels: tuple[int, ...]
    t_ref: int
    P_teacher: tuple[float, float]
    P_student: tuple[float, float]
    label_dropout: float
    lr_teacher: tuple[float, ...]
    lr_student: tuple[float, ...]
    steps_teacher: tuple[int, ...]
    steps_sct: tuple[int, ...]
    steps_scd: tuple[int, ...]
    dropout_teacher: tuple[float, ...]
    dropout_sct: tuple[float, ...]
    dropout_scd: tuple[float, ...]
    ema_teacher: tuple[float, ...]
    ema_student: float
    scales: tuple[float, float] | None
    guidance: tuple[float, ...]
    fid_teacher: tuple[float, ...]
    fid_sct: tuple[tuple[float, ...], tuple[float, ...]]
    fid_scd: tuple[tuple[float, ...], tuple[float, ...]]


# fmt: off
TABLES = {
    "imagenet64": Table(
        data=Component("edm_zip", {"path": "data/imagenet-64x64.zip"}),
        pixels=True,
        t_ref=35_000,
        P_teacher=(-0.8, 1.6),
        P_student=(-1.0, 1.6),
        label_dropout=0.0,
        ema_student=0.05,
        scales=None,
        sizes=          ("s",   "m",   "l",   "xl"),
        channels=       (192,   256,   320,   384),
        lr_teacher=     (1e-2,  9e-3,  8e-3,  7e-3),
        lr_student=     (1e-4,  9e-5,  8e-5,  7e-5),
        steps_teacher=  (1048,  1486,  761,   540),
        steps_sct=      (400,   400,   400,   400),
        steps_scd=      (400,   400,   400,   400),
        dropout_teacher=(0.0,   0.10,  0.10,  0.10),
        dropout_sct=    (0.45,  0.45,  0.45,  0.45),
        dropout_scd=    (0.0,   0.0,   0.0,   0.0),
        ema_teacher=    (0.075, 0.06,  0.04,  0.04),
        guidance=       (1.0,   1.0,   1.0,   1.0),
        fid_teacher=    (1.70,  1.55,  1.44,  1.38),
        fid_sct=       ((3.23,  2.25,  2.08,  2.04),
                        (2.93,  1.81,  1.57,  1.48)),
        fid_scd=       ((2.97,  2.79,  2.43,  2.44),
                        (2.07,  1.89,  1.70,  1.66)),
    ),
    "imagenet512": Table(
        # Latents (4, 64, 64) of the autoencoder sd-vae-ft-mse, drawn from its distributions, and labels.
        data=Component("latent_folder", {"path": "data/imagenet-512-latents"}),
        pixels=False,
        t_ref=70_000,
        P_teacher=(-0.4, 1.0),
        P_student=(-0.8, 1.6),
        label_dropout=0.1,
        ema_student=0.05,
        scales=(1.0, 2.0),
        sizes=          ("s",   "m",   "l",   "xl",  "xxl"),
        channels=       (192,   256,   320,   384,   448),
        lr_teacher=     (1e-2,  9e-3,  8e-3,  7e-3,  6.5e-3),
        lr_student=     (1e-4,  9e-5,  8e-5,  7e-5,  6.5e-5),
        steps_teacher=  (1048,  1048,  696,   598,   376),
        steps_sct=      (100,   100,   100,   100,   100),
        steps_scd=      (200,   200,   200,   200,   200),
        dropout_teacher=(0.0,   0.10,  0.10,  0.10,  0.10),
        dropout_sct=    (0.25,  0.35,  0.35,  0.35,  0.35),
        dropout_scd=    (0.0,   0.10,  0.10,  0.10,  0.10),
        ema_teacher=    (0.025, 0.03,  0.015, 0.02,  0.015),
        # The paper's best for the FID of the teacher and of 2 steps; 1 step wants 0.1 more.
        guidance=       (1.4,   1.2,   1.2,   1.2,   1.2),
        fid_teacher=    (2.29,  2.00,  1.87,  1.80,  1.73),
        fid_sct=      ((10.13,  5.84,  5.15,  4.33,  4.29),
                        (9.86,  5.53,  4.65,  3.73,  3.76)),
        fid_scd=       ((3.07,  2.75,  2.55,  2.40,  2.28),
                        (2.50,  2.26,  2.04,  1.93,  1.88)),
    ),
}
# fmt: on


def _network(
    channels: int, dropout: float, resolution: int | None, guidance_input: bool = False
) -> Component:
    options: dict[str, object] = {"channels": channels, "dropout": dropout}
    options |= {"dropout_resolution": resolution} if resolution else {}
    return Component("edm2", options | ({"guidance_input": True} if guidance_input else {}))


def _training(thousands: int, label_dropout: float = 0.0) -> TrainConfig:
    return TrainConfig(
        total_nimg=1000 * thousands * BATCH,
        batch=BATCH,
        label_dropout=label_dropout,
        precision="bfloat16",
        log_nimg=LOG_NIMG,
        checkpoint_nimg=CHECKPOINT_NIMG,
    )


def _optimizer(table: Table, lr: float, eps: float, rampup_nimg: int = 0) -> OptimizerConfig:
    """Adam, its rate falling as in EDM2."""
    schedule = Component("inverse_sqrt", {"t_ref": table.t_ref})
    return OptimizerConfig(
        name="adam", lr=lr, betas=(0.9, 0.99), eps=eps, schedule=schedule, rampup_nimg=rampup_nimg
    )


def _teacher(name: str, table: Table, n: int) -> Recipe:
    """The n-th size's teacher; ramp-up and eps are EDM2's, whose training it is."""
    P_mean, P_std = table.P_teacher
    return Recipe(
        name=name,
        data=table.data,
        network=_network(table.channels[n], table.dropout_teacher[n], None),
        objective=Component("diffusion", {"P_mean": P_mean, "P_std": P_std}),
        train=_training(table.steps_teacher[n], table.label_dropout),
        optimizer=_optimizer(table, table.lr_teacher[n], eps=1e-8, rampup_nimg=10_000_000),
        ema=EMAConfig(ema_std=(table.ema_teacher[n],)),
        sampling=SamplingConfig(
            sampler="heun",
            steps=STEPS_OF_TEACHER,
            guidance_scale=table.guidance[n],
            grid_nimg=CHECKPOINT_NIMG if table.pixels else 0,
        ),
    )


def _student(name: str, table: Table, n: int, objective: str) -> Recipe:
    """The n-th size's student, "sct" or "scd": c = 0.1, H = 10,000 steps, the plain norm, the adaptive weight."""
    distils = objective == "scd"
    P_mean, P_std = table.P_student
    options: dict[str, object] = {"P_mean": P_mean, "P_std": P_std}
    options |= {"normalization": "l2", "c": 0.1, "warmup": 10_000, "adaptive_weight": True}
    scales = table.scales if distils else None
    if scales:
        options["guidance_scale"] = list(scales)
    dropout, steps = (table.dropout_scd, table.steps_scd) if distils else (table.dropout_sct, table.steps_sct)
    return Recipe(
        name=name,
        data=table.data,
        network=_network(table.channels[n], dropout[n], 16, guidance_input=scales is not None),
        objective=Component(objective, options),
        # The paper starts sCT, too, from the teacher's average; a run that forgot to would be another experiment.
        init="teacher" if distils else _folder(name, "teacher"),
        train=_training(steps[n]),
        optimizer=_optimizer(table, table.lr_student[n], eps=1e-11),
        ema=EMAConfig(ema_std=(table.ema_student,)),
        sampling=SamplingConfig(
            guidance_scale=table.guidance[n] if scales else 1.0,
            grid_nimg=CHECKPOINT_NIMG if table.pixels else 0,
        ),
    )


def _folder(name: str, role: str) -> str:
    """Where the command of a recipe's docstring writes the teacher of a student."""
    return f"runs/{name.rpartition('-')[0]}-{role}"


def _documented(name: str, make: Callable[[], Recipe], text: str) -> Callable[[], Recipe]:
    """A function of a name of its own, as if it had been written out."""

    def recipe() -> Recipe:
        return make()

    recipe.__name__ = recipe.__qualname__ = name.replace("-", "_")
    recipe.__doc__ = text
    return recipe


_TEACHER = """TrigFlow diffusion teacher of ImageNet-{pixels}, size {size} (arXiv 2410.11081, appendix G).

    Command: trigflow train {name} --out runs/{name}
    Cost: {steps},000 steps of 2,048 images: many GPUs (trigflow plan {name}).
    Sampler: heun, 32 steps{guided} NFE).
    Score: FID {fid} in the paper, not reproduced here.
    """
_STUDENT = """{what} of ImageNet-{pixels}, size {size}, with the paper's constants (arXiv 2410.11081, appendix G).

    Command: trigflow train {name} {source} --out runs/{name}
    Cost: {steps},000 steps of 2,048 images: many GPUs (trigflow plan {name}).
    Sampler: consistency, 1 or 2 NFE{guided}.
    Score: FID {fid[0]} in one step, {fid[1]} in two in the paper, not reproduced here.
    """


def _teacher_text(name: str, data: str, n: int) -> str:
    table, guidance = TABLES[data], TABLES[data].guidance[n]
    return _TEACHER.format(
        name=name,
        pixels=data.removeprefix("imagenet"),
        size=table.sizes[n].upper(),
        steps=f"{table.steps_teacher[n]:,}",
        guided=" (63" if guidance == 1 else f", guided at {guidance} (2 x 63",
        fid=f"{table.fid_teacher[n]:.2f}",
    )


def _student_text(name: str, data: str, n: int, objective: str) -> str:
    table, distils = TABLES[data], objective == "scd"
    scales = table.scales if distils else None
    return _STUDENT.format(
        name=name,
        what="sCD" if distils else "sCT",
        pixels=data.removeprefix("imagenet"),
        size=table.sizes[n].upper(),
        source=f"{'teacher' if distils else 'init'}={_folder(name, 'teacher')}",
        steps=(table.steps_scd if distils else table.steps_sct)[n],
        fid=[f"{fid[n]:.2f}" for fid in (table.fid_scd if distils else table.fid_sct)],
        guided=f", at any guidance scale of {scales[0]:g} to {scales[1]:g} ({table.guidance[n]})"
        if scales
        else "",
    )


def _recipes() -> dict[str, Callable[[], Recipe]]:
    """All of them by name, each size's teacher first."""
    found: dict[str, Callable[[], Recipe]] = {}
    for data, table in TABLES.items():
        for n, size in enumerate(table.sizes):
            teacher = f"{data}-{size}-teacher"
            make = partial(_teacher, teacher, table, n)
            found[teacher] = _documented(teacher, make, _teacher_text(teacher, data, n))
            for objective in ("scd", "sct"):
                name = f"{data}-{size}-{objective}"
                make = partial(_student, name, table, n, objective)
                found[name] = _documented(name, make, _student_text(name, data, n, objective))
    return found


IMAGENET = _recipes()
