"""Value and derivative along the path in one pass; the tangent is computed without a graph."""

from trigflow.dual import attention, elementwise, linear, neural
from trigflow.dual.derivative import MODES, value_and_tangent
from trigflow.dual.value import RULES, Dual, InPlaceWrite, NoDerivative, NotForDuals, NumberRead, fallbacks

__all__ = [
    "MODES",
    "RULES",
    "Dual",
    "InPlaceWrite",
    "NoDerivative",
    "NotForDuals",
    "NumberRead",
    "attention",
    "elementwise",
    "fallbacks",
    "linear",
    "neural",
    "value_and_tangent",
]
