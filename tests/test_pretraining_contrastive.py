"""Random views on tensors, and the losses that compare two of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from pretraining import assert_resumes, tiny_material, trained
from topwork.data.views import Preprocessing
from topwork.errors import PlanError
from topwork.phase import Phase
from topwork.pretraining import contrastive
from topwork.pretraining.contrastive import (
    ContrastiveRecipe,
    TwoViews,
    found_again,
    nt_xent,
    projector_of,
    vicreg,
)
from topwork.pretraining.random_views import MILD, RandomViews, Strength, random_views

CROPS = Strength(least_area=0.2, jitter=0, hue=0, gray=0)
COLORS = Strength(least_area=1, flip=False, jitter=0.4, hue=0.1, gray=0.2)
LUMA = torch.tensor([0.299, 0.587, 0.114])
SHORT = Phase(epochs=2, batch=12, optimizer="adamw", rate=1e-3)


def ramps(count: int, height: int, width: int) -> Tensor:
    """Images whose first two channels say where a pixel is; the third is noise."""
    across = (torch.arange(width) + 0.5) / width
    down = (torch.arange(height) + 0.5) / height
    whole = torch.stack([across.expand(height, width), down[:, None].expand(height, width)])
    noise = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(1))
    return torch.cat([whole.expand(count, 2, height, width), noise], 1)


def boxes(views: Tensor) -> Tensor:
    """Where crops begin and end, as shares of the image: left, right, top, bottom; [n, 4]."""
    found = []
    for channel, axis in ((0, 2), (1, 1)):
        line = views[:, channel].mean(3 - axis)
        length = line.shape[1]
        slope = (line[:, length // 2 + 4] - line[:, length // 2 - 4]) / 8
        middle = (line[:, length // 2] + line[:, length // 2 - 1]) / 2
        found += [middle - slope * length / 2, middle + slope * length / 2]
    return torch.stack(found, 1)


def test_crops_are_drawn_by_the_rules() -> None:
    torch.manual_seed(0)
    left, right, top, bottom = boxes(random_views(ramps(4000, 48, 64), CROPS)).T
    assert 0.48 < float((right < left).float().mean()) < 0.52
    left, right = torch.minimum(left, right), torch.maximum(left, right)
    inside = torch.stack([left, top, 1 - right, 1 - bottom])
    assert float(inside.min()) > -1e-4
    wide, high = right - left, bottom - top
    area, aspect = wide * high, (wide / high).log()
    assert float(area.min()) > 0.2 - 1e-4
    assert float(aspect.abs().max()) < math.log(4 / 3) + 1e-4
    fits = area < 0.7  # larger ones may be cut off at the image's edge
    assert math.isclose(float(area[fits].mean()), 0.45, abs_tol=0.01)
    assert abs(float(aspect.mean())) < 0.01
    assert math.isclose(float(aspect[fits].std()), 2 * math.log(4 / 3) / 12**0.5, rel_tol=0.05)
    place = left[fits] / (1 - wide[fits])
    assert math.isclose(float(place.mean()), 0.5, abs_tol=0.02)
    assert math.isclose(float(place.std()), 12**-0.5, abs_tol=0.02)


def test_crops_are_what_pillow_resizes() -> None:
    torch.manual_seed(0)
    images = ramps(20, 24, 32)
    views = random_views(images, CROPS)
    for image, view, (left, right, top, bottom) in zip(
        images, views, boxes(views).tolist(), strict=True
    ):
        box = (min(left, right) * 32, top * 24, max(left, right) * 32, bottom * 24)
        box = tuple(float(np.clip(v, 0, size)) for v, size in zip(box, (32, 24) * 2, strict=True))
        noise = Image.fromarray(image[2].numpy())
        expected = np.array(noise.resize((32, 24), Image.Resampling.BILINEAR, box=box))
        if right < left:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(view[2], expected, atol=1e-3)


def test_colors_are_changed_as_torchvision_does() -> None:
    torch.manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(200, 3, 6, 6)
    views = random_views(images, Strength(1, False, jitter=0.4, hue=0, gray=0))
    unchanged = 0
    for image, view in zip(images, views, strict=True):
        matrix, shift = color_map(image, view)
        torch.testing.assert_close(shift, shift.mean().expand(3), atol=1e-3, rtol=0)
        both = LUMA @ matrix.sum(1)  # what brightness and contrast do together
        brightness = both + shift.mean() / (LUMA @ image.mean((1, 2)))
        contrast = both / brightness
        saturation = (torch.linalg.det(matrix) / both**3).sqrt()
        factors = torch.stack([brightness, contrast, saturation])
        assert float((factors - 1).abs().max()) < 0.401
        unchanged += float((factors - 1).abs().max()) < 1e-3
        expected = transforms.adjust_brightness(image, float(brightness))
        expected = transforms.adjust_contrast(expected, float(contrast))
        expected = transforms.adjust_saturation(expected, float(saturation))
        torch.testing.assert_close(view, expected, atol=2e-3, rtol=0)
    assert 20 <= unchanged <= 60  # a fifth of them


def color_map(image: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix [3, 3] and the shift [3] that lead from the colors of one to those of another."""
    given = torch.cat([image.flatten(1), torch.ones(1, image[0].numel())]).T
    solved = torch.linalg.lstsq(given.double(), view.flatten(1).T.double()).solution.float()
    return solved[:3].T, solved[3]


