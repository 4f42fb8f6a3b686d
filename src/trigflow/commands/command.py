"""A command of the command line, and the arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from trigflow.system.config import Component


T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """One command: its name, its help and what it runs."""

    name: str
    summary: str  # one line, for the list of verbs
    example: str  # printed under --help
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # the exit code


MOST = 10**8  # of anything that is counted, from 1
LARGEST = 2**53  # seed or label, from 0


def integer(lowest: int) -> Callable[[str], int]:
    """An argument type: an integer from `lowest` to MOST; from 0 (a seed, a label) to LARGEST."""
    highest = MOST if lowest > 0 else LARGEST

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # no number, or one of thousands of digits
            value = lowest - 1
        if not lowest <= value <= highest:
            wanted = f"a whole number of at least {lowest} and at most {highest}"
            raise argparse.ArgumentTypeError(f"expects {wanted}, not '{text[:40]}'")
        return value

    return parse


def number(lowest: float) -> Callable[[str], float]:
    """An argument type: a finite number that is at least `lowest`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not lowest <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"expects a number of at least {lowest:g}, not '{text}'")
        return value

    return parse


def several(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """An argument type: comma-separated arguments of another type."""
    return lambda text: [one(part) for part in text.split(",")]


def add_flag(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """A flag without a value, and its help."""
    parser.add_argument(name, action="store_true", help=text)


def add_overrides(
    parser: argparse.ArgumentParser, text: str = "change a field of the recipe, e.g. train.batch=64"
) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=text)


def add_data_options(parser: argparse.ArgumentParser, example: str = "data.split=test") -> None:
    add_overrides(parser, f"options of the data set, as in a recipe, e.g. {example} (docs/data.md)")


def named_data(name: str, overrides: list[str]) -> Component:
    """A data set, or a path of one, with its options from the command line."""
    # Not with the parser: pydantic is most of the start of `--help`.
    from trigflow.system.config import with_options

    data = with_options({"data": name}, overrides)["data"]
    assert data
    return data


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model (`trigflow list models`) or the folder of a run"
    )


def add_guide(parser: argparse.ArgumentParser, whom: str) -> None:
    parser.add_argument(
        "--guide",
        metavar="MODEL",
        help=f"a weaker model that guides {whom} in place of the null label (autoguidance; needs --guidance-scale)",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="precision of the matrix products inside the network (default: float32)",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe, and changes of its fields."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a name from `trigflow list recipes`, a recipe.json, or package.module:function that returns a recipe",
    )
    add_overrides(parser)
    add_trust_code(parser, "recipe.json or in a model's folder")


def add_trust_code(parser: argparse.ArgumentParser, file: str = "model's folder") -> None:
    text = f"import the package.module:names of parts that are named in the {file} (this runs their code)"
    add_flag(parser, "--trust-code", text)


def how_to_sample(folder: Path) -> str:
    """The line that follows a training."""
    from trigflow.models.storage import read_card

    card = read_card(folder)
    code = " --trust-code" if ":" in card.network.name or ":" in card.sampling.sampler else ""
    return f"{folder} holds the model; to sample from it: trigflow sample {folder}{code} --out samples.png"


def add_vae(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vae",
        metavar="NAME_OR_PATH",
        help="autoencoder that decodes the samples of a latent model: a folder, or owner/name on the hub "
        "(default: the one in the model's folder)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="device; auto takes CUDA, then MPS, then the CPU (default: auto)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=integer(0), default=0, help="random seed (default: 0)")


def add_out_folder(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help=f"the folder to write, e.g. {example}"
    )
