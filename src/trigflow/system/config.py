"""Configuration: components by name, overrides `key=value`, and one-line errors."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from trigflow.system.errors import UserError, did_you_mean, errors_reported, one_of
from trigflow.system.numbers import checked_numbers

T = TypeVar("T")

STRICT_KEYS = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT_KEYS)
class Component:
    """A part of a recipe: a name from a table (or "package.module:Class" of the user's) and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def _describe(error: ValidationError, where: str) -> str:
    """The first error of pydantic as "where.key = value: message"."""
    first = error.errors(include_url=False)[0]
    path = ".".join(map(str, (where, *first["loc"]) if where else first["loc"]))
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path} is missing"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path}: there is no such key"
    mistake = first.get("ctx", {}).get("error")
    if isinstance(mistake, UserError):  # of a validator, a line of its own
        return f"{path}: {mistake}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    # Too long to show, and its keys are named in the message.
    if isinstance(first["input"], dict | ArgsKwargs):
        return f"{path}: should be {message}"
    return f"{path} = {json.dumps(first['input'], default=str)}: should be {message}"


def validate(kind: type[T], value: object, where: str = "") -> T:
    """value as an instance of kind.

    Raises:
        UserError: value is not valid; names the key, its value and what is allowed.
    """
    try:
        return checked_numbers(value, TypeAdapter(kind).validate_python(value), where)
    except ValidationError as error:
        raise UserError(_describe(error, where)) from None


def to_json(config: object) -> dict[str, Any]:
    """A configuration as plain JSON data; validate(type(config), ...) is the inverse."""
    data: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return data


def first_difference(one: object, other: object, path: str = "") -> str | None:
    """The path of the first key in which two pieces of JSON data differ, or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            inner = f"{path}.{key}" if path else str(key)
            if (key in one) != (key in other):
                return inner
            if difference := first_difference(one[key], other[key], inner):
                return difference
        return None
    return None if one == other else path


# Components


def import_object(name: str) -> Callable[..., Any]:
    """The class or function that "package.module:name" names; modules in the working directory are found as well.

    Raises:
        UserError: the module cannot be imported, or has no such class or function.
    """
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise UserError(f"cannot import {module_name or 'a module'} (of '{name}'): {what}") from None
    found: Any = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"module {module_name} has no class or function '{attribute}' (of '{name}')")
    return cast(Callable[..., Any], found)


def check_trusted(name: str, what: str, source: object) -> None:
    """Refuses a "package.module:Class" that a file names, since files are data and their code is not executed.

    Args:
        name: of the component in the file.
        what: its key, for the error ("network").
        source: the file or folder.

    Raises:
        UserError: the component is a "package.module:Class".
    """
    if ":" in name:
        raise UserError(
            f"{source} needs the code of {what} '{name}', which is not run by default: if you trust "
            "it, use --trust-code (trust_code=True in Python)"
        )


def look_up(name: str, table: Mapping[str, Callable[..., Any]], what: str) -> Callable[..., Any]:
    """The entry of the table, or the object that "package.module:Class" names.

    Raises:
        UserError: there is no such entry or object.
    """
    if ":" in name:
        return import_object(name)
    return table[one_of(what, name, table)]


def given_what_it_names(function: Callable[..., Any], *args: object, **options: object) -> Any:
    """Calls a function with those of the options that it has as parameters: each part asks for what it needs."""
    parameters = inspect.signature(function).parameters
    return function(*args, **{name: value for name, value in options.items() if name in parameters})


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """Types of the factory's arguments (for a dataclass those of its fields, for another class those of `__init__`).

    None are known where an annotation cannot be evaluated, as of names that are imported for a type checker alone.
    """
    function = factory.func if isinstance(factory, functools.partial) else factory
    if inspect.isclass(function) and not is_dataclass(function):
        function = function.__init__
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}


def _argument(hint: Any, value: object, where: str) -> object:
    """One option, converted to the type of its argument."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} = {json.dumps(value)}: should be a finite number")
    try:
        adapter: TypeAdapter[object] = TypeAdapter(hint)
    except PydanticSchemaGenerationError:  # a class that it does not know: the factory must judge by itself
        return value
    try:
        return checked_numbers(value, adapter.validate_python(value), where)
    except ValidationError as error:
        complaint = _describe(error, where)
    if isinstance(value, bool | float | None) and _takes_text(
        adapter
    ):  # how it was typed is lost: 1e3, or 1000.0
        raise UserError(f"{complaint}; to give it as text, use quotes: '{where}=\"...\"'")
    if not isinstance(value, int):
        raise UserError(complaint)
    try:  # a folder, a split or a column of digits
        return adapter.validate_python(str(value))
    except ValidationError:
        raise UserError(complaint) from None


