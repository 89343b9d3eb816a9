"""Pictures of other than three channels: gray and bands, from files and from arrays."""

import io

import numpy as np
import pytest
from PIL import Image

from topwork.data.arrays import encode, images_from_arrays
from topwork.data.bands import read_bands, write_bands
from topwork.data.decode import decode, thumbnail, upright_picture
from topwork.data.views import Preprocessing, by_band, render, size_of, to_tensor
from topwork.errors import DataError, ImageError, UsageError


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype)


def view(channels: int, size: tuple[int, int] = (16, 20)) -> Preprocessing:
    return Preprocessing(size, 0.9, "bicubic", (0.5,) * channels, (0.25,) * channels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def stacked(data: bytes, channels: int) -> np.ndarray:
    return by_band(decode(data, "x", channels), lambda part: part)


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "P", "CMYK", "I;16"])
def test_one_channel_is_the_luminance_of_the_rgb_picture(kind: str) -> None:
    photo = Image.fromarray(noise(20, 30, 4), "RGBA")
    if kind == "I;16":
        photo = Image.fromarray(noise(20, 30, dtype=np.uint16))
    elif kind != "RGBA":
        photo = photo.convert("RGB").convert(kind)
    data = encoded(photo, "TIFF" if kind == "CMYK" else "PNG")
    red, green, blue = np.moveaxis(np.asarray(decode(data, "x")).astype(int), 2, 0)
    expected = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    assert (stacked(data, 1)[..., 0] == expected).all()
    if kind == "L":
        assert (stacked(data, 1)[..., 0] == np.asarray(photo)).all()


@pytest.mark.parametrize("bands", [2, 4, 5, 6, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_of_arrays_come_back(bands: int, dtype: type) -> None:
    pixels = noise(7, 9, bands, dtype=dtype)
    expected = pixels if dtype is np.uint8 else np.rint(pixels / 257)
    assert (stacked(encode(pixels), bands) == expected).all()
    # in another memory order and byte order the same pixels are the same bytes
    assert encode(np.asfortranarray(pixels)) == encode(pixels)
    assert encode(pixels.astype(pixels.dtype.newbyteorder(">"))) == encode(pixels)


def test_the_bands_of_a_file_are_taken_as_they_are_stored() -> None:
    pixels = noise(11, 13, 4)
    pixels[..., 3] //= 2  # alpha must neither be laid on white nor multiplied in
    data = encoded(Image.fromarray(pixels, "RGBA"))
    assert (stacked(data, 4) == pixels).all()
    resized = render(decode(data, "x", 4), view(4))
    for number in range(4):
        band = Image.fromarray(np.ascontiguousarray(pixels[..., number]))
        alone = render(band, view(1))
        assert alone.shape == (16, 20, 1)
        assert (resized[..., number] == alone[..., 0]).all()


def test_a_photo_rendered_band_by_band_is_the_photo() -> None:
    photo = Image.fromarray(noise(40, 50, 3), "RGB")
    bands = tuple(photo.split())
    assert size_of(bands) == size_of(photo) == (50, 40)
    assert (render(bands, view(3)) == render(photo, view(3))).all()
    assert render(bands, view(3)).flags.writeable


def test_bands_are_put_upright() -> None:
    photo = Image.fromarray(noise(6, 8, 4), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    data = encoded(photo, exif=exif)
    expected = np.rot90(np.asarray(photo), -1)
    assert (stacked(data, 4) == expected).all()
    by_hand = upright_picture(Image.open(io.BytesIO(data)), "x", 4)
    assert (by_band(by_hand, lambda part: part) == expected).all()


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (encoded(Image.new("RGB", (4, 4))), 4, "has 3 bands, the network takes 4"),
        (encoded(Image.new("L", (4, 4))), 2, "has 1 band, the network takes 2"),
        (encode(noise(4, 4, 6)), 3, "has 6 bands, the network takes 3"),
        (encode(noise(4, 4, 6)), 1, "has 6 bands, the network takes 1"),
        (encode(noise(4, 4, 6)), 7, "has 6 bands, the network takes 7"),
        (encode(noise(4, 4, 6))[:-1], 6, "truncated file"),
        (encode(noise(4, 4, 6))[:40], 6, "damaged file"),
        (b"\x93NUMPY", 6, "damaged file"),
        (b"", 6, "empty file"),
    ],
)
def test_other_files_are_refused_in_a_few_words(data: bytes, channels: int, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, "x", channels)
    assert caught.value.reason == reason


def saved(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved(np.array([[[{}]]], dtype=object)),  # a pickle
        saved(noise(4, 4, 6).astype(np.float32)),
        saved(noise(4, 6)),
        saved(np.asfortranarray(noise(4, 4, 6))),
        saved(noise(4, 4, 0)),
        saved(noise(4, 4, 6), version=(2, 0)),
        saved(noise(4, 4, 6)).replace(b"(4, 4, 6)", b"(9, 9, 9)"),
        saved(noise(4, 4, 6)).replace(b"(4, 4, 6), }", b"(1<<62,4,6)}"),
    ],
)
def test_only_plain_bands_are_read(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^x: (damaged|truncated) file$"):
        decode(data, "x", 6)


def test_bands_survive_their_bytes() -> None:
    pixels = noise(3, 5, 8)
    assert (read_bands(write_bands(pixels)) == pixels).all()
    assert (np.load(io.BytesIO(write_bands(pixels))) == pixels).all()


def test_a_miniature_of_bands_shows_their_mean() -> None:
    pixels = np.full((20, 20, 6), 10, np.uint8)
    pixels[..., 0] = 100
    miniature = thumbnail(encode(pixels), "x", 8)
    assert miniature.shape == (8, 8, 3)
    assert (miniature == 25).all()


def test_the_tensor_has_the_channels_of_the_preprocessing() -> None:
    pixels = noise(2, 16, 20, 5)
    means = (0.1, 0.2, 0.3, 0.4, 0.5)
    p = Preprocessing((16, 20), 1.0, "bicubic", means, (0.5, 0.6, 0.7, 0.8, 0.9))
    tensor = to_tensor(pixels, p)
    assert tensor.shape == (2, 5, 16, 20)
    expected = (np.float32(pixels[1, 3, 4, 2]) / np.float32(255) - np.float32(0.3)) / np.float32(
        0.7
    )
    assert tensor[1, 2, 3, 4].item() == expected
    assert Preprocessing.from_dict(p.to_dict()) == p
    for channels in (1, 3, 4):
        with pytest.raises(
            UsageError, match=f"pixels have 5 channels, the network takes {channels}"
        ):
            to_tensor(pixels, view(channels))


def test_array_images_may_have_any_number_of_bands() -> None:
    images = images_from_arrays(noise(3, 8, 9, 6), ["a", "b", "a"])
    assert (stacked(images.read(1), 6) == noise(3, 8, 9, 6)[1]).all()
    with pytest.raises(DataError, match=r"has shape \(3, 3, 8, 9\); give \[N, H, W\] or"):
        images_from_arrays(noise(3, 3, 8, 9), ["a", "b", "a"])
