"""The examination: passes must repeat, derivatives must agree; else the module that breaks them is found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trigflow.dual import MODES, Dual, InPlaceWrite, NoDerivative, NumberRead, fallbacks, value_and_tangent
from trigflow.system.devices import resolve_device, true_float32
from trigflow.system.timing import time_in_turn
from trigflow.tools.doctor.diagnosis import Diagnosis, Fault, Finding, ModeReport, Verdict
from trigflow.tools.doctor.passes import NETWORK_ERRORS, graph_lost_at, line, writes_and_draws
from trigflow.tools.doctor.subject import Subject, load_subject
from trigflow.tools.doctor.trace import (
    Call,
    Trace,
    against_differences,
    difference,
    is_staircase,
    tangents,
    traced,
)

_ROUNDS = 3


@dataclass
class DerivativeCheck:
    """One mode along one direction, in float64."""

    tangent: Tensor | None = None
    trace: Trace = field(default_factory=Trace)
    error: Exception | None = None
    fits: float = float("inf")  # distance from finite differences


@true_float32()
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
        cond: further inputs by name; default: random labels where the network has num_classes, random scales where it
            has guidance_input.
        device: where the costs are measured.

    Raises:
        UserError: the model cannot be found or built.
    """
    subject = load_subject(model, data_shape, inputs, cond)
    body = subject.like(torch.float64, torch.device("cpu"))
    with _seeds_kept():
        findings = writes_and_draws(body)
        if any(finding.fault == "error" for finding in findings):  # perhaps for float64 alone
            single = subject.like(torch.float32, torch.device("cpu"))
            found = writes_and_draws(single)
            if not any(finding.fault == "error" for finding in found):
                body, findings = single, found
        if reason := next((_STOPS[f.fault] for f in findings if f.fault in _STOPS), None):
            modes = tuple(ModeReport(mode, "broken", None, None, reason) for mode in MODES)
            return _diagnosis(subject, modes, findings, ())
        with fallbacks() as names:
            trials = {mode: _trials(body, mode) for mode in MODES}
        findings += _lost(body, trials, findings)
        modes = tuple(_mode_report(body, mode, trials, findings, names) for mode in MODES)
        try:
            costs = _costs(
                subject.like(torch.float32, resolve_device(device)),
                [m.mode for m in modes if m.error is not None],
            )
        except NETWORK_ERRORS as error:
            costs = {}
            if not findings and any(True for _ in subject.network.parameters()):
                findings.append(Finding("error", "", f"training steps in float32 fail: {line(error)}"))
    modes = tuple(ModeReport(m.mode, m.verdict, m.error, costs.get(m.mode), m.note) for m in modes)
    return _diagnosis(subject, modes, findings, tuple(dict.fromkeys(names)))


# Faults after which derivatives are not tried: a weight that is exchanged in forward crashes torch.func.jvp.
_STOPS: dict[Fault, str] = {
    "error": "forward fails",
    "output": "the output is of no use",
    "weight_write": "not tried: weights are written in forward",
}


def _diagnosis(
    subject: Subject, modes: tuple[ModeReport, ...], findings: list[Finding], names: tuple[str, ...]
) -> Diagnosis:
    count = sum(parameter.numel() for parameter in subject.network.parameters())
    return Diagnosis(subject.name, count, modes, tuple(findings), names)


@contextmanager
def _seeds_kept() -> Iterator[None]:
    """The caller's generator is as it was."""
    with torch.random.fork_rng():
        yield


# ----------------------------------------------------------------------------------------------------------------------
# Derivatives along t alone and along x alone.


def _along(body: Subject, direction: str) -> Callable[[float], list[Tensor]]:
    """The output as a function of the distance gone in t, or in x."""

    def evaluate(step: float) -> list[Tensor]:
        dx, dt = (0, step * body.dt) if direction == "t" else (step * body.dx, 0)
        with torch.no_grad():
            return [body.at(body.x + dx, body.t + dt)]

    return evaluate


