"""What the reference has to know of the docstrings and dataclasses of this project: an extension of griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

# Several parameters of one description, `a, b: ...`, with the lines that continue it.
JOINT = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+):(?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)


class ProjectStyle(griffe.Extension):
    """Reads parameters that are described together one by one, and pydantic's dataclasses as those of Python."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        found = mod.members.get("dataclass")
        if isinstance(found, griffe.Alias) and found.target_path == "pydantic.dataclasses.dataclass":
            found.target_path = "dataclasses.dataclass"

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = JOINT.sub(_apart, obj.docstring.value)


def _apart(found: re.Match[str]) -> str:
    return "\n".join(f"{found['indent']}{name}:{found['text']}" for name in found["names"].split(", "))
