"""The training loop against plain lines that do the same, and the promises it makes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from topwork.errors import DataError, PlanError, UsageError
from topwork.learn.loop import evaluate, own_randomness, seed_of, train
from topwork.learn.optimizers import group_parameters, make_optimizer, share_at
from topwork.phase import Phase

CPU = torch.device("cpu")


def make_network(*, dropout: float = 0.0) -> nn.Sequential:
    with own_randomness(1, CPU):
        return nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
        )


def make_data(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 6, generator=generator), torch.arange(n) % 3


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def make_phase(**settings) -> Phase:
    usual = {"epochs": 3, "batch": 8, "optimizer": "sgd", "rate": 0.1, "weight_decay": 5e-4}
    return Phase(**usual | settings)


def run(network: nn.Module, data=None, seed: int = 0, **settings):
    return list(train(network, *(data or make_data()), make_phase(**settings), seed=seed))


def test_sgd_takes_the_steps_written_out_by_hand():
    inputs, labels = make_data(20)
    expected = make_network()
    velocity = {name: torch.zeros_like(p) for name, p in expected.named_parameters()}
    expected.train()
    losses = []
    for epoch in range(3):
        shuffler = torch.Generator().manual_seed(seed_of(5, epoch))
        order = torch.randperm(20, generator=shuffler)
        total = 0.0
        for step, rows in enumerate((order[:7], order[7:14], order[14:])):
            rate = 0.2 * 0.5 * (1 + math.cos(math.pi * (3 * epoch + step) / 9))
            loss = -torch.log_softmax(expected(inputs[rows]), 1)[range(len(rows)), labels[rows]]
            total += float(loss.detach().sum())
            expected.zero_grad()
            loss.mean().backward()
            with torch.no_grad():
                for name, p in expected.named_parameters():
                    decay = 0.01 if name in ("0.weight", "4.weight") else 0.0
                    velocity[name] = 0.8 * velocity[name] + p.grad + decay * p
                    p -= rate * velocity[name]
        losses.append(total / 20)
    network = make_network()
    epochs = run(network, (inputs, labels), 5, rate=0.2, momentum=0.8, weight_decay=0.01)
    torch.testing.assert_close(weights(network), weights(expected), rtol=1e-5, atol=1e-6)
    assert [epoch.loss for epoch in epochs] == pytest.approx(losses, rel=1e-5)


def test_adamw_first_step_is_the_sign_of_the_gradient_and_the_decay():
    inputs, labels = make_data(4)
    network = nn.Linear(6, 3)
    before = copy.deepcopy(network)
    functional.cross_entropy(before(inputs), labels).backward()
    run(network, (inputs, labels), epochs=1, optimizer="adamw", rate=0.01, weight_decay=0.1)
    weight = before.weight * (1 - 0.01 * 0.1) - 0.01 * before.weight.grad.sign()
    torch.testing.assert_close(network.weight, weight, rtol=0, atol=1e-5)
    bias = before.bias - 0.01 * before.bias.grad.sign()
    torch.testing.assert_close(network.bias, bias, rtol=0, atol=1e-5)


def test_same_seed_same_bits_whatever_the_global_state():
    results = []
    for global_seed in (3, 4):
        network = make_network(dropout=0.5)
        for _ in train(network, *make_data(), make_phase(), seed=7):
            torch.manual_seed(global_seed)
            torch.rand(global_seed)
        results.append(weights(network))
    assert torch.equal(*results)
    other = make_network(dropout=0.5)
    run(other, seed=8)
    assert not torch.equal(results[0], weights(other))


def test_dropout_differs_from_epoch_to_epoch():
    masks = []
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    network[0].register_forward_hook(lambda module, given, got: masks.append(got == 0))
    run(network, (torch.ones(8, 6), torch.arange(8) % 3), epochs=2)
    assert not torch.equal(*masks)


def test_global_random_state_is_left_as_it_was():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(make_network(dropout=0.5))
    assert torch.equal(torch.rand(3), expected)


def test_train_mode_inside_and_eval_mode_at_each_yield():
    network = make_network()
    modes = []
    network.register_forward_pre_hook(lambda module, given: modes.append(module.training))
    phase = make_phase(epochs=2, batch=10)
    for epoch in train(network, *make_data(), phase, validation=make_data(), seed=0):
        assert not any(module.training for module in network.modules())
        assert modes == [True, True, False] * epoch.number


def test_breaking_off_keeps_the_epochs_so_far():
    whole, broken = make_network(), make_network()
    states = []
    for _ in train(whole, *make_data(), make_phase(), seed=0):
        states.append(weights(whole))
    for epoch in train(broken, *make_data(), make_phase(), seed=0):
        if epoch.number == 2:
            break
    assert torch.equal(weights(broken), states[1])
    assert not broken.training


def test_epoch_reports_what_evaluate_finds():
    network, data = make_network(), make_data(300)
    phase = make_phase(epochs=1, rate=1e-12, momentum=0.0, batch=300)
    (epoch,) = train(network, *data, phase, validation=make_data(9), seed=0)
    assert (epoch.validation_loss, epoch.validation_accuracy) == evaluate(network, *make_data(9))
    scores = network.train()(data[0])
    assert epoch.loss == pytest.approx(functional.cross_entropy(scores, data[1]).item(), rel=1e-5)
    assert epoch.accuracy == pytest.approx((scores.argmax(1) == data[1]).double().mean().item())
    assert (epoch.number, epoch.rate) == (1, 1e-12)
    assert epoch.seconds > 0


def test_evaluate_does_not_depend_on_how_the_samples_are_divided():
    network, (inputs, labels) = make_network().eval(), make_data(600)
    scores = network(inputs)
    loss, accuracy = evaluate(network.train(), inputs, labels)
    assert loss == pytest.approx(functional.cross_entropy(scores, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((scores.argmax(1) == labels).double().mean().item())
    assert not network.training


def test_steps_of_an_epoch_are_of_nearly_equal_size_and_see_each_sample_once():
    inputs, labels = make_data(21)
    network, seen = make_network(), []
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    run(network, (inputs, labels), epochs=1, batch=10)
    assert [len(batch) for batch in seen] == [7, 7, 7]
    assert torch.equal(torch.cat(seen).sort(0).values, inputs.sort(0).values)


@pytest.mark.parametrize(("n", "batch"), [(1, 8), (3, 2), (4, 1)])
def test_batch_of_one_sample_passes_batch_norm(n: int, batch: int):
    network = make_network()
    before = weights(network)
    run(network, make_data(n), batch=batch)
    assert weights(network).isfinite().all()
    assert not torch.equal(weights(network), before)


def test_batch_norm_uses_running_statistics_for_one_sample_only():
    network = make_network()
    run(network, make_data(1), epochs=1)
    assert network[1].num_batches_tracked == 0
    run(network, make_data(5), epochs=1, batch=2)  # steps of 2, 2 and 1
    assert network[1].num_batches_tracked == 2


def test_only_weights_decay():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2)
    )
    phase = make_phase(weight_decay=0.3)
    groups = group_parameters(dict(network.named_parameters()), {}, phase)
    decayed, others = make_optimizer(groups, phase, 0.1).param_groups
    assert [id(p) for p in decayed["params"]] == [id(network[0].weight), id(network[3].weight)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(list(network.parameters()))


def test_rate_rises_to_its_highest_then_falls_to_nearly_zero():
    phase = make_phase(epochs=5, warmup=1.5)
    rates = [0.4 * share_at(step, 4, phase) for step in range(20)]
    assert rates[:6] == pytest.approx([0.4 * (step + 1) / 6 for step in range(6)])
    assert rates[6:] == pytest.approx([0.2 * (1 + math.cos(math.pi * k / 14)) for k in range(14)])
    assert 0 < rates[-1] < 0.01
    assert [epoch.rate for epoch in run(make_network(), epochs=2, rate=0.4)] == pytest.approx(
        [0.4 * share_at(step, 3, make_phase(epochs=2)) for step in (2, 5)]
    )


def test_loss_that_is_not_finite_names_the_epoch_and_the_rate():
    network = make_network()
    with pytest.raises(PlanError, match=r"not finite in epoch \d+; lower .* \(now 1e\+30\)"):
        run(network, rate=1e30)
    assert not network.training


def test_inputs_that_are_not_finite_are_named_as_the_cause():
    inputs, labels = make_data()
    inputs[3, 2] = math.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        run(make_network(), (inputs, labels))


def test_data_that_do_not_pair_are_refused():
    inputs, labels = make_data()
    with pytest.raises(DataError, match="20 samples and targets of shape \\[19\\]"):
        run(make_network(), (inputs, labels[:-1]))
    with pytest.raises(DataError, match="at least one sample"):
        run(make_network(), (inputs[:0], labels[:0]))


def test_parameter_without_gradient_is_refused_by_name():
    network = make_network()
    network[0].weight.requires_grad = False
    with pytest.raises(UsageError, match=r"parameter 0\.weight takes no gradient; .* cut"):
        run(network)


def test_bfloat16_is_of_products_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 6, generator=generator)
    labels = (inputs.sum(1) > 0).long()
    losses = {}
    for precision in ("float32", "auto", "bfloat16"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        phase = Phase(epochs=5, rate=0.01, batch=16, precision=precision)
        losses[precision] = [epoch.loss for epoch in train(network, inputs, labels, phase, seed=0)]
        assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert losses["auto"] == losses["float32"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_a_precision_is_one_that_is_known() -> None:
    with pytest.raises(PlanError, match="precision"):
        Phase(precision="half")
