"""What an epoch costs with the lower three quarters of a network frozen, against training all.

Frozen by four ways: the trunk run anew in the epoch by the plain way (eager, Pillow, batches of 32,
all cores on one batch; nothing wanted of it), by topwork with PyTorch alone, and with the fastest
runtime, nothing cached, all three with decoding and resizing; and not at all, its outputs being
cached. Medians of 5 interleaved rounds; training all takes its pixels from the cache.

    python benchmarks/frozen_cost.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does

from places import options, require
from topwork.data.audit import audit
from topwork.data.decode import decode
from topwork.data.items import open_images
from topwork.data.loading import untracked
from topwork.data.views import render, to_tensor
from topwork.learn.fit import new_model
from topwork.learn.fitting import Fitting
from topwork.learn.loop import Inputs, TensorInputs, steps
from topwork.learn.samples import CachedInputs, Samples
from topwork.learn.stretch import make_training
from topwork.learn.targets import targets_of
from topwork.network.chain import CutPoint
from topwork.network.cut import Trunk
from topwork.network.loading import load_backbone
from topwork.network.model import Top
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import LAYOUT

ROUNDS = 5
FROZEN = 0.75  # of the multiply-adds
WANTED = {
    "plain trunk": None,
    "eager trunk": 0.6,
    "fastest trunk": 0.5,
    "cached outputs": 1 / 3,
}
NETWORKS = ("mobilenetv2_100", "vit_tiny_patch16_224")


def main() -> int:
    args = options(__doc__).parse_args()
    require(args.data, args.weights)
    passed = True
    for name in NETWORKS:
        bench = Bench(args.data / "hymenoptera", args.weights / name)
        ways: dict[str, Callable[[], float]] = {
            "all": bench.train_all,
            "plain trunk": bench.plain_trunk,
            "eager trunk": partial(bench.own_trunk, "eager"),
            "fastest trunk": partial(bench.own_trunk, "auto"),
            "cached outputs": bench.cached,
        }
        for run in ways.values():
            run()  # fills caches, and lets every library make up its mind
        rounds = [{way: run() for way, run in ways.items()} for _ in range(ROUNDS)]
        cut = bench.cut
        share = cut.multiply_adds / bench.fitting.loaded.chain.top.multiply_adds
        print(f"{name}, frozen up to {cut.name} ({share:.0%} of the multiply-adds)")
        whole = statistics.median(round_["all"] for round_ in rounds)
        print(f"  training all: {whole:.2f} s an epoch of {len(bench.train)} images")
        for way, wanted in WANTED.items():
            ratios = sorted(round_[way] / round_["all"] for round_ in rounds)
            ratio = statistics.median(ratios)
            passed &= wanted is None or ratio <= wanted
            note = f"; wanted {wanted:.2f}" if wanted else ""
            print(
                f"  {way}: {ratio:.2f} of it ({ratios[0]:.2f} to {ratios[-1]:.2f}{note})",
                flush=True,
            )
    print("PASS" if passed else "FAIL")
    return not passed


class Bench:
    """One network and its images, and an epoch of each way in seconds."""

    def __init__(self, data: Path, weights: Path) -> None:
        self.images = open_images(data)
        audited = audit(self.images)
        self.train = audited.split.train
        self.phase = Phase(epochs=1, rate=1e-5)
        loaded = load_backbone(find_backbone(str(weights)), Plan(str(weights)))
        loaded.chain.network.to(memory_format=LAYOUT)
        targets = targets_of(self.images, self.train, "softmax")
        samples = Samples(loaded, self.images, audited, Execution(torch.device("cpu")), untracked)
        groups, held_out = np.arange(len(self.train)), np.array([], dtype=np.int64)
        model = new_model(loaded, targets, 0)
        self.fitting = Fitting(
            loaded, model, samples, self.train, targets, groups, held_out, 0, {}, None, 0
        )
        cuts = loaded.chain.cuts
        limit = FROZEN * cuts[-1].multiply_adds
        self.cut = next(cut for cut in cuts if cut.multiply_adds >= limit)
        self.input = cuts[0]
        self.live: dict[str, Inputs] = {}

    def train_all(self) -> float:
        """Train all layers for an epoch, from cached pixels."""
        return self.epoch(self.input)

    def cached(self) -> float:
        """Train the top for an epoch, from cached outputs of the trunk."""
        return self.epoch(self.cut)

    def own_trunk(self, runtime: str) -> float:
        """Run the trunk as topwork does for each batch, then train the top on it."""
        if runtime not in self.live:
            settled = {"form": "nothing", "runtime": runtime}
            samples = self.fitting.samples
            self.live[runtime] = samples.at(self.cut, self.train, epochs=1000, settled=settled)
        start = time.perf_counter()
        self.steps_on(self.live[runtime], self.cut)
        return time.perf_counter() - start

    def plain_trunk(self) -> float:
        """Run the trunk in batches of 32, then train the top on what it gave."""
        trunk = Trunk(self.fitting.loaded.chain, [self.cut.name])
        preprocessing = self.fitting.loaded.backbone.preprocessing
        start = time.perf_counter()
        outputs = []
        for first in range(0, len(self.train), 32):
            pixels = [
                render(decode(self.images.read(index), "image"), preprocessing)
                for index in self.train[first : first + 32]
            ]
            batch = to_tensor(np.stack(pixels), preprocessing)
            outputs.append(trunk(batch.to(memory_format=torch.channels_last)))
        inputs = TensorInputs(torch.cat(outputs))
        return time.perf_counter() - start + self.steps_on(inputs, self.cut)

    def epoch(self, frozen: CutPoint) -> float:
        """Train what lies above a cut for an epoch, from the cache."""
        settled = {"form": "float32", "runtime": "auto"}
        inputs = self.fitting.samples.at(frozen, self.train, settled=settled)
        assert isinstance(inputs, CachedInputs), "no room for cached outputs on this machine"
        inputs.view(0)
        return self.steps_on(inputs, frozen)

    def steps_on(self, inputs: Inputs, frozen: CutPoint) -> float:
        """Return the seconds of an epoch on these inputs."""
        top = Top(self.fitting.loaded.chain, self.fitting.model, self.plan_codes, frozen)
        targets = self.fitting.targets.tensor()
        training, _ = make_training(self.fitting, self.phase, 0, frozen, top, targets)
        (epoch,) = (epoch for epoch in steps(training, inputs, targets) if epoch)
        return epoch.seconds

    @property
    def plan_codes(self) -> tuple[str, ...]:
        """The depths that the head reads."""
        return self.fitting.loaded.plan.codes


if __name__ == "__main__":
    sys.exit(main())
