"""Decoding against small oracles, and against real odd files."""

import csv
import io
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from topwork.data import decode as decoding
from topwork.data.decode import DECODING, IMAGE_EXTENSIONS, decode, quiet, thumbnail
from topwork.errors import ImageError

ODD = Path(__file__).parents[1] / "../shared/data/odd_images"
needs_odd = pytest.mark.skipif(not ODD.is_dir(), reason="../shared/data/odd_images is absent")

REASONS = {
    "truncated file",
    "damaged file",
    "not an image, or its header is damaged",
    "too large (more than 178956970 pixels)",
}


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """A picture without any symmetry, smooth enough for lossy formats."""
    rows, columns = np.mgrid[:height, :width]
    red, green = 255 * columns / width, 255 * rows / height
    return Image.fromarray(np.stack([red, green, (red + green) / 3], axis=-1).astype(np.uint8))


def odd_names() -> list[str]:
    with (ODD / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def refusal(read: Callable, name: str) -> str:
    """Return why an odd file cannot be read, or an empty string if it can."""
    try:
        read((ODD / name).read_bytes(), name)
    except ImageError as error:
        return str(error).removeprefix(f"{name}: ")
    return ""


@needs_odd
def test_every_odd_file_gives_an_image_or_a_short_reason(capfd):
    readable, refused = [], {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            for name in odd_names():
                reason = refusal(decode, name)
                assert refusal(lambda data, name: thumbnail(data, name, 8), name) == reason
                if reason:
                    refused[name] = reason
                else:
                    readable.append(name)
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert len(readable) + len(refused) == 89
    assert set(refused.values()) <= REASONS
    folders = {name.split("/")[0] for name in refused}
    assert {"truncated_jpeg", "broken_png", "broken_gif", "broken_other"} <= folders
    assert not any(name.startswith("truncated_jpeg") for name in readable)
    assert len(readable) >= 65


@needs_odd
def test_odd_files_give_the_same_from_many_threads():
    names = [name for name in odd_names() if not name.startswith("exif")]

    def outcome(name: str) -> bytes | str:
        try:
            return decode((ODD / name).read_bytes(), name).tobytes()
        except ImageError as error:
            return error.reason

    with quiet():
        alone = [outcome(name) for name in names]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(outcome, names)) == alone


@needs_odd
@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_photos_of_all_orientations_come_out_alike(kind):
    small = []
    for orientation in range(1, 9):
        image = decode((ODD / f"exif_orientation/{kind}_{orientation}.jpg").read_bytes(), "x")
        assert (image.width > image.height) == (kind == "Landscape")
        small.append(np.asarray(image.resize((30, 20)).convert("L"), dtype=float))
    for other in small[1:]:  # the photos differ by the digit painted on them
        assert np.median(np.abs(other - small[0])) < 3


@needs_odd
def test_an_adobe_cmyk_photo_is_not_inverted():
    image = pixels((ODD / "cmyk_jpeg/pil_sample_cmyk.jpg").read_bytes())
    assert np.median(image) < 30  # red letters on black, not cyan ones on white
    red = image[..., 0] > 150
    assert image[red][:, 1:].mean() < 100


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_orientation_yields_the_upright_picture(orientation, format):
    stored_as = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(picture())
    stored = Image.fromarray(np.ascontiguousarray(stored_as[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = encoded(stored, format, exif=exif, **lossless.get(format, {}))
    tolerance = 3 if format == "JPEG" else 0
    assert np.abs(pixels(data).astype(int) - upright).max() <= tolerance


@pytest.mark.parametrize("damage", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_a_damaged_exif_block_does_not_cost_the_image(damage):
    data = encoded(picture(), "JPEG", exif=damage)
    with quiet():
        assert pixels(data).shape == (16, 24, 3)


def test_whatever_reading_exif_raises_does_not_cost_the_image(monkeypatch):
    def damaged(image):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    assert pixels(encoded(picture(), "BMP")).shape == (16, 24, 3)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(format):
    values = np.arange(0, 65536, 17, dtype=np.uint16)[: 60 * 64].reshape(60, 64)
    expected = np.rint(values / 257).astype(np.uint8)
    result = pixels(encoded(Image.fromarray(values), format))
    for channel in range(3):
        assert (result[..., channel] == expected).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 1.0], [0, 64, 255]),
        ([0.0, 20.0, 255.0], [0, 20, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([float("nan"), 0.5, float("inf")], [0, 128, 255]),
        ([7e9, 7e9, 7e9], [0, 0, 0]),
    ],
)
def test_floats_are_read_in_their_usual_ranges(values, expected):
    data = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


def test_integers_of_32_bits_are_read_in_their_usual_ranges():
    for values, expected in [
        ([0, 7, 255], [0, 7, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-1000, 0, 3000], [0, 64, 255]),
    ]:
        data = encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")
        assert pixels(data)[0, :, 0].tolist() == expected


def test_transparency_of_all_kinds_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0] = [(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 51)]
    blend = round(200 * 0.2 + 255 * 0.8), round(255 * 0.8), round(255 * 0.8)
    for format, options in [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TGA", {})]:
        result = pixels(encoded(Image.fromarray(rgba), format, **options))[0].tolist()
        assert result[:2] == [[200, 0, 0], [255, 255, 255]]
        assert np.abs(np.subtract(result[2], blend)).max() <= 1

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 90, 80, 70])
    palette.putdata([0, 1])
    for format in ("PNG", "GIF"):
        data = encoded(palette, format, transparency=1)
        assert pixels(data)[0].tolist() == [[10, 20, 30], [255, 255, 255]]

    gray = Image.fromarray(np.array([[5, 9]], dtype=np.uint8))
    assert pixels(encoded(gray, "PNG", transparency=9))[0].tolist() == [[5] * 3, [255] * 3]
    deep = Image.fromarray(np.array([[257, 514]], dtype=np.uint16))
    assert pixels(encoded(deep, "PNG", transparency=514))[0].tolist() == [[1] * 3, [255] * 3]
    with_alpha = Image.fromarray(np.array([[[9, 255], [9, 0]]], dtype=np.uint8), "LA")
    assert pixels(encoded(with_alpha, "PNG"))[0].tolist() == [[9] * 3, [255] * 3]


def test_other_color_spaces_and_depths():
    bilevel = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert pixels(encoded(bilevel, "PNG"))[0].tolist() == [[0] * 3, [255] * 3]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for format in ("TIFF", "JPEG"):
        assert np.abs(pixels(encoded(cmyk, format))[4, 4] - (255, 0, 0)).max() <= 4
    ycbcr = picture().convert("YCbCr")
    assert np.abs(pixels(encoded(ycbcr, "TIFF")).astype(int) - np.asarray(picture())).max() <= 4


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without LittleCMS")
def test_lab_is_converted_by_its_definition():
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    assert np.abs(pixels(encoded(lab, "TIFF"))[0, 0].astype(int) - 255).max() <= 2
    lab = Image.new("LAB", (2, 2), (136, 128 + 80, 128 + 67))  # sRGB red is L 53, a 80, b 67
    assert np.abs(pixels(encoded(lab, "TIFF"))[0, 0].astype(int) - (255, 0, 0)).max() <= 12


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_the_image(format):
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated_files_are_found_out_at_any_length(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    for share in (0.05, 0.3, 0.6, 0.9):
        cut = data[: int(len(data) * share)]
        with quiet():
            for read in (decode, lambda data, name: thumbnail(data, name, 8)):
                with pytest.raises(ImageError, match=r"^cut\.img: "):
                    read(cut, "cut.img")


def test_any_garbage_ends_in_an_image_error_or_an_image():
    generator = np.random.default_rng(1)
    formats = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PPM", "ICO", "JPEG2000")
    intact = {format: encoded(picture(), format) for format in formats}
    with quiet():
        for format in formats:
            for _ in range(60):
                data = bytearray(intact[format])
                for position in generator.integers(0, len(data), 4):
                    data[position] = generator.integers(0, 256)
                with suppress(ImageError):
                    assert decode(bytes(data), "x").mode == "RGB"


def test_empty_and_alien_files_are_named():
    for data, reason in [
        (b"", "empty file"),
        (b"<!DOCTYPE html>", "not an image, or its header is damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"P6\n0 0\n255\n", "not an image"),
    ]:
        with pytest.raises(ImageError, match=reason):
            decode(data, "x")


def test_a_bomb_is_refused_from_its_header(monkeypatch):
    header = b"P6\n20000 20000\n255\n"
    for limit in (Image.MAX_IMAGE_PIXELS, None):  # whatever the rest of the program has set
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match="too large"):
            decode(header, "x")


def test_running_out_of_memory_is_a_reason(monkeypatch):
    def greedy(image):
        raise MemoryError

    monkeypatch.setattr(decoding, "_to_rgb", greedy)
    with pytest.raises(ImageError, match="not enough memory"):
        decode(encoded(picture(), "PNG"), "x")


def test_thumbnails_show_the_upright_image():
    large = picture(640, 480)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(large.transpose(Image.Transpose.ROTATE_180), "JPEG", exif=exif)
    expected = np.asarray(large.resize((16, 16), Image.Resampling.BOX)).astype(int)
    for data in (encoded(large, "PNG"), encoded(large, "JPEG", quality=95), turned):
        assert np.abs(thumbnail(data, "x", 16) - expected).max() <= 4


def test_every_extension_belongs_to_a_format_that_decodes():
    Image.init()
    known = Image.registered_extensions()
    names = {"MPO": "JPEG"}
    for extension in IMAGE_EXTENSIONS:
        format = known[extension]
        assert names.get(format, format) in decoding._FORMATS


def test_the_rules_are_identified_by_plain_strings():
    assert set(DECODING) == {"library", "version", "jpeg", "rules"}
    assert all(isinstance(value, str) and value for value in DECODING.values())


def test_quiet_lets_the_program_itself_speak(capfd):
    def speak() -> None:
        with quiet():
            print("progress", file=sys.stderr)
            warnings.warn("ours", RuntimeWarning, stacklevel=1)

    before = sys.stderr, warnings.filters[:]
    with pytest.warns(RuntimeWarning, match="ours"):
        speak()
    assert (sys.stderr, warnings.filters[:]) == before
    assert "progress" in capfd.readouterr().err


def test_quiet_keeps_a_real_stderr_alive(capfd, monkeypatch):
    # as in a terminal, where `sys.stderr` writes to descriptor 2: Python speaks, C does not
    with open(2, "w", closefd=False, buffering=1, encoding="utf-8") as real:
        monkeypatch.setattr(sys, "stderr", real)
        with quiet():
            print("python", file=sys.stderr)
            os.write(2, b"libtiff\n")
        assert sys.stderr is real
        print("after", file=sys.stderr)
    err = capfd.readouterr().err
    assert "python" in err
    assert "after" in err
    assert "libtiff" not in err
