"""The plain PyTorch tutorial, "Transfer learning for computer vision", on a model in timm's format.

As printed there: its transforms (with the model's own mean and deviation), batch 4, SGD, the step
schedule, the best of the epochs' accuracies on val/; the fixed extractor switches gradients off
and leaves the network in training mode. Prints one JSON line; ``accuracy`` is that after the
epochs that were run, of ``epochs`` that the tutorial asks for.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

EPOCHS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("model", type=Path, help="folder in timm's format")
    parser.add_argument("--job", choices=("fixed", "finetune"), default="fixed")
    parser.add_argument("--run", type=int, default=3, help=f"how many of the {EPOCHS} epochs")
    args = parser.parse_args()
    torch.manual_seed(0)

    model = timm.create_model(f"local-dir:{args.model}", pretrained=True)
    loaders = dataloaders(args.data, model.pretrained_cfg)
    if args.job == "fixed":
        for parameter in model.parameters():
            parameter.requires_grad = False
    model.reset_classifier(len(loaders["train"].dataset.classes))  # a new layer, with gradients
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optim.SGD(trained, lr=0.001, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    print(json.dumps(train_model(model, loaders, optimizer, scheduler, args.run)))


def dataloaders(data: Path, config: dict) -> dict[str, DataLoader]:
    """Return the tutorial's loaders of both phases."""
    normalize = transforms.Normalize(config["mean"], config["std"])
    data_transforms = {
        "train": transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                normalize,
            ]
        ),
        "val": transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
        ),
    }
    return {
        phase: DataLoader(
            datasets.ImageFolder(str(data / phase), data_transforms[phase]),
            batch_size=4,
            shuffle=True,
            num_workers=4,
        )
        for phase in ("train", "val")
    }


def train_model(
    model: nn.Module,
    loaders: dict[str, DataLoader],
    optimizer: optim.Optimizer,
    scheduler: lr_scheduler.LRScheduler,
    run: int,
) -> dict:
    """Train and validate, epoch by epoch, and return what there is to report."""
    criterion = nn.CrossEntropyLoss()
    seconds = {"train": 0.0, "val": 0.0}
    accuracies = []
    for _ in range(run):
        for phase in ("train", "val"):
            start = time.perf_counter()
            model.train(phase == "train")
            correct = 0
            for inputs, labels in loaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                correct += int((outputs.argmax(1) == labels).sum())
            if phase == "train":
                scheduler.step()
            seconds[phase] += time.perf_counter() - start
        accuracies.append(correct / len(loaders["val"].dataset))
    return {
        "epochs": EPOCHS,
        "epochs_run": run,
        "seconds_per_epoch": seconds["train"] / run,
        "seconds_per_evaluation": seconds["val"] / run,
        "accuracy": max(accuracies),
        "accuracies": accuracies,
    }


if __name__ == "__main__":
    main()
