"""The plan: every way of reusing pretrained layers as one value.

Three depths on the network's axis, what is added above, and a list of phases:

    0 <= frozen <= reused <= kept <= L

A plan is plain data. It says what to do and holds nothing of how: it prints, saves to JSON,
loads, compares, and tells in words what it does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from sys import float_info
from types import NoneType, UnionType
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from topwork.errors import ChainError, PlanError, did_you_mean

VERSION = 1
HEADS_IN_WORDS = {
    "softmax": "a softmax classifier",
    "svm": "a linear SVM",
    "ridge": "a ridge classifier",
    "sigmoid": "a sigmoid for each label",
    "regression": "a linear regression",
}
HEADS = tuple(HEADS_IN_WORDS)
POOLS = ("avg", "token", "token+avg", "flatten")
OPTIMIZERS = ("sgd", "adamw")
BATCH_NORMS = ("auto", "source", "batch")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
NORMS = ("none", "batch", "layer")


def require(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of those allowed.

    Raises:
        PlanError: naming the nearest and all allowed values.
    """
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise PlanError(f"{what} is {value!r}{hint}; known are {', '.join(allowed)}")


class Depth(Protocol):
    """A point on the depth axis, as a chain's cut points are."""

    @property
    def name(self) -> str:
        """The path of the module that ends there."""

    @property
    def depth(self) -> int:
        """The position, 0 for the input."""


class Axis(Protocol):
    """A network's depth axis, as a chain is one."""

    @property
    def top(self) -> Depth:
        """The deepest point, L."""

    def resolve(self, depth: str | int) -> Depth:
        """Find a point by name or number; raise `ChainError` where there is none."""


