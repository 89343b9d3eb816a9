"""Backbones by name, their data form, and fetching; no test touches the network."""

import json
import logging
import math
import warnings
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from topwork.errors import BackboneError
from topwork.network import fetch
from topwork.network.cifar_resnet import CifarResNet
from topwork.network.fetch import WeightsSource, fetch_from_hub, fetch_from_url, weights_file
from topwork.network.loading import build_chain
from topwork.network.shipped import SHIPPED
from topwork.network.small_convnet import ConvBlock, small_convnet
from topwork.network.zoo import BackboneSpec, _crop_fraction, catalog, find_backbone

SHARED = Path(__file__).parents[1] / "../shared"
needs_weights = pytest.mark.skipif(not SHARED.is_dir(), reason="real weights are not here")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "canonical", "library"),
    [
        ("timm:resnet18", "timm:resnet18", "timm"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k", "timm"),
        ("resnet18", "timm:resnet18", "timm"),
        ("torchvision:resnet18", "torchvision:resnet18", "torchvision"),
        ("squeezenet1_1", "torchvision:squeezenet1_1", "torchvision"),
        ("cifar_resnet20", "topwork:cifar_resnet20", "topwork"),
        ("topwork:small_convnet", "topwork:small_convnet", "topwork"),
    ],
)
def test_names_are_found_and_can_be_typed_again(name, canonical, library):
    backbone = find_backbone(name)
    assert (backbone.name, backbone.spec.library) == (canonical, library)
    assert find_backbone(backbone.name) == backbone


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", r"timm has no network 'resnet81'; did you mean 'resnet18'\?"),
        ("timm:resnet18.a9_in1k", "timm has no weights 'a9_in1k' for resnet18; did you mean 'resn"),
        ("torchvision:resnet81", r"torchvision has no network 'resnet81'; did you mean 'resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is not a float image classifier"),
        ("quantized_resnet18", "is not a float image classifier"),
        ("topwork:cifar_resnet21", "topwork has no network 'cifar_resnet21'; did you mean 'cifar"),
        ("squeezenet1_2", r"no network is called 'squeezenet1_2'; did you mean 'squeezenet1_"),
        ("zzzzqqqq", "no network is called 'zzzzqqqq'; write timm:NAME, torchvision:NAME"),
        ("keras:resnet50", "unknown kind of name 'keras'; write timm:NAME"),
        ("no/such/folder", "no such folder; a repository of the Hugging Face hub is written hf-hu"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(name, message):
    with pytest.raises(BackboneError, match=message) as caught:
        find_backbone(name)
    assert "\n" not in str(caught.value)


def test_a_renamed_timm_model_is_found_under_its_new_name():
    old, new = next((o, n) for o, n in timm.models.get_deprecated_models().items() if n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = find_backbone(f"timm:{old}")
    assert backbone.name == f"timm:{new}"


def test_own_weights_replace_the_published_ones_and_their_license():
    published = find_backbone("timm:resnet18")
    own = find_backbone("timm:resnet18", weights="somewhere/w.safetensors")
    assert published.weights == WeightsSource("hub", "timm/resnet18.a1_in1k")
    assert published.about["license"] == "apache-2.0"
    assert own.weights == WeightsSource("file", "somewhere/w.safetensors")
    assert "license" not in own.about
    assert "license" not in own.about["pretrained_cfg"]
    assert own.spec == published.spec


# --- specifications -----------------------------------------------------------------------------

TINY = [name for name in timm.list_models("test_*") if "naflex" not in name]


@pytest.mark.parametrize("name", TINY)
def test_timm_networks_are_what_timm_builds(name):
    backbone = find_backbone(f"timm:{name}")
    network = backbone.spec.build()
    assert shapes(network) == shapes(timm.create_model(name))
    assert not network.training
    view = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    preprocessing = backbone.preprocessing
    assert (3, *preprocessing.size) == view["input_size"]
    assert preprocessing.crop == view["crop_pct"]
    assert preprocessing.interpolation == view["interpolation"]
    assert (preprocessing.mean, preprocessing.std) == (view["mean"], view["std"])
    with torch.no_grad():
        assert network(torch.zeros(1, *view["input_size"])).shape[0] == 1


@pytest.mark.parametrize(
    "name",
    [
        "timm:convnext_nano.in12k",
        "timm:vit_small_patch14_dinov2",
        "timm:vit_base_patch16_clip_384.openai_ft_in12k_in1k",
        "torchvision:squeezenet1_1",
        "torchvision:vit_h_14",
        "topwork:cifar_resnet56",
        "topwork:small_convnet",
    ],
)
def test_a_specification_survives_json_and_rebuilds_the_same(name):
    spec = find_backbone(name).spec
    again = BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    with torch.device("meta"):
        assert shapes(again.build()) == shapes(spec.build())


def test_arguments_follow_the_tag_of_the_weights():
    assert find_backbone("timm:convnext_nano.in12k").spec.arguments == {"num_classes": 11821}
    dino = find_backbone("timm:vit_small_patch14_dinov2").spec
    assert dino.arguments == {"num_classes": 0, "img_size": [518, 518]}


def test_build_is_offline_float32_in_eval_mode_and_silent(recwarn, caplog, capfd):
    network = find_backbone("torchvision:squeezenet1_1").spec.build()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not any(module.training for module in network.modules())
    assert not recwarn.list
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"library": "timm", "architecture": "resnet18"}, "key 'arguments' is missing"),
        (
            {"library": "timm", "architecture": "resnet18", "arguments": {}, "argument": 1},
            r"key 'argument' is unknown; did you mean 'arguments'\?",
        ),
        ({"library": "timm", "architecture": 3, "arguments": {}}, "architecture must be a str"),
        ({"library": "keras", "architecture": "a", "arguments": {}}, "library 'keras' is none of"),
        (
            {"library": "timm", "architecture": "resnet18", "arguments": {"checkpoint_path": "x"}},
            "argument 'checkpoint_path' does not belong to an architecture",
        ),
    ],
)
def test_a_wrong_specification_is_refused(data, message):
    with pytest.raises(BackboneError, match=message):
        BackboneSpec.from_dict(data)


