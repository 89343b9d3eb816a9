"""The fast way from a file to a view, held against the exact one."""

import csv
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from topwork.data import jpeg, rendering
from topwork.data.augment import PLAIN, View, draw, render_view
from topwork.data.bands import write_bands
from topwork.data.decode import DECODING, decode, quiet
from topwork.data.jpeg import decode_jpeg, reduction
from topwork.data.rendering import decoding_facts, rendered
from topwork.data.views import Preprocessing, resized_size
from topwork.errors import ImageError
from topwork.plan import Augment

ODD = Path(__file__).parents[1] / "../shared/data/odd_images"
needs_odd = pytest.mark.skipif(not ODD.is_dir(), reason="../shared/data/odd_images is absent")

DIGEST = "0" * 64
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BICUBIC = Preprocessing((64, 64), 0.875, "bicubic", *HALF)
BILINEAR = Preprocessing((57, 72), 0.9, "bilinear", *HALF)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noisy(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """A picture without any symmetry."""
    rows, columns = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(rows / 9) + 60 * np.sin(columns / 7)
    colors = [waves, 255 * columns / width, 255 * rows / height]
    return Image.fromarray(np.stack(colors, axis=2).astype(np.uint8))


def ramps(width: int, height: int) -> Image.Image:
    """A picture without any symmetry that changes so slowly that no reduction matters."""
    rows, columns = np.mgrid[:height, :width]
    colors = [255 * columns / width, 255 * rows / height, 0 * rows]
    return Image.fromarray(np.stack(colors, axis=2).astype(np.uint8))


def slopes(width: int, height: int) -> Image.Image:
    """Up and down by one level per pixel, sideways in red and green, downward in blue."""
    rows, columns = np.mgrid[:height, :width]
    colors = [np.abs(columns % 400 - 200), np.abs((columns + 100) % 400 - 200)]
    colors.append(np.abs(rows % 400 - 200))
    return Image.fromarray(np.stack(colors, axis=2).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif, quality=95, subsampling=0)


def fast(data: bytes, preprocessing: Preprocessing = BICUBIC, view: View = PLAIN) -> np.ndarray:
    pixels = rendered(data, "x", preprocessing, view, DIGEST, "fast")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*preprocessing.size, preprocessing.channels)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


def exact(data: bytes, preprocessing: Preprocessing = BICUBIC, view: View = PLAIN) -> np.ndarray:
    return rendered(data, "x", preprocessing, view, DIGEST, "exact")


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


def as_whole(width: int, height: int, channels: int = 3) -> Preprocessing:
    """Return a preprocessing that leaves a picture of this size as it is."""
    values = (0.5,) * channels
    return Preprocessing((height, width), 1.0, "bicubic", values, values)


def test_exact_is_decoding_and_rendering_by_pillow():
    data = encoded(smooth(150, 110))
    for view in (PLAIN, View(2)):
        expected = render_view(decode(data, "x", 3), BICUBIC, view, DIGEST)
        np.testing.assert_array_equal(exact(data, BICUBIC, view), expected)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (83, 61), (200, 150)])
@pytest.mark.parametrize("make", [smooth, noisy])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1, "quality": 20},
        {"restart_marker_blocks": 2},
        {"keep_rgb": True},
    ],
)
def test_in_full_the_pixels_are_pillows(size, make, options):
    for image in (make(*size), make(*size).convert("L")):
        if image.mode == "L" and "keep_rgb" in options:
            continue
        data = encoded(image, **options)
        stored = decode_jpeg(data, Image.open(io.BytesIO(data)), 1)
        assert stored is not None
        pillows = np.asarray(Image.open(io.BytesIO(data))).reshape(stored.shape)
        np.testing.assert_array_equal(stored, pillows)


SIZES = [(1, 1), (1, 40), (3, 5), (31, 33), (64, 64), (73, 73), (100, 37), (41, 200), (127, 128)]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("preprocessing", [BICUBIC, BILINEAR])
def test_resizing_is_pillows_but_for_rounding(format, preprocessing):
    for size in SIZES:
        for make in (smooth, noisy):
            data = encoded(make(*size), format)
            difference = distance(fast(data, preprocessing), exact(data, preprocessing))
            assert difference.max() <= 2, size
            assert difference.mean() < 0.05, size


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("number", range(1, 9))
def test_random_views_are_the_exact_ones_inside(format, number):
    view = View(number, Augment(least_area=0.4))
    for make in (smooth, noisy):
        data = encoded(make(150, 110), format)
        difference = distance(fast(data, BILINEAR, view), exact(data, BILINEAR, view))
        assert difference[2:-2, 2:-2].max() <= 2
        assert difference.mean() < 1.5


