"""The backbone that comes with topwork: what it is, and where it is taken."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

from conftest import Command
from topwork import FrozenFeatures, advise, profile
from topwork.advice.source_card import card_of
from topwork.errors import WeightsError
from topwork.network import zoo
from topwork.network.loading import load_backbone
from topwork.network.shipped import SHIPPED, SHIPPED_FOLDER
from topwork.network.zoo import find_backbone
from topwork.plan import Plan

MOBILENET = 299_494_272
"""Multiply-adds of MobileNetV2 at 224 pixels below its head."""


@pytest.fixture(scope="module")
def loaded():
    return load_backbone(find_backbone(SHIPPED), Plan(SHIPPED))


def test_it_is_small_and_fast(loaded):
    file = SHIPPED_FOLDER / "model.safetensors"
    assert file.stat().st_size <= 8e6
    with safe_open(file, "pt") as opened:
        kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    assert kinds == {"F16", "F32", "I64"}
    assert loaded.chain.top.multiply_adds <= MOBILENET / 3
    height, width = loaded.backbone.preprocessing.size
    assert 96 <= height == width <= 128


def test_loaded_it_is_in_single_precision_and_whole(loaded):
    assert {value.dtype for value in loaded.chain.network.parameters()} == {torch.float32}
    accounting = loaded.accounting
    assert {*accounting.reinitialized, *accounting.dropped, *accounting.unused} <= {
        "head.fc.weight",
        "head.fc.bias",
    }


def test_its_card_says_what_a_user_must_know():
    about = find_backbone("rootstock").about
    assert about["license"] == "apache-2.0"
    wanted = {"source", "terms", "limits", "teacher", "recipe", "date", "machine", "results"}
    assert wanted <= about.keys()
    assert about["teacher"]["license"] == "apache-2.0"
    words = (SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8")
    assert find_backbone(SHIPPED).weights.sha256 in words
    for text in (json.dumps(about), words):
        assert not re.search(r"[\"'`( ]/\w+/", text)  # no path of the machine that made it


def test_its_source_is_known(loaded):
    card = card_of(loaded)
    assert card is not None
    assert {cut.name for cut in loaded.chain.cuts[1:]} <= card.cuts.keys()
    assert card.images >= 1000


@pytest.mark.parametrize("verb", [profile, advise])
def test_similarity_goes_by_its_card(pictures: Path, verb):
    found = verb(pictures)
    of_depths = found.get("profile", found)["similarity"]
    assert of_depths["distances"]["source"] == "card"
    assert "from the source's in its codes" in of_depths["why"]


def test_it_opens_in_plain_timm(loaded):
    network = timm.create_model(f"local-dir:{SHIPPED_FOLDER}", pretrained=True).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 96, 96))).float()
    ours = loaded.chain.network.eval()
    with torch.no_grad():
        assert network(pixels).shape == (2, 1000)
        assert network.pretrained_cfg["license"] == "apache-2.0"
        assert not network.pretrained_cfg.get("origin_url")
        assert torch.equal(network.forward_features(pixels), ours.forward_features(pixels))


def test_a_damaged_one_is_not_loaded(tmp_path, monkeypatch):
    folder = shutil.copytree(SHIPPED_FOLDER, tmp_path / "copy")
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(zoo, "SHIPPED_FOLDER", folder)
    with pytest.raises(WeightsError, match="damaged"):
        load_backbone(find_backbone(SHIPPED), Plan(SHIPPED))


# --- where none is named ------------------------------------------------------------------------


def test_a_fit_says_that_it_took_it(pictures: Path, tmp_path, topwork: Command):
    run = tmp_path / "run"
    result = topwork("fit", pictures, "--plan", "features", "--out", run)
    assert result.code == 0, result.err
    assert f"backbone: none is named, so {SHIPPED}" in result.err
    assert "--backbone" in result.err
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    assert record["plan"]["backbone"] == SHIPPED
    model = json.loads((run / "model" / "topwork.json").read_text(encoding="utf-8"))
    assert model["backbone"]["library"] == "timm"  # so others can open the model without us


@pytest.mark.parametrize("verb", ["profile", "advise"])
def test_so_do_profile_and_advise(pictures: Path, tmp_path, topwork: Command, verb: str):
    result = topwork(verb, pictures, "--json")
    assert result.code == 0, result.err
    assert SHIPPED in result.err
    found = json.loads(result.out)
    assert found.get("profile", found)["backbone"] == SHIPPED


@pytest.mark.parametrize("verb", ["profile", "advise"])
def test_weights_want_a_name(pictures: Path, tmp_path, topwork: Command, verb: str):
    result = topwork(verb, pictures, "--weights", "own.safetensors")
    assert result.code == 2
    assert "--weights own.safetensors: say with --backbone" in result.err


def test_another_plan_names_its_own(pictures: Path, tmp_path, topwork: Command):
    plan = tmp_path / "plan.json"
    Plan("topwork:small_convnet", reused="0", frozen_random=True).save(plan)
    result = topwork("fit", pictures, "--plan", plan, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert SHIPPED not in result.err


def test_a_fit_wants_images_alone(pictures: Path, tmp_path, topwork: Command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    result = topwork("fit", pictures, "--plan", "features", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["run"] == "run-2"
    assert (tmp_path / "run-2" / "report.html").is_file()


def test_frozen_features_take_it_too(pictures: Path):
    paths = sorted(pictures.glob("train/*/*"))[:3]
    assert FrozenFeatures().fit_transform(paths).shape == (3, 368)


def test_the_demo_takes_photos(pictures: Path, tmp_path, topwork: Command):
    out = tmp_path / "demo"
    result = topwork("demo", "--photos", pictures, "--out", out, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    measured = json.loads(topwork("profile", pictures, "--json").out)
    best = next(depth for depth in measured["depths"] if depth["name"] == measured["best"])
    assert found["reused"] == {key: best[key] for key in found["reused"]}
    assert found["reused"]["loss"] != found["random"]["loss"]
    assert (found["reused"]["n"], found["record"]["n"]) == (48, 24)
    assert (out / "profile.png").stat().st_size > 0
    assert (out / "run" / "report.html").is_file()


def test_the_demo_says_what_it_found(pictures: Path, tmp_path, topwork: Command):
    result = topwork("demo", "--photos", pictures, "--out", tmp_path / "demo")
    assert result.code == 0, result.err
    assert f"Best depth of {SHIPPED} on 48 training images" in result.out
    assert "random weights" in result.out


def test_the_demo_says_what_is_wrong_with_photos(tmp_path, topwork: Command):
    result = topwork("demo", "--photos", tmp_path / "none", "--out", tmp_path / "demo")
    assert result.code == 2
    assert "none" in result.err
    assert not (tmp_path / "demo").exists()
