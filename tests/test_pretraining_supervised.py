"""Supervised pretraining: the network's own classifier learns the classes, and stays."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining import (
    assert_equal_weights,
    assert_resumes,
    drawings,
    tiny_material,
    trained,
    weights_of,
)
from topwork.advice.source_classifier import source_probabilities
from topwork.data.items import images_from_arrays
from topwork.errors import PlanError, UsageError
from topwork.making import pretrain
from topwork.network.cut import segment
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.supervised import Seen, SupervisedRecipe

LABELS = [0] * 20 + [1] * 20
SHORT = SupervisedRecipe(Phase(epochs=2, batch=8, rate=0.01, optimizer="sgd"))


def test_a_step_follows_the_gradient_of_smoothed_cross_entropy(tmp_path: Path) -> None:
    phase = Phase(
        epochs=1, batch=64, rate=0.5, optimizer="sgd", momentum=0.0, weight_decay=0.1,
        schedule="constant", label_smoothing=0.2,
    )  # fmt: skip
    recipe = SupervisedRecipe(phase, least_area=1.0, flip=False)
    material = tiny_material(
        tmp_path,
        recipe,
        labels=LABELS,
        backbone="topwork:dense",
        arguments={"widths": [6], "activation": "tanh"},
    )
    before = {name: value.double().requires_grad_() for name, value in weights_of(material).items()}
    count = len(material.indices)
    (pixels,) = material.inputs(material.chain.cuts[0], 1)[0].batch(range(count), 0)
    total = torch.zeros((), dtype=torch.float64)
    for image, index in zip(pixels.double(), material.indices, strict=True):  # one by one
        hidden = torch.tanh(
            before["layer1.linear.weight"] @ image.flatten() + before["layer1.linear.bias"]
        )
        scores = before["classifier.weight"] @ hidden + before["classifier.bias"]
        chances = scores.exp() / scores.exp().sum()
        wanted = [0.1, 0.1]
        wanted[LABELS[index]] += 0.8
        total = total - sum(w * chances[k].log() for k, w in enumerate(wanted))
    (total / count).backward()

    (progress,) = trained(material, recipe)
    assert progress.loss == pytest.approx(float(total.detach()) / count, rel=1e-5)
    for name, value in before.items():
        assert value.grad is not None
        decay = 0.1 if name.endswith("weight") else 0.0
        expected = value.detach() - 0.5 * (value.grad + decay * value.detach())
        found = material.chain.network.state_dict()[name].double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_views_are_seen_in_training_only() -> None:
    class Doubling(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2 * pixels

    module = Seen(torch.nn.Identity(), Doubling())
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.equal(module.train()(pixels), 2 * pixels)
    assert torch.equal(module.eval()(pixels), pixels)


def test_each_step_sees_other_views(tmp_path: Path) -> None:
    losses = []
    for area, flip in ((1.0, False), (0.3, False), (1.0, True)):
        recipe = replace(SHORT, least_area=area, flip=flip)
        material = tiny_material(tmp_path / f"{area}{flip}", recipe, labels=LABELS)
        losses.append(trained(material, recipe)[-1].loss)
    assert len(set(losses)) == 3


def test_it_learns_and_counts_what_is_held_out(tmp_path: Path) -> None:
    count = 200
    images = drawings(count)
    recipe = SupervisedRecipe(Phase(epochs=15, batch=20, rate=0.01), least_area=0.7)
    labels = [0] * (count // 2) + [1] * (count // 2)
    material = tiny_material(tmp_path, recipe, images=images, labels=labels)
    last = trained(material, recipe)[-1]
    assert last.found["accuracy_n"] == len(material.held_out) > 5
    assert last.found["accuracy"] >= 0.9
    assert last.found["accuracy_low"] < last.found["accuracy"] <= last.found["accuracy_high"]
    inputs = material.inputs(material.chain.cuts[0], 1)[1]
    assert inputs is not None
    with torch.no_grad():
        scores = material.chain.network.eval()(*inputs.batch(range(len(inputs)), 0))
    wanted = torch.tensor([labels[i] for i in material.held_out])
    assert float((scores.argmax(1) == wanted).double().mean()) == last.found["accuracy"]


def test_images_without_a_class_are_left_out(tmp_path: Path) -> None:
    material = tiny_material(tmp_path / "some", SHORT, labels=LABELS)
    assert material.classes is not None
    material.classes[np.array([*material.indices[:9], material.held_out[0]])] = -1
    left = replace(material, indices=material.indices[9:], held_out=material.held_out[1:])
    steps = len(list(trained_steps(material)))
    again = tiny_material(tmp_path / "fewer", SHORT, labels=LABELS)
    again = replace(again, indices=left.indices, held_out=left.held_out)
    assert steps == len(list(trained_steps(again))) == 2 * math.ceil(len(again.indices) / 8)
    for name, value in weights_of(material).items():
        assert torch.equal(value, weights_of(again)[name])


def trained_steps(material):  # type: ignore[no-untyped-def]
    from topwork.pretraining.supervised import pretrain_supervised

    yield from pretrain_supervised(material, SHORT)


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    assert_resumes(tmp_path, SHORT, 7, labels=LABELS)


def test_the_classifier_and_its_names_go_into_the_folder(tmp_path: Path) -> None:
    names = [("lying", "standing", "neither")[n % 3] for n in range(40)]
    images = images_from_arrays(drawings(), names, split=["train"] * 40)
    out = tmp_path / "out"
    record = pretrain(
        images, out, method="supervised", backbone="topwork:small_convnet", epochs=1, size=(8, 8),
        recipe={"arguments": {"channels": [4, 8]}, "phase": {"batch": 8}},
    )  # fmt: skip
    assert record["results"]["classes"]["accuracy_n"] == record["held_out"] == 2
    facts = (out / "backbone.json").read_text(encoding="utf-8")
    assert '"lying",\n    "neither",\n    "standing"' in facts

    found = find_backbone(str(out))
    assert found.spec.arguments["num_classes"] == 3
    loaded = load_backbone(found, Plan(str(out)))
    codes = np.random.default_rng(0).random((5, 8), np.float32)
    said = source_probabilities(loaded, codes, "avg")
    assert said is not None
    assert said.shape == (5, 3)
    np.testing.assert_allclose(said.sum(1), 1, rtol=1e-6)


def test_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"learns classes, and .* give a folder with one sub-fold"):
        tiny_material(tmp_path, SHORT)


@pytest.mark.parametrize("area", [0.0, 1.5])
def test_impossible_crops(area: float) -> None:
    with pytest.raises(PlanError, match="least_area"):
        SHORT.changed({"least_area": area})


def test_a_stage_that_has_ended_is_not_trained_again(tmp_path: Path) -> None:
    material = tiny_material(tmp_path, SHORT, labels=[0] * 20 + [1] * 20)
    inputs, _ = material.inputs(material.chain.cuts[0], 1)
    before = weights_of(material)
    material.stages.finished.append("any")
    module = segment(material.chain, material.chain.cuts[0], None)
    labels = torch.zeros(len(inputs), dtype=torch.int64), None
    assert not list(material.stages.train("any", module, SHORT.phase, inputs, labels=labels))
    assert_equal_weights(weights_of(material), before)
