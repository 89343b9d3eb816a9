"""Phases: stretches of training with a fixed frozen depth, as pure data."""

from __future__ import annotations

from dataclasses import dataclass
from sys import float_info

from topwork.errors import PlanError, did_you_mean

OPTIMIZERS = ("sgd", "adamw", "adam", "nadam", "radam", "rmsprop", "adagrad")
BATCH_NORMS = ("auto", "source", "batch")
PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULES = ("cosine", "constant")
MIXES = ("none", "mixup", "cutmix")
BALANCES = ("none", "loss", "sampling")
OF_TRAINING = ("stop", "clip", "label_smoothing", "mix", "balance", "pull", "average")
"""What a phase that solves for the head would pass over without a word, and so refuses."""


def require(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of those allowed.

    Raises:
        PlanError: naming the nearest and all allowed values.
    """
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise PlanError(f"{what} is {value!r}{hint}; known are {', '.join(allowed)}")


@dataclass(frozen=True)
class Stop:
    """When a phase ends before its last epoch.

    Attributes:
        patience: epochs (of a gradual phase: steps) without a better validation score; None for
            no such rule.
        accuracy: a validation accuracy, 0 to 1, that is enough; None for no such rule.
    """

    patience: int | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise PlanError(f"patience is {self.patience}; give 1 epoch or more, or null")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise PlanError(f"accuracy is {self.accuracy}; give a number from 0 to 1, or null")


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    A rule to stop, or a gradual phase, needs a score that is not of the images trained on: part
    of the training images is then held out, and the phase ends with the weights that scored best
    there, those it began with among them. A head that is solved for above layers which a phase
    before it trained needs such images too, to choose its strength. With none of these all images
    are trained on to the last epoch.

    Attributes:
        frozen: the depth up to which nothing is trained; None stands for the plan's ``kept``.
        epochs: passes over the training images. 0 means that only the head is trained, solved
            to its optimum on the cached codes; what weighs, mixes, smooths or stops training then
            has no place.
        stop: when to end earlier.
        gradual: begin at the ``frozen`` of the phase before (all frozen at first) and unfreeze
            step by step down to ``frozen``, `epochs` epochs at each depth, until the validation
            score has not improved for ``stop.patience`` steps (default 2).
        batch: images for each step of the optimizer.
        at_once: images that go through the network together; the gradients of a step's parts
            are summed. None: as many as the device is fast with.
        optimizer: one of `OPTIMIZERS`, as in torch.
        rate: learning rate of new layers; None lets a range test find it.
        reused_rate: learning rate of reused layers, as a fraction of ``rate``.
        depth_decay: factor on the rate of reused layers for each cut point further down.
        momentum: of "sgd" and "rmsprop"; of Adam and its kin the first of the two betas.
        weight_decay: decoupled in "adamw", an L2 penalty elsewhere; none on norms and biases.
        warmup: epochs, possibly a fraction, in which the rate rises linearly from near 0.
        schedule: what the rate does then: "cosine" (falls to 0 along half a cosine) or
            "constant".
        clip: largest norm of a step's gradient; longer ones are shortened. None: no limit.
        label_smoothing: share of the label's weight that is spread over all classes.
        mix: "mixup" (Zhang 2018) or "cutmix" (Yun 2019) of each batch with itself.
        mix_strength: both parameters of the Beta distribution that the shares are drawn from.
        balance: "loss" weighs classes inversely to their number of images, "sampling" draws them
            equally often. Held-out images then count likewise, by the weights of the training
            classes, in the loss that the phase goes by and in the temperature, so that it is
            measured by what it is for; accuracies stay plain shares.
        pull: strength of the pull of reused layers towards their source weights, in place of
            their weight decay (L2-SP, Li 2018). 0: none.
        average: decay per step of a moving average of the weights, which is what is scored and
            kept. 0: no average.
        batch_norm: whether reused batch norms keep the source's statistics ("source"), learn
            the target's ("batch"), or what the amount of data allows ("auto"). New and
            re-initialized ones always learn the target's.
        precision: of products and convolutions in training: "float32", "bfloat16" (on processors
            with instructions for it large batches are much faster so; on others far slower), or
            "auto": bfloat16 on a GPU that computes in it, else float32. Weights are float32.
    """

    frozen: str | None = None
    epochs: int = 0
    stop: Stop | None = None
    gradual: bool = False
    batch: int = 32
    at_once: int | None = None
    optimizer: str = "adamw"
    rate: float | None = None
    reused_rate: float = 0.1
    depth_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.0
    schedule: str = "cosine"
    clip: float | None = None
    label_smoothing: float = 0.0
    mix: str = "none"
    mix_strength: float = 0.2
    balance: str = "none"
    pull: float = 0.0
    average: float = 0.0
    batch_norm: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("mix", MIXES),
            ("balance", BALANCES),
            ("batch_norm", BATCH_NORMS),
            ("precision", PRECISIONS),
        ):
            require(name, getattr(self, name), allowed)
        legal = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch": (self.batch >= 1, "1 or more"),
            "at_once": (self.at_once is None or self.at_once >= 1, "1 or more, or null"),
            "rate": (
                self.rate is None or 0 < self.rate <= float_info.max,
                "a finite number above 0, or null",
            ),
            "reused_rate": (0 <= self.reused_rate <= float_info.max, "a finite number, 0 or more"),
            "depth_decay": (0 < self.depth_decay <= 1, "a number above 0, up to 1"),
            "momentum": (0 <= self.momentum < 1, "a number from 0 to below 1"),
            "weight_decay": (
                0 <= self.weight_decay <= float_info.max,
                "a finite number, 0 or more",
            ),
            "warmup": (0 <= self.warmup <= self.epochs, "0 to at most epochs"),
            "clip": (
                self.clip is None or 0 < self.clip <= float_info.max,
                "a number above 0, or null",
            ),
            "label_smoothing": (0 <= self.label_smoothing < 1, "a number from 0 to below 1"),
            "mix_strength": (0 < self.mix_strength <= float_info.max, "a number above 0"),
            "pull": (0 <= self.pull <= float_info.max, "a finite number, 0 or more"),
            "average": (0 <= self.average < 1, "a number from 0 to below 1"),
        }
        for name, (fits, what) in legal.items():
            if not fits:
                raise PlanError(f"{name} is {getattr(self, name)}; give {what}")
        if self.gradual and self.epochs == 0:
            raise PlanError("a gradual phase trains at each depth; give epochs, 1 or more")
        if self.epochs == 0:
            given = [n for n in OF_TRAINING if getattr(self, n) != getattr(type(self), n)]
            if given:
                raise PlanError(
                    f"a phase of 0 epochs solves for the head; leave out its {' and '.join(given)},"
                    " or give it epochs to train"
                )

    @property
    def chooses(self) -> bool:
        """Whether the phase goes by a validation score."""
        return self.gradual or self.stop is not None

    def describe(self, number: int, kept: str) -> str:
        """Say in words what the phase does.

        >>> Phase(frozen="layer2", epochs=3, rate=0.01).describe(2, "layer4")
        'Phase 2: everything up to layer2 is frozen; the rest is trained for 3 epochs by adamw at \
rate 0.01, reused layers at 0.1 of it.'
        """
        frozen = self.frozen or kept
        nothing = frozen in ("0", "input")
        if self.gradual:
            lowest = "nothing is frozen" if nothing else f"only {frozen} is frozen"
            text = f"Phase {number}: unfreezing step by step, at the most until {lowest}"
            trained = f"{self.epochs} epochs at each depth"
        else:
            state = "nothing is frozen" if nothing else f"everything up to {frozen} is frozen"
            text = f"Phase {number}: {state}"
            trained = f"the rest is trained for {self.epochs} epochs"
        if self.epochs == 0:
            return f"{text}; the head alone is solved for."
        rate = "a rate found by a range test" if self.rate is None else f"rate {self.rate:g}"
        text += f"; {trained} by {self.optimizer} at {rate}"
        if self.reused_rate != 1:
            text += f", reused layers at {self.reused_rate:g} of it"
        if self.depth_decay != 1:
            text += f", lower ones at {self.depth_decay:g} for each cut point further down"
        if self.chooses:
            text += "; the weights that score best on held-out images are kept"
        return text + "."
