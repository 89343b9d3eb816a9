from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer

from networks import ARCHITECTURES, build, snapshot
from topwork.errors import ChainError
from topwork.network.chain import Chain, trace_chain
from topwork.network.codes import source_pool
from topwork.network.cut import Trunk, cut, segment
from topwork.network.layout import layout_of

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cut_composes_bit_exactly(name: str) -> None:
    network, images = build(name)
    before = snapshot(network)
    chain = trace_chain(network, images)
    with torch.no_grad():
        expected = network(images)
    assert len(chain) >= 6
    owners = chain.depth_of_state()
    assert set(owners) == set(network.state_dict())
    for point in chain.cuts:
        trunk, top = cut(chain, point.depth)
        with torch.no_grad():
            code = trunk(images)
            assert torch.equal(top(code), expected), point.name
        assert code.shape[1:] == point.shape
        # Each tensor lies on one side, on the side that the accounting says.
        below, above = set(trunk.state()), set(top.state_dict())
        assert not below & above
        assert {key for key, depth in owners.items() if depth <= point.depth} == below
        assert point.parameters == sum(
            value.numel() for key, value in network.named_parameters() if key in below
        )
    assert snapshot(network) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "timm:resnet18",
            "input act1 layer1.0 layer1.1 layer2.0 layer2.1 layer3.0 layer3.1 layer4.0 layer4.1",
        ),
        (
            "torchvision:alexnet",
            "input features.1 features.4 features.7 features.9 features.11 classifier.2"
            " classifier.5",
        ),
        (
            "timm:densenet121",
            "input features.norm0 features.denseblock1 features.transition1 features.denseblock2"
            " features.transition2 features.denseblock3 features.transition3 features.norm5",
        ),
        (
            "timm:vit_tiny_patch16_224",
            "input patch_embed " + " ".join(f"blocks.{i}" for i in range(12)) + " norm",
        ),
    ],
)  # fmt: skip
def test_cuts_have_the_names_that_people_expect(name: str, expected: str) -> None:
    network, images = build(name)
    assert [point.name for point in trace_chain(network, images).cuts] == expected.split()


@pytest.mark.parametrize(
    ("name", "head", "shape", "layout"),
    [
        ("timm:resnet18", "fc", (512, 2, 2), "map"),
        ("torchvision:alexnet", "classifier.6", (4096,), "vector"),
        ("torchvision:squeezenet1_1", "classifier.1", (512, 3, 3), "map"),
        ("torchvision:swin_t", "head", (2, 2, 768), "map, channels last"),
        ("timm:vit_tiny_patch16_224", "head", (17, 192), "tokens, 1 prefix"),
        ("timm:convnext_atto", "head.fc", (320, 1, 1), "map"),
        ("timm:test_mambaout", "head.fc", (256,), "vector"),
    ],
)
def test_the_top_is_the_input_of_the_last_linear_layer(
    name: str, head: str, shape: tuple[int, ...], layout: str
) -> None:
    network, images = build(name)
    chain = trace_chain(network, images)
    assert (chain.head, chain.top.shape, str(chain.top.layout)) == (head, shape, layout)


OF_ANY_SIZE: dict[str, Callable[[], nn.Module]] = {
    "channels first": lambda: timm.create_model("test_resnet"),
    "without padding": lambda: nn.Sequential(
        *(layer for _ in range(4) for layer in (nn.LazyConv2d(28, 3), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(28, 2),
    ),
    "channels last": lambda: SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4]),
}


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (56, 52), (64, 64)])
@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_channels_are_what_another_size_of_input_leaves_alone(
    name: str, size: tuple[int, int]
) -> None:
    other = (size[0] + 64, size[1] + 64)
    network = OF_ANY_SIZE[name]().eval()
    network(torch.zeros(1, 3, *size))
    points, larger = (trace_chain(network, torch.zeros(1, 3, *s)).cuts for s in (size, other))
    maps = [pair for pair in zip(points, larger, strict=True) if pair[0].layout.kind == "map"]
    assert len(maps) >= 3
    for point, other_point in maps:
        same = [a == b for a, b in zip(point.shape, other_point.shape, strict=True)]
        assert same == [not point.layout.channels_last, False, point.layout.channels_last], point


