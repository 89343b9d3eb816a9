"""Images to learn from without labels: what a fit would test with is left out, by either rule."""

import io

import numpy as np
import pytest
from PIL import Image

from topwork.data.audit import audit
from topwork.data.image_set import ImageSet, Item
from topwork.data.unlabeled import audit_photos


def noise_with(labels: list[str]) -> ImageSet:
    """Return images of noise with labels and no sides, so that hashes decide."""
    rng = np.random.default_rng(0)
    encoded = {}
    for number in range(len(labels)):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded[f"{number}.png"] = buffer.getvalue()
    items = [Item(name, (label,)) for name, label in zip(encoded, labels, strict=True)]
    return ImageSet("noise", tuple(items), encoded.__getitem__)


@pytest.mark.parametrize("few", [False, True])
def test_nothing_that_a_fit_of_classes_or_of_numbers_tests_with(few: bool) -> None:
    labels = [str(number % 3 if few else number / 7) for number in range(120)]
    images = noise_with(labels)

    found = audit_photos(images).split

    for numbers in (False, True):
        judged = set(audit(images, numbers=numbers).split.test)
        assert not judged & set(found.train)
        assert judged <= set(found.test)
    assert set(audit(images, numbers=True).split.test)
    assert len(found.train) + len(found.test) == 120


def test_words_are_divided_once() -> None:
    images = noise_with(["dark", "light"] * 30)
    assert audit_photos(images) == audit(images)