@pytest.mark.parametrize(
    ("library", "architecture", "message"),
    [
        ("timm", "resnet18", "timm cannot build resnet18 with .*wings"),
        ("torchvision", "resnet18", "torchvision cannot build resnet18 with .*wings"),
        ("topwork", "small_convnet", "topwork cannot build small_convnet with .*wings"),
        ("topwork", "small_convnets", "did you mean 'small_convnet'"),
    ],
)
def test_what_cannot_be_built_says_why(library, architecture, message):
    with pytest.raises(BackboneError, match=message) as caught:
        BackboneSpec(library, architecture, {"wings": 2}).build()
    assert "\n" not in str(caught.value)


def test_a_network_of_two_inputs_is_refused(monkeypatch):
    class Two(nn.Module):
        def forward(self, images, mask):
            return images * mask

    monkeypatch.setattr(timm, "create_model", lambda *a, **k: Two())
    with pytest.raises(BackboneError, match=r"resnet18: needs 2 inputs \(images, mask\)"):
        BackboneSpec("timm", "resnet18", {}).build()


# --- torchvision --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_classifier_has_its_own_view(name):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    view = find_backbone(f"torchvision:{name}").preprocessing
    assert view.size == (preset.crop_size[0],) * 2
    assert math.floor(view.size[0] / view.crop) == preset.resize_size[0]
    assert view.interpolation == preset.interpolation.value


def test_a_crop_fraction_gives_the_resized_size_back_in_spite_of_rounding():
    for size in (32, 160, 224, 299):
        for resized in range(size, 700):
            assert math.floor(size / _crop_fraction(size, resized)) == resized


