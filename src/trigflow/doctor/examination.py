"""The examination: passes must repeat, derivatives must agree; else the module that breaks them is found."""

from __future__ import annotations

import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trigflow.devices import resolve_device
from trigflow.doctor.diagnosis import Diagnosis, Fault, Finding, ModeReport, Verdict
from trigflow.doctor.patient import Patient, admit
from trigflow.doctor.trace import (
    Call,
    Trace,
    against_differences,
    difference,
    floats,
    is_staircase,
    tangents,
    traced,
)
from trigflow.dual import MODES, Dual, InPlaceWrite, NoDerivative, NumberRead, fallbacks, value_and_tangent

# What a user's network may raise when it is run in a way that its author did not think of.
NETWORK_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, IndexError, KeyError)
_ROUNDS = 3


@dataclass
class Trial:
    """One mode along one direction, in float64."""

    tangent: Tensor | None = None
    trace: Trace = field(default_factory=Trace)
    error: Exception | None = None
    fits: float = float("inf")  # distance from finite differences


def diagnose(
    model: str | nn.Module,
    *,
    data_shape: tuple[int, ...] | None = None,
    inputs: tuple[Tensor, Tensor] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    device: str | torch.device = "auto",
) -> Diagnosis:
    """Checks the derivative of a network in every mode, and finds what breaks it.

    A copy in float64 and training mode is examined on the CPU; the costs are taken in float32 on the device. The
    derivative along x alone and along t alone is compared with torch.func.jvp, with the dual and with central
    differences of several steps; where they disagree, so is that of each module inside, innermost first.

    Args:
        model: an nn.Module with forward(x, t, **cond), the name of a shipped model, a run's folder, or
            "package.module:Class" (built with data_shape where it takes one).
        data_shape: (C, *size) of a sample; default that of the model, or (3, 32, 32).
        inputs: (x, t) to examine with instead, (B, ...) and (B,), as for c_noise(t) = t.
        cond: further inputs by name; default: random labels where the network has num_classes.
        device: where the costs are measured.

    Raises:
        UserError: the model cannot be found or built.
    """
    patient = admit(model, data_shape, inputs, cond)
    body = patient.like(torch.float64, torch.device("cpu"))
    with _seeds_kept():
        findings = _writes_and_draws(body)
        if any(finding.fault == "error" for finding in findings):  # perhaps for float64 alone
            single = patient.like(torch.float32, torch.device("cpu"))
            found = _writes_and_draws(single)
            if not any(finding.fault == "error" for finding in found):
                body, findings = single, found
        if reason := next((_STOPS[f.fault] for f in findings if f.fault in _STOPS), None):
            modes = tuple(ModeReport(mode, "broken", None, None, reason) for mode in MODES)
            return _diagnosis(patient, modes, findings, ())
        with fallbacks() as names:
            trials = {mode: _trials(body, mode) for mode in MODES}
        findings += _lost(body, trials, findings)
        modes = tuple(_mode_report(body, mode, trials, findings, names) for mode in MODES)
        try:
            costs = _costs(
                patient.like(torch.float32, resolve_device(device)),
                [m.mode for m in modes if m.error is not None],
            )
        except NETWORK_ERRORS as error:
            costs = {}
            if not findings and any(True for _ in patient.network.parameters()):
                findings.append(Finding("error", "", f"training steps in float32 fail: {_line(error)}"))
    modes = tuple(ModeReport(m.mode, m.verdict, m.error, costs.get(m.mode), m.note) for m in modes)
    return _diagnosis(patient, modes, findings, tuple(dict.fromkeys(names)))


# Faults after which derivatives are not tried: a weight that is exchanged in forward crashes torch.func.jvp.
_STOPS: dict[Fault, str] = {
    "error": "forward fails",
    "output": "the output is of no use",
    "weight_write": "not tried: weights are written in forward",
}


def _diagnosis(
    patient: Patient, modes: tuple[ModeReport, ...], findings: list[Finding], names: tuple[str, ...]
) -> Diagnosis:
    count = sum(parameter.numel() for parameter in patient.network.parameters())
    return Diagnosis(patient.name, count, modes, tuple(findings), names)


@contextmanager
def _seeds_kept() -> Iterator[None]:
    """The caller's generator is as it was."""
    with torch.random.fork_rng():
        yield


# ----------------------------------------------------------------------------------------------------------------------
# Plain passes: nothing may be written, and the same seed must give the same output.


