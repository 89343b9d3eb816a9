"""What is watched of a network that is pretrained: rank, deviation, a probe; when it is stopped."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pretraining import tiny_material
from topwork.errors import PlanError
from topwork.learn.loop import TensorInputs
from topwork.learn.metrics import wilson
from topwork.pretraining.contrastive import ContrastiveRecipe
from topwork.pretraining.material import Material
from topwork.pretraining.watching import (
    WATCHED,
    deviation,
    effective_rank,
    online_probe,
    require_alive,
    share_found,
    watched_codes,
)


@pytest.mark.parametrize("shape", [(50, 6), (6, 50), (7, 7), (2, 3)])
def test_effective_rank_is_its_definition(shape: tuple[int, int]) -> None:
    codes = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
    values = codes.double().numpy()
    values = values - values.mean(0)
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(values @ values.T), 0, None))
    shares = [root / roots.sum() for root in roots]
    entropy = -sum(share * math.log(share) for share in shares if share > 1e-6)
    assert math.isclose(effective_rank(codes), math.exp(entropy), rel_tol=1e-4)


def test_effective_rank_counts_directions() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(5000, 8, generator=draw)
    assert 7.9 < effective_rank(noise) < 8
    plane = noise[:, :2] @ torch.randn(2, 30, generator=draw)
    assert 1 < effective_rank(plane) <= 2 + 1e-6
    assert math.isclose(effective_rank(plane), effective_rank(5 * plane + 100), rel_tol=1e-3)
    constant = torch.full((100, 8), 0.3) + 1e-9 * noise[:100]
    assert effective_rank(constant) == 0
    assert effective_rank(torch.zeros(4, 3)) == effective_rank(torch.ones(1, 3)) == 0


def test_deviation_is_that_of_the_columns() -> None:
    outputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 2
    columns = outputs.double().numpy().T
    squares = [sum((value - column.mean()) ** 2 for value in column) / 20 for column in columns]
    expected = math.sqrt(sum(squares) / 3)
    assert math.isclose(float(deviation(outputs)), expected, rel_tol=1e-5)


def material_of(folder: Path, labels: list[int] | None) -> Material:
    """Forty images, of which the first half is dark and the second is bright."""
    images = np.repeat(np.uint8([40, 200]), 20)[:, None, None, None] + np.zeros((1, 8, 8, 3))
    noise = np.random.default_rng(0).integers(-30, 30, images.shape)
    images = (images + noise).astype(np.uint8)
    return tiny_material(folder, ContrastiveRecipe(), images=images, labels=labels)


def test_the_probe_scores_held_out_images(tmp_path: Path) -> None:
    labels = [0] * 20 + [1] * 20
    material = material_of(tmp_path, labels)
    inputs, held_out = material.inputs(material.chain.cuts[0], 1)
    count = len(material.held_out)
    found = online_probe(material, nn.Flatten(), inputs, held_out)
    assert found == {"probe": 1.0, "probe_low": wilson(count, count)[0], "probe_high": 1.0} | {
        "probe_n": count
    }
    wrong = TensorInputs(-held_out.batch(range(len(held_out)), 0)[0])
    assert online_probe(material, nn.Flatten(), inputs, wrong)["probe"] == 0.0


def test_the_probe_learns_from_labeled_images_alone(tmp_path: Path) -> None:
    material = material_of(tmp_path, [0] * 20 + [1] * 20)
    inputs, held_out = material.inputs(material.chain.cuts[0], 1)
    unlabeled = material.indices[::2]
    material.classes[list(unlabeled)] = -1
    nonsense = inputs.batch(range(len(inputs)), 0)[0].clone()
    nonsense[::2] *= -1
    found = online_probe(material, nn.Flatten(), TensorInputs(nonsense), held_out)
    assert found["probe"] == 1.0


def test_no_probe_without_labels(tmp_path: Path) -> None:
    material = material_of(tmp_path, None)
    inputs, held_out = material.inputs(material.chain.cuts[0], 1)
    assert online_probe(material, nn.Flatten(), inputs, held_out) == {}
    material = material_of(tmp_path, [0] * 20 + [1] * 20)
    assert online_probe(material, nn.Flatten(), inputs, None) == {}
    classes = material.classes.copy()
    material.classes[list(material.held_out)] = -1
    assert online_probe(material, nn.Flatten(), inputs, held_out) == {}
    material.classes[:] = classes
    material.classes[list(material.indices)] = 1
    assert online_probe(material, nn.Flatten(), inputs, held_out) == {}


def test_watched_codes_are_of_the_same_images_in_eval_mode() -> None:
    inputs = TensorInputs(torch.arange(3000.0).view(1000, 3))
    body = nn.Dropout().train()
    codes = watched_codes(body, inputs)
    assert codes.shape == (WATCHED, 3)
    assert torch.equal(codes, watched_codes(body, inputs))
    assert body.training
    rows = (codes[:, 0] / 3).tolist()
    assert len(set(rows)) == WATCHED
    assert min(rows) < 50
    assert max(rows) > 950


def record(epoch: int, rank: float, away: float, stage: str = "two views") -> dict:
    return {"stage": stage, "epoch": epoch, "effective_rank": rank, "deviation": away}


@pytest.mark.parametrize(("rank", "away"), [(1.2, 0.9), (30.0, 0.001), (0.0, 0.0)])
def test_two_dead_epochs_running_stop_it(rank: float, away: float) -> None:
    dead, alive = record(2, rank, away), record(2, 20.0, 0.8)
    with pytest.raises(PlanError, match=r"^two views: the codes have collapsed in epoch 3 "):
        require_alive([record(1, 20.0, 0.8), dead], "two views", dead, 8)
    require_alive([], "two views", dead, 8)
    require_alive([dead], "two views", alive, 8)
    require_alive([dead, alive], "two views", dead, 8)
    require_alive([record(9, rank, away, "another")], "two views", dead, 8)
    require_alive([dead], "two views", dead, 7)  # as few images or codes have a low rank anyway


def test_a_share_comes_with_its_interval() -> None:
    z = 1.959963984540054
    for right, count in ((0, 5), (3, 5), (5, 5), (40, 100)):
        found = share_found("told", right / count, count)
        assert list(found) == ["told", "told_low", "told_high", "told_n"]
        assert (found["told"], found["told_n"]) == (right / count, count)
        for limit in (found["told_low"], found["told_high"]):  # where the score test just rejects
            if 0 < limit < 1:
                error = math.sqrt(limit * (1 - limit) / count)
                assert math.isclose(abs(right / count - limit), z * error, rel_tol=1e-6)
        assert found["told_low"] <= found["told"] <= found["told_high"]
