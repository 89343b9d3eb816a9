"""Profiles: codes of every depth against the network itself, folds, the learning curve."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from topwork.advice.depth_codes import collect
from topwork.advice.learning_curve import Point, forecast, learning_curve, nested_parts
from topwork.advice.profile import best_of
from topwork.advising import backbones_of, base_plan, measure, opened, profile
from topwork.api import fit
from topwork.data.loading import untracked
from topwork.data.views import to_tensor
from topwork.learn.heads import NEVER, STRENGTHS
from topwork.learn.judging import Judged, judge, losses_of_rows
from topwork.learn.targets import Targets
from topwork.network.loading import load_backbone
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import extract, prepare

Array = np.ndarray


def measured(pictures: Path, backbone: Path, **choices: Any):
    (found,) = backbones_of(str(backbone), None)
    images, audited = opened(pictures, None, False, untracked)
    execution = Execution(torch.device("cpu"), cache=choices.pop("cache", "auto"))
    base = base_plan(found, None, None, None)
    return measure(images, audited, found, base, execution, 0, untracked)


def test_codes_are_the_networks_own_pooled_activations(pictures, backbone):
    found = measured(pictures, backbone)
    codes, task = found.profile.codes, found.task
    loaded = load_backbone(task.backbone, found.base, 0)
    network = loaded.chain.network.eval()
    noted: dict[str, torch.Tensor] = {}
    names = [cut.name for cut in codes.cuts if cut.name.startswith("layer")]
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: noted.update({name: o}))
    execution = Execution(torch.device("cpu"), cache="off")
    pixels = prepare(loaded.chain, ["input"], "none", loaded.backbone.preprocessing, execution)
    rows = list(codes.indices[:4])
    digests = [str(task.audit.digests[index]) for index in rows]
    seen = extract(pixels, task.images, rows, digests).parts[0].take(list(range(4)))
    with torch.no_grad():
        network(to_tensor(seen, loaded.backbone.preprocessing))
    assert len(names) >= 4
    for name in names:
        expected = noted[name].mean((2, 3)).numpy()
        assert np.abs(codes.at(name)[:4] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_fit_after_a_profile_runs_the_trunk_on_no_training_image(pictures, backbone, tmp_path):
    found = profile(pictures, backbone=str(backbone))
    record = fit(pictures, tmp_path / "run", backbone=str(backbone), plan="features")
    assert record["cached_codes"]["computed"] == record["cached_codes"]["compared"]
    assert found["images"] == 48


def test_all_depths_and_heads_are_judged_on_the_same_folds(pictures, backbone):
    found = measured(pictures, backbone).profile
    (rows,) = {tuple(j.rows) for depth in found.depths for j in depth.judged.values()}
    assert sorted(rows) == list(range(48))
    assert found.best is best_of(found.depths)
    losses = [depth.best.best.loss for depth in found.depths]
    assert found.best.best.best.loss == min(losses)


def test_a_profile_is_plain_data_and_repeats(pictures, backbone):
    first = profile(pictures, backbone=str(backbone))
    again = profile(pictures, backbone=str(backbone))
    for one in (first, again):
        assert one.pop("seconds") > 0
        one.pop("timings")
    assert json.loads(json.dumps(first)) == again
    assert [row["depth"] for row in first["depths"]] == list(range(1, len(first["depths"]) + 1))
    assert all(
        low <= row["accuracy"] <= high for row in first["depths"] for low, high in [row["interval"]]
    )
    assert first["majority"] == pytest.approx(1 / 3)


def test_only_training_images_are_looked_at(pictures, backbone):
    found = measured(pictures, backbone)
    test = set(found.task.audit.split.test)
    assert test
    assert not test & set(found.profile.codes.indices)


@pytest.mark.parametrize("kind", ["softmax", "ridge", "svm", "sigmoid", "regression"])
def test_losses_of_rows_have_the_mean_that_the_choice_goes_by(kind):
    generator = np.random.default_rng(0)
    codes = generator.normal(size=(80, 5))
    classes = (codes[:, 0] + generator.normal(size=80) > 0).astype(int)
    targets = {
        "sigmoid": np.float32(codes[:, :2] + generator.normal(size=(80, 2)) > 0),
        "regression": np.float32(codes[:, :1] * 3 + generator.normal(size=(80, 1))),
    }.get(kind, classes)
    found = judge(codes, targets, 1 if kind == "regression" else 2, kind=kind)
    assert found.losses.mean() == pytest.approx(found.best.loss, rel=1e-6)
    if found.right is not None:
        assert found.right.mean() == pytest.approx(found.best.accuracy)


def test_a_class_that_was_never_seen_has_no_loss():
    scores = np.array([[1.0, 0.0, NEVER], [0.0, 2.0, NEVER]])
    found = losses_of_rows("softmax", scores, np.array([0, 2]), 1.0)
    assert np.isfinite(found).tolist() == [True, False]


def test_parts_of_the_labels_are_nested_and_leave_groups_whole():
    targets = Targets("classes", np.tile([0, 1, 2], 40), ("a", "b", "c"))
    groups = np.repeat(np.arange(40), 3)
    fold = np.arange(0, 24)
    parts = nested_parts(targets, fold, groups, seed=1)
    assert not set(parts[-1]) & set(fold)
    assert len(parts[-1]) == 96
    for smaller, larger in pairwise(parts):
        assert set(smaller) < set(larger)
    for part in parts:
        counts = np.bincount(groups[part], minlength=40)
        assert set(counts) <= {0, 3}


def points_of(rights: list[float], sizes: list[int], n: int = 4000) -> list[Point]:
    points = []
    for share, size in zip(rights, sizes, strict=True):
        right = np.arange(n) < round(share * n)
        judged = Judged(
            "ridge", (), 0, np.arange(n), 1.0 - right, right.astype(float), {}, 5, 5, ()
        )
        points.append(Point(size, size, judged))
    return points


def test_the_forecast_reads_a_power_law_at_twice_the_images():
    sizes = [25, 50, 100, 200]
    errors = [0.6 * size**-0.4 for size in sizes]
    gain, low, high = forecast(points_of([1 - e for e in errors], sizes), np.arange(4000), seed=0)
    assert gain == pytest.approx(errors[-1] - 0.6 * 400**-0.4, abs=2e-3)
    assert low < gain < high


def test_where_nothing_is_gained_nothing_is_expected():
    points = points_of([0.8, 0.8, 0.8], [50, 100, 200])
    gain, low, high = forecast(points, np.arange(4000), seed=0)
    assert gain == pytest.approx(0, abs=1e-9)
    assert low <= 0 <= high < 0.03


def test_the_forecast_of_numbers_is_not_pulled_up():
    points = [
        Point(size, size, Judged("regression", (), 0, np.arange(20), losses, None, {}, 5, 5, ()))
        for size, losses in ((50, np.full(20, 0.04)), (100, np.full(20, 0.02)))
    ]
    exact = points[0].judged.losses
    points.append(Point(200, 200, replace(points[0].judged, losses=exact / 4)))
    assert forecast(points, np.arange(20), seed=0) == pytest.approx((0.005, 0.005, 0.005))
    perfect = [Point(p.images, p.images, replace(p.judged, losses=0 * exact)) for p in points]
    assert forecast(perfect, np.arange(20), seed=0)[0] == pytest.approx(0)


@pytest.mark.parametrize("groups", [5, 10, 40])
def test_the_forecast_covers_where_people_differ(groups):
    """By single rows the interval covers half of the time for 10 people of 30 rows."""
    generator = np.random.default_rng(0)

    def errors(people: int) -> Array:
        own = generator.beta(2, 6, people)
        grown = own * 2.0 ** (0.15 * np.array([[2], [1], [0]]))
        return np.minimum(grown * np.exp(generator.normal(0, 0.3, (3, people))), 0.95)

    of_all = errors(40_000).mean(axis=1)
    truth = of_all[-1] * (1 - (of_all[-1] / of_all[0]) ** 0.5)
    own, covered = np.repeat(np.arange(groups), 300 // groups), 0
    rows = np.arange(len(own))
    for _ in range(40):
        right = (generator.random(len(own)) >= errors(groups)[:, own]).astype(float)
        points = [
            Point(size, size, Judged("ridge", (), 0, rows, 1 - row, row, {}, 5, 5, ()))
            for size, row in zip((75, 150, 300), right, strict=True)
        ]
        _, low, high = forecast(points, own, seed=0)
        covered += low <= truth <= high
    assert covered >= 33


def test_the_learning_curve_rises_to_the_probe_on_all_labels():
    generator = np.random.default_rng(3)
    labels = np.tile(np.arange(4), 60)
    codes = np.float32(generator.normal(size=(240, 30)) + 1.2 * np.eye(30)[labels])
    targets = Targets("classes", labels, ("a", "b", "c", "d"))
    path = sorted(STRENGTHS["ridge"], reverse=True)
    groups = np.arange(240)
    curve = learning_curve(codes, targets, kind="ridge", path=path, groups=groups, seed=0)
    whole = judge(codes, labels, 4, kind="ridge", groups=groups)
    assert [round(point.images) for point in curve.points] == [24, 48, 96, 192]
    values = [point.judged.out_of_fold["value"] for point in curve.points]
    assert values[-1] == whole.out_of_fold["value"] > values[0]
    assert 0 <= curve.doubling < 0.2


def test_collecting_leaves_out_what_cannot_be_read(pictures, backbone, monkeypatch):
    found = measured(pictures, backbone, cache="off")
    task = found.task
    lost = task.indices[3]
    source = task.images.source

    def read(name: str) -> bytes:
        if name == task.images.items[lost].name:
            raise FileNotFoundError(name)
        return source(name)

    object.__setattr__(task.images, "source", read)
    loaded = load_backbone(task.backbone, found.base, 0)
    execution = Execution(torch.device("cpu"), cache="off")
    codes = collect(loaded, task.images, task.audit, task.indices, execution)
    assert list(codes.lost) == [lost]
    assert lost not in codes.indices
    assert len(codes.at(codes.cuts[2].name)) == 47