def _takes_text(adapter: TypeAdapter[object]) -> bool:
    try:
        adapter.validate_python("text")
    except ValidationError:
        return False
    return True


def build(
    component: Component, table: Mapping[str, Callable[..., Any]], what: str = "component", **extra: object
) -> Any:
    """Calls the named factory with the component's options, checked against its signature.

    Args:
        component: name and options.
        table: factories by name.
        what: the recipe's key, for errors ("network").
        extra: arguments from outside the recipe (data_shape, ...); the factory gets those that it names.

    Raises:
        UserError: unknown name or option, wrong type or range, an option that is missing.
    """
    factory = look_up(component.name, table, what)
    parameters = _parameters(factory, component.name, what)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    allowed = [name for name in parameters if name not in extra and name not in fixed and name != "self"]
    hints = _hints(factory)
    options: dict[str, object] = {}
    for key, value in component.options.items():
        if key not in allowed and not anything:
            known = f"; there are: {', '.join(allowed)}" if allowed else "; it has none"
            raise UserError(
                f"{what}.{key}: '{component.name}' has no such option{did_you_mean(key, allowed)}{known}"
            )
        options[key] = _argument(hints.get(key, Any), value, f"{what}.{key}")
    ours = ":" not in component.name
    given = {key: value for key, value in extra.items() if key in parameters or (anything and ours)}
    with errors_reported(what, component.name):
        return _call(factory, given | options, what)