def test_hue_and_gray() -> None:
    torch.manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(400, 3, 6, 6)
    turned = random_views(images, Strength(1, False, jitter=0, hue=0.1, gray=0))
    luma = torch.einsum("c,nchw->nhw", LUMA, images)
    torch.testing.assert_close(torch.einsum("c,nchw->nhw", LUMA, turned), luma)
    turns = []
    for image, view in zip(images, turned, strict=True):
        matrix, _ = color_map(image, view)
        assert math.isclose(float(torch.linalg.det(matrix)), 1, abs_tol=1e-3)
        turns.append(math.acos(min(1, (float(matrix.trace()) - 1) / 2)) / (2 * math.pi))
    assert 0.09 < max(turns) < 0.1001
    assert 0.15 < np.mean(np.array(turns) < 1e-3) < 0.25
    flat = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(random_views(flat, Strength(1, False, 0, 0.1, 0.5)), flat)

    some = random_views(images, Strength(1, False, jitter=0, hue=0, gray=0.2))
    gray = (some - luma[:, None]).abs().amax((1, 2, 3)) < 1e-5
    assert 0.15 < float(gray.float().mean()) < 0.25
    torch.testing.assert_close(some[~gray], images[~gray])


def test_gray_images_change_in_brightness_and_contrast() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 6, 6) - 3
    views = random_views(images, COLORS)
    unchanged = 0
    for image, view in zip(images, views, strict=True):
        slope = float(view.std() / image.std())
        brightness = float(view.mean() / image.mean())
        assert 0.599 < brightness < 1.401
        assert 0.599 < slope / brightness < 1.401
        torch.testing.assert_close(view - view.mean(), slope * (image - image.mean()))
        unchanged += abs(brightness - 1) < 1e-5
    assert 20 <= unchanged <= 60  # a fifth of them
    crops = Strength(least_area=1, flip=False, jitter=0, hue=0.1, gray=0.2)
    assert torch.equal(random_views(images, crops), images)


def test_views_follow_the_seed() -> None:
    images = torch.rand(5, 3, 9, 7)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(random_views(images))
    assert torch.equal(*drawn)
    assert drawn[0].shape == images.shape
    assert not torch.equal(random_views(images), drawn[0])
    assert 0 <= float(drawn[0].min()) <= float(drawn[0].max()) <= 1
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        assert torch.equal(random_views(images), drawn[0])


def test_views_of_normalized_pixels() -> None:
    preprocessing = Preprocessing((8, 8), 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in (preprocessing.mean, preprocessing.std))
    images = torch.rand(6, 3, 8, 8)
    for strength in (MILD, COLORS):
        torch.manual_seed(0)
        expected = (random_views(images, strength) - mean) / std
        torch.manual_seed(0)
        found = RandomViews(preprocessing, strength)((images - mean) / std)
        torch.testing.assert_close(found, expected)
    assert not RandomViews(preprocessing).state_dict()


# --- losses against their definitions, by loops over pairs of images


