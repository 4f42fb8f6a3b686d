"""What the doctor finds, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

MENDS: dict[Fault, str] = {
    "batch_norm": "replace it by GroupNorm, LayerNorm or a pixel norm, which look at one image at a time",
    "weight_write": "do not change weights or buffers in forward: normalise them after the optimiser's step instead",
    "input_write": "compute a new tensor (x = x + y, not x.add_(y)): the input belongs to the caller",
    "private_generator": "draw from torch's default generator, or use trigflow.networks.layers.Dropout, whose mask is a"
    " function of the image: only then have all passes one mask",
    "no_derivative": "write it with differentiable functions, or train with the derivative mode finite_difference",
    "number": "keep it a tensor (torch.where instead of `if`), or detach() it where no derivative is meant",
    "rounded_time": "keep t in float32 until the sinusoids are taken; never bfloat16, float16 or integers",
    "lost_derivative": "let t and x reach the output without detach(), .data, torch.no_grad() or numpy",
    "output": "return one tensor, of the shape of x and without NaN or infinity",
    "error": "mend the error below, then ask again",
}


@dataclass(frozen=True)
class Finding:
    """A fault and its mend.

    Args:
        fault: kind, a key of MENDS.
        module: qualified name of the first module that has it; "" is the network itself.
        detail: what was seen.
    """

    fault: Fault
    module: str
    detail: str

    @property
    def mend(self) -> str:
        return MENDS[self.fault]


@dataclass(frozen=True)
class ModeReport:
    """One derivative mode on this network.

    Args:
        mode: "dual", "func" or "finite_difference".
        verdict: "exact"; "fallback": right, but some functions go through torch.func.jvp, or it is a
            finite difference; "broken": wrong, or it does not run.
        error: largest relative difference to the best other derivative, float64; None where it does not run.
        cost: seconds of value, tangent and backward pass over those of a plain forward and backward pass; or None.
        note: why, in one line.
    """

    mode: str
    verdict: Verdict
    error: float | None
    cost: float | None
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of a network.

    Args:
        name: of the network.
        parameters: how many.
        modes: one report for each derivative mode.
        findings: the faults, the first module's first.
        fallbacks: functions without a rule, which the dual mode differentiates by torch.func.jvp.
    """

    name: str
    parameters: int
    modes: tuple[ModeReport, ...]
    findings: tuple[Finding, ...]
    fallbacks: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether an exact mode works and no fault was found."""
        return not self.findings and any(mode.verdict == "exact" for mode in self.modes)

    def verdict(self, mode: str) -> Verdict:
        """The verdict of one mode."""
        return next(report.verdict for report in self.modes if report.mode == mode)


def report(diagnosis: Diagnosis) -> str:
    """The diagnosis as text: a table of the modes, then each fault with its module and mend."""
    lines = [
        f"{diagnosis.name}: {diagnosis.parameters / 1e6:.2f}M parameters, derivative checked in float64",
        f"{'mode':<18} {'verdict':<9} {'error':>8} {'cost':>7}",
    ]
    lines += [_mode_line(mode) for mode in diagnosis.modes]
    lines.append("error: relative, to the other derivatives; cost: over a plain forward and backward pass")
    if diagnosis.fallbacks:
        lines.append(f"functions without a rule (through torch.func.jvp): {', '.join(diagnosis.fallbacks)}")
    for finding in diagnosis.findings:
        place = f"module '{finding.module}'" if finding.module else "the network itself"
        lines += [f"FAULT in {place}: {finding.detail}", f"  mend: {finding.mend}"]
    return "\n".join([*lines, _conclusion(diagnosis)])


def _mode_line(mode: ModeReport) -> str:
    error = "-" if mode.error is None else f"{mode.error:.0e}"
    cost = "-" if mode.cost is None else f"{mode.cost:.2f}x"
    return f"{mode.mode:<18} {mode.verdict:<9} {error:>8} {cost:>7}  {mode.note}".rstrip()


def _conclusion(diagnosis: Diagnosis) -> str:
    if diagnosis.findings:
        return "not ready for consistency training: mend the above"
    usable = [mode for mode in diagnosis.modes if mode.verdict != "broken"]
    if not usable:
        return "no mode gives the derivative of this network"
    return f"ready for consistency training; recommended mode here: {min(usable, key=_price).mode}"


def _price(mode: ModeReport) -> float:
    """The cost; an exact mode is preferred to finite differences unless these are cheaper by a fifth."""
    if mode.cost is None:
        return float("inf")
    return mode.cost / 0.8 if mode.mode == "finite_difference" else mode.cost
