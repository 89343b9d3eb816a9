"""scikit-learn estimators: its own checks, its tools, and the cache underneath."""

from __future__ import annotations

import gc
import json
import os
import pickle
import weakref
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from topwork import Phase, Plan, load
from topwork.data.image_set import ImageSet, Item
from topwork.data.views import Preprocessing, render, to_tensor
from topwork.errors import (
    BackboneError,
    ChainError,
    DataError,
    ImageError,
    PlanError,
    UsageError,
)
from topwork.estimators import classifier as classifier_module
from topwork.estimators import frozen
from topwork.estimators.classifier import TransferClassifier, labeled
from topwork.estimators.frozen import FrozenFeatures
from topwork.learn import samples
from topwork.network.backbone_folder import save_backbone
from topwork.network.loading import Loaded, fit_input, load_backbone
from topwork.network.small_convnet import small_convnet
from topwork.network.zoo import REACHES, Backbone, find_backbone

NETWORK = "topwork:small_convnet"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Checks that may be skipped, each with the reason; none may fail.
SKIPPED = {
    "check_array_api_input": "only NumPy arrays are taken; runs where SCIPY_ARRAY_API is set",
    "check_classifier_data_not_an_array": "its second half, of data frames, needs pandas",
}
PASSED = {"FrozenFeatures": 46, "TransferClassifier": 53}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of random weights for a small network."""
    return save_random(tmp_path_factory.mktemp("weights") / "random.safetensors", seed=0)


def save_random(file: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(small_convnet().state_dict(), file)
    return file


@pytest.fixture
def features(weights: Path) -> FrozenFeatures:
    return FrozenFeatures(NETWORK, weights=weights, runtime="eager", device="cpu")


@pytest.fixture
def classifier(weights: Path) -> TransferClassifier:
    return TransferClassifier(NETWORK, weights=weights, runtime="eager", device="cpu")


@pytest.fixture(scope="module")
def photos(pictures: Path) -> tuple[list[str], list[str]]:
    """Return paths of 48 drawings and their classes."""
    paths = sorted((pictures / "train").rglob("*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that fills with how many images went through a trunk, pass by pass."""
    counts: list[int] = []
    for module in (frozen, samples):
        extract = module.extract

        def counted(*arguments: Any, extract: Any = extract, **named: Any) -> Any:
            codes = extract(*arguments, **named)
            counts.append(codes.computed)
            return codes

        monkeypatch.setattr(module, "extract", counted)
    return counts


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return weights, and have the name of the small network stand for one of a single block.

    It is built once: scikit-learn's checks fit a head to it fifty times, and nothing changes it.
    """
    file = tmp_path / "tiny.safetensors"
    save_file(small_convnet((4,)).state_dict(), file)

    def find(name: str, *, weights: Path | None = None) -> Backbone:
        found = find_backbone(name, weights=weights)
        spec = replace(found.spec, arguments={"num_classes": 10, "channels": [4]})
        return replace(found, spec=spec, preprocessing=found.preprocessing.adapted((8, 8), None))

    @lru_cache
    def load_once(plan: Plan, seed: int) -> Loaded:
        return load_backbone(find(plan.backbone, weights=file), plan, seed)

    for module in (frozen, classifier_module):
        monkeypatch.setattr(module, "find_backbone", find)
    monkeypatch.setattr(classifier_module, "load_backbone", lambda _, *asked: load_once(*asked))
    return file


@pytest.mark.parametrize("name", ["features", "classifier"])
def test_scikit_learns_own_checks(name: str, tiny: Path, request: pytest.FixtureRequest) -> None:
    estimator = request.getfixturevalue(name).set_params(weights=tiny)
    if name == "classifier":
        estimator.set_params(head="ridge")  # solved in a third of the time
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    passed = [r["check_name"] for r in results if r["status"] == "passed"]
    assert not failed
    assert skipped <= SKIPPED.keys()
    assert len(passed) + len(skipped) == len(results)
    assert len(passed) >= PASSED[type(estimator).__name__]


def test_codes_are_what_the_network_gives(features, weights, photos):
    paths, _ = photos
    exact = features.set_params(decoding="exact", depth="block2")
    found = exact.fit_transform(paths[:5])
    network = small_convnet().eval()
    network.load_state_dict({k: torch.tensor(v) for k, v in load_arrays(weights).items()})
    view = Preprocessing((32, 32), 1.0, "bicubic", *IMAGENET)
    pixels = np.stack([render(Image.open(path).convert("RGB"), view) for path in paths[:5]])
    with torch.no_grad():
        expected = network[:3](to_tensor(pixels, view)).mean((2, 3)).numpy()
    assert found.dtype == np.float32
    assert found.min() >= 0  # the source thresholds there
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert exact.get_feature_names_out().shape == (32,)


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(file)


def test_all_forms_of_images_give_the_same_codes(features, photos):
    paths = photos[0][::8]
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in opened]
    expected = features.fit_transform(paths)
    forms = ([Path(p) for p in paths], np.array(paths), opened, arrays, np.stack(arrays))
    for images in (*forms, [paths[0], *opened[1:]]):
        assert features.fit_transform(images).tobytes() == expected.tobytes()


def test_rows_of_numbers_are_flattened_images(features):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4, 7, 7), dtype=np.uint8)
    expected = features.fit_transform(pixels)
    rows = pixels.reshape(4, 49)
    assert features.fit_transform(rows).tobytes() == expected.tobytes()
    assert features.range_ == (0, 255)
    rows = rows.astype(float)
    rows[0, 0], rows[0, 1] = 0, 255
    pixels.reshape(4, 49)[0, :2] = 0, 255
    scaled = features.fit(rows / 3 - 20).transform(rows / 3 - 20)
    assert scaled.tobytes() == features.fit_transform(pixels).tobytes()
    padded = np.zeros((4, 7, 7), np.uint8)
    padded.reshape(4, 49)[:, :40] = rows[:, :40]
    assert features.fit_transform(padded).tobytes() == (
        features.fit(np.array([[0.0] * 40, [255.0] * 40])).transform(rows[:, :40]).tobytes()
    )


def test_what_lies_outside_the_range_of_fit_is_clipped(features):
    seen = np.array([[0.0, 1.0, 0.5, 0.2]])
    features.fit(seen)
    inside, outside = np.array([[0.0, 1.0, 1.0, 0.0]]), np.array([[-5.0, 1.0, 7.0, 0.0]])
    assert features.transform(inside).tobytes() == features.transform(outside).tobytes()


def test_a_search_over_depths_runs_every_image_through_the_trunk_once(features, photos, computed):
    paths, labels = photos
    model = make_pipeline(features, StandardScaler(), LogisticRegression())
    grid = {
        "frozenfeatures__depth": ["block1", "block2", "block3"],
        "logisticregression__C": [0.1, 1.0],
    }
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(paths, labels)
    assert search.best_score_ > 0.9
    assert len(computed) == 2 * 3 * 2 * 3 + 1
    assert sum(computed) == len(paths)
    assert search.score(paths, labels) > 0.9
    assert sum(computed) == len(paths)


def test_without_a_cache_layers_above_the_depth_do_not_run(features, photos, monkeypatch):
    asked = []

    def spy(chain, depths, *others):
        asked.append(tuple(depths))
        return prepare(chain, depths, *others)

    prepare = frozen.prepare
    monkeypatch.setattr(frozen, "prepare", spy)
    frozen.open_extractor.cache_clear()
    kept = features.set_params(depth="block1").fit_transform(photos[0][:3])
    computed = features.set_params(cache="off").fit_transform(photos[0][:3])
    assert asked == [("block1", "block2", "block3"), ("block1",)]
    assert kept.tobytes() == computed.tobytes()


def test_cross_validation_of_a_plan_runs_every_image_once(classifier, photos, computed):
    paths, labels = photos
    scores = cross_val_score(classifier, paths, labels, cv=3, error_score="raise")
    assert scores.mean() > 0.9
    assert sum(computed) == len(paths)


def test_a_search_over_plans(classifier, photos):
    paths, labels = photos
    grid = {"head": ["softmax", "ridge"], "kept": ["block1", "block3"]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(paths, labels)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.plan_.kept == search.best_params_["kept"]


def test_a_plan_is_found_and_fitted(classifier, photos):
    paths, labels = photos
    classifier.set_params(plan="auto", time_budget=0.1).fit(paths, labels)
    assert classifier.plan_.to_dict() == classifier.advice_["recommended"]
    assert classifier.score(paths, labels) > 0.9
    assert classifier.set_params(plan="features", time_budget=None).fit(*photos).advice_ is None


def test_it_learns_what_the_command_line_learns(photos, pictures, backbone, fitted):
    paths, labels = photos
    model = TransferClassifier(backbone, runtime="eager", device="cpu").fit(paths, labels)
    record = json.loads((fitted.folder / "record.json").read_text(encoding="utf-8"))
    ours, theirs = model.phases_[0]["probe"], record["phases"][0]["probe"]
    assert ours["out_of_fold"] == theirs["out_of_fold"]
    assert ours["strength"] == theirs["strength"]
    tests = sorted((pictures / "test").rglob("*.png"))
    shipped = load(fitted.folder)
    assert model.predict(tests).tolist() == shipped.predict(tests)
    np.testing.assert_allclose(model.predict_proba(tests), shipped.predict_proba(tests), atol=2e-3)


@pytest.mark.parametrize("plan", ["features", "finetune"])
def test_a_score_depends_on_its_image_alone(classifier, photos, plan):
    paths, labels = photos
    if plan == "finetune":
        phase = Phase(frozen="block1", epochs=1, rate=1e-3)
        classifier.set_params(backbone=None, plan=Plan(NETWORK, phases=(phase,)))
    before = load_arrays(classifier.weights)
    classifier.fit(paths, labels)
    scores = classifier.decision_function(paths)
    assert scores.shape == (48, 3)
    for row in (0, 17, 47):
        assert classifier.decision_function([paths[row]]).tobytes() == scores[row].tobytes()
    layers = {k: v for k, v in classifier._tensors.items() if not k.startswith("classifier")}
    same = {name for name, value in layers.items() if (before[name] == value).all()}
    below = {name for name in before if name.startswith("block1")}
    assert below <= same
    assert ("block3.conv.weight" in same) == (plan == "features")


@pytest.mark.parametrize("plan", ["features", "finetune"])
def test_pickles_hold_plain_data_and_predict_the_same(classifier, photos, plan, computed):
    paths, labels = photos
    if plan == "finetune":
        classifier.set_params(plan=plan, epochs=1)
    classifier.fit(paths, labels)
    expected = classifier.predict_proba(paths)
    written = pickle.dumps(classifier)
    assert b"torch" not in written
    ran = sum(computed)
    assert pickle.loads(written).predict_proba(paths).tobytes() == expected.tobytes()
    assert sum(computed) == ran


def test_classes_are_in_their_own_order(classifier, photos):
    paths, labels = photos
    numbers = np.array([{"disc": 10, "square": 2, "stripes": -1}[label] for label in labels])
    classifier.fit(paths, numbers)
    assert classifier.classes_.tolist() == [-1, 2, 10]
    assert classifier.score(paths, numbers) > 0.9
    best = classifier.predict_proba(paths).argmax(axis=1)
    assert (classifier.classes_[best] == classifier.predict(paths)).all()
    two = classifier.fit(paths[:32], numbers[:32])
    assert ((two.decision_function(paths[:32]) > 0) == (two.predict(paths[:32]) == 10)).all()


def test_many_classes_keep_their_order():
    images = ImageSet("X", tuple(Item(f"{row}") for row in range(12)), Path.read_bytes)
    assert [i.labels for i in labeled(images, np.arange(12)).items] == [
        (name,) for name in labeled(images, np.arange(12)).classes
    ]


def test_a_bad_image_is_left_out_of_fit_and_named_in_prediction(
    classifier, features, photos, tmp_path, caplog
):
    paths, labels = photos
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(paths[0]).read_bytes()[:200])
    gone = tmp_path / "gone.png"
    caplog.set_level("WARNING")
    classifier.fit([*paths, broken, gone], [*labels, "disc", "disc"])
    assert [Path(name).name for name, _ in classifier.left_out_] == ["gone.png", "broken.png"]
    assert caplog.text.count("unreadable images are left out (1)") == 2
    for method in (classifier.predict, features.fit(paths).transform):
        with pytest.raises(ImageError, match=r"broken\.png: .*; mend it, or leave it out of X"):
            method([*paths, broken])
        with pytest.raises(ImageError, match=r"gone\.png: no such file; .* \(2 of 3 images of X"):
            method([gone, paths[0], gone])


def test_if_no_image_can_be_read_that_is_said(classifier, photos, tmp_path, caplog):
    paths, labels = photos
    caplog.set_level("WARNING")
    pixels = np.zeros((6, 8, 8, 3), np.float32)
    with pytest.raises(ImageError, match=r"X\[0\]: is float32 .* uint16.* \(6 of 6 images of X"):
        classifier.fit(pixels, [0, 1] * 3)
    assert "left out (6): X[0]: is float32 [8, 8, 3]; give uint8" in caplog.text
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png: .* \(2 of 2 images of X"):
        classifier.fit([broken, tmp_path / "gone.png"], [0, 1])
    for bad in (broken, tmp_path / "gone.png"):
        with pytest.raises(DataError, match=rf"{bad.name}: .*; no image of class 'z' can be read"):
            classifier.fit([*paths, bad, bad], [*labels, "z", "z"])


def test_another_weights_file_of_the_same_name_is_seen(features, photos, tmp_path):
    file = save_random(tmp_path / "weights.safetensors", seed=1)
    features.set_params(weights=file)
    before = features.fit_transform(photos[0][:2])
    then = file.stat()
    save_random(file, seed=2)
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (then.st_size, then.st_mtime_ns)
    assert not np.allclose(features.transform(photos[0][:2]), before)


def test_of_a_backbone_that_ends_lower_codes_reach_that_far(features, photos, weights, tmp_path):
    source, low = find_backbone(NETWORK, weights=weights), tmp_path / "low"
    loaded = load_backbone(source, Plan(source.name, kept="block2"))
    save_backbone(low, loaded, {REACHES: "block2"}, classifier=False, up_to=loaded.chain.cuts[2])
    wanted = features.set_params(depth="block2").fit_transform(photos[0][:2])
    features.set_params(backbone=low, weights=None, depth=None)
    assert features.fit_transform(photos[0][:2]).tobytes() == wanted.tobytes()
    assert features.depth_ == "block2"
    said = "weights up to block2 only, and block3 lies above it"
    with pytest.raises(PlanError, match=said):
        features.set_params(depth="block3").fit(photos[0][:2])
    features.set_params(backbone=NETWORK, weights=weights).fit(photos[0][:2])
    for cache in ("auto", "off"):  # it was whole when it was fitted
        features.set_params(backbone=low, weights=None, cache=cache)
        with pytest.raises(PlanError, match=said):
            features.transform(photos[0][:2])


def test_few_networks_are_kept_and_these_can_be_released(features, photos):
    frozen.release_networks()
    for depth in ("block1", "block2", "block3"):
        features.set_params(depth=depth, cache="off").fit_transform(photos[0][:1])
    opened = frozen.open_extractor.cache_info()
    assert (opened.currsize, opened.misses) == (2, 3)
    source = features._source()
    held = weakref.ref(frozen.open_network(source))
    assert frozen.open_network.cache_info().currsize == 1
    frozen.release_networks()
    gc.collect()
    assert held() is None
    assert frozen.open_extractor.cache_info().currsize == 0


def test_images_have_the_bands_that_the_network_takes(
    features, classifier, photos, tmp_path, monkeypatch
):
    def find(name, *, weights=None):
        return fit_input(find_backbone(name, weights=weights), None, 4)

    for module in (frozen, classifier_module):
        monkeypatch.setattr(module, "find_backbone", find)
    file = tmp_path / "four.safetensors"
    save_file(find(NETWORK).spec.build().state_dict(), file)
    images = [Image.open(path).convert("RGBA") for path in photos[0][::4]]
    arrays = [np.asarray(image) for image in images]
    features.set_params(weights=file)
    expected = features.fit_transform(arrays)
    assert features.fit_transform(images).tobytes() == expected.tobytes()
    model = classifier.set_params(weights=file).fit(images, photos[1][::4])
    assert model.predict_proba(images).tobytes() == model.predict_proba(arrays).tobytes()


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"depth": "blok2"}, ChainError, "blok2"),
        ({"pool": "token"}, ChainError, "pool 'token' makes no sense at block3"),
        ({"backbone": "no_such_network"}, BackboneError, "no network is called"),
        ({"runtime": "magic"}, UsageError, "runtime 'magic' is unknown"),
    ],
)
def test_options_that_make_no_sense(features, photos, choices, error, message):
    with pytest.raises(error, match=message):
        features.set_params(**choices).fit_transform(photos[0][:2])


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"head": "regression"}, PlanError, "head regression tells no classes apart"),
        ({"kept": "blok2"}, PlanError, "blok2"),
        ({"input_size": (32, 32, 3)}, PlanError, "give height and width in pixels"),
        ({"input_size": "big"}, PlanError, "give height and width in pixels"),
        ({"plan": "featurs"}, PlanError, "did you mean 'features'"),
        ({"time_budget": 5.0}, UsageError, "time_budget is for finding a plan"),
        ({"plan": "auto", "epochs": 3}, UsageError, "epochs is found out with --plan auto"),
        ({"backbone": None}, UsageError, "say with --backbone which network"),
        ({"weights": None}, BackboneError, "no pretrained weights are known"),
    ],
)
def test_plans_that_make_no_sense(classifier, photos, choices, error, message):
    with pytest.raises(error, match=message):
        classifier.set_params(**choices).fit(*photos)


def test_numbers_of_a_search_are_as_good_as_pythons(features, classifier, photos):
    paths, labels = photos
    size = np.int64(32)
    codes = features.set_params(input_size=size).fit_transform(paths)
    assert codes.shape[0] == len(paths)
    for form in ([32, 32], (np.int64(32), 32), 32):
        again = features.set_params(input_size=form).fit_transform(paths)
        assert again.tobytes() == codes.tobytes()
    model = classifier.set_params(input_size=size, views=np.int64(2)).fit(paths, labels)
    assert Plan.from_dict(json.loads(json.dumps(model.plan_.to_dict()))) == model.plan_


def test_images_and_numbers_are_not_mixed_up(features, classifier, photos, tmp_path):
    paths, labels = photos
    with pytest.raises(UsageError, match="X is a single image; give a list"):
        features.fit(paths[0])
    with pytest.raises(UsageError, match="X is a single image with its colors; give a list"):
        features.fit(paths).transform(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(UsageError, match="X holds numbers, but fit saw images"):
        features.fit(paths).transform(np.zeros((2, 4)))
    with pytest.raises(UsageError, match="X holds images, but fit saw numbers"):
        features.fit(np.zeros((2, 4))).transform(paths)
    with pytest.raises(ImageError, match=r"is float64 \[8, 8, 3\]; give uint8 or uint16"):
        features.fit_transform(np.zeros((2, 8, 8, 3)))
    (tmp_path / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"X\[0\]: truncated"):
        features.fit_transform([Image.open(tmp_path / "cut.png")])
    with pytest.raises(ImageError, match=r"X\[1\]: is a float; give paths, images or arrays"):
        features.fit_transform([paths[0], 1.5])
    with pytest.raises(NotFittedError):
        clone(features).transform(paths)
    with pytest.raises(NotFittedError):
        clone(classifier).predict(paths)
    with pytest.raises(ValueError, match="one class"):
        classifier.fit(paths, ["same"] * len(paths))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.fit(paths, labels[:-1])
    features.fit(np.zeros((2, 4)))
    assert features.n_features_in_ == 4
    assert not hasattr(features.fit(paths), "n_features_in_")