def _trials(body: Subject, mode: str) -> dict[str, DerivativeCheck]:
    """Along t and along x; what does not move is no primal, so that it is nobody's Dual."""
    return {
        "t": _trial(lambda t: body.at(body.x, t), body, mode, "t"),
        "x": _trial(lambda x: body.at(x, body.t), body, mode, "x"),
    }


def _trial(function: Callable[[Tensor], Tensor], body: Subject, mode: str, direction: str) -> DerivativeCheck:
    trial = DerivativeCheck()
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


def _gradient_is_lost(body: Subject, output: Dual) -> bool:
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


def _lost(
    body: Subject, trials: dict[str, dict[str, DerivativeCheck]], known: list[Finding]
) -> list[Finding]:
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


def _refusals(trials: dict[str, dict[str, DerivativeCheck]]) -> list[Finding]:
    """The dual's own refusals, or an error that stops both exact modes."""
    for direction in ("t", "x"):
        trial, other = trials["dual"][direction], trials["func"][direction]
        if trial.error is None:
            continue
        if fault := _REFUSALS.get(type(trial.error)):
            return [Finding(fault, trial.trace.where, line(trial.error))]
        if other.error is not None and not isinstance(trial.error, InPlaceWrite):
            where = trial.trace.where or other.trace.where or graph_lost_at(trial.trace)
            return [
                Finding("no_derivative", where, f"{line(trial.error)}; in func mode: {line(other.error)}")
            ]
    return []


def _broken_here(body: Subject, call: Call, direction: str) -> Finding | None:
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
    body: Subject,
    mode: str,
    trials: dict[str, dict[str, DerivativeCheck]],
    findings: list[Finding],
    names: list[str],
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


def _error(body: Subject, mode: str, direction: str, trials: dict[str, dict[str, DerivativeCheck]]) -> float:
    """To the exact mode that fits finite differences best, other than this one; else to the differences themselves."""
    own = trials[mode][direction]
    others = [trials[m][direction] for m in ("func", "dual") if m != mode]
    others = [trial for trial in others if trial.error is None and trial.fits <= body.approximate]
    if own.tangent is None or not others:
        return own.fits
    reference = min(others, key=lambda trial: trial.fits).tangent
    return difference([own.tangent], [reference]) if reference is not None else own.fits


def _verdict(
    body: Subject,
    mode: str,
    error: float,
    own: dict[str, DerivativeCheck],
    findings: list[Finding],
    names: list[str],
) -> Verdict:
    stopped = any(finding.fault not in ("no_derivative", "number") for finding in findings)
    if stopped or max(trial.fits for trial in own.values()) > body.approximate:
        return "broken"
    if mode == "finite_difference":
        return "fallback"
    if mode == "dual" and names:
        return "fallback" if error <= body.approximate else "broken"
    return "exact" if error <= body.exact or error == max(trial.fits for trial in own.values()) else "broken"


def _note(trial: DerivativeCheck) -> str:
    where = f" (in '{trial.trace.where}')" if trial.trace.where else ""
    return f"{line(trial.error)}{where}" if trial.error is not None else ""


def _costs(subject: Subject, modes: list[str]) -> dict[str, float]:
    """Seconds of each mode with its backward pass over those of a plain pass: medians of steps that take turns."""

    def plain() -> Tensor:
        return subject.at(subject.x, subject.t)

    def derivative(mode: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            primals, directions = (subject.x, subject.t), (subject.dx, subject.dt)
            return value_and_tangent(subject.network, primals, directions, mode=mode, cond=subject.cond).value

        return run

    passes: dict[str, Callable[[], Tensor]] = {"plain": plain, **{mode: derivative(mode) for mode in modes}}

    def step(forward: Callable[[], Tensor]) -> Callable[[int], None]:
        def run(_: int) -> None:
            torch.autograd.backward(forward().sum())
            subject.network.zero_grad()

        return run

    seconds = time_in_turn({name: step(forward) for name, forward in passes.items()}, _ROUNDS)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {mode: medians[mode] / medians["plain"] for mode in modes}
