"""Components, overrides, and errors of one line."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest
from pydantic import Field

from trigflow import recipes
from trigflow.system.config import (
    Component,
    apply_overrides,
    build,
    first_difference,
    look_up,
    parse_value,
    to_json,
    validate,
)
from trigflow.system.errors import UserError


class Part:
    """A factory that records what it was given."""

    def __init__(
        self, size: int, *, width: Annotated[int, Field(ge=1)] = 8, kinds: tuple[int, ...] = (1, 2)
    ) -> None:
        self.given = (size, width, kinds)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """A factory that checks itself."""

    rate: float = Field(default=1.0, gt=0)
    kind: str = "a"


def anything(**options: Any) -> dict[str, Any]:
    return options


def odd(process: subprocess.Popen[bytes] | None = None, number: int = 1) -> int:
    """Takes a type that pydantic cannot check."""
    return number


TABLE = {
    "part": Part,
    "checked": Checked,
    "b": functools.partial(Checked, kind="b"),
    "anything": anything,
    "odd": odd,
}


@dataclass(frozen=True)
class Inner:
    count: Annotated[int, Field(ge=1)] = 3
    ratio: float | None = None


@pydantic.dataclasses.dataclass(frozen=True)
class Outer:
    part: Component
    inner: Inner = Inner()
    text: str | None = None


def made(*overrides: str) -> Outer:
    return apply_overrides(Outer(Component("part", {"width": 4, "kinds": (3, 4)})), overrides)


def told(action: Any, *args: Any, **kwargs: Any) -> str:
    """The text of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        action(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_build_passes_options_and_extras() -> None:
    part = build(Component("part", {"width": 16, "kinds": [5, 6]}), TABLE, "part", size=2)
    assert part.given == (2, 16, (5, 6))
    assert build(Component("b"), TABLE).kind == "b"
    assert build(Component("anything", {"x": 1}), TABLE, extra=2) == {"x": 1, "extra": 2}
    assert build(Component("odd", {"number": 3, "process": None}), TABLE) == 3


def test_build_takes_a_class_of_the_user() -> None:
    """What the class does not ask for is not forced on it."""
    part = build(Component("test_config:Part", {"width": 2}), {}, "network", size=1, num_classes=0)
    assert part.given == (1, 2, (1, 2))


def folder(path: Path, name: str | None = None) -> tuple[Path, str | None]:
    """Takes what may be named by digits."""
    return path, name


def test_options_of_text_may_be_digits() -> None:
    component = Component("folder", {"path": 2024, "name": 12})
    try:
        built = build(component, {"folder": folder}, "data")
    except UserError as error:
        pytest.fail(f"refused: {error}")
    assert built == (Path("2024"), "12")
    told_of = told(build, Component("folder", {"path": 1000.0}), {"folder": folder}, "data")
    assert "to give it as text, use quotes" in told_of and told_of.startswith("data.path = 1000.0: should be")


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Component("prat"), "unknown part 'prat' (did you mean 'part'?); there are: "),
        (Component("part", {"widht": 1}), "part.widht: 'part' has no such option (did you mean 'width'?)"),
        (Component("part", {"size": 1}), "part.size: 'part' has no such option"),
        (Component("part", {"width": 0}), "part.width = 0: should be greater than or equal to 1"),
        (Component("part", {"width": "x"}), 'part.width = "x": should be a valid integer'),
        (Component("checked", {"rate": -0.5}), "part.rate = -0.5: should be greater than 0"),
        (Component("b", {"kind": "a"}), "part.kind: 'b' has no such option"),
        (Component("no_such_module:Part"), "cannot import no_such_module"),
        (Component("test_config:Nothing"), "module test_config has no class or function 'Nothing'"),
    ],
)
def test_build_tells_mistakes(component: Component, message: str) -> None:
    assert message in told(
        build, component, TABLE, "part", **({"size": 1} if component.name == "part" else {})
    )


def test_build_names_what_is_missing() -> None:
    assert told(build, Component("part"), TABLE, "part") == "part.size is missing"


