"""Distillation: a small student learns what a pretrained teacher makes of unlabeled images.

Of each view of an image the student learns three things:

* the teacher's codes at L, the input of its last linear layer, as a linear layer reads them off the
  student's own codes. The loss is the squared error, each of the teacher's columns in units of its
  deviation, mean over the columns;
* what its lower layers make of parts of the image, likewise (`topwork.pretraining.hints`);
* where the teacher's weights hold its source's classifier, what that says of them (Hinton et al.
  2015): with the logits z of the teacher and s of the student's own classifier, and a temperature
  T, T^2 KL(softmax(z / T) || softmax(s / T)).

The teacher is frozen, so it sees each view once and its codes are cached. Both see the same part of
the image at the same moment, each at its own size, as Beyer et al. 2022 ("Knowledge distillation: A
good teacher is patient and consistent") found to matter. As they advise, be patient: more epochs
and more views go on helping for long.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import PlanError, UsageError
from topwork.learn.loop import Epoch, Inputs
from topwork.learn.objective import Scale
from topwork.learn.samples import CachedInputs, Samples
from topwork.network.chain import Chain
from topwork.network.codes import pool_module, source_pool
from topwork.network.cut import segment
from topwork.network.loading import Loaded
from topwork.network.model import code_width
from topwork.network.state import read_state
from topwork.network.weights import match_names
from topwork.phase import Phase
from topwork.plan import Augment, Plan
from topwork.pretraining.hints import Hint, HintReader, by_cell, hints_between
from topwork.pretraining.material import Material, outputs_of
from topwork.pretraining.recipe import Recipe, require_positive, require_share
from topwork.pretraining.stages import Progress, progress_of
from topwork.pretraining.watching import share_found
from topwork.trunk.caching import measure_disk

log = logging.getLogger("topwork")

PAPER = "Hinton et al. 2015; Romero et al. 2015 (codes, hints); Beyer et al. 2022 (same views)"
STAGE = "distillation"
TAUGHT = "what the teacher makes of them"
"""Under this name is kept how its codes are come by."""
SCALED = 10_000
"""Codes, of images or of cells, that tell mean and deviation of the teacher's columns, at most."""

LEAST_DEVIATION = 0.05
"""Of a column, as a share of all columns' root mean square: in units of less, a unit that hardly
ever answers to plain views but does to crops would outweigh all others."""


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """How the student learns.

    Attributes:
        phase: of the student.
        views: of each image, the plain one first, taken in turn from epoch to epoch; the teacher
            runs once on each.
        least_area: share of the image that a view after the first shows at least.
        flip: whether half of those are mirrored, left for right.
        logits: weight of what the teacher's classifier says, beside its codes; 0 for nothing.
        temperature: that both classifiers' logits are divided by.
        hints: weight of what the teacher's lower layers make of parts of the image; 0 for nothing.
            Networks without maps have no hints.
        mix_strength: above 0, images of a batch are mixed with each other and so are their
            teacher's codes (mixup, Zhang et al. 2018), by shares from a Beta distribution of which
            both parameters are this: 1 draws them evenly. Few images are then not learned by heart.
    """

    phase: Phase = field(
        default=Phase(
            epochs=24, batch=128, optimizer="adamw", rate=3e-3, weight_decay=0.02, warmup=1.0,
            clip=1.0,
        )
    )  # fmt: skip
    views: int = 4
    least_area: float = 0.3
    flip: bool = True
    logits: float = 1.0
    temperature: float = 2.0
    hints: float = 10.0
    mix_strength: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "views", "temperature")
        require_share(self, "least_area")
        if min(self.logits, self.hints, self.mix_strength) < 0:
            raise PlanError("recipe: logits, hints and mix_strength are not negative")


