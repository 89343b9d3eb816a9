"""The audit on made-up folders with known faults, and duplicates against brute force."""

import io
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from topwork.data import duplicates
from topwork.data.audit import audit
from topwork.data.decode import thumbnail
from topwork.data.image_set import ImageSet, Item
from topwork.data.items import open_images
from topwork.errors import DataError, ImageError
from topwork.learn.fit import groups_of

SHARED = Path(__file__).parents[1] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


def scene(seed: int, size: int = 96) -> Image.Image:
    """A smooth random picture: as different from others as photos are."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def image_set(files: dict[str, bytes], **options) -> ImageSet:
    """Files named side/class/name, or class/name where no side is given."""
    items = []
    for name in files:
        *side, label, _ = name.split("/")
        items.append(Item(name, (label,), side[0] if side else None))
    return ImageSet("made", tuple(items), files.__getitem__, **options)


def plenty(*sides: str, start: int = 0) -> dict[str, bytes]:
    """Three distinct pictures for each of two classes on each side."""
    names = [f"{side}/{label}/{n}.png" for side in sides for label in "ab" for n in range(3)]
    return {name: encoded(scene(start + seed)) for seed, name in enumerate(names)}


def test_clean_data_are_split_and_counted():
    files = plenty("train", "val", "test")
    result = audit(image_set(files))
    assert result.split.train == (0, 1, 2, 3, 4, 5)
    assert result.split.val == (6, 7, 8, 9, 10, 11)
    assert result.counts == {
        "a": {"train": 3, "val": 3, "test": 3},
        "b": {"train": 3, "val": 3, "test": 3},
    }
    assert (result.unreadable, result.dropped, result.conflicts) == ((), {}, ())
    assert (result.exact_duplicates, result.near_duplicates, result.copies) == ((), (), 0)
    assert result.missing == {}
    assert result.tiny == ("a", "b")
    assert result.imbalance == 1.0
    assert result.lines() == [
        "18 images, 2 classes: 6 train, 6 val, 6 test (as given)",
        "2 classes with fewer than 10 training images: a; b",
    ]
    one = replace(result, tiny=("a",)).lines()
    assert one[-1] == "1 class with fewer than 10 training images: a"
    assert result.faults() == []
    assert audit(image_set(files), strict=True) == result


def test_the_tracker_sees_every_batch():
    seen = []

    def track(sequence, description):
        for part in sequence:
            seen.extend(part)
            yield part

    audit(image_set(plenty("train", "test")), track=track)
    assert seen == list(range(12))


def test_unreadable_images_are_listed_and_left_out():
    files = plenty("train", "test") | {
        "train/a/cut.jpg": encoded(scene(90), "JPEG")[:700],
        "test/b/empty.png": b"",
    }
    images = image_set(files, skipped=(("train/a/notes.txt", "not an image extension"),))
    result = audit(images)
    assert result.unreadable == (
        ("train/a/cut.jpg", "truncated file"),
        ("test/b/empty.png", "empty file"),
    )
    assert result.digests[-2:] == (None, None)
    assert len(result.split.train) == len(result.split.test) == 6
    assert (
        "2 unreadable, left out: train/a/cut.jpg: truncated file; test/b/empty.png: empty file"
        in (result.lines())
    )
    with pytest.raises(DataError, match=r"^made: 2 unreadable: train/a/cut.jpg: truncated file"):
        audit(images, strict=True)
    with pytest.raises(DataError, match=r"^made: 1 skipped: train/a/notes.txt: not an image"):
        audit(image_set(plenty("train", "test"), skipped=images.skipped), strict=True)


def test_exact_duplicates_leave_the_side_that_is_judged():
    files = plenty("train", "val", "test")
    files["train/a/copy_of_test.png"] = files["test/a/0.png"]
    files["val/a/copy_of_test.png"] = files["test/a/0.png"]
    files["train/b/copy_of_val.png"] = files["val/b/1.png"]
    files["train/b/copy_of_train.png"] = files["train/b/0.png"]
    files["test/b/copy_of_test.png"] = files["test/b/0.png"]
    images = image_set(files)
    result = audit(images)
    assert {
        (each.name, each.side, each.twin, each.twin_side) for each in result.exact_duplicates
    } == {
        ("train/a/copy_of_test.png", "train", "test/a/0.png", "test"),
        ("val/a/copy_of_test.png", "val", "test/a/0.png", "test"),
        ("train/b/copy_of_val.png", "train", "val/b/1.png", "val"),
    }
    assert result.near_duplicates == ()
    assert result.dropped == {
        "train/a/copy_of_test.png": "the same as test/a/0.png",
        "val/a/copy_of_test.png": "the same as test/a/0.png",
        "train/b/copy_of_val.png": "the same as val/b/1.png",
    }
    kept = {images.items[index].name for index in result.split.side_of()}
    assert kept == set(files) - set(result.dropped)
    assert result.copies == 2
    with pytest.raises(DataError, match="3 exact duplicates across sides: train/a/copy_of_test"):
        audit(images, strict=True)


@pytest.mark.parametrize(
    "touch",
    [
        lambda image: encoded(image, "JPEG", quality=60),
        lambda image: encoded(image.resize((48, 48), Image.Resampling.LANCZOS)),
        lambda image: encoded(image.resize((150, 150), Image.Resampling.BICUBIC), "WEBP"),
        lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.005)),
    ],
    ids=["re-encoded", "smaller", "larger", "brighter"],
)
def test_a_touched_copy_is_a_near_duplicate(touch):
    files = plenty("train", "test")
    files["train/a/touched"] = touch(scene(7))  # test/a/1.png
    files["test/a/touched"] = touch(scene(6))  # of test/a/0.png: one side, nobody's business
    files["train/b/touched"] = touch(scene(4))  # of train/b/1.png: likewise, but for folds
    result = audit(image_set(files))
    assert [(each.name, each.twin) for each in result.near_duplicates] == [
        ("train/a/touched", "test/a/1.png")
    ]
    assert result.dropped == {"train/a/touched": "nearly the same as test/a/1.png"}
    assert result.split.test == (6, 7, 8, 9, 10, 11, 13)
    assert result.lookalikes == ((4, 14),)
    assert result.crowds == ()
    with pytest.raises(DataError, match="1 near duplicates across sides: train/a/touched"):
        audit(image_set(files), strict=True)


def test_lookalikes_inside_training_share_a_fold():
    files = {
        f"train/{label}/{n}.png": encoded(scene(n))
        for label, n in zip("aabbb", range(5), strict=True)
    }
    files |= {f"test/{label}/9.png": encoded(scene(90 + ord(label))) for label in "ab"}
    files["train/a/0 again.jpg"] = encoded(scene(0), "JPEG", quality=70)
    files["train/a/0 copy.jpg"] = files["train/a/0 again.jpg"]
    files |= {f"train/a/more{n}.png": encoded(scene(200 + n)) for n in range(4)}
    for quality in (60, 75, 90):  # with the one that is there 4 of 6
        files[f"train/b/2 in {quality}.jpg"] = encoded(scene(2), "JPEG", quality=quality)
    images = image_set(files)
    result = audit(images)
    assert result.lookalikes == ((0, 7, 8),)
    assert result.crowds == ((2, 13, 14, 15),)
    assert result.dropped == {}
    for line in (
        "nearly the same inside train: 3 images in 1 groups, kept together where training is"
        " divided to choose",
        "nearly the same inside train: 4 images in 1 groups, more than half of a class, so they"
        " cannot be kept together",
    ):
        assert line in result.lines()
    groups = groups_of(images, result, result.split.train)
    sizes = Counter(groups[np.isin(result.split.train, result.lookalikes[0])])
    assert list(sizes.values()) == [3]
    assert len(set(groups)) == len(groups) - 2
    grouped = [
        replace(item, group=f"group {number % 4}") for number, item in enumerate(images.items)
    ]
    images = replace(images, items=tuple(grouped))
    result = audit(images)
    assert (result.lookalikes, result.crowds) == ((), ())
    given = groups_of(images, result, result.split.train)
    assert given.tolist() == [grouped[index].group for index in result.split.train]


def test_exact_copies_alone_are_no_lookalikes():
    files = plenty("train", "test")
    files["train/a/copy.png"] = files["train/a/0.png"]
    result = audit(image_set(files))
    assert (result.lookalikes, result.crowds, result.copies) == ((), (), 1)


def test_of_numbers_a_crowd_is_more_than_half_of_all():
    files = {f"train/{n}/{n}.png": encoded(scene(n)) for n in range(4)}
    files |= {f"test/{n}/{n}.png": encoded(scene(50 + n)) for n in range(2)}
    files["train/0/again.jpg"] = encoded(scene(0), "JPEG", quality=80)
    result = audit(image_set(files), numbers=True)
    assert (result.lookalikes, result.crowds) == (((0, 6),), ())
    files |= {
        f"train/0/{quality}.jpg": encoded(scene(0), "JPEG", quality=quality)
        for quality in (60, 90, 95)
    }
    result = audit(image_set(files), numbers=True)
    assert (result.lookalikes, result.crowds) == ((), ((0, 6, 7, 8, 9),))


@pytest.mark.parametrize(
    "alter",
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.crop((10, 10, 86, 86)),
        lambda image: Image.merge("RGB", image.split()[::-1]),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    ],
    ids=["mirrored", "cropped", "recolored", "darkened"],
)
def test_another_picture_is_none(alter):
    files = plenty("train", "test")
    files["train/a/altered.png"] = encoded(alter(scene(7)))
    assert audit(image_set(files)).near_duplicates == ()


def test_the_same_gray_in_another_color_is_another_picture():
    files = plenty("train", "test")
    muted = np.asarray(scene(7)) // 2 + 64
    tinted = muted + np.array([20, 0, -52])  # the luma stays
    assert np.abs((tinted - muted) @ (0.299, 0.587, 0.114)).max() < 0.1
    files["train/a/muted.png"] = encoded(Image.fromarray(muted.astype(np.uint8)))
    files["test/a/tinted.png"] = encoded(Image.fromarray(tinted.astype(np.uint8)))
    assert audit(image_set(files)).near_duplicates == ()


def test_flat_and_faint_images_do_not_match_each_other():
    files = plenty("train", "test")
    generator = np.random.default_rng(0)
    for side in ("train", "test"):
        for gray in (0, 100, 101, 255):
            flat = np.full((32, 32, 3), gray, np.int16)
            faint = (flat + generator.integers(-6, 7, flat.shape)).clip(0, 255).astype(np.uint8)
            files[f"{side}/a/faint{gray}.png"] = encoded(Image.fromarray(faint))
    files["train/a/flat.png"] = encoded(Image.new("RGB", (32, 32), "gray"))
    files["test/a/flat.png"] = encoded(Image.new("RGB", (40, 40), "gray"))
    assert audit(image_set(files)).near_duplicates == ()


def brute_force(miniatures: np.ndarray, taking_part: np.ndarray) -> list[list[int]]:
    """Near pairs by the written rule, every image against every other."""
    gray = np.rint(miniatures @ np.array([0.299, 0.587, 0.114]))
    hashes = duplicates.perceptual_hashes(gray.astype(np.uint8)).tolist()
    gray = gray.reshape(len(miniatures), -1)
    variance = gray.var(axis=1)
    color = np.rint(miniatures.mean(axis=(1, 2)))
    found = []
    for one, other in itertools.combinations(np.flatnonzero(taking_part).tolist(), 2):
        if min(variance[one], variance[other]) < 16:
            continue
        if ((gray[one] - gray[other]) ** 2).mean() > 0.004 * (variance[one] + variance[other]) / 2:
            continue
        flips = (hashes[one] ^ hashes[other]).bit_count()
        if flips <= 7 and np.abs(color[one] - color[other]).max() <= 8:
            found.append([one, other])
    return found


def test_the_search_finds_what_brute_force_finds():
    generator = np.random.default_rng(0)
    miniatures = []
    for seed in range(80):
        base = np.asarray(scene(seed, 16)).astype(int)
        for strength in (0, 1, 2, 3, 6):
            noise = generator.normal(0, strength, base.shape)
            miniatures.append((base + noise).clip(0, 255).astype(np.uint8))
    stack = np.stack(miniatures)
    taking_part = generator.random(len(stack)) < 0.75
    found = duplicates.near_pairs(*duplicates.describe(stack), taking_part)
    expected = brute_force(stack, taking_part)
    assert found.tolist() == expected
    assert 200 < len(expected) < 1000
    ranks = generator.integers(0, 3, len(stack)).astype(np.int8)
    twins: dict[int, set[int]] = {}
    for pair in expected:
        weaker, stronger = sorted(pair, key=lambda index: ranks[index])
        if ranks[weaker] < ranks[stronger]:
            twins.setdefault(weaker, set()).add(stronger)
    across = duplicates.across_sides(found, ranks)
    assert across == [(weaker, min(twins[weaker])) for weaker in sorted(twins)]
    assert len(across) > 60


def test_the_search_survives_the_smallest_sets():
    for count in range(3):
        gray = np.zeros((count, 16, 16), np.uint8)
        gray[:, :8] = 200
        everyone = np.ones(count, bool)
        found = duplicates.near_pairs(gray, np.zeros((count, 3), np.uint8), everyone)
        assert found.tolist() == ([[0, 1]] if count == 2 else [])
        assert duplicates.across_sides(found, np.zeros(count, np.int8)) == []
        assert duplicates.clusters(found, everyone) == ([(0, 1)] if count == 2 else [])


def test_equal_bytes_with_different_labels_are_a_conflict():
    files = plenty("train", "test")
    files["train/b/odd.png"] = files["train/a/0.png"]
    result = audit(image_set(files))
    (conflict,) = result.conflicts
    assert (conflict.name, conflict.labels) == ("train/b/odd.png", ("b",))
    assert (conflict.twin, conflict.twin_labels) == ("train/a/0.png", ("a",))
    assert result.dropped == {}
    assert result.lines()[-2] == (
        "1 times the same image under different labels: train/b/odd.png (b) = train/a/0.png (a)"
    )
    with pytest.raises(DataError, match="1 times the same image under different labels"):
        audit(image_set(files), strict=True)


def test_lopsided_and_missing_classes_are_reported():
    files = plenty("train", "test")
    files |= {f"train/c/{n}.png": encoded(scene(200 + n)) for n in range(12)}
    files["test/d/1.png"] = encoded(scene(300))
    result = audit(image_set(files))
    assert result.missing == {"train": ("d",), "test": ("c",)}
    assert result.tiny == ("a", "b")
    assert result.imbalance == 4.0
    assert result.lines()[1:] == [
        "train lacks d",
        "test lacks c",
        "2 classes with fewer than 10 training images: a; b",
        "the largest class has 4.0 times the training images of the smallest",
    ]


def test_long_lists_are_cut():
    files = plenty("train", "test") | {f"train/a/bad{n}.png": b"" for n in range(9)}
    line = next(line for line in audit(image_set(files)).lines() if "unreadable" in line)
    assert line.count("bad") == 5
    assert line.endswith("; and 4 more")


def test_a_class_that_vanishes_is_an_error():
    files = plenty("train", "test") | {"train/c/1.png": b"", "test/c/2.png": encoded(scene(50))}
    with pytest.raises(
        DataError, match=r"no training image of c is left \(1 images unreadable, 0 "
    ):
        audit(image_set(files))
    files["train/c/1.png"] = files["test/c/2.png"]
    with pytest.raises(DataError, match=r"of c is left \(0 images unreadable, 1 dropped"):
        audit(image_set(files))
    hashed = {f"{label}/{n}.png": encoded(scene(60 + n)) for label in "a" for n in range(9)}
    with pytest.raises(DataError, match="no training image of b is left"):
        audit(image_set(hashed | {"b/1.png": b"no image"}))


def test_what_cannot_be_trained_on_is_an_error():
    with pytest.raises(DataError, match=r"none of 2 images can be read; the first: a/1.png: empty"):
        audit(image_set({"a/1.png": b"", "b/2.png": b""}))
    one = {f"train/a/{n}.png": encoded(scene(n)) for n in range(3)}
    one["test/b/1.png"] = encoded(scene(9))
    with pytest.raises(DataError, match="only 'a' has training images; give at least two classes"):
        audit(image_set(one))


def test_a_reader_that_fails_costs_one_image():
    files = plenty("train", "test")
    images = image_set(files)

    def source(name: str) -> bytes:
        if name == "train/a/1.png":
            raise ImageError(name, "damaged archive")
        if name == "train/b/1.png":
            raise OSError(5, "Input/output error")
        return files[name]

    result = audit(ImageSet("made", images.items, source))
    assert result.unreadable == (
        ("train/a/1.png", "damaged archive"),
        ("train/b/1.png", "input/output error"),
    )


def test_an_audit_survives_json():
    files = plenty("train", "val", "test")
    files["train/a/copy.png"] = files["test/b/0.png"]
    files["train/a/touched"] = encoded(scene(13), "JPEG", quality=70)
    files["train/a/bad"] = b"?"
    data = audit(image_set(files)).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["split"] == {
        "origin": "given",
        "notes": [],
        "sizes": {"train": 6, "val": 6, "test": 6},
    }
    assert len(data["exact_duplicates"]) == len(data["near_duplicates"]) == 1
    assert len(data["conflicts"]) == 1


@needs_shared
@pytest.mark.parametrize(
    ("name", "near", "inside"),
    [
        ("hymenoptera", 0, 0),
        ("flowers12", 23, 68),
        ("neu_steel", 0, 0),
        ("sign_digits", 0, 0),
        ("pacs/photo", 0, 0),
    ],
)
def test_real_photos_textures_and_digits(name, near, inside):
    images = open_images(SHARED / name)
    result = audit(images)
    assert result.unreadable == ()
    assert result.exact_duplicates == ()
    assert len(result.near_duplicates) == near
    assert sum(map(len, result.lookalikes)) == inside
    assert result.crowds == ()
    for twins in result.near_duplicates:  # found by pixels alone, and of one class every time
        assert twins.name.split("/")[-2] == twins.twin.split("/")[-2]
    for cluster in result.lookalikes:
        assert len({images.items[index].labels for index in cluster}) == 1


@needs_shared
def test_the_search_loses_none_on_real_scans():
    images = open_images(SHARED / "medical_mnist_64_tenth.zip")
    kinds = ("AbdomenCT", "BreastMRI")
    keep = [i for i, item in enumerate(images.items) if item.name.startswith(kinds)][:700]
    stack = np.stack([thumbnail(images.read(index), "x", 16) for index in keep])
    everyone = np.ones(len(keep), bool)
    found = duplicates.near_pairs(*duplicates.describe(stack), everyone)
    expected = brute_force(stack, everyone)
    assert found.tolist() == expected
    assert len(expected) >= 10


def numbered(values: list[str], same: tuple[int, ...] = ()) -> ImageSet:
    """Pictures labeled with numbers; those at `same` have the bytes of the first."""
    items = tuple(Item(f"{n}.png", tuple(value.split())) for n, value in enumerate(values))
    files = {f"{n}.png": encoded(scene(0 if n in same else n)) for n in range(len(values))}
    return ImageSet("made", items, files.__getitem__)


def test_numbers_are_no_classes():
    images = numbered([str(n / 7) for n in range(20)])
    result = audit(images, numbers=True)
    assert (result.counts, result.missing, result.tiny, result.imbalance) == ({}, {}, (), 1.0)
    sizes = len(result.split.train), len(result.split.test)
    assert sum(sizes) == 20
    assert min(sizes) > 0
    assert result.lines() == [
        f"20 images, labeled with numbers: {sizes[0]} train, {sizes[1]} test (split by hash)"
    ]
    assert json.loads(json.dumps(result.to_dict()))["counts"] == {}


def test_the_same_image_with_other_numbers_is_a_conflict():
    images = numbered(["1", "2", "1.0", "3"], same=(2, 3))
    assert [found.name for found in audit(images, numbers=True).conflicts] == ["3.png"]
    turned = numbered(["1 2", "3 4", "2 1"], same=(2,))
    assert [found.name for found in audit(turned, numbers=True).conflicts] == ["2.png"]
    with pytest.raises(DataError, match=r"made: the label 'old' of 2.png is no number"):
        audit(numbered(["1", "2", "old"], same=(2,)), numbers=True)


def test_several_labels_are_counted_each_and_split_so_that_none_misses_a_side():
    generator = np.random.default_rng(0)
    labels = [tuple(np.array(list("abc"))[generator.random(3) < 0.4]) for _ in range(40)]
    items = tuple(Item(f"{n}.png", own) for n, own in enumerate(labels))
    files = {item.name: encoded(scene(n)) for n, item in enumerate(items)}
    images = ImageSet("made", items, files.__getitem__, multilabel=True)
    result = audit(images)
    assert () in labels
    for label in "abc":
        sides = result.counts[label]
        assert sides["train"] + sides["test"] == sum(label in own for own in labels)
        assert min(sides["train"], sides["test"]) > 0
    assert result.missing == {}
