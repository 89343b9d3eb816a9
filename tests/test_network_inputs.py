"""Other image sizes and channel counts: held against timm's own adaptation of the same weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from torch import nn
from torch.nn import functional
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from topwork.data.views import to_tensor
from topwork.errors import BackboneError, PlanError, WeightsError
from topwork.network.export import export_model
from topwork.network.folder import open_model, save_model
from topwork.network.inputs import InputChange, adapt_state, resample_positions, set_channels
from topwork.network.loading import Loaded, load_backbone
from topwork.network.model import Model, code_width
from topwork.network.spec import BackboneSpec, spec_for
from topwork.network.zoo import Backbone, find_backbone
from topwork.plan import Plan

HALF = [0.5, 0.5, 0.5]
FIRST_CONV = {"test_resnet": "conv1.0", "test_vit3": "patch_embed.proj", "test_vit": None}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 7}


def source(folder: Path, architecture: str, size: tuple[int, int], **model_args: Any) -> str:
    """Write a folder in timm's format, with random weights for three channels; return its path."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in model_args.items()}
        network = timm.create_model(architecture, num_classes=7, **arguments)
    state = network.state_dict()
    for number, (name, value) in enumerate(state.items()):  # nothing may be zero by its default
        if value.is_floating_point():
            generator = torch.Generator().manual_seed(number)
            state[name] = value + 0.05 * torch.rand(value.shape, generator=generator)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors"
    )
    facts = {
        **{"input_size": [3, *size], "crop_pct": 1.0, "interpolation": "bilinear"},
        **{"mean": HALF, "std": HALF, "num_classes": 7},
        **{
            "first_conv": FIRST_CONV.get(architecture),
            "fixed_input_size": "img_size" in model_args,
        },
    }
    config = {"architecture": architecture, "pretrained_cfg": facts, "model_args": model_args}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def loaded(name: str, weights: Path | None = None, **plan: Any) -> Loaded:
    return load_backbone(find_backbone(name, weights=weights), Plan(name, **plan))


def images(size: tuple[int, int], channels: int = 3, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, channels, *size, generator=generator)


def assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


def same_but_for(found: Loaded, oracle: nn.Module, *adapted: str) -> nn.Module:
    """Compare all tensors but the source's head, which no plan reuses; return ours with it."""
    network = found.chain.network
    ours, theirs = network.state_dict(), oracle.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if found.accounting and name not in found.accounting.reused:
            value.copy_(theirs[name])
        elif name not in adapted:
            assert torch.equal(value, theirs[name]), name
    return network


# --- sizes ---------------------------------------------------------------------------------------

