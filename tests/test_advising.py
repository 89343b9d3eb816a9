"""Fitting without a plan, end to end on a tiny network: advice, resuming, other targets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from topwork import api
from topwork.advice import candidates as known
from topwork.advising import advise, profile
from topwork.api import fit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.errors import UsageError
from topwork.plan import Plan

FEW = (known.TOP, known.BEST, known.SEVERAL, known.TWO_THIRDS)


def strict(data: object) -> str:
    return json.dumps(data, allow_nan=False)


def several_labels(images: ImageSet) -> ImageSet:
    """Return the pictures with a second label that the first does not tell."""
    items = [
        replace(item, labels=(*item.labels, "odd") if number % 2 else item.labels)
        for number, item in enumerate(images.items)
    ]
    return replace(images, items=tuple(items), multilabel=True)


def as_numbers(images: ImageSet) -> ImageSet:
    numbers = {"disc": "1.5", "square": "3", "stripes": "7"}
    items = [replace(item, labels=(numbers[item.labels[0]],)) for item in images.items]
    return replace(images, items=tuple(items), number_names=("size",))


def test_a_fit_without_a_plan_fits_what_is_recommended(pictures, backbone, tmp_path):
    record = fit(pictures, tmp_path / "run", backbone=str(backbone))
    advice = record["advice"]
    assert record["plan"] == advice["recommended"]
    (recommended,) = [row for row in advice["candidates"] if row["recommended"]]
    assert recommended["name"] == advice["recommended_name"]
    assert recommended["plan"] == record["plan"]
    assert Plan.from_dict(advice["recommended"]).backbone == str(backbone)
    assert advice["images"] == 48  # no test image has a say
    assert record["n"] == 24
    strict(record)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert advice["recommended_name"] in page
    assert not (tmp_path / "run.unfinished").exists()


def test_advice_lists_every_candidate_with_a_reason(pictures, backbone):
    found = advise(pictures, backbone=str(backbone), time_budget=0.0)
    strict(found)
    assert {row["state"] for row in found["candidates"]} <= {"compared", "dropped", "not tried"}
    for row in found["candidates"]:
        assert row["reason"]
        assert (row["value"] is None) == (row["state"] == "not tried")
    assert found["textbook"]["words"]
    assert found["profile"]["similarity"]["verdict"] in ("similar", "different", "cannot tell")


def test_where_features_leave_nothing_to_gain_nothing_is_tried(pictures, backbone):
    found = advise(pictures, backbone=str(backbone))
    best = max(row["value"] or 0.0 for row in found["candidates"])
    assert best > 0.98  # discs, squares and stripes are easy
    trials = [row for row in found["candidates"] if row["name"] in (known.ALL, known.VIEWS)]
    assert [row["state"] for row in trials] == ["not tried"] * 2
    assert all("too little that a trial could gain" in row["reason"] for row in trials)


def test_a_resumed_fit_keeps_the_advice_that_it_began_with(
    pictures, backbone, tmp_path, monkeypatch
):
    out = tmp_path / "run"

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "fit_plan", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(pictures, out, backbone=str(backbone))
    kept = json.loads((tmp_path / "run.unfinished" / "advice.json").read_text(encoding="utf-8"))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(api, "find_plan", refuse)
    with pytest.raises(AssertionError, match="measured again"):
        fit(pictures, out, backbone=str(backbone), seed=1, resume=True)
    record = fit(pictures, out, backbone=str(backbone), resume=True)
    assert record["advice"] == kept["advice"]
    assert not (tmp_path / "run.unfinished").exists()


@pytest.mark.parametrize(
    ("change", "head", "metric"),
    [
        (several_labels, "sigmoid", "mean_average_precision"),
        (as_numbers, "regression", "mean_absolute_error"),
    ],
)
def test_labels_and_numbers_are_measured_too(change, head, metric, pictures, backbone, tmp_path):
    images = change(open_images(pictures))
    found = profile(images, backbone=str(backbone), head=head)
    strict(found)
    assert found["metric"] == metric
    assert all("accuracy" not in row for row in found["depths"])
    advice = advise(images, backbone=str(backbone), head=head, candidates=FEW)
    strict(advice)
    assert advice["recommended"]["head"] == head


def test_several_backbones_are_ranked_and_the_recommended_one_is_gone_on_with(
    pictures, backbone, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(backbone).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    both = [str(backbone), str(other)]
    found = profile(pictures, backbone=both)
    strict(found)
    assert [one["backbone"] for one in found["profiles"]] == both
    assert {row["backbone"] for row in found["ranking"]} == set(both)
    assert found["recommended"] in both
    values = np.array([row["loss"] for row in found["ranking"]])
    assert np.allclose(values, values[0])  # they are the same
    advice = advise(pictures, backbone=both, candidates=FEW[:3])
    assert advice["backbone"] == found["recommended"]
    assert len(advice["ranking"]) == 2


def test_what_cannot_be_meant_is_refused(pictures, backbone, tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        profile(pictures, backbone=[str(backbone)] * 2)
    with pytest.raises(UsageError, match="--weights is for a single backbone"):
        profile(pictures, backbone=[str(backbone), "timm:resnet18"], weights="w.safetensors")
    with pytest.raises(UsageError, match="what can be measured"):
        profile(pictures, backbone=str(backbone), head="svm")
