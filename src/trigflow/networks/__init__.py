"""Networks F(x, t, labels): plain modules, built by name from a table."""

from torch import nn

from .dit import DiT
from .mlp import MLP
from .unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"dit": DiT, "mlp": MLP, "unet": UNet}
"""Names that a recipe may use; a network of your own is named "package.module:Class"."""

__all__ = ["MLP", "NETWORKS", "DiT", "UNet"]
