"""Models and their tops: the same bits wherever they are cut, the same tensors under one name."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn

from topwork.errors import ModelError
from topwork.network.chain import Chain, CutPoint, trace_chain
from topwork.network.codes import choose_pool
from topwork.network.cut import Trunk
from topwork.network.model import Model, Top, code_width, hidden_layers
from topwork.network.small_convnet import small_convnet
from topwork.plan import Hidden

ADDED = (Hidden(5, norm="batch", dropout=0.5), Hidden(4, activation="gelu", norm="layer"))


class InPlace(nn.Module):
    """A block that overwrites its input."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv(self.activation(maps))


def overwriting() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        *(InPlace() for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 6),
    )


class Mixing(nn.Module):
    """A block on maps whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.linear(self.norm(maps))


class Mean(nn.Module):
    """Pooling of maps whose channels come last."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((1, 2))


class Turn(nn.Module):
    """A convolution that puts the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).permute(0, 2, 3, 1)


def channels_last() -> nn.Module:
    return nn.Sequential(
        Turn(), Mixing(), nn.Sequential(Mixing(), Mixing()), Mean(), nn.Linear(4, 6)
    )


def headless() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())


NETWORKS = {
    "convolutions": (lambda: small_convnet((4, 5, 6), num_classes=6), 8),
    "residual": (lambda: timm.create_model("test_resnet", num_classes=6), 32),
    "tokens": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3), 32),
    "channels last": (channels_last, 10),
    "overwriting": (overwriting, 8),
    "untraceable": (lambda: timm.create_model("test_vit", num_classes=6), 160),
}


@cache
def chain_of(name: str) -> tuple[Chain, Tensor, dict[int, Tensor]]:
    """Return a chain that is not at its defaults, three images, and what crosses each cut."""
    build, size = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)  # timm begins with branches that give zero
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        images = torch.randn(3, 3, size, size)
    chain = trace_chain(network, images[:1])
    trunk = Trunk(chain, range(len(chain)))
    crossing = {cut.depth: value.clone() for cut, value in trunk.outputs(images.clone())}
    return chain, images, crossing


def make_model(chain: Chain, codes: tuple[str, ...], added: tuple[Hidden, ...] = ()) -> Model:
    pool = choose_pool(chain, [chain.resolve(name) for name in codes], None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        width = code_width(chain, codes, pool)
        return Model(chain, codes, pool, width, 6, added).eval()


def choices(chain: Chain) -> list[tuple[tuple[str, ...], tuple[Hidden, ...]]]:
    """Return codes and added layers: L alone, an earlier depth, several that are not in order."""
    names = [cut.name for cut in chain.cuts]
    middle = names[len(names) // 2]
    several = tuple(dict.fromkeys((middle, names[-1], names[1])))
    return [((names[-1],), ()), ((middle,), ADDED), (several, ()), (several, ADDED)]


def inputs_of(
    model: Model, codes: list[CutPoint], frozen: CutPoint, crossing: dict[int, Tensor]
) -> tuple[Tensor, ...]:
    """Return what a top takes: map first, then pooled codes, the lowest first."""
    codes = sorted(codes, key=lambda cut: cut.depth)
    with torch.no_grad():
        pooled = tuple(
            pool(crossing[cut.depth].clone())
            for cut, pool in zip(codes, model.pools, strict=True)
            if cut.depth <= frozen.depth
        )
    takes_map = codes[-1].depth > frozen.depth
    return (crossing[frozen.depth].clone(), *pooled) if takes_map else pooled


@pytest.mark.parametrize("name", NETWORKS)
def test_a_top_gives_the_models_bits_at_every_cut(name: str):
    chain, images, crossing = chain_of(name)
    for names, added in choices(chain):
        model = make_model(chain, names, added)
        codes = [chain.resolve(code) for code in names]
        kept = max(cut.depth for cut in codes)
        with torch.no_grad():
            expected = model(images.clone())
            for frozen in chain.cuts[: kept + 1]:
                top = Top(chain, model, names, frozen).eval()
                inputs = inputs_of(model, codes, frozen, crossing)
                given = [value.clone() for value in inputs]
                assert torch.equal(top(*inputs), expected), (names, frozen.name)
                assert all(map(torch.equal, inputs, given)), (names, frozen.name)
                assert top.takes_map == (frozen.depth < kept)


@pytest.mark.parametrize("name", ["convolutions", "tokens"])
def test_codes_side_by_side_may_come_as_one_tensor(name: str):
    chain, images, crossing = chain_of(name)
    codes = list(chain.cuts[-2:])
    names = tuple(cut.name for cut in codes)
    model = make_model(chain, names)
    inputs = inputs_of(model, codes, codes[-1], crossing)
    top = Top(chain, model, names, codes[-1]).eval()
    with torch.no_grad():
        assert torch.equal(top(torch.cat(inputs, 1)), model(images.clone()))


@pytest.mark.parametrize("name", NETWORKS)
def test_with_the_sources_head_the_model_is_the_source_network(name: str):
    chain, images, _ = chain_of(name)
    head = chain.network.get_submodule(str(chain.head))
    model = make_model(chain, (chain.top.name,))
    model.head = head
    with torch.no_grad():
        assert torch.equal(model(images.clone()), chain.network(images.clone()))


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_modules_have_the_sources_names(name: str):
    chain, images, _ = chain_of(name)
    source = dict(chain.network.named_parameters())
    depth_of = chain.depth_of_state()
    codes = (chain.top.name,)
    model = make_model(chain, codes, ADDED)
    gradients = torch.autograd.grad(
        chain.network(images.clone()).sum(), list(source.values()), allow_unused=True
    )
    used = {key for key, value in zip(source, gradients, strict=True) if value is not None}
    for frozen in chain.cuts:
        top = Top(chain, model, codes, frozen)
        named = top.layer_parameters()
        reused = {key for key in named if key in source and not key.startswith(f"{chain.head}.")}
        assert all(named[key] is source[key] for key in reused)
        assert reused == {key for key in used if frozen.depth < depth_of[key] <= chain.top.depth}
        new = named.keys() - reused
        assert new == {
            *(f"added.{key}" for key, _ in model.added.named_parameters()),
            f"{chain.head}.weight",
            f"{chain.head}.bias",
        }
        assert named.keys() <= model.layer_state().keys()
        assert sorted(map(id, named.values())) == sorted(map(id, top.parameters()))
        own = {
            f"{path}.{key}": parameter
            for path, module in top.layers()
            for key, parameter in module.named_parameters(recurse=False)
        }
        # a parameter of the network itself, such as a class token, belongs to no layer of it
        assert {key for key in named if "." in key} == own.keys()
        assert all(own[key] is named[key] for key in own)


def test_what_is_trained_through_a_top_is_the_models():
    chain, images, crossing = chain_of("residual")
    names = ("layer2", chain.top.name)
    model = make_model(chain, names, ADDED)
    frozen = chain.resolve("layer1")
    top = Top(chain, model, names, frozen)
    inputs = inputs_of(model, [chain.resolve(name) for name in names], frozen, crossing)
    before = {key: value.clone() for key, value in model.layer_state().items()}
    with torch.no_grad():
        scores = model(images)
    optimizer = torch.optim.SGD(top.parameters(), lr=0.1)
    top.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of dropout: a bias below a batch norm hardly moves, or not at all
        top(*inputs).square().sum().backward()
    optimizer.step()
    top.eval()
    with torch.no_grad():
        assert torch.equal(top(*inputs), model.eval()(images))
        assert not torch.allclose(model(images), scores)
    depth_of = chain.depth_of_state()
    for key, value in model.layer_state().items():
        is_new = key.startswith(("added.", f"{chain.head}."))
        changed = is_new or depth_of[key] > frozen.depth
        assert torch.equal(value, before[key]) != changed, key
    for key, value in chain.network.state_dict().items():
        if depth_of[key] <= chain.top.depth:
            assert value.data_ptr() == model.layer_state()[key].data_ptr()
    chain_of.cache_clear()


def test_nothing_below_the_cut_belongs_to_a_top():
    chain, *_ = chain_of("convolutions")
    model = make_model(chain, (chain.top.name,))
    top = Top(chain, model, (chain.top.name,), chain.resolve("block2"))
    assert top.layer_parameters().keys() == {
        "block3.conv.weight",
        "block3.norm.weight",
        "block3.norm.bias",
        "classifier.weight",
        "classifier.bias",
    }
    pointers = {value.data_ptr() for value in top.state_dict().values()}
    below = [v for k, v in model.layer_state().items() if k.startswith(("block1", "block2"))]
    assert len(below) == 12
    assert not pointers & {value.data_ptr() for value in below}


def test_a_network_without_a_head_gets_one():
    chain = trace_chain(headless().eval(), torch.zeros(1, 3, 8, 8))
    model = make_model(chain, (chain.top.name,))
    assert model.layer_state().keys() >= {"head.weight", "head.bias"}
    top = Top(chain, model, (chain.top.name,), chain.top)
    assert top.layer_parameters().keys() == {"head.weight", "head.bias"}


def test_hidden_layers_written_out_by_hand():
    layers = hidden_layers(7, [Hidden(5, "tanh"), Hidden(4, "silu", "layer", 0.3)]).eval()
    first, _, second, norm, _, dropout = layers
    assert dropout.p == 0.3
    codes = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    inner = torch.tanh(codes @ first.weight.T + first.bias) @ second.weight.T + second.bias
    mean, variance = inner.mean(1, keepdim=True), inner.var(1, correction=0, keepdim=True)
    inner = (inner - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(layers(codes), inner * torch.sigmoid(inner), rtol=1e-4, atol=1e-5)
    batch = hidden_layers(7, [Hidden(5, "relu", "batch")])
    assert [type(layer) for layer in batch] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert list(hidden_layers(7, [])) == []


def test_a_state_of_another_model_is_refused_by_name():
    chain, *_ = chain_of("convolutions")
    model = make_model(chain, (chain.top.name,), (Hidden(4),))
    state = {key: value.clone() + 1 for key, value in model.layer_state().items()}
    model.load_layer_state(state, "f")
    assert all(torch.equal(value, state[key]) for key, value in model.layer_state().items())
    lacking = {key: value for key, value in state.items() if key != "added.0.bias"}
    with pytest.raises(ModelError, match=r"f lacks 1 tensors, the first 'added\.0\.bias'"):
        model.load_layer_state(lacking, "f")
    with pytest.raises(ModelError, match=r"f holds, beyond the model, 1 .* 'added\.9\.weight'"):
        model.load_layer_state({**state, "added.9.weight": torch.ones(1)}, "f")
    wrong = {**state, "added.0.bias": torch.ones(3)}
    with pytest.raises(
        ModelError, match=r"added\.0\.bias has shape \(3,\), the model needs \(4,\)"
    ):
        model.load_layer_state(wrong, "f")
    chain_of.cache_clear()
