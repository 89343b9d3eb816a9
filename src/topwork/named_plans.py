"""The plans that people call by a name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from topwork.errors import PlanError, did_you_mean
from topwork.phase import Phase, Stop
from topwork.plan import Plan


def named_plan(
    name: str,
    backbone: str,
    *,
    kept: str | None = None,
    reused: str | None = None,
    frozen: tuple[str, ...] = (),
    head: str = "softmax",
    epochs: int | None = None,
    rate: float | None = None,
    views: int = 1,
    input_size: tuple[int, int] | None = None,
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
        epochs: of each phase that trains by gradient descent, instead of the name's own.
        rate: likewise.
        views: as in `Plan`.
        input_size: as in `Plan`.

    Raises:
        PlanError: for an unknown name.

    >>> named_plan("warmup", "timm:resnet18").phases[1].frozen
    'input'
    """
    # After a head that was solved to its optimum, smoothing leaves the layers below something to
    # learn; without it, or at a third of the rate, fine-tuning hardly moved (docs/log.md).
    trained = Phase(
        frozen="input", epochs=20, batch=16, stop=Stop(), rate=3e-3, warmup=1, label_smoothing=0.1
    )
    if head in ("sigmoid", "regression"):
        trained = replace(trained, label_smoothing=0.0)
    phases = {
        "features": (Phase(),),
        "warmup": (Phase(), trained),
        "partial": (Phase(), replace(trained, gradual=True, epochs=3, stop=Stop(2))),
        "finetune": (trained,),
        "scratch": (replace(trained, epochs=40, reused_rate=1.0),),
    }
    if name not in phases:
        hint = did_you_mean(name, phases)
        raise PlanError(f"no plan is named {name!r}{hint}; known are auto, {', '.join(phases)}")
    chosen = phases[name]
    given = {"epochs": epochs, "rate": rate}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if changes and not any(phase.epochs for phase in chosen):
        raise PlanError(f"plan {name} trains no layers; leave out --epochs and --rate")
    if reused and name == "scratch":
        raise PlanError("plan scratch reuses no layers; leave out --reused")
    if frozen and name == "features":
        chosen = tuple(Phase(frozen=depth) for depth in frozen)
    elif frozen:
        chosen = (*chosen[:-1], *(replace(chosen[-1], frozen=depth) for depth in frozen))
    chosen = tuple(replace(p, **changes) if p.epochs else p for p in chosen)
    return Plan(
        backbone=backbone,
        kept=kept,
        reused="input" if name == "scratch" else reused,
        head=head,
        views=views,
        input_size=input_size,
        phases=chosen,
    )