VITS: dict[str, dict[str, Any]] = {
    "class token": {"architecture": "test_vit", "img_size": [96, 96]},
    "class and register tokens": {"architecture": "test_vit3", "img_size": [96, 96]},
    "class and distillation token": {
        **{"architecture": "deit_tiny_distilled_patch16_224", "img_size": [64, 64]},
        **{"depth": 1, "embed_dim": 24, "num_heads": 2},
    },
    "embedding without prefix": {
        **{"architecture": "test_vit", "img_size": [96, 96], "no_embed_class": True},
    },
}


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("size", [(128, 128), (48, 80)])
def test_position_embeddings_are_resampled_as_timm_does(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    arguments = dict(VITS[kind])
    folder = source(
        tmp_path / "source",
        arguments.pop("architecture"),
        tuple(arguments["img_size"]),
        **arguments,
    )
    found = loaded(folder, input_size=size)
    oracle = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
    network = same_but_for(found, oracle)
    assert found.accounting is not None
    assert found.accounting.adapted == ("pos_embed",)
    assert "reused (1 adapted to other images)" in found.accounting.describe()
    assert found.backbone.preprocessing.size == size
    with torch.no_grad():
        assert torch.equal(network(images(size)), oracle(images(size)))


@pytest.mark.parametrize("size", [(64, 32), (16, 128), (48, 48)])
def test_sources_need_not_be_square(size: tuple[int, int], tmp_path: Path) -> None:
    # (64, 32) and (16, 128) have as many patches as the source: the grid differs all the same.
    folder = source(tmp_path / "source", "test_vit", (32, 64), img_size=[32, 64])
    network = loaded(folder, input_size=size).chain.network
    old = timm.create_model(f"local-dir:{folder}", pretrained=True).pos_embed.detach()
    grid = old[:, 1:].reshape(1, 2, 4, -1).permute(0, 3, 1, 2)
    rows, columns = size[0] // 16, size[1] // 16
    expected = functional.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    found = network.pos_embed.detach()
    assert torch.equal(found[:, :1], old[:, :1])
    for row in range(rows):
        for column in range(columns):
            token = found[0, 1 + row * columns + column]
            assert torch.equal(token, expected[0, :, row, column])


def small_torchvision_vit(side: int) -> nn.Module:
    torch.manual_seed(1)
    return VisionTransformer(side, 8, 1, 2, 16, 32, num_classes=3)


def test_torchvisions_vision_transformer_is_treated_as_timms_is() -> None:
    before, after = small_torchvision_vit(32), small_torchvision_vit(48)
    given = before.state_dict()
    fitted = adapt_state(given, after, InputChange((32, 32), (48, 48), 3, 3))
    assert list(fitted) == ["encoder.pos_embedding"]
    after.load_state_dict({**given, **fitted})
    old, new = given["encoder.pos_embedding"], fitted["encoder.pos_embedding"]
    assert torch.equal(new[:, :1], old[:, :1])
    expected = timm.layers.resample_abs_pos_embed(old, new_size=[6, 6], num_prefix_tokens=1)
    assert torch.equal(new, expected)


def test_torchvisions_own_way_differs_in_where_it_puts_the_corners() -> None:
    given = torch.randn(1, 17, 5, generator=torch.Generator().manual_seed(0))
    grid = given[:, 1:].reshape(1, 4, 4, 5).permute(0, 3, 1, 2)
    ours = resample_positions(given, (8, 8), InputChange((32, 32), (48, 48), 3, 3))
    theirs = interpolate_embeddings(48, 8, {"encoder.pos_embedding": given.clone()})
    corners = {"mode": "bicubic", "align_corners": True}
    edges = {"mode": "bicubic", "align_corners": False, "antialias": True}
    for found, way in ((ours, edges), (theirs["encoder.pos_embedding"], corners)):
        assert found is not None
        expected = functional.interpolate(grid, 6, **way).permute(0, 2, 3, 1).reshape(1, 36, 5)
        assert torch.equal(found, torch.cat([given[:, :1], expected], 1))


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_tables_of_relative_positions_are_resampled_as_timm_does(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    folder = source(tmp_path / "source", name, (56, 56), img_size=[56, 56], **SWIN)
    found = loaded(folder, input_size=(32, 40))
    oracle = timm.create_model(name, num_classes=7, img_size=(32, 40), **SWIN)
    given = dict(timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict())
    oracle.load_state_dict(swin_filter(given, oracle))
    assert found.accounting is not None
    assert found.accounting.adapted == ("layers.1.blocks.0.attn.relative_position_bias_table",)
    same_but_for(found, oracle)


@pytest.mark.parametrize("size", [(40, 40), (100, 60), (96, 160)])
def test_convolutions_take_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "test_resnet", (64, 64))
    found = loaded(folder, input_size=size)
    assert found.accounting is not None
    assert found.accounting.adapted == ()
    assert found.chain.cuts[0].shape == (3, *size)
    oracle = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    network = same_but_for(found, oracle)
    with torch.no_grad():
        assert torch.equal(network(images(size)), oracle(images(size)))


def test_what_the_plan_leaves_out_stays(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "test_vit", (96, 96), img_size=[96, 96])
    backbone = find_backbone(folder)
    assert load_backbone(backbone, Plan(folder)).backbone == backbone
    again = load_backbone(backbone, Plan(folder, input_size=(96, 96), channels=3))
    assert again.backbone == backbone
    view = loaded(folder, input_size=(64, 64)).backbone.preprocessing
    assert (view.crop, view.interpolation, view.mean) == (1.0, "bilinear", (0.5, 0.5, 0.5))


# --- channels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit3"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_input_convolutions_are_adapted_as_timm_does(
    architecture: str, channels: int, tmp_path: Path
) -> None:
    size = {"img_size": [96, 96]} if "vit" in architecture else {}
    folder = source(tmp_path / "source", architecture, (96, 96), **size)
    found = loaded(folder, channels=channels)
    oracle = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=channels).eval()
    same_but_for(found, oracle)
    assert found.accounting is not None
    assert found.accounting.adapted == (f"{FIRST_CONV[architecture]}.weight",)
    assert found.backbone.spec.channels == found.backbone.preprocessing.channels == channels


