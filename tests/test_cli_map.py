"""``predict --map``: class maps drawn over photos; and that rows appear as they are known."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from conftest import Result, exit_code, fit
from topwork.errors import ImageError, UsageError
from topwork.network.predictor import Predictor, load
from topwork.network.sliding import LONGEST, ZOOM, ClassMap, class_map, map_size, slide, weights
from topwork.report import class_map as drawing


def rows_of(result: Result) -> list[dict]:
    assert result.code == 0, result.err
    return json.loads(result.out)["predictions"]


@pytest.fixture
def photos(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of two pictures of one stem and a broken one; they lie where we are."""
    monkeypatch.chdir(tmp_path)
    for folder, label in (("a", "disc"), ("b", "stripes")):
        Path(folder).mkdir()
        shutil.copy(pictures / "test" / label / "00.png", f"{folder}/photo.png")
    Path("broken.png").write_bytes(b"no image")
    return ["a/photo.png", "b/photo.png", "broken.png"]


# --- the command --------------------------------------------------------------------------------


def test_a_map_for_each_photo_that_can_be_read(topwork, fitted, photos) -> None:
    plain = rows_of(topwork("predict", fitted.folder, *photos, "--json"))
    rows = rows_of(topwork("predict", fitted.folder, *photos, "--json", "--map", "made/maps"))
    assert [row.pop("map", None) for row in rows] == [
        "made/maps/photo.png",
        "made/maps/photo-2.png",
        None,
    ]
    assert rows == plain
    assert sorted(path.name for path in Path("made/maps").iterdir()) == [
        "photo-2.png",
        "photo.png",
    ]
    for path in Path("made/maps").iterdir():
        with Image.open(path) as drawn:
            assert drawn.format == "PNG"
            assert min(drawn.size) > 200


def test_csv_stays_as_it_is(topwork, fitted, photos) -> None:
    plain = topwork("predict", fitted.folder, *photos, "--top", 2)
    mapped = topwork("predict", fitted.folder, *photos, "--top", 2, "--map", "maps")
    assert mapped == plain
    assert len(list(Path("maps").iterdir())) == 2


def test_json_lines_name_the_maps(topwork, fitted, photos) -> None:
    result = topwork("predict", fitted.folder, photos[0], "--format", "jsonl", "--map", "maps")
    assert json.loads(result.out)["map"] == "maps/photo.png"


def test_photos_in_the_folder_are_not_overwritten(topwork, fitted, photos) -> None:
    before = Path("a/photo.png").read_bytes()
    (row,) = rows_of(topwork("predict", fitted.folder, "a", "--json", "--map", "a"))
    assert row["map"] == "a/photo-2.png"
    assert Path("a/photo.png").read_bytes() == before


def test_a_strip_gets_a_row_and_no_map(topwork, fitted, photos) -> None:
    Image.new("RGB", (900, 100)).save("strip.png")
    result = topwork("predict", fitted.folder, "strip.png", "--json", "--map", "maps")
    (row,) = rows_of(result)
    assert row.keys() == {"path", "top"}
    assert result.err == (
        "strip.png: more than 8 times as long as wide, so no map is made; cut it up\n"
    )
    assert not list(Path("maps").iterdir())


def test_a_folder_that_cannot_be_made(topwork, fitted, photos) -> None:
    result = topwork("predict", fitted.folder, photos[0], "--map", "broken.png")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "topwork: --map broken.png cannot be made: file exists; choose another folder\n"
    )


def test_a_vision_transformer_has_no_map(topwork, pictures, tmp_path) -> None:
    import timm
    from safetensors.torch import save_file

    folder = tmp_path / "backbone"
    folder.mkdir()
    size = {"img_size": 64, "depth": 1}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, **size)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "pretrained_cfg": {"input_size": [3, 64, 64]},
        "model_args": size,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run = fit(pictures, folder, tmp_path)
    assert run.result.code == 0
    photo = pictures / "test" / "disc" / "00.png"
    result = topwork("predict", run.folder, photo, "--map", tmp_path / "maps")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "topwork: patch_embed makes tokens, whose positions belong to one size of image; the"
        " network cannot be slid: choose one with a map below its top, such as AlexNet, VGG,"
        " ResNet or MobileNet\n"
    )
    assert not (tmp_path / "maps").exists()


