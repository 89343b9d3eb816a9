"""Sliding networks, held against the original on every window, or every crop, in a slow loop."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from networks import build, snapshot
from topwork.errors import UnsupportedError, UsageError
from topwork.network.chain import Chain, trace_chain
from topwork.network.convolutional import SlidingNetwork, fully_convolutional
from topwork.network.model import Model, code_width
from topwork.plan import Hidden

TOLERANCE = 1e-4


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert expected.std() > 0


def on_windows(top: Callable[[Tensor], Tensor], maps: Tensor, window: int, step: int = 1) -> Tensor:
    """Apply a top to every window of a map, one by one: [N, C, H, W] to [N, classes, h, w]."""
    rows = [
        torch.stack(
            [
                top(maps[:, :, i : i + window, j : j + window])
                for j in range(0, maps.shape[3] - window + 1, step)
            ],
            2,
        )
        for i in range(0, maps.shape[2] - window + 1, step)
    ]
    return torch.stack(rows, 2)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def slide(network: nn.Module, size: int) -> SlidingNetwork:
    example = noise(1, 3, size, size)
    return fully_convolutional(trace_chain(network, example), example)


def plain(padding: int = 0) -> nn.Sequential:
    """A network of stride 4 for 34 pixels, with all that a classical top has."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 6, stride=2, padding=padding), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=padding), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d((5, 5)), nn.Flatten(), nn.Dropout()),
        *(nn.Linear(125, 9), nn.BatchNorm1d(9), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(9, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)),
    ).eval()


# --- source networks ----------------------------------------------------------------------------


def check_torchvision(name: str, window: int) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name).eval()
    sliding = slide(network, 224)
    images = noise(1, 3, 300, 256)
    with torch.no_grad():
        native = images[..., :224, :224]
        assert_close(sliding(native).flatten(1), network(native))

        def top(maps: Tensor) -> Tensor:
            return network.classifier(torch.flatten(network.avgpool(maps), 1))

        expected = on_windows(top, network.features(images), window)
        assert_close(sliding(images), expected)
        assert min(expected.shape[2:]) >= 2
        assert sliding.stride == (32, 32)


def test_alexnet() -> None:
    check_torchvision("alexnet", 6)


@pytest.mark.slow
def test_vgg16() -> None:
    check_torchvision("vgg16", 7)


