"""``topwork profile``, ``advise`` and ``report``: the evidence, and what follows from it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from topwork.cli_parts import (
    BACKBONE,
    NONE_NAMED,
    Cache,
    Data,
    Decoding,
    Device,
    Json,
    Kept,
    Runtime,
    Seed,
    Size,
    Strict,
    Verify,
    WeightsFile,
    first_free,
    import_verbs,
    parse_seconds,
    track,
)
from topwork.errors import UsageError
from topwork.report.advice_terminal import print_advice, print_profile
from topwork.report.terminal import print_json

PICTURES = (".png", ".svg")

Backbones = Annotated[
    list[str] | None,
    typer.Option("--backbone", help=f"{BACKBONE} May be given several times. {NONE_NAMED}"),
]
Head = Annotated[
    str | None, typer.Option(help="For classes softmax, for labels sigmoid, or regression.")
]


def profile(
    data: Data,
    backbone: Backbones = None,
    weights: WeightsFile = None,
    kept: Kept = None,
    head: Head = None,
    size: Size = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture to make, .png or .svg; without it profile.png, with --json none."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    runtime: Runtime = "auto",
    decoding: Decoding = "fast",
    cache: Cache = "auto",
    verify: Verify = "once",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Measure at every depth how well a linear head tells the classes of DATA apart, in one pass.

    The test part of DATA is not looked at.
    """
    picture = file_to_make(out, "profile.png", PICTURES, as_json)
    result = import_verbs("advising").profile(
        data,
        backbone=one_or_all(backbone),
        weights=weights,
        kept=kept,
        head=head,
        size=(size, size) if size else None,
        seed=seed,
        device=device,
        runtime=runtime,
        decoding=decoding,
        cache=cache,
        verify=verify,
        strict=strict,
        track=track,
    )
    if picture:
        from topwork.report.profile_picture import draw_profile

        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_profile(result.get("profiles", [result]), picture)
    if as_json:
        print_json({**result, "picture": str(picture) if picture else None})
        return
    print_profile(result)
    print(f"picture: {picture}")
    name = result.get("recommended") or (backbone[0] if backbone else None)
    again = chosen_options(backbone=name, weights=weights, kept=kept, head=head, size=size)
    print(f"next: topwork advise {shlex.quote(str(data))}{again}")


def advise(
    data: Data,
    backbone: Backbones = None,
    weights: WeightsFile = None,
    kept: Kept = None,
    head: Head = None,
    size: Size = None,
    time_budget: Annotated[
        str | None, typer.Option(help="For measuring and trying plans: 90s, 5m or 2h.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare only this plan, such as 'fine-tune all'; may be given several times. A"
            " wrong name lists them."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file for the recommended plan, .json; without it plan.json, with --json none."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    runtime: Runtime = "auto",
    decoding: Decoding = "fast",
    cache: Cache = "auto",
    verify: Verify = "once",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Compare ways of reusing a network on the training part of DATA, and recommend a plan."""
    plan = file_to_make(out, "plan.json", (".json",), as_json)
    budget = {"time_budget": parse_seconds(time_budget, "--time-budget")} if time_budget else {}
    result = import_verbs("advising").advise(
        data,
        backbone=one_or_all(backbone),
        weights=weights,
        kept=kept,
        head=head,
        size=(size, size) if size else None,
        **budget,
        candidates=tuple(candidate or ()),
        seed=seed,
        device=device,
        runtime=runtime,
        decoding=decoding,
        cache=cache,
        verify=verify,
        strict=strict,
        track=track,
    )
    if plan:
        from topwork.report.record import write_json

        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, result["recommended"])
    if as_json:
        print_json({**result, "plan": str(plan) if plan else None})
        return
    print_advice(result)
    print(f"plan: {plan}")
    with_weights = chosen_options(weights=weights)
    path = shlex.quote(str(plan))
    print(f"next: topwork fit {shlex.quote(str(data))} --plan {path}{with_weights} --out RUN")


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Write the report of a run anew: a page, and the same as Markdown."""
    written = import_verbs().report(run)
    if as_json:
        print_json(written)
        return
    print("\n".join(f"wrote {path}" for path in written["files"]))


def one_or_all(names: list[str] | None) -> str | tuple[str, ...] | None:
    """Return the one name as it is, several as a tuple, none as None."""
    if not names:
        return None
    return names[0] if len(names) == 1 else tuple(names)


def chosen_options(**options: Any) -> str:
    """Write the options that were given, to be given again.

    >>> chosen_options(backbone="timm:resnet18", kept=None, size=128)
    ' --backbone timm:resnet18 --size 128'
    """
    given = {name: value for name, value in options.items() if value is not None}
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items())


def file_to_make(
    out: Path | None, default: str, suffixes: tuple[str, ...], as_json: bool
) -> Path | None:
    """Return the file that will be written; none that is there already is ever overwritten.

    Args:
        out: what the user asked for; without it the default is numbered until it is free.
        default: a file name.
        suffixes: that the file may have.
        as_json: then only a file that was asked for is written.

    Raises:
        UsageError: if it cannot be made; better now than after minutes.
    """
    if out is None:
        if as_json:
            return None
        out = first_free(Path(default))
    if out.suffix.lower() not in suffixes:
        raise UsageError(f"--out {out} must end in {' or '.join(suffixes)}")
    if out.exists():
        raise UsageError(f"--out {out} exists already; choose another name, or remove it first")
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir():
        raise UsageError(f"--out {out} cannot be made: {above} is a file; choose another name")
    if not os.access(above, os.W_OK):
        raise UsageError(
            f"--out {out} cannot be made: no permission to write in {above}; choose another place"
        )
    return out