def test_inception_is_built_as_its_pretrained_weights_expect_it():
    arguments = find_backbone("torchvision:inception_v3").spec.arguments
    assert arguments["transform_input"]
    assert arguments["aux_logits"]


# --- folders ------------------------------------------------------------------------------------


def write_folder(folder: Path, **changes) -> Path:
    config = {
        "architecture": "test_resnet",
        "num_classes": 7,
        "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 0.9, "mean": [0.5] * 3},
        "model_args": {"global_pool": "max"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


def test_a_folder_in_timms_format(tmp_path):
    backbone = find_backbone(str(write_folder(tmp_path / "net")))
    assert backbone.name == str(tmp_path / "net")
    assert backbone.spec.arguments == {"num_classes": 7, "global_pool": "max"}
    assert (backbone.preprocessing.size, backbone.preprocessing.crop) == ((96, 96), 0.9)
    assert backbone.weights is None
    (tmp_path / "net/model.safetensors").write_bytes(b"")
    found = find_backbone(str(tmp_path / "net"))
    assert found.weights == WeightsSource("file", str(tmp_path / "net/model.safetensors"))
    assert weights_file(found.weights) == tmp_path / "net/model.safetensors"


def test_an_old_flat_folder(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"architecture": "test_resnet", "num_classes": 4, "input_size": [3, 64, 64]}',
        encoding="utf-8",
    )
    backbone = find_backbone(str(tmp_path))
    assert backbone.preprocessing.size == (64, 64)
    assert backbone.spec.arguments == {"num_classes": 4}


def test_a_vit_of_another_size_in_a_folder(tmp_path):
    folder = write_folder(
        tmp_path,
        architecture="test_vit",
        pretrained_cfg={"input_size": [3, 160, 160], "fixed_input_size": True},
        model_args={"img_size": 64},
    )
    backbone = find_backbone(str(folder))
    assert backbone.spec.arguments == {"num_classes": 7, "img_size": 64}
    assert backbone.preprocessing.size == (64, 64)
    assert backbone.spec.build()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "names no 'architecture'"),
        ({"architecture": "test_resnets"}, "timm has no network 'test_resnets'; did you mean"),
        ({"model_args": [1]}, "pretrained_cfg and model_args must be objects"),
        ({"pretrained_cfg": {"input_size": 96}}, "its pretrained_cfg is not timm's"),
        ({"pretrained_cfg": {"interpolation": "psychic"}}, "unknown interpolation 'psychic'"),
        ({"model_args": {"in_chans": 1}}, "takes 1 channels, not 3"),
        ({"model_args": {"pretrained": True}}, "argument 'pretrained' does not belong"),
    ],
)
def test_a_wrong_folder_says_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(BackboneError, match=message):
        find_backbone(str(write_folder(tmp_path, **changes)))


