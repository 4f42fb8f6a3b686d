"""What recipes of small networks have in common."""

from __future__ import annotations

from trigflow.config import Component

# A time embedding that can tell t = 0.1 from t = 0.3; students need STABLE with it (docs/LOG.md).
FOURIER = {"time_embedding": "fourier", "fourier_scale": 0.5}
LINEAR_DECAY = Component("linear")
# No factor depends on the size of the tangent, and with this proposal the weight of time falls from data to noise, so
# that the iteration contracts (docs/objectives.md, "What makes it stable").
STABLE = {"P_mean": -0.8, "P_std": 1.8, "normalization": "none", "adaptive_weight": False}