def projections(count: int = 5, width: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(count, width, generator=draw, dtype=torch.float64)
    return first, first + 0.7 * torch.randn(count, width, generator=draw, dtype=torch.float64)


def slow_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    views = [row / math.sqrt(sum(row**2)) for row in (*first, *second)]
    count, total = len(first), 0.0
    for i in range(2 * count):
        others = sum(
            math.exp(views[i] @ views[k] / temperature) for k in range(2 * count) if k != i
        )
        j = (i + count) % (2 * count)
        total -= math.log(math.exp(views[i] @ views[j] / temperature) / others)
    return total / (2 * count)


def slow_vicreg(first: np.ndarray, second: np.ndarray, weights: tuple[float, ...]) -> float:
    count, width = first.shape
    near = sum((a - b) ** 2 for a, b in zip(first.ravel(), second.ravel(), strict=True))
    loss = weights[0] * near / (count * width)
    for views in (first, second):
        mean = [sum(views[:, i]) / count for i in range(width)]
        for i in range(width):
            for j in range(width):
                both = sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in views) / (count - 1)
                if i == j:
                    short = max(0.0, 1 - math.sqrt(both + 1e-4))
                    loss += weights[1] * short / width / 2
                else:
                    loss += weights[2] * both**2 / width
    return loss


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_its_definition(temperature: float) -> None:
    first, second = projections()
    losses = nt_xent(first, second, temperature)
    assert losses.shape == (5,)
    expected = slow_nt_xent(first.numpy(), second.numpy(), temperature)
    assert math.isclose(float(losses.mean()), expected, rel_tol=1e-12)
    assert_gradient(
        lambda a, b: nt_xent(a, b, temperature), lambda a, b: slow_nt_xent(a, b, temperature)
    )


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 3.0)])
def test_vicreg_is_its_definition(weights: tuple[float, float, float]) -> None:
    first, second = projections()
    losses = vicreg(first, second, *weights)
    assert losses.shape == (5,)
    expected = slow_vicreg(first.numpy(), second.numpy(), weights)
    assert math.isclose(float(losses.mean()), expected, rel_tol=1e-12)
    assert_gradient(lambda a, b: vicreg(a, b, *weights), lambda a, b: slow_vicreg(a, b, weights))


def assert_gradient(fast, slow) -> None:
    """Hold the gradient of a mean loss against differences of the slow one."""
    first, second = (value.requires_grad_() for value in projections())
    fast(first, second).mean().backward()
    for place, value in enumerate((first, second)):
        for i, j in np.ndindex(*value.shape):
            both = [projections()[0].numpy().copy(), projections()[1].numpy().copy()]
            around = []
            for step in (1e-6, -1e-6):
                moved = [part.copy() for part in both]
                moved[place][i, j] += step
                around.append(slow(*moved))
            expected = (around[0] - around[1]) / 2e-6
            assert math.isclose(float(value.grad[i, j]), expected, abs_tol=1e-7, rel_tol=1e-5)


def test_found_again_counts_pairs_that_are_nearest() -> None:
    draw = torch.Generator().manual_seed(2)
    first = torch.randn(40, 4, generator=draw)
    second = first + 0.7 * torch.randn(40, 4, generator=draw)
    views = torch.cat([first, second]).double().numpy()
    views /= np.sqrt((views**2).sum(1, keepdims=True))
    hits = np.zeros(80)
    for i in range(80):
        products = [views[i] @ views[k] if k != i else -2 for k in range(80)]
        hits[i] = int(np.argmax(products)) == (i + 40) % 80
    expected = (hits[:40] + hits[40:]) / 2
    assert found_again(first, second).tolist() == expected.tolist()
    assert 0.2 < expected.mean() < 0.8


def test_an_image_alone_has_losses_too() -> None:
    first, second = projections(count=1)
    assert nt_xent(first, second, 0.5).tolist() == [0.0]
    assert bool(vicreg(first, second, 25, 25, 1).isfinite().all())
    assert found_again(first, second).tolist() == [1.0]


