"""The players of an adversarial pair, each against its own loss alone; and how collapse shows."""

import copy
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretraining import assert_resumes, drawings, tiny_material, trained
from topwork.errors import PlanError
from topwork.pretraining import gan
from topwork.pretraining.gan import GanRecipe, Generator, Pair, diversity

RECIPE = GanRecipe(width=4, noise=8).changed({"phase": {"epochs": 2, "batch": 10}})
ARGUMENTS = {"channels": [6, 8]}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


def pair() -> Pair:
    """Return a pair with batch norms on both sides, for images of 8 by 6 pixels."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return Pair(body, 6, Generator(5, 4, (8, 6), MEAN, STD), 5).double()


def images(count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 6, dtype=torch.float64, generator=generator)


def noise_of(count: int) -> Tensor:
    """Return what a pair draws first after seed 5."""
    torch.manual_seed(5)
    return torch.randn(count, 5, dtype=torch.float64)


def step(of: Pair, real: Tensor) -> Tensor:
    torch.manual_seed(5)
    return of(real)


def test_each_player_is_moved_by_its_own_loss_alone() -> None:
    joint, alone = pair().train(), pair().train()
    alone.load_state_dict(joint.state_dict())
    real = images()
    step(joint, real)[:, 0].mean().backward()

    made = alone.generator(noise_of(len(real)))
    judge = copy.deepcopy(alone.discriminator)
    loss = torch.log1p((-judge(real)).exp()).mean() + torch.log1p(judge(made.detach()).exp()).mean()
    loss.backward()
    for own, expected in zip(joint.discriminator.parameters(), judge.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    judge = copy.deepcopy(alone.discriminator)
    torch.log1p((-judge(made)).exp()).mean().backward()
    expected_gradients = [parameter.grad for parameter in alone.generator.parameters()]
    for own, gradient in zip(joint.generator.parameters(), expected_gradients, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(own.grad, gradient)


def test_losses_are_those_of_the_paper_sample_by_sample() -> None:
    judged = pair().eval()  # in eval mode no sample depends on the others
    real = images()
    with torch.no_grad():  # so that some are told right and some wrong
        lower, upper = judged.discriminator(real).flatten().sort().values[2:4]
        judged.discriminator[1].bias -= (lower + upper) / 2  # none lies on the border
    found = step(judged, real)
    for row, (image, noise) in enumerate(zip(real, noise_of(len(real)), strict=True)):
        of_real = judged.discriminator(image[None]).sigmoid().item()
        of_made = judged.discriminator(judged.generator(noise[None])).sigmoid().item()
        discriminator = -math.log(of_real) - math.log(1 - of_made)
        generator = -math.log(of_made)
        assert found[row, 0].item() == pytest.approx(discriminator + generator)
        assert found[row, 1].item() == ((of_real > 0.5) + (of_made < 0.5)) / 2
    assert len(found[:, 1].unique()) > 1


def test_what_batch_norms_keep_is_of_real_images_alone() -> None:
    trained_on_both, trained_on_real = pair().train(), pair().train()
    for real in (images(), 2 * images() - 1):
        step(trained_on_both, real)
        trained_on_real.discriminator(real)
    expected = dict(trained_on_real.discriminator.named_buffers())
    for name, found in trained_on_both.discriminator.named_buffers():
        assert torch.equal(found, expected[name]), name
    assert int(expected["0.1.num_batches_tracked"]) == 2


def test_judging_changes_nothing() -> None:
    judged = pair().eval()
    before = copy.deepcopy(judged.state_dict())
    step(judged, images())
    for name, value in judged.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("size", [(4, 4), (5, 17), (28, 28), (32, 24), (3, 3), (1, 9)])
def test_images_of_any_size_lie_in_the_range_of_pixels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    generator = Generator(6, 2, size, MEAN, STD)
    with torch.no_grad():
        made = generator(50 * torch.randn(9, 6))
    assert made.shape == (9, 3, *size)
    pixels = made * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert pixels.std() > 0.05


def test_diversity_falls_if_images_are_alike_or_of_few_kinds() -> None:
    real = torch.randn(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert diversity(real, real) == 1.0
    assert diversity(real + 7, real) == pytest.approx(1, abs=1e-4)
    assert diversity(real[:1].expand(60, -1, -1, -1), real) == 0.0
    assert diversity(0.01 * real, real) == pytest.approx(0.01, rel=1e-3)
    two_kinds = real[:2].repeat(30, 1, 1, 1) + 1e-6 * real
    assert diversity(two_kinds, real) < 0.1


def test_an_interrupted_pair_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    for steps in (2, 4, 6):
        assert_resumes(tmp_path / str(steps), RECIPE, steps, arguments=ARGUMENTS)


def test_a_pair_learns_what_images_look_like(tmp_path: Path) -> None:
    recipe = RECIPE.changed({"phase": {"epochs": 30, "rate": 0.005}, "width": 8})
    labels = [0] * 20 + [1] * 20
    material = tiny_material(tmp_path, recipe, arguments=ARGUMENTS, labels=labels)
    *earlier, last = trained(material, recipe)
    assert all(progress.pictures == {} for progress in earlier)
    assert last.pictures["samples"].shape == (64, 8, 8, 3)
    assert last.pictures["images"].shape == (len(material.indices), 8, 8, 3)
    assert 0.3 < last.found["told_apart"] < 1
    assert last.found["diversity"] > 0.4
    assert 0 <= last.found["probe"] <= 1
    made, real = last.pictures["samples"], drawings() / 255
    assert abs(made.std() - real.std()) < 0.1  # 0.25 before training


def test_collapse_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gan, "samples", lambda pair, count: torch.ones(count, 3, 8, 8))
    recipe = RECIPE.changed({"phase": {"epochs": 4}})
    with caplog.at_level(logging.WARNING, logger="topwork"):
        told = trained(tiny_material(tmp_path, recipe, arguments=ARGUMENTS), recipe)
    assert [progress.found["diversity"] for progress in told] == [0.0] * 4
    warnings = [record.getMessage() for record in caplog.records if "collapsed" in record.message]
    assert len(warnings) == 1
    assert "give another --seed" in warnings[0]


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [("topwork:dense", {"widths": [12, 8]}), ("topwork:cifar_resnet20", {})],
)
def test_any_network_can_be_the_discriminator(
    tmp_path: Path, backbone: str, arguments: dict[str, object]
) -> None:
    recipe = RECIPE.changed({"phase": {"epochs": 1}})
    material = tiny_material(tmp_path, recipe, backbone=backbone, arguments=arguments)
    (told,) = trained(material, recipe)
    assert math.isfinite(told.loss)
    assert np.isfinite(told.pictures["samples"]).all()


@pytest.mark.parametrize("changes", [{"noise": 0}, {"width": -1}])
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="give a number above 0"):
        GanRecipe().changed(changes)
