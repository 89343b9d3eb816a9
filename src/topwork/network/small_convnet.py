"""A small plain ConvNet for small images, fast enough to be pretrained on a laptop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU: ``[N, inputs, H, W] -> [N, outputs, H, W]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the activated maps."""
        return self.activation(self.norm(self.conv(maps)))


def small_convnet(channels: Sequence[int] = (16, 32, 64), num_classes: int = 10) -> nn.Sequential:
    """Return a chain of :class:`ConvBlock`, 2x2 max pooling between them, and a linear classifier.

    Global average pooling makes it independent of the input size; each of the ``len(channels) - 1``
    poolings halves it, so three blocks need images of at least 4 pixels.

    >>> import torch
    >>> small_convnet((8, 16), num_classes=5)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 5])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    widths = [3, *channels]
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        if number > 1:
            layers[f"pool{number - 1}"] = nn.MaxPool2d(2)
        layers[f"block{number}"] = ConvBlock(inputs, outputs)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(widths[-1], num_classes)
    return nn.Sequential(layers)