def test_a_model_of_numbers_has_no_map(fitted, monkeypatch) -> None:
    predictor = load(fitted.folder)
    object.__setattr__(predictor, "kind", "numbers")
    with pytest.raises(UsageError, match="predicts numbers, of which there is no map of classes"):
        slide(predictor)


# --- rows as they come --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_row_is_written_before_the_next_image_is_looked_at(
    fitted, photos, monkeypatch, form
) -> None:
    seen = []

    def one_by_one(self, images, indices, track, views):
        for index in indices:
            seen.append(Path("out").read_text(encoding="utf-8"))
            yield index, np.array([0.5, 0.3, 0.2])

    monkeypatch.setattr(Predictor, "predict_set", one_by_one)
    with open("out", "w", encoding="utf-8") as buffered:
        monkeypatch.setattr(sys, "stdout", buffered)
        assert exit_code(("predict", fitted.folder, *photos, "--format", form)) == 0
    header = ["path,label,probability,error"] if form == "csv" else []
    for number, text in enumerate(seen):
        lines = text.splitlines()
        assert lines[: len(header)] == header
        rows = lines[len(header) :]
        assert len(rows) == number
        assert all(name in row for name, row in zip(photos, rows, strict=False))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_go_to_stdout_though_stderr_is_a_terminal(
    topwork, fitted, pictures, monkeypatch, form
) -> None:
    monkeypatch.setattr("topwork.data.loading.os.cpu_count", lambda: 1)  # few batches at once
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr("topwork.cli_parts.err_console", terminal)
    result = topwork("predict", fitted.folder, pictures / "test", "--format", form)
    assert result.out.count("/test/") == result.out.count("\n") - (form == "csv") == 24


# --- the map itself -----------------------------------------------------------------------------


def test_classes_are_seen_where_they_are(fitted, pictures) -> None:
    labels = ("stripes", "disc", "square")
    tiles = [Image.open(pictures / "test" / label / "01.png") for label in labels]
    photo = Image.new("RGB", (3 * 48, 40))
    for number, tile in enumerate(tiles):
        photo.paste(tile, (48 * number, 0))
    predictor = load(fitted.folder)
    found = class_map(predictor, slide(predictor), photo, "photo")
    assert found.photo.shape == (128, 448, 3)
    assert found.window == (64, 64)
    layers = np.stack([found.over_pixels(number) for number in range(3)])
    best = layers.argmax(0)[32:96]
    for number, label in enumerate(labels):
        middle = best[:, 149 * number + 50 : 149 * number + 100]
        share = (middle == predictor.labels.index(label)).mean()
        assert share > 0.8, f"{label} is seen in {share:.0%} of where it is"
    assert np.allclose(layers.sum(0), 1)


def test_a_photo_of_the_native_size_gives_the_models_own_answer(fitted, pictures) -> None:
    path = pictures / "test" / "disc" / "02.png"
    predictor = load(fitted.folder)
    sliding = slide(predictor)
    from topwork.data.views import to_tensor
    from topwork.network.answers import answers

    view = predictor.view_of(path)[None]
    scores = sliding(to_tensor(view, predictor.opened.preprocessing))
    assert scores.shape[2:] == (1, 1)
    found = answers("softmax", scores.flatten(1).detach().numpy())
    assert np.allclose(found, predictor.predict_proba([path]), atol=1e-5)


sides = st.integers(8, 20_000)


