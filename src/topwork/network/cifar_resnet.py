"""The ResNets for CIFAR of He et al. 2016 (https://arxiv.org/abs/1512.03385, section 4.2).

Depth 6n+2: a 3x3 stem, three stages of n blocks with 16, 32 and 64 channels, global average pooling
and a linear layer. Shortcuts have no parameters (option A): where a stage begins, the input is
subsampled by two and padded with zero channels. Parameter names are those of the widely used
reimplementation (``conv1``, ``bn1``, ``layer1.0.conv1``, ..., ``linear``).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Shortcut(nn.Module):
    """Option A: every second pixel, zero channels added evenly on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.padding = (outputs - inputs) // 2

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``[N, outputs, H / 2, W / 2]``, sizes rounded up."""
        return functional.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(inputs, outputs)
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``[N, outputs, H, W]``, halved (rounded up) where the block widens."""
        residual = self.relu1(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        return self.relu2(residual + self.shortcut(maps))


class CifarResNet(nn.Module):
    """ResNet of ``depth`` layers for small images: ``[N, 3, 32, 32] -> [N, num_classes]``.

    Any size from 4 pixels works.

    >>> import torch
    >>> CifarResNet(20)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.linear(self.flatten(self.pool(maps)))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    later = [BasicBlock(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs), *later)