@dataclass(frozen=True)
class Stop:
    """When a phase ends before its last epoch.

    Attributes:
        patience: epochs without a better validation score; None for no such rule.
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
    """One stretch of training with a fixed frozen depth.

    Attributes:
        frozen: the depth up to which nothing is trained; None stands for the plan's ``kept``.
        epochs: passes over the training images. 0 means that only the head is trained, solved
            to its optimum on the cached codes.
        stop: when to end earlier.
        optimizer: one of `OPTIMIZERS`.
        rate: learning rate of new layers; None lets a range test find it.
        reused_rate: learning rate of reused layers, as a fraction of ``rate``.
        depth_decay: factor on the rate for each cut point further down.
        batch_norm: whether reused batch norms keep the source's statistics ("source"), learn
            the target's ("batch"), or what the amount of data allows ("auto").
    """

    frozen: str | None = None
    epochs: int = 0
    stop: Stop | None = None
    optimizer: str = "adamw"
    rate: float | None = None
    reused_rate: float = 0.1
    depth_decay: float = 1.0
    batch_norm: str = "auto"

    def __post_init__(self) -> None:
        require("optimizer", self.optimizer, OPTIMIZERS)
        require("batch_norm", self.batch_norm, BATCH_NORMS)
        if self.epochs < 0:
            raise PlanError(f"epochs is {self.epochs}; give 0 or more")
        if self.rate is not None and not 0 < self.rate <= float_info.max:
            raise PlanError(f"rate is {self.rate}; give a finite number above 0, or null")
        if not 0 <= self.reused_rate <= float_info.max:
            raise PlanError(f"reused_rate is {self.reused_rate}; give a finite number, 0 or more")
        if not 0 < self.depth_decay <= 1:
            raise PlanError(f"depth_decay is {self.depth_decay}; give a number above 0, up to 1")


@dataclass(frozen=True)
class Hidden:
    """One added hidden layer: linear, norm, activation, dropout."""

    width: int
    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require("activation", self.activation, ACTIVATIONS)
        require("norm", self.norm, NORMS)
        if self.width < 1 or not 0 <= self.dropout < 1:
            raise PlanError(
                f"{self} makes no layer; width is at least 1, dropout from 0 to below 1"
            )


@dataclass(frozen=True)
class Plan:
    """What to keep, reuse, freeze and add, and how to train it.

    Depths are names of cut points, as ``topwork inspect`` prints them; None takes the default,
    and a plan that has been settled on a network holds no None where a depth belongs.

    Attributes:
        backbone: the pretrained network, by name or folder.
        kept: layers above are dropped. Default: L.
        reused: layers up to here start from pretrained weights. Default: ``kept``.
        codes: the depths that the head reads, side by side; settling sorts them by depth, each
            once. Default: ``kept`` alone.
        pool: how a code becomes a vector, one of `POOLS`. Default: as the source's own head.
        added: hidden layers between the codes and the head.
        head: one of `HEADS`.
        input_size: height and width in pixels. Default: the backbone's own.
        views: renderings of each training image; 1 is the plain one alone.
        phases: what is trained, in order.
        frozen_random: allow layers to be frozen that are not reused: the control experiment in
            which the features are random.
    """

    backbone: str
    kept: str | None = None
    reused: str | None = None
    codes: tuple[str, ...] = ()
    pool: str | None = None
    added: tuple[Hidden, ...] = ()
    head: str = "softmax"
    input_size: tuple[int, int] | None = None
    views: int = 1
    phases: tuple[Phase, ...] = field(default=(Phase(),))
    frozen_random: bool = False

    def __post_init__(self) -> None:
        if not self.backbone:
            raise PlanError("backbone is empty; give a network's name or folder")
        require("head", self.head, HEADS)
        if self.pool is not None:
            require("pool", self.pool, POOLS)
        if not self.phases:
            raise PlanError("a plan needs at least one phase; give phases=[{}] to train the head")
        if self.views < 1:
            raise PlanError(f"views is {self.views}; give 1 (the plain image alone) or more")
        if self.input_size is not None and min(self.input_size) < 1:
            raise PlanError(f"input_size is {self.input_size}; give height and width in pixels")

    def settle(self, axis: Axis) -> Plan:
        """Fill in the defaults on a network's axis, and refuse what makes no sense there.

        Raises:
            PlanError: for an unknown depth or depths in the wrong order; the message says what
                would be right.
        """

        def find(what: str, depth: str | None, default: Depth) -> Depth:
            if depth is None:
                return default
            try:
                return axis.resolve(depth)
            except ChainError as error:
                raise PlanError(f"{what}: {error}") from error

        kept = find("kept", self.kept, axis.top)
        reused = find("reused", self.reused, kept)
        named = [find("codes", depth, kept) for depth in self.codes or (kept.name,)]
        # One cut point has several names: "layer3" is "layer3.2", and a number.
        codes = [code for _, code in sorted({code.depth: code for code in named}.items())]
        frozen = [find("frozen", phase.frozen, kept) for phase in self.phases]
        if kept.depth == 0:
            raise PlanError("kept is the input: that keeps no layer; the lowest is depth 1")
        if reused.depth > kept.depth:
            raise PlanError(
                f"reused ({reused.name}) lies above kept ({kept.name}): layers that are dropped"
                f" cannot be reused; give --reused {kept.name} or lower"
            )
        for above in (code for code in codes if code.depth > kept.depth):
            raise PlanError(f"codes at {above.name} lie above kept ({kept.name})")
        for depth in frozen:
            if depth.depth > kept.depth:
                raise PlanError(
                    f"frozen ({depth.name}) lies above kept ({kept.name}); the highest possible"
                    f" is {kept.name}"
                )
            if depth.depth > reused.depth and not self.frozen_random:
                raise PlanError(
                    f"frozen ({depth.name}) lies above reused ({reused.name}): layers with random"
                    f" weights would be frozen; freeze up to {reused.name}, or ask for that control"
                    ' by name with "frozen_random": true in a plan file'
                )
        return replace(
            self,
            kept=kept.name,
            reused=reused.name,
            codes=tuple(code.name for code in codes),
            phases=tuple(
                replace(phase, frozen=depth.name)
                for phase, depth in zip(self.phases, frozen, strict=True)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON-able data, its version first."""
        return {"version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """Read a plan from plain data.

        Raises:
            PlanError: for an unknown key (with the nearest known), a missing one, or a value of
                the wrong kind.

        >>> plan = Plan("timm:resnet18", kept="layer3", head="svm")
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
        """
        if not isinstance(data, Mapping):
            raise PlanError(f"a plan is a JSON object, not {data!r}")
        version = data.get("version")
        if version != VERSION or isinstance(version, bool):
            raise PlanError(f'a plan file says "version": {VERSION}, this one says {version!r}')
        values = {key: value for key, value in data.items() if key != "version"}
        plan: Plan = read(Plan, values, "plan")
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from a JSON file.

        Raises:
            PlanError: if the file is absent, no JSON, or no plan.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read plan {path}: {error.strerror}; check the path") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(
                f"plan {path} is no JSON ({error}); correct it, or save one with Plan.save"
            ) from error
        try:
            return Plan.from_dict(data)
        except PlanError as error:
            raise PlanError(f"plan {path}: {error}") from error

    def describe(self) -> str:
        """Say in plain words what the plan does, one sentence a line.

        >>> print(Plan("timm:resnet18", kept="layer3", pool="avg").describe())
        Keep the layers of timm:resnet18 up to layer3, drop those above.
        They start from pretrained weights.
        The head is a softmax classifier on the codes of layer3, pooled by avg.
        Phase 1: everything up to layer3 is frozen; the head alone is solved for.
        """
        kept = self.kept or "L, the input of its last linear layer"
        lines = [f"Keep the layers of {self.backbone} up to {kept}, drop those above."]
        if self.reused in (None, self.kept):
            lines.append("They start from pretrained weights.")
        elif self.reused in ("0", "input"):
            lines.append("They start from random weights: only the architecture is reused.")
        else:
            lines.append(
                f"Those up to {self.reused} start from pretrained weights, the others from random"
                " ones."
            )
        codes = " and ".join(self.codes) or self.kept or "L"
        pool = f"pooled by {self.pool}" if self.pool else "pooled as the source's own head does"
        head = HEADS_IN_WORDS[self.head]
        lines.append(f"The head is {head} on the codes of {codes}, {pool}.")
        if self.added:
            widths = ", ".join(str(layer.width) for layer in self.added)
            lines.append(f"Hidden layers are added below it, of width {widths}.")
        if self.input_size:
            lines.append(f"Images are seen at {self.input_size[0]}x{self.input_size[1]} pixels.")
        if self.views > 1:
            lines.append(f"Each training image is seen in {self.views} views.")
        lines += [self.describe_phase(number) for number in range(1, len(self.phases) + 1)]
        return "\n".join(lines)

    def describe_phase(self, number: int) -> str:
        """Say in words what one phase does; phases are counted from 1."""
        phase = self.phases[number - 1]
        frozen = phase.frozen or self.kept or "L"
        if frozen in ("0", "input"):
            text = f"Phase {number}: nothing is frozen"
        else:
            text = f"Phase {number}: everything up to {frozen} is frozen"
        if phase.epochs == 0:
            return f"{text}; the head alone is solved for."
        rate = "a rate found by a range test" if phase.rate is None else f"rate {phase.rate:g}"
        text += f"; the rest is trained for {phase.epochs} epochs by {phase.optimizer} at {rate}"
        if phase.reused_rate != 1:
            text += f", reused layers at {phase.reused_rate:g} of it"
        return text + "."


KINDS_IN_WORDS: dict[Any, str] = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def in_words(kind: Any) -> str:
    """Name the JSON values that fit an annotation."""
    inner = get_args(kind)
    if get_origin(kind) is UnionType:
        return " or ".join(in_words(part) for part in inner)
    if get_origin(kind) is tuple:
        return "a list" if inner[-1] is ... else f"a list of {len(inner)}"
    return KINDS_IN_WORDS.get(kind, "an object with named values")


def read(kind: Any, value: Any, where: str) -> Any:
    """Make a value of an annotated kind from plain data, strictly.

    Args:
        kind: `Plan`, or what a field of it or of its parts is annotated with.
        value: what JSON holds.
        where: what the value is called in messages.

    Raises:
        PlanError: for an unknown or missing key or a value of the wrong kind.
    """
    part, *null = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if null and value is None:
        return None
    inner = get_args(part)
    if is_dataclass(part):
        fits = isinstance(value, Mapping)
    elif inner:
        fits = isinstance(value, (list, tuple)) and (... in inner or len(value) == len(inner))
    else:
        fits = isinstance(value, (int, float) if part is float else part)
        fits = fits and isinstance(value, bool) == (part is bool)  # to Python, true is an int
    if not fits:
        raise PlanError(f"{where} is {value!r}; it must be {in_words(kind)}")
    if is_dataclass(part):
        return read_object(part, value)
    if inner:
        items = enumerate(value, start=1)
        return tuple(read(inner[0], item, f"item {n} of {where}") for n, item in items)
    return value


def read_object(kind: Any, data: Mapping[str, Any]) -> Any:
    """Make a `Plan` or one of its parts from names and values, as `read` does."""
    what = "hidden layer" if kind is Hidden else kind.__name__.lower()
    kinds = get_type_hints(kind)
    for key in data:
        if key not in kinds:
            hint = did_you_mean(key, kinds)
            raise PlanError(f"unknown key {key!r} in {what}{hint}; known are {', '.join(kinds)}")
    for part in fields(kind):
        if part.name not in data and part.default is MISSING and part.default_factory is MISSING:
            raise PlanError(f"incomplete {what}: {part.name} is missing; add it")
    return kind(**{key: read(kinds[key], data[key], f"{key} in {what}") for key in data})


def named_plan(
    name: str,
    backbone: str,
    *,
    kept: str | None = None,
    reused: str | None = None,
    frozen: tuple[str, ...] = (),
    head: str = "softmax",
) -> Plan:
    """Return the plan that people call by a name.

    Args:
        name: "features" (a fixed feature extractor), "warmup" (the head first, then all at a
            small rate), "partial" (the head, then step by step lower), "finetune", "scratch".
        backbone: the network.
        kept: as in `Plan`.
        reused: as in `Plan`.
        frozen: depths to freeze up to, phase by phase, instead of the name's own.
        head: as in `Plan`.

    Raises:
        PlanError: for an unknown name.

    >>> named_plan("warmup", "timm:resnet18").phases[1].frozen
    'input'
    """
    trained = Phase(frozen="input", epochs=30, stop=Stop(patience=5))
    phases = {
        "features": (Phase(),),
        "warmup": (Phase(), trained),
        "partial": (Phase(), trained),
        "finetune": (trained,),
        "scratch": (replace(trained, reused_rate=1.0),),
    }
    if name not in phases:
        hint = did_you_mean(name, phases)
        raise PlanError(f"no plan is named {name!r}{hint}; known are auto, {', '.join(phases)}")
    chosen = phases[name]
    if frozen and name == "features":
        chosen = tuple(Phase(frozen=depth) for depth in frozen)
    elif frozen:
        chosen = (*chosen[:-1], *(replace(chosen[-1], frozen=depth) for depth in frozen))
    return Plan(
        backbone=backbone,
        kept=kept,
        reused="input" if name == "scratch" else reused,
        head=head,
        phases=chosen,
    )
