"""Autoencoders, plain and denoising, stacked layer by layer or trained end to end.

Vincent et al. 2008 and 2010 ("Stacked denoising autoencoders"), after Bengio et al. 2007; of maps
Masci et al. 2011. A layer learns to give codes from which a decoder can rebuild what the layer was
given; a denoising one is given a corrupted copy, x~, and rebuilds what is whole:

    minimize  L(x, g(f(x~))),   x~ = x with values set to 0 at random, or with Gaussian noise added

L is the cross-entropy, summed over the units, where x lies between 0 and 1 as pixels and sigmoid
units do; else the squared error as a share of x's variance, so that layers can be compared: 1 is
what the mean image gives. f is the network's own, so what is learned is there; g is thrown away.
Each layer learns from the cached outputs of the layers below it, which are given whole images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from topwork.errors import PlanError
from topwork.learn.batch_norm import batch_norms, estimate_statistics
from topwork.learn.loop import AT_ONCE, Inputs
from topwork.network.chain import Chain, CutPoint
from topwork.network.codes import pool_module
from topwork.network.cut import segment
from topwork.network.dense import DenseLayer
from topwork.network.layout import Layout
from topwork.phase import Phase, require
from topwork.pretraining.decoders import TiedDecoder, unrolled_decoder
from topwork.pretraining.material import Material, batches, drawn_rows, pictured_weights
from topwork.pretraining.recipe import Recipe, require_positive
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import online_probe

PAPER = "Bengio et al. 2007; Vincent et al. 2008 and 2010 (denoising); Masci et al. 2011 (maps)"
NOISES = ("masking", "gaussian", "none")
MANY_STAGES = 4
"""From so many stages on, they are what is stacked; layers else."""
MEASURED = 2048
"""Images whose means and deviations stand for those of all."""
SHOWN = 64
MOST_WEIGHTS = 2**28
"""Of a decoder: with what an optimizer keeps of each, 4 GiB."""
START = 0.01
"""Deviation of a tied layer's first weights: wider ones stay in its filters as noise."""


@dataclass(frozen=True)
class AutoencoderRecipe(Recipe):
    """How autoencoders are trained.

    Attributes:
        phase: of each layer's autoencoder.
        noise: "masking" sets values to 0, of maps and tokens all channels of a position; "gaussian"
            adds noise; "none" is a plain autoencoder.
        amount: share of the values that are set to 0, or the noise's deviation: of values from 0 to
            1 as it stands, of others in units of their own deviation.
        tied: whether a dense layer's decoder has its transposed weights.
        end_to_end: train the whole network at once, not layer by layer.
    """

    phase: Phase = field(
        default=Phase(
            epochs=15, batch=100, optimizer="sgd", rate=0.1, momentum=0.9, weight_decay=0.0,
            warmup=1.0,
        )
    )  # fmt: skip
    noise: str = "masking"
    amount: float = 0.25
    tied: bool = True
    end_to_end: bool = False

    def __post_init__(self) -> None:
        require("recipe: noise", self.noise, NOISES)
        require_positive(self, "amount")
        if self.noise == "masking" and self.amount >= 1:
            raise PlanError(f"recipe: amount is {self.amount}; masking takes a share below 1")