def test_names_for_a_type_checker_alone() -> None:
    def made(path: Missing, width: int = 3) -> tuple[object, object]:  # type: ignore[name-defined]  # noqa: F821
        return path, width

    assert build(Component("made", {"path": "a", "width": 4}), {"made": made}) == ("a", 4)


def test_look_up() -> None:
    assert look_up("part", TABLE, "part") is Part


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("exact", "exact"),
        ("a=b", "a=b"),
    ],
)
def test_values_are_json_or_text(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_overrides() -> None:
    changed = made("inner.count=5", "part.width=16", "part.new=[1]", "text=a=b", "inner.ratio=1e-2")
    assert changed == Outer(
        Component("part", {"width": 16, "kinds": [3, 4], "new": [1]}), Inner(5, 0.01), "a=b"
    )
    assert made() == Outer(Component("part", {"width": 4, "kinds": [3, 4]}))


def test_another_name_drops_the_options() -> None:
    assert made("part=other", "part.depth=2").part == Component("other", {"depth": 2})
    assert made("part.name=other").part == Component("other")
    assert made("part=part").part.options["width"] == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.cuont=3", "unknown key 'inner.cuont' (did you mean 'count'?); there are: count, ratio"),
        ("iner.count=3", "unknown key 'iner.count' (did you mean 'inner'?)"),
        ("text.size=3", "unknown key 'text.size': 'text' has no keys of its own"),
        ("inner.count=0", "inner.count = 0: should be greater than or equal to 1"),
        ("inner.count=many", 'inner.count = "many": should be a valid integer'),
        ("inner=3", "inner = 3: should be"),
        ("part=[3]", "part = [3]: should be"),
        ("inner.count", "not of the form key=value"),
        ("=3", "not of the form key=value"),
    ],
)
def test_overrides_tell_mistakes(override: str, message: str) -> None:
    assert message in told(made, override)


@pytest.mark.parametrize(
    "override",
    [
        "train.batch=true",
        "train.seed=false",
        "train.microbatch=true",
        "optimizer.lr=true",
        "optimizer.betas=[false,0.9]",
        "optimizers.net.lr=true",
        'optimizers={"net":{"lr":true}}',
        "sampling.guidance_scale=true",
    ],
)
def test_a_boolean_is_no_number(override: str) -> None:
    with pytest.raises(UserError, match="should be a number, not a boolean"):
        recipes.get("digits-scd", [override])
    assert recipes.get("digits-scd", ["train.tensorboard=false"]).train.tensorboard is False


@pytest.mark.parametrize("name", ["7", "2024", "1e3", "7.5", "true"])
def test_numbers_as_names(name: str) -> None:
    given = [f"data={name}", f"teacher={name}", f"init={name}", f"guide={name}", f"inits.net={name}"]
    recipe = recipes.get(
        "digits-scd", [*given, f"network={name}", f"name={name}", f"sampling.sampler={name}"]
    )
    assert recipe.data == recipe.network == Component(name)
    assert (recipe.teacher, recipe.init, recipe.guide, recipe.inits) == (name, name, name, {"net": name})
    assert recipe.name == recipe.sampling.sampler == name


def test_null_is_a_name_where_there_must_be_one() -> None:
    assert recipes.get("digits-scd", ["data=null", "teacher=null"]).data == Component("null")


def test_json_round_trip_and_unknown_keys() -> None:
    outer = made("inner.count=7")
    assert validate(Outer, to_json(outer)) == outer
    assert "inner.count" in told(validate, Outer, {"part": {"name": "a"}, "inner": {"count": "x"}})
    assert told(validate, Component, {}, "here") == "here.name is missing"
    assert told(validate, Component, {"name": "a", "nmae": 1}, "here") == "here.nmae: there is no such key"


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
        ({"a": [1]}, {"a": [1, 2]}, "a"),
        ({"a": 1}, {"a": 1, "c": None}, "c"),
    ],
)
def test_first_difference(one: object, other: object, path: str | None) -> None:
    assert first_difference(one, other) == path
