"""Generative adversarial pairs: a discriminator whose lower layers are what is reused.

Radford, Metz and Chintala 2016 ("Unsupervised representation learning with deep convolutional
generative adversarial networks") on the game of Goodfellow et al. 2014. A generator G makes images
of noise z, a discriminator D tells them from real ones x by a score, positive for real:

    the discriminator minimizes  mean softplus(-D(x)) + mean softplus(D(G(z)))
    the generator minimizes      mean softplus(-D(G(z)))    (the non-saturating loss)

The discriminator is the network up to L and a linear unit on its pooled codes. Both take their
steps at once; each player's parameters are moved by its own loss alone. One-sided label smoothing,
noise on all images, a penalty on the discriminator's gradient and a falling rate did not make its
layers better in short trials on small photos, so there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from topwork.learn.loop import Inputs
from topwork.phase import Phase
from topwork.pretraining.material import Material, drawn_rows
from topwork.pretraining.recipe import Recipe, require_positive
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import effective_rank, online_probe

log = logging.getLogger("topwork")

PAPER = "Radford, Metz and Chintala 2016 (DCGAN); Goodfellow et al. 2014"
STAGE = "pair"
COMPARED = 256
"""Generated images, always of the same noise, whose diversity is compared with real ones'."""
SHOWN = 64
COLLAPSED = 0.1
"""Diversity below which a generator is said to have collapsed."""
SMALLEST_SIDE = 4
"""Of the maps that a generator begins with, in pixels."""
MOST_WIDENING = 8
"""By how much its lowest maps have more channels than its uppermost ones, at most."""


@dataclass(frozen=True)
class GanRecipe(Recipe):
    """How a pair is trained.

    Attributes:
        phase: of both players; its momentum is Adam's first beta.
        noise: numbers that the generator makes an image of.
        width: channels of the generator's uppermost maps; they double with each halving of the
            side, to at most eight times as many.
    """

    phase: Phase = field(
        default=Phase(
            epochs=20, batch=64, optimizer="adam", rate=2e-4, momentum=0.5, weight_decay=0.0,
            schedule="constant",
        )
    )  # fmt: skip
    noise: int = 64
    width: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "noise", "width")


class Generator(nn.Module):
    """Images of noise, ``[n, noise] -> [n, C, H, W]``, normalized as the real ones are.

    A linear layer gives maps of at least 4 pixels a side; blocks of nearest-neighbor upsampling, a
    3x3 convolution, batch norm and ReLU double the side until it is H by W; a last 3x3 convolution
    and tanh give pixels, which span just the range of real ones.

    Args:
        noise: numbers that an image is made of.
        width: channels of the uppermost maps.
        size: H and W in pixels, any.
        mean: of each channel, which 0..1 pixels are normalized by.
        std: likewise.

    >>> Generator(8, 4, (20, 15), mean=(0.5,), std=(0.5,))(torch.randn(2, 8)).shape
    torch.Size([2, 1, 20, 15])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        noise: int,
        width: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        sizes = growing_sizes(size)
        channels = [width * min(MOST_WIDENING, 2**k) for k in reversed(range(len(sizes)))]
        (height, length), lowest = sizes[0], channels[0]
        layers: list[nn.Module] = [
            nn.Linear(noise, lowest * height * length, bias=False),
            nn.Unflatten(1, (lowest, height, length)),
            nn.BatchNorm2d(lowest),
            nn.ReLU(),
        ]
        for number, larger in enumerate(sizes[1:], start=1):
            layers += [
                nn.Upsample(larger),
                nn.Conv2d(channels[number - 1], channels[number], 3, padding=1, bias=False),
                nn.BatchNorm2d(channels[number]),
                nn.ReLU(),
            ]
        layers += [nn.Conv2d(channels[-1], len(mean), 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Return images."""
        return ((self.layers(noise) + 1) / 2 - self.mean) / self.std


