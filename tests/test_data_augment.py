"""Augmented views: reproducible from image, number and recipe alone, and fair."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from topwork.data.augment import (
    ASPECTS,
    View,
    draw,
    random_crop,
    random_numbers,
    render_view,
)
from topwork.data.items import open_images
from topwork.data.loading import read_view
from topwork.data.views import Preprocessing, render
from topwork.plan import Augment

DIGEST = hashlib.sha256(b"an image").hexdigest()
SMALL = Preprocessing((24, 32), 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COUNT = 2000


def noise(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(width: int, height: int) -> Image.Image:
    """Every pixel holds its own column and row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


def test_a_view_depends_on_image_number_and_recipe_alone() -> None:
    picture = noise(60, 50)
    views = [View(n) for n in range(1, 5)]
    views += [View(1, Augment(least_area=0.4)), View(1, Augment(flip=False))]
    drawn = [render_view(picture, SMALL, view, DIGEST).tobytes() for view in views]
    drawn.append(render_view(picture, SMALL, View(1), "0" * 64).tobytes())
    torch.manual_seed(1)
    np.random.seed(1)
    again = [render_view(picture, SMALL, view, DIGEST).tobytes() for view in reversed(views)]
    assert drawn[:-1] == again[::-1]
    assert len(set(drawn)) == len(drawn)


def test_view_0_is_the_plain_one() -> None:
    picture = noise(60, 50)
    plain = render_view(picture, SMALL, View(0, Augment(0.1)), DIGEST)
    np.testing.assert_array_equal(plain, render(picture, SMALL))


def test_a_recipe_is_the_same_whatever_the_type_of_its_numbers() -> None:
    assert View(1, Augment(least_area=1)).facts() == View(1, Augment(least_area=1.0)).facts()
    assert draw((60, 50), View(1, Augment(1)), DIGEST) == draw(
        (60, 50), View(1, Augment(1.0)), DIGEST
    )


def test_what_was_drawn_once_is_drawn_in_every_version() -> None:
    """The cache relies on it: where this must change, raise `VERSION`."""
    numbers = random_numbers(View(1), DIGEST, 2).tolist()
    assert numbers == [0.397428304421076, 0.19200839338507403]
    drawn = [draw((640, 480), View(n), DIGEST) for n in (1, 2)]
    assert drawn == [((201, 35, 417, 439), True), ((75, 33, 405, 447), True)]


@pytest.mark.parametrize("view", [View(n, Augment(0.2)) for n in range(1, 13)])
def test_a_view_shows_what_was_drawn(view: View) -> None:
    crop, flipped = draw((200, 120), view, DIGEST)
    pixels = render_view(ramp(200, 120), SMALL, view, DIGEST).astype(float)
    assert pixels.shape == (24, 32, 3)
    columns = crop.left + (np.arange(32) + 0.5) * crop.width / 32 - 0.5
    rows = crop.top + (np.arange(24) + 0.5) * crop.height / 24 - 0.5
    expected = columns[::-1] if flipped else columns
    # Where the filter would reach beyond the whole image, it is cut off.
    np.testing.assert_allclose(pixels[12, 3:-3, 0], expected[3:-3], atol=1)
    np.testing.assert_allclose(pixels[3:-3, 16, 1], rows[3:-3], atol=1)


def crops_by_torchvision(size: tuple[int, int], least_area: float) -> np.ndarray:
    """Return left, top, width, height of many crops."""
    whole = torch.empty(3, size[1], size[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [
            RandomResizedCrop.get_params(whole, [least_area, 1.0], list(ASPECTS))
            for _ in range(COUNT)
        ]
    return np.array([(left, top, width, height) for top, left, height, width in drawn])


@pytest.mark.parametrize(
    ("size", "least_area"), [((300, 300), 0.5), ((320, 240), 0.08), ((90, 400), 0.3)]
)
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], least_area: float) -> None:
    view = Augment(least_area)
    ours = np.array([draw(size, View(n, view), DIGEST)[0] for n in range(1, COUNT + 1)])
    theirs = crops_by_torchvision(size, least_area)
    for facts in (
        lambda c: c[:, 2] * c[:, 3],  # area
        lambda c: c[:, 2] / c[:, 3],  # aspect ratio
        lambda c: c[:, 0],
        lambda c: c[:, 1],
        lambda c: c[:, 0] + c[:, 2],
    ):
        assert ks_2samp(facts(ours), facts(theirs), method="asymp").pvalue > 0.01


