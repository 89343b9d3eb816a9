"""Predicting with a model folder: plain Pillow decoding, float32, eager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from topwork.data.arrays import encode
from topwork.data.augment import View
from topwork.data.decode import decode, quiet, reasons, upright_picture
from topwork.data.image_set import ImageSet
from topwork.data.loading import Part, Track, map_ahead, read_view, untracked
from topwork.data.views import render, to_tensor
from topwork.errors import ImageError, UsageError
from topwork.network.answers import Answer, answers, conclusions, kind_of_answers
from topwork.network.device import batch_size, choose_device, one_core_a_thread
from topwork.network.folder import Opened, open_model


@dataclass(frozen=True)
class Predictor:
    """A model ready to predict; made by `load`.

    Attributes:
        opened: the model folder's content.
        device: where it runs.
        labels: the names of the classes, labels or numbers, in the order of the answers' columns.
        kind: what the answers are: "classes", "labels" or "numbers".
    """

    opened: Opened
    device: torch.device
    labels: tuple[str, ...] = field(init=False)
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        kind = kind_of_answers(self.opened.plan.head, self.outputs)
        object.__setattr__(self, "labels", self.opened.labels)
        object.__setattr__(self, "kind", kind)

    @property
    def batch(self) -> int:
        """Images at a time; short batches are filled up: a score depends on its image alone."""
        return batch_size(self.device, self.opened.preprocessing.size)

    @property
    def outputs(self) -> int:
        """How many scores the model gives; one alone where a sigmoid tells two classes apart."""
        return self.opened.model.head.out_features

    def predict(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> list[Answer]:
        """Return for each image what the model says.

        That is the most probable class; of several labels a tuple of those with a probability of
        0.5 or more; of a regression the number, or a tuple of numbers.

        Args:
            images: paths, Pillow images, or arrays, uint8 or uint16, [H, W] or [H, W, C]: gray,
                RGB, RGBA, or as many bands as the network takes.

        Raises:
            ImageError: if one of them cannot be read; the message names it.
        """
        return conclusions(self.kind, self.labels, self.answers_to(images))

    def predict_proba(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> np.ndarray:
        """Return the probability of each class or label, float64 [N, labels]; else as `predict`.

        Raises:
            UsageError: if the model predicts numbers.
        """
        if self.kind == "numbers":
            raise UsageError("the model predicts numbers, no probabilities; call predict")
        return self.answers_to(images)

    def answers_to(self, images: Sequence[str | Path | Image.Image | np.ndarray]) -> np.ndarray:
        """Return the probabilities or numbers, float64 [N, labels]; else as `predict`."""
        if isinstance(images, (str, Path)):
            raise UsageError(f"give a list of images, such as [{str(images)!r}]")

        def work(batch: Sequence[Any]) -> np.ndarray:
            return self.answers(np.stack([self.view_of(image) for image in batch]))

        batches = in_batches(images, self.batch)
        with quiet(), one_core_a_thread():
            rows = [part for _, part in map_ahead(batches, work)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.labels)))

    def predict_set(
        self,
        images: ImageSet,
        indices: Sequence[int],
        digests: Sequence[str] | None = None,
        track: Track = untracked,
        views: int = 1,
    ) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """Yield for some images of a set their index with its answers [labels], or an error.

        Answers are probabilities, or numbers where the model predicts such.

        Args:
            images: the set.
            indices: which of them.
            digests: their SHA-256; an image whose bytes have another is an error.
            track: shows progress.
            views: of each image, whose answers are averaged: the plain one, then others, drawn as
                the plan draws views to train on; of an image they are always the same.
        """
        expected = dict(zip(indices, digests, strict=True)) if digests else {}
        drawn = [View(number, self.opened.plan.augment) for number in range(views)]

        def work(batch: Sequence[int]) -> list[np.ndarray | ImageError]:
            found = [self.answers_or_errors(images, batch, expected, view) for view in drawn]
            return [mean_of(of_one) for of_one in zip(*found, strict=True)]

        batches = in_batches(indices, self.batch)
        with quiet(), one_core_a_thread():
            for batch, results in map_ahead(track(batches, "predicting"), work):
                yield from zip(batch, results, strict=True)

    def answers_or_errors(
        self, images: ImageSet, batch: Sequence[int], expected: Mapping[int, str], view: View
    ) -> list[np.ndarray | ImageError]:
        """Return the answers to a view of at most one batch of images of a set."""
        preprocessing = self.opened.preprocessing
        views = [read_view(images, i, expected.get(i), preprocessing, view) for i in batch]
        good = [view for view in views if not isinstance(view, ImageError)]
        rows = iter(self.answers(np.stack(good)) if good else [])
        return [view if isinstance(view, ImageError) else next(rows) for view in views]

    def answers(self, pixels: np.ndarray) -> np.ndarray:
        """Return the answers to at most one batch of views.

        Args:
            pixels: uint8 [N, H, W, C].

        Returns:
            float64 [N, labels].
        """
        missing = self.batch - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
        images = to_tensor(filled, self.opened.preprocessing)
        with torch.inference_mode():
            scores = self.opened.model(images.to(self.device, memory_format=torch.channels_last))
        return answers(self.opened.plan.head, scores[: len(pixels)].cpu().numpy())

    def view_of(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """Return the view of one image that the network sees, uint8 [H, W, C]."""
        preprocessing = self.opened.preprocessing
        channels = preprocessing.channels
        if isinstance(image, (str, Path)):
            try:
                data = Path(image).read_bytes()
            except OSError as error:
                raise ImageError(
                    str(image), (error.strerror or "cannot be read").lower()
                ) from error
            picture = decode(data, str(image), channels)
        elif isinstance(image, np.ndarray):
            picture = decode(encode(checked(image)), "array", channels)
        elif isinstance(image, Image.Image):
            with reasons("image"):  # Pillow reads the pixels of a file that it opened only now
                picture = upright_picture(image, "image", channels)
        else:
            raise ImageError(type(image).__name__, "give a path, a Pillow image or an array")
        return render(picture, preprocessing)


def in_batches(sequence: Sequence[Part], size: int) -> list[Sequence[Part]]:
    """Return a sequence in parts of a size, the last one perhaps shorter.

    >>> in_batches("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [sequence[start : start + size] for start in range(0, len(sequence), size)]


def mean_of(answers: Sequence[np.ndarray | ImageError]) -> np.ndarray | ImageError:
    """Return the mean of the answers to several views of an image, or the first error."""
    good = [row for row in answers if not isinstance(row, ImageError)]
    errors = [row for row in answers if isinstance(row, ImageError)]
    return errors[0] if errors else np.mean(good, axis=0)


def checked(pixels: np.ndarray) -> np.ndarray:
    """Return an array as it came if it is an image.

    Raises:
        ImageError: saying what it should be.
    """
    wrong_kind = pixels.dtype not in (np.uint8, np.uint16)
    if wrong_kind or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        what = f"{pixels.dtype} {list(pixels.shape)}"
        raise ImageError("array", f"is {what}; give uint8 or uint16, [H, W] or [H, W, C]")
    return pixels


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
