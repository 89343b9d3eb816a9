"""The model folder: rebuilt to the bit, opened by timm, refused where damaged, exported."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from topwork.errors import BackboneError, ImageError, ModelError, UsageError, WeightsError
from topwork.network.cut import Trunk
from topwork.network.export import export_model
from topwork.network.folder import Opened, open_model, save_model, why_not_timm
from topwork.network.loading import Loaded, load_backbone
from topwork.network.model import Model, code_width
from topwork.network.predictor import load
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Hidden, Plan

LABELS = ("ants", "bees", "wasps")


def made(folder: Path, plan: Plan) -> tuple[Model, Loaded]:
    """Write a model with random layers and a random head."""
    plan = Plan(**{**vars(plan), "reused": "input", "frozen_random": True})
    loaded = load_backbone(find_backbone(plan.backbone), plan, seed=3)
    settled = loaded.plan
    width = code_width(loaded.chain, settled.codes, str(settled.pool))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Model(
            loaded.chain, settled.codes, str(settled.pool), width, len(LABELS), settled.added
        ).eval()
    save_model(folder, model, loaded, LABELS)
    return model, loaded


def images_for(opened: Opened, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, *opened.preprocessing.size, generator=generator)


PLANS = {
    "features": Plan("timm:test_resnet"),
    "tokens": Plan("timm:test_vit3"),
    "a vit by its token": Plan("timm:deit_tiny_patch16_224"),
    "channels last": Plan("timm:test_mambaout"),
    "norm after pooling": Plan("timm:test_convnext"),
    "dropped stages": Plan("timm:test_resnet", kept="layer2"),
    "two depths": Plan("timm:test_resnet", codes=("layer2", "layer4")),
    "flattened": Plan("timm:test_resnet", kept="layer4", pool="flatten"),
    "from torchvision": Plan("torchvision:squeezenet1_1"),
    "untraceable": Plan("timm:test_vit"),
    "our own": Plan("topwork:cifar_resnet20"),
}


@pytest.mark.parametrize(
    ("plan", "highest"),
    [
        (Plan("timm:test_resnet", kept="layer2"), "layer2"),
        (Plan("timm:test_resnet", codes=("layer1", "layer2")), "layer2"),
        (Plan("timm:test_resnet", codes=("layer2", "layer4")), "layer4"),
    ],
)
def test_as_a_backbone_it_reaches_up_to_the_highest_code(
    plan: Plan, highest: str, tmp_path: Path
) -> None:
    made(tmp_path / "model", plan)
    again = load_backbone(find_backbone(tmp_path / "model"), Plan("model"))
    assert again.plan.kept == again.plan.reused == again.chain.resolve(highest).name


def test_as_a_backbone_it_has_the_license_of_what_it_began_with(tmp_path: Path) -> None:
    model, loaded = made(tmp_path / "random", Plan("timm:test_resnet"))
    named = replace(loaded, backbone=replace(loaded.backbone, about={"license": "mit"}))
    save_model(tmp_path / "none", model, named, LABELS)
    began = {"file": "weights", "sha256": "0"}
    save_model(tmp_path / "some", model, replace(named, weights=began), LABELS)
    found = [find_backbone(tmp_path / name).about["license"] for name in ("none", "some")]
    assert found == [None, "mit"]


@pytest.mark.parametrize("name", PLANS)
def test_a_folder_gives_back_the_model(name: str, tmp_path: Path) -> None:
    model, loaded = made(tmp_path / "model", PLANS[name])
    opened = open_model(tmp_path)
    assert (opened.labels, opened.plan) == (LABELS, loaded.plan)
    images = images_for(opened)
    with torch.no_grad():
        assert torch.equal(opened.model(images), model(images))
    text = (tmp_path / "model" / "topwork.json").read_text(encoding="utf-8")
    assert json.loads(text)["labels"] == list(LABELS)


@pytest.mark.parametrize(
    "name", ["features", "a vit by its token", "channels last", "norm after pooling", "untraceable"]
)
def test_timm_opens_the_folder_and_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    made(tmp_path / "model", PLANS[name])
    opened = open_model(tmp_path)
    assert opened.why_not_timm is None
    network = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    assert list(network.pretrained_cfg["label_names"]) == list(LABELS)
    view = timm.data.resolve_model_data_config(network)
    assert tuple(view["input_size"]) == (3, *opened.preprocessing.size)
    assert (tuple(view["mean"]), view["crop_pct"]) == (
        opened.preprocessing.mean,
        opened.preprocessing.crop,
    )
    images = images_for(opened)
    with torch.no_grad():
        assert torch.equal(network(images), opened.model(images))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dropped stages", "the head reads layer2, not L (layer4) alone"),
        ("two depths", "the head reads layer2, layer4"),
        ("flattened", "pooled by flatten"),
        ("from torchvision", "torchvision:squeezenet1_1 is no timm architecture"),
        ("our own", "no timm architecture"),
    ],
)
def test_what_timm_cannot_express_is_said(name: str, reason: str, tmp_path: Path) -> None:
    model, loaded = made(tmp_path / "model", PLANS[name])
    assert reason in str(why_not_timm(model, loaded))
    assert not (tmp_path / "model" / "config.json").exists()
    with pytest.raises(ModelError, match=r"timm cannot open this model: .*; export it as onnx"):
        export_model(open_model(tmp_path), "timm", tmp_path / "out")


def test_dropped_layers_are_not_in_the_file(tmp_path: Path) -> None:
    made(tmp_path / "model", PLANS["dropped stages"])
    names = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "fc"}


@pytest.mark.parametrize(
    ("plan", "above"),
    [
        (
            Plan("timm:test_resnet", added=(Hidden(6, norm="batch"),)),
            {"added.0.weight", "added.0.bias", "added.1.weight", "added.1.bias"}
            | {"added.1.running_mean", "added.1.running_var", "added.1.num_batches_tracked"}
            | {"fc.weight", "fc.bias"},
        ),
        (
            Plan("timm:test_resnet", kept="layer2", added=(Hidden(6),)),
            {"added.0.weight", "added.0.bias", "fc.weight", "fc.bias"},
        ),
    ],
)
def test_a_model_with_added_layers_is_a_backbone(
    plan: Plan, above: set[str], tmp_path: Path
) -> None:
    model, loaded = made(tmp_path / "model", plan)
    depth = str(loaded.plan.kept)
    folder = str(tmp_path / "model")
    again = load_backbone(find_backbone(folder), Plan(folder, kept=depth))
    assert again.accounting is not None
    assert set(again.accounting.unused) == above
    images = images_for(open_model(tmp_path))
    with torch.no_grad():
        assert torch.equal(Trunk(again.chain, [depth])(images), model.segments[0](images))


def test_a_head_that_the_network_has_not_is_no_part_of_a_backbone(tmp_path: Path) -> None:
    view = {"input_size": [3, 64, 64]}
    config = {"architecture": "test_resnet", "num_classes": 0, "pretrained_cfg": view}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made(tmp_path / "model", Plan(str(tmp_path)))
    folder = str(tmp_path / "model")
    accounting = load_backbone(find_backbone(folder), Plan(folder)).accounting
    assert accounting is not None
    assert set(accounting.unused) == {"head.weight", "head.bias"}


def test_other_weights_for_a_models_folder_are_no_models(tmp_path: Path) -> None:
    made(tmp_path / "model", Plan("timm:test_resnet", added=(Hidden(6),)))
    folder = str(tmp_path / "model")
    other = find_backbone(folder, weights=tmp_path / "model" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"2 unknown to the network \(added\.0\.bias"):
        load_backbone(other, Plan(folder))


def test_a_model_whose_plan_is_none_is_no_backbone(tmp_path: Path) -> None:
    made(tmp_path / "model", Plan("timm:test_resnet"))
    file = tmp_path / "model" / "topwork.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["plan"]["heads"] = facts["plan"].pop("head")
    file.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"topwork\.json: .*heads"):
        find_backbone(str(tmp_path / "model"))


def test_damage_is_named(tmp_path: Path) -> None:
    made(tmp_path / "whole", PLANS["our own"])
    facts = json.loads((tmp_path / "whole" / "topwork.json").read_text())
    weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    flipped = bytearray(weights)
    flipped[-1] ^= 1
    cases: list[tuple[str, bytes, str]] = [
        ("model.safetensors", bytes(flipped), "is damaged: its bytes are not those written"),
        ("model.safetensors", weights[:-1], "is damaged"),
        ("topwork.json", b"{", "is damaged"),
        ("topwork.json", b"{}", "is damaged"),
        ("topwork.json", json.dumps({**facts, "format": 9}).encode(), "has format 9"),
        ("topwork.json", json.dumps({**facts, "labels": ["a"]}).encode(), "1 labels for 3 outputs"),
    ]
    for number, (name, data, message) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / name).write_bytes(data)
        with pytest.raises(ModelError) as raised:
            open_model(folder)
        assert message in str(raised.value)
        assert str(folder) in str(raised.value)
    (tmp_path / "whole" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        open_model(tmp_path / "whole")
    with pytest.raises(ModelError, match="does not exist; give a run folder"):
        open_model(tmp_path / "nothing")


def test_a_plan_with_frozen_random_layers_is_the_control(tmp_path: Path) -> None:
    _, loaded = made(tmp_path / "model", PLANS["features"])
    assert loaded.accounting is None
    assert loaded.plan.phases == (Phase(frozen="layer4"),)


def test_predictor(tmp_path: Path, pictures: Path) -> None:
    made(tmp_path / "model", PLANS["our own"])
    predictor = load(tmp_path)
    paths = sorted((pictures / "test").rglob("*.png"))[:11]
    together = predictor.predict_proba(paths)
    assert together.shape == (11, 3)
    np.testing.assert_allclose(together.sum(1), 1)
    alone = np.concatenate([predictor.predict_proba([path]) for path in paths])
    np.testing.assert_array_equal(alone, together)  # whatever came with it
    assert predictor.predict(paths[:2]) == [LABELS[i] for i in together[:2].argmax(1)]
    assert predictor.predict_proba([]).shape == (0, 3)

    from PIL import Image

    with Image.open(paths[0]) as image:
        pixels = np.asarray(image.convert("RGB"))
        for given in (image, pixels, str(paths[0])):
            np.testing.assert_array_equal(predictor.predict_proba([given]), together[:1])
    with pytest.raises(ImageError, match=r"nothing.png: no such file"):
        predictor.predict([tmp_path / "nothing.png"])
    for wrong in (np.zeros((8, 8)), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ImageError, match="give uint8 or uint16"):
            predictor.predict([wrong])
    with pytest.raises(ImageError, match="give a path, a Pillow image or an array"):
        predictor.predict([None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="give a list of images"):
        predictor.predict(str(paths[0]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "I;16", "CMYK", "turned"])
def test_an_image_in_memory_is_seen_as_its_file_is(mode: str, tmp_path: Path) -> None:
    from PIL import Image

    made(tmp_path / "model", PLANS["our own"])
    predictor = load(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    elif mode != "turned":
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    exif = Image.Exif()
    if mode == "turned":
        image = image.convert("RGB")
        exif[0x0112] = 6
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(file, exif=exif)
    with Image.open(file) as opened:
        opened.load()
        np.testing.assert_array_equal(
            predictor.predict_proba([opened]), predictor.predict_proba([file])
        )


@pytest.mark.parametrize("name", ["features", "two depths", "a vit by its token"])
def test_exports_give_the_same_scores(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made(tmp_path / "model", PLANS[name])
    opened = open_model(tmp_path)
    images = images_for(opened, 3)
    with torch.no_grad():
        expected = opened.model(images)
    tolerance = 1e-4 * expected.abs().max()

    file = export_model(opened, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(file)
    (scores,) = session.run(None, {"images": images.numpy()})
    assert (torch.from_numpy(scores) - expected).abs().max() <= tolerance
    facts = json.loads(session.get_modelmeta().custom_metadata_map["topwork"])
    assert facts["labels"] == list(LABELS)
    assert facts["preprocessing"] == opened.preprocessing.to_dict()

    file = export_model(opened, "pt2", tmp_path / "model.pt2")
    extra = {"topwork.json": ""}
    program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra["topwork.json"]) == facts
    with torch.no_grad():
        assert (program.module()(images) - expected).abs().max() <= tolerance


def test_export_to_timm_and_refusals(tmp_path: Path) -> None:
    made(tmp_path / "model", PLANS["features"])
    opened = open_model(tmp_path)
    export_model(opened, "timm", tmp_path / "out")
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 3
    with pytest.raises(UsageError, match="exists already"):
        export_model(opened, "timm", tmp_path / "out")
    with pytest.raises(UsageError, match="--format 'tflite' is unknown; choose from onnx, pt2"):
        export_model(opened, "tflite", tmp_path / "x")


def test_an_export_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "model", PLANS["features"])
    opened = open_model(tmp_path)
    copy, places = shutil.copyfile, tmp_path / "places"

    def fill_the_disk(source: Path, target: Path) -> None:
        if source.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", fill_the_disk)
    with pytest.raises(UsageError, match="out cannot be written: No space left on device"):
        export_model(opened, "timm", places / "out")
    assert not list(places.iterdir())