def _writes_and_draws(body: Patient) -> list[Finding]:
    findings = _batch_norms(body.network)
    writes = _Writes(body)
    traces = []
    for notice in (writes.look, lambda name: None):
        try:
            with traced(body.network, notice) as trace, _BatchNorms(trace) as batch_norms:
                output = body.at(body.x, body.t)
        except NETWORK_ERRORS as error:
            return [*findings, Finding("error", trace.where, f"forward fails: {_line(error)}")]
        traces.append(trace)
        writes.look_at_all(notice is writes.look)
    if batch_norms.module is not None and not findings:
        findings.append(Finding("batch_norm", batch_norms.module, f"F.batch_norm in training: {_BATCH_NORM}"))
    findings += writes.findings or _output(body, output, traces[-1])
    if not writes.findings and not any(finding.fault == "output" for finding in findings):
        findings += _private_generators(*traces)
    return findings


def _output(body: Patient, output: Any, trace: Trace) -> list[Finding]:
    """What is wrong with the output itself."""
    if not isinstance(output, Tensor):
        return [Finding("output", "", f"the network returns a {type(output).__name__}, not one tensor")]
    if output.shape != body.x.shape:
        return [Finding("output", "", f"the output has shape {tuple(output.shape)}, x {tuple(body.x.shape)}")]
    if not output.isfinite().all():
        bad = (c.name for c in trace.calls if any(y.isnan().any() for y in floats(c.output)))
        return [Finding("output", next(bad, ""), "the output is not finite")]
    if any(True for _ in body.network.parameters()) and not output.requires_grad:
        return [Finding("lost_derivative", _graph_lost_at(trace), "no gradient reaches the weights")]
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

    def __init__(self, body: Patient) -> None:
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


# ----------------------------------------------------------------------------------------------------------------------
# Derivatives along t alone and along x alone.


def _along(body: Patient, direction: str) -> Callable[[float], list[Tensor]]:
    """The output as a function of the distance gone in t, or in x."""

    def evaluate(step: float) -> list[Tensor]:
        dx, dt = (0, step * body.dt) if direction == "t" else (step * body.dx, 0)
        with torch.no_grad():
            return [body.at(body.x + dx, body.t + dt)]

    return evaluate


def _trials(body: Patient, mode: str) -> dict[str, Trial]:
    """Along t and along x; what does not move is no primal, so that it is nobody's Dual."""
    return {
        "t": _trial(lambda t: body.at(body.x, t), body, mode, "t"),
        "x": _trial(lambda x: body.at(x, body.t), body, mode, "x"),
    }


def _trial(function: Callable[[Tensor], Tensor], body: Patient, mode: str, direction: str) -> Trial:
    trial = Trial()
    primal, tangent = (body.t, body.dt) if direction == "t" else (body.x, body.dx)
    try:
        with traced(body.network) as trial.trace:
            output = value_and_tangent(function, (primal,), (tangent,), mode=mode)
        if mode != "finite_difference" and _gradient_is_lost(body, output):
            raise RuntimeError("the value's gradient differs from that of a plain pass")
    except NETWORK_ERRORS as error:
        trial.error = error
        return trial
    trial.tangent = output.tangent
    trial.fits = against_differences([output.tangent], _along(body, direction))
    return trial


def _gradient_is_lost(body: Patient, output: Dual) -> bool:
    """Whether the weights get another gradient through the value than through a plain pass."""
    weights = [parameter for parameter in body.network.parameters() if parameter.requires_grad]
    probe = torch.sin(torch.arange(output.value.numel(), dtype=output.value.dtype)).reshape(
        output.value.shape
    )

    def gradients(value: Tensor) -> list[Tensor]:
        loss = (value * probe).sum()
        if not loss.requires_grad:
            return [torch.zeros_like(weight) for weight in weights]
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return list(found)

    own = gradients(output.value)
    return difference(own, gradients(body.at(body.x, body.t))) > body.approximate


# ----------------------------------------------------------------------------------------------------------------------
# The module that breaks it.


def _lost(body: Patient, trials: dict[str, dict[str, Trial]], known: list[Finding]) -> list[Finding]:
    """Why an exact mode fails or is wrong; the first module. Nothing where the cause is known already."""
    if known:
        return []
    if refused := _refusals(trials):
        return refused
    for direction in ("t", "x"):
        trial = trials["dual"][direction]
        if (
            trial.error is None
            and trial.fits <= body.approximate
            and not is_staircase(_along(body, direction))
        ):
            continue
        for call in trial.trace.calls:
            if found := _broken_here(body, call, direction):
                return [found]
    return []


_REFUSALS: dict[type[Exception], Fault] = {NoDerivative: "no_derivative", NumberRead: "number"}


