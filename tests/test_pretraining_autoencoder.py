"""Autoencoders: losses against loops over samples, noise, decoders by shape, resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

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
from topwork.network.chain import CutPoint, trace_chain
from topwork.network.layout import Layout, layout_of
from topwork.phase import Phase
from topwork.pretraining.autoencoder import (
    Autoencoder,
    AutoencoderRecipe,
    first_weights,
    settle_statistics,
    stacked_cuts,
)
from topwork.pretraining.decoders import TiedDecoder, decoder, draw_hidden, unrolled_decoder
from topwork.pretraining.methods import recipe_of

PHASE = Phase(epochs=2, batch=10, optimizer="adamw", rate=0.01)
DENSE = {"backbone": "topwork:dense", "arguments": {"widths": [12, 8]}}


def cut_of(*shape: int, prefix: int | None = None, channels_last: bool = False) -> CutPoint:
    layout = layout_of(shape, nn.Identity())
    if prefix is not None:
        layout = Layout("tokens", prefix=prefix)
    if channels_last:
        layout = Layout("map", channels_last=True)
    return CutPoint(0, "cut", shape, layout, False, 0, 0, None)


def autoencoder(
    noise: str = "none", amount: float = 0.0, *, binary: bool = True, sample: torch.Tensor
) -> Autoencoder:
    """A dense layer of 3 sigmoid units with a tied decoder, on vectors."""
    torch.manual_seed(0)
    linear = nn.Linear(sample.shape[1], 3)
    return Autoencoder(
        nn.Sequential(linear, nn.Sigmoid()),
        TiedDecoder(sample.shape[1:], linear),
        Layout("vector"),
        binary=binary,
        sample=sample,
        noise=noise,
        amount=amount,
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


@pytest.mark.parametrize("binary", [True, False])
def test_losses_are_those_of_a_loop_over_samples(binary: bool) -> None:
    values = torch.rand(6, 5, generator=torch.Generator().manual_seed(1))
    if not binary:
        values = 7 * values - 2
    module = autoencoder(binary=binary, sample=values)
    found = module(values).detach().numpy()

    linear = module.encoder[0]
    weight, bias = (tensor.detach().double().numpy() for tensor in (linear.weight, linear.bias))
    data = values.double().numpy()
    mean = data.mean(0)
    deviation = np.sqrt(((data - mean) ** 2).mean())
    for row, x in enumerate(data):
        code = [sigmoid(weight[j] @ x + bias[j]) for j in range(3)]
        expected = 0.0
        for i in range(5):
            out = sum(weight[j, i] * code[j] for j in range(3))
            if binary:
                start = np.clip(mean[i], 0.01, 0.99)
                rebuilt = sigmoid(out + np.log(start / (1 - start)))
                expected -= x[i] * np.log(rebuilt) + (1 - x[i]) * np.log(1 - rebuilt)
            else:
                expected += (out - (x[i] - mean[i]) / deviation) ** 2 / 5
        np.testing.assert_allclose(found[row], [expected, 0], rtol=1e-5)


def test_gradients_of_tied_weights_are_finite_differences() -> None:
    values = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)).double()
    module = autoencoder(sample=values).double()
    weight = module.encoder[0].weight
    module.decoded = lambda x: module.decoder(module.encoder(x)) + module.mean  # in float64
    module(values)[:, 0].sum().backward()
    for place in ((0, 0), (1, 3), (2, 4)):
        with torch.no_grad():
            start, step = float(weight[place]), 1e-6
            sides = []
            for shift in (step, -step):
                weight[place] = start + shift
                sides.append(float(module(values)[:, 0].sum()))
            weight[place] = start
        slope = (sides[0] - sides[1]) / (2 * step)
        assert float(weight.grad[place]) == pytest.approx(slope, rel=1e-5)


def test_what_is_rebuilt_is_the_whole_from_the_corrupted() -> None:
    values = torch.rand(8, 5)
    module = autoencoder("masking", 0.5, sample=values)
    given = []
    module.encoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    torch.manual_seed(3)
    losses = module(values)[:, 0]
    (noisy,) = given
    assert 0 < (noisy == 0).float().mean() < 1
    assert torch.equal(noisy[noisy != 0], values[noisy != 0])
    rebuilt = module.rebuilt(noisy)
    whole = nn.functional.binary_cross_entropy(rebuilt, values, reduction="none").sum(1)
    torch.testing.assert_close(losses, whole)


def test_masking_takes_its_share_and_all_channels_of_a_position() -> None:
    maps, tokens = torch.ones(50, 3, 20, 20), torch.ones(50, 40, 6)
    module = autoencoder("masking", 0.3, sample=torch.rand(4, 5))
    for layout, values, axis in (
        (Layout("map"), maps, 1),
        (Layout("map", channels_last=True), maps, 3),
        (Layout("tokens"), tokens, 2),
    ):
        module.layout = layout
        masked = module.corrupted(values) == 0
        assert torch.equal(masked.all(axis), masked.any(axis)), layout
        assert float(masked.float().mean()) == pytest.approx(0.3, abs=0.03), layout


def test_gaussian_noise_is_in_units_of_the_deviation() -> None:
    values = 10 * torch.randn(5000, 5)
    module = autoencoder("gaussian", 0.2, binary=False, sample=values)
    assert float((module.corrupted(values) - values).std()) == pytest.approx(2, rel=0.03)
    module = autoencoder("gaussian", 0.2, sample=torch.rand(100, 5))
    assert float((module.corrupted(values) - values).std()) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(
    ("below", "above"),
    [
        (cut_of(3, 8, 8), cut_of(16, 8, 8)),
        (cut_of(3, 8, 8), cut_of(16, 4, 4)),
        (cut_of(3, 15, 15), cut_of(16, 7, 7)),
        (cut_of(3, 8, 6), cut_of(4, 3, 16, channels_last=True)),
        (cut_of(4, 4, 6, channels_last=True), cut_of(2, 2, 8, channels_last=True)),
        (cut_of(3, 8, 8), cut_of(16, 1, 1)),
        (cut_of(3, 8, 8), cut_of(10)),
        (cut_of(12), cut_of(10)),
        (cut_of(3, 8, 8), cut_of(5, 6, prefix=1)),
        (cut_of(3, 8, 8), cut_of(7, 6, prefix=1)),
        (cut_of(5, 6, prefix=1), cut_of(5, 8, prefix=1)),
        (cut_of(5, 6, prefix=1), cut_of(8)),
    ],
)
def test_decoders_give_the_shape_below(below: CutPoint, above: CutPoint) -> None:
    made = decoder(below, above)
    assert made(torch.rand(2, *above.shape)).shape == (2, *below.shape)
    twice = unrolled_decoder([below, above, above])
    assert twice(torch.rand(2, *above.shape)).shape == (2, *below.shape)


def test_a_token_decoder_puts_each_patch_where_it_was() -> None:
    made = decoder(cut_of(1, 4, 4), cut_of(5, 4, prefix=1))
    with torch.no_grad():
        made.linear.weight.copy_(torch.eye(4))
        made.linear.bias.zero_()
    image = torch.arange(16.0).reshape(4, 4)
    tokens = [image[r : r + 2, c : c + 2].flatten() for r in (0, 2) for c in (0, 2)]
    assert torch.equal(made(torch.stack([torch.zeros(4), *tokens])[None])[0, 0], image)


def test_what_is_stacked_are_stages_or_else_layers() -> None:
    class Net(nn.Sequential):
        def __init__(self, widths: list[int]) -> None:
            super().__init__()
            inputs = 3
            for number, width in enumerate(widths):
                stride = 2 if number and width != inputs else 1
                self.append(
                    nn.Sequential(nn.Conv2d(inputs, width, 3, stride, padding=1), nn.ReLU())
                )
                inputs = width
            self.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 2)])

    few = trace_chain(Net([4, 4, 8, 8]), torch.zeros(1, 3, 16, 16))
    assert [cut.depth for cut in stacked_cuts(few)] == [0, 1, 2, 3, 4]
    many = trace_chain(Net([4, 4, 8, 8, 12, 16]), torch.zeros(1, 3, 16, 16))
    ends = [cut.depth for cut in many.cuts[1:] if cut.stage_end]
    assert len(ends) == 4 < len(many.cuts) - 1
    assert [cut.depth for cut in stacked_cuts(many)] == [0, *ends]


def test_layers_are_trained_one_after_another_on_what_lies_below(tmp_path: Path) -> None:
    recipe = AutoencoderRecipe(phase=replace(PHASE, epochs=6))
    material = tiny_material(tmp_path, recipe, **DENSE)
    started = weights_of(material)
    told = trained(material, recipe)
    assert [(row.stage, row.epoch) for row in told] == [
        (f"layer {layer}", epoch) for layer in (1, 2) for epoch in range(1, 7)
    ]
    for stage in ("layer 1", "layer 2"):
        losses = [row.loss for row in told if row.stage == stage]
        assert losses[-1] < losses[0], stage
    learned = weights_of(material)
    changed = {name for name in started if not torch.equal(started[name], learned[name])}
    assert changed == set(started) - {"classifier.weight", "classifier.bias"}
    pictures = material.stages.pictures
    assert {name: len(p) for name, p in pictures.items()} == {
        "filters": 12, "images": 2, "noisy": 2, "reconstructions": 2,
    }  # fmt: skip
    assert all(p.min() >= 0 and p.max() <= 1 for p in pictures.values())


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        (AutoencoderRecipe(phase=PHASE), DENSE),
        (AutoencoderRecipe(phase=PHASE, end_to_end=True, noise="gaussian"), {}),
        (AutoencoderRecipe(phase=replace(PHASE, epochs=1, average=0.9)), {}),
    ],
    ids=["dense", "end to end", "convolutional"],
)
@pytest.mark.parametrize("steps", [3, 7])
def test_an_interrupted_stack_ends_the_same(
    recipe: AutoencoderRecipe, how: dict, steps: int, tmp_path: Path
) -> None:
    assert_resumes(tmp_path, recipe, steps, **how)


def test_the_seed_is_the_material_s_alone(tmp_path: Path) -> None:
    recipe = AutoencoderRecipe(phase=replace(PHASE, epochs=1))
    found = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        material = tiny_material(tmp_path / str(outside), recipe)
        trained(material, recipe)
        found.append(weights_of(material))
    assert_equal_weights(*found)


def test_dropout_is_the_fine_tuning_s_affair(tmp_path: Path) -> None:
    recipe = AutoencoderRecipe(phase=PHASE, noise="none")
    found = []
    for dropout in (0.0, 0.5):
        arguments = {"widths": [12, 8], "dropout": dropout, "input_dropout": dropout}
        how = {"backbone": "topwork:dense", "arguments": arguments}
        material = tiny_material(tmp_path / str(dropout), recipe, **how)
        trained(material, recipe)
        found.append(weights_of(material))
        assert material.chain.network.layer2.dropout.p == dropout
    assert_equal_weights(*found)


def test_rebuilding_beats_the_mean_image(tmp_path: Path) -> None:
    phase = replace(PHASE, epochs=20)
    for end_to_end in (False, True):
        recipe = AutoencoderRecipe(phase=phase, noise="none", end_to_end=end_to_end)
        material = tiny_material(tmp_path / str(end_to_end), recipe)
        told = trained(material, recipe)
        last = {row.stage: row.held_out for row in told}
        assert max(last.values()) < 0.8, last
        assert material.stages.pictures["filters"].shape == (16, 3, 3, 3)
        assert "noisy" not in material.stages.pictures


def test_batch_norms_end_with_the_statistics_of_whole_images(tmp_path: Path) -> None:
    recipe = AutoencoderRecipe(phase=replace(PHASE, epochs=1), amount=0.9)
    material = tiny_material(tmp_path, recipe)
    trained(material, recipe)
    inputs, _ = material.inputs(material.chain.cuts[0], 1)
    (images,) = inputs.batch(range(len(inputs)), 0)
    lowest = material.chain.network.get_submodule("block1")
    with torch.no_grad():
        maps = lowest.conv(images)
    torch.testing.assert_close(lowest.norm.running_mean, maps.mean((0, 2, 3)))


@pytest.mark.parametrize("count", [1, 257])
def test_statistics_take_no_batch_of_one(count: int) -> None:
    layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    settle_statistics(layers, TensorInputs(torch.rand(count, 2)))
    assert layers[1].num_batches_tracked == (count > 1)


def test_weights_of_pixels_are_pictured() -> None:
    conv, dense = nn.Conv2d(3, 4, 5), nn.Linear(12, 6)
    assert first_weights(nn.Sequential(nn.ReLU(), conv), (3, 8, 8)) is conv.weight
    assert first_weights(dense, (3, 2, 2)).shape == (6, 3, 2, 2)
    assert first_weights(dense, (1, 2, 2)) is None
    assert first_weights(nn.ReLU(), (1, 2, 2)) is None


def test_what_is_hidden_is_drawn_for_each_image() -> None:
    torch.manual_seed(0)
    hidden = draw_hidden(200, (8, 12), 4, 0.5)
    squares = hidden[:, 0, ::4, ::4]
    assert torch.equal(squares.repeat_interleave(4, 1).repeat_interleave(4, 2), hidden[:, 0])
    assert set(squares.sum((1, 2)).tolist()) == {3}
    assert torch.allclose(squares.float().mean(0), torch.tensor(0.5), atol=0.12)
    assert set(draw_hidden(9, (4, 8), 4, 0.99)[:, 0, 0, ::4].sum(1).tolist()) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "salt"}, "recipe: noise is 'salt'; known are masking, gaussian, none"),
        ({"amount": 0}, "recipe: amount is 0; give a number above 0"),
        ({"amount": 1.5}, "recipe: amount is 1.5; masking takes a share below 1"),
    ],
)
def test_recipes_that_make_no_sense(changes: dict, message: str) -> None:
    with pytest.raises(PlanError) as error:
        recipe_of("autoencoder").changed(changes)
    assert str(error.value) == message


def test_gray_pixels_of_a_dense_stack_are_rebuilt_as_probabilities(tmp_path: Path) -> None:
    recipe = AutoencoderRecipe(phase=replace(PHASE, epochs=1))
    images = drawings(gray=True)
    dense = trained(tiny_material(tmp_path / "a", recipe, images=images, **DENSE), recipe)
    nats = 1.2 * np.log(2) * 64  # about 64 pixels told as one half; a squared error is about 1
    assert 20 < dense[0].loss < nats
    conv = trained(tiny_material(tmp_path / "b", recipe), recipe)
    assert 0.3 < conv[0].loss < 3


def test_statistics_are_those_of_all_images_though_they_come_sorted() -> None:
    sorted_by_class = torch.cat([torch.full((3000, 2), -1.0), torch.full((3000, 2), 1.0)])
    norm = nn.BatchNorm1d(2)
    settle_statistics(nn.Sequential(norm), TensorInputs(sorted_by_class))
    assert torch.allclose(norm.running_mean, torch.zeros(2), atol=0.1)
    assert torch.allclose(norm.running_var, torch.ones(2), atol=0.05)


@pytest.mark.parametrize("end_to_end", [True, False])
def test_a_decoder_that_would_be_huge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_to_end: bool
) -> None:
    monkeypatch.setattr("topwork.pretraining.autoencoder.MOST_WEIGHTS", 1000)
    recipe = replace(recipe_of("autoencoder"), end_to_end=end_to_end, tied=False)
    with pytest.raises(PlanError, match=r"a decoder would take [01] million weights"):
        tiny_material(tmp_path, recipe, backbone="topwork:dense")