@pytest.mark.parametrize("loss", ["nt-xent", "vicreg"])
def test_the_module_compares_two_views_of_each_image(loss: str) -> None:
    recipe = ContrastiveRecipe(loss=loss, temperature=0.3)
    torch.manual_seed(0)
    projector = projector_of(48, (6, 4)).eval()
    preprocessing = Preprocessing((4, 4), 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    views = RandomViews(preprocessing)
    pixels = torch.randn(7, 3, 4, 4)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(TwoViews(nn.Flatten(), views, projector, recipe)(pixels))
    assert torch.equal(*found)
    torch.manual_seed(5)
    first, second = projector(views(pixels).flatten(1)), projector(views(pixels).flatten(1))
    expected = (
        nt_xent(first, second, 0.3) if loss == "nt-xent" else vicreg(first, second, 25, 25, 1)
    )
    torch.testing.assert_close(found[0][:, 0], expected)
    torch.testing.assert_close(found[0][:, 1], found_again(first, second))


# --- whole runs


@pytest.mark.parametrize("loss", ["nt-xent", "vicreg"])
@pytest.mark.parametrize("steps", [1, 5])
def test_goes_on_to_the_same_bits(tmp_path: Path, loss: str, steps: int) -> None:
    recipe = ContrastiveRecipe(SHORT, loss=loss, projector=(16, 8))
    assert_resumes(tmp_path, recipe, steps, labels=[0] * 20 + [1] * 20)


def blots(count: int, side: int) -> np.ndarray:
    """Images of large colored blots, each its own, uint8 [n, side, side, 3]."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(some).resize((side, side))) for some in small])


def test_learns_to_find_images_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "STRONG", MILD)  # the others take longer to learn from
    phase = Phase(epochs=5, batch=32, rate=1e-2)
    recipe = ContrastiveRecipe(phase, temperature=0.2, least_area=MILD.least_area)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    material = tiny_material(tmp_path, recipe, images=blots(200, 16), labels=[0, 1] * 100)
    told = trained(material, recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert told[-1].found["found_again"] > 0.8 > told[0].found["found_again"]
    assert told[-1].loss < told[0].loss
    assert told[-1].held_out is None  # they are not as many as a batch
    probed = {"probe", "probe_low", "probe_high", "probe_n"}
    assert set(told[-1].found) == {"found_again", "effective_rank", "deviation", *probed}
    assert told[-1].pictures["views"].shape == (3 * 27, 16, 16, 3)
    assert not any(progress.pictures for progress in told[:-1])


def test_a_network_that_collapses_is_stopped(tmp_path: Path) -> None:
    """Without a weight on variance, and at a high rate, all projections shrink to a point."""
    healthy = ContrastiveRecipe(
        Phase(epochs=10, batch=16, rate=1e-2), loss="vicreg", projector=(16, 8)
    )
    how = {"images": blots(60, 8), "arguments": {"channels": [8, 16]}}
    told = trained(tiny_material(tmp_path / "healthy", healthy, **how), healthy)
    assert len(told) == 10
    assert all(progress.held_out is None for progress in told)
    sick = replace(healthy, variance=0.0, covariance=0.0)
    material = tiny_material(tmp_path / "sick", sick, **how)
    with pytest.raises(PlanError, match=r"collapsed in epoch \d .*lower the rate") as refused:
        trained(material, sick)
    assert "\n" not in str(refused.value)
    assert 2 <= len(material.stages.records) < 9


def test_a_dead_projector_is_found_in_the_second_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(codes: int, widths: tuple[int, ...]) -> nn.Sequential:
        projector = projector_of(codes, widths)
        for value in projector.parameters():
            nn.init.zeros_(value)
        return projector

    monkeypatch.setattr(contrastive, "projector_of", dead)
    recipe = ContrastiveRecipe(Phase(epochs=5, batch=12, rate=1e-3))
    material = tiny_material(tmp_path, recipe)
    with pytest.raises(PlanError, match="collapsed in epoch 2"):
        trained(material, recipe)
    narrow = tiny_material(tmp_path / "narrow", recipe, arguments={"channels": [8, 7]})
    assert len(trained(narrow, recipe)) == 5  # so few directions cannot tell


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "vicregg"}, "did you mean 'vicreg'"),
        ({"temperature": 0}, "temperature is 0"),
        ({"variance": -1}, "none below 0"),
        ({"projector": [0, 3]}, "give widths such as"),
        ({"phase": {"at_once": 8}}, "leave out at_once"),
        ({"phase": {"batch": 1}}, "a batch of 2 or more"),
    ],
)
def test_recipes_that_make_no_sense(changes: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ContrastiveRecipe().changed(changes)