@given(sides, sides, st.sampled_from([(224, 224), (64, 96)]), st.sampled_from([8, 32, 12.8]))
def test_sizes(width: int, height: int, native: tuple[int, int], step: float) -> None:
    relative = height / native[0], width / native[1]
    if max(relative) > LONGEST * min(relative) * 1.0001:
        with pytest.raises(UsageError, match="more than 8 times as long as wide"):
            map_size((width, height), native, (step, step))
        return
    if max(relative) > LONGEST * min(relative) * 0.9999:
        return  # on the edge
    found = map_size((width, height), native, (step, step))
    low, high = sorted(side / own for side, own in zip(found, native, strict=True))
    slack = step / min(native)
    assert low >= 1
    assert high <= LONGEST + slack
    assert abs(low - ZOOM) <= slack or abs(high - LONGEST) <= slack
    exact = (width / height) / (found[1] / found[0])  # the aspect is kept but for the rounding
    assert 1 - step / min(found) <= exact <= 1 + step / min(found)
    for side, own in zip(found, native, strict=True):
        assert abs((side - own) / step - round((side - own) / step)) * step <= 0.51


def test_a_pixel_is_the_bell_weighted_mean_of_the_windows() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], (3, 4))
    found = ClassMap(np.zeros((20, 28, 3), np.uint8), tuple("abc"), probabilities, (12, 16), (4, 4))
    values = found.over_pixels(1)
    for y, x in ((0, 0), (7, 13), (19, 27), (10, 2)):
        total = weighted = 0.0
        for i in range(3):
            for j in range(4):
                down, across = y + 0.5 - (6 + 4 * i), x + 0.5 - (8 + 4 * j)
                weight = np.exp(-((down / 3) ** 2) / 2 - ((across / 4) ** 2) / 2)
                total += weight
                weighted += weight * probabilities[i, j, 1]
        assert values[y, x] == pytest.approx(weighted / total)


def test_far_from_all_windows_the_nearest_counts() -> None:
    assert weights(4000, 2, 4, 2)[-1].tolist() == pytest.approx([0, 1])


def test_the_layer_is_strong_where_the_class_is(tmp_path) -> None:
    photo = np.full((64, 96, 3), 128, np.uint8)
    probabilities = np.zeros((1, 3, 2))
    probabilities[0, :, 0] = [1, 0.45, 0]
    probabilities[0, :, 1] = 1 - probabilities[0, :, 0]
    found = ClassMap(photo, ("a $1 class$", "b"), probabilities, (64, 32), (32, 32))
    assert found.winners() == [1, 0]
    path = drawing.write_class_map(found, "somewhere/photo.jpg", tmp_path)
    assert path == tmp_path / "photo.png"
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    redness = pixels[:, :, 0] - pixels[:, :, 2]
    width = (drawing.AREA * 96 / 64) ** 0.5
    for panel, is_right in ((0, None), (1, True), (2, False)):
        start = drawing.GAP + panel * (width + drawing.GAP)
        columns = [int(drawing.DOTS * (start + width * part)) for part in (0.05, 0.95)]
        left, right = (redness[len(redness) // 2, column] for column in columns)
        if is_right is None:
            assert left == right == 0
        else:
            assert (right - left > 60) if is_right else (left - right > 60)


def test_at_most_three_classes_of_many_and_of_one_band(tmp_path) -> None:
    probabilities = np.eye(5)[None]
    photo = np.full((16, 80, 1), 9, np.uint8)
    found = ClassMap(photo, tuple("abcde"), probabilities, (16, 16), (16, 16))
    assert found.winners() == [0, 1, 2, 3, 4]
    drawn = Image.open(drawing.write_class_map(found, "x.tiff", tmp_path))
    width = (drawing.AREA * 80 / 16) ** 0.5
    inches = 4 * (width + drawing.GAP) + drawing.RIGHT
    assert drawn.width == pytest.approx(inches * drawing.DOTS, abs=1)


def test_the_strips_error_names_the_photo(fitted) -> None:
    predictor = load(fitted.folder)
    with pytest.raises(ImageError, match=r"^long\.jpg: more than 8 times"):
        class_map(predictor, slide(predictor), Image.new("RGB", (10, 90)), "long.jpg")
