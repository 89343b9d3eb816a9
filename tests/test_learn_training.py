"""A training under way, step by step: what a step applies, and that it can be taken up again."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from topwork.learn.loop import (
    Epoch,
    TensorInputs,
    Training,
    evaluate,
    order_of,
    own_randomness,
    seed_of,
    steps,
    take_step,
)
from topwork.learn.objective import Objective
from topwork.learn.optimizers import group_parameters, share_at
from topwork.phase import Phase

CPU = torch.device("cpu")
DEPTHS = {"0.weight": 1, "0.bias": 1, "1.weight": 2, "1.bias": 2}


def make_network(*, dropout: float = 0.0) -> nn.Sequential:
    """Return a network on images [n, 3, 5, 5]; its tensors are odd in size and channels-last."""
    with own_randomness(1, CPU):
        network = nn.Sequential(
            nn.Conv2d(3, 7, 3),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(63, 3),
        )
    return network.to(memory_format=torch.channels_last)


def make_data(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, 5, 5, generator=generator), torch.arange(n) ** 2 % 3


def make_training(network: nn.Module, *, at_once: int | None = None, **settings) -> Training:
    """Return the training of a network whose convolution and norm are reused, the rest new."""
    usual = {"epochs": 3, "batch": 8, "optimizer": "sgd", "rate": 0.1, "weight_decay": 0.0}
    phase = Phase(**usual | settings)
    parameters = dict(network.named_parameters())
    depth_of = {name: depth for name, depth in DEPTHS.items() if name in parameters}
    source = {name: torch.full_like(value, 0.01) for name, value in parameters.items()}
    return Training(
        network,
        phase,
        float(phase.rate),
        group_parameters(parameters, depth_of, phase),
        Objective("classes", phase.label_smoothing),
        at_once=at_once,
        source=source,
        seed=5,
    )


def gradients(network: nn.Module, rows: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy in training mode, on a copy."""
    inputs, labels = make_data()
    chosen = list(range(20)) if rows is None else list(rows)
    twin = copy.deepcopy(network).train()
    functional.cross_entropy(twin(inputs[chosen]), labels[chosen]).backward()
    return {name: p.grad for name, p in twin.named_parameters()}


def one_step(training: Training) -> dict[str, Tensor]:
    """Take one step on all data; return by how much each parameter became smaller."""
    before = {name: p.detach().clone() for name, p in training.network.named_parameters()}
    inputs, labels = make_data()
    take_step(training, (inputs,), labels, 0)
    after = dict(training.network.named_parameters())
    return {name: (value - after[name]).detach() for name, value in before.items()}


def saved(training: Training) -> tuple[bytes, bytes, str]:
    """Return a training's state as bytes, as a checkpoint holds it."""
    contents = [training.network.state_dict(), training.tensors()]
    own, rest = (
        safetensors.torch.save({k: v.detach().contiguous() for k, v in tensors.items()})
        for tensors in contents
    )
    return own, rest, json.dumps(training.facts())


def taken_up(training: Training, state: tuple[bytes, bytes, str]) -> Training:
    own, rest, facts = state
    training.network.load_state_dict(safetensors.torch.load(own))
    training.restore(safetensors.torch.load(rest), json.loads(facts))
    return training


def outcome(training: Training) -> dict[str, Any]:
    """Return all that a training came to, for comparison to the bit, without times."""
    tensors = {**training.network.state_dict(), **training.tensors()}
    epochs = [{k: v for k, v in asdict(e).items() if k != "seconds"} for e in training.epochs]
    return {
        "tensors": {k: v.detach().contiguous().numpy().tobytes() for k, v in tensors.items()},
        "epochs": epochs,
        "taken": training.taken,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "adamw", "rate": 0.01},
        {"optimizer": "adam", "rate": 0.01},
        {"optimizer": "nadam", "rate": 0.01},
        {"optimizer": "radam", "rate": 0.01},
        {"optimizer": "rmsprop", "rate": 0.01},
        {"optimizer": "adagrad", "rate": 0.01},
        {"optimizer": "adamw", "rate": 0.01, "average": 0.9},
        {"mix": "mixup", "warmup": 1.5},
        {"mix": "cutmix", "clip": 0.5},
        {"balance": "sampling", "label_smoothing": 0.1},
        {"pull": 0.1, "depth_decay": 0.5},
        {"at_once": 3, "optimizer": "nadam", "average": 0.5},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
