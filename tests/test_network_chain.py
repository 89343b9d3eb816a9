import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import ARCHITECTURES, build, snapshot
from topwork.errors import ChainError
from topwork.network.chain import Chain, trace_chain
from topwork.network.cut import Trunk, cut, segment

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
