"""Boltzmann machines against exact enumeration, and the stacking of them."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretraining import (
    assert_equal_weights,
    assert_resumes,
    drawings,
    tiny_material,
    trained,
    weights_of,
)
from topwork.errors import PlanError
from topwork.learn.loop import TensorInputs
from topwork.learn.samples import Samples
from topwork.network.cut import segment
from topwork.network.device import batch_size
from topwork.phase import Phase
from topwork.pretraining.material import Material, outputs_of
from topwork.pretraining.rbm import (
    BoltzmannMachine,
    RbmRecipe,
    is_gaussian,
    pretrain_rbm,
    start_machine,
)

VISIBLE, HIDDEN = 5, 3
STACK = {"widths": [12, 8, 6]}
RECIPE = RbmRecipe(phase=Phase(epochs=2, batch=10, optimizer="sgd", rate=0.1, momentum=0.5))
DATA = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 0, 0, 1.0]], dtype=torch.float64)


def machine(**how: object) -> BoltzmannMachine:
    """Return a machine of float64 with weights that matter; so do Gaussian units' mean and s."""
    generator = torch.Generator().manual_seed(0)
    made = BoltzmannMachine(nn.Linear(VISIBLE, HIDDEN), **how).double()
    with torch.no_grad():
        for parameter, scale in zip(made.parameters(), (0.5, 1.5, 0.5), strict=True):
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(scale * drawn)
        if made.gaussian:
            made.mean.copy_(torch.linspace(-0.4, 0.8, VISIBLE))
            made.deviation.fill_(0.7)
    return made


def stack(folder: Path, recipe: RbmRecipe = RECIPE, **how: object) -> Material:
    return tiny_material(folder, recipe, **{"backbone": "topwork:dense", "arguments": STACK, **how})


def states(units: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)


def energy(rbm: BoltzmannMachine, v: Tensor, h: Tensor) -> Tensor:
    a, b, w = rbm.visible_bias, rbm.hidden.bias, rbm.hidden.weight
    own = (v - a).square().sum() / 2 if rbm.gaussian else -a @ v
    return own - b @ h - h @ w @ v


def gradients(rbm: BoltzmannMachine) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in rbm.named_parameters() if p.grad is not None}


def exact_gradients(rbm: BoltzmannMachine) -> dict[str, Tensor]:
    """Return the gradient of the mean negative log-likelihood of DATA, all states summed up."""
    rbm.zero_grad()
    joint = torch.stack(
        [torch.stack([-energy(rbm, v, h) for h in states(HIDDEN)]) for v in states(VISIBLE)]
    )
    of_data = torch.stack(
        [torch.stack([-energy(rbm, v, h) for h in states(HIDDEN)]).logsumexp(0) for v in DATA]
    )
    (joint.logsumexp((0, 1)) - of_data.mean()).backward()
    found = gradients(rbm)
    rbm.zero_grad()
    return found


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_free_energy_sums_out_the_hidden_states(gaussian: bool) -> None:
    rbm = machine(gaussian=gaussian)
    visible = DATA if not gaussian else 2 * DATA - 0.7
    expected = [
        -torch.stack([-energy(rbm, v, h) for h in states(HIDDEN)]).logsumexp(0) for v in visible
    ]
    torch.testing.assert_close(rbm.free_energy(visible), torch.stack(expected))


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_gradient_of_the_free_energy_is_that_of_the_paper(gaussian: bool) -> None:
    rbm = machine(gaussian=gaussian)
    rbm.free_energy(DATA).sum().backward()
    a, b, w = (p.detach() for p in (rbm.visible_bias, rbm.hidden.bias, rbm.hidden.weight))
    expected = {"visible_bias": torch.zeros_like(a), "hidden.bias": torch.zeros_like(b)}
    expected["hidden.weight"] = torch.zeros_like(w)
    for v in DATA:
        expected["visible_bias"] -= v - a if gaussian else v
        for j in range(HIDDEN):
            on = 1 / (1 + torch.exp(-(w[j] @ v + b[j])))
            expected["hidden.bias"][j] -= on
            for i in range(VISIBLE):
                expected["hidden.weight"][j, i] -= on * v[i]
    torch.testing.assert_close(gradients(rbm), expected)