def test_other_paths_say_what_they_are(tmp_path, monkeypatch):
    with pytest.raises(BackboneError, match=r"has no config\.json"):
        find_backbone(str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(BackboneError, match="is a file; name the network with --backbone"):
        find_backbone(str(tmp_path / "w.safetensors"))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BackboneError, match="is not readable JSON"):
        find_backbone(str(tmp_path))
    (tmp_path / "topwork.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BackboneError, match=r"topwork\.json is damaged"):
        find_backbone(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()  # a run folder of this name must not hide the network
    assert find_backbone("resnet18").name == "timm:resnet18"


# --- our own networks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_cifar_resnets_have_the_published_size_and_depth(depth, millions):
    network = find_backbone(f"topwork:cifar_resnet{depth}").spec.build()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_the_shortcut_has_no_parameters_and_pads_both_sides():
    block = CifarResNet(20).layer2[0]
    maps = torch.rand(2, 16, 7, 7)
    short = block.shortcut(maps)
    assert not list(block.shortcut.parameters())
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = maps[:, :, [0, 2, 4, 6]][:, :, :, [0, 2, 4, 6]]
    assert torch.equal(short, expected)


@needs_weights
def test_the_cifar_resnet_is_the_published_network():
    """91.78 % on CIFAR-10; 81.9 % on this third, whose JPEG compression costs the rest."""
    import io
    import zipfile

    import numpy as np
    from PIL import Image

    from topwork.data.views import render, to_tensor
    from topwork.network.weights import assign_weights, read_state

    file = SHARED / "weights/cifar10_resnet20-12fca82f.th"
    backbone = find_backbone("topwork:cifar_resnet20")
    network = backbone.spec.build()
    depth = dict.fromkeys(network.state_dict(), 1)
    assign_weights(network, read_state(file), depth, ("input", "all"), 1, 1, file.name)
    with zipfile.ZipFile(SHARED / "data/cifar10_third_jpg.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/") and ".jpg" in n)[::5]
        images = [Image.open(io.BytesIO(archive.read(name))) for name in names]
        pixels = np.stack([render(image, backbone.preprocessing) for image in images])
    folders = [name.split("/")[1] for name in names]
    labels = torch.tensor([sorted(set(folders)).index(folder) for folder in folders])
    with torch.no_grad():
        guesses = network(to_tensor(pixels, backbone.preprocessing)).argmax(1)
    assert (guesses == labels).float().mean() > 0.78


@pytest.mark.parametrize("size", [4, 8, 17, 32])
def test_the_small_convnet_takes_any_small_size(size):
    backbone = find_backbone("topwork:small_convnet")
    spec = replace(backbone.spec, arguments={"channels": [4, 8, 12], "num_classes": 3})
    network = spec.build()
    images = torch.rand(2, 3, size, size)
    assert network(images).shape == (2, 3)
    by_hand = images
    for layer in network:
        by_hand = layer(by_hand)
    assert torch.equal(by_hand, network(images))
    assert [n for n, m in network.named_children() if isinstance(m, ConvBlock)] == [
        "block1",
        "block2",
        "block3",
    ]


def test_a_single_block_needs_no_pooling():
    assert [type(layer).__name__ for layer in small_convnet((4,), 2)] == [
        "ConvBlock",
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
    ]


# --- the short list -----------------------------------------------------------------------------


FAST = 400_000_000  # multiply-adds: larger networks take seconds to trace


@pytest.mark.parametrize("entry", catalog(), ids=lambda entry: entry.name)
def test_the_list_states_facts(entry):
    backbone = find_backbone(entry.name)
    with torch.device("meta"):
        network = backbone.spec.build()
    assert sum(p.numel() for p in network.parameters()) == entry.parameters
    assert backbone.preprocessing.size == (entry.input_size, entry.input_size)
    assert backbone.about["license"] == entry.license
    assert backbone.name == entry.name
    if entry.multiply_adds < FAST:
        chain = build_chain(backbone.spec, backbone.preprocessing.size)
        assert chain.top.multiply_adds == entry.multiply_adds


@pytest.mark.slow
@pytest.mark.parametrize("entry", catalog(), ids=lambda entry: entry.name)
def test_the_list_states_costs(entry):
    backbone = find_backbone(entry.name)
    chain = build_chain(backbone.spec, backbone.preprocessing.size)
    assert chain.top.multiply_adds == entry.multiply_adds


def test_the_list_begins_with_ours_then_small_networks():
    first, *others = catalog()
    assert first.name == SHIPPED
    sizes = [entry.parameters for entry in others]
    assert sizes == sorted(sizes)


# --- fetching -----------------------------------------------------------------------------------


class Hub:
    """Stands in for the hub: which files are cached, and what the remote side answers."""

    def __init__(self, monkeypatch, tmp_path, cached=(), remote=None):
        self.cached, self.remote, self.folder = set(cached), remote, tmp_path
        self.calls = []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.metadata)

    def download(self, repository, filename, *, revision=None, local_files_only=False):
        self.calls.append((repository, filename, revision, local_files_only))
        if local_files_only and filename not in self.cached:
            raise LocalEntryNotFoundError("not cached")
        return str(self.folder / filename)

    def metadata(self, address, timeout):
        if self.remote is not None:
            raise self.remote
        return type("Metadata", (), {"size": 12_345_678})