class Autoencoder(nn.Module):
    """Layers, and a decoder that rebuilds what they were given from what they give.

    Args:
        encoder: the layers, [n, ...] to [n, ...].
        decoder: the other way.
        layout: of what is rebuilt.
        binary: whether that lies between 0 and 1.
        sample: some of it, [n, ...]: its means are what the decoder starts from.
        noise: one of `NOISES`.
        amount: of it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        layout: Layout,
        *,
        binary: bool,
        sample: Tensor,
        noise: str = "none",
        amount: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.layout = encoder, decoder, layout
        self.binary, self.noise, self.amount = binary, noise, amount
        mean = sample.mean(0)
        deviation = (sample - mean).square().mean().sqrt().clamp(min=1e-6)
        self.register_buffer("mean", mean.clamp(0.01, 0.99).logit() if binary else mean)
        self.register_buffer("deviation", torch.ones_like(deviation) if binary else deviation)

    def corrupted(self, values: Tensor) -> Tensor:
        """Return values with noise."""
        if self.noise == "masking":
            shape = list(values.shape)
            if self.layout.kind in ("map", "tokens"):
                first = self.layout.kind == "map" and not self.layout.channels_last
                shape[1 if first else -1] = 1
            return values * torch.rand(shape, device=values.device).ge(self.amount)
        if self.noise == "gaussian":
            return values + self.amount * self.deviation * torch.randn_like(values)
        return values

    def decoded(self, values: Tensor) -> Tensor:
        """Return what is rebuilt of values; of binary ones its logits."""
        return self.decoder(self.encoder(values)).float() * self.deviation + self.mean

    def rebuilt(self, values: Tensor) -> Tensor:
        """Return what is rebuilt of values."""
        found = self.decoded(values)
        return found.sigmoid() if self.binary else found

    def forward(self, values: Tensor) -> Tensor:
        """Return [n, 2], the losses of rebuilding from noise; the second column is zero."""
        found = self.decoded(self.corrupted(values))
        if self.binary:
            terms = functional.binary_cross_entropy_with_logits(found, values, reduction="none")
            losses = terms.flatten(1).sum(1)
        else:
            losses = ((found - values) / self.deviation).square().flatten(1).mean(1)
        return torch.stack([losses, torch.zeros_like(losses)], 1)


def pretrain_autoencoder(
    material: Material, recipe: AutoencoderRecipe
) -> Iterator[Progress | None]:
    """Train a stack of autoencoders, the lowest first, or one of all layers.

    Yields after every step.
    """
    for stage, part in parts_of(material.chain, recipe).items():
        if not material.stages.is_finished(stage):
            yield from pretrain_part(material, recipe, stage, part)


def parts_of(chain: Chain, recipe: AutoencoderRecipe) -> dict[str, Sequence[CutPoint]]:
    """Return the cut points of each stage, the first and the last of which its layers lie between.

    There are others in between if all is trained end to end.
    """
    cuts = stacked_cuts(chain)
    if recipe.end_to_end:
        return {"whole network": cuts}
    return {f"layer {number}": pair for number, pair in enumerate(pairwise(cuts), start=1)}


def require_decoders(chain: Chain, recipe: AutoencoderRecipe) -> None:
    """Refuse a network from whose codes only a huge matrix leads back.

    Raises:
        PlanError: naming the layers.
    """
    for cuts in parts_of(chain, recipe).values():
        if tied_layer(chain, recipe, cuts):
            continue
        with torch.device("meta"):
            weights = sum(part.numel() for part in unrolled_decoder(cuts).parameters())
        if weights > MOST_WEIGHTS:
            raise PlanError(
                f"--method autoencoder: from {cuts[-1].name} back to {cuts[0].name} a decoder would"
                f" take {weights / 1e6:,.0f} million weights; give a smaller --size, or another"
                " network"
            )


def tied_layer(
    chain: Chain, recipe: AutoencoderRecipe, cuts: Sequence[CutPoint]
) -> DenseLayer | None:
    """Return the layer whose weights a decoder is to have as well, if that is meant."""
    if not recipe.tied or len(cuts) != 2 or chain.graph is None:
        return None
    layer = chain.network.get_submodule(cuts[-1].name)
    return layer if isinstance(layer, DenseLayer) else None


def stacked_cuts(chain: Chain) -> list[CutPoint]:
    """Return the input and the cut points up to which the layers of a stack reach."""
    ends = [cut for cut in chain.cuts[1:] if cut.stage_end or cut is chain.top]
    return [chain.cuts[0], *(ends if len(ends) >= MANY_STAGES else chain.cuts[1:])]


def pretrain_part(
    material: Material, recipe: AutoencoderRecipe, stage: str, cuts: Sequence[CutPoint]
) -> Iterator[Progress | None]:
    """Train the layers between the first and the last of some cut points.

    Each epoch tells what a linear head on their codes is worth, where there are labels.
    """
    inputs, held_out = material.inputs(cuts[0], recipe.phase.epochs)
    module = make_autoencoder(material, recipe, cuts, inputs)
    pool = pool_module(material.chain, cuts[-1], pool_of(cuts[-1]))
    body = nn.Sequential(module.encoder, pool)
    for epoch in material.stages.train(stage, module, recipe.phase, inputs, held_out):
        if epoch is None:
            yield None
            continue
        last = epoch.number == recipe.phase.epochs
        shows = last and cuts[0].depth == 0
        pictures = see(material, module, held_out or inputs) if shows else {}
        if last or material.classes is not None:
            settle_statistics(module.encoder, inputs)
        found = online_probe(material, body, inputs, held_out)
        yield progress_of(epoch, stage, recipe.phase, found, pictures)


def pool_of(cut: CutPoint) -> str:
    """Return how codes at a cut point are pooled for a linear head."""
    return "flatten" if cut.layout.kind == "vector" else "avg"


def make_autoencoder(
    material: Material, recipe: AutoencoderRecipe, cuts: Sequence[CutPoint], inputs: Inputs
) -> Autoencoder:
    """Return the layers between some cut points, with a decoder."""
    below, above = cuts[0], cuts[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        if layer := tied_layer(material.chain, recipe, cuts):
            decoder: nn.Module = TiedDecoder(below.shape, layer.linear)
            if material.loaded.weights is None:
                nn.init.normal_(layer.linear.weight, std=START)
        else:
            decoder = unrolled_decoder(cuts)
    (sample,) = inputs.batch(drawn_rows(MEASURED, len(inputs)), 0)
    encoder = segment(material.chain, below, above)
    for module in encoder.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0  # of this copy: the recipe alone says what is left out
    return Autoencoder(
        encoder,
        decoder,
        below.layout,
        binary=is_binary(material, below),
        sample=sample,
        noise=recipe.noise,
        amount=recipe.amount,
    ).to(material.device)


def is_binary(material: Material, cut: CutPoint) -> bool:
    """Say whether values at a cut point lie between 0 and 1."""
    if cut.depth == 0:
        view = material.loaded.backbone.preprocessing
        return {*view.mean} == {0.0} and {*view.std} == {1.0}
    if material.chain.graph is None:
        return False
    layer = material.chain.network.get_submodule(cut.name)
    return isinstance(layer, DenseLayer) and isinstance(layer.activation, nn.Sigmoid)


def settle_statistics(layers: nn.Module, inputs: Inputs) -> None:
    """Give batch norms the statistics of whole inputs, in place of those with parts missing.

    Layers above, and whoever uses the network, give it whole images.

    Args:
        layers: take what the inputs give.
        inputs: those trained on.
    """
    rows = drawn_rows(MEASURED, len(inputs))
    if len(rows) % AT_ONCE == 1:  # a batch of one has no variance
        rows.pop()
    norms = [norm for _, norm in batch_norms(layers)]
    if norms and rows:
        estimate_statistics(layers, norms, (batch for (batch,) in batches(inputs, rows)))


@torch.no_grad()
def see(material: Material, module: Autoencoder, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return pictures: filters of the lowest layer, images, noisy ones, and what is rebuilt."""
    (images,) = inputs.batch(drawn_rows(SHOWN, len(inputs)), 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        noisy = module.corrupted(images)
    maps = first_weights(module.encoder, material.chain.cuts[0].shape)
    found = {} if maps is None else {"filters": pictured_weights(maps[:SHOWN])}
    found["images"] = material.pictures(images)
    if module.noise != "none":
        found["noisy"] = material.pictures(noisy)
    return {**found, "reconstructions": material.pictures(module.rebuilt(noisy))}


def first_weights(layers: nn.Module, shape: tuple[int, ...]) -> Tensor | None:
    """Return the weights of the lowest layer as maps [n, C, h, w], if they are about pixels.

    Args:
        layers: in the order of execution.
        shape: of an image, (C, H, W).
    """
    for module in layers.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] == shape[0]:
            return module.weight
        if isinstance(module, nn.Linear):
            pixels = module.in_features == torch.Size(shape).numel()
            return module.weight.unflatten(1, shape) if pixels else None
    return None
