"""The plain view against timm's own evaluation transform, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from topwork.data import views
from topwork.data.views import Preprocessing, render, to_tensor
from topwork.errors import UsageError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_timm(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    transform = create_transform(
        input_size=(3, *preprocessing.size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop,
    )
    return transform(image)


SIZES = [(1, 1), (3, 5), (31, 33), (64, 64), (100, 37), (41, 200), (255, 256), (333, 500)]
INPUTS = [(32, 32), (33, 33), (24, 40), (57, 31)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
def test_plain_view_is_timms(interpolation, crop):
    for width, height in SIZES:
        image = noise(width, height)
        for size in INPUTS:
            preprocessing = Preprocessing(size, crop, interpolation, *IMAGENET)
            ours = to_tensor(render(image, preprocessing)[None], preprocessing)[0]
            assert torch.equal(ours, by_timm(image, preprocessing)), (width, height, size)


@pytest.mark.parametrize(("width", "height"), [(3, 2000), (2000, 3)])
def test_strips_are_timms_too(width, height):
    preprocessing = Preprocessing((224, 224), 0.875, "bilinear", *HALF)
    image = noise(width, height)
    ours = to_tensor(render(image, preprocessing)[None], preprocessing)[0]
    assert torch.equal(ours, by_timm(image, preprocessing))


def waves(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    gray = 128 + 60 * np.sin(rows / 5) + 60 * np.sin(columns / 5)
    return Image.fromarray(np.stack([gray, 255 - gray, gray / 2], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("width", "height"), [(3, 700), (700, 3), (5, 411), (640, 480)])
def test_the_way_around_huge_intermediates_gives_the_same_picture(
    monkeypatch, interpolation, width, height
):
    preprocessing = Preprocessing((32, 32), 0.9, interpolation, *HALF)
    plain = render(waves(width, height), preprocessing).astype(int)
    monkeypatch.setattr(views, "MAX_RESIZED_PIXELS", 0)
    around = render(waves(width, height), preprocessing).astype(int)
    assert plain.std() > 10
    assert np.abs(around - plain).max() <= 2


def test_a_strip_of_one_pixel_by_a_hundred_thousand_is_rendered():
    preprocessing = Preprocessing((224, 224), 0.875, "bicubic", *HALF)
    pixels = render(Image.new("RGB", (1, 100_000), "blue"), preprocessing)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (0, 0, 255)).all()


def test_a_batch_equals_its_images_and_leaves_the_pixels_alone():
    preprocessing = Preprocessing((16, 24), 0.9, "bicubic", *IMAGENET)
    views_of_two = [render(noise(50, 40, seed), preprocessing) for seed in range(2)]
    pixels = np.stack(views_of_two)
    pixels.flags.writeable = False
    batch = to_tensor(pixels, preprocessing)
    assert batch.dtype == torch.float32
    assert batch.shape == (2, 3, 16, 24)
    assert batch.is_contiguous()
    for image, row in zip(views_of_two, batch, strict=True):
        assert torch.equal(row, to_tensor(image[None], preprocessing)[0])
    assert (pixels == np.stack(views_of_two)).all()
    assert to_tensor(pixels[:0], preprocessing).shape == (0, 3, 16, 24)


def test_preprocessing_survives_its_dictionary():
    preprocessing = Preprocessing((224, 192), 0.875, "bicubic", *IMAGENET)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crops": 1.0}, "unknown key 'crops'; did you mean 'crop'?"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'?"),
        ({"crop": 0.0}, "crop is 0.0"),
        ({"crop": float("nan")}, "crop is nan"),
        ({"size": [224]}, "give height and width"),
        ({"size": 224}, "wrong type"),
        ({"std": [1, 0, 1]}, "a positive std for each channel"),
        ({"mean": None}, "wrong type"),
    ],
)
def test_nonsense_is_refused_by_name(change, message):
    good = Preprocessing((224, 224), 0.875, "bicubic", *IMAGENET).to_dict()
    with pytest.raises(UsageError, match=r"^preprocessing: ") as caught:
        Preprocessing.from_dict(good | change)
    assert message in str(caught.value)


def test_a_missing_key_is_named():
    data = Preprocessing((224, 224), 0.875, "bicubic", *IMAGENET).to_dict()
    del data["std"]
    with pytest.raises(UsageError, match="key 'std' is missing"):
        Preprocessing.from_dict(data)