class SmallVGG(nn.Module):
    """VGG's forward, with its flatten between features and classifier, for 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers = [4, "M", 6, "M", 8, 8, "M"]
        self.features = torchvision.models.vgg.make_layers(layers, batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d((4, 4))
        self.classifier = nn.Sequential(
            *(nn.Linear(128, 20), nn.ReLU(True), nn.Dropout()),
            *(nn.Linear(20, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


def test_small_vgg() -> None:
    torch.manual_seed(0)
    network = SmallVGG().eval()
    sliding = slide(network, 32)
    images = noise(2, 3, 57, 40)
    with torch.no_grad():

        def top(maps: Tensor) -> Tensor:
            return network.classifier(maps.flatten(1))

        assert_close(sliding(images), on_windows(top, network.features(images), 4))


def test_timms_vgg_whose_linear_layers_are_convolutions_already() -> None:
    torch.manual_seed(0)
    network = timm.models.vgg.VGG([4, "M", 6, "M", 512, "M"], num_classes=10)
    network.pre_logits = timm.models.vgg.ConvMlp(512, 24, kernel_size=7)
    network.head = timm.layers.ClassifierHead(24, 10)
    network.eval()
    sliding = slide(network, 56)
    images = noise(2, 3, 80, 64)
    with torch.no_grad():
        maps = network.features(images)
        expected = on_windows(lambda part: network.head(network.pre_logits(part)), maps, 7)
        assert expected.shape == (2, 10, 4, 2)
        assert_close(sliding(images), expected)


@pytest.mark.parametrize(
    ("name", "size", "window"),
    [
        ("timm:mobilenetv2_100", 96, 3),
        ("timm:test_convnext", 96, 3),
        ("timm:test_mambaout", 96, 3),
    ],
)
def test_timm_networks(name: str, size: int, window: int) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name.partition(":")[2]).eval()
    sliding = slide(network, size)
    images = noise(2, 3, size + 64, size + 32)
    with torch.no_grad():
        native = images[..., :size, :size]
        assert_close(sliding(native).flatten(1), network(native))
        maps = network.forward_features(images)
        if name == "timm:test_mambaout":  # channels last
            maps = maps.permute(0, 3, 1, 2)
        expected = on_windows(lambda part: head_of(name, network, part), maps, window)
        assert_close(sliding(images), expected)
        assert expected.shape[2:] == (3, 2)


def head_of(name: str, network: nn.Module, part: Tensor) -> Tensor:
    part = part.permute(0, 2, 3, 1) if name == "timm:test_mambaout" else part
    return network.forward_head(part.contiguous())


def test_squeezenet_whose_last_layer_is_a_convolution() -> None:
    network = build("torchvision:squeezenet1_1")[0]
    sliding = slide(network, 64)
    images = noise(1, 3, 100, 81)
    with torch.no_grad():

        def top(maps: Tensor) -> Tensor:
            return network.classifier(maps).flatten(1)

        assert_close(sliding(images), on_windows(top, network.features(images), 3))


# --- networks that pad nothing ------------------------------------------------------------------


def test_without_padding_a_position_is_the_network_on_a_crop() -> None:
    network = plain()
    sliding = slide(network, 34)
    assert (sliding.native, sliding.stride) == ((34, 34), (4, 4))
    images = noise(2, 3, 46, 39)
    with torch.no_grad():
        expected = on_windows(network, images, 34, step=4)
        assert expected.shape == (2, 4, 4, 2)
        assert_close(sliding(images), expected)


def test_with_padding_it_is_not() -> None:
    network = plain(padding=1)
    sliding = slide(network, 22)
    images = noise(2, 3, 46, 46)
    with torch.no_grad():
        crops, windows = on_windows(network, images, 22, step=4), sliding(images)
    assert crops.shape == windows.shape
    assert (crops - windows).abs().max() > 100 * TOLERANCE * crops.abs().max()


def test_global_pooling_without_padding() -> None:
    torch.manual_seed(0)
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d((1, 1))):
        network = nn.Sequential(
            *(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 7, 3), pool),
            *(nn.Conv2d(7, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3)),
        ).eval()
        images = noise(1, 3, 31, 25)
        with torch.no_grad():
            expected = on_windows(network, images, 17, step=2)
            assert_close(slide(network, 17)(images), expected)


# --- models -------------------------------------------------------------------------------------


def model_of(
    chain: Chain, codes: tuple[str, ...], pool: str, added: tuple[Hidden, ...] = ()
) -> Model:
    torch.manual_seed(5)
    model = Model(chain, codes, pool, code_width(chain, codes, pool), 4, added)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


ADDED = (
    Hidden(11, activation="gelu", norm="layer", dropout=0.5),
    Hidden(12, activation="relu", norm="batch", dropout=0.1),
)


@pytest.mark.parametrize("added", [(), ADDED], ids=["plain", "added"])
@pytest.mark.parametrize(
    ("name", "depth", "pool"),
    [
        ("timm:mobilenetv2_100", "bn2", "avg"),
        ("timm:mobilenetv2_100", "blocks.2", "avg"),
        ("timm:resnet18", "layer3", "flatten"),
        ("torchvision:squeezenet1_1", "features.12", "avg"),
    ],
)
def test_a_model_is_its_own_top_on_every_window(
    name: str, depth: str, pool: str, added: tuple[Hidden, ...]
) -> None:
    network, example = build(name)
    model = model_of(trace_chain(network, example), (depth,), pool, added)
    sliding = fully_convolutional(model, example)
    images = noise(2, 3, 128, 96)
    with torch.no_grad():
        native = images[..., :64, :64]
        assert_close(sliding(native).flatten(1), model(native))
        window = model.segments[0](native).shape[2]

        def top(maps: Tensor) -> Tensor:
            return model.head(model.added(model.pools[0](maps)))

        assert_close(sliding(images), on_windows(top, model.segments[0](images), window))


def test_a_model_on_alexnets_last_hidden_layer() -> None:
    torch.manual_seed(0)
    network = torchvision.models.alexnet().eval()
    example = noise(1, 3, 224, 224)
    chain = trace_chain(network, example)
    model = model_of(chain, (chain.top.name,), "flatten")
    images = noise(1, 3, 256, 288)
    with torch.no_grad():

        def top(maps: Tensor) -> Tensor:
            return model.head(network.classifier[:-1](maps.flatten(1)))

        expected = on_windows(top, network.features(images), 6)
        assert_close(fully_convolutional(model, example)(images), expected)


def test_several_depths_slide_in_step() -> None:
    network, example = build("timm:resnet18")
    model = model_of(trace_chain(network, example), ("layer2", "layer4", "layer3"), "avg", ADDED)
    sliding = fully_convolutional(model, example)
    assert sliding.stride == (32, 32)
    images = noise(2, 3, 130, 161)
    with torch.no_grad():
        maps, pooled = images, []
        for segment, window, step in zip(model.segments, (8, 4, 2), (4, 2, 1), strict=True):
            maps = segment(maps)
            pooled.append(on_windows(lambda part: part.mean((2, 3)), maps, window, step))
        height, width = (min(part.shape[side] for part in pooled) for side in (2, 3))
        assert (height, width) == (3, 4)
        codes = torch.cat([part[:, :, :height, :width] for part in pooled], 1)
        expected = on_windows(
            lambda code: model.head(model.added(code.flatten(1))), codes, window=1
        )
        assert_close(sliding(images), expected)


def test_the_model_is_left_alone_and_shares_its_tensors() -> None:
    network, example = build("timm:mobilenetv2_100")
    model = model_of(trace_chain(network, example), ("bn2",), "avg", ADDED).train()
    before = snapshot(model)
    sliding = fully_convolutional(model, example)
    assert not any(module.training for module in sliding.modules())
    assert snapshot(model) == before
    owners = {tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    assert {tensor.data_ptr() for tensor in sliding.state_dict().values()} <= owners


def test_other_channels_and_sizes_that_are_not_square() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 8, 3))
    ).eval()
    example = noise(1, 5, 6, 10)
    sliding = fully_convolutional(trace_chain(network, example), example)
    images = noise(1, 5, 8, 13)
    with torch.no_grad():
        rows = [
            torch.stack([network(images[..., i : i + 6, j : j + 10]) for j in range(4)], 2)
            for i in range(3)
        ]
        assert_close(sliding(images), torch.stack(rows, 2))


# --- what cannot be slid ------------------------------------------------------------------------


class GatedNetwork(nn.Module):
    """Multiplies its map by what is pooled from all of it, outside of any block."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head((x * x.mean((2, 3), keepdim=True)).amax((2, 3)))