@pytest.mark.parametrize("reduced", [2, 4, 8])
@pytest.mark.parametrize("odd", [0, 1, 5])
def test_a_reduced_photo_is_in_its_place(reduced, odd):
    """A shift by a pixel of the reduced scale would be ``reduced`` levels on these slopes."""
    room = 1.05 * jpeg.MARGIN * reduced
    size = int(73 * room * 4 / 3) + odd, int(73 * room) + odd
    reductions = []

    def counting(*arguments):
        reductions.append(reduction(*arguments))
        return reductions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "reduction", counting)
        for orientation in range(1, 9):
            data = turned(slopes(*size), orientation)
            difference = distance(fast(data), exact(data))[2:-2, 2:-2]
            assert np.median(difference) <= 1
            assert np.quantile(difference, 0.8) <= 3
        for view in (View(1, Augment(0.9)), View(2, Augment(0.9)), View(3, Augment(0.9))):
            difference = distance(fast(data, BICUBIC, view), exact(data, BICUBIC, view))
            assert np.median(difference[2:-2, 2:-2]) <= reduced
    assert reductions[0] == reduced
    assert len(reductions) == 11


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    wanted=st.tuples(st.integers(1, 600), st.integers(1, 600)),
)
def test_a_reduction_leaves_enough_and_not_twice_too_much(size, wanted):
    reduced = reduction(size, wanted)
    room = min(size[0] / wanted[0], size[1] / wanted[1])
    assert reduced in (1, 2, 4, 8)
    assert reduced == 1 or room >= jpeg.MARGIN * reduced
    assert reduced == 8 or room < jpeg.MARGIN * 2 * reduced


@settings(max_examples=100, deadline=None)
@given(
    start=st.integers(0, 5000),
    length=st.integers(1, 5000),
    beyond=st.integers(0, 100),
    reduced=st.sampled_from([1, 2, 4, 8]),
)
def test_a_part_begins_less_than_a_reduced_pixel_off_and_is_there_whole(
    start, length, beyond, reduced
):
    found = rendering._stretch(start, length, reduced)
    assert 0 <= start / reduced - found.start < 1
    assert 0 <= (found.stop - found.start) - length / reduced < 1
    assert found.stop <= -(-(start + length + beyond) // reduced)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    wanted=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    crop=st.floats(0.05, 1),
)
def test_what_is_resized_is_never_smaller_than_the_view(size, wanted, crop):
    """The fast way relies on it: it has nothing to put beside a picture."""
    resized = resized_size(size, Preprocessing(wanted, crop, "bicubic", *HALF))
    assert resized[0] >= wanted[1]
    assert resized[1] >= wanted[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation):
    data = turned(smooth(96, 72), orientation)
    width, height = decode(data, "x").size
    assert (width, height) == ((96, 72) if orientation < 5 else (72, 96))
    whole = as_whole(width, height)
    np.testing.assert_array_equal(fast(data, whole), exact(data, whole))
    large = turned(ramps(530, 400), orientation)
    for view in (PLAIN, View(1), View(2), View(3)):
        difference = distance(fast(large, BICUBIC, view), exact(large, BICUBIC, view))
        assert difference[2:-2, 2:-2].max() <= 4


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_other_orientations_mean_upright(orientation):
    data = turned(smooth(96, 72), orientation)
    np.testing.assert_array_equal(fast(data, as_whole(96, 72)), exact(data, as_whole(96, 72)))


@pytest.mark.parametrize("view", [PLAIN, View(3)])
def test_gray_as_colors_and_colors_as_gray(view):
    gray = BICUBIC.adapted(None, 1)
    for image in (smooth(150, 110), smooth(150, 110).convert("L")):
        for format in ("JPEG", "PNG"):
            data = encoded(image, format)
            for preprocessing in (BICUBIC, gray):
                difference = distance(
                    fast(data, preprocessing, view), exact(data, preprocessing, view)
                )
                assert difference[2:-2, 2:-2].max() <= 2
    flat = fast(encoded(smooth(150, 110).convert("L")))
    assert (flat == flat[:, :, :1]).all()


def test_cmyk_is_decoded_by_pillow():
    cmyk = encoded(smooth(150, 110).convert("CMYK"), quality=95)
    same_pixels = encoded(decode(cmyk, "x"), "PNG")
    np.testing.assert_array_equal(fast(cmyk), fast(same_pixels))
    assert distance(fast(cmyk), exact(cmyk)).max() <= 2


def test_what_has_no_fast_way_is_exact_bit_for_bit():
    data = encoded(noisy(150, 110))
    for interpolation in ("nearest", "lanczos"):
        preprocessing = Preprocessing((64, 64), 0.875, interpolation, *HALF)
        np.testing.assert_array_equal(fast(data, preprocessing), exact(data, preprocessing))
    pixels = np.asarray(noisy(150, 110))
    for channels in (1, 2, 3, 5):
        bands = write_bands(np.concatenate([pixels, pixels], axis=2)[:, :, :channels])
        preprocessing = BICUBIC.adapted(None, channels)
        np.testing.assert_array_equal(fast(bands, preprocessing), exact(bands, preprocessing))
    transparent = encoded(noisy(50, 40).convert("RGBA"), "PNG")
    four = BICUBIC.adapted(None, 4)
    np.testing.assert_array_equal(fast(transparent, four), exact(transparent, four))


