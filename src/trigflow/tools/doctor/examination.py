"""The examination: passes must repeat, derivatives must agree; where they do not, the module at fault is found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from trigflow.dual import (
    MODES,
    Dual,
    InPlaceWrite,
    NoDerivative,
    NotForDuals,
    NumberRead,
    fallbacks,
    value_and_tangent,
)
from trigflow.system.devices import resolve_device, true_float32, wait_for
from trigflow.system.timing import time_in_turn
from trigflow.tools.doctor.diagnosis import Diagnosis, Fault, Finding, ModeReport, Verdict
from trigflow.tools.doctor.passes import NETWORK_ERRORS, check_passes, graph_lost_at, one_line
from trigflow.tools.doctor.slopes import command_for_c_noise_t, slopes_of
from trigflow.tools.doctor.subject import Subject, load_subject
from trigflow.tools.doctor.trace import (
    Call,
    Trace,
    difference,
    difference_error,
    rounds_its_input,
    tangents,
    traced,
)

_CPU = torch.device("cpu")
_ROUNDS = 3
_PLAIN = "plain"


@dataclass
class DerivativeCheck:
    """One mode along one direction: the tangent and its distance from finite differences, or the error."""

    tangent: Tensor | None = None
    trace: Trace = field(default_factory=Trace)
    error: Exception | None = None
    distance: float = float("inf")


Checks = Mapping[str, Mapping[str, DerivativeCheck]]  # mode -> "t" or "x" -> check


@true_float32()
def diagnose(
    model: str | nn.Module,
    *,
    data_shape: tuple[int, ...] | None = None,
    inputs: tuple[Tensor, Tensor] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    device: str | torch.device = "auto",
    trust_code: bool = False,
) -> Diagnosis:
    """Checks the derivative of a network in every mode, and names the module that breaks it.

    A copy in float64 and training mode is examined on the CPU; costs are measured in float32 on the device. The
    derivatives along x alone and along t alone are compared with each other, with torch.func.jvp and with central
    differences of several step sizes; where they disagree, those of the modules inside are compared too, innermost
    first. A network that fails in float64 only is examined in float32, with larger tolerances.

    Args:
        model: an nn.Module with forward(x, t, **cond), the name of a shipped model, the folder of a run, or
            "package.module:Class" (built with data_shape where it takes one).
        data_shape: (C, *size) of a sample; default that of the model, or (3, 32, 32).
        inputs: (x, t) at which to take the derivative, (B, ...) and (B,), t in [0, pi/2]; default: four random samples.
        cond: further inputs by name; default: random labels where the network has num_classes, random guidance scales
            where it has guidance_input, second times where it has second_time.
        device: where the costs are measured.
        trust_code: import the code that the folder of a run names.

    Raises:
        UserError: the model cannot be found or built, or the inputs have the wrong shapes.
    """
    original = load_subject(model, data_shape, inputs, cond, trust_code)
    with torch.random.fork_rng():
        subject, findings = _checked_passes(original)
        if reason := next((_STOPS[f.fault] for f in findings if f.fault in _STOPS), None):
            broken = tuple(ModeReport(mode, "broken", None, None, reason) for mode in MODES)
            return Diagnosis(original.name, broken, tuple(findings))
        with fallbacks() as names:
            checks = {mode: _check_mode(subject, mode) for mode in MODES}
        findings = findings or _locate(subject, checks)
        reports = [_mode_report(subject, mode, checks, findings, bool(names)) for mode in MODES]
        working = next((one.mode for one in reports if one.verdict != "broken"), None)
        slopes = slopes_of(subject, working) if working else ()
        try:
            single = original.to(torch.float32, resolve_device(device))
            costs = _costs(single, [one.mode for one in reports if one.error is not None])
        except NETWORK_ERRORS as error:
            costs = {}
            if not findings and any(True for _ in original.network.parameters()):
                findings = [Finding("error", "", f"training steps in float32 fail: {one_line(error)}")]
    modes = tuple(replace(one, cost=costs.get(one.mode)) for one in reports)
    remedy = command_for_c_noise_t(original.name, original)
    return Diagnosis(original.name, modes, tuple(findings), tuple(dict.fromkeys(names)), slopes, remedy)


# Faults after which derivatives are not tried: a weight that is exchanged in forward crashes torch.func.jvp.
_STOPS: dict[Fault, str] = {
    "error": "forward fails",
    "output": "the output is not valid",
    "weight_write": "not tried: weights are written in forward",
}


def _checked_passes(original: Subject) -> tuple[Subject, list[Finding]]:
    """The copy to examine, in float64 or else in float32, and the faults of its plain passes."""
    found: list[tuple[Subject, list[Finding]]] = []
    for dtype in (torch.float64, torch.float32):
        subject = original.to(dtype, _CPU)
        found.append((subject, check_passes(subject)))
        if all(finding.fault != "error" for finding in found[-1][1]):
            return found[-1]
    return found[0]


# ----------------------------------------------------------------------------------------------------------------------
# Derivatives along t alone and along x alone.


def _along(subject: Subject, direction: str) -> Callable[[float], list[Tensor]]:
    """The output as a function of the step in t, or in x."""

    def evaluate(step: float) -> list[Tensor]:
        dx, dt = (0, step * subject.dt) if direction == "t" else (step * subject.dx, 0)
        with torch.no_grad():
            return [subject.output(subject.x + dx, subject.t + dt)]

    return evaluate


def _check_mode(subject: Subject, mode: str) -> dict[str, DerivativeCheck]:
    """Along t and along x; the input that is held fixed is a plain tensor, not a Dual."""
    return {
        "t": _check(lambda t: subject.output(subject.x, t), subject, mode, "t"),
        "x": _check(lambda x: subject.output(x, subject.t), subject, mode, "x"),
    }


def _check(
    function: Callable[[Tensor], Tensor], subject: Subject, mode: str, direction: str
) -> DerivativeCheck:
    check = DerivativeCheck()
    primal, tangent = (subject.t, subject.dt) if direction == "t" else (subject.x, subject.dx)
    try:
        with traced(subject.network) as check.trace:
            output = value_and_tangent(function, (primal,), (tangent,), mode=mode)
        if mode != "finite_difference" and _gradient_is_lost(subject, output):
            raise RuntimeError("the value's gradient differs from that of a plain pass")
    except NETWORK_ERRORS as error:
        check.error = error
        return check
    check.tangent = output.tangent
    check.distance = difference_error([output.tangent], _along(subject, direction))
    return check


def _gradient_is_lost(subject: Subject, output: Dual) -> bool:
    """Whether the gradient of the weights through the value differs from that through a plain pass."""
    weights = [parameter for parameter in subject.network.parameters() if parameter.requires_grad]
    numbers = torch.arange(output.value.numel(), dtype=output.value.dtype)
    factors = numbers.sin().reshape(output.value.shape)

    def gradients(value: Tensor) -> list[Tensor]:
        loss = (value * factors).sum()
        if not loss.requires_grad:
            return [torch.zeros_like(weight) for weight in weights]
        return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))

    own = gradients(output.value)
    return difference(own, gradients(subject.output(subject.x, subject.t))) > subject.difference_tolerance


# ----------------------------------------------------------------------------------------------------------------------
# The module at fault.


def _locate(subject: Subject, checks: Checks) -> list[Finding]:
    """Why an exact mode fails or is wrong: the first module."""
    if refused := _refusals(checks):
        return refused
    for direction in ("t", "x"):
        check = checks["dual"][direction]
        if isinstance(check.error, NotForDuals):  # no module is wrong, and func knows the derivative
            continue
        right = check.error is None and check.distance <= subject.difference_tolerance
        if right and not rounds_its_input(_along(subject, direction)):
            continue
        for call in check.trace.calls:
            if found := _broken_here(subject, call, direction):
                return [found]
    return []


_REFUSALS: dict[type[Exception], Fault] = {NoDerivative: "no_derivative", NumberRead: "number"}


def _refusals(checks: Checks) -> list[Finding]:
    """What the dual mode refuses, or an error of both exact modes."""
    for direction in ("t", "x"):
        check, other = checks["dual"][direction], checks["func"][direction]
        if check.error is None:
            continue
        if fault := _REFUSALS.get(type(check.error)):
            return [Finding(fault, check.trace.where, one_line(check.error))]
        if other.error is not None and not isinstance(check.error, InPlaceWrite):
            where = check.trace.where or other.trace.where or graph_lost_at(check.trace)
            detail = f"{one_line(check.error)}; in func mode: {one_line(other.error)}"
            return [Finding("no_derivative", where, detail)]
    return []


def _broken_here(subject: Subject, call: Call, direction: str) -> Finding | None:
    """The fault of this one module, if its derivative along the tangents of its inputs is wrong."""
    if not any(isinstance(item, Dual) for item in (*call.args, *call.kwargs.values())):
        return None
    what = "time" if direction == "t" else "x"
    try:
        if rounds_its_input(call.again):
            return Finding("rounded_time", call.name, f"small changes of the {what} are rounded away")
        error = difference_error(tangents(call.output), call.again)
    except NETWORK_ERRORS:
        return None  # it cannot be called by itself
    if error <= subject.difference_tolerance:
        return None
    return Finding("lost_derivative", call.name, f"its derivative along the {what} is wrong by {error:.0%}")


# ----------------------------------------------------------------------------------------------------------------------
# Verdicts and costs.


def _mode_report(
    subject: Subject, mode: str, checks: Checks, findings: list[Finding], has_fallbacks: bool
) -> ModeReport:
    for check in checks[mode].values():
        if check.error is not None:
            where = f" (in '{check.trace.where}')" if check.trace.where else ""
            return ModeReport(mode, "broken", None, None, one_line(check.error) + where)
    error = max(_error(subject, mode, direction, checks) for direction in checks[mode])
    distance = max(check.distance for check in checks[mode].values())
    in_float32 = subject.x.dtype == torch.float32
    note = "checked in float32, with larger tolerances: it fails in float64" if in_float32 else ""
    if any(finding.fault not in _REFUSALS.values() for finding in findings):
        return ModeReport(mode, "broken", error, None, note)
    limit = subject.difference_tolerance
    approximate = mode == "finite_difference" or (mode == "dual" and has_fallbacks)
    verdict: Verdict = "fallback" if approximate else "exact"
    # Where no other mode is a reference, the error is the distance from finite differences itself.
    differs = error > (limit if approximate else subject.exact_tolerance) and error != distance
    if distance > limit or (differs and mode != "finite_difference"):
        verdict = "broken"
    return ModeReport(mode, verdict, error, None, note)


def _error(subject: Subject, mode: str, direction: str, checks: Checks) -> float:
    """Relative to the other exact mode nearest to finite differences; where there is none, to these themselves."""
    own = checks[mode][direction]
    others = [checks[name][direction] for name in ("func", "dual") if name != mode]
    others = [check for check in others if check.distance <= subject.difference_tolerance]
    reference = min(others, key=lambda check: check.distance, default=own)
    if own.tangent is None or reference.tangent is None or reference is own:
        return own.distance
    return difference([own.tangent], [reference.tangent])


def _costs(subject: Subject, modes: list[str]) -> dict[str, float]:
    """Time of each mode with its backward pass over that of a plain pass: medians of interleaved steps."""
    x, t = subject.x, subject.t

    def step(mode: str) -> None:
        if mode == _PLAIN:
            value = subject.output(x, t)
        else:
            directions = (subject.dx, subject.dt)
            value = value_and_tangent(subject.network, (x, t), directions, mode=mode, cond=subject.cond).value
        torch.autograd.backward(value.sum())
        subject.network.zero_grad()
        wait_for(x.device)

    calls = {mode: lambda _, mode=mode: step(mode) for mode in (_PLAIN, *modes)}
    medians = {mode: statistics.median(taken) for mode, taken in time_in_turn(calls, _ROUNDS).items()}
    return {mode: medians[mode] / medians[_PLAIN] for mode in modes}