@dataclass(frozen=True, eq=False)
class Lessons:
    """Images as the student sees them, and the teacher's codes of the same views.

    Attributes:
        images: what the student takes.
        codes: of the teacher, those of hints the first, those at its L the last.
    """

    images: Inputs
    codes: Inputs

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return pixels [n, C, H, W] and codes, each [n, D], of some images."""
        return (*self.images.batch(rows, epoch), *self.codes.batch(rows, epoch))


class Student(nn.Module):
    """A network that learns a teacher's codes, and its logits where there is a classifier.

    Args:
        layers: one after another they map pixels [n, C, H, W] to the tensor at the student's L.
        pool: makes codes of that, [n, d].
        width: of these, d.
        scale: of the teacher's codes [n, D].
        classifier: the student's own, from the tensor at L to logits; None to learn codes alone.
        head: weight [classes, D] and bias [classes] of the teacher's.
        temperature: T.
        weight: of the logits' part of the loss.
        hints: each reads the map that the layers of the same number give.
        hint_weight: of their part of the loss.
        mix_strength: as in `DistillRecipe`.
    """

    mean: Tensor
    deviation: Tensor
    head_weight: Tensor
    head_bias: Tensor

    def __init__(
        self,
        layers: Sequence[nn.Module],
        pool: nn.Module,
        width: int,
        scale: Scale,
        *,
        classifier: nn.Module | None = None,
        head: tuple[Tensor, Tensor] | None = None,
        temperature: float = 1.0,
        weight: float = 1.0,
        hints: Sequence[HintReader] = (),
        hint_weight: float = 0.0,
        mix_strength: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers, self.pool, self.classifier = nn.ModuleList(layers), pool, classifier
        self.hints = nn.ModuleList(hints)
        self.reader = nn.Linear(width, len(scale.mean))
        self.temperature, self.weight, self.mix_strength = temperature, weight, mix_strength
        self.hint_weight = hint_weight
        self.register_buffer("mean", scale.mean)
        self.register_buffer("deviation", scale.deviation)
        if head:
            self.register_buffer("head_weight", head[0])
            self.register_buffer("head_bias", head[1])

    def forward(self, *given: Tensor) -> Tensor:
        """Return [n, 2]: the loss, and whether both classifiers name the same class.

        Args:
            *given: pixels, normalized for the student, and what the teacher makes of the same
                views: the maps of hints, and last its codes.
        """
        if self.training and self.mix_strength:
            given = mixed(given, self.mix_strength)
        pixels, *maps, codes = given
        values, errors = pixels, []
        for number, part in enumerate(self.layers):
            values = part(values)
            if self.training and number < len(maps):
                errors.append(self.hints[number](values, maps[number]))
        read = self.reader(self.pool(values)).float()
        losses = (read - (codes - self.mean) / self.deviation).square().mean(1)
        if errors:
            losses = losses + self.hint_weight * torch.stack(errors).mean(0)
        agree = torch.zeros_like(losses)
        if self.classifier is not None:
            named = self.classifier(values).float()
            with torch.autocast(codes.device.type, enabled=False):  # so that classes do not tie
                wanted = functional.linear(codes, self.head_weight, self.head_bias)
            losses = losses + self.weight * divergence(named, wanted, self.temperature)
            agree = (named.argmax(1) == wanted.argmax(1)).to(losses.dtype)
        return torch.stack([losses, agree], 1)


def mixed(parts: Sequence[Tensor], strength: float) -> tuple[Tensor, ...]:
    """Return images mixed with others of the batch, and their codes by the same shares.

    What a linear classifier says of mixed codes is the mixture of what it says of each.

    Args:
        parts: pixels [n, C, H, W], codes [n, D].
        strength: both parameters of the Beta distribution that each image's share is drawn from.
    """
    count, device = len(parts[0]), parts[0].device
    shares = torch.distributions.Beta(strength, strength).sample((count,)).to(device)
    others = torch.randperm(count).to(device)
    return tuple(
        torch.lerp(part[others], part, shares.view(-1, *[1] * (part.dim() - 1))) for part in parts
    )


def divergence(given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(wanted / T) || softmax(given / T)) of each row of logits, [n].

    The square keeps the gradient's size about the same at any temperature (Hinton et al. 2015).

    >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 9.0]]), 1.0) > 0.6
    tensor([True])
    """
    ours, theirs = (functional.log_softmax(z / temperature, 1) for z in (given, wanted))
    terms = functional.kl_div(ours, theirs, reduction="none", log_target=True)
    return temperature**2 * terms.sum(1)


