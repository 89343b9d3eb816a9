"""A hand-written loop around a timm model: its own transforms, AdamW, a cosine schedule, batch 32.

What is frozen has its gradients switched off; the network is in training mode, as is usual. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

RATES = {"fixed": 1e-3, "top": 3e-4, "finetune": 3e-4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("model", type=Path, help="folder in timm's format")
    parser.add_argument("--job", choices=RATES, default="fixed")
    parser.add_argument("--top", nargs="*", default=(), help="modules that the job top trains")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)

    model = timm.create_model(f"local-dir:{args.model}", pretrained=True)
    config = resolve_data_config({}, model=model)
    train = ImageFolder(str(args.data / "train"), create_transform(**config, is_training=True))
    val = ImageFolder(str(args.data / "val"), create_transform(**config))
    train_loader = DataLoader(train, batch_size=32, shuffle=True, num_workers=2)
    val_loader = DataLoader(val, batch_size=32, num_workers=2)

    if args.job != "finetune":
        model.requires_grad_(False)
    for name in args.top if args.job == "top" else ():
        model.get_submodule(name).requires_grad_(True)
    model.reset_classifier(len(train.classes))  # a new layer, with gradients
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[args.job])
    steps = args.epochs * len(train_loader)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    training, evaluation, accuracies = [], [], []
    for _ in range(args.epochs):
        start = time.perf_counter()
        train_epoch(model, train_loader, optimizer, scheduler)
        training.append(time.perf_counter() - start)
        start = time.perf_counter()
        accuracies.append(evaluate(model, val_loader))
        evaluation.append(time.perf_counter() - start)
    result = {
        "epochs": args.epochs,
        "epochs_run": args.epochs,
        "seconds_per_epoch": sum(training) / args.epochs,
        "seconds_per_evaluation": sum(evaluation) / args.epochs,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
    }
    print(json.dumps(result))


def train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Train on all batches once."""
    model.train()
    for images, labels in loader:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader) -> float:
    """Return the share of images whose class is found."""
    model.eval()
    correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return correct / len(loader.dataset)


if __name__ == "__main__":
    main()
