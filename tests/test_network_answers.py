"""What models of each kind of head answer, through the predictor and in the files of a run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from topwork.data.image_set import ImageSet, Item
from topwork.errors import ImageError, UsageError
from topwork.learn.targets import targets_of
from topwork.network.answers import answers, sigmoid, softmax
from topwork.network.folder import Opened
from topwork.network.loading import load_backbone
from topwork.network.model import Model, code_width
from topwork.network.predictor import Predictor
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.report.record import results, write_predictions
from topwork.report.terminal import print_metrics

BACKBONE = "topwork:cifar_resnet20"
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded():
    plan = Plan(BACKBONE, kept="layer1", reused="input", frozen_random=True)
    return load_backbone(find_backbone(BACKBONE), plan, seed=0)


def predictor(loaded, head: str, outputs: int, names: tuple[str, ...]) -> Predictor:
    plan = Plan(**{**vars(loaded.plan), "head": head})
    pool = str(plan.pool)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = code_width(loaded.chain, plan.codes, pool)
        model = Model(loaded.chain, plan.codes, pool, width, outputs).eval()
    preprocessing = loaded.backbone.preprocessing
    opened = Opened(Path("made"), model, plan, names, preprocessing, None)
    return Predictor(opened, torch.device("cpu"))


def scores_of(made: Predictor) -> np.ndarray:
    """The slow way: one image at a time, normalized by hand."""
    view = made.opened.preprocessing
    mean, std = (np.array(values, np.float32) for values in (view.mean, view.std))
    rows = []
    for pixels in PIXELS:
        image = torch.from_numpy(((pixels / np.float32(255)) - mean) / std).permute(2, 0, 1)
        with torch.no_grad():
            rows.append(made.opened.model(image[None])[0].double().numpy())
    return np.array(rows)


def test_softmax_and_sigmoid_are_those_of_torch():
    scores = np.random.default_rng(0).normal(size=(6, 4)) * [1, 10, 100, 1000]
    tensor = torch.from_numpy(scores)
    np.testing.assert_allclose(softmax(scores), torch.softmax(tensor, 1).numpy(), atol=1e-15)
    np.testing.assert_allclose(sigmoid(scores), torch.sigmoid(tensor).numpy(), atol=1e-15)
    np.testing.assert_allclose(answers("svm", scores), torch.softmax(tensor, 1).numpy())


@pytest.mark.parametrize("head", ["softmax", "svm", "ridge"])
def test_classes(loaded, head):
    made = predictor(loaded, head, 3, ("ant", "bee", "cow"))
    scores = scores_of(made)
    assert (made.kind, made.outputs) == ("classes", 3)
    np.testing.assert_allclose(made.predict_proba(PIXELS), softmax(scores), atol=1e-5)
    assert made.predict(PIXELS) == [made.labels[i] for i in scores.argmax(1)]


def test_two_classes_by_one_output(loaded):
    made = predictor(loaded, "sigmoid", 1, ("no", "yes"))
    scores = scores_of(made)[:, 0]
    assert (made.kind, made.outputs) == ("classes", 1)
    probabilities = made.predict_proba(PIXELS)
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-scores)), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert made.predict(PIXELS) == ["yes" if score > 0 else "no" for score in scores]
    assert made.predict_proba([]).shape == (0, 2)


def test_several_labels(loaded):
    made = predictor(loaded, "sigmoid", 3, ("wet", "cold", "dark"))
    expected = 1 / (1 + np.exp(-scores_of(made)))
    assert made.kind == "labels"
    np.testing.assert_allclose(made.predict_proba(PIXELS), expected, atol=1e-5)
    assert made.predict(PIXELS) == [
        tuple(name for name, p in zip(made.labels, row, strict=True) if p >= 0.5)
        for row in expected
    ]


def test_numbers(loaded):
    made = predictor(loaded, "regression", 1, ("age",))
    scores = scores_of(made)
    assert made.kind == "numbers"
    assert made.predict(PIXELS) == pytest.approx(scores[:, 0].tolist(), rel=1e-4, abs=1e-5)
    with pytest.raises(UsageError, match="the model predicts numbers, no probabilities"):
        made.predict_proba(PIXELS)
    two = predictor(loaded, "regression", 2, ("age", "size"))
    said = two.predict(PIXELS)
    assert [type(answer) for answer in said] == [tuple] * 5
    np.testing.assert_allclose(said, scores_of(two), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_images_with_the_bands_that_the_network_takes(channels):
    plan = Plan(BACKBONE, kept="layer1", reused="input", frozen_random=True, channels=channels)
    gray = predictor(load_backbone(find_backbone(BACKBONE), plan, seed=0), "softmax", 2, ("a", "b"))
    bands = np.random.default_rng(1).integers(0, 256, (3, 32, 32, channels), dtype=np.uint8)
    view = gray.opened.preprocessing
    mean, std = (np.array(values, np.float32) for values in (view.mean, view.std))
    images = torch.from_numpy((bands / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.softmax(gray.opened.model(images).double(), 1).numpy()
    np.testing.assert_allclose(gray.predict_proba(bands), expected, atol=1e-5)
    if channels > 1:
        with pytest.raises(ImageError, match=f"array: has 3 bands, the network takes {channels}"):
            gray.predict(PIXELS)


def test_a_truncated_file_is_named_whichever_way_it_comes(loaded, tmp_path):
    made = predictor(loaded, "softmax", 2, ("a", "b"))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / "cut.png"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:6000])
    with pytest.raises(ImageError, match=r"cut\.png: truncated file"):
        made.predict([file])
    with Image.open(file) as image, pytest.raises(ImageError, match="image: truncated file"):
        made.predict([image])


def image_set(*labels: tuple[str, ...], **options) -> ImageSet:
    items = tuple(Item(f"{n}.png", own) for n, own in enumerate(labels))
    return ImageSet("made", items, {}.__getitem__, **options)


def written(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_files_and_headlines_of_each_kind(tmp_path, capsys):
    file = tmp_path / "predictions.csv"
    several = image_set(("wet",), ("cold", "wet"), multilabel=True)
    targets = targets_of(several, [0, 1], "sigmoid")
    rows = np.array([[0.1, 0.9], [0.7, 0.8]])
    write_predictions(file, several, [0, 1], rows, targets)
    assert written(file) == [
        ["name", "label", "predicted", "cold", "wet"],
        ["0.png", "wet", "wet", "0.100000", "0.900000"],
        ["1.png", "cold;wet", "cold;wet", "0.700000", "0.800000"],
    ]
    record = results(rows, targets, seed=0)
    assert (record["metric"], record["value"], record["n"]) == ("mean_average_precision", 1.0, 2)
    assert "accuracy" not in record
    print_metrics(record["test"])
    printed = capsys.readouterr().out
    assert "mean average precision" in printed
    assert [line.split() for line in printed.splitlines()][-2][:2] == ["cold", "1.000"]

    binary = image_set(("no",), ("yes",))
    targets = targets_of(binary, [0, 1], "sigmoid")
    rows = np.array([[0.8, 0.2], [0.6, 0.4]])
    write_predictions(file, binary, [0, 1], rows, targets)
    assert written(file)[1:] == [
        ["0.png", "no", "no", "0.800000"],
        ["1.png", "yes", "no", "0.600000"],
    ]
    record = results(rows, targets, seed=0)
    assert (record["metric"], record["accuracy"], record["value"]) == ("accuracy", 0.5, 0.5)
    assert record["test"]["roc_auc"]["value"] == 1.0
    print_metrics(record["test"])
    assert "area under ROC curve" in capsys.readouterr().out

    ages = image_set(("40",), ("1.5",))
    targets = targets_of(ages, [0, 1], "regression")
    rows = np.array([[41.0], [1.0]])
    write_predictions(file, ages, [0, 1], rows, targets)
    assert written(file) == [
        ["name", "label", "predicted"],
        ["0.png", "40", "41"],
        ["1.png", "1.5", "1"],
    ]
    record = results(rows, targets, seed=0)
    assert (record["metric"], record["value"]) == ("mean_absolute_error", 0.75)
    print_metrics(record["test"])
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["R", "squared", "0.998"]


def test_a_figure_that_is_not_defined_is_a_dash(capsys):
    targets = targets_of(image_set(("a",), ("b",), ("a", "b"), multilabel=True), [0], "sigmoid")
    print_metrics(results(np.array([[0.9, 0.4]]), targets, seed=0)["test"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["b", "-", "-", "0"]