def _parameters(factory: Callable[..., Any], name: str, what: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (ValueError, TypeError):  # some builtins do not tell
        raise UserError(
            f"{what}: '{name}' does not say what arguments it takes; give a class or function of Python code"
        ) from None


def _call(factory: Callable[..., Any], arguments: dict[str, object], what: str) -> Any:
    missing = [
        name
        for name, p in inspect.signature(factory).parameters.items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in arguments
    ]
    if missing:
        raise UserError(f"{what}.{missing[0]} is missing")
    try:
        return factory(**arguments)
    except ValidationError as error:
        raise UserError(_describe(error, what)) from None


# Overrides


def parse_value(text: str) -> Any:
    """The value of valid JSON (64, 1e-3, true, null, [1, 2], "quoted"), otherwise the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits, or brackets without end
        return text


@dataclass(frozen=True)
class StartsFrom:
    """Annotates a field that is a dictionary by name: an override of a new name starts from a copy of another field.

    Args:
        field: name of the other field, of the same dataclass.
    """

    field: str


def _alternatives(hint: Any) -> set[Any]:
    """The plain types that a type stands for: {str, NoneType} of Annotated[str, ...] | None."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _alternatives(inner[0])
    if origin in (Union, UnionType):
        return set().union(*map(_alternatives, inner))
    return {type(value) for value in inner} if origin is Literal else {hint}


def _parsed(text: str, hint: Any) -> Any:
    """The value of a field: text and names as they are typed, unless they are "quoted", or null where that may be."""
    value, kinds = parse_value(text), _alternatives(hint)
    if isinstance(value, str) or (value is None and NoneType in kinds):
        return value
    if kinds <= {str, NoneType}:
        return text
    # A part is a name, or all of it as JSON.
    return text if Component in kinds and isinstance(value, int | float | None) else value


def _fields(hint: Any) -> dict[str, Any]:
    """The types of the fields below a key, none where it is no dataclass."""
    return {
        name: inner
        for kind in _alternatives(hint)
        if is_dataclass(kind)
        for name, inner in get_type_hints(kind, include_extras=True).items()
    }


def _start(hint: Any) -> str | None:
    """The field that new entries start from."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark.field for mark in marks if isinstance(mark, StartsFrom)), None)


def _is_component(node: object) -> bool:
    return isinstance(node, dict) and set(node) == {"name", "options"}


def _set_option(node: dict[str, Any], keys: Sequence[str], text: str, path: str) -> None:
    """Writes one override of an option of a component; what type it must have is known when that is built."""
    if len(keys) > 1:
        node = node.setdefault(keys[0], {})
        if not isinstance(node, dict):
            raise UserError(f"unknown key '{path}': '{keys[0]}' has no keys of its own")
    node[keys[-1]] = parse_value(text)


def _set(node: dict[str, Any], types: Mapping[str, Any], keys: Sequence[str], text: str, path: str) -> None:
    """Writes one override into JSON data, whose fields have these types; a component's keys are its options."""
    key = keys[0]
    if _is_component(node) and key not in node:
        return _set_option(node["options"], keys, text, path)
    if key not in node:
        raise UserError(f"unknown key '{path}'{did_you_mean(key, node)}; there are: {', '.join(node)}")
    if _start(types.get(key)):
        return _set_entries(node, types[key], keys, text, path)
    if len(keys) > 1:
        if not isinstance(node[key], dict):
            raise UserError(f"unknown key '{path}': '{key}' has no keys of its own")
        return _set(node[key], _fields(types.get(key, Any)), keys[1:], text, path)
    value = _parsed(text, types.get(key, Any))
    if _is_component(node) and key == "name" and node["name"] != value:
        node["options"] = {}
    if _is_component(node[key]) and isinstance(value, str):
        value = node[key] if node[key]["name"] == value else {"name": value, "options": {}}
    node[key] = value


def _set_entries(node: dict[str, Any], hint: Any, keys: Sequence[str], text: str, path: str) -> None:
    """The same for a field of entries by name, each of which holds what another field does where it does not say."""
    start = node[cast(str, _start(hint))]
    if len(keys) > 2:
        entry = node[keys[0]].setdefault(keys[1], copy.deepcopy(start))
        return _set(entry, _fields(get_args(get_args(hint)[0])[1]), keys[2:], text, path)
    value = _parsed(text, get_args(get_args(hint)[0])[1]) if len(keys) > 1 else parse_value(text)
    if len(keys) > 1:
        node[keys[0]][keys[1]] = start | value if isinstance(value, dict) else value
    elif isinstance(value, dict):
        node[keys[0]] = {k: start | v if isinstance(v, dict) else v for k, v in value.items()}
    else:
        node[keys[0]] = value


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """A copy of the configuration with `key=value` changes.

    >>> apply_overrides(recipe, ["train.batch=64", "network.channels=32", "network=mlp", "teacher=exact"])

    Keys are paths of fields; below a component they are its options, and the component itself takes a name (a new
    name removes the former options). Values of text fields are taken literally, all others as JSON.

    Raises:
        UserError: no "=", an unknown key, a value of a wrong type or out of range.
    """
    data = to_json(config)
    _override(data, _fields(type(config)), overrides, "train.batch=64")
    return validate(type(config), data)


def with_options(names: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, Component | None]:
    """Components with options from overrides, by key: {"data": "a.npz"} and ["data.key=images"].

    Raises:
        UserError: as apply_overrides; or options of a component whose name is None.
    """
    for override in overrides:
        key = override.partition("=")[0].partition(".")[0]
        if names.get(key, "") is None:
            raise UserError(f"'{override}' is an option of --{key.replace('_', '-')}, which was not given")
    data: dict[str, Any] = {
        key: None if name is None else {"name": name, "options": {}} for key, name in names.items()
    }
    _override(data, dict.fromkeys(names, Component | None), overrides, "data.split=test")
    return {key: None if part is None else validate(Component, part, key) for key, part in data.items()}


def _override(data: dict[str, Any], types: Mapping[str, Any], overrides: Sequence[str], example: str) -> None:
    changes = []
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise UserError(f"'{override}' is not of the form key=value (for example {example})")
        changes.append((path.split("."), text))
    # Entries that start from another field come after all changes of that one.
    for keys, text in sorted(changes, key=lambda change: bool(_start(types.get(change[0][0])))):
        _set(data, types, keys, text, ".".join(keys))
