"""What names the labels of a data set, and what is refused: one rule for all formats (docs/data.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trigflow.system.errors import UserError, did_you_mean, printable

# An array, a column or a key of one of these names, in any case, holds the labels.
NAMES = ("label", "labels", "class", "cls", "target", "targets", "fine_label", "fine_labels")
MOST_CLASSES = 10**5  # larger labels are numbers of something else
FOLDERS = "folders"
TABLE = "dataset.json"


@dataclass(frozen=True)
class Labels:
    """The labels of all samples.

    Args:
        values: (N,) int64 in 0..num_classes-1, or None.
        num_classes: 0 without labels.
        classes: names of the classes, () where they have none.
        origin: where they are from; without labels, why there are none.
    """

    values: Tensor | None = None
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    origin: str = ""

    @property
    def unseen(self) -> tuple[int, ...]:
        """The classes without samples."""
        if self.values is None:
            return ()
        counts = torch.bincount(self.values.cpu(), minlength=self.num_classes)
        return tuple((counts == 0).nonzero().flatten().tolist())

    @property
    def line(self) -> str:
        """ "labels: 5 classes from dataset.json"."""
        if self.values is None:
            return printable("no labels" + (f": {self.origin}" if self.origin else ""))
        text = f"labels: {self.num_classes} class{'' if self.num_classes == 1 else 'es'}"
        text += f" from {self.origin}" if self.origin else ""
        if unseen := self.unseen:
            shown = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
            text += f"; {len(unseen)} without samples ({shown}), not sampled unless asked for"
        return printable(text)


def names_labels(key: str) -> bool:
    """Whether an array, a column or a key of this name holds labels."""
    return key.casefold() in NAMES


def label_key(source: object, given: str | None, keys: Sequence[str], declared: Collection[str] = ()) -> str:
    """Which of the keys holds the labels; "" for none.

    Args:
        source: of the data, for errors.
        given: the option `label_key`: a key; "" for the one that is named or declared so; None for no labels.
        keys: of arrays, columns, or of JSON.
        declared: those that the file itself declares to be classes.

    Raises:
        UserError: the given key is absent, or several hold labels.
    """
    if given is None:
        return ""
    if given and given not in keys:
        raise UserError(
            f"{source} has no labels '{given}'{did_you_mean(given, keys)}; there are: {', '.join(keys) or 'none'}"
        )
    found = [given] if given else [key for key in keys if names_labels(key) or key in declared]
    if len(found) > 1:
        raise UserError(
            f"{source} has several that may be labels: choose one by data.label_key=NAME, or none by null: "
            f"{', '.join(found)}"
        )
    return found[0] if found else ""


def no_labels(given: str | None, what: str, keys: Iterable[str]) -> Labels:
    """None, and why.

    Args:
        given: the option `label_key`.
        what: the keys are.
        keys: that there are.
    """
    there = list(keys)
    more = ", ..." if len(there) > 8 else ""
    return Labels(
        origin="left out by data.label_key=null" if given is None else f"{what} {', '.join(there[:8])}{more}"
    )


def labels_of(source: object, values: Sequence[object], origin: str, classes: tuple[str, ...] = ()) -> Labels:
    """Whole numbers as they are; texts as classes in natural order, whose names they are.

    Args:
        source: of the data, for errors.
        values: of all samples, at least one.
        origin: of the labels.
        classes: names of the classes that numbers stand for, () if there are none.

    Raises:
        UserError: floats, booleans, empty texts, both numbers and texts, negative numbers, or numbers beyond the
            classes.
    """
    kinds = {type(value) for value in values}
    if kinds == {str} and "" not in values:
        classes = tuple(sorted(set(map(str, values)), key=natural))
        if len(classes) > MOST_CLASSES:
            raise UserError(
                f"{source}: the labels from {origin} are {len(classes)} different texts, above {MOST_CLASSES} classes"
            )
        numbers = {name: number for number, name in enumerate(classes)}
        given: Sequence[object] = [numbers[str(value)] for value in values]
    elif kinds == {int}:
        given = values
    else:
        # A bool is an int, but no class.
        odd = [
            value for value in values if type(value) is not int and (value == "" or type(value) is not str)
        ]
        what = f"such as {odd[0]!r:.40}" if odd else "both numbers and texts"
        raise UserError(
            f"{source}: the labels from {origin} hold {what}: labels are whole numbers 0, 1, 2, ..., or texts"
        )
    tensor = _checked(source, given, len(classes) or MOST_CLASSES)
    return Labels(tensor, len(classes) or int(tensor.max()) + 1, classes, origin)


def _checked(source: object, values: Sequence[object], allowed: int) -> Tensor:
    for value in values:
        if not (isinstance(value, int) and 0 <= value < allowed):
            raise UserError(
                f"{source} has the label {value!s:.40}: number the classes 0, 1, 2, ... below {allowed}"
            )
    return torch.tensor(values)


def natural(name: str) -> tuple[object, ...]:
    """A key to sort by: numbers within names by their value, so that "2" comes before "10"."""
    parts = re.split("([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]
    key: list[object] = [*parts]
    key[1::2] = [(len(digit), digit) for digit in digits]
    return tuple(key), name


def class_names(found: object) -> tuple[str, ...]:
    """Names that a file gives its classes, () unless they are a list of texts."""
    return tuple(found) if isinstance(found, list) and all(isinstance(name, str) for name in found) else ()


def table_of_labels(
    entries: Sequence[Sequence[object]] | None, classes: Sequence[str] = ()
) -> dict[str, object]:
    """What dataset.json holds: (name, label) of each image, or None; EDM's readers take no names of classes."""
    table: dict[str, object] = {"labels": entries}
    return {**table, "classes": classes} if classes else table


