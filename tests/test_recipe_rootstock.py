"""The recipe of the backbone that comes with topwork, cut short: does it learn what transfers?"""

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest

from topwork.data.items import images_from_paths
from topwork.network.shipped import SHIPPED_FOLDER
from topwork.pretraining.methods import recipe_of
from topwork.pretraining.request import settle_recipe

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared"
RECIPE = ROOT / "recipes" / "rootstock"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="photos and weights are not here")


@pytest.fixture(scope="module")
def recipe_script():
    spec = importlib.util.spec_from_file_location("rootstock_recipe", RECIPE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_shipped_was_made_by_the_recipe():
    recipe = json.loads((RECIPE / "recipe.json").read_text(encoding="utf-8"))
    card = json.loads((SHIPPED_FOLDER / "backbone.json").read_text(encoding="utf-8"))["card"]
    method = recipe.pop("method")
    assert method == card["method"]
    settled, _ = settle_recipe(method, recipe_of(method), recipe, None, None)
    assert settled.to_dict() == card["recipe"]  # with today's defaults
    assert card["images"] + card["held_out"] == 15_844
    words = (SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "| random weights |" in words  # what it is worth is known


def test_classes_of_what_we_measure_on_are_left_out(recipe_script, tmp_path):
    names = ("a/n02206856_1.JPEG", "b/n02219486_ant.jpg", "a/n01443537_0.JPEG", "b/notes.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert recipe_script.photos_in(tmp_path) == [tmp_path / "a/n01443537_0.JPEG"]


@pytest.mark.slow
@needs_shared
def test_cut_short_it_shows_the_trend(recipe_script, tmp_path):
    (tmp_path / "photos").mkdir()
    with zipfile.ZipFile(SHARED / "data" / "tiny_imagenet_200x75.zip") as archive:
        photos = [name for name in archive.namelist() if name.endswith(".JPEG")][:: 15_000 // 240]
        archive.extractall(tmp_path / "photos", photos)
    record = recipe_script.make(
        images_from_paths([tmp_path / "photos"]),
        SHARED / "weights" / recipe_script.TEACHER,
        tmp_path / "made",
        {"phase": {"epochs": 8, "batch": 16, "rate": 0.003}, "views": 1},
    )
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert losses[-1] < 0.8 * losses[0]
    recipe_script.pack(tmp_path / "made", tmp_path / "packed")
    packed = json.loads((tmp_path / "packed" / "backbone.json").read_text(encoding="utf-8"))
    assert packed["card"]["terms"]
    assert str(tmp_path) not in json.dumps(packed)
    words = (tmp_path / "packed" / "README.md").read_text(encoding="utf-8")
    assert "Not measured yet" in words  # no results of other weights
