"""Writing a trunk as an ONNX file for the runtimes that open one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from topwork.network.export import quiet_exporter
from topwork.network.trace import first_line
from topwork.trunk.program import TrunkProgram


class NoOnnxForm(Exception):
    """A trunk that cannot be written as ONNX; the text says why."""


def write_onnx(program: TrunkProgram, shape: tuple[int, ...], path: Path) -> None:
    """Write a trunk as ONNX, its batch fixed, its pixels uint8 as extraction has them.

    The exporter that traces is taken first, being up to ten times as fast as the one of
    torch.export and free of `onnxscript`. What either writes is checked by running it.

    Args:
        program: on the CPU.
        shape: of its pixels, [B, H, W, C].
        path: the file.

    Raises:
        NoOnnxForm: if neither can express it, or packages for it are not installed.
        OSError: if the file cannot be written.
    """
    reasons = []
    for dynamo in (False, True):
        try:
            with quiet_exporter():
                export(program, torch.zeros(shape, dtype=torch.uint8), path, dynamo)
            return
        except ImportError as error:
            reasons.append(f"{error.name} is not installed; pip install 'topwork[onnx]'")
        except OSError:
            raise
        except Exception as error:  # of many kinds, and none of them is documented
            reasons.append(first_line(error))
    raise NoOnnxForm("; ".join(dict.fromkeys(reasons)))


def export(program: TrunkProgram, pixels: Tensor, path: Path, dynamo: bool) -> None:
    """Write a trunk with one of torch's exporters."""
    import onnx  # noqa: F401  (both need it, and say so less clearly)

    torch.onnx.export(
        program,
        (pixels,),
        str(path),
        input_names=["pixels"],
        output_names=[f"output_{number}" for number in range(len(program.numbers))],
        dynamo=dynamo,
        external_data=False,
        verbose=False,
    )
