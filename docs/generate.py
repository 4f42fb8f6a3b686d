"""Writes the generated parts of the documentation: `make docs`. A test checks that they are up to date.

docs/commands.md comes from the parser; the tables in README.md, benchmarks/README.md and pages of docs/, between
`<!-- NAME -->` and `<!-- end -->`, from results/; the cards of the shipped models, pretrained/README.md,
from their files and results/; the list of these, results/README.md, from the files themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trigflow
from trigflow.commands import cli
from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.metrics.classifier_net import DEFAULT_CLASSIFIER, load_classifier
from trigflow.evaluation.page import markdown_table
from trigflow.models.shipped import SHIPPED

HERE = Path(__file__).parent
COMMANDS = HERE / "commands.md"
README = HERE.parent / "README.md"
PRECISION = HERE / "precision.md"
METRICS = HERE / "metrics.md"
STUDIES_PAGE = HERE / "studies.md"
SCALE = HERE / "scale.md"
ATTENTION = HERE / "attention.md"
BENCHMARKS = HERE.parent / "benchmarks" / "README.md"
RESULTS = HERE.parent / "results"
CARDS = HERE.parent / "src" / "trigflow" / "models" / "pretrained" / "README.md"


def describe(action: argparse.Action) -> str:
    """One argument as a line of a list."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    return f"- `{name}`{choices}: {action.help}{'; required' if action.required and action.option_strings else ''}"