def pretrain_distill(material: Material, recipe: DistillRecipe) -> Iterator[Progress | None]:
    """Let the network learn from the material's teacher; yield after every step.

    The loss on held-out images is that of codes and logits alone, whatever the hints.

    Each epoch tells the loss on held-out images, and where there is a classifier, on how large a
    share of these the student names the class that the teacher does, with its 95 % interval.

    Raises:
        UsageError: if there is no teacher.
    """
    if material.teacher is None:
        raise UsageError("--method distill learns from another network; name it with --teacher")
    if material.stages.is_finished(STAGE):
        return
    phase = recipe.phase
    source = material.teacher.loaded
    require_same_shape(material.loaded, source)
    hints = hints_between(material.chain, source.chain) if recipe.hints else []
    log.info("%s", in_words(hints))
    inputs, held_out = lessons_of(material, material.teacher, hints, recipe)
    student = student_of(material, source, inputs.codes, hints, recipe).to(material.device)
    for epoch in material.stages.train(STAGE, student, phase, inputs, held_out):
        if epoch is None:
            yield None
            continue
        named = student.classifier is not None
        found = agreement(epoch, len(material.held_out)) if named else {}
        yield progress_of(epoch, STAGE, phase, found)


def lessons_of(
    material: Material, teacher: Samples, hints: Sequence[Hint], recipe: DistillRecipe
) -> tuple[Lessons, Lessons | None]:
    """Return the lessons on images to learn from, and on those held out, one view of each."""
    crop = material.loaded.backbone.preprocessing.crop
    augment = Augment(recipe.least_area, recipe.flip)
    ours, theirs = (
        replace(material, samples=seeing(samples, crop, augment))
        for samples in (material.samples, teacher)
    )
    images, other_images = ours.inputs(material.chain.cuts[0], recipe.phase.epochs, recipe.views)
    codes, other_codes = taught(theirs, hints, recipe.views)
    if other_images is None or other_codes is None:
        return Lessons(images, codes), None
    return Lessons(images, codes), Lessons(other_images, other_codes)


def require_same_shape(student: Loaded, teacher: Loaded) -> None:
    """Refuse images of other proportions than the teacher's: a crop would show other parts.

    Raises:
        UsageError: naming both.
    """
    (height, width), (rows, columns) = (
        each.backbone.preprocessing.size for each in (student, teacher)
    )
    if height * columns != width * rows:
        raise UsageError(
            f"--size: the student would see {height}x{width} pixels, its teacher {rows}x{columns};"
            " give a size of the same proportions, so that both see the same part of an image"
        )


def in_words(hints: Sequence[Hint]) -> str:
    """Say what is learned of the teacher's lower layers."""
    if not hints:
        return "hints: none"
    pairs = (f"{hint.own.name} from {hint.theirs.name} ({hint.pool})" for hint in hints)
    return f"hints: {', '.join(pairs)}"


def seeing(samples: Samples, crop: float, augment: Augment) -> Samples:
    """Return the same images, their plain views cropped and the others drawn in a given way."""
    loaded = samples.loaded
    preprocessing = replace(loaded.backbone.preprocessing, crop=crop)
    backbone = replace(loaded.backbone, preprocessing=preprocessing)
    plan = replace(loaded.plan, augment=augment)
    return replace(samples, loaded=replace(loaded, backbone=backbone, plan=plan))


def taught(
    material: Material, hints: Sequence[Hint], views: int
) -> tuple[CachedInputs, CachedInputs | None]:
    """Return what the teacher makes of the images to learn from and of those held out.

    Args:
        material: its samples are the teacher's.
        hints: whose maps come first; its codes at L are the last.
        views: of each image to learn from.
    """
    samples, settled = material.samples, material.stages.settled
    depths = [*(hint.theirs.name for hint in hints), samples.loaded.chain.top.name]
    pools = [*(hint.pool for hint in hints), samples.loaded.plan.pool or "flatten"]
    own = samples.side_by_side(depths, pools, material.indices, views, settled.get(TAUGHT))
    settled[TAUGHT] = own.settled
    if own.settled["form"] != "off":
        needed, free = own.extractor.canary.bytes * len(own) * views, measure_disk().space
        log.info("cache: the teacher's side, %.2f GB of %.2f free", needed / 1e9, free / 1e9)
    if not material.held_out:
        return own, None
    return own, samples.side_by_side(depths, pools, material.held_out, 1, own.settled)


