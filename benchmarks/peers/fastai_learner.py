"""The way of fastai: ``vision_learner(...).fine_tune(n)`` on a model in timm's format.

As in its quick start: images squeezed to 224 pixels, its usual augmentations, batch 64, the
learning rate it comes with. The fixed extractor is the learner as it is made, frozen (fastai goes
on training the frozen batch norms), under ``fit_one_cycle``. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)


class Stopwatch(Callback):
    """Seconds of each epoch's training and of its validation."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.validate: list[float] = []

    def before_train(self) -> None:
        """Start the clock of training."""
        self.start = time.perf_counter()

    def after_train(self) -> None:
        """Stop it."""
        self.train.append(time.perf_counter() - self.start)

    def before_validate(self) -> None:
        """Start the clock of validation."""
        self.start = time.perf_counter()

    def after_validate(self) -> None:
        """Stop it."""
        self.validate.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("model", type=Path, help="folder in timm's format")
    parser.add_argument("--job", choices=("fixed", "finetune"), default="fixed")
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    set_seed(0)

    loaders = ImageDataLoaders.from_folder(
        args.data, train="train", valid="val", item_tfms=Resize(224), batch_tfms=aug_transforms()
    )
    learner = vision_learner(loaders, f"local-dir:{args.model}", metrics=accuracy)
    watch = Stopwatch()
    with learner.no_bar(), learner.no_logging():
        if args.job == "fixed":
            learner.fit_one_cycle(args.epochs, cbs=watch)
        else:
            learner.fine_tune(args.epochs, cbs=watch)  # one epoch frozen, then these
    trained = watch.train[-args.epochs :]
    print(
        json.dumps(
            {
                "epochs": len(watch.train),
                "epochs_run": len(watch.train),
                "seconds_per_epoch": sum(trained) / len(trained),
                "seconds_per_evaluation": sum(watch.validate) / len(watch.validate),
                "accuracy": learner.recorder.values[-1][-1],
            }
        )
    )


if __name__ == "__main__":
    main()
