"""The runtimes that open an ONNX file. Works without torch: trials run it in their own process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from topwork.trunk.runtimes.runtime import Run

TELEMETRY = "openvino_telemetry"


def open_onnx(runtime: str, model: Path, threads: int) -> Run:
    """Open an ONNX file with a runtime.

    Args:
        runtime: "onnxruntime" or "openvino".
        model: the file.
        threads: as many will call what is returned at once; each then has a core of its own.

    Raises:
        ImportError: if the runtime is not installed.
        Exception: whatever the runtime raises for a model that it does not understand.
    """
    if runtime == "onnxruntime":
        return onnxruntime_run(model)
    return openvino_run(model, threads)


def onnxruntime_run(model: Path) -> Run:
    """Return a model run by ONNX Runtime, on the core of the thread that calls."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {name: pixels})

    return run


def openvino_run(model: Path, threads: int) -> Run:
    """Return a model run by OpenVINO: a stream of its own on one core for each thread."""
    with without_telemetry():
        import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # where there is bfloat16 it would be taken
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # two processes would both take the first cores
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    idle: SimpleQueue[Any] = SimpleQueue()

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        try:
            request = idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        found = request.infer([pixels])
        outputs = [np.array(found[output]) for output in compiled.outputs]
        idle.put(request)  # whose tensors were copied by then
        return outputs

    return run


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Let OpenVINO be imported without the package that would report the import to its makers."""
    if TELEMETRY in sys.modules:
        yield
        return
    absent: Any = None  # to import a module that is None fails as if there were none
    sys.modules[TELEMETRY] = absent
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
