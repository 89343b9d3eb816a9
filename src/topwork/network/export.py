"""Giving a model to other programs. What is written here is never read back by topwork."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from topwork.errors import ModelError, UsageError
from topwork.network.folder import TIMM, WEIGHTS, Opened

SUFFIX = {"onnx": ".onnx", "pt2": ".pt2", "timm": ""}
"""The formats, and how a file of each ends; a timm export is a folder."""


def export_model(opened: Opened, kind: str, out: Path) -> Path:
    """Write a model in another format.

    The exported program takes normalized float32 images [N, C, H, W] of any number and gives
    scores [N, classes]. Class names and preprocessing travel with it: as metadata ``topwork`` in
    ONNX, as the extra file ``topwork.json`` in a .pt2.

    Args:
        opened: the model.
        kind: "onnx", "pt2" (torch.export) or "timm".
        out: file or, for timm, folder to write; must not exist. It is there whole or not at all.

    Raises:
        UsageError: for an unknown format, or if ``out`` exists or cannot be written.
        ModelError: if the model cannot be expressed in the format.
    """
    if kind not in SUFFIX:
        raise UsageError(f"--format {kind!r} is unknown; choose from {', '.join(SUFFIX)}")
    if out.exists():
        raise UsageError(f"{out} exists already; choose another name with --out")
    write = {"onnx": write_onnx, "pt2": write_pt2, "timm": write_timm}[kind]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            written = Path(folder) / out.name
            write(opened, written)
            written.rename(out)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{out} cannot be written: {reason}; choose another --out") from error
    return out


def facts_for(opened: Opened) -> str:
    """Return what a user of the exported program needs to know, as JSON."""
    facts = {"labels": list(opened.labels), "preprocessing": opened.preprocessing.to_dict()}
    return json.dumps(facts)


def exported_program(opened: Opened) -> Any:
    """Return the model as a program of torch.export with a free batch size."""
    # Two images, because a size of one would be taken for a constant.
    view = opened.preprocessing
    example = torch.zeros(2, view.channels, *view.size)
    sizes = {"images": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(opened.model.eval(), (example,), dynamic_shapes=sizes)


def write_onnx(opened: Opened, out: Path) -> None:
    """Write an ONNX file.

    Raises:
        ModelError: if the packages for it are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so less clearly)
    except ImportError as error:
        raise ModelError("ONNX is not installed; pip install 'topwork[onnx]'") from error
    with quiet_exporter():
        program = torch.onnx.export(
            exported_program(opened),
            input_names=["images"],
            output_names=["scores"],
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ModelError(f"{opened.folder}: torch gave no ONNX program")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"topwork": facts_for(opened)})
    onnx.save(proto, out)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hold back what the exporters say: that one is old, and what tracing takes for constant."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_pt2(opened: Opened, out: Path) -> None:
    """Write a program of torch.export."""
    torch.export.save(
        exported_program(opened), out, extra_files={"topwork.json": facts_for(opened)}
    )


def write_timm(opened: Opened, out: Path) -> None:
    """Write a folder that timm opens.

    Raises:
        ModelError: if timm cannot express the model.
    """
    if opened.why_not_timm:
        raise ModelError(
            f"timm cannot open this model: {opened.why_not_timm}; export it as onnx or pt2"
        )
    out.mkdir(parents=True)
    for name in (TIMM, WEIGHTS):
        shutil.copyfile(opened.folder / name, out / name)
