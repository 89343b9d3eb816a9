"""Distillation: codes and logits against slow oracles, the same views at every size."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from networks import snapshot
from pretraining import assert_resumes, drawings, tiny_material, trained, weights_of
from topwork.data.items import images_from_arrays
from topwork.errors import BackboneError, PlanError, UsageError
from topwork.learn.loop import TensorInputs
from topwork.learn.objective import Scale
from topwork.making import pretrain
from topwork.network.loading import build_network, load_backbone
from topwork.network.zoo import Backbone, find_backbone
from topwork.phase import Phase
from topwork.plan import Augment, Hidden, Plan
from topwork.pretraining.distill import (
    LEAST_DEVIATION,
    DistillRecipe,
    Student,
    classifier_of,
    divergence,
    lessons_of,
    mixed,
    pretrain_distill,
    seeing,
    student_of,
)
from topwork.pretraining.hints import hints_between

SHORT = DistillRecipe(Phase(epochs=3, batch=8, rate=0.01), views=2)
CLASSES = 7


def teacher_in(folder: Path, size: int = 8, *, crop: float = 1.0, without: str = "-") -> Backbone:
    """Return a random network, its weights in a file but for those whose name holds a word."""
    found = find_backbone("topwork:small_convnet")
    spec = replace(found.spec, arguments={"channels": [6, 12], "num_classes": CLASSES})
    state = build_network(spec, seed=5).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "teacher.safetensors"
    save_file({name: value for name, value in state.items() if without not in name}, file)
    weights = find_backbone("topwork:small_convnet", weights=file).weights
    preprocessing = replace(found.preprocessing, size=(size, size), crop=crop)
    return replace(found, spec=spec, preprocessing=preprocessing, weights=weights)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_follows_its_definition(temperature: float) -> None:
    given, wanted = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)) * 3
    for row, found in enumerate(divergence(given, wanted, temperature).tolist()):
        ours = [math.exp(z / temperature) for z in given[row].tolist()]
        theirs = [math.exp(z / temperature) for z in wanted[row].tolist()]
        total = 0.0
        for own, their in zip(ours, theirs, strict=True):
            p, q = their / sum(theirs), own / sum(ours)
            total += p * math.log(p / q)
        assert found == pytest.approx(temperature**2 * total, rel=1e-4)


def test_loss_and_gradient_follow_their_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels, codes = (torch.randn(5, *shape, generator=generator) for shape in ((3, 2, 2), (4,)))
    head = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
    scale = Scale(torch.tensor([0.1, -1.0, 2.0, 0.0]), torch.tensor([1.0, 0.5, 2.0, 3.0]))
    layers, classifier = nn.Linear(2, 2), nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    student = Student(
        [layers],
        nn.Flatten(),
        12,
        scale,
        classifier=classifier,
        head=head,
        temperature=2,
        weight=0.3,
    )
    found = student(pixels, codes)
    found[:, 0].sum().backward()
    gradient = layers.weight.grad
    assert gradient is not None
    kept, layers.weight.grad = gradient.clone(), None

    total = torch.zeros(())
    for row in range(5):
        own = layers(pixels[row]).flatten()
        read = student.reader.weight @ own + student.reader.bias
        loss = torch.zeros(())
        for k in range(4):
            target = (codes[row, k] - scale.mean[k]) / scale.deviation[k]
            loss = loss + (read[k] - target) ** 2 / 4
        wanted = torch.stack([head[0][k] @ codes[row] + head[1][k] for k in range(6)])
        given = classifier(layers(pixels[row])[None])[0]
        p, q = (wanted / 2).softmax(0), (given / 2).softmax(0)
        loss = loss + 0.3 * 4 * sum(p[k] * (p[k] / q[k]).log() for k in range(6))
        assert found[row, 0].item() == pytest.approx(loss.item(), rel=1e-4)
        assert found[row, 1].item() == float(wanted.argmax() == given.argmax())
        total = total + loss
    total.backward()
    torch.testing.assert_close(kept, layers.weight.grad, rtol=1e-3, atol=1e-5)


def test_images_and_codes_are_mixed_alike() -> None:
    torch.manual_seed(0)
    codes = torch.eye(64)
    pixels = torch.arange(64.0).view(64, 1, 1, 1).expand(64, 3, 2, 2)
    blended, read = mixed((pixels, codes), 1.0)
    torch.testing.assert_close(read.sum(1), torch.ones(64))
    assert ((read > 0).sum(1) <= 2).all()
    told = read @ torch.arange(64.0)  # what the codes say was mixed with what
    torch.testing.assert_close(blended, told.view(64, 1, 1, 1).expand(64, 3, 2, 2))
    shares = read.diagonal()
    assert 0.3 < shares.mean() < 0.7
    assert shares.min() < 0.2


def test_images_are_mixed_in_training_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    pixels, codes = (torch.randn(5, *shape, generator=generator) for shape in ((3, 2, 2), (4,)))
    scale = Scale(torch.zeros(4), torch.ones(4))
    student = Student([nn.Identity()], nn.Flatten(), 12, scale, mix_strength=1.0)
    plain = Student([nn.Identity()], nn.Flatten(), 12, scale)
    plain.load_state_dict(student.state_dict())
    student.train()
    assert not torch.equal(student(pixels, codes), plain(pixels, codes))
    assert torch.equal(student.eval()(pixels, codes), plain(pixels, codes))


def test_what_the_teacher_says_is_what_its_network_says(tmp_path: Path) -> None:
    material = tiny_material(tmp_path, SHORT, teacher=teacher_in(tmp_path))
    assert material.teacher is not None
    loaded = material.teacher.loaded
    head = classifier_of(loaded)
    assert head is not None
    codes, _ = replace(material, loaded=loaded, samples=material.teacher).inputs(
        loaded.chain.top, 1
    )
    network = build_network(loaded.backbone.spec, seed=5).eval()  # whose weights were saved
    (pixels,) = material.inputs(material.chain.cuts[0], 1)[0].batch(range(9), 0)
    with torch.no_grad():
        said = nn.functional.linear(*codes.batch(range(9), 0), *head)
        torch.testing.assert_close(said, network(pixels), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_other_codes_is_not_taken(tmp_path: Path) -> None:
    material = tiny_material(tmp_path, SHORT, teacher=teacher_in(tmp_path))
    assert material.teacher is not None
    loaded = material.teacher.loaded
    other = replace(loaded, plan=replace(loaded.plan, pool="flatten"))
    assert (classifier_of(loaded) is None, classifier_of(other) is None) == (False, True)
    for changes, is_taken in (
        ({}, True),
        ({"pool": "flatten"}, False),
        ({"added": (Hidden(12),)}, False),
        ({"codes": ("block1", "block2")}, False),
        ({"kept": "block1"}, False),
        ({"head": "sigmoid"}, False),
        ({"head": "regression"}, False),
    ):
        fitted = replace(Plan(loaded.backbone.name), **changes)
        model = replace(loaded, backbone=replace(loaded.backbone, fitted=fitted))
        assert (classifier_of(model) is not None) == is_taken, changes


def test_columns_that_hardly_vary_do_not_outweigh_the_others(tmp_path: Path) -> None:
    material = tiny_material(tmp_path, SHORT, teacher=teacher_in(tmp_path))
    assert material.teacher is not None
    loaded = material.teacher.loaded
    codes = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    codes[:, 3], codes[:, 7] = 0.0, 1e-6 * codes[:, 7]
    student = student_of(material, loaded, TensorInputs(codes), (), SHORT)
    typical = float(codes.std(0, unbiased=False).square().mean().sqrt())
    expected = codes.std(0, unbiased=False).clamp(min=LEAST_DEVIATION * typical)
    torch.testing.assert_close(student.deviation, expected)


def smooth(count: int, side: int) -> np.ndarray:
    """Return images whose colors tell the place, so that views can be told from each other."""
    down, across = np.mgrid[0:side, 0:side] / side * 2 * math.pi
    images = [
        np.stack([np.sin(down + n), np.cos(across - n), np.sin(down + across + 2 * n)], 2)
        for n in range(count)
    ]
    return np.rint(127.5 + 127.5 * np.array(images)).astype(np.uint8)


def test_student_and_teacher_see_the_same_at_each_size(tmp_path: Path) -> None:
    teacher = teacher_in(tmp_path, size=64, crop=0.6)
    material = tiny_material(tmp_path, SHORT, images=smooth(20, 96), teacher=teacher)
    assert material.teacher is not None
    assert material.loaded.backbone.preprocessing.size == (96, 96)
    small = replace(material.loaded.backbone.preprocessing, size=(16, 16))
    backbone = replace(material.loaded.backbone, preprocessing=small)
    ours = replace(material.samples, loaded=replace(material.loaded, backbone=backbone))
    augment = Augment(0.3, True)
    seen = []
    for samples in (ours, material.teacher):
        samples = seeing(samples, small.crop, augment)
        start = samples.loaded.chain.cuts[0]
        inputs = replace(material, loaded=samples.loaded, samples=samples).inputs(start, 4, 4)[0]
        views = torch.stack([inputs.batch(range(len(inputs)), view)[0] for view in range(4)])
        mean, std = (torch.tensor(row).view(-1, 1, 1) for row in (small.mean, small.std))
        seen.append(views * std + mean)
    shrunk = nn.functional.avg_pool2d(seen[1].flatten(0, 1), 4).view(seen[0].shape)
    assert (seen[0] - shrunk).abs().mean() < 0.01
    assert (seen[0] - shrunk).abs().amax() < 0.08
    differences = (seen[0][:, None] - seen[0][None]).abs().mean((2, 3, 4, 5))
    assert differences[~torch.eye(4, dtype=torch.bool)].min() > 0.05  # views do differ


def test_pixels_maps_and_codes_belong_together(tmp_path: Path) -> None:
    """At the teacher's size the student sees the teacher's very pixels."""
    material = tiny_material(
        tmp_path, SHORT, images=drawings(side=12), teacher=teacher_in(tmp_path, 12, crop=0.8)
    )
    assert material.teacher is not None
    hints = hints_between(material.chain, material.teacher.loaded.chain)
    lessons, held_out = lessons_of(material, material.teacher, hints, SHORT)
    assert len(lessons) == len(material.indices)
    assert held_out is not None
    assert len(held_out) == len(material.held_out)
    network = build_network(material.teacher.loaded.backbone.spec, seed=5).eval()
    network.classifier = nn.Identity()
    (hint,) = hints
    told: list[torch.Tensor] = []
    layer = network.get_submodule(hint.theirs.name)
    layer.register_forward_hook(lambda _, __, output: told.append(output))
    for of, epochs in ((lessons, 4), (held_out, 1)):
        for epoch in range(epochs):
            pixels, found, codes = of.batch([1, 0], epoch)
            with torch.no_grad():
                torch.testing.assert_close(codes, network(pixels), rtol=1e-4, atol=1e-5)
            means = nn.functional.avg_pool2d(told[-1], told[-1].shape[-1] // hint.rows)
            torch.testing.assert_close(found, means.flatten(1), rtol=1e-4, atol=1e-5)


def test_a_teacher_that_sees_other_parts_is_refused(tmp_path: Path) -> None:
    images = drawings(side=16)[:, :8]
    with pytest.raises(UsageError, match="see 8x16 pixels, its teacher 8x8; give a size of the"):
        tiny_material(tmp_path, SHORT, images=images, teacher=teacher_in(tmp_path, 8))


def test_it_learns_and_leaves_the_teacher_alone(tmp_path: Path) -> None:
    recipe = replace(SHORT, phase=Phase(epochs=25, batch=16, rate=0.01), least_area=0.7)
    material = tiny_material(
        tmp_path, recipe, images=drawings(160), teacher=teacher_in(tmp_path), arguments={}
    )
    assert material.teacher is not None
    before = snapshot(material.teacher.loaded.chain.network)
    told = trained(material, recipe)
    assert snapshot(material.teacher.loaded.chain.network) == before
    assert told[0].held_out is not None
    assert told[-1].held_out is not None
    assert told[-1].held_out < 0.5 * told[0].held_out
    assert told[-1].found["agreement_in_training"] > 0.7
    assert told[-1].found["agreement_n"] == len(material.held_out)
    assert told[-1].found["agreement_low"] < told[-1].found["agreement"]

    (pixels,) = material.inputs(material.chain.cuts[0], 1)[0].batch(range(100), 0)
    teacher = build_network(material.teacher.loaded.backbone.spec, seed=5).eval()
    with torch.no_grad():
        ours, theirs = (net(pixels).argmax(1) for net in (material.chain.network.eval(), teacher))
    assert (ours == theirs).float().mean() > 0.8  # its own classifier learned, in the network


def test_codes_alone_where_there_is_no_classifier(tmp_path: Path) -> None:
    teacher = teacher_in(tmp_path, without="classifier")
    material = tiny_material(tmp_path, SHORT, teacher=teacher)
    before = weights_of(material)
    last = trained(material, SHORT)[-1]
    assert last.found == {}
    after = weights_of(material)
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert not torch.equal(before["block1.conv.weight"], after["block1.conv.weight"])
    assert len(after["classifier.weight"]) == 10  # as many as it had


def test_codes_alone_where_logits_do_not_count(tmp_path: Path) -> None:
    recipe = replace(SHORT, logits=0.0)
    material = tiny_material(tmp_path, recipe, teacher=teacher_in(tmp_path))
    assert trained(material, recipe)[-1].found == {}


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    recipe = replace(SHORT, mix_strength=1.0)
    assert_resumes(tmp_path, recipe, 8, teacher=teacher_in(tmp_path))


def test_another_teacher_is_another_pretraining(tmp_path: Path) -> None:
    other = teacher_in(tmp_path / "b")
    first = tiny_material(tmp_path, SHORT, teacher=teacher_in(tmp_path / "a"))
    next(pretrain_distill(first, SHORT))
    first.stages.save()
    state = load_file(tmp_path / "b" / "teacher.safetensors")
    save_file(
        {name: value + 1 for name, value in state.items()}, tmp_path / "b/teacher.safetensors"
    )
    with pytest.raises(UsageError, match="had another teacher"):
        tiny_material(tmp_path, SHORT, teacher=other).stages.restore()


def test_a_folder_that_can_be_fitted(tmp_path: Path) -> None:
    file = teacher_in(tmp_path).weights
    assert file is not None
    wide = find_backbone("topwork:small_convnet")
    spec = replace(wide.spec, arguments={"channels": [6, 12], "num_classes": CLASSES})
    teacher = replace(wide, spec=spec, weights=file)
    images = images_from_arrays(drawings(), [str(n % 2) for n in range(40)], split=["train"] * 40)
    record = pretrain(
        images, tmp_path / "out", method="distill", backbone="topwork:small_convnet",
        teacher=teacher, epochs=1, size=(8, 8), recipe={"arguments": {"channels": [4, 8]}},
    )  # fmt: skip
    assert record["teacher"]["arguments"] == {"channels": [6, 12], "num_classes": CLASSES}
    assert "agreement" in record["results"]["distillation"]
    assert record["license"] == wide.about["license"]
    loaded = load_backbone(find_backbone(str(tmp_path / "out")), Plan(str(tmp_path / "out")))
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert len(state["classifier.bias"]) == CLASSES
    assert classifier_of(loaded) is not None
    assert loaded.backbone.about["license"] == wide.about["license"]


def test_a_teacher_is_needed(tmp_path: Path) -> None:
    images = images_from_arrays(drawings(), ["a", "b"] * 20)
    with pytest.raises(UsageError, match="name it with --teacher"):
        pretrain(images, tmp_path / "a", method="distill", backbone="topwork:small_convnet")
    with pytest.raises(UsageError, match="name it with --teacher"):
        next(pretrain_distill(tiny_material(tmp_path / "b", SHORT), SHORT))
    with pytest.raises(BackboneError, match="--teacher-weights"):
        pretrain(
            images,
            tmp_path / "c",
            method="distill",
            backbone="topwork:small_convnet",
            teacher="topwork:cifar_resnet20",
        )
    with pytest.raises(UsageError, match="belongs to --method distill, not to supervised"):
        pretrain(
            images,
            tmp_path / "d",
            method="supervised",
            backbone="topwork:small_convnet",
            teacher="topwork:cifar_resnet20",
        )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"views": 0}, "views is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"least_area": 0.0}, "least_area"),
        ({"logits": -1.0}, "logits"),
        ({"mix_strength": -1.0}, "mix_strength"),
    ],
)
def test_impossible_recipes(change: dict, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        SHORT.changed(change)