@pytest.mark.parametrize("persistent", [False, True])
def test_long_chains_give_the_gradient_of_the_log_likelihood(persistent: bool) -> None:
    copies = 4000
    chains = len(DATA) * copies
    rbm = machine(steps=10 if persistent else 60, chains=chains if persistent else 0)
    exact = exact_gradients(rbm)
    rbm.train()
    torch.manual_seed(0)
    for _ in range(6 if persistent else 1):
        rbm.zero_grad()
        rbm(DATA.repeat(copies, 1))[:, 0].mean().backward()
    error = 4 * 0.5 / chains**0.5  # four deviations of a mean of numbers from 0 to 1
    for name, found in gradients(rbm).items():
        assert exact[name].abs().max() > 0.1
        torch.testing.assert_close(found, exact[name], atol=error, rtol=0)


def test_long_chains_of_gaussian_units_come_to_the_models_mean_and_deviation() -> None:
    rbm = machine(gaussian=True, steps=60)
    a, w = rbm.visible_bias.detach(), rbm.hidden.weight.detach()
    log_weights = torch.stack(
        [h @ (rbm.hidden.bias + w @ a) + (h @ w).square().sum() / 2 for h in states(HIDDEN)]
    ).detach()
    chance = log_weights.softmax(0)
    means = states(HIDDEN) @ w + a
    mean = chance @ means
    deviation = (chance @ (means - mean).square() + 1).sqrt()
    torch.manual_seed(0)
    sample = rbm.sampled(DATA.repeat(4000, 1))
    torch.testing.assert_close(sample.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(sample.std(0), deviation, atol=0.1, rtol=0)


def test_one_step_of_divergence_is_data_less_reconstruction() -> None:
    rbm = machine().train()
    torch.manual_seed(3)
    losses = rbm(DATA)
    torch.manual_seed(3)
    on = rbm.hidden(DATA).sigmoid()
    mean = rbm.expected(torch.rand_like(on).lt(on).double()).detach()
    torch.testing.assert_close(losses[:, 0], rbm.free_energy(DATA) - rbm.free_energy(mean))
    assert not losses[:, 1].any()


@pytest.mark.parametrize("gaussian", [False, True])
def test_judged_is_the_reconstruction(gaussian: bool) -> None:
    rbm = machine(gaussian=gaussian).eval()
    found = rbm(rbm.values(DATA))[:, 0]
    for v, loss in zip(DATA, found, strict=True):
        mean = rbm.hidden.weight.T @ (rbm.hidden(v)).sigmoid() + rbm.visible_bias
        if gaussian:
            expected = sum((x - m) ** 2 / 2 for x, m in zip(v, mean, strict=True))
        else:
            p = mean.sigmoid()
            expected = -sum(
                q.log() if x else (1 - q).log() for x, q in zip(v, p, strict=True)
            )  # fmt: skip
        torch.testing.assert_close(loss, expected)


def test_the_cost_of_sparsity_moves_the_activity_to_its_target(tmp_path: Path) -> None:
    activity = {}
    for cost in (0.0, 1.0):
        recipe = replace(RECIPE, sparsity=0.1, sparsity_cost=cost).changed(
            {"phase": {"epochs": 60}}
        )
        material = stack(tmp_path / str(cost), recipe, arguments={"widths": [12]})
        trained(material, recipe)
        inputs, _ = material.inputs(material.chain.cuts[0], 1)
        activity[cost] = float(outputs_of(first_block(material), inputs, range(38)).mean())
    assert abs(activity[1.0] - 0.1) < 0.05
    assert activity[0.0] > 0.25


@pytest.mark.parametrize("cache", ["float32", "off"])
def test_a_layer_learns_from_what_the_layers_below_it_give(tmp_path: Path, cache: str) -> None:
    material = stack(tmp_path, cache=cache)
    done = [progress.stage for progress in itertools.islice(told(material), RECIPE.phase.epochs)]
    assert done == ["layer 1"] * RECIPE.phase.epochs
    pixels, _ = material.inputs(material.chain.cuts[0], 1)
    inputs, _ = material.inputs(material.chain.cuts[1], 1)
    layer = first_block(material).eval()
    size = batch_size(torch.device("cpu"), (8, 8))  # as it is run
    with torch.no_grad():
        for start in (0, size, 38 - size):
            rows = range(start, start + size)
            assert torch.equal(inputs.batch(rows, 0)[0], layer(*pixels.batch(rows, 0)))


def told(material: Material):
    return (progress for progress in pretrain_rbm(material, RECIPE) if progress)


def test_cached_layers_and_layers_run_anew_give_the_same_weights(tmp_path: Path) -> None:
    found = {}
    for cache in ("float32", "off"):
        material = stack(tmp_path / cache, cache=cache)
        trained(material, RECIPE)
        found[cache] = weights_of(material)
    assert_equal_weights(found["off"], found["float32"])


def test_later_stages_leave_the_layers_below_as_they_were(tmp_path: Path) -> None:
    material = stack(tmp_path)
    after: dict[str, dict[str, Tensor]] = {}
    for progress in told(material):
        after[progress.stage] = weights_of(material)  # the last epoch's stays
    assert list(after) == ["layer 1", "layer 2", "layer 3"]
    stages = list(after.values())
    for number, (earlier, later) in enumerate(itertools.pairwise(stages), start=1):
        changed = {name for name in earlier if not torch.equal(earlier[name], later[name])}
        assert changed == {f"layer{number + 1}.linear.weight", f"layer{number + 1}.linear.bias"}


@pytest.mark.parametrize("steps", [3, 8, 13])
@pytest.mark.parametrize("persistent", [False, True])
def test_an_interrupted_stack_goes_on_to_the_same_bits(
    tmp_path: Path, steps: int, persistent: bool
) -> None:
    recipe = replace(RECIPE, persistent=persistent)
    arguments = {"widths": [12, 8]}
    assert_resumes(tmp_path, recipe, steps, backbone="topwork:dense", arguments=arguments)


def test_what_was_settled_of_inputs_holds_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept and what runs frozen layers is found by timing: it may come out otherwise."""
    material = stack(tmp_path)
    cut = material.chain.cuts[1]
    settled = material.inputs(cut, 2)[0].settled
    material.stages.save()

    again = stack(tmp_path)
    again.stages.restore()
    monkeypatch.setattr(Samples, "settle", None)
    assert again.inputs(cut, 2)[0].settled == settled


def test_persistent_chains_go_on_from_step_to_step() -> None:
    rbm = machine(chains=6).train()
    seen = [rbm.chains.clone()]
    for _ in range(2):
        rbm(DATA)
        seen.append(rbm.chains.clone())
    assert all(not torch.equal(a[:3], b[:3]) for a, b in itertools.pairwise(seen))
    assert torch.equal(seen[0][3:], seen[2][3:])  # as many go on as there are images
    torch.manual_seed(3)
    expected = rbm.sampled(rbm.chains[:3])
    torch.manual_seed(3)
    rbm(1 - DATA)
    assert torch.equal(rbm.chains[:3], expected)


def test_persistent_chains_leave_units_alive(tmp_path: Path, caplog) -> None:
    recipe = RbmRecipe(persistent=True).changed({"phase": {"epochs": 20, "batch": 10}})
    images = drawings(200, gray=True)
    material = stack(tmp_path / "default", recipe, images=images, arguments={"widths": [40]})
    *_, last = trained(material, recipe)
    assert last.found["stuck"] < 0.1
    assert "the same for all images" not in caplog.text


def test_units_that_are_stuck_are_told_of(tmp_path: Path, caplog) -> None:
    recipe = RECIPE.changed({"phase": {"epochs": 2, "rate": 50.0, "momentum": 0.9}})
    images = drawings(200, gray=True)
    material = stack(tmp_path, recipe, images=images, arguments={"widths": [40]})
    *_, last = trained(material, recipe)
    inputs, _ = material.inputs(material.chain.cuts[0], 1)
    codes = outputs_of(first_block(material), inputs, range(len(inputs)))
    stuck = float((codes.std(0) < 0.01).float().mean())
    assert last.found["stuck"] == pytest.approx(stuck, abs=0.03)
    assert stuck > 0.5
    assert "of the units are the same for all images; lower the rate" in caplog.text


def test_trained_machines_reconstruct_images_that_they_never_saw(tmp_path: Path) -> None:
    # Bars and stripes (MacKay 2003): any rows, or any columns, are lit. No two images are the same.
    lit = np.random.default_rng(0).permutation(np.arange(1, 255, dtype=np.uint8))[:100, None]
    bars = np.unpackbits(lit, axis=1)[:, :, None].repeat(8, 2) * np.uint8(255)
    images = np.concatenate([bars, bars.transpose(0, 2, 1)])
    recipe = RECIPE.changed({"phase": {"epochs": 60}})
    material = stack(tmp_path, recipe, images=images, arguments={"widths": [40]})
    first, *_, last = trained(material, recipe)
    assert last.held_out < 0.5 * first.held_out
    assert abs(last.found["free_energy_gap"]) < 5
    held_out, again = last.pictures["images"], last.pictures["reconstructions"]
    assert held_out.shape == again.shape == (10, 8, 8)
    mean = images.mean(0) / 255
    assert ((held_out - again) ** 2).mean() < 0.5 * ((held_out - mean) ** 2).mean()
    assert last.pictures["filters"].shape == (40, 8, 8)
    assert first.pictures == {}


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_layer_computes_of_values_what_hidden_units_do_of_their_states(gaussian: bool) -> None:
    rbm = machine(gaussian=gaussian)
    assert torch.equal(rbm.states(DATA), DATA) == (not gaussian)
    torch.testing.assert_close(rbm.values(rbm.states(DATA)), DATA)
    layer = nn.Linear(VISIBLE, HIDDEN).double()
    rbm.write_layer(layer)
    torch.testing.assert_close(layer(DATA), rbm.hidden(rbm.states(DATA)))
    other = machine(gaussian=gaussian)
    nn.init.zeros_(other.hidden.weight)
    other.read_layer(layer)
    torch.testing.assert_close(other.hidden.weight, rbm.hidden.weight)
    torch.testing.assert_close(other.hidden.bias, rbm.hidden.bias)


def test_gaussian_units_learn_the_same_from_a_dark_copy_of_the_images(tmp_path: Path) -> None:
    images = drawings(100, gray=True) // 32 * 32
    recipe = RECIPE.changed({"phase": {"epochs": 10, "rate": 0.5}, "visible": "gaussian"})
    found = []
    for dark in (1, 16):
        material = stack(
            tmp_path / str(dark), recipe, images=images // dark, arguments={"widths": [12]}
        )
        *_, last = trained(material, recipe)
        inputs, _ = material.inputs(material.chain.cuts[0], 1)
        found.append((last.held_out, outputs_of(first_block(material), inputs, range(90))))
    (bright, codes), (darker, of_dark) = found
    assert codes.std(0).mean() > 0.05
    assert darker == pytest.approx(bright, rel=1e-3)
    torch.testing.assert_close(of_dark, codes, atol=1e-3, rtol=0)


def test_gaussian_units_begin_at_the_mean_and_deviation_of_the_pixels_and_learn(
    tmp_path: Path,
) -> None:
    images = drawings(200, gray=True)
    recipe = RECIPE.changed({"phase": {"epochs": 40}, "visible": "gaussian"})
    material = stack(tmp_path, recipe, images=images, arguments={"widths": [40]})
    inputs, _ = material.inputs(material.chain.cuts[0], 1)
    rbm = BoltzmannMachine(nn.Linear(64, 40), gaussian=True)
    start_machine(rbm, inputs, None)
    pixels = images.reshape(200, -1) / 255
    begun = rbm.states(torch.tensor(pixels).float())
    torch.testing.assert_close(begun.mean(0), torch.zeros(64), atol=0.1, rtol=0)
    assert float(begun.square().mean()) == pytest.approx(1, rel=0.1)
    first, *_, last = trained(material, recipe)
    held_out, again = last.pictures["images"], last.pictures["reconstructions"]
    assert ((held_out - again) ** 2).mean() < 0.5 * ((held_out - pixels.mean()) ** 2).mean()
    assert last.held_out < 0.6 * first.held_out


def test_half_precision_leaves_machines_alone() -> None:
    rbm = machine().float().train()
    torch.manual_seed(0)
    expected = rbm(DATA.float())
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rbm(DATA.float()), expected)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"backbone": "topwork:small_convnet", "arguments": {}}, "give --backbone topwork:dense"),
        ({"arguments": {**STACK, "activation": "relu"}}, "sigmoid units"),
    ],
)
def test_only_stacks_of_sigmoid_layers_are_trained(
    tmp_path: Path, how: dict[str, object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        trained(stack(tmp_path, **how), RECIPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"visible": "gray"}, "known are auto, binary, gaussian"),
        ({"sparsity": 1.5}, "between 0 and 1"),
        ({"sparsity_cost": -1.0}, "not negative"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        RECIPE.changed(changes)


def test_binary_units_are_refused_for_values_that_are_not_from_0_to_1() -> None:
    outside = TensorInputs(3 * DATA - 1)
    with pytest.raises(PlanError, match="give 'gaussian' or 'auto'"):
        is_gaussian("binary", outside)
    assert is_gaussian("auto", outside)
    assert is_gaussian("gaussian", TensorInputs(DATA))
    assert not is_gaussian("auto", TensorInputs(DATA))


def first_block(material: Material) -> nn.Module:
    return segment(material.chain, material.chain.cuts[0], material.chain.cuts[1])


def test_a_machine_starts_from_the_means_of_all_images_though_they_come_sorted():
    sorted_by_class = torch.cat([torch.full((3000, 4), 0.1), torch.full((3000, 4), 0.9)])
    machine = BoltzmannMachine(nn.Linear(4, 3))
    start_machine(machine, TensorInputs(sorted_by_class), None)
    assert torch.allclose(machine.visible_bias.sigmoid(), torch.full((4,), 0.5), atol=0.05)