@pytest.mark.parametrize("size", [(1, 6000), (6000, 1)])
def test_extreme_strips_are_exact(monkeypatch, size):
    for module in ("topwork.data.views", "topwork.data.rendering"):
        monkeypatch.setattr(f"{module}.MAX_RESIZED_PIXELS", 1 << 16)
    for format in ("JPEG", "PNG"):
        data = encoded(noisy(*size), format)
        np.testing.assert_array_equal(fast(data), exact(data))


def outcome(data: bytes, way: Callable[[bytes], np.ndarray]) -> tuple[np.ndarray | None, str]:
    """Return a view or why there is none."""
    try:
        return way(data), ""
    except ImageError as error:
        return None, error.reason


def reason(data: bytes, way: Callable[[bytes], np.ndarray]) -> str:
    return outcome(data, way)[1]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(90, 70), (400, 300)])
def test_a_jpeg_cut_anywhere_is_refused_for_the_same_reason(progressive, size):
    data = encoded(smooth(*size), progressive=progressive)
    reasons = set()
    for end in [*range(0, 700, 17), *range(700, len(data), len(data) // 40), len(data) - 1]:
        expected = reason(data[:end], exact)
        assert reason(data[:end], fast) == expected, end
        reasons.add(expected)
    assert "truncated file" in reasons


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """Return the bytes with a few of them changed, or a stretch left out or written twice."""
    changed = bytearray(data)
    where = int(generator.integers(2, len(data)))
    kind = generator.integers(3)
    if kind == 0:
        for place in generator.integers(2, len(data), 3):
            changed[place] = int(generator.integers(256))
    elif kind == 1:
        del changed[where : where + int(generator.integers(1, 30))]
    else:
        changed[where:where] = data[where : where + int(generator.integers(1, 30))]
    return bytes(changed)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_damaged_jpeg_gives_the_same_picture_or_the_same_reason(progressive):
    data = encoded(smooth(90, 70), progressive=progressive)
    generator = np.random.default_rng(0)
    read = 0
    with quiet():
        for _ in range(150):
            broken = damaged(data, generator)
            expected, why = outcome(broken, exact)
            found, also_why = outcome(broken, fast)
            assert also_why == why
            if found is not None and expected is not None:
                read += 1
                assert distance(found, expected).max() <= 2
    assert 15 < read < 135


def test_too_many_pixels_are_refused_from_the_header(monkeypatch):
    monkeypatch.setattr(rendering, "decode_jpeg", None)
    data = bytearray(encoded(smooth(90, 70)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    refusals = {reason(bytes(data), way) for way in (fast, exact)}
    assert refusals == {"too large (more than 178956970 pixels)"}


def test_the_same_in_every_call_and_from_any_thread():
    files = [encoded(noisy(150 + n, 110)) for n in range(4)] + [encoded(smooth(600, 500))]
    jobs = [(data, view) for data in files for view in (PLAIN, View(1), View(2))] * 4
    alone = [fast(data, BICUBIC, view).tobytes() for data, view in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: fast(job[0], BICUBIC, job[1]).tobytes(), jobs))
    assert together == alone


def test_a_view_shows_the_same_part_as_the_exact_one():
    """Where a draw for the reduced size would differ from that for the whole one."""
    data = encoded(ramps(640, 480))
    for number in range(1, 6):
        crop, _ = draw((640, 480), View(number), DIGEST)
        assert crop != draw((320, 240), View(number), DIGEST)[0]
        difference = distance(fast(data, BICUBIC, View(number)), exact(data, BICUBIC, View(number)))
        assert difference[2:-2, 2:-2].max() <= 4


def test_the_facts_tell_the_ways_and_their_versions_apart(monkeypatch):
    assert decoding_facts("exact") == DECODING
    facts = [decoding_facts("exact"), decoding_facts("fast")]
    for place, value in [
        ("RULES", 99),
        ("MARGIN", 99),
        ("simplejpeg.__version__", "99"),
    ]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"topwork.data.rendering.{place}", value)
            facts.append(decoding_facts("fast"))
    monkeypatch.setattr(torch, "__version__", "99")
    facts.append(decoding_facts("fast"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    facts.append(decoding_facts("fast"))
    assert all(one != other for n, one in enumerate(facts) for other in facts[:n])


@needs_odd
def test_odd_files_are_read_or_refused_alike():
    with (ODD / "manifest.csv").open(encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert len(names) == 89
    with quiet():
        for name in names:
            data = (ODD / name).read_bytes()
            expected, why = outcome(data, exact)
            found, also_why = outcome(data, fast)
            assert also_why == why, name
            if found is not None and expected is not None:
                assert distance(found, expected).mean() < 4, name