def test_a_training_saved_after_any_step_goes_on_to_the_same_bits(settings: dict):
    inputs, labels = make_data(20)
    arguments = (TensorInputs(inputs), labels, (TensorInputs(inputs[:6]), labels[:6]))
    settings = {"weight_decay": 0.1, **settings}
    whole = make_training(make_network(dropout=0.5), **settings)
    states = [saved(whole)]
    states += [saved(whole) for _ in steps(whole, *arguments)]
    assert len(states) == 10
    expected = outcome(whole)
    for number, state in enumerate(states):
        torch.manual_seed(number)
        network = make_network(dropout=0.5)
        with torch.no_grad():
            for value in network.state_dict().values():
                value.fill_(7)
        resumed = taken_up(make_training(network, **settings), state)
        assert len(list(steps(resumed, *arguments))) == 9 - number
        assert outcome(resumed) == expected, f"saved after step {number}"


def test_a_training_left_in_the_middle_of_an_epoch_goes_on_in_a_new_generator():
    inputs, labels = make_data(20)
    whole, broken = (make_training(make_network(dropout=0.5)) for _ in range(2))
    for _ in steps(whole, TensorInputs(inputs), labels):
        pass
    while len(broken.epochs) < 3:
        next(iter(steps(broken, TensorInputs(inputs), labels)))
    assert outcome(broken) == outcome(whole)


def test_an_epoch_comes_with_its_last_step_and_the_network_is_in_eval_mode_at_each():
    training = make_training(make_network())
    came = []
    for epoch in steps(training, TensorInputs(make_data()[0]), make_data()[1]):
        came.append(epoch.number if isinstance(epoch, Epoch) else None)
        assert not any(module.training for module in training.network.modules())
        assert training.taken == len(came)
    assert came == [None, None, 1, None, None, 2, None, None, 3]
    assert [epoch.number for epoch in training.epochs] == [1, 2, 3]


@dataclass(frozen=True)
class Asked:
    """Inputs that remember what they were asked for."""

    tensor: Tensor
    asked: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tensor)

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        self.asked.append((epoch, tuple(rows)))
        return (self.tensor[list(rows)],)


def test_inputs_are_asked_for_the_view_of_the_epoch_and_validation_for_the_plain_one():
    inputs, labels = make_data(20)
    learned, scored = Asked(inputs), Asked(inputs[:5])
    list(steps(make_training(make_network()), learned, labels, (scored, labels[:5])))
    assert [epoch for epoch, _ in learned.asked] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for first in (0, 3, 6):
        rows = [row for _, part in learned.asked[first : first + 3] for row in part]
        assert sorted(rows) == list(range(20))
    assert scored.asked == [(0, (0, 1, 2, 3, 4))] * 3


@pytest.mark.parametrize("at_once", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_parts_of_a_batch_give_the_gradients_and_losses_of_the_whole(at_once: int, mix: str):
    results = []
    for parts in (None, at_once):
        training = make_training(
            make_network(), at_once=parts, mix=mix, mix_strength=1.0, label_smoothing=0.1
        )
        training.keep_statistics = frozenset({training.network[1]})
        one_step(training)
        results.append((training, [p.grad for p in training.network.parameters()]))
    (whole, expected), (divided, got) = results
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(divided.sums, whole.sums, rtol=1e-6, atol=0)
    assert all(grad.abs().max() > 1e-3 for grad in expected)


def test_a_step_without_mixing_has_the_gradient_of_the_mean_loss():
    network = make_network()
    expected = gradients(network)
    training = make_training(network, momentum=0.0, reused_rate=1.0)
    shrunk = one_step(training)
    for name, gradient in expected.items():
        torch.testing.assert_close(shrunk[name], 0.1 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("samples", "at_once"), [(4, 1), (7, 3), (1, 8)])
def test_a_part_of_one_sample_passes_batch_norm(samples: int, at_once: int):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    training = make_training(network, at_once=at_once)
    inputs = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0))
    take_step(training, (inputs,), torch.arange(samples) % 2, 0)
    assert int(network[1].num_batches_tracked) == samples // at_once * (at_once > 1)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_a_gradient_longer_than_the_clip_is_shortened_to_it(clip: float):
    network = make_network()
    expected = gradients(network)
    length = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert 0.01 < length < 1e6
    shrunk = one_step(make_training(network, momentum=0.0, reused_rate=1.0, clip=clip))
    applied = math.sqrt(sum(float((d.double() / 0.1).square().sum()) for d in shrunk.values()))
    assert applied == pytest.approx(min(clip, length), rel=1e-3)
    for name, gradient in expected.items():
        shortened = 0.1 * gradient * min(1, clip / length)
        torch.testing.assert_close(shrunk[name], shortened, rtol=1e-3, atol=1e-7)


