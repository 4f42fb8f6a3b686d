"""Networks F(x, t, labels, guidance): plain modules, built by name from a table."""

from torch import nn

from trigflow.networks.ddpmpp import DDPMpp
from trigflow.networks.dit import DiT
from trigflow.networks.edm2 import EDM2
from trigflow.networks.mlp import MLP
from trigflow.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {
    "ddpmpp": DDPMpp,
    "dit": DiT,
    "edm2": EDM2,
    "mlp": MLP,
    "unet": UNet,
}
"""The names that a recipe may use; your own network is named "package.module:Class"."""

__all__ = ["EDM2", "MLP", "NETWORKS", "DDPMpp", "DiT", "UNet"]