OTHERS = [
    *("torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"),
    *("topwork:cifar_resnet20", "topwork:small_convnet"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_networks_without_such_an_argument_are_adapted_too(name: str, tmp_path: Path) -> None:
    """A gray image gives what its copies gave, a doubled one what it gave before."""
    network = find_backbone(name).spec.build()
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    size = (64, 64)
    colors = {1: images(size, 1).repeat(1, 3, 1, 1), 6: images(size)}
    given = {1: images(size, 1), 6: images(size).repeat(1, 2, 1, 1)}
    for channels in (1, 6):
        found = loaded(name, file, input_size=size, channels=channels)
        assert found.accounting is not None
        assert len(found.accounting.adapted) == 1
        with torch.no_grad():
            ours = same_but_for(found, network, found.accounting.adapted[0])
            assert_close(ours(given[channels]), network(colors[channels]))
        built = BackboneSpec.from_dict(found.backbone.spec.to_dict()).build()
        assert built.state_dict().keys() == network.state_dict().keys()


def test_a_gray_photo_gives_what_its_rgb_copy_gave(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "test_resnet", (64, 64))  # its three means are equal
    gray, rgb = loaded(folder, channels=1), loaded(folder)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8)
    with torch.no_grad():
        ours = same_but_for(gray, rgb.chain.network, "conv1.0.weight")
        found = ours(to_tensor(pixels, gray.backbone.preprocessing))
        copies = to_tensor(pixels.repeat(3, axis=3), rgb.backbone.preprocessing)
        assert_close(found, rgb.chain.network(copies))


def test_random_weights_of_other_channels_follow_from_the_seed_alone() -> None:
    plan = Plan("topwork:cifar_resnet20", reused="input", frozen_random=True, channels=2)
    backbone = find_backbone(plan.backbone)
    first, second = (load_backbone(backbone, plan, seed=4) for _ in range(2))
    state = same_but_for(first, second.chain.network).state_dict()
    rgb = load_backbone(backbone, Plan(**{**vars(plan), "channels": None}), seed=4).chain.network
    weight = rgb.state_dict()["conv1.weight"]
    assert torch.equal(state["conv1.weight"], weight[:, :2] * 1.5)


def test_a_file_that_has_the_channels_already_is_taken_as_it_is(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=7, in_chans=4)
    save_file(network.state_dict(), tmp_path / "four.safetensors")
    folder = source(tmp_path / "source", "test_resnet", (64, 64))
    found = loaded(folder, tmp_path / "four.safetensors", channels=4)
    assert found.accounting is not None
    assert found.accounting.adapted == ()
    same_but_for(found, network)


# --- the model folder ----------------------------------------------------------------------------


def saved(folder: Path, found: Loaded) -> Model:
    pool = str(found.plan.pool)
    width = code_width(found.chain, found.plan.codes, pool)
    model = Model(found.chain, found.plan.codes, pool, width, 3).eval()
    save_model(folder, model, found, ("a", "b", "c"))
    return model


@pytest.mark.parametrize(
    ("architecture", "size", "channels"),
    [
        *[("test_resnet", (40, 72), None), ("test_resnet", None, 1)],
        *[("test_vit", (64, 128), None), ("test_vit", (32, 32), 4)],
    ],
)
def test_the_folder_rebuilds_itself_and_opens_in_timm(
    architecture: str, size: tuple[int, int] | None, channels: int | None, tmp_path: Path
) -> None:
    fixed = {"img_size": [96, 96]} if "vit" in architecture else {}
    folder = source(tmp_path / "source", architecture, (96, 96), **fixed)
    found = loaded(folder, input_size=size, channels=channels)
    model = saved(tmp_path / "model", found)
    opened = open_model(tmp_path)
    assert opened.why_not_timm is None
    assert opened.preprocessing == found.backbone.preprocessing
    assert opened.preprocessing.size == (size or (96, 96))
    network = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    facts = config["pretrained_cfg"]
    assert facts["input_size"] == [channels or 3, *(size or (96, 96))]
    # An older timm would adapt the convolutions named here once more, or drop their weights.
    assert ("first_conv" in facts) == (channels is None)
    given = images(size or (96, 96), channels or 3)
    with torch.no_grad():
        expected = model(given)
        assert torch.equal(opened.model(given), expected)
        assert torch.equal(network(given), expected)


def test_other_libraries_rebuild_themselves_and_export(tmp_path: Path) -> None:
    name = "topwork:cifar_resnet20"
    plan = {"reused": "input", "frozen_random": True, "input_size": (24, 40), "channels": 6}
    model = saved(tmp_path / "model", loaded(name, **plan))
    opened = open_model(tmp_path)
    given = images((24, 40), 6)
    program = torch.export.load(export_model(opened, "pt2", tmp_path / "model.pt2"))
    with torch.no_grad():
        assert torch.equal(opened.model(given), model(given))
        assert_close(program.module()(given), model(given))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plan", "error", "message"),
    [
        ("timm:test_vit", {"input_size": (100, 90)}, PlanError, "such as [96, 96]"),
        ("timm:test_vit", {"input_size": (5, 64)}, PlanError, "such as [16, 64]"),
        ("torchvision:vit_b_32", {"input_size": (64, 96)}, PlanError, "squares"),
        ("torchvision:vit_b_32", {"input_size": (70, 70)}, PlanError, "such as [64, 64]"),
        ("torchvision:alexnet", {"input_size": (20, 20)}, BackboneError, "choose another size"),
        ("torchvision:googlenet", {"channels": 1}, BackboneError, "choose another network"),
    ],
)
def test_what_is_impossible_is_refused_in_a_line(
    name: str, plan: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        loaded(name, reused="input", frozen_random=True, **plan)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_know_their_size_otherwise_are_refused(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "gmlp_ti16_224", (64, 64), img_size=[64, 64])
    said = r"it is for 64x64 pixels, channels: 3, .*leave out input_size"
    with pytest.raises(WeightsError, match=said):
        loaded(folder, input_size=(96, 96))
    own = find_backbone(folder)
    gray = replace(own, preprocessing=replace(own.preprocessing, mean=(0.5,), std=(0.5,)))
    with pytest.raises(WeightsError, match="64x64 pixels, channels: 1, "):
        load_backbone(gray, Plan("gray", input_size=(96, 96)))
    free = loaded(folder, input_size=(96, 96), reused="input", frozen_random=True)
    assert free.chain.cuts[0].shape == (3, 96, 96)


def test_a_network_whose_input_layer_cannot_be_found_is_refused() -> None:
    for network in (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), nn.Conv2d(6, 2, 1)):
        with pytest.raises(BackboneError, match="no convolution that reads the image is found"):
            set_channels(network, 4)


def test_the_size_is_an_argument_only_where_the_architecture_needs_it() -> None:
    def arguments(name: str) -> dict[str, Any]:
        library, _, architecture = name.partition(":")
        return spec_for(BackboneSpec(library, architecture, {}), (64, 64), 3).arguments

    assert arguments("timm:resnet18") == arguments("torchvision:swin_t") == {}
    assert arguments("topwork:small_convnet") == {}
    assert arguments("timm:vit_tiny_patch16_224") == {"img_size": [64, 64]}
    assert arguments("torchvision:vit_b_16") == {"image_size": 64}
    assert arguments("torchvision:maxvit_t") == {"input_size": [64, 64]}
    assert get_model("maxvit_t", input_size=(224, 448)) is not None
    assert isinstance(find_backbone("timm:test_vit"), Backbone)