def test_a_cached_file_is_taken_without_a_word(monkeypatch, tmp_path, caplog):
    hub = Hub(monkeypatch, tmp_path, cached=["model.safetensors"])
    source = WeightsSource("hub", "timm/resnet18.a1_in1k")
    assert weights_file(source) == tmp_path / "model.safetensors"
    assert hub.calls == [("timm/resnet18.a1_in1k", "model.safetensors", None, True)]
    assert not caplog.records


def test_a_download_says_what_from_where_and_how_big(monkeypatch, tmp_path, caplog):
    hub = Hub(monkeypatch, tmp_path)
    with caplog.at_level(logging.INFO, logger="topwork"):
        fetch_from_hub("timm/resnet18.a1_in1k@v2", "model.safetensors")
    assert [call[2:] for call in hub.calls] == [("v2", True), ("v2", False)]
    assert caplog.messages == [
        "fetching model.safetensors of huggingface.co/timm/resnet18.a1_in1k@v2 (12.3 MB)"
    ]


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        (
            OSError("no route\nto host"),
            r"cannot fetch .*no route\); give a local file with --weigh",
        ),
        (RuntimeError(""), r"\(RuntimeError\); give a local file with --weights FILE"),
        (EntryNotFoundError("404"), "holds no model.safetensors; topwork reads repositories in"),
    ],
)
def test_an_unreachable_hub_says_what_else_to_do(monkeypatch, tmp_path, remote, message):
    Hub(monkeypatch, tmp_path, remote=remote)
    with pytest.raises(BackboneError, match=message) as caught:
        fetch_from_hub("timm/resnet18.a1_in1k", "model.safetensors")
    assert "\n" not in str(caught.value)


def test_only_safe_files_of_well_named_repositories_are_asked_for(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path)
    with pytest.raises(BackboneError, match=r"only \.safetensors and \.json"):
        fetch_from_hub("timm/resnet18", "pytorch_model.bin")
    assert not hub.calls

    def invalid(*arguments, **options):
        raise HFValidationError("bad")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", invalid)
    with pytest.raises(BackboneError, match="is not the name of a repository"):
        find_backbone("hf-hub:a b/c/d")


def test_a_repository_by_name_is_a_backbone(monkeypatch, tmp_path):
    Hub(monkeypatch, write_folder(tmp_path), cached=["config.json"])
    backbone = find_backbone("hf-hub:me/net")
    assert backbone.name == "hf-hub:me/net"
    assert backbone.weights == WeightsSource("hub", "me/net")
    assert backbone.spec.arguments["num_classes"] == 7


def test_finding_a_backbone_fetches_nothing(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path)
    find_backbone("timm:resnet18").spec.build()
    assert not hub.calls


ADDRESS = "https://download.example.org/models/net-0123abcd.pth"


def test_a_web_file_goes_into_the_checkpoint_folder_once(monkeypatch, tmp_path, caplog):
    calls = []

    def download(address, target, hash_prefix, progress):
        calls.append((address, hash_prefix))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(fetch, "_size_of", lambda address: 2_000_000)
    for _ in range(2):
        path = weights_file(WeightsSource("url", ADDRESS))
    assert path == tmp_path / "checkpoints/net-0123abcd.pth"
    assert calls == [(ADDRESS, "0123abcd")]
    assert caplog.messages == [f"fetching {ADDRESS} (2.0 MB)"]


def test_an_unreachable_web_file_says_what_else_to_do(monkeypatch, tmp_path):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(fetch, "urlopen", offline)
    with pytest.raises(BackboneError, match=r"cannot fetch https://.*give a local file with --wei"):
        fetch_from_url(ADDRESS)
    assert not any(tmp_path.rglob("*.pth"))