def growing_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes of a generator's maps, each half of the next, rounded up.

    >>> growing_sizes((28, 28)), growing_sizes((3, 9))
    ([(4, 4), (7, 7), (14, 14), (28, 28)], [(3, 9)])
    """
    sizes = [size]
    while min(half := ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2)) >= SMALLEST_SIDE:
        sizes.insert(0, half)
    return sizes


class Pair(nn.Module):
    """Both players. A step of the sum of their losses moves each by its own.

    Args:
        body: from pixels to codes [n, D].
        codes: D.
        generator: from noise to pixels.
        noise: numbers that the generator takes.

    Attributes:
        fixed: noise [256, noise] whose images are looked at epoch after epoch.
    """

    fixed: Tensor

    def __init__(self, body: nn.Module, codes: int, generator: Generator, noise: int) -> None:
        super().__init__()
        self.discriminator = nn.Sequential(body, nn.Linear(codes, 1))
        self.generator = generator
        self.register_buffer("fixed", torch.randn(COMPARED, noise))

    def forward(self, images: Tensor) -> Tensor:
        """Return [n, 2]: both losses together, and the share of real and made told from each other.

        Args:
            images: real ones, normalized pixels [n, C, H, W]; as many are made.
        """
        fixed = self.fixed
        noise = torch.randn(len(images), fixed.shape[1], device=fixed.device, dtype=fixed.dtype)
        made = self.generator(noise)
        of_real = self.discriminator(images)[:, 0]
        of_made = self.scores_of_made(made.detach())
        discriminator = functional.softplus(-of_real) + functional.softplus(of_made)
        generator = functional.softplus(-self.scores_of_made(made, for_generator=True))
        right = ((of_real > 0).float() + (of_made < 0).float()) / 2
        return torch.stack([discriminator + generator, right], 1)

    def scores_of_made(self, made: Tensor, for_generator: bool = False) -> Tensor:
        """Return the discriminator's scores [n] of made images, in a batch of their own.

        Its batch norms take the batch's statistics in training, but what they keep, and what is
        reused later, are those of real images alone: made images move copies.

        Args:
            made: [n, C, H, W].
            for_generator: whether the generator is to learn from them and the discriminator not.
        """
        network = self.discriminator
        tensors = {name: value.clone() for name, value in network.named_buffers()}
        if for_generator:
            tensors |= {name: value.detach() for name, value in network.named_parameters()}
        return functional_call(network, tensors, (made,))[:, 0]


def pretrain_gan(material: Material, recipe: GanRecipe) -> Iterator[Progress | None]:
    """Train a pair whose discriminator is the network; yield after every step.

    Each epoch tells how often the discriminator was right (0.5 is chance, near 1 the generator is
    left behind), how diverse what is made is, see `diversity`, and what a linear head on the codes
    is worth, where there are labels. A generator that makes all images alike is warned of once.
    """
    stage, phase = STAGE, recipe.phase
    if material.stages.is_finished(stage):
        return
    inputs, held_out = material.inputs(material.chain.cuts[0], phase.epochs)
    pair = make_pair(material, recipe)
    real = inputs.batch(drawn_rows(COMPARED, len(inputs)), 0)[0]
    for epoch in material.stages.train(stage, pair, phase, inputs, held_out):
        if epoch is None:
            yield None
            continue
        found = {
            "told_apart": epoch.accuracy,
            "diversity": diversity(samples(pair, len(real)), real),
            **online_probe(material, pair.discriminator[0], inputs, held_out),
        }
        warn_of_collapse([record["diversity"] for record in material.stages.records], found)
        pictures = see(material, pair, inputs) if epoch.number == phase.epochs else {}
        yield progress_of(epoch, stage, phase, found, pictures)


def warn_of_collapse(before: Sequence[float], found: Mapping[str, float]) -> None:
    """Say so in the second epoch in which what is made hardly differs; the first may only begin."""
    if found["diversity"] < COLLAPSED and sum(value < COLLAPSED for value in before) == 1:
        log.warning(
            "the generator has collapsed: what it makes is %.2g times as diverse as the images;"
            " give another --seed, a lower --rate, or larger batches",
            found["diversity"],
        )


def make_pair(material: Material, recipe: GanRecipe) -> Pair:
    """Build the players for a network, by a material's seed."""
    view = material.loaded.backbone.preprocessing
    body = material.body()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(material.seed)
        generator = Generator(recipe.noise, recipe.width, view.size, view.mean, view.std)
        example = torch.zeros(1, view.channels, *view.size, device=material.device)
        codes = body.eval()(example).shape[1]
        pair = Pair(body, codes, generator, recipe.noise)
    pair.generator.to(memory_format=torch.channels_last)  # as the network is; faster
    return pair.to(material.device)


@torch.no_grad()
def samples(pair: Pair, count: int) -> Tensor:
    """Return images of the fixed noise, made in the mode that the pair is in."""
    return pair.generator(pair.fixed[:count])


def diversity(made: Tensor, real: Tensor) -> float:
    """Return how diverse made images are, relative to as many real ones: 1 if just as much.

    That is the smaller of two ratios: that of the deviations from the mean image, which is small if
    all are alike, and that of the effective ranks, which is small if there are but a few kinds.

    Args:
        made: [n, ...].
        real: [n, ...].

    >>> images = torch.eye(4)
    >>> diversity(images, images), diversity(images / 100, images) < 0.02
    (1.0, True)
    """
    ratios = []
    for measure in (effective_rank, spread):
        own, theirs = (measure(images.flatten(1).float()) for images in (made, real))
        ratios.append(own / theirs if theirs else 1.0)
    return min(ratios)


def spread(codes: Tensor) -> float:
    """Return the root mean square distance of rows from their mean."""
    return float((codes - codes.mean(0)).square().sum(1).mean().sqrt())


def see(material: Material, pair: Pair, inputs: Inputs) -> dict[str, np.ndarray]:
    """Return pictures of images, and of what is made of the fixed noise."""
    (images,) = inputs.batch(drawn_rows(SHOWN, len(inputs)), 0)
    return {
        "images": material.pictures(images),
        "samples": material.pictures(samples(pair, SHOWN)),
    }
