"""Plain passes: forward must write nothing, return one finite tensor, and give it again from the same seed."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trigflow.tools.doctor.diagnosis import Finding
from trigflow.tools.doctor.subject import Subject
from trigflow.tools.doctor.trace import Trace, difference, floats, traced

# What a user's network may raise when it is called in a way that its author did not expect.
NETWORK_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError)


def check_passes(subject: Subject) -> list[Finding]:
    """The faults that show without derivatives."""
    findings = _batch_norms(subject.network)
    writes = _Writes(subject)
    traces = []
    for notice in (writes.look, lambda name: None):
        try:
            with traced(subject.network, notice) as trace, _BatchNorms(trace) as batch_norms:
                output = subject.output(subject.x, subject.t)
        except NETWORK_ERRORS as error:
            return [*findings, Finding("error", trace.where, f"forward fails: {one_line(error)}")]
        traces.append(trace)
    writes.look_at_all()
    if batch_norms.module is not None and not findings:
        findings.append(Finding("batch_norm", batch_norms.module, f"F.batch_norm in training: {_BATCH_NORM}"))
    faults = writes.findings or _check_output(subject, output, traces[-1])
    if not any(finding.fault in ("weight_write", "input_write", "output") for finding in faults):
        faults = faults + _private_generators(*traces)
    return findings + faults


def _check_output(subject: Subject, output: Any, trace: Trace) -> list[Finding]:
    if not isinstance(output, Tensor):
        return [Finding("output", "", f"the network returns a {type(output).__name__}, not one tensor")]
    if output.shape != subject.x.shape:
        shapes = f"{tuple(output.shape)}, x {tuple(subject.x.shape)}"
        return [Finding("output", "", f"the output has shape {shapes}")]
    if not output.isfinite().all():
        bad = (c.name for c in trace.calls if any(y.isnan().any() for y in floats(c.output)))
        return [Finding("output", next(bad, ""), "the output is not finite")]
    if any(True for _ in subject.network.parameters()) and not output.requires_grad:
        return [Finding("lost_derivative", graph_lost_at(trace), "no gradient reaches the weights")]
    return []


class _BatchNorms(TorchFunctionMode):
    """Finds the first module that calls F.batch_norm in training."""

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


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _batch_norms(network: nn.Module) -> list[Finding]:
    names = [name for name, module in network.named_modules() if _is_batch_norm(module)]
    return [Finding("batch_norm", name, _BATCH_NORM) for name in names[:1]]


_BATCH_NORM = (
    "BatchNorm makes each output depend on the whole batch, and writes its running statistics in forward"
)


class _Writes:
    """Finds the first module in whose forward a weight, a buffer or an input of the network is written."""

    def __init__(self, subject: Subject) -> None:
        self.findings: list[Finding] = []
        modules = subject.network.named_modules()
        self._modules = {path: module for path, module in modules if not _is_batch_norm(module)}
        self._before = {
            path: [(name, x, x.data_ptr(), x.detach().clone()) for name, x in _own_tensors(module)]
            for path, module in self._modules.items()
        }
        inputs = {"x": subject.x, "t": subject.t, **subject.cond}
        self._versions = [
            (x, x._version, _weight_write(path, name))
            for path, tensors in self._before.items()
            for name, x, _, _ in tensors
        ]
        self._versions += [
            (x, x._version, Finding("input_write", "", f"the input {name} is modified in place"))
            for name, x in inputs.items()
        ]

    def look(self, running: str) -> None:
        """After a module has been running: at the versions of all tensors, and at its own tensors."""
        if self.findings:
            return
        found = next((found for x, version, found in self._versions if x._version != version), None)
        if found := found or self._exchanged(running):
            self.findings.append(Finding(found.fault, running, found.detail))

    def look_at_all(self) -> None:
        """For writes through .data, which leave the version as it is, in the tensors of another module."""
        for path in self._modules:
            self.look(path)

    def _exchanged(self, path: str) -> Finding | None:
        """A tensor of this module that is another object, lies elsewhere, or holds other numbers than before."""
        now = dict(_own_tensors(self._modules[path])) if path in self._modules else {}
        for name, x, place, copy in self._before.get(path, ()):
            found = now.get(name)
            if found is not x or found.data_ptr() != place or not _equal(found, copy):
                return _weight_write(path, name)
        return None


def _weight_write(path: str, name: str) -> Finding:
    return Finding("weight_write", path, f"'{f'{path}.{name}'.lstrip('.')}' is written in forward")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are the same, NaN like NaN."""
    return torch.equal(one, other) or torch.allclose(one, other, 0, 0, equal_nan=True)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _private_generators(first: Trace, second: Trace) -> list[Finding]:
    """The first module whose output differs between two passes from one seed."""
    for one, other in zip(first.calls, second.calls, strict=False):
        if 0 < difference(floats(one.output), floats(other.output)) < math.inf:
            detail = "two passes from the same seed differ: it draws from a generator of its own"
            return [Finding("private_generator", one.name, detail)]
    return []


def graph_lost_at(trace: Trace) -> str:
    """The first module whose output has no graph although its inputs or weights require gradients."""
    for call in trace.calls:
        inputs = [*floats((call.args, call.kwargs)), *call.module.parameters()]
        outputs = floats(call.output)
        if outputs and any(x.requires_grad for x in inputs) and not any(y.requires_grad for y in outputs):
            return call.name
    return ""


def one_line(error: Exception) -> str:
    """The type of an error and the beginning of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 160)}" if lines else type(error).__name__
