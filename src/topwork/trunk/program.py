"""The trunk as one program: from pixels to everything that is kept of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topwork.data.views import Preprocessing
from topwork.network.cut import Trunk

WHOLE = "none"
"""The pooling that is none: the tensor at the cut as it stands."""


@dataclass(frozen=True)
class Output:
    """What is kept of an image at a cut.

    Attributes:
        number: of the cut, among the trunk's.
        pool: how its tensor is pooled, or `WHOLE`.
        module: does it.
        is_pixels: whether it is the rendered pixels themselves that are kept.
    """

    number: int
    pool: str
    module: nn.Module
    is_pixels: bool


class TrunkProgram(nn.Module):
    """The layers of a trunk between pixels and outputs, in eval mode: what a runtime runs.

    It normalizes in float32 as `topwork.data.views.to_tensor` does, bit for bit. Pixels that are
    kept as they are do not pass through it.

    Args:
        trunk: the layers, on their device and in their memory layout.
        outputs: what is kept, by depth.
        preprocessing: gives mean and std.
        device: where the trunk is.

    Attributes:
        size: height, width and channels of an image.
        numbers: of the cut of each output, among the trunk's.
    """

    size: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: Trunk,
        outputs: tuple[Output, ...],
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.size = (*preprocessing.size, preprocessing.channels)
        computed = [output for output in outputs if not output.is_pixels]
        self.numbers = tuple(output.number for output in computed)
        self.segments = nn.ModuleList(trunk.segments)
        self.pools = nn.ModuleList(output.module for output in computed)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1).to(device))
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return each output, float32 [B, ...].

        Args:
            pixels: uint8 [B, H, W, C].
        """
        images = pixels.permute(0, 3, 1, 2).float()
        images = images.contiguous(memory_format=torch.channels_last)
        value = images.div(255).sub(self.mean).div(self.std)
        found = {}
        for number, segment in enumerate(self.segments):
            value = segment(value)
            for place, (of, pool) in enumerate(zip(self.numbers, self.pools, strict=True)):
                if of == number:
                    found[place] = pool(value)
        return tuple(found[place].float() for place in range(len(self.numbers)))