class Wandering(nn.Module):
    """Takes another way for bright images: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x if x.mean() > 0 else -x)
        return self.head(x.mean((2, 3)))


def fixed(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *layers).eval()


REFUSED = {
    "tokens": (
        lambda: build("timm:vit_tiny_patch16_224")[0],
        64,
        "patch_embed makes tokens, whose positions belong to one size of image; the network cannot"
        " be slid: choose one with a map below its top, such as AlexNet, VGG, ResNet or MobileNet",
    ),
    "pooled to 6x6": (
        lambda: fixed(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(144, 2)),
        16,
        "2 makes 4x6x6 of the 4x14x14 of its native size, and of any larger map",
    ),
    "a norm over a flattened map": (
        lambda: fixed(nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 2)),
        8,
        "3 can be run on a single window only",
    ),
    "maps and what is pooled from them": (
        GatedNetwork,
        8,
        "mul joins what is pooled over windows that differ, or not pooled at all",
    ),
    "no single score": (
        lambda: fixed(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=2)),
        8,
        "cannot be slid",
    ),
    "no trace": (
        Wandering,
        8,
        "a network that cannot be traced cannot be slid",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_slid_is_named(what: str) -> None:
    make, size, text = REFUSED[what]
    example = noise(1, 3, size, size)
    chain = trace_chain(make(), example)
    with pytest.raises(UnsupportedError) as refusal:
        fully_convolutional(chain, example)
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_whose_body_cannot_be_traced() -> None:
    example = noise(1, 3, 8, 8)
    chain = trace_chain(Wandering(), example)
    with pytest.raises(UnsupportedError, match="the part below the head, which cannot be traced,"):
        fully_convolutional(model_of(chain, (chain.top.name,), "flatten"), example)


def test_a_smaller_image_is_refused() -> None:
    with pytest.raises(UsageError, match="33x40 pixels are smaller than the network's own 34x34"):
        slide(plain(), 34)(noise(1, 3, 33, 40))
