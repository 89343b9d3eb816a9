"""The plain way: features of a timm model by a DataLoader, then scikit-learn.

What `fit_speed.py` compares topwork with: the script that people write, with the usual settings
and none of topwork in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def features(model: nn.Module, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled features [N, D] and class numbers [N] of a folder of class folders."""
    transform = create_transform(**resolve_data_config({}, model=model))
    loader = DataLoader(ImageFolder(str(folder), transform), batch_size=32, num_workers=2)
    with torch.no_grad():
        batches = [(model(images).numpy(), labels.numpy()) for images, labels in loader]
    rows, labels = zip(*batches, strict=True)
    return np.concatenate(rows), np.concatenate(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("model", type=Path, help="folder in timm's format")
    args = parser.parse_args()
    model = timm.create_model(f"local-dir:{args.model}", pretrained=True, num_classes=0).eval()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(*features(model, args.data / "train"))
    print(f"accuracy {classifier.score(*features(model, args.data / 'val')):.3f}")


if __name__ == "__main__":
    main()
