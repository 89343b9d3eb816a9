"""Images of another size or channel count than a network's source had: what its weights become.

Convolutions do not know the size of an image. What does know it is resampled: absolute position
embeddings (class and other prefix tokens are kept as they are) and relative position tables. The
convolutions that read the image are the only layers that know its channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from topwork.errors import BackboneError, PlanError

COLORS = 3
"""Channels of color images, which published weights are for."""


@dataclass(frozen=True)
class InputChange:
    """How the images of a network differ from those its weights were trained on.

    Attributes:
        source: height and width in pixels that the weights are for.
        size: those that the network takes.
        channels: that the network takes.
        source_channels: that the weights are for.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    channels: int
    source_channels: int


def shown(size: tuple[int, int]) -> str:
    """Write height and width as in ``224x224``."""
    return f"{size[0]}x{size[1]}"


def adapt_state(
    given: Mapping[str, Tensor], network: nn.Module, change: InputChange
) -> dict[str, Tensor]:
    """Return those tensors of a state that the change of input alters, fitted to the network.

    What cannot be fitted is left out, so that it is found to be of another shape later on.

    Args:
        given: the source's tensors, by the network's names.
        network: of the new size and channel count.
        change: what is new.
    """
    fitted = {}
    for name, new in network.state_dict().items():
        old = given.get(name)
        if old is None:
            continue
        if name.rpartition(".")[2] in ("pos_embed", "pos_embedding"):
            value = resample_positions(old, patch_of(network), change)
        elif old.shape == new.shape:
            continue
        elif name.endswith("relative_position_bias_table"):
            value = resample_table(old, network.get_submodule(name.rpartition(".")[0]))
        elif old.ndim == 4 and old.shape[1] == COLORS and new.shape[1] == change.channels:
            value = spread_channels(old, change.channels)
        else:
            continue
        if value is not None and value.shape == new.shape and value is not old:
            fitted[name] = value
    return fitted


def spread_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the weight of a convolution on three channels for another number of them.

    For one channel it is the sum, which makes of a gray image what the three made of its copies.
    For others the three are repeated in turn and scaled by ``3 / channels``, which leaves the size
    of the outputs about what it was (as timm does).

    Args:
        weight: [outputs, 3, height, width].
        channels: 1 or more.

    >>> import torch
    >>> spread_channels(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), 4).flatten().tolist()
    [0.75, 1.5, 2.25, 0.75]
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    in_turn = [number % COLORS for number in range(channels)]
    return weight[:, in_turn] * (COLORS / channels)


def set_channels(network: nn.Module, channels: int) -> None:
    """Make a network of three-channel images take another number of channels, in place.

    The first convolution, in the order of the modules, is taken for the one that reads the image;
    its random weights are adapted by `spread_channels`. Where another layer reads the image as
    well, the network does not run, and tracing it says so.

    Raises:
        BackboneError: if the first convolution takes no three-channel image.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != COLORS or first.groups != 1:
        raise BackboneError(
            f"{type(network).__name__}: no convolution that reads the image is found, so it cannot"
            f" be given {channels} channels; leave out channels, or choose another network"
        )
    first.in_channels = channels
    first.weight = nn.Parameter(spread_channels(first.weight.detach(), channels))


def patch_of(network: nn.Module) -> tuple[int, int] | None:
    """Return height and width in pixels of what becomes one token; None where there is no such."""
    ratio = getattr(getattr(network, "patch_embed", None), "feat_ratio", None)
    if ratio is not None:  # timm
        height, width = ratio(as_scalar=False)
        return int(height), int(width)
    side = getattr(network, "patch_size", None)  # torchvision's VisionTransformer
    return (side, side) if isinstance(side, int) else None


def resample_positions(
    embedding: Tensor, patch: tuple[int, int] | None, change: InputChange
) -> Tensor | None:
    """Return an absolute position embedding for another grid of patches; None if it has no grid.

    Bicubic and antialiased, as timm does. torchvision's own ``interpolate_embeddings`` does not
    low-pass and puts the outermost patches of both grids on top of each other; timm's way, which
    puts the edges of both images there, is used for its networks too.

    Args:
        embedding: [1, prefix + rows * columns, D]; the prefix is kept as it is.
        patch: height and width in pixels of what becomes one token.
        change: from which size to which.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    if patch is None or embedding.ndim != 3:
        return None
    old, new = (
        (height // patch[0], width // patch[1]) for height, width in (change.source, change.size)
    )
    prefix = embedding.shape[1] - old[0] * old[1]
    if prefix < 0:
        return None
    return resample_abs_pos_embed(
        embedding, new_size=list(new), old_size=list(old), num_prefix_tokens=prefix
    )


def resample_table(table: Tensor, attention: nn.Module) -> Tensor | None:
    """Return a table of relative position biases for another window; None if it has no grid.

    Args:
        table: [(2 * rows - 1) * (2 * columns - 1) + extra, heads], of a square window.
        attention: the module that owns the table, for the new window and shape.
    """
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    window = getattr(attention, "window_size", None)
    if not isinstance(window, tuple):
        return None
    new = getattr(attention, "relative_position_bias_table")  # noqa: B009  (a tensor, for mypy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about how timm indexes
            return resize_rel_pos_bias_table(table, window, tuple(new.shape))
    except (AssertionError, ValueError):  # a table of another make
        return None


def check_patches(network: nn.Module, size: tuple[int, int], name: str) -> None:
    """Refuse a size that patches do not cover: timm would drop the remainder without a word.

    Raises:
        PlanError: naming the nearest size that is possible.
    """
    patch = patch_of(network) or (1, 1)
    nearest = tuple(max(1, round(side / by)) * by for side, by in zip(size, patch, strict=True))
    if nearest != size:
        raise PlanError(
            f"input_size {shown(size)}: {name} divides images into patches of {shown(patch)}"
            f" pixels; give multiples of that, such as {list(nearest)}"
        )