def _refusals(trials: dict[str, dict[str, Trial]]) -> list[Finding]:
    """The dual's own refusals, or an error that stops both exact modes."""
    for direction in ("t", "x"):
        trial, other = trials["dual"][direction], trials["func"][direction]
        if trial.error is None:
            continue
        if fault := _REFUSALS.get(type(trial.error)):
            return [Finding(fault, trial.trace.where, _line(trial.error))]
        if other.error is not None and not isinstance(trial.error, InPlaceWrite):
            where = trial.trace.where or other.trace.where or _graph_lost_at(trial.trace)
            return [
                Finding("no_derivative", where, f"{_line(trial.error)}; in func mode: {_line(other.error)}")
            ]
    return []


def _graph_lost_at(trace: Trace) -> str:
    """The first module that gives no graph although its inputs or weights have one (a custom autograd.Function?)."""
    for call in trace.calls:
        inputs = [*floats((call.args, call.kwargs)), *call.module.parameters()]
        outputs = floats(call.output)
        if outputs and any(x.requires_grad for x in inputs) and not any(y.requires_grad for y in outputs):
            return call.name
    return ""


def _broken_here(body: Patient, call: Call, direction: str) -> Finding | None:
    """Whether the derivative of this one module is wrong along the tangents of its inputs."""
    if not any(isinstance(item, Dual) for item in (*call.args, *call.kwargs.values())):
        return None
    what = "time" if direction == "t" else "x"
    try:
        if is_staircase(call.again):
            return Finding("rounded_time", call.name, f"small changes of the {what} are rounded away")
        error = against_differences(tangents(call.output), call.again)
    except NETWORK_ERRORS:
        return None  # it cannot be run alone
    if error <= body.approximate:
        return None
    return Finding("lost_derivative", call.name, f"its derivative along the {what} is wrong by {error:.0%}")


# ----------------------------------------------------------------------------------------------------------------------
# Verdicts and costs.


def _mode_report(
    body: Patient, mode: str, trials: dict[str, dict[str, Trial]], findings: list[Finding], names: list[str]
) -> ModeReport:
    own = trials[mode]
    failed = next((trial for trial in own.values() if trial.error is not None), None)
    if failed is not None and failed.error is not None:
        return ModeReport(mode, "broken", None, None, _note(failed))
    error = max(_error(body, mode, direction, trials) for direction in own)
    notes = ["a difference of two passes"] * (mode == "finite_difference")
    notes += ["checked in float32, with wider limits: it fails in float64"] * (body.x.dtype == torch.float32)
    verdict = _verdict(body, mode, error, own, findings, names)
    return ModeReport(mode, verdict, error, None, "; ".join(notes))


def _error(body: Patient, mode: str, direction: str, trials: dict[str, dict[str, Trial]]) -> float:
    """To the exact mode that fits finite differences best, other than this one; else to the differences themselves."""
    own = trials[mode][direction]
    others = [trials[m][direction] for m in ("func", "dual") if m != mode]
    others = [trial for trial in others if trial.error is None and trial.fits <= body.approximate]
    if own.tangent is None or not others:
        return own.fits
    reference = min(others, key=lambda trial: trial.fits).tangent
    return difference([own.tangent], [reference]) if reference is not None else own.fits


def _verdict(
    body: Patient, mode: str, error: float, own: dict[str, Trial], findings: list[Finding], names: list[str]
) -> Verdict:
    stopped = any(finding.fault not in ("no_derivative", "number") for finding in findings)
    if stopped or max(trial.fits for trial in own.values()) > body.approximate:
        return "broken"
    if mode == "finite_difference":
        return "fallback"
    if mode == "dual" and names:
        return "fallback" if error <= body.approximate else "broken"
    return "exact" if error <= body.exact or error == max(trial.fits for trial in own.values()) else "broken"


def _note(trial: Trial) -> str:
    where = f" (in '{trial.trace.where}')" if trial.trace.where else ""
    return f"{_line(trial.error)}{where}" if trial.error is not None else ""


def _line(error: Exception | None) -> str:
    """The kind of an error and the beginning of its text, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 160)}" if lines else type(error).__name__


def _costs(patient: Patient, modes: list[str]) -> dict[str, float]:
    """Seconds of each mode with its backward pass over those of a plain pass: medians of steps that take turns."""

    def plain() -> Tensor:
        return patient.at(patient.x, patient.t)

    def derivative(mode: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            primals, directions = (patient.x, patient.t), (patient.dx, patient.dt)
            return value_and_tangent(patient.network, primals, directions, mode=mode, cond=patient.cond).value

        return run

    steps: dict[str, Callable[[], Tensor]] = {"plain": plain, **{mode: derivative(mode) for mode in modes}}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            torch.autograd.backward(step().sum())
            patient.network.zero_grad()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {mode: medians[mode] / medians["plain"] for mode in modes}
