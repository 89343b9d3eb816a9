"""The plan: every way of reusing pretrained layers as one value.

Three depths on the network's axis, what is added above, and a list of phases:

    0 <= frozen <= reused <= kept <= L

A plan is plain data. It says what to do and holds nothing of how: it prints, saves to JSON,
loads, compares, and tells in words what it does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from topwork.errors import ChainError, PlanError
from topwork.phase import Phase, require
from topwork.plain import read

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
ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
NORMS = ("none", "batch", "layer")


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
class Hidden:
    """One added hidden layer: linear, norm, activation, dropout."""

    IN_WORDS: ClassVar[str] = "hidden layer"

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
class Augment:
    """How the views of a training image differ from the plain one.

    Attributes:
        least_area: share of the image that a view shows, drawn between this and 1.
        flip: mirror every other view, left to right.
    """

    least_area: float = 0.5
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.least_area <= 1:
            raise PlanError(f"least_area is {self.least_area}; give a share above 0, up to 1")


@dataclass(frozen=True)
class Plan:
    """What to keep, reuse, freeze and add, and how to train it.

    Depths are names of cut points, as ``topwork inspect`` prints them; None takes the default,
    and a plan that has been settled on a network holds no None where a depth belongs.

    Attributes:
        backbone: the pretrained network, by name or folder.
        kept: layers above are dropped. Default: L, or where ``reused`` is not named either and the
            backbone's weights are known to end lower, as far up as these reach.
        reused: layers up to here start from pretrained weights. Default: ``kept``.
        codes: the depths that the head reads, side by side; settling sorts them by depth, each
            once. Default: ``kept`` alone.
        pool: how a code becomes a vector, one of `POOLS`. Default: as the source's own head.
        added: hidden layers between the codes and the head.
        head: one of `HEADS`.
        input_size: height and width in pixels. Default: the backbone's own.
        channels: of the images that the network takes: 1 for gray, 4 and more for further bands.
            Default: the backbone's own, 3.
        views: renderings of each training image, taken in turn from epoch to epoch; 1 is the
            plain one alone.
        augment: how the views after the first are drawn.
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
    channels: int | None = None
    views: int = 1
    augment: Augment = field(default=Augment())
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
        if self.channels is not None and self.channels < 1:
            raise PlanError(f"channels is {self.channels}; give 1 (gray) or more, or null")
        size = self.input_size
        if size is not None and not (isinstance(size, tuple) and len(size) == 2 and min(size) > 0):
            raise PlanError(f"input_size is {size}; give height and width in pixels")

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
            raise PlanError(
                f"codes at {above.name} lie above kept ({kept.name}); keep more, or take lower ones"
            )
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
        if self.channels:
            lines.append(f"Images have {self.channels} channels.")
        lines += [phase.describe(n, self.kept or "L") for n, phase in enumerate(self.phases, 1)]
        return "\n".join(lines)
