"""A stack of dense layers: what deep belief nets and stacked autoencoders are made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import BackboneError, did_you_mean

LANES = 64
"""Numbers that a processor takes together; PyTorch does what is left over at the end of a tensor by
another formula, whose last bit may differ."""

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}


class DenseLayer(nn.Module):
    """Dropout, linear layer, activation: ``[N, inputs] -> [N, outputs]``."""

    def __init__(self, inputs: int, outputs: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(inputs, outputs)
        self.activation = ACTIVATIONS[activation]()
        nn.init.xavier_uniform_(self.linear.weight, gain=4 if activation == "sigmoid" else 1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return the activations; those of a row do not depend on its place in the batch."""
        inputs = self.linear(self.dropout(values))
        lacking = -inputs.shape[1] % LANES
        if not lacking:
            return self.activation(inputs)
        return self.activation(functional.pad(inputs, (0, lacking)))[:, : inputs.shape[1]]


def dense(
    widths: Sequence[int] = (500, 500, 2000),
    activation: str = "sigmoid",
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    image_size: Sequence[int] = (28, 28),
    in_chans: int = 3,
    num_classes: int = 10,
) -> nn.Sequential:
    """Return dense layers of some widths on the flattened image, and a linear classifier.

    The random weights are Glorot and Bengio's (2010), whose uniform distribution they widen four
    times for sigmoid units.

    Args:
        widths: units of each layer, from the lowest.
        activation: "sigmoid" (the units of a Boltzmann machine), "relu" or "tanh".
        dropout: share of each layer's outputs that the layer above does not see in training.
        input_dropout: the same of the pixels.
        image_size: height and width in pixels.
        in_chans: channels of an image.
        num_classes: outputs of the classifier.

    Raises:
        BackboneError: for no widths, widths below 1, or an unknown activation.

    >>> import torch
    >>> dense((8, 4), image_size=(5, 5), num_classes=3)(torch.zeros(2, 3, 5, 5)).shape
    torch.Size([2, 3])
    """
    if (
        not isinstance(widths, Sequence)
        or not widths
        or any(type(units) is not int or units < 1 for units in widths)
    ):
        given = list(widths) if isinstance(widths, tuple) else widths
        raise BackboneError(
            f"topwork:dense: widths is {given!r}; give the units of each layer, from the lowest,"
            " such as [500, 500, 2000]"
        )
    if activation not in ACTIVATIONS:
        hint = did_you_mean(str(activation), ACTIVATIONS)
        raise BackboneError(
            f"topwork:dense: activation is {activation!r}{hint}; known are {', '.join(ACTIVATIONS)}"
        )
    height, width = image_size
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    everything = [in_chans * height * width, *widths]
    for number, (inputs, outputs) in enumerate(pairwise(everything), start=1):
        dropped = dropout if number > 1 else input_dropout
        layers[f"layer{number}"] = DenseLayer(inputs, outputs, activation, dropped)
    layers["dropout"] = nn.Dropout(dropout)
    layers["classifier"] = nn.Linear(everything[-1], num_classes)
    return nn.Sequential(layers)