@pytest.mark.parametrize(
    ("network", "is_last"),
    [
        (OF_ANY_SIZE["channels last"](), True),
        (nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 8, 2, 2), nn.Conv2d(8, 2, 8)), False),
    ],
)
def test_a_map_that_could_be_either_is_as_the_last_one(network: nn.Module, is_last: bool) -> None:
    image, first, *others = trace_chain(network, torch.zeros(1, 3, 64, 64)).cuts
    assert first.shape == (16, 16, 16)
    assert not image.layout.channels_last
    assert {point.layout.channels_last for point in (first, *others)} == {is_last}


@pytest.mark.parametrize("size", [(64, 48), (32, 96), (64, 64)])
def test_all_tokens_of_a_mixer_stand_for_positions(size: tuple[int, int]) -> None:
    mixer = MlpMixer(num_classes=2, img_size=size, num_blocks=1, embed_dim=24)
    chain = trace_chain(mixer, torch.zeros(1, 3, *size))
    assert chain.top.shape == (size[0] * size[1] // 256, 24)
    assert {str(point.layout) for point in chain.cuts[1:]} == {"tokens"}
    assert source_pool(chain) == "avg"


def test_tokens_beyond_a_grid_of_the_inputs_sides_are_a_prefix() -> None:
    for size, side in (((224, 192), 16), ((224, 160), 16), ((518, 378), 14), ((224, 224), 16)):
        count = (size[0] // side) * (size[1] // side)
        for prefix in (0, 1, 2, 5):
            assert layout_of((count + prefix, 24), nn.Identity(), size).prefix == prefix


def test_costs_against_a_count_by_hooks() -> None:
    network, images = build("timm:mobilenetv2_100")
    chain = trace_chain(network, images)
    counted = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def count(conv: nn.Conv2d, inputs: tuple, output: torch.Tensor, path=path) -> None:
                counted[path] = output[0].numel() * conv.weight[0].numel()

            module.register_forward_hook(count)
    network(images[:1])
    assert chain.top.multiply_adds == sum(counted.values())
    stem = chain.resolve("bn1")
    assert stem.multiply_adds == counted["conv_stem"]
    assert stem.bytes == 4 * 32 * 32 * 32


def test_stages_end_where_the_resolution_or_the_parent_changes() -> None:
    network, images = build("timm:resnet18")
    ends = [point.name for point in trace_chain(network, images).cuts if point.stage_end]
    assert ends == ["input", "act1", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]


def test_codes_before_a_threshold_are_marked() -> None:
    network, images = build("timm:resnetv2_50")
    chain = trace_chain(network, images)
    assert chain.resolve("stages.1").before == "stages.2.blocks.0.norm1"
    assert chain.top.before is None
    network, images = build("timm:resnet18")
    assert all(point.before is None for point in trace_chain(network, images).cuts)


ACTIVATIONS = {
    "relu": F.relu,
    "selu": F.selu,
    "selu in place": lambda x: F.selu(x, inplace=True),
    "celu": F.celu,
    "elu_": F.elu_,
    "rrelu": F.rrelu,
    "leaky_relu_": F.leaky_relu_,
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh_": F.hardtanh_,
    "logsigmoid": F.logsigmoid,
    "sigmoid_": torch.sigmoid_,
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "tanh_": torch.tanh_,
    "tanh_ of the tensor": lambda x: x.tanh_(),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "threshold_": lambda x: F.threshold_(x, 0.1, 0.0),
    "clamp": lambda x: x.clamp(min=0),
    "clamp to 6": lambda x: torch.clamp(x, 0, 6),
    "clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "clip_": lambda x: x.clip_(0),
}


class Activated(nn.Module):
    """Two layers and a head, with a function after each layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.function(self.conv(x)).flatten(1)
        return self.head(self.function(self.fc(x)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_codes_are_taken_after_a_functional_activation(name: str) -> None:
    torch.manual_seed(0)
    function = ACTIVATIONS[name]
    network, images = Activated(function).eval(), torch.randn(2, 3, 4, 4)
    chain = trace_chain(network, images)
    assert [point.name for point in chain.cuts] == ["input", "conv", "fc"]
    with torch.no_grad():
        below = function(network.conv(images))
        above = function(network.fc(below.flatten(1)))
    outputs = [code for _, code in Trunk(chain, [1, 2]).outputs(images)]
    for code, expected in zip(outputs, (below, above), strict=True):
        assert torch.equal(code, expected)


def test_a_clamp_that_guards_a_value_is_no_activation() -> None:
    network = Activated(lambda x: x.clamp(min=1e-6))
    chain = trace_chain(network, torch.zeros(1, 3, 4, 4))
    assert [str(node) for node in chain.nodes] == ["x", "conv", "fc"]


def test_depths_are_found_by_number_name_and_stage() -> None:
    network, images = build("timm:resnet18")
    chain = trace_chain(network, images)
    assert chain.resolve("layer3") is chain.resolve("layer3.1") is chain.resolve(7)
    assert chain.resolve("7") is chain.resolve(7)
    for wrong, message in (
        ("layer33", "did you mean 'layer3'"),
        (10, "give 0 (the input) to 9 (layer4.1)"),
        ("-1", "depth -1 does not exist"),
        ("layer3.1.conv1", "no cut point is named"),
    ):
        with pytest.raises(ChainError) as raised:
            chain.resolve(wrong)
        assert message in str(raised.value)


class Branching(nn.Module):
    """A network whose forward looks at the data, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 1e9:
            return self.fc(x)
        return self.fc(self.body(x).flatten(1))


def test_where_tracing_fails_the_ends_remain_and_the_line_is_named() -> None:
    network = Branching().eval()
    chain = trace_chain(network, IMAGE)
    assert [point.name for point in chain.cuts] == ["input", "body"]
    assert "x.sum() > 1e9" in str(chain.note)
    assert "test_network_chain.py" in str(chain.note)
    images = torch.randn(3, 3, 32, 32)
    trunk, top = cut(chain, 1)
    assert torch.equal(top(trunk(images)), network(images))
    assert set(trunk.state()) | set(top.state_dict()) == set(network.state_dict())


class NoLinear(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_without_any_cut_says_what_to_do() -> None:
    with pytest.raises(ChainError, match=r"topwork\.Chain\.of"):
        trace_chain(NoLinear(), IMAGE)
    with pytest.raises(ChainError, match="give a batch such as"):
        trace_chain(NoLinear(), torch.zeros(3))


def test_chain_of_named_parts() -> None:
    network = Branching().eval()
    flat = nn.Sequential(network.body[2], nn.Flatten())
    parts = [("a", network.body[0]), ("b.act", network.body[1]), ("c", flat), ("fc", network.fc)]
    chain = Chain.of(parts, IMAGE)
    assert [point.name for point in chain.cuts] == ["input", "a", "b.act", "c"]
    assert chain.head == "fc"
    images = torch.randn(3, 3, 32, 32)
    for point in chain.cuts:
        trunk, top = cut(chain, point.name)
        assert torch.equal(top(trunk(images)), network(images))
    with pytest.raises(ChainError, match="do not run one after another"):
        Chain.of([("fc", network.fc), ("a", network.body[0])], IMAGE)
    with pytest.raises(ChainError, match="at least two parts"):
        Chain.of(parts[:1], IMAGE)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        x = F.dropout(x, 0.5, self.training)
        x = F.relu(self.conv2(x))
        x = F.dropout(x, p=0.5, training=self.training)
        return self.fc(x.mean((2, 3)))


def test_functional_dropout_follows_the_mode_of_the_top() -> None:
    network = WithDropout()  # in train mode, as the caller left it
    chain = trace_chain(network, IMAGE)
    assert [point.name for point in chain.cuts] == ["input", "conv1", "conv2"]
    trunk, top = cut(chain, "conv1")
    code = trunk(torch.randn(2, 3, 32, 32))
    assert not torch.equal(top.train()(code), top.train()(code))
    assert torch.equal(top.eval()(code), top.eval()(code))
    whole, _ = cut(chain, "conv2")  # dropout inside the trunk never acts
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(whole(image), whole(image))
    assert network.training


def test_module_dropout_acts_in_the_top_and_not_in_the_trunk() -> None:
    network, images = build("torchvision:alexnet")
    chain = trace_chain(network, images)
    trunk, top = cut(chain, "classifier.2")
    code = trunk(images)
    assert torch.equal(code, trunk(images))
    assert not torch.equal(top.train()(code), top.train()(code))
    assert not network.classifier[3].training


class Reshaping(nn.Module):
    """Keeps the sizes of its input alive until the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4 * 16 * 16, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        n, _, h, w = x.shape
        x = self.conv1(x).relu()
        x = self.conv2(x).relu().reshape(n * 4, h, w)
        x = F.avg_pool2d(x, 2).view(n, 4 * (h // 2) * (w // 2))
        return self.fc(x if mask is None else x * mask)


def test_integers_that_stay_alive_hide_no_cut() -> None:
    network = Reshaping().eval()
    chain = trace_chain(network, IMAGE)
    assert [point.name for point in chain.cuts] == ["input", "conv1", "conv2"]
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        for point in chain.cuts:
            trunk, top = cut(chain, point.depth)
            assert torch.equal(top(trunk(images)), network(images))


def test_layers_used_on_both_sides_make_a_cut_illegal() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 30 * 30, 2)).eval()
    names = [point.name for point in trace_chain(network, IMAGE).cuts]
    assert "1" in names  # below both uses
    assert "3" not in names  # between them
    assert names[-1] == "5"


def test_an_in_place_layer_above_a_cut_leaves_the_codes_alone() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)]
    network = nn.Sequential(*layers).eval()
    chain = Chain.of([(str(i), layer) for i, layer in enumerate(layers)], IMAGE)
    assert chain.resolve("0").before == "1"
    trunk, top = cut(chain, "0")
    images = torch.randn(2, 3, 32, 32)
    code = trunk(images)
    kept = code.clone()
    assert torch.equal(top(code), network(images))
    assert torch.equal(code, kept)
    assert (kept < 0).any()


def test_a_trunk_gives_all_its_depths_in_one_pass() -> None:
    network, images = build("timm:resnet18")
    chain = trace_chain(network, images)
    trunk = Trunk(chain, ["layer3", "act1", 4])
    found = dict(trunk.outputs(images))
    assert [point.name for point in found] == ["act1", "layer2.0", "layer3.1"]
    for point, value in found.items():
        assert torch.equal(value, segment(chain, chain.cuts[0], point)(images))
    for _ in trunk.outputs(images):
        assert torch.is_grad_enabled()  # the caller's, between two steps


def test_frozen_means_frozen() -> None:
    """Training the top moves every tensor above the cut, and not a byte below."""
    network, images = build("timm:resnet18")
    chain = trace_chain(network, images)
    trunk, top = cut(chain, "layer3")
    below = {name: value.numpy().tobytes() for name, value in trunk.state().items()}
    above = {name: value.clone() for name, value in top.state_dict().items()}
    optimizer = torch.optim.SGD(top.train().parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        top(trunk(images)).square().mean().backward()
        optimizer.step()
    assert {name: value.numpy().tobytes() for name, value in trunk.state().items()} == below
    still = [n for n, v in top.state_dict().items() if torch.equal(v, above[n])]
    assert not still
    assert not hasattr(trunk, "parameters")


def test_moving_a_trunk_copies_it() -> None:
    network, images = build("timm:resnet18")
    chain = trace_chain(network, images)
    trunk = Trunk(chain, ["layer1"])
    moved = trunk.to(torch.device("cpu"), torch.channels_last)
    assert moved.state()["conv1.weight"].is_contiguous(memory_format=torch.channels_last)
    assert not network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    expected = trunk(images)
    got = moved(images.contiguous(memory_format=torch.channels_last))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


class Functional(nn.Module):
    """Two convolutions and a linear layer; ``way`` is what the tests below are about."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way = way
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "counts always" or (self.way == "counts in training" and self.training):
            self.steps += 1
        x = self.a(x).relu()
        size = x.shape if self.way == "shape" else x.size()
        x = self.b(x.flatten(1).view(size)).relu().flatten(1)
        if self.way in ("size", "shape"):
            x = x.view(size) * x.new_ones(size)
        else:
            x = x.view(size[0], 4, 32, 32)
        h = self.fc(x.mean((2, 3)))
        if self.way != "twice":
            return {"scores": h} if self.way == "dict" else h
        if h.sum() > 1e9:
            h = h + 1
        return self.fc(h)


def test_a_last_layer_that_is_called_twice_is_no_head() -> None:
    network = Functional("twice").eval()
    for example in (IMAGE, torch.randn(2, 3, 32, 32)):
        with pytest.raises(ChainError, match="called once"):
            trace_chain(network, example)
    nn.init.zeros_(network.fc.weight)  # so that the output cannot tell one call from two
    with pytest.raises(ChainError, match="called once"):
        trace_chain(network, IMAGE)


class HeadIsRead(Branching):
    """Its layers below ask the last layer for its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x).flatten(1)
        if isinstance(self.fc, nn.Linear) and x.sum() < 1e9:
            h = h * self.fc.weight.sum()
        return self.fc(h)


def test_where_the_two_parts_do_not_compose_there_is_no_chain() -> None:
    network = HeadIsRead().eval()
    nn.init.ones_(network.body[0].bias)  # else the layers below may give nothing but zeros
    nn.init.ones_(network.fc.weight)
    with pytest.raises(ChainError, match=r"Chain\.of"):
        trace_chain(network, IMAGE)


@pytest.mark.parametrize("way", ["size", "shape"])
def test_a_shape_that_is_kept_whole_is_not_the_batch_size(way: str) -> None:
    network = Functional(way).eval()
    chain = trace_chain(network, IMAGE)
    assert [point.name for point in chain.cuts] == ["input", "a", "b"]
    assert chain.note is None
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        for point in chain.cuts:
            trunk, top = cut(chain, point.depth)
            assert torch.equal(top(trunk(images)), network(images)), point.name


class OneMore(nn.Module):
    """Reads the size of a tensor with one entry more than there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        longer = torch.cat([x, x[:1]])
        count = longer.size(0)
        x = self.b(x).relu()
        return self.fc(x / count)


def test_another_size_is_not_the_batch_size() -> None:
    network = OneMore().eval()
    chain = trace_chain(network, torch.zeros(1, 4))
    images = torch.randn(5, 4)
    for point in chain.cuts:
        trunk, top = cut(chain, point.depth)
        assert torch.equal(top(trunk(images)), network(images)), point.name


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_writes_buffers_leaves_those_of_the_caller(training: bool) -> None:
    network = Functional("counts in training").train(training)
    before, steps = snapshot(network), network.steps
    chain = trace_chain(network, IMAGE)
    assert chain.network.steps is steps is network.steps
    assert len(chain) == 3
    trunk, top = cut(chain, "a")
    images = torch.randn(2, 3, 32, 32)
    code = trunk(images)
    assert snapshot(network) == before
    assert torch.equal(top(code), network.eval()(images))


class CountingLayer(nn.Linear):
    """Writes a buffer in every mode, from inside a layer that is kept whole."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return super().forward(x)


def test_a_forward_that_writes_buffers_in_eval_mode_is_refused() -> None:
    counting = nn.Sequential(CountingLayer(), nn.ReLU(), nn.Linear(4, 2)).eval()
    for network, example, name in (
        (Functional("counts always"), IMAGE, "steps"),
        (Functional("counts always").eval(), IMAGE, "steps"),
        (counting, torch.zeros(1, 4), "0.seen"),
    ):
        before = snapshot(network)
        with pytest.raises(ChainError, match=f"buffer {name} in eval mode"):
            trace_chain(network, example)
        assert snapshot(network) == before
    parts = [("a", counting[0]), ("b", counting[1]), ("c", counting[2])]
    before = snapshot(counting)
    with pytest.raises(ChainError, match=r"buffer a\.seen in eval mode"):
        Chain.of(parts, torch.zeros(1, 4))
    assert snapshot(counting) == before


class GivesTwo(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Complains(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("wrong\nvery wrong")


def test_parts_that_make_no_chain_are_refused_in_one_line() -> None:
    a, b, fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    tied = nn.Linear(4, 4)
    tied.weight = a.weight
    for parts, message in (
        ([("a", a), ("a", fc)], "need names apart"),
        ([("a", a), ("a.b", fc)], "need names apart"),
        ([("", a), ("fc", fc)], "cannot be named ''"),
        ([("a..b", a), ("fc", fc)], r"cannot be named 'a\.\.b'"),
        ([("input", a), ("fc", fc)], "cannot be named 'input'"),
        ([(1, a), ("fc", fc)], "cannot be named 1"),
        ([("a", torch.relu), ("fc", fc)], "'a' is no nn.Module"),
        ([("a", a), ("b", b), ("c", a), ("fc", fc)], "module or tensor of part 'a'"),
        ([("a", a), ("b", tied), ("fc", fc)], "module or tensor of part 'a'"),
        ([("a", a), ("b", GivesTwo()), ("fc", fc)], "'b': gives a tuple"),
        ([("a", a), ("b", Complains()), ("fc", fc)], "'b': wrong$"),
        ([("a", a), ("b", nn.Flatten(0, 1)), ("c", nn.Linear(4, 2))], "take a batch of any size"),
        ([("b", nn.Flatten(0)), ("c", nn.Unflatten(0, (-1, 4)))], "'b' gives no tensor"),
    ):
        with pytest.raises(ChainError, match=message) as raised:
            Chain.of(parts, torch.zeros(1, 4))
        assert "\n" not in str(raised.value)
    with pytest.raises(ChainError, match="give a batch such as"):
        Chain.of([("a", a), ("fc", fc)], torch.zeros(4))


class TwoInputs(Branching):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x + y)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Functional("dict"), "returns a dict, not one tensor; wrap it"),
        (nn.Sequential(nn.Linear(32, 2), GivesTwo()), "returns a tuple, not one tensor; wrap it"),
        (TwoInputs(), r"does not run on a batch .*'y'.*; wrap it"),
        (Complains(), r"does not run on a batch of shape \(1, 3, 32, 32\) \(wrong\); wrap it"),
        (nn.Sequential(nn.Linear(5, 2)), r"does not run on a batch .*; wrap it"),
    ],
)
def test_a_network_of_another_kind_is_told_to_be_wrapped(network: nn.Module, message: str) -> None:
    with pytest.raises(ChainError, match=message) as raised:
        trace_chain(network, IMAGE)
    assert "\n" not in str(raised.value)


class OverwritesItsInput(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.sub_(1))


def test_an_untraced_network_that_overwrites_its_input_leaves_the_images_alone() -> None:
    network, images = OverwritesItsInput().eval(), torch.randn(2, 3, 32, 32)
    kept = images.clone()
    chain = trace_chain(network, images)
    assert len(chain) == 2
    for point in chain.cuts:
        trunk, top = cut(chain, point.depth)
        scores = top(trunk(images))
        assert torch.equal(images, kept)
        assert torch.equal(scores, network(images.clone()))
        names = set(trunk.state()) | set(top.state_dict())
        assert names == set(network.state_dict())


def test_forward_hooks_stay_with_the_caller() -> None:
    network, images = build("timm:resnet18")
    called = []
    network.layer1[0].register_forward_hook(lambda *_: called.append("plain"))
    network.layer1[0].register_forward_hook(lambda *_, **__: called.append("k"), with_kwargs=True)
    network.register_forward_hook(lambda *_: called.append("always"), always_call=True)
    chain = trace_chain(network, images)
    trunk, top = cut(chain, "layer3")
    top(trunk(images))
    assert called == []
    network(images)
    assert called == ["plain", "k", "always"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_the_old_style_works_through_its_hook() -> None:
    normed = nn.utils.weight_norm(nn.Linear(4, 4))
    network = nn.Sequential(normed, nn.ReLU(), nn.Linear(4, 2)).eval()
    images = torch.randn(3, 4)
    chain = trace_chain(network, images)
    trunk, top = cut(chain, "1")
    assert torch.equal(top(trunk(images)), network(images))