def test_numbers_are_uniform_and_independent_among_views_and_among_images() -> None:
    for drawn in (
        [random_numbers(View(n), DIGEST, 5) for n in range(1, COUNT + 1)],
        [random_numbers(View(1), f"{n:064x}", 5) for n in range(COUNT)],
    ):
        numbers = np.array(drawn)
        assert ((numbers >= 0) & (numbers < 1)).all()
        np.testing.assert_allclose(numbers.mean(0), 0.5, atol=4 / np.sqrt(12 * COUNT))
        correlations = np.corrcoef(numbers.T) - np.eye(5)
        np.testing.assert_allclose(correlations, 0, atol=4 / np.sqrt(COUNT))


def test_the_mean_area_is_the_expected_one() -> None:
    # Up to 3/4 of a square every aspect ratio fits, so that nothing is drawn again.
    numbers = np.random.default_rng(0).random((COUNT, 1, 4)) * [0.5, 1, 1, 1]
    crops = [random_crop((1000, 1000), 0.5, one) for one in numbers]
    shares = np.array([crop.width * crop.height for crop in crops]) / 1e6
    np.testing.assert_allclose(shares.mean(), 0.625, atol=4 * 0.25 / np.sqrt(12 * COUNT))
    assert 0.499 < shares.min() < 0.505
    assert 0.745 < shares.max() < 0.751


def test_half_of_the_views_are_mirrored_or_none() -> None:
    flips = [draw((9, 9), View(n), DIGEST)[1] for n in range(1, COUNT + 1)]
    assert abs(sum(flips) - COUNT / 2) < 4 * np.sqrt(COUNT / 4)
    never = Augment(flip=False)
    assert not any(draw((9, 9), View(n, never), DIGEST)[1] for n in range(1, 100))


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    least_area=st.floats(1e-6, 1),
    digest=st.binary(min_size=32, max_size=32),
)
def test_a_crop_lies_inside_any_image(
    size: tuple[int, int], least_area: float, digest: bytes
) -> None:
    crop, _ = draw(size, View(1, Augment(least_area)), digest.hex())
    assert min(crop.left, crop.top) >= 0
    assert min(crop.width, crop.height) >= 1
    assert crop.left + crop.width <= size[0]
    assert crop.top + crop.height <= size[1]


@pytest.mark.parametrize("size", [(300, 10), (10, 300), (100, 90), (1, 1), (1, 4000)])
def test_what_never_fits_is_torchvisions_center(size: tuple[int, int]) -> None:
    # The whole area at an aspect ratio that is not the image's: torchvision's way out.
    numbers = np.full((10, 4), [1 - 2**-53, 0.9, 0.0, 0.0])
    whole = torch.empty(3, size[1], size[0])
    top, left, height, width = RandomResizedCrop.get_params(whole, [1e9, 1e9], list(ASPECTS))
    expected = (left, top, max(1, width), max(1, height))
    assert random_crop(size, 1.0, numbers) == expected


def test_bands_are_drawn_alike() -> None:
    bands = noise(60, 50).split()
    colors = render_view(noise(60, 50), SMALL, View(2), DIGEST)
    np.testing.assert_array_equal(render_view(bands, SMALL, View(2), DIGEST), colors)
    gray = render_view(bands[1], SMALL, View(2), DIGEST)
    np.testing.assert_array_equal(gray, colors[:, :, 1:2])


def test_views_of_files(pictures: Path) -> None:
    images = open_images(pictures)
    data = images.read(3)
    digest = hashlib.sha256(data).hexdigest()
    with Image.open(pictures / images.items[3].name) as image:
        expected = render_view(image.convert("RGB"), SMALL, View(5), digest)
    for given_digest in (digest, None):
        found = read_view(images, 3, given_digest, SMALL, View(5))
        np.testing.assert_array_equal(found, expected)
