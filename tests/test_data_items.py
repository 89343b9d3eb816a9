"""What is listed where, what is skipped and why, and the words of every refusal."""

import io
import os
import pickle
import struct
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from topwork.data import folders
from topwork.data.arrays import encode
from topwork.data.decode import decode
from topwork.data.image_set import numbers_of
from topwork.data.items import Item, images_from_arrays, images_from_paths, open_images
from topwork.errors import DataError, ImageError, UsageError

SHARED = Path(__file__).parents[1] / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")


def picture(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), color).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Make files below a folder; images are pictures, everything else is text."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if path.suffix == ".png" else b"text")
    return root


def packed(path: Path, *names: str, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name in names:
            archive.writestr(name, picture() if name.endswith(".png") else b"text")
    return path


def refusal(location: Path | str, **options) -> str:
    with pytest.raises(DataError) as caught:
        open_images(location, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(location))
    return text.removeprefix(str(location)).removeprefix(": ")


def facts(images) -> list[tuple]:
    return [(item.name, item.labels, item.split) for item in images.items]


# Folders


def test_class_folders_are_listed_in_order_with_nested_images(tmp_path):
    fill(tmp_path, "cat/b.png", "cat/a.png", "ant/deep/er/c.png", "ant/d.PNG", "cat/notes.txt")
    fill(tmp_path, ".hidden/x.png", "cat/.y.png", "cat/Thumbs.db", "__MACOSX/cat/a.png", "README")
    fill(tmp_path, "loose.png")
    (tmp_path / "empty").mkdir()
    images = open_images(tmp_path)
    assert facts(images) == [
        ("ant/d.PNG", ("ant",), None),
        ("ant/deep/er/c.png", ("ant",), None),
        ("cat/a.png", ("cat",), None),
        ("cat/b.png", ("cat",), None),
    ]
    assert images.classes == ("ant", "cat")
    assert not images.multilabel
    assert images.location == str(tmp_path)
    assert images.skipped == (
        ("cat/notes.txt", "not an image extension"),
        ("empty/", "no images in this folder"),
        ("loose.png", "not in a class folder"),
    )
    assert images.read(3) == picture()


@pytest.mark.parametrize(
    ("folder", "side"),
    [
        ("val", "val"),
        ("Valid", "val"),
        ("validation", "val"),
        ("test", "test"),
        ("TESTING", "test"),
    ],
)
def test_split_folders_by_all_their_names(tmp_path, folder, side):
    fill(tmp_path, "Training/a/1.png", "Training/b/2.png", f"{folder}/a/3.png", "extra/c/4.png")
    fill(tmp_path, "Training/5.png")
    images = open_images(tmp_path)
    assert {item.name: item.split for item in images.items} == {
        "Training/a/1.png": "train",
        "Training/b/2.png": "train",
        f"{folder}/a/3.png": side,
    }
    assert images.skipped == (
        ("Training/5.png", "not in a class folder"),
        ("extra/", f"beside {' and '.join(sorted(['Training/', folder + '/']))}"),
    )


def test_train_alone_is_a_side_and_beside_buses_a_class(tmp_path):
    alone = open_images(fill(tmp_path / "alone", "train/a/1.png", "train/b/2.png"))
    assert [(item.labels, item.split) for item in alone.items] == [
        (("a",), "train"),
        (("b",), "train"),
    ]
    vehicles = open_images(fill(tmp_path / "vehicles", "train/1.png", "bus/2.png"))
    assert vehicles.classes == ("bus", "train")
    trial = open_images(fill(tmp_path / "trial", "test/1.png", "control/2.png"))
    assert trial.classes == ("control", "test")


def test_links_are_followed_but_never_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", "1.png")
    root = fill(tmp_path / "root", "a/2.png", "b/3.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to(root / "a")
    (root / "b/gone.png").symlink_to(root / "nowhere")
    (root / "b/file.png").symlink_to(root / "a/2.png")
    os.mkfifo(root / "b/pipe.png")
    images = open_images(root)
    assert [item.name for item in images.items] == ["a/2.png", "b/3.png", "b/file.png", "c/1.png"]
    assert dict(images.skipped) == {
        "a/self": "a link to a folder that is listed already",
        "a/up": "a link to a folder that is listed already",
        "b/gone.png": "a broken link",
        "b/pipe.png": "neither a file nor a folder",
    }


def test_folders_that_link_to_each_other_end(tmp_path):
    root = fill(tmp_path, "a/1.png", "b/2.png")
    (root / "a/x").symlink_to(root / "b")
    (root / "b/y").symlink_to(root / "a")
    images = open_images(root)
    names = {item.name for item in images.items}
    assert {"a/1.png", "b/2.png"} < names
    assert len(names) < 6
    assert {reason for _, reason in images.skipped} == {"a link to a folder that is listed already"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_text_are_skipped(tmp_path):
    fill(tmp_path, "a/1.png", "b/2.png")
    with open(os.fsencode(tmp_path) + b"/a/\xff.png", "wb") as file:
        file.write(picture())
    images = open_images(tmp_path)
    assert len(images) == 2
    assert images.skipped == (("a/\\udcff.png", "its name is not valid UTF-8"),)


def test_listing_looks_at_no_single_file(tmp_path, monkeypatch):
    fill(tmp_path, *(f"{label}/{index}.png" for label in "ab" for index in range(50)))

    def counting(path, *args, **kwargs):
        stats.append(path)
        return original(path, *args, **kwargs)

    stats: list = []
    original = os.stat
    monkeypatch.setattr(os, "stat", counting)
    assert len(open_images(tmp_path)) == 100
    assert len(stats) < 10


def test_reading_what_has_gone_or_is_closed_is_an_image_error(tmp_path, monkeypatch):
    images = open_images(fill(tmp_path, "a/1.png", "b/2.png"))
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(ImageError, match=r"^a/1.png: no such file$"):
        images.read(0)

    def closed(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(ImageError, match=r"^b/2.png: no permission to read it$"):
        images.read(1)


def test_a_file_beyond_all_measure_is_not_read(tmp_path, monkeypatch):
    images = open_images(fill(tmp_path, "a/1.png", "b/2.png"))
    zipped = open_images(packed(tmp_path / "z.zip", "a/1.png", "b/2.png"))
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 10)
    for each in (images, zipped):
        with pytest.raises(ImageError, match="larger than"):
            each.read(0)


def test_refusals_of_folders_say_what_to_do(tmp_path):
    assert refusal(tmp_path / "absent") == "no such file or folder; check the path"
    assert refusal(fill(tmp_path, "flowers/a/1.png") / "flower") == (
        "no such file or folder; did you mean 'flowers'?"
    )
    (tmp_path / "empty").mkdir()
    assert "empty; put one sub-folder of images per class" in refusal(tmp_path / "empty")
    fill(tmp_path / "text", "a/1.txt", "b/2.txt")
    assert "no images in it" in refusal(tmp_path / "text")
    fill(tmp_path / "flat", "1.png", "2.png")
    assert "no class sub-folders, the images lie directly in it" in refusal(tmp_path / "flat")
    fill(tmp_path / "flat", "labels.csv")
    assert refusal(tmp_path / "flat").endswith(f"give that: {tmp_path}/flat/labels.csv")
    fill(tmp_path / "flat_sides", "train/1.png", "test/2.png")
    assert "no class sub-folders" in refusal(tmp_path / "flat_sides")
    assert refusal(fill(tmp_path / "one", "a/1.png")) == (
        "only one class, 'a'; give at least two classes"
    )
    assert refusal(fill(tmp_path / "deep", "data/a/1.png", "data/b/2.png")).endswith(
        "if the folders inside data/ are the classes, give that folder alone"
    )
    fill(tmp_path / "untrained", "test/a/1.png", "val/b/2.png")
    assert "has test/ and val/ but no train/" in refusal(tmp_path / "untrained")
    fill(tmp_path, "photo.png", "data.tar", "data.xyz")
    assert "a single image" in refusal(tmp_path / "photo.png")
    assert "unpack this archive" in refusal(tmp_path / "data.tar")
    assert "unknown kind of data .xyz" in refusal(tmp_path / "data.xyz")
    assert "cannot be looked at" in refusal("x" * 300)


def test_no_permission_is_said(tmp_path, monkeypatch):
    root = fill(tmp_path, "a/1.png", "b/2.png", "closed/3.png")
    original = os.scandir

    def scandir(path):
        if str(path).rstrip("/").endswith(closed):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = "closed"
    assert open_images(root).skipped == (("closed/", "no permission to read this folder"),)
    closed = str(root)
    assert refusal(root) == "no permission to read this folder"
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no permission to read any of its 3 images" in refusal(root)


# Zip archives


@pytest.mark.parametrize("prefix", ["", "wrapper/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_lists_and_reads_like_its_folder(tmp_path, prefix, method):
    names = ["train/a/1.png", "train/b/x/2.png", "val/a/3.png", "train/a/notes.txt", "extra/4.png"]
    folder = open_images(fill(tmp_path / "folder", *names, ".git/5.png"))
    litter = ["__MACOSX/train/a/._1.png", f"{prefix}.DS_Store"]
    inside = [prefix + name for name in names]
    path = packed(tmp_path / "z.zip", *inside, *litter, compression=method)
    images = open_images(path)
    assert [(item.name.removeprefix(prefix), item.labels, item.split) for item in images.items] == (
        facts(folder)
    )
    assert [(name.removeprefix(prefix), why) for name, why in images.skipped] == list(
        folder.skipped
    )
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(images.read, [0, 1, 2] * 40)) == {picture()}
    assert pickle.loads(pickle.dumps(images)).read(2) == picture()


def test_a_wrapper_is_told_from_a_class(tmp_path):
    path = packed(tmp_path / "z.zip", "train/a/1.png", "train/b/2.png")
    assert {item.split for item in open_images(path).items} == {"train"}
    assert "only one class, 'cats'" in refusal(packed(tmp_path / "cats.zip", "cats/1.png"))


def test_backslashes_of_other_systems_are_slashes(tmp_path):
    path = packed(tmp_path / "z.zip", "a\\1.png", "b\\2.png")
    images = open_images(path)
    assert [item.name for item in images.items] == ["a/1.png", "b/2.png"]
    assert images.read(1) == picture()


def test_damage_inside_a_zip_costs_one_image(tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = packed(tmp_path / f"{method}.zip", "a/1.png", "b/2.png", compression=method)
        data = bytearray(path.read_bytes())
        data[30 + len("a/1.png") + 20] ^= 0xFF
        path.write_bytes(data)
        images = open_images(path)
        with pytest.raises(ImageError, match=r"^a/1.png: damaged archive$"):
            images.read(0)
        assert images.read(1) == picture()


def test_refusals_of_zips(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    assert "not a zip archive, or damaged" in refusal(tmp_path / "broken.zip")
    whole = packed(tmp_path / "whole.zip", "a/1.png", "b/2.png").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    assert "not a zip archive, or damaged" in refusal(tmp_path / "cut.zip")
    secret = bytearray(whole)
    central = secret.index(b"PK\x01\x02")
    secret[central + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(secret)
    assert "encrypted" in refusal(tmp_path / "secret.zip")
    assert "empty" in refusal(packed(tmp_path / "empty.zip"))
    images = open_images(packed(tmp_path / "bz.zip", "a/1.png", "b/2.png", compression=12))
    with pytest.raises(ImageError, match="a method other than deflate"):
        images.read(0)


# Arrays


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1), (7, 5, 3), (7, 5, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
def test_array_images_decode_to_their_values(shape, dtype):
    generator = np.random.default_rng(0)
    high = np.iinfo(dtype).max
    array = generator.integers(0, high, shape, dtype=np.dtype(dtype).newbyteorder("="))
    array = array.astype(dtype)
    eight_bit = array if high == 255 else np.rint(array / 257)
    if shape[2:] == (4,):
        alpha = eight_bit[..., 3:] / 255
        expected = eight_bit[..., :3] * alpha + 255 * (1 - alpha)
        tolerance = 1.01
    else:
        expected = eight_bit.reshape(7, 5, -1)
        tolerance = 0 if high == 255 or shape[2:] != (3,) else 1
    result = np.asarray(decode(encode(array), "x"), dtype=float)
    assert np.abs(result - expected).max() <= tolerance


def test_image_and_label_arrays_make_items():
    images = images_from_arrays(
        np.zeros((3, 4, 4, 3), np.uint8),
        np.array([3, 10, 3]),
        split=["train", "val", "test"],
        group=["p", None, 7],
    )
    assert images.items == (
        Item("images[0]", ("3",), "train", "p"),
        Item("images[1]", ("10",), "val", None),
        Item("images[2]", ("3",), "test", "7"),
    )
    assert images.read(2).startswith(b"P6\n4 4\n255\n")
    assert pickle.loads(pickle.dumps(images)).read(0) == images.read(0)
    assert [item.name for item in images.subset([2, 0]).items] == ["images[2]", "images[0]"]
    assert images.subset([2, 0]).read(0) == images.read(2)


@pytest.mark.parametrize(
    ("shape", "dtype", "labels", "message"),
    [
        ((2, 4), np.uint8, [0, 1], "has shape (2, 4)"),
        ((2, 3, 8, 8), np.uint8, [0, 1], "has shape (2, 3, 8, 8)"),
        ((2, 0, 8), np.uint8, [0, 1], "has shape (2, 0, 8)"),
        ((2, 4, 4), np.float32, [0, 1], "is float32; give uint8 or uint16"),
        ((2, 4, 4), np.uint8, [0], "2 images in 'images' but 1 labels"),
        ((2, 4, 4), np.uint8, [0, 1.5], "label 1.5 is neither a name nor a whole number"),
        ((2, 4, 4), np.uint8, [0, None], "label None"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(shape, dtype, labels, message):
    with pytest.raises(DataError) as caught:
        images_from_arrays(np.zeros(shape, dtype), labels)
    assert message in str(caught.value)


def test_npz_files_by_their_usual_names(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 6, 5), dtype=np.uint8)
    labels = np.array([0, 1, 0, 1])
    path = tmp_path / "d.npz"
    np.savez(path, x_train=images, y_train=labels[:, None], x_test=images[:2], y_test=labels[:2])
    opened = open_images(path)
    assert facts(opened)[:1] == [("x_train[0]", ("0",), "train")]
    assert facts(opened)[-1:] == [("x_test[1]", ("1",), "test")]
    assert (np.asarray(decode(opened.read(2), "x"))[..., 0] == images[2]).all()
    np.savez_compressed(path, images=images, labels=np.array(["b", "a", "b", "a"]))
    assert [item.labels for item in open_images(path).items] == [("b",), ("a",), ("b",), ("a",)]
    assert {item.split for item in open_images(path).items} == {None}
    np.savez(path, train_images=images, train_labels=labels, val_images=images, val_labels=labels)
    assert [item.split for item in open_images(path).items] == ["train"] * 4 + ["val"] * 4


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_refusals_of_npz_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.zeros((2, 4, 4), np.uint8)
    path = tmp_path / "d.npz"
    np.savez(path, pictures=images, answers=[0, 1])
    assert "it has answers, pictures; name them as one of x_train/y_train" in refusal(path)
    np.savez(path, x_train=images)
    assert "has 'x_train' but no 'y_train'" in refusal(path)
    np.savez(path, x_train=images, y_train=np.array([Trap(), 1], dtype=object))
    assert "array 'y_train' holds Python objects (pickle)" in refusal(path)
    path.write_bytes(pickle.dumps(Trap()))
    assert "not an .npz file" in refusal(path)
    assert not (tmp_path / "trapped").exists()
    np.savez(path, x_train=images, y_train=np.eye(2))
    assert "'y_train' has shape (2, 2); give one label per image" in refusal(path)
    np.savez(path, x_train=images, y_train=[1, 1])
    assert "only one class, '1'" in refusal(path)
    np.savez(path, x_train=images, y_train=[0, 1])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not an .npz file, or damaged" in refusal(path)
    with open(path, "wb") as file:
        np.save(file, images)
    assert "not an .npz file, or damaged" in refusal(path)
    greedy = struct.pack("<6sBBH", b"\x93NUMPY", 1, 0, 118) + (
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", greedy)
    assert "'x_train' is too large" in refusal(path) or "damaged" in refusal(path)


# Manifests


def table(path: Path, text: str, **options) -> Path:
    path.write_text(text, **{"encoding": "utf-8"} | options)
    return path


def test_a_csv_by_the_usual_column_names(tmp_path):
    fill(tmp_path, "img/1.png", "img/2.png", "img/3.png", "img/4.png")
    path = table(
        tmp_path / "d.csv",
        "Filename,CLASS,Split,group,note\n"
        'img/1.png,"a, b",train,p,"x\ny"\n'
        "img\\2.png,c,Validation,,\n"
        "./img/3.png, c ,test,q\n"
        "img/3.png,c,test,q,\n"
        "img/9.png,c,test,q,\n"
        "img/4.png, ,test,q,\n"
        ",c,test,q,\n",
        encoding="utf-8-sig",
    )
    images = open_images(path)
    assert images.items == (
        Item("img/1.png", ("a, b",), "train", "p"),
        Item("img/2.png", ("c",), "val", None),
        Item("img/3.png", ("c",), "test", "q"),
    )
    assert images.skipped == (
        ("img/3.png", "listed before"),
        ("img/9.png", "no such file"),
        ("img/4.png", "blank label"),
        ("row 7", "blank path"),
    )
    assert images.read(1) == picture()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_can_be_named_and_delimiters_are_found(tmp_path, delimiter):
    fill(tmp_path, "1.png", "2.png")
    rows = [
        ["photo", "kind", "part", "who"],
        ["1.png", "a", "train", "p"],
        ["2.png", "b", "val", "q"],
    ]
    path = table(tmp_path / "d.csv", "\n".join(delimiter.join(row) for row in rows))
    images = open_images(
        path, path_column="photo", label_columns=["Kind"], split_column="part", group_column="who"
    )
    assert images.items == (Item("1.png", ("a",), "train", "p"), Item("2.png", ("b",), "val", "q"))


def test_several_label_columns_are_indicators(tmp_path):
    fill(tmp_path, "1.png", "2.png", "3.png", "4.png")
    text = "path,wet,cold\n1.png,1,0\n2.png,True,1.0\n3.png,0,false\n4.png,1,\n"
    images = open_images(table(tmp_path / "d.csv", text), label_columns=["wet", "cold"])
    assert images.multilabel
    assert images.classes == ("cold", "wet")
    assert [item.labels for item in images.items] == [("wet",), ("wet", "cold"), ()]
    assert images.skipped == (("4.png", "blank label"),)
    path = table(tmp_path / "d.csv", "path,wet,cold\n1.png,1,0\n2.png,2,0\n")
    assert "column 'wet' holds '2' in row 2" in refusal(path, label_columns=["wet", "cold"])


def test_columns_of_0_and_1_are_labels_where_there_is_no_label_column(tmp_path):
    fill(tmp_path, "1.png", "2.png", "3.png")
    text = (
        "Split,image,wet,cold,group\ntrain,1.png,1,0,a\ntrain,2.png,True,1.0,a\ntest,3.png,0,,b\n"
    )
    images = open_images(table(tmp_path / "d.csv", text))
    assert images.multilabel
    assert images.classes == ("cold", "wet")
    assert [(i.labels, i.split, i.group) for i in images.items] == [
        (("wet",), "train", "a"),
        (("wet", "cold"), "train", "a"),
    ]
    assert images.skipped == (("3.png", "blank label"),)
    labeled = table(tmp_path / "d.csv", "path,label,wet,cold\n1.png,a,1,0\n2.png,b,0,1\n")
    assert not open_images(labeled).multilabel
    for other in ("path,wet,cold\n1.png,1,0\n2.png,2,0\n", "path,wet\n1.png,1\n2.png,0\n"):
        assert "no column for the label" in refusal(table(tmp_path / "d.csv", other))


def test_several_names_in_one_cell_are_divided_where_asked_for(tmp_path):
    fill(tmp_path, "1.png", "2.png", "3.png", "4.png")
    text = "path,label\n1.png,wet; cold;wet\n2.png,dark\n3.png,\n4.png,;\n"
    path = table(tmp_path / "d.csv", text)
    images = open_images(path, label_separator=";")
    assert images.multilabel
    assert [item.labels for item in images.items] == [("wet", "cold"), ("dark",), ()]
    assert images.skipped == (("3.png", "blank label"),)
    assert open_images(path).items[0].labels == ("wet; cold;wet",)
    for options in ({"numbers": True}, {"label_columns": ["label", "path"]}):
        with pytest.raises(UsageError, match="label_separator divides the class names in one"):
            open_images(path, label_separator=";", **options)
    with pytest.raises(UsageError, match="only a CSV or Parquet manifest has columns"):
        open_images(tmp_path, label_separator=";")


def test_number_columns_are_kept_as_they_are_named(tmp_path):
    fill(tmp_path, "1.png", "2.png", "3.png")
    text = "path,age,size\n1.png,41.5,0\n2.png,x,1\n3.png,,1\n"
    path = table(tmp_path / "d.csv", text)
    images = open_images(path, label_columns=["age", "size"], numbers=True)
    assert images.number_names == ("age", "size")
    assert not images.multilabel
    assert [item.labels for item in images.items] == [("41.5", "0"), ("x", "1")]
    assert images.skipped == (("3.png", "blank label"),)
    assert numbers_of(images, 0) == (41.5, 0.0)
    with pytest.raises(DataError, match=r"d.csv: the label 'x' of 2.png is no number; correct it"):
        numbers_of(images, 1)
    assert open_images(path, label_columns=["age"], numbers=True).number_names == ("age",)


def test_a_fold_column_of_numbers_is_no_split_unless_asked_for(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    path = table(tmp_path / "d.csv", "path,label,fold\n1.png,a,1\n2.png,b,2\n")
    assert {item.split for item in open_images(path).items} == {None}
    assert "column 'fold' holds '1' in row 1; give train" in refusal(path, split_column="fold")


def test_a_split_is_never_dropped_for_one_name_that_is_not_known(tmp_path):
    fill(tmp_path, "1.png", "2.png", "3.png")
    path = table(tmp_path / "d.csv", "path,label,split\n1.png,a,train\n2.png,b,holdout\n3.png,b,\n")
    assert "'split' holds 'holdout' in row 2; give train, val or test" in refusal(path)
    path = table(tmp_path / "d.csv", "path,label,split\n1.png,a,train\n2.png,b,dev\n3.png,b,test\n")
    assert [item.split for item in open_images(path).items] == ["train", "val", "test"]


def test_a_parquet_says_the_same_as_its_csv(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    fill(tmp_path, "1.png", "2.png", "3.png")
    columns = {"path": ["1.png", "2.png", "3.png"], "label": [1, 2, None], "split": [None] * 3}
    parquet.write_table(arrow.table(columns), tmp_path / "d.parquet")
    images = open_images(tmp_path / "d.parquet")
    assert [(item.name, item.labels, item.split) for item in images.items] == [
        ("1.png", ("1",), None),
        ("2.png", ("2",), None),
    ]
    assert images.skipped == (("3.png", "blank label"),)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    assert "not a Parquet file, or damaged" in refusal(tmp_path / "bad.parquet")


def test_parquet_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'topwork[parquet]'" in refusal(fill(tmp_path, "d.parquet") / "d.parquet")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "empty; give a header"),
        ("path,lable\n1.png,a\n", {}, "no column for the label (tried label, class, category"),
        ("pic,label\n1.png,a\n", {}, "no column for the image path (tried path, file"),
        ("path,label\n1.png,a\n", {"label_columns": ["lable"]}, "did you mean 'label'?"),
        ("path,label\n1.png,a\n", {"path_column": "x"}, "its columns are path, label"),
        ("path,label\n1.png,a\n", {"group_column": "x"}, "no column 'x'"),
        ("path,label,path\n1.png,a,b\n", {}, "column 'path' appears twice"),
        ("path,label\n8.png,a\n9.png,b\n", {}, "none of its 2 images is there"),
        ("path,label\n1.png,\n", {}, "none of its 1 entries can be used; the first: 1.png: blank"),
        ("path,label\n", {}, "none of its 0 entries can be used"),
        ("path,label\n1.png,a\n", {}, "only one class, 'a'"),
    ],
)
def test_refusals_of_manifests(tmp_path, text, options, message):
    fill(tmp_path, "1.png")
    assert message in refusal(table(tmp_path / "d.csv", text), **options)


def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "d.csv").write_bytes("path,label\nä,b\n".encode("latin-1"))
    assert refusal(tmp_path / "d.csv") == "not UTF-8 text; save it as UTF-8"


def test_column_options_are_for_manifests_only(tmp_path):
    with pytest.raises(UsageError, match="only a CSV or Parquet manifest has columns"):
        open_images(fill(tmp_path, "a/1.png", "b/2.png"), label_columns=["x"])


# Paths to predict


def test_paths_are_taken_as_given_and_folders_walked(tmp_path):
    fill(tmp_path, "b/notes.txt", "b/.x.png", "a.png", "odd_name")
    fill(tmp_path, *(f"b/{number}.png" for number in range(30)))
    images = images_from_paths([tmp_path / "odd_name", tmp_path / "b", tmp_path / "b/2.png"])
    assert [Path(item.name).relative_to(tmp_path).as_posix() for item in images.items] == [
        "odd_name",
        *sorted(f"b/{number}.png" for number in range(30)),
    ]
    assert {item.labels for item in images.items} == {()}
    assert images.read(1) == picture()
    with pytest.raises(DataError, match=r"did you mean 'a\.png'"):
        images_from_paths([tmp_path / "a.pgn"])
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images there"):
        images_from_paths([tmp_path / "none"])
    with pytest.raises(DataError, match="no paths: no images there"):
        images_from_paths([])


# Real data


@needs_shared
def test_real_data_sets_are_listed_whole():
    sizes = {
        "hymenoptera": (398, 2),
        "flowers12": (960, 12),
        "neu_steel": (900, 6),
        "pacs/photo": (420, 7),
        "medical_mnist_64_tenth.zip": (5896, 6),
        "cifar10_third_jpg.zip": (20010, 10),
    }
    for name, (count, classes) in sizes.items():
        images = open_images(SHARED / name)
        assert (len(images), len(images.classes), images.skipped) == (count, classes, ())
        assert decode(images.read(count - 1), name).mode == "RGB"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "1.png,bear, brown\n2.png,cat\n",
            "row 1 has 3 cells, the header 2; quote what holds a ','",
        ),
        ('1.png,a\n2.png,"b\n3.png,a\n', "cannot be read as CSV (unexpected end of data); mend"),
    ],
)
def test_cells_that_would_merge_classes_are_refused(tmp_path, rows, message):
    fill(tmp_path, "1.png", "2.png", "3.png")
    assert message in refusal(table(tmp_path / "d.csv", "path,label\n" + rows))


def test_a_column_called_split_that_names_no_side_is_refused(tmp_path):
    fill(tmp_path, "1.png", "2.png")
    path = table(tmp_path / "d.csv", "path,label,split\n1.png,a,trn\n2.png,b,tst\n")
    assert "column 'split' holds 'trn' in row 1; give train, val or test" in refusal(path)


def test_zips_with_dots_and_repeats(tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("./a/1.png", "./b/2.png", "./b/2.png"):
            archive.writestr(name, b"png")
    images = open_images(path)
    assert [item.name for item in images.items] == ["a/1.png", "b/2.png"]
    assert images.skipped == (("b/2.png", "several times in the archive; the last is taken"),)


def test_what_to_do_with_a_manifest_in_a_zip(tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.png", b"png")
        archive.writestr("labels.csv", b"path,label")
    assert "if it has a manifest, give that: unpacked, labels.csv" in refusal(path)
