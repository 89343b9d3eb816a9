"""Stacks of dense layers: what they compute, and that a row's bits do not depend on its place."""

import pytest
import torch

from topwork.errors import TopworkError
from topwork.network.dense import dense
from topwork.network.loading import build_chain, fit_input
from topwork.network.spec import BackboneSpec
from topwork.network.zoo import find_backbone


@pytest.mark.parametrize("width", [5, 64, 100])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_a_row_has_the_same_bits_wherever_it_stands_in_a_batch(width, activation):
    layers = dense((width, 33), activation, image_size=(4, 4), in_chans=1).eval()
    images = torch.rand(31, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            order = torch.randperm(len(images))
            assert torch.equal(layers[:-1](images[order]), layers[:-1](images)[order])


def test_the_layers_are_what_the_definition_says():
    network = dense((3, 2), image_size=(2, 2), in_chans=1, num_classes=4).eval()
    image = torch.rand(1, 1, 2, 2)
    value = image.flatten()
    for layer in (network.layer1.linear, network.layer2.linear):
        value = 1 / (1 + torch.exp(-(layer.weight @ value + layer.bias)))
    expected = network.classifier.weight @ value + network.classifier.bias
    assert torch.allclose(network(image)[0], expected, atol=1e-6)


def test_dropout_acts_in_training_above_the_cut_below_it():
    network = dense((64,), dropout=0.5, input_dropout=0.5, image_size=(8, 8), in_chans=1).train()
    image = torch.ones(1, 1, 8, 8)
    assert not torch.equal(network(image), network(image))
    chain = build_chain(BackboneSpec("topwork", "dense", {"widths": [6, 5]}), (28, 28))
    assert [(cut.name, cut.shape) for cut in chain.cuts[1:]] == [("layer1", (6,)), ("layer2", (5,))]


def test_other_sizes_and_channels_make_another_first_layer():
    found = fit_input(find_backbone("topwork:dense"), (6, 4), 3)
    assert found.spec.build().layer1.linear.in_features == 72


@pytest.mark.parametrize("arguments", [{"activation": "swish"}, {"widths": [0]}, {"widths": []}])
def test_what_cannot_be_built_is_said(arguments):
    with pytest.raises(TopworkError, match=r"widths|activation"):
        BackboneSpec("topwork", "dense", arguments).build()