def test_the_pull_leads_reused_layers_to_their_source_in_place_of_decay():
    network = make_network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    gradient = gradients(network)
    shrunk = one_step(make_training(network, momentum=0.0, weight_decay=0.3, pull=0.2))
    for name in DEPTHS:
        pull = 0.2 * (before[name] - 0.01)
        torch.testing.assert_close(
            shrunk[name], 0.01 * (gradient[name] + pull), rtol=1e-4, atol=1e-6
        )
    decay = 0.3 * before["5.weight"]
    torch.testing.assert_close(
        shrunk["5.weight"], 0.1 * (gradient["5.weight"] + decay), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(shrunk["5.bias"], 0.1 * gradient["5.bias"], rtol=1e-4, atol=1e-6)


def test_the_average_follows_the_weights_and_is_what_is_scored():
    inputs, labels = make_data(20)
    validation = (TensorInputs(inputs[:9]), labels[:9])
    training = make_training(make_network(), average=0.2, epochs=2)
    expected = {k: v.clone() for k, v in training.network.state_dict().items()}
    for step, epoch in enumerate(steps(training, TensorInputs(inputs), labels, validation)):
        decay = min(0.2, (1 + step) / (10 + step))
        for name, value in training.network.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
            torch.testing.assert_close(training.average[name], expected[name])
        if epoch:
            twin = copy.deepcopy(training.network)
            twin.load_state_dict(training.average)
            found = (epoch.validation_loss, epoch.validation_accuracy)
            assert found == pytest.approx(evaluate(twin, inputs[:9], labels[:9]), rel=1e-6)
            assert found[0] != evaluate(copy.deepcopy(training.network), inputs[:9], labels[:9])[0]
    assert step == 5


def test_averaged_puts_the_own_weights_back_even_after_an_error():
    training = make_training(make_network(), average=0.9)
    one_step(training)
    own = {k: v.clone() for k, v in training.network.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), training.averaged():
        weight = training.network.state_dict()["0.weight"]
        assert torch.equal(weight, training.average["0.weight"])
        assert not torch.equal(weight, own["0.weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(v, own[k]) for k, v in training.network.state_dict().items())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_each_step_has_the_rates_of_warm_up_and_schedule(schedule: str):
    training = make_training(
        make_network(), epochs=4, warmup=0.5, schedule=schedule, batch=5, depth_decay=0.5
    )
    came = []
    for _ in steps(training, TensorInputs(make_data()[0]), make_data()[1]):
        by_name = {}
        for options, group in zip(training.optimizer.param_groups, training.groups, strict=True):
            by_name |= dict.fromkeys(group.names, options["lr"])
        came.append(by_name)
    falls = [0.5 * (1 + math.cos(math.pi * k / 14)) for k in range(14)]
    shares = [0.5, 1.0, *(falls if schedule == "cosine" else [1.0] * 14)]
    factors = {"0": 0.1 * 0.1 * 0.5, "1": 0.1 * 0.1, "5": 0.1}
    for by_name, share in zip(came, shares, strict=True):
        assert by_name == pytest.approx({k: share * factors[k[0]] for k in by_name})
    assert training.epochs[-1].rate == pytest.approx(0.1 * shares[-1])


def test_a_warm_up_as_long_as_the_phase_only_rises():
    phase = Phase(epochs=2, warmup=2)
    assert [share_at(step, 3, phase) for step in range(6)] == pytest.approx(
        [(step + 1) / 6 for step in range(6)]
    )


def test_balanced_sampling_draws_classes_equally_often_in_each_epoch_anew():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    network = nn.Linear(2, 3)
    training = make_training(network, balance="sampling")
    orders = [order_of(epoch, training, labels) for epoch in range(8)]
    assert all(len(order) == 1000 for order in orders)
    shares = torch.bincount(labels[torch.cat(orders)]) / 8000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.02)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[3], order_of(3, training, labels))
    within = torch.bincount(torch.cat(orders), minlength=1000)[990:]  # about 267 each
    assert 200 < int(within.min()) <= int(within.max()) < 340


def test_groups_by_hand():
    shapes = {
        "stem.weight": (4, 3),
        "stem.bias": (4,),
        "low.weight": (4, 4),
        "high.norm.weight": (4,),
        "high.weight": (4, 4),
        "table.bias": (2, 2),
        "fresh.weight": (4, 4),
        "head.weight": (2, 4),
        "head.bias": (2,),
    }
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    depth_of = {
        "stem.weight": 1,
        "stem.bias": 1,
        "low.weight": 3,
        "high.norm.weight": 4,
        "high.weight": 4,
        "table.bias": 4,
        "unused.weight": 9,
    }
    phase = Phase(epochs=1, reused_rate=0.2, depth_decay=0.5, weight_decay=0.1)
    expected = {
        "stem.weight": (0.2 * 0.5**3, True, True),
        "stem.bias": (0.2 * 0.5**3, False, True),
        "low.weight": (0.2 * 0.5, True, True),
        "high.norm.weight": (0.2, False, True),
        "high.weight": (0.2, True, True),
        "table.bias": (0.2, False, True),
        "fresh.weight": (1.0, True, False),
        "head.weight": (1.0, True, False),
        "head.bias": (1.0, False, False),
    }
    assert seen(group_parameters(parameters, depth_of, phase), parameters) == expected
    pulled = Phase(epochs=1, reused_rate=0.2, depth_decay=0.5, weight_decay=0.1, pull=0.01)
    expected = {k: (rate, decays and not reused, reused) for k, (rate, decays, reused)
                in expected.items()}  # fmt: skip
    assert seen(group_parameters(parameters, depth_of, pulled), parameters) == expected


def seen(groups: Sequence, parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple]:
    """Return rate, decay and origin by name; each parameter is in one group, under its name."""
    found: dict[str, tuple] = {}
    for group in groups:
        for name, parameter in zip(group.names, group.parameters, strict=True):
            assert parameter is parameters[name]
            assert name not in found
            found[name] = (pytest.approx(group.rate), group.decays, group.reused)
    assert found.keys() == parameters.keys()
    return found


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit3", "test_convnext"])
def test_in_a_network_each_parameter_is_in_one_group_and_no_norm_or_bias_decays(architecture: str):
    network = timm.create_model(architecture)
    parameters = dict(network.named_parameters())
    depth_of = {name: number // 5 for number, name in enumerate(parameters) if "head" not in name}
    training = Training(
        network,
        phase := Phase(epochs=1, depth_decay=0.9),
        0.1,
        group_parameters(parameters, depth_of, phase),
    )
    flat = [id(p) for group in training.optimizer.param_groups for p in group["params"]]
    assert sorted(flat) == sorted(map(id, parameters.values()))
    decayed = {
        id(p) for g in training.optimizer.param_groups if g["weight_decay"] for p in g["params"]
    }
    for module in network.modules():
        if isinstance(module, (nn.LayerNorm, _BatchNorm)):
            assert not decayed & {id(p) for p in module.parameters(recurse=False)}
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            assert id(module.weight) in decayed
            assert id(module.bias) not in decayed


def test_seeds_differ_with_every_number():
    seeds = {seed_of(*numbers) for numbers in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, -1), (-1,)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
