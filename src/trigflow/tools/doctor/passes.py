"""Plain passes: nothing may be written, the output must be one, and the same seed must give it again."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trigflow.tools.doctor.diagnosis import Finding
from trigflow.tools.doctor.subject import Subject
from trigflow.tools.doctor.trace import Trace, difference, floats, traced

# What a user's network may raise when it is run in a way that its author did not think of.
NETWORK_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError)


def writes_and_draws(body: Subject) -> list[Finding]:
    findings = _batch_norms(body.network)
    writes = _Writes(body)
    traces = []
    for notice in (writes.look, lambda name: None):
        try:
            with traced(body.network, notice) as trace, _BatchNorms(trace) as batch_norms:
                output = body.at(body.x, body.t)
        except NETWORK_ERRORS as error:
            return [*findings, Finding("error", trace.where, f"forward fails: {line(error)}")]
        traces.append(trace)
        writes.look_at_all(notice is writes.look)
    if batch_norms.module is not None and not findings:
        findings.append(Finding("batch_norm", batch_norms.module, f"F.batch_norm in training: {_BATCH_NORM}"))
    findings += writes.findings or _output(body, output, traces[-1])
    if not writes.findings and not any(finding.fault == "output" for finding in findings):
        findings += _private_generators(*traces)
    return findings


def _output(body: Subject, output: Any, trace: Trace) -> list[Finding]:
    """What is wrong with the output itself."""
    if not isinstance(output, Tensor):
        return [Finding("output", "", f"the network returns a {type(output).__name__}, not one tensor")]
    if output.shape != body.x.shape:
        return [Finding("output", "", f"the output has shape {tuple(output.shape)}, x {tuple(body.x.shape)}")]
    if not output.isfinite().all():
        bad = (c.name for c in trace.calls if any(y.isnan().any() for y in floats(c.output)))
        return [Finding("output", next(bad, ""), "the output is not finite")]
    if any(True for _ in body.network.parameters()) and not output.requires_grad:
        return [Finding("lost_derivative", graph_lost_at(trace), "no gradient reaches the weights")]
    return []


class _BatchNorms(TorchFunctionMode):
    """Notices the first module that calls F.batch_norm in training."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.module: str | None = None
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        training = args[5] if len(args) > 5 else kwargs.get("training", False)
        if func in (F.batch_norm, torch.batch_norm) and training and self.module is None:
            self.module = self._trace.where
        return func(*args, **kwargs)


def _batch_norms(network: nn.Module) -> list[Finding]:
    kind = nn.modules.batchnorm._BatchNorm
    names = [name for name, module in network.named_modules() if isinstance(module, kind)]
    return [Finding("batch_norm", names[0], f"{_BATCH_NORM} ({len(names)} in all)")] if names else []


_BATCH_NORM = "BatchNorm ties the images of a batch together and writes its running statistics in forward"


class _Writes:
    """Notices the first module in whose forward a weight, a buffer or an input of the network is written."""

    def __init__(self, body: Subject) -> None:
        self.findings: list[Finding] = []
        self._inputs = {"x": body.x, "t": body.t, **body.cond}
        self._modules = {
            path: module
            for path, module in body.network.named_modules()
            if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        self._copies = {path: _copies(_own_tensors(module)) for path, module in self._modules.items()}
        self._weights = {
            f"{path}.{name}".lstrip("."): tensor
            for path, module in self._modules.items()
            for name, tensor in _own_tensors(module)
        }
        self._versions = {id(x): x._version for x in (*self._inputs.values(), *self._weights.values())}

    def look(self, module: str) -> None:
        if self.findings:
            return
        if name := self._changed(self._weights) or self._exchanged(module):
            self.findings.append(Finding("weight_write", module, f"'{name}' is written in forward"))
        if name := self._changed(self._inputs):
            self.findings.append(Finding("input_write", module, f"the input {name} is written in place"))

    def look_at_all(self, wanted: bool) -> None:
        """The modules whose weights another one may have written without a trace in their versions."""
        for module in self._modules if wanted else ():
            if not self.findings and (name := self._exchanged(module)):
                self.findings.append(Finding("weight_write", module, f"'{name}' is written in forward"))

    def _exchanged(self, path: str) -> str | None:
        """A tensor of this module that is another object, lies elsewhere, or holds other numbers than before."""
        if path not in self._modules:
            return None
        now = dict(_own_tensors(self._modules[path]))
        for name, (tensor, place, copy) in self._copies[path].items():
            found = now.get(name)
            if found is not tensor or found.data_ptr() != place or not _equal(found, copy):
                return f"{path}.{name}".lstrip(".")
        return None

    def _changed(self, tensors: Mapping[str, Tensor]) -> str | None:
        changed = (name for name, tensor in tensors.items() if tensor._version != self._versions[id(tensor)])
        return next(changed, None)


def _copies(tensors: list[tuple[str, Tensor]]) -> dict[str, tuple[Tensor, int, Tensor]]:
    return {name: (tensor, tensor.data_ptr(), tensor.detach().clone()) for name, tensor in tensors}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are the same, NaN like NaN."""
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and (torch.equal(one, other) or torch.allclose(one, other, 0, 0, equal_nan=True))


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _private_generators(first: Trace, second: Trace) -> list[Finding]:
    """Two passes from one seed: the first module whose output differs draws from a generator of its own."""
    for one, other in zip(first.calls, second.calls, strict=False):
        if 0 < difference(floats(one.output), floats(other.output)) < math.inf:
            detail = "two passes from the same seed differ: it draws from a generator of its own"
            return [Finding("private_generator", one.name, detail)]
    return []


def graph_lost_at(trace: Trace) -> str:
    """The first module that gives no graph although its inputs or weights have one (a custom autograd.Function?)."""
    for call in trace.calls:
        inputs = [*floats((call.args, call.kwargs)), *call.module.parameters()]
        outputs = floats(call.output)
        if outputs and any(x.requires_grad for x in inputs) and not any(y.requires_grad for y in outputs):
            return call.name
    return ""


def line(error: Exception | None) -> str:
    """The kind of an error and the beginning of its text, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 160)}" if lines else type(error).__name__
