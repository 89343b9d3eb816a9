"""Predicting with a model folder: plain Pillow decoding, float32, eager."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from topwork.data.decode import decode, quiet
from topwork.data.image_set import ImageSet
from topwork.data.loading import Track, load_ahead, untracked
from topwork.data.views import render, to_tensor
from topwork.errors import ImageError
from topwork.network.device import choose_device
from topwork.network.folder import Opened, open_model

BATCH = 8
"""Images at a time; short batches are filled up, so that a score depends on its image alone."""


@dataclass(frozen=True)
class Predictor:
    """A model ready to predict; made by `load`.

    Attributes:
        opened: the model folder's content.
        device: where it runs.
        labels: the class names, in the order of the probabilities' columns.
    """

    opened: Opened
    device: torch.device
    labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.opened.labels)

    def predict(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> list[str]:
        """Return the most probable class of each image.

        Args:
            images: paths, Pillow images, or uint8 arrays [H, W] or [H, W, 3].

        Raises:
            ImageError: if one of them cannot be read; the message names it.
        """
        return [self.labels[i] for i in self.predict_proba(images).argmax(1)]

    def predict_proba(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> np.ndarray:
        """Return the probability of each class, float64 [N, classes]; else as `predict`."""
        rows = []
        batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        with quiet():
            for _, views in load_ahead(batches, self.view_of):
                rows.append(self.probabilities(np.stack(views)))
        return np.concatenate(rows) if rows else np.zeros((0, len(self.labels)))

    def predict_set(
        self,
        images: ImageSet,
        indices: Sequence[int],
        track: Track = untracked,
    ) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """Yield for some images of a set their index with probabilities [classes], or an error."""

        def load(index: int) -> np.ndarray | ImageError:
            name = images.items[index].name
            try:
                image = decode(images.read(index), name)
            except ImageError as error:
                return error
            return render(image, self.opened.preprocessing)

        batches: list[Any] = [indices[i : i + BATCH] for i in range(0, len(indices), BATCH)]
        with quiet():
            for batch, views in load_ahead(track(batches, "predicting"), load):
                good = [view for view in views if not isinstance(view, ImageError)]
                rows = iter(self.probabilities(np.stack(good)) if good else [])
                for index, view in zip(batch, views, strict=True):
                    yield index, view if isinstance(view, ImageError) else next(rows)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Return the probabilities of at most one batch of views.

        Args:
            pixels: uint8 [N, H, W, 3].

        Returns:
            float64 [N, classes].
        """
        missing = BATCH - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        images = to_tensor(filled, self.opened.preprocessing)
        with torch.inference_mode():
            scores = self.opened.model(images.to(self.device, memory_format=torch.channels_last))
        return torch.softmax(scores[: len(pixels)].cpu().double(), 1).numpy()

    def view_of(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """Return the view of one image that the network sees, uint8 [H, W, 3]."""
        if isinstance(image, (str, Path)):
            try:
                data = Path(image).read_bytes()
            except OSError as error:
                raise ImageError(
                    str(image), (error.strerror or "cannot be read").lower()
                ) from error
            opened = decode(data, str(image))
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise ImageError("array", f"is {image.dtype}; give uint8, [H, W] or [H, W, 3]")
            opened = Image.fromarray(image).convert("RGB")
        else:
            opened = image.convert("RGB")
        return render(opened, self.opened.preprocessing)


def load(location: str | Path, device: str = "cpu") -> Predictor:
    """Open a run or model folder for predicting.

    Args:
        location: a run folder, or the ``model/`` in one.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        ModelError: if it holds no model, or a damaged one.
        UsageError: if there is no such device.
    """
    chosen = choose_device(device)
    opened = open_model(location)
    opened.model.to(chosen).to(memory_format=torch.channels_last)
    return Predictor(opened, chosen)
