"""The range test: what it finds, and that nobody can tell afterwards that it was run."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from topwork.errors import PlanError
from topwork.learn.loop import TensorInputs, Training, own_randomness, steps
from topwork.learn.objective import Objective
from topwork.learn.optimizers import group_parameters
from topwork.learn.range_test import find_rate
from topwork.phase import Phase

CPU = torch.device("cpu")


def make_training(network: nn.Module, *, objective: Objective | None = None, **settings):
    usual = {"epochs": 4, "batch": 10, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    phase = Phase(**usual | settings)
    groups = group_parameters(dict(network.named_parameters()), {}, phase)
    kept = frozenset(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    return Training(network, phase, 1.0, groups, objective or Objective(), kept, at_once=4, seed=3)


def make_convnet() -> tuple[nn.Module, TensorInputs, Tensor]:
    """Return a network with a kept norm, one that learns, and dropout, and data for it."""
    with own_randomness(1, CPU):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(36, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 3),
        )
        return network, TensorInputs(torch.randn(24, 3, 5, 5)), torch.arange(24) % 3


def traces(training: Training) -> dict[str, object]:
    """Return all that could tell that something was run, as bytes."""
    network = training.network
    tensors = {**network.state_dict(), **training.tensors()}
    return {
        "tensors": {k: (v.data_ptr(), v.numpy().tobytes()) for k, v in tensors.items()},
        "gradients": {k: p.grad for k, p in network.named_parameters()},
        "identity": [id(p) for group in training.groups for p in group.parameters],
        "rates": [options["lr"] for options in training.optimizer.param_groups],
        "modes": [module.training for module in network.modules()],
        "facts": training.facts(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),
        "python": random.getstate(),
    }


@pytest.mark.parametrize("training_mode", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "nadam", "average": 0.9},
        {"optimizer": "sgd", "momentum": 0.9, "clip": 0.1, "mix": "mixup"},
        {"optimizer": "adagrad", "mix": "cutmix", "balance": "sampling"},
    ],
    ids=lambda settings: str(settings.get("optimizer")),
)
def test_nothing_is_left_behind(settings: dict, training_mode: bool):
    network, inputs, targets = make_convnet()
    training = make_training(network, **settings)
    for _ in zip(range(2), steps(training, inputs, targets), strict=False):
        pass  # so that the optimizer has something to lose
    training.optimizer.zero_grad()
    network.train(training_mode)
    network[3].train(not training_mode)
    before = traces(training)
    find_rate(training, inputs, targets)
    assert traces(training) == before


def test_nothing_is_left_behind_by_a_test_that_fails():
    network, inputs, targets = make_convnet()
    training = make_training(network)
    inputs.tensor[:] = torch.nan
    before = traces(training)
    with pytest.raises(PlanError, match="range test: the loss is not finite at the lowest rate"):
        find_rate(training, inputs, targets)
    assert traces(training) == before


def test_training_after_the_test_is_training_without_it():
    results = []
    for tested in (False, True):
        network, inputs, targets = make_convnet()
        training = make_training(network, average=0.5)
        training.rate = 0.01
        if tested:
            find_rate(training, inputs, targets)
        list(steps(training, inputs, targets))
        results.append({**network.state_dict(), **training.tensors()})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_the_same_seed_finds_the_same_whatever_the_global_state():
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        network, inputs, targets = make_convnet()
        found.append(find_rate(make_training(network), inputs, targets))
    assert found[0] == found[1]
    assert found[0].record()["losses"] == list(found[0].losses)


@pytest.mark.parametrize("curvature", [2.0, 20.0, 400.0])
def test_on_a_quadratic_the_rate_lies_below_the_limit_of_stability_but_not_far(curvature: float):
    """Steps of gradient descent on curvature L shrink the distance for rates below 2 / L only."""
    network, inputs, targets = quadratic(curvature)
    result = find_rate(
        make_training(network, objective=Objective("numbers"), batch=64), inputs, targets
    )
    limit = 2 / curvature
    assert limit / 100 < result.rate < limit
    assert list(result.rates) == sorted(result.rates)
    assert len(result.losses) == len(result.rates)
    assert result.rate == pytest.approx(result.rates[np.argmin(result.losses)] / 10)


def quadratic(curvature: float) -> tuple[nn.Module, TensorInputs, Tensor]:
    """Return linear regression whose loss has one curvature in all directions."""
    directions = torch.linalg.qr(torch.randn(64, 4, generator=torch.Generator().manual_seed(0))).Q
    inputs = directions * (64 * curvature / 2) ** 0.5  # loss |X(w - w0)|^2 / 64
    network = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network, TensorInputs(inputs), inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


def test_the_losses_are_those_of_plain_descent_smoothed():
    network, inputs, targets = quadratic(20.0)
    training = make_training(network, objective=Objective("numbers"), batch=64)
    result = find_rate(training, inputs, targets)
    weight = torch.zeros(4, dtype=torch.float64)
    data, wanted = inputs.tensor.double(), targets[:, 0].double()
    losses: list[float] = []
    for rate in result.rates:
        away = data @ weight - wanted
        losses.append(float(away.square().mean()))
        weight -= rate * 2 * data.T @ away / 64
    smoothed = [smooth(losses[: k + 1]) for k in range(len(losses))]
    assert list(result.losses) == pytest.approx(smoothed, rel=1e-3)
    assert result.rates[0] == pytest.approx(1e-5)
    assert len(result.rates) < 40  # it broke off
    assert result.losses[-1] > 4 * min(result.losses)
    assert all(loss <= 4 * min(result.losses[:k]) for k, loss in enumerate(result.losses[:-1]) if k)


def smooth(values: Sequence[float]) -> float:
    """Return the mean that weighs each value 0.8 times as much as the one after it."""
    weights = [0.8 ** (len(values) - 1 - k) for k in range(len(values))]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def test_layers_keep_their_shares_of_the_rate_tried():
    """A layer at a tenth of the rate allows ten times as much."""
    network, inputs, targets = quadratic(200.0)
    phase = Phase(
        epochs=1, batch=64, optimizer="sgd", momentum=0.0, weight_decay=0.0, reused_rate=0.1
    )
    rates = []
    for depth_of in ({}, {"weight": 1}):
        twin = copy.deepcopy(network)
        groups = group_parameters(dict(twin.named_parameters()), depth_of, phase)
        training = Training(twin, phase, 1.0, groups, Objective("numbers"))
        rates.append(find_rate(training, inputs, targets).rate)
    assert rates[1] == pytest.approx(10 * rates[0], rel=0.5)


def test_fewer_samples_than_a_batch_will_do():
    network, inputs, targets = make_convnet()
    training = make_training(network, batch=1000)
    assert 1e-6 <= find_rate(training, inputs, targets).rate <= 0.1
