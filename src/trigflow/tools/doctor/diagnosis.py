"""The result of an examination, and its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trigflow.tools.doctor.slopes import TIMES_THE_MEDIAN, Slope, exploding

Verdict = Literal["exact", "fallback", "broken"]
Fault = Literal[
    "batch_norm",
    "weight_write",
    "input_write",
    "private_generator",
    "no_derivative",
    "number",
    "rounded_time",
    "lost_derivative",
    "output",
    "error",
]

REMEDIES: dict[Fault, str] = {
    "batch_norm": "replace it by GroupNorm, LayerNorm or a pixel norm, which treat each sample separately",
    "weight_write": "do not modify weights or buffers in forward: normalise them after the optimiser step instead",
    "input_write": "compute a new tensor (x = x + y, not x.add_(y)) instead of modifying the input in place",
    "private_generator": "draw from torch's default generator, or use trigflow.networks.layers.Dropout, whose mask is a"
    " function of the image: the passes of a training step must share their masks",
    "no_derivative": "write it with differentiable functions, or train with the derivative mode finite_difference",
    "number": "keep it a tensor (torch.where instead of `if`), or detach() it where no derivative is intended",
    "rounded_time": "keep t in float32 up to the sinusoids; never bfloat16, float16 or integers",
    "lost_derivative": "pass t and x to the output without detach(), .data, torch.no_grad() or numpy",
    "output": "return one tensor, of the shape of x and without NaN or infinity",
    "error": "fix the error, then run the doctor again",
}


@dataclass(frozen=True)
class Finding:
    """A fault of the network.

    Args:
        fault: kind, a key of REMEDIES.
        module: qualified name of the first module with the fault; "" is the network itself.
        detail: what was observed.
    """

    fault: Fault
    module: str
    detail: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.fault]


@dataclass(frozen=True)
class ModeReport:
    """Result for one derivative mode.

    Args:
        mode: "dual", "func" or "finite_difference".
        verdict: "exact"; "fallback": right, but some functions go through torch.func.jvp, or it is a
            finite difference; "broken": wrong, or it does not run.
        error: largest relative difference to the best other derivative; None where the mode does not run.
        cost: time of value, tangent and backward pass, relative to a plain forward and backward pass; None where it was
            not measured.
        note: reason of the verdict, in one line.
    """

    mode: str
    verdict: Verdict
    error: float | None
    cost: float | None
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Result for a network.

    Args:
        name: of the network.
        modes: one report for each derivative mode.
        findings: the faults, in the order in which forward reaches their modules.
        fallbacks: functions without a rule, which the dual mode differentiates by torch.func.jvp.
        slopes: |dF/dt| over t; none where no mode works.
        remedy: the command that trains the network on with c_noise = t, for where |dF/dt| explodes.
    """

    name: str
    modes: tuple[ModeReport, ...]
    findings: tuple[Finding, ...]
    fallbacks: tuple[str, ...] = ()
    slopes: tuple[Slope, ...] = ()
    remedy: str = ""

    @property
    def exploding(self) -> tuple[Slope, ...]:
        """Where |dF/dt| is more than ten times its median over t: a student of this network would be noise."""
        return exploding(self.slopes)

    @property
    def healthy(self) -> bool:
        """Whether an exact mode works and no fault was found."""
        return not self.findings and any(mode.verdict == "exact" for mode in self.modes)

    def verdict(self, mode: str) -> Verdict:
        """The verdict on one mode."""
        return next(report.verdict for report in self.modes if report.mode == mode)


def report(diagnosis: Diagnosis) -> str:
    """The diagnosis as text: a table of the modes, then each fault with its module and remedy, and the conclusion."""
    lines = [
        f"{diagnosis.name}: derivatives along x and along t",
        f"{'mode':<18} {'verdict':<9} {'error':>8} {'cost':>7}",
    ]
    lines += [_mode_line(mode) for mode in diagnosis.modes]
    lines.append("error: relative to the other modes; cost: relative to a plain forward and backward pass")
    if diagnosis.fallbacks:
        lines.append(f"functions without a rule (through torch.func.jvp): {', '.join(diagnosis.fallbacks)}")
    for finding in diagnosis.findings:
        place = f"module '{finding.module}'" if finding.module else "the network itself"
        lines += [f"FAULT in {place}: {finding.detail}", f"  remedy: {finding.remedy}"]
    return "\n".join([*lines, *_slope_lines(diagnosis), _conclusion(diagnosis)])


def _slope_lines(diagnosis: Diagnosis) -> list[str]:
    """|dF/dt| over t, and what to do where it explodes."""
    if not diagnosis.slopes:
        return []
    sizes = ", ".join(f"{slope.size:.3g} at {slope.t:.3g}" for slope in diagnosis.slopes)
    lines = [f"|dF/dt| over t, x fixed: {sizes}"]
    if diagnosis.exploding:
        worst = max(diagnosis.exploding, key=lambda slope: slope.size)
        lines += [
            f"WARNING: |dF/dt| is {worst.size:.3g} at t = {worst.t:.3g}, over {TIMES_THE_MEDIAN:g} times its median:"
            " a student would be noise, although its loss is small",
            f"  remedy: first train the teacher on with c_noise = t, then distil that: {diagnosis.remedy}"
            " (docs/own_parts.md)",
        ]
    return lines


def _mode_line(mode: ModeReport) -> str:
    error = "-" if mode.error is None else f"{mode.error:.0e}"
    cost = "-" if mode.cost is None else f"{mode.cost:.2f}x"
    return f"{mode.mode:<18} {mode.verdict:<9} {error:>8} {cost:>7}  {mode.note}".rstrip()


def _conclusion(diagnosis: Diagnosis) -> str:
    if diagnosis.findings:
        return "not ready for consistency training: fix the faults above"
    usable = [mode for mode in diagnosis.modes if mode.verdict != "broken"]
    if not usable:
        return "no mode computes the derivative of this network"
    mode = min(usable, key=_price).mode
    ready = (
        "the derivative is right, but explodes" if diagnosis.exploding else "ready for consistency training"
    )
    return f"{ready}; recommended mode: {mode}" + (
        "" if mode == "dual" else f" (objective.derivative={mode})"
    )


def _price(mode: ModeReport) -> float:
    """The cost; finite differences must be cheaper than an exact mode by a fifth."""
    if mode.cost is None:
        return float("inf")
    return mode.cost / 0.8 if mode.mode == "finite_difference" else mode.cost
