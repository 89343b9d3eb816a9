"""``topwork pretrain``: lower layers made without labels, with other labels, or from a teacher."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from topwork.cli_parts import (
    BACKBONE,
    Cache,
    Data,
    Decoding,
    Device,
    Json,
    Runtime,
    Seed,
    Size,
    WeightsFile,
    import_verbs,
    track,
)
from topwork.report.pretraining_words import print_pretraining
from topwork.report.terminal import print_json

METHODS = "rbm, autoencoder, gan, masked, contrastive, rotation, supervised or distill."


def pretrain(
    data: Data,
    out: Annotated[Path, typer.Option(help="The backbone folder to make.")],
    method: Annotated[str, typer.Option(help=METHODS)],
    backbone: Annotated[
        str, typer.Option("--backbone", help=f"The architecture to train: {BACKBONE}")
    ],
    weights: WeightsFile = None,
    teacher: Annotated[
        str | None, typer.Option(help="The pretrained network to distill: a name or a folder.")
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option(help="Its weights, instead of those published for it.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A JSON file with changes to the method's recipe."),
    ] = None,
    size: Size = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images in each stage.", min=1)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Write the weights in half precision: half the size.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same where it was interrupted.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    runtime: Runtime = "auto",
    decoding: Decoding = "fast",
    cache: Cache = "auto",
    as_json: Json = False,
) -> None:
    """Make a backbone from the training images of DATA; labels are mostly not needed.

    It starts from random weights, unless --weights, or a folder or topwork:rootstock as --backbone
    gives others. DATA may also be any folder or zip of images. `fit --backbone OUT` takes what is
    made.
    """
    record = import_verbs("making").pretrain(
        data,
        out,
        method=method,
        backbone=backbone,
        weights=weights,
        teacher=teacher,
        teacher_weights=teacher_weights,
        recipe=recipe,
        size=(size, size) if size else None,
        epochs=epochs,
        rate=rate,
        half=half,
        seed=seed,
        device=device,
        runtime=runtime,
        decoding=decoding,
        cache=cache,
        resume=resume,
        track=track,
    )
    if as_json:
        print_json(record)
        return
    print_pretraining(record)
    print(f"next: topwork fit DATA --backbone {shlex.quote(str(out))} --out RUN")