def commands() -> str:
    """Every verb with its arguments."""
    parts = ["# Commands", "Made by `make docs` from the parser: `trigflow COMMAND --help` says the same."]
    for name, parser in cli.verbs(cli.build_parser()).items():
        lines = [describe(action) for action in parser._actions if action.dest != "help"]
        command = cli.COMMANDS[name]
        parts += [
            f"## {name}",
            f"{command.summary[0].upper()}{command.summary[1:]}.",
            "\n".join(lines),
            f"```\n{command.example}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def _markdown(head: str, rows: list[list[str]]) -> str:
    return markdown_table([head.split(" | "), *rows])


def beside_teacher(name: str, title: str) -> str:
    """A shipped student beside its teacher, from results/NAME.json."""
    report = _result(f"{name}.json")
    rows = []
    for row in [*report["teachers"], *report["students"]]:
        student = "fd_ratio" in row
        sampler = in_steps(row["steps"]) if student else f"{row['sampler']}, {row['nfe']} evaluations"
        rows.append(
            [
                f"{row['method'] if student else 'teacher'}, {sampler}",
                f"{row['fd']:.3f} ({row['fd_range'][0]:.3f} .. {row['fd_range'][1]:.3f})",
                f"{row['fd_ratio']:.2f}" if student else "1",
                f"{row['label_agreement']:.1%}",
                f"{1000 * row['seconds_per_sample']:.3f}",
                f"{row['speedup']:.0f}x" if student else "1x",
                f"{row['esc_ratio']:.1%}" if student else "100%",
                f"{row['training_share']:.0%}" if student else "100%",
            ]
        )
    rows.extend(_real_rows(report))
    head = "FD | ratio | label accuracy | ms a sample | speedup | sampling compute | training compute"
    return _markdown(f"{title} | {head}", rows)


def _real_rows(report: Any) -> list[list[str]]:
    """The score of a perfect model: held-out data where there is some, else two halves of the data."""
    if test := report.get("real_test"):
        named = {f"real test data, {test['num']}": test}
        named |= {row["data"]: row for row in test.get("noised", [])}
        return [
            [name, f"{row['fd']:.3f}", "-", f"{row['label_agreement']:.1%}", *["-"] * 4]
            for name, row in named.items()
        ]
    real = report["real_vs_real"]
    halves = f"{real['fd']:.3f} ({real['fd_range'][0]:.3f} .. {real['fd_range'][1]:.3f})"
    return [[f"two halves of the real data, {real['num']} each", halves, *["-"] * 6]]


def mixture2d() -> str:
    """The error of the flow map over seeds."""
    rows = []
    runs = _result("mixture2d.json")["rows"]
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        group = [run for run in runs if run["recipe"] == recipe]
        keys = ("flow_map_median", "flow_map_rms", "sliced_wasserstein")
        rows.append(
            [f"{recipe}, {len(group)} seeds", *(_spread([run[key] for run in group]) for key in keys)]
        )
    return _markdown("recipe | error, median | error, RMS | sliced W2 to the data", rows)


def _spread(values: list[float], form: str = "{:.3f}") -> str:
    median, low, high = map(form.format, (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} .. {high})"


def data_loader() -> str:
    """Images a second of the loader alone and of the training step that it feeds."""
    lines = []
    for row in _result("data_loader.json")["rows"]:
        rates = [f"{row[key]:.0f}" for key in ("loader", "step", "ratio")]
        lines.append(["{0}x{0}x3".format(row["side"]), row["data"], *rates])
    return _markdown("images | data | loader, img/s | training step, img/s | ratio", lines)


def train_step() -> str:
    """The cost of a training step in each mode, over the diffusion step of the same network."""
    rows = _result("train_step.json")["rows"]
    modes = list(dict.fromkeys(row["mode"] for row in rows if row["step"] == "sct"))
    cases = [(network, step) for network in ("dit", "unet") for step in ("sct", "scd")]
    ratio = {(row["network"], row["step"], row["mode"]): row["ratio"] for row in rows}
    lines = [[mode, *(f"{ratio[network, step, mode]:.2f}" for network, step in cases)] for mode in modes]
    names = {"sct": "sCT", "scd": "sCD"}
    head = " | ".join(["mode", *(f"{network}, {names[step]}" for network, step in cases)])
    return _markdown(head, lines)


def attention(name: str) -> str:
    """Time and memory of attention with its tangent over the number of tokens, from results/NAME.json."""
    rows = _result(f"{name}.json")["rows"]
    cell = {(row["tokens"], row["way"]): row for row in rows}
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        times = [_figures(1000 * cell[tokens, way]["seconds"]) for way in ways]
        peaks = [_figures(cell[tokens, way]["peak_bytes"] / 2**20) for way in ways]
        lines.append([str(tokens), *times, *peaks])
    head = ["tokens", *(f"{way}, ms" for way in ways), *(f"{way}, MiB" for way in ways)]
    return _markdown(" | ".join(head), lines)


def _figures(value: float) -> str:
    """Two figures at least, no comma."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def paper_step() -> str:
    """Training steps at the paper's size beside their plans."""
    lines = []
    for row in _result("paper_step.json")["rows"]:
        again = ", --checkpointing" if row["checkpointing"] else ""
        size, seconds = f"{row['parameters'] / 1e6:.0f} M", row["seconds"]
        lines.append([f"{row['recipe']}{again}", size, str(row["batch"]), f"{seconds:.3f}"])
        lines[-1] += [f"{row['batch'] / seconds:.0f}", f"{row['flops'] / seconds / 1e12:.0f}"]
        lines[-1] += [f"{row[key] / 2**30:.1f}" for key in ("peak_bytes", "planned_bytes")]
    head = "recipe | parameters | batch | seconds a step | images/s | TFLOP/s | peak, GiB | planned, GiB"
    return _markdown(head, lines)


def studied(name: str) -> str:
    """The first table of a study, from its study.json in results/NAME.json."""
    return markdown_table(next(iter(_result(f"{name}.json")["tables"].values())))


def latency(name: str) -> str:
    """Of one and two steps beside an evaluation, from results/NAME.json."""
    timing = _result(f"{name}.json")
    teacher = timing["teacher"]
    rows = [
        ["one evaluation", _spread(timing["evaluation"]["all_seconds"], "{:.3g}"), "-"],
        [f"teacher, {teacher['nfe']} evaluations (extrapolated)", f"{teacher['reckoned_seconds']:.4g}", "1x"],
    ]
    for steps, row in timing["steps"].items():
        seconds = _spread(row["all_seconds"], "{:.3g}")
        rows.append([f"student, {in_steps(int(steps))}", seconds, f"{row['speedup']:.0f}x"])
    size = f"{timing['parameters'] / 1e6:.0f} million parameters"
    return _markdown(f"{size} | seconds a sample | speedup", rows)


def precision() -> str:
    """Errors beside float64 of each network in each precision."""
    lines = []
    for row in _result("precision.json")["rows"]:
        size = f"{row['network']}, {row['parameters'] / 1e6:.2f}M"
        errors = [f"{row[key]:.1e}" for key in ("value", "tangent", "gradient")]
        lines.append([size, row["precision"], *errors])
    return _markdown("network | products in | F | g | gradient", lines)


STUDIES = (
    *("digits-steps", "digits-speed", "digits-scaling", "digits-ablation", "digits-compute"),
    *("mnist-steps", "mnist-speed"),
)
TABLES: dict[str, Callable[[], str]] = {
    **{name: partial(attention, name) for name in ("attention", "attention-h200")},
    "digits": lambda: beside_teacher("digits", "8x8 digits"),
    "mnist": lambda: beside_teacher("mnist", "MNIST, 28x28"),
    "mnist-sct": lambda: beside_teacher("mnist-sct", "MNIST, 28x28"),
    "cifar10-small": lambda: beside_teacher("cifar10-small", "CIFAR-10, 32x32"),
    **{name: partial(studied, name) for name in STUDIES},
    **{name: partial(latency, name) for name in ("imagenet512-xxl", "imagenet512-xxl-h200")},
    "paper_step": paper_step,
    "data_loader": data_loader,
    "mixture2d": mixture2d,
    "precision": precision,
    "train_step": train_step,
}


def with_tables(text: str) -> str:
    """The text with each table between its marks made anew."""
    for name, table in TABLES.items():
        if f"<!-- {name} -->" not in text:
            continue
        head, mark, rest = text.partition(f"<!-- {name} -->\n")
        text = head + mark + table() + "\n" + rest[rest.index("<!-- end -->") :]
    return text


# What the files of a shipped model do not tell.
_DATA = {
    "digits": (
        "scikit-learn's 1,797 digits of 8x8 pixels (UCI, Alpaydin and Kaynak, 1998; CC BY 4.0)",
        "A part of the UCI test set, by 43 writers.",
    ),
    "mnist": (
        "MNIST, 60,000 training images of 28x28 pixels (LeCun, Cortes and Burges; given as CC BY-SA 3.0)",
        "Digits of American census employees and pupils: other hands write other digits.",
    ),
}


def cards() -> str:
    """A card for each shipped model, and for each shipped classifier."""
    parts = [
        "# The models in this package",
        "Made by `make docs` from the models' own files and from results/. Weights: Apache-2.0.\n"
        "They show the method at the size of a toy: for research and teaching, nothing else.",
    ]
    judges = sorted(path.parent for path in CARDS.parent.glob("*/classifier.json"))
    return "\n\n".join([*parts, *map(_card, SHIPPED), *map(_classifier_card, judges)]) + "\n"


def _card(name: str) -> str:
    model = trigflow.load(name, "cpu")
    card, recipe = model.card, model.card.recipe
    data, limits = _DATA[card.data]
    report = _result(f"{card.data}.json")
    rows = report["students"] if model.is_student else report["teachers"]
    scores = "; ".join(
        f"{row['fd']:.3f} ({row['fd_range'][0]:.3f} .. {row['fd_range'][1]:.3f}) with {row['nfe']} NFE, "
        f"label accuracy {row['label_agreement']:.1%}"
        for row in rows
    )
    spread = f"(median and range of {report['seeds']} seeds of {report['num_samples']:,} samples)"
    size = f"{model.num_parameters:,} parameters, sigma_data {card.precond.sigma_data}"
    source = f", distilled from `{name}-teacher`" if model.is_student else ""
    run = f"{card.nimg:,} images in batches of {recipe['train']['batch']}, seed {recipe['train']['seed']}"
    if card.earlier:
        before = ", ".join(f"`{phase.name}` {phase.nimg:,}" for phase in card.earlier)
        run += f"; before it {before} images (docs/LOG.md)"
    facts = [
        ("What", f"{SHIPPED[name]}; classes 0 to {card.num_classes - 1}"),
        ("Network", f"{card.network.name}, {size}"),
        ("Training", f"`trigflow train {card.name}`{source}, {run}"),
        ("Data", data),
        (report["score"], f"{scores} {spread}"),
        ("Limits", f"{limits} Some samples are no digit, or not the requested one."),
    ]
    lines = [f"- **{head}**: {text}" for head, text in facts]
    return "\n".join([f"## {name}", "", *lines])


def _classifier_card(folder: Path) -> str:
    """Of a classifier in whose features samples are scored."""
    net, card = load_classifier(folder)
    training, score = card["training"], card["score"]
    command = f"trigflow train-classifier {training['data']} --epochs {training['epochs']} --seed {training['seed']}"
    if "augment" in training:  # a newer one's
        command += f" --network {card['architecture']} --augment {training['augment']}"
    size = sum(parameter.numel() for parameter in net.parameters())
    facts = [
        ("What", f"{net.head.in_features} features of images, and their labels: `--features {folder.name}`"),
        ("Network", f"{card.get('architecture', DEFAULT_CLASSIFIER)}, {size:,} parameters"),
        ("Training", f"`{command}`, on {training['num_train']:,} images"),
        ("Data", _DATA[training["data"]][0]),
        ("Accuracy", f"{score['held_out_accuracy']:.2%} of {score['num_held_out']:,} images held out"),
    ]
    lines = [f"- **{head}**: {text}" for head, text in facts]
    return "\n".join([f"## {folder.name}", "", *lines])


# Which command wrote which file; those that hold their command need no entry.
SOURCES = {
    "digits.json": "trigflow evaluate digits --steps 1,2,4 --num 5000 --seeds 3 --out report",
    "mnist.json": "trigflow evaluate mnist --data data/mnist --steps 1,2,4 --num 10000 --seeds 3 --out report",
    "mnist-sct.json": "trigflow evaluate runs/mnist-sct --teacher mnist-teacher --data data/mnist --steps 1,2,4 "
    "--num 10000 --seeds 3 --out report",
    "cifar10-small.json": "trigflow evaluate runs/cifar10-small-scd --features resnet20=FILE --test-data "
    "data/cifar10-test-32x32.zip --steps 1,2,4 --num 10000 --seeds 3 --noise-levels 5,10,20 --out report",
    "imagenet512-xxl.json": "trigflow bench imagenet512-xxl --random --steps 1,2 --json results/imagenet512-xxl.json",
    "imagenet512-xxl-h200.json": "trigflow bench imagenet512-xxl --random --steps 1,2 --rounds 5 --device cuda "
    "--precision bfloat16 --json results/imagenet512-xxl-h200.json",
}


def results() -> str:
    """Every file of results/: its command, seeds, machine and commit."""
    rows = [_origin(path.name) for path in sorted(RESULTS.glob("*.json"))]
    text = """The results of the runs for this repository. The tables in README.md are made from them, and `make docs`
makes this list from the files (the report.json of an evaluation, the study.json of a study). A commit with
-dirty had uncommitted changes. Times differ between machines, scores by rounding only."""
    return (
        "\n\n".join(["# Results", text, _markdown("file | command | seeds | machine | commit", rows)]) + "\n"
    )


def _origin(name: str) -> list[str]:
    about = _result(name)
    machine = about["machine"]
    device = machine["device"]
    where = f"{machine['cpu']}, {machine['threads']} threads" if device == "cpu" else device
    place = f"{where}, torch {machine['torch']}"
    command = about.get("command") or SOURCES[name]
    seeds = about.get("seeds") or about.get("settings", {}).get("seeds", "-")
    return [f"`{name}`", f"`{command}`", str(seeds), place, machine["commit"][:12]]


if __name__ == "__main__":
    (RESULTS / "README.md").write_text(results())
    CARDS.write_text(cards())
    COMMANDS.write_text(commands())
    for page in (README, BENCHMARKS, PRECISION, METRICS, STUDIES_PAGE, SCALE, ATTENTION):
        page.write_text(with_tables(page.read_text()))