def student_of(
    material: Material,
    teacher: Loaded,
    codes: Inputs,
    hints: Sequence[Hint],
    recipe: DistillRecipe,
) -> Student:
    """Return the network as a student; it shares all tensors with it.

    Args:
        material: the network, which has as many outputs as the teacher's classifier.
        teacher: its weights' file is read.
        codes: what the teacher makes of the images.
        hints: whose maps come first in these.
        recipe: how much logits and hints count.
    """
    chain = material.chain
    head = classifier_of(teacher) if recipe.logits else None
    if recipe.logits and head is None:
        log.info("logits: none, as the teacher's weights hold no classifier of its codes")
    pool = material.loaded.plan.pool or "flatten"
    drawn = np.random.default_rng(material.seed).permutation(len(codes))[:SCALED]
    ends = [*(hint.own for hint in hints if hint.own.depth < chain.top.depth), chain.top]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        return Student(
            [segment(chain, a, b) for a, b in pairwise([chain.cuts[0], *ends])],
            pool_module(chain, chain.top, pool),
            code_width(chain, [chain.top.name], pool),
            scale_of(outputs_of(Part(len(hints)), codes, np.sort(drawn).tolist())),
            classifier=segment(chain, chain.top, None) if head else None,
            head=head,
            temperature=recipe.temperature,
            weight=recipe.logits,
            hints=[
                HintReader(hint, scale_of_map(codes, number, hint, drawn))
                for number, hint in enumerate(hints)
            ],
            hint_weight=recipe.hints,
            mix_strength=recipe.mix_strength,
        )


class Part(nn.Module):
    """Gives one of several codes as it is: maps all of them to that of a number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, *codes: Tensor) -> Tensor:
        """Return the codes of the number."""
        return codes[self.number]


def scale_of_map(codes: Inputs, number: int, hint: Hint, drawn: np.ndarray) -> Scale:
    """Return the scale of a map's channels over the cells of some of these images.

    Args:
        codes: what the teacher makes of all images.
        number: of the map among these.
        hint: what it is for.
        drawn: images in random order; the more cells each has, the fewer are taken.
    """
    cells = hint.rows * hint.columns
    rows = np.sort(drawn[: max(SCALED // cells, 1)]).tolist()
    return scale_of(by_cell(outputs_of(Part(number), codes, rows), cells).flatten(0, 1))


def scale_of(columns: Tensor) -> Scale:
    """Return the scale of a teacher's columns [n, d], with deviations that are not too small.

    >>> scale_of(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.001]])).deviation.round(decimals=3)
    tensor([0.0290, 1.0000, 0.0290])
    """
    deviation = columns.std(0, unbiased=False)
    least = LEAST_DEVIATION * float(deviation.square().mean().sqrt())
    return Scale(columns.mean(0), deviation.clamp(min=least or 1.0))


def classifier_of(teacher: Loaded) -> tuple[Tensor, Tensor] | None:
    """Return weight [classes, D] and bias [classes] of the source's classifier, on codes at L.

    Returns:
        None if the weights file holds none, it is no single linear layer, it reads other codes than
        those at L as the plan pools them, or what it says is not the chance of classes.

    Raises:
        WeightsError: if the file cannot be read.
    """
    chain = teacher.chain
    if teacher.weights is None or chain.head is None or teacher.plan.pool != source_pool(chain):
        return None
    fitted = teacher.backbone.fitted
    if fitted and not is_plain_classifier(fitted, chain):
        return None
    state = match_names(read_state(teacher.weights["file"]), chain.network.state_dict()).state
    weight, bias = (state.get(f"{chain.head}.{name}") for name in ("weight", "bias"))
    if weight is None:
        return None
    weight = weight.flatten(1).float()
    return weight, torch.zeros(len(weight)) if bias is None else bias.float()


def is_plain_classifier(fitted: Plan, chain: Chain) -> bool:
    """Say whether a plan's head is a softmax on the codes at L alone, pooled as by default."""
    depths = fitted.codes or (fitted.kept or chain.top.name,)
    reads_top = [chain.resolve(depth) for depth in depths] == [chain.top]
    pooled = fitted.pool in (None, source_pool(chain))
    return fitted.head == "softmax" and not fitted.added and reads_top and pooled


def agreement(epoch: Epoch, count: int) -> dict[str, float]:
    """Return how often student and teacher name the same class, that of so many held-out images."""
    found = {"agreement_in_training": epoch.accuracy}
    if epoch.validation_accuracy is not None:
        found |= share_found("agreement", epoch.validation_accuracy, count)
    return found
