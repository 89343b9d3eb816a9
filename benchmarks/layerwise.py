"""Layer-by-layer pretraining from cached outputs, against running the lower layers again.

A stack of four layers of 1,000 sigmoid units is trained as Boltzmann machines on images of MNIST,
once with the outputs of the layers below taken from the cache, once with every batch run through
these layers whenever it is taken (from pixels that are cached either way). PyTorch runs them in
both. The weights must be the same, bit for bit; the seconds of each layer are compared, the time
that filling the cache takes counted with the layer that needs it.

    python benchmarks/layerwise.py
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from places import options, require
from topwork.data.audit import audit
from topwork.data.image_set import ImageSet
from topwork.data.items import images_from_arrays
from topwork.data.loading import untracked
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.samples import Samples
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.methods import recipe_of, run
from topwork.pretraining.preparing import load_networks, make_material
from topwork.pretraining.request import Request, settle_recipe
from topwork.trunk.execution import Execution

WIDTHS = [1000, 1000, 1000, 1000]
WANTED = 1.5
FIRST = 3  # the layer from which on it is wanted


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=6000)
    args = parser.parse_args()
    require(args.data)
    images = some_of_mnist(args.data / "mnist.npz", args.images)
    ratios: dict[int, list[float]] = {}
    same = True
    for number in range(args.rounds):
        cached, weights = seconds_of(images, "float32", args.epochs)
        with patch.object(Samples, "form_of", lambda *_: "pixels"):
            again, others = seconds_of(images, "auto", args.epochs)
        same &= weights.keys() == others.keys()
        same &= all(np.array_equal(weights[name], others[name]) for name in weights)
        for layer in cached:
            ratios.setdefault(layer, []).append(again[layer] / cached[layer])
        shown = ", ".join(f"{again[k]:.1f} against {cached[k]:.1f}" for k in cached)
        print(f"round {number + 1}: seconds of each layer, run again against cached: {shown}")
    for layer, found in ratios.items():
        low, high = min(found), max(found)
        print(f"layer {layer}: {statistics.median(found):.2f}x ({low:.2f} to {high:.2f})")
    passed = same and all(statistics.median(ratios[k]) >= WANTED for k in ratios if k >= FIRST)
    print(f"weights {'equal' if same else 'NOT EQUAL'}; {'PASS' if passed else 'FAIL'}")
    return not passed


def some_of_mnist(path: Path, count: int) -> ImageSet:
    """Return some training images of MNIST."""
    with np.load(path) as arrays:
        rows = np.random.default_rng(0).permutation(len(arrays["x_train"]))[:count]
        pixels, labels = arrays["x_train"][rows], arrays["y_train"][rows]
    return images_from_arrays(pixels, labels.tolist())


def seconds_of(
    images: ImageSet, cache: str, epochs: int
) -> tuple[dict[int, float], dict[str, np.ndarray]]:
    """Pretrain with an empty cache; return the seconds of each layer and all weights.

    A layer's time is all that passes from the end of the layer below to its own.
    """
    changes = {"arguments": {"widths": WIDTHS}, "phase": {"epochs": epochs}}
    recipe, arguments = settle_recipe("rbm", recipe_of("rbm"), changes, None, None)
    found = find_backbone("topwork:dense")
    spec = replace(found.spec, arguments={**found.spec.arguments, **arguments})
    plan = Plan(found.name, reused="0", phases=(Phase(frozen="input", epochs=1),))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOPWORK_CACHE"] = f"{folder}/cache"
        execution = Execution(torch.device("cpu"), "eager", cache=cache)
        request = Request("rbm", recipe, plan, replace(found, spec=spec), images, execution, 0)
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        networks = load_networks(request)
        material = make_material(request, networks, audit(images), checkpoints, untracked)
        seconds: dict[int, float] = {}
        began = time.perf_counter()
        for progress in run(material, recipe):
            if progress and progress.epoch == epochs:
                ended = time.perf_counter()
                seconds[int(progress.stage.rpartition(" ")[2])] = ended - began
                began = ended
    state = material.chain.network.state_dict()
    return seconds, {name: value.numpy() for name, value in state.items()}


if __name__ == "__main__":
    sys.exit(main())