def labels_of_table(source: object, content: bytes, names: Sequence[str]) -> Labels | None:
    """The labels in EDM's dataset.json: {"labels": [["00000/img00000000.png", 6], ...]}.

    Args:
        source: of the file, for errors.
        content: of the file.
        names: of the images, relative to the folder of the file.

    Returns:
        Labels in the order of the names, Labels without values for {"labels": null}, or None where the file speaks of
        no labels at all. A field "classes" holds the names of the classes.

    Raises:
        UserError: it is damaged or foreign, or an image has no label or several.
    """
    try:
        table = json.loads(content)
        entries = table.get("labels")
        found = {str(name): label for name, label in entries or ()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        wanted = '{"labels": [[name, label], ...]}'
        raise UserError(f"{source}: its {TABLE} is damaged or foreign; wanted is {wanted}") from None
    if entries is None:
        return Labels(origin=f"{TABLE} has none") if "labels" in table else None
    if len(found) < len(entries):
        raise UserError(f"{source}: {TABLE} has several labels for one name: give each image one")
    for name in names:
        if found.get(name) is None:
            raise UserError(f"{source}: {TABLE} has no label for {name}")
    return labels_of(source, [found[name] for name in names], TABLE, class_names(table.get("classes")))


def check_order(what: str, theirs: tuple[str, ...], classes: tuple[str, ...], origin: str) -> None:
    """Whether the classes that both have names for have the same numbers in both.

    Args:
        what: has the other names, for the error.
        theirs: the other names; () where they are not known: then those of folders may be in plain order, in which
            earlier versions numbered them.
        classes, origin: of the data.

    Raises:
        UserError: a class has another number there.
    """
    former = theirs or (tuple(sorted(classes)) if origin == FOLDERS else ())
    places = {name: number for number, name in enumerate(former)}
    for name, number in {name: number for number, name in enumerate(classes)}.items():
        if places.get(name, number) != number:
            age = "" if theirs else ", as earlier versions sorted folders"
            raise UserError(
                f"{what} has the class '{name}' as number {places[name]}{age}, and the data as {number}: give it the "
                "data in its order of classes, or train anew"
            )
