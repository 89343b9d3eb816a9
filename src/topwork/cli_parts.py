"""What the commands share: options, the import of the verbs, the progress bar, durations."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from types import ModuleType
from typing import Annotated, TypeVar

import typer

from topwork.errors import UsageError
from topwork.network.shipped import SHIPPED
from topwork.report.terminal import err_console

Part = TypeVar("Part")

BACKBONE = "timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, topwork:NAME, or a folder."

NONE_NAMED = f"Default: {SHIPPED}, which comes with topwork."

Data = Annotated[Path, typer.Argument(help="Folder, .zip, .npz, .csv, .tsv or .parquet.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, typer.Option(help="Seed of folds, draws and random weights.", min=0)]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Runtime = Annotated[
    str,
    typer.Option(
        help="What runs frozen layers: auto, eager, compile, onnxruntime, openvino, or half (half"
        " precision, CUDA only)."
    ),
]
Decoding = Annotated[
    str,
    typer.Option(help="How images are decoded for frozen layers: fast, or exact as Pillow does."),
]
Cache = Annotated[
    str, typer.Option(help="Outputs of frozen layers are kept as: auto, float32, float16, off.")
]
Verify = Annotated[
    str, typer.Option(help="Check what the cache holds: once in a process, or always.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Bad images are an error.")]
BackboneName = Annotated[str | None, typer.Option("--backbone", help=f"{BACKBONE} {NONE_NAMED}")]
WeightsFile = Annotated[
    Path | None,
    typer.Option(help="The backbone's weights: .safetensors, .pth, .pt, .th, .ckpt or .bin."),
]
Kept = Annotated[str | None, typer.Option(help="Drop layers above this depth.")]
Size = Annotated[
    int | None, typer.Option(help="Height and width that the network sees, in pixels.", min=1)
]

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def import_verbs(module: str = "api") -> ModuleType:
    """Import verbs from their module, and with them torch and timm.

    Their hundreds of thousands of objects all stay; looking for garbage among them meanwhile takes
    a tenth of the time.
    """
    gc.disable()
    try:
        return importlib.import_module(f"topwork.{module}")
    finally:
        gc.enable()


def track(sequence: Sequence[Part], description: str) -> Iterable[Part]:
    """Show a progress bar on stderr, where that is a terminal."""
    if not err_console.is_terminal or len(sequence) < 2:
        yield from sequence
        return
    from rich.progress import track as rich_track

    yield from rich_track(sequence, description, console=err_console, transient=True)


def first_free(path: Path) -> Path:
    """Return a path, or where something is there already the first of those numbered from 2 on."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(free for free in chain([path], numbered) if not free.exists())


def parse_seconds(text: str, option: str) -> float:
    """Return the seconds of a duration such as 90s, 5m or 2h.

    Args:
        text: what the user wrote.
        option: where, for the message.

    Raises:
        UsageError: if it is no duration, or none at all.

    >>> parse_seconds("5m", "--time-budget"), parse_seconds("1.5h", "--time-budget")
    (300.0, 5400.0)
    """
    try:
        seconds = float(text[:-1]) * UNITS[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{option} {text!r} is no duration; write it like 90s, 5m or 2h")
    return seconds
