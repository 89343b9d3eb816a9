"""Fully connected to fully convolutional: a network that gives a map of scores on larger images.

A linear layer right after flattening an h x w map is a convolution with a kernel of h x w, seen at
its one position; the layers after it are convolutions of 1 x 1, and global pooling is pooling over
windows of h x w (Long, Shelhamer and Darrell 2015, "Fully convolutional networks for semantic
segmentation"; Sermanet et al. 2014, "OverFeat"). On larger images all of them have more positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from topwork.errors import UnsupportedError, UsageError
from topwork.network.chain import Chain
from topwork.network.cut import segment
from topwork.network.model import Model
from topwork.network.rewriting import Rewriting
from topwork.network.sharing import share_copy


class SlidingNetwork(nn.Module):
    """Images [N, C, H, W] to scores [N, classes, h, w]; made by `fully_convolutional`.

    Attributes:
        layers: the convolutional network; its layers have the names that they had.
        native: height and width in pixels of the part of the image that a position stands for:
            the network's own input size.
        stride: pixels from one position to the next, down and across.
    """

    def __init__(
        self, layers: nn.Module, native: tuple[int, int], stride: tuple[float, float]
    ) -> None:
        super().__init__()
        self.layers, self.native, self.stride = layers, native, stride

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores at every position.

        Raises:
            UsageError: if the images are smaller than the network's own input.
        """
        height, width = images.shape[2:]
        if height < self.native[0] or width < self.native[1]:
            raise UsageError(
                f"images of {height}x{width} pixels are smaller than the network's own"
                f" {self.native[0]}x{self.native[1]}; enlarge them first"
            )
        return self.layers(images)


def fully_convolutional(network: Model | Chain, example: Tensor) -> SlidingNetwork:
    """Return a network that slides the top of another over the map of a whole, larger image.

    At the native size it gives the same scores, at one position. On larger images the scores at a
    position are those that the network's own top gives on one window of the map which the layers
    below it make of the whole image. Where these layers pad nothing, they are the scores of the
    network on a crop of the image. Where they pad, the two differ near the crop's edges: the window
    sees what really lies around it, the network on the crop sees the padding. Blocks that pool
    over all they see (squeeze and excitation) see the whole image instead of the crop.

    A top that reads several depths is slid over all of them in step, at the coarsest stride.

    Args:
        network: a model, or the traced chain of a source network; neither it nor its mode is
            changed. The new network shares all tensors with it.
        example: input at its own size, [N, C, H, W]; its values do not matter.

    Returns:
        the sliding network, in eval mode; it is for inference.

    Raises:
        UnsupportedError: naming the layer that cannot be slid: one that makes tokens, or that
            belongs to maps of its native size otherwise.

    >>> from topwork.network.chain import trace_chain
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    >>> image = torch.randn(1, 3, 6, 9)
    >>> sliding = fully_convolutional(trace_chain(net, image[..., :4, :4]), image[..., :4, :4])
    >>> scores = sliding(image)
    >>> scores.shape, torch.allclose(scores[..., 1, 5], net(image[..., 1:5, 5:9]), atol=1e-5)
    (torch.Size([1, 2, 3, 6]), True)
    """
    with torch.no_grad():
        layers, stride = Rewriting(flat_graph(network), example[:1]).run()
    return SlidingNetwork(layers, (example.shape[2], example.shape[3]), stride).eval()


def flat_graph(network: Model | Chain) -> fx.GraphModule:
    """Return a network's calls, from images to scores, as one graph that shares its tensors."""
    if isinstance(network, Model):
        whole: nn.Module = share_copy(network)
    elif network.graph is None:
        raise UnsupportedError(f"{network.note}; a network that cannot be traced cannot be slid")
    else:
        whole = segment(network, network.cuts[0], None)
    whole.eval()
    return fx.GraphModule(whole, FlatTracer().trace(whole))


class FlatTracer(fx.Tracer):
    """Traces through what was traced before, and through plain sequences; all else stays whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module stays whole."""
        return not isinstance(m, fx.GraphModule) and type(m) is not nn.Sequential
