"""Quarter turns: what is turned, the loss, and whole runs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretraining import assert_resumes, drawings, tiny_material, trained
from topwork.errors import PlanError
from topwork.phase import Phase
from topwork.pretraining.rotation import QuarterTurns, RotationRecipe, turned

SHORT = RotationRecipe(Phase(epochs=2, batch=12, optimizer="sgd", rate=0.05))


class Shifted(nn.Module):
    """Stands for random views."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels + 0.5


def test_turns_are_quarter_turns() -> None:
    images = torch.rand(3, 2, 5, 5)
    found = turned(images).view(4, 3, 2, 5, 5)
    for turns in range(4):
        for image, expected in zip(found[turns], images, strict=True):
            assert np.array_equal(image, np.rot90(expected, turns, (1, 2)))


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_mean_over_the_turns(training: bool) -> None:
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh()), nn.Linear(6, 4)
    module = QuarterTurns(body, Shifted(), head).train(training)
    pixels = torch.rand(5, 3, 4, 4)
    found = module(pixels)
    assert found.shape == (5, 2)
    for image, (loss, right) in zip(pixels, found.tolist(), strict=True):
        losses, hits = [], []
        for turns in range(4):
            seen = np.rot90(image.numpy() + (0.5 if training else 0), turns, (1, 2)).copy()
            scores = head(body(torch.from_numpy(seen)[None]))[0].tolist()
            losses.append(math.log(sum(map(math.exp, scores))) - scores[turns])
            hits.append(int(np.argmax(scores)) == turns)
        assert math.isclose(loss, np.mean(losses), rel_tol=1e-5)
        assert math.isclose(right, np.mean(hits))


@pytest.mark.parametrize("steps", [1, 5])
def test_goes_on_to_the_same_bits(tmp_path: Path, steps: int) -> None:
    assert_resumes(tmp_path, SHORT, steps, labels=[0] * 20 + [1] * 20)


def test_learns_which_side_is_up(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 60, (80, 16, 16, 3)).astype(np.uint8)
    images += np.linspace(190, 0, 16).astype(np.uint8)[:, None, None]  # bright above
    recipe = RotationRecipe(Phase(epochs=8, batch=16, optimizer="sgd", rate=0.05))
    state = torch.get_rng_state()
    told = trained(tiny_material(tmp_path, recipe, images=images), recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert told[-1].found["right"] > 0.9
    assert told[-1].found["held_out_right"] > 0.9
    assert told[-1].found["held_out_right_n"] == 4  # of 80 images; their turns do not count
    assert told[-1].found["held_out_right_low"] < told[-1].found["held_out_right"]
    assert told[-1].held_out < told[0].held_out
    assert told[-1].pictures["turns"].shape == (4 * 16, 16, 16, 3)
    upright = told[-1].pictures["turns"][:4]
    np.testing.assert_array_equal(upright[3], np.rot90(upright[0], 3))


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    images = drawings(40, 12)[:, :8]
    with pytest.raises(PlanError, match=r"8x12 pixels .* give a square --size such as 8"):
        tiny_material(tmp_path, SHORT, images=images)
