"""The process in which an ONNX runtime is tried: it may die without taking the run with it.

    python -m topwork.trunk.runtimes.child RUNTIME MODEL OUTPUTS SHAPE THREADS

writes what the runtime makes of the fixed pixels to OUTPUTS (.npz) and prints one line of JSON:
``setup`` (seconds until the model is open) and ``seconds_per_image``. Neither torch nor another
runtime is imported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from topwork.trunk.runtimes.onnx_runs import open_onnx
from topwork.trunk.runtimes.timing import fixed_pixels, seconds_per_image


def main(runtime: str, model: str, outputs: str, shape: str, threads: str) -> None:
    """Try a runtime; the arguments are those of the command line."""
    pixels = fixed_pixels(tuple(map(int, shape.split("x"))))
    begin = time.perf_counter()
    run = open_onnx(runtime, Path(model), int(threads))
    setup = time.perf_counter() - begin
    np.savez(outputs, *run(pixels))
    found = {"setup": setup, "seconds_per_image": seconds_per_image(run, pixels, int(threads))}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
