"""The derivative of any PyTorch network along the path: value with its graph, tangent without, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trigflow import dual


class YourNetwork(nn.Module):
    """Nothing here knows about derivatives; scaled_dot_product_attention has a rule of its own."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.inward, self.time = nn.Linear(2, channels), nn.Linear(1, channels)
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.outward = nn.Linear(channels, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.inward(x) + self.time(t[:, None, None])
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v)
        return self.outward(nn.functional.silu(h))


def main(batch: int = 8) -> dict[str, float]:
    torch.manual_seed(0)
    net = YourNetwork().double()
    x, t = torch.randn(batch, 5, 2, dtype=torch.float64), torch.rand(batch, dtype=torch.float64)
    dx_dt, dt_dt = torch.randn_like(x), torch.ones_like(t)
    tangents = {
        mode: dual.value_and_tangent(net, (x, t), (dx_dt, dt_dt), mode=mode).tangent for mode in dual.MODES
    }
    errors = {mode: float((tangent - tangents["dual"]).abs().max()) for mode, tangent in tangents.items()}
    for mode, error in errors.items():
        print(f"{mode:<18} differs from the dual by {error:.1e}")
    return errors


if __name__ == "__main__":
    main()
