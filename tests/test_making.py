"""Backbones that are made: the verb, the folder, the command line, and taking one up again."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from conftest import Command
from pretraining import drawings, tiny_material
from topwork.advice.source_card import card_of
from topwork.data.audit import look_over
from topwork.data.items import images_from_arrays
from topwork.data.loading import untracked
from topwork.errors import BackboneError, DataError, PlanError, UsageError, WeightsError
from topwork.learn.checkpoints import Checkpoints
from topwork.making import license_of, pretrain
from topwork.network.backbone_folder import save_backbone
from topwork.network.loading import load_backbone
from topwork.network.state import read_state
from topwork.network.zoo import REACHES, find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.methods import RECIPES, recipe_of
from topwork.pretraining.preparing import load_networks, make_material, set_aside
from topwork.pretraining.rbm import RbmRecipe
from topwork.pretraining.request import Request, settle_recipe
from topwork.trunk.execution import Execution

SMALL = {"arguments": {"widths": [12, 8]}, "phase": {"epochs": 2, "batch": 10}}


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Return an .npz of bars that lie and bars that stand, the last eight to test with."""
    images = drawings(48, gray=True)
    labels = np.repeat([0, 1], 24)
    order = np.random.default_rng(1).permutation(48)
    train, test = order[:40], order[40:]
    path = tmp_path / "bars.npz"
    np.savez(
        path,
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
    )
    return path


def test_a_backbone_is_made_fitted_and_known_by_its_source(npz, tmp_path, topwork: Command):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(SMALL))
    made = tmp_path / "made"
    result = topwork(
        *("pretrain", npz, "--method", "rbm", "--backbone", "topwork:dense", "--size", 8),
        *("--recipe", recipe, "--out", made),
    )
    assert result.code == 0, result.err
    assert "layer 2" in result.out
    names = {path.name for path in made.iterdir()}
    assert names >= {"backbone.json", "model.safetensors", "record.json", "README.md"}
    for picture in made.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    record = json.loads((made / "record.json").read_text())
    assert (record["images"], record["held_out"]) == (38, 2)  # of 40: none that a fit tests with
    chosen, arguments = settle_recipe("rbm", recipe_of("rbm"), record["recipe"], None, None)
    assert (chosen.to_dict() | {"arguments": arguments}) == record["recipe"]
    assert arguments == SMALL["arguments"]
    assert [row["stage"] for row in record["epochs"]] == ["layer 1"] * 2 + ["layer 2"] * 2
    run = tmp_path / "run"
    result = topwork("fit", npz, "--backbone", made, "--plan", "features", "--out", run)
    assert result.code == 0, result.err
    fitted = json.loads((run / "record.json").read_text())
    assert fitted["n"] == 8
    result = topwork("advise", npz, "--backbone", made, "--time-budget", "5s", "--json")
    assert result.code == 0, result.err
    distances = json.loads(result.out)["profile"]["similarity"]["distances"]
    assert distances["source"] == "card"


def test_a_fitted_model_is_a_backbone_too(npz, tmp_path, topwork: Command):
    first, second = tmp_path / "first", tmp_path / "second"
    scratch = ("--plan", "scratch", "--epochs", 1, "--size", 8)
    result = topwork("fit", npz, "--backbone", "topwork:small_convnet", *scratch, "--out", first)
    assert result.code == 0, result.err
    model = first / "model"
    result = topwork("fit", npz, "--backbone", model, "--plan", "features", "--out", second)
    assert result.code == 0, result.err
    given, got = (read_state(folder / "model.safetensors") for folder in (model, second / "model"))
    body = [name for name in given if not name.startswith("classifier")]
    assert body
    assert all(torch.equal(given[name], got[name]) for name in body)


def test_damaged_weights_are_not_loaded(npz, tmp_path):
    pretrain(npz, tmp_path / "made", method="rbm", backbone="topwork:dense", recipe=SMALL)
    weights = tmp_path / "made" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        load_backbone(find_backbone(str(tmp_path / "made")), Plan("made"))
    (tmp_path / "made" / "backbone.json").write_text("{}")
    with pytest.raises(BackboneError, match="damaged"):
        find_backbone(str(tmp_path / "made"))


def test_an_interrupted_one_goes_on_to_the_same_bytes(npz, tmp_path, monkeypatch):
    def make(out: Path, size: tuple[int, int] = (8, 8), **how) -> None:
        how = {"method": "rotation", "backbone": "topwork:small_convnet", "size": size, **how}
        pretrain(npz, out, recipe={"phase": SMALL["phase"]}, **how)

    make(tmp_path / "whole")
    stop_after(5, monkeypatch)
    save = Checkpoints.save

    def an_hour_later(self, tensors, facts):
        save(self, tensors, facts | {"seconds": facts["seconds"] + 3600})

    monkeypatch.setattr(Checkpoints, "save", an_hour_later)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken")
    monkeypatch.undo()
    assert not (tmp_path / "broken").exists()
    with pytest.raises(UsageError, match="--resume"):
        make(tmp_path / "broken")
    with pytest.raises(UsageError, match="another seed"):
        make(tmp_path / "broken", resume=True, seed=1)
    with pytest.raises(UsageError, match="another size of images"):
        make(tmp_path / "broken", resume=True, size=(28, 28))
    abandoned = tmp_path / "broken.unfinished" / "staged-0"
    abandoned.mkdir()  # by a process that was killed while it wrote, long ago
    os.utime(abandoned, (0, 0))
    make(tmp_path / "broken", resume=True)
    whole, resumed = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken")
    )
    assert whole == resumed
    assert not (tmp_path / "broken.unfinished").exists()
    record = json.loads((tmp_path / "broken" / "record.json").read_text())
    assert record["seconds"] >= record["times"]["training"] > 3600
    assert record["training_seconds"] > 3600


def test_where_no_checkpoint_is_whole_it_begins_anew_and_says_so(
    npz, tmp_path, monkeypatch, caplog
):
    wanted = {"method": "rotation", "backbone": "topwork:small_convnet", "size": (8, 8)}
    stop_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(npz, tmp_path / "made", recipe={"phase": SMALL["phase"]}, **wanted)
    monkeypatch.undo()
    for file in (tmp_path / "made.unfinished" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    pretrain(npz, tmp_path / "made", recipe={"phase": SMALL["phase"]}, resume=True, **wanted)
    assert "no checkpoint of what was interrupted is whole; beginning anew" in caplog.text


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come after some steps."""
    from topwork import making

    method = making.run

    def counted(material, recipe):
        for step, progress in enumerate(method(material, recipe), start=1):
            if step == steps:
                signal.raise_signal(signal.SIGINT)
            yield progress

    monkeypatch.setattr(making, "run", counted)


def test_a_timm_network_opens_in_plain_timm(tmp_path):
    images = drawings(24, side=32)
    pictured = images_from_arrays(images, [0, 1] * 12, split=["train"] * 20 + ["test"] * 4)
    made = tmp_path / "made"
    pretrain(
        pictured,
        made,
        method="rotation",
        backbone="timm:resnet10t",
        size=(32, 32),
        recipe={"phase": {"epochs": 1, "batch": 10}},
    )
    opened = timm.create_model(f"local-dir:{made}", pretrained=True)
    state = read_state(made / "model.safetensors")
    body = {k: v for k, v in opened.state_dict().items() if not k.startswith("fc.")}
    assert body.keys() == state.keys()  # what was not trained is not there
    config = json.loads((made / "config.json").read_text())["pretrained_cfg"]
    assert not {"license", "origin_url", "tag"} & config.keys()  # those are of timm's own weights
    assert all(torch.equal(value, state[name]) for name, value in body.items())


def test_photos_without_classes_are_taken_as_they_lie(tmp_path, topwork: Command):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(drawings(20)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    result = topwork(
        *("pretrain", folder, "--method", "rotation", "--backbone", "topwork:small_convnet"),
        *("--size", 8, "--epochs", 1, "--out", tmp_path / "made", "--json"),
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["images"] == 19
    assert "without labels" in result.err


def test_what_cannot_be_read_is_told(tmp_path, caplog):
    caplog.set_level("INFO", "topwork")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, pixels in enumerate(drawings(20)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    cut_off = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(cut_off[: len(cut_off) // 2])
    wanted = {"method": "rotation", "backbone": "topwork:small_convnet", "size": (8, 8)}
    record = pretrain(folder, tmp_path / "made", **wanted, epochs=1)
    assert record["images"] + record["held_out"] == 19
    assert "topwork:small_convnet starts from random weights" in caplog.text
    words = (tmp_path / "made" / "README.md").read_text()
    for name in ("broken.png", "03.png"):
        assert name in caplog.text
        assert name in words
        assert name in json.dumps(record["data"])
    for path in sorted(folder.iterdir())[:17]:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3 images to learn from; give 4 or more; .*00\.png: "):
        pretrain(folder, tmp_path / "none", **wanted)


def test_a_folder_without_images_asks_for_some_and_for_no_classes(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="photos: no images in it; put some there, in sub-folders"):
        pretrain(tmp_path / "photos", tmp_path / "a", method="gan", backbone="topwork:dense")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "supervised"}, "learns classes, and .* has fewer than two"),
        ({"method": "rotation", "size": (8, 12)}, "give a square --size"),
        ({"method": "rbm"}, "give --backbone topwork:dense"),
        ({"method": "masked", "recipe": {"patch": 5}, "size": (8, 8)}, "patch is 5"),
    ],
)
def test_what_cannot_be_done_is_told_before_images_are_read(tmp_path, monkeypatch, how, said):
    monkeypatch.setattr("topwork.making.audit_photos", None)
    images = images_from_arrays(drawings(20), [0] * 20)
    with pytest.raises((PlanError, UsageError), match=said):
        pretrain(images, tmp_path / "made", backbone="topwork:small_convnet", **how)


@pytest.mark.parametrize("damaged", [b"PK no zip", None])
def test_a_zip_that_cannot_be_read_is_called_so(tmp_path, damaged):
    if damaged:
        (tmp_path / "photos.zip").write_bytes(damaged)
    with pytest.raises(DataError) as refused:
        pretrain(tmp_path / "photos.zip", tmp_path / "a", method="gan", backbone="topwork:dense")
    assert "no images in it" not in str(refused.value)


def test_whole_numbers_may_be_classes(tmp_path):
    images = images_from_arrays(drawings(20), [str(n % 10) for n in range(20)])
    wanted = {"backbone": "topwork:small_convnet", "size": (8, 8), "epochs": 1}
    record = pretrain(images, tmp_path / "made", method="supervised", **wanted)
    assert record["architecture"]["arguments"]["num_classes"] == 10


def test_numbers_are_no_classes(tmp_path):
    images = images_from_arrays(drawings(20), [str(n / 7) for n in range(20)])
    wanted = {"backbone": "topwork:small_convnet", "size": (8, 8), "epochs": 1}
    with pytest.raises(UsageError, match=r"learns classes, and .* has numbers"):
        pretrain(images, tmp_path / "made", method="supervised", **wanted)
    record = pretrain(images, tmp_path / "made", method="rotation", **wanted)
    assert "probe" not in record["results"]["quarter turns"]


def test_channels_are_those_that_are_asked_for(tmp_path):
    wanted = {"method": "rbm", "backbone": "topwork:dense", "size": (8, 8)}
    colors = {**SMALL, "arguments": {"widths": [12], "in_chans": 3}}
    images = images_from_arrays(drawings(20), [0, 1] * 10)
    record = pretrain(images, tmp_path / "made", recipe=colors, **wanted)
    assert read_state(tmp_path / "made" / "model.safetensors")["layer1.linear.weight"].shape == (
        12,
        3 * 64,
    )
    assert record["recipe"]["arguments"] == colors["arguments"]
    assert "- Images: 8 x 8 pixels, 3 channels" in (tmp_path / "made" / "README.md").read_text()
    for name, said in (("image_size", "given by --size"), ("in_chans", "give a whole number")):
        recipe = {**SMALL, "arguments": {name: [16, 16]}}
        with pytest.raises(PlanError, match=said):
            pretrain(tmp_path, tmp_path / "none", recipe=recipe, **wanted)


def test_layers_that_were_not_trained_are_left_out_and_told_of(tmp_path, topwork: Command):
    images = drawings(24, side=64)
    np.savez(tmp_path / "bars.npz", images=images, labels=np.repeat([0, 1], 12))
    result = topwork(
        *("pretrain", tmp_path / "bars.npz", "--method", "masked", "--epochs", 1, "--size", 64),
        *("--backbone", "timm:test_convnext", "--out", tmp_path / "made"),
    )
    assert result.code == 0, result.err
    reach = result.out.partition("weights up to ")[2].partition(":")[0]
    assert f"weights up to {reach}: no layer above it was trained" in result.out
    assert f"`{reach}`: no layer above it" in (tmp_path / "made" / "README.md").read_text()
    names = read_state(tmp_path / "made" / "model.safetensors")
    assert "head.norm.weight" not in names
    assert "stem.0.weight" in names
    backbone = find_backbone(str(tmp_path / "made"))
    loaded = load_backbone(backbone, Plan(backbone.name))
    assert loaded.plan.kept == loaded.plan.reused == reach
    assert card_of(loaded) is not None
    top = loaded.chain.top.name
    with pytest.raises(WeightsError, match=f"only up to {reach}; keep that much with --kept"):
        load_backbone(backbone, Plan(backbone.name, kept=top))
    for reused in ("input", reach):
        plan = Plan(backbone.name, reused=reused, phases=(Phase(frozen=reused, epochs=1),))
        assert load_backbone(backbone, plan).plan.kept == top
    again = pretrain(
        *(tmp_path / "bars.npz", tmp_path / "again"),
        **{"method": "rotation", "backbone": str(tmp_path / "made"), "epochs": 1, "size": (64, 64)},
    )
    assert again["started_from"]["up_to"] == reach
    assert again["reaches"] is None
    with pytest.raises(BackboneError, match=f"has weights up to {reach} only, and a student"):
        pretrain(
            *(tmp_path / "bars.npz", tmp_path / "none"),
            method="distill",
            backbone="topwork:small_convnet",
            teacher=str(tmp_path / "made"),
        )
    # What was learned above belongs to other layers below by then.
    wanted = {"method": "masked", "backbone": tmp_path / "again", "size": (64, 64), "epochs": 1}
    assert pretrain(tmp_path / "bars.npz", tmp_path / "twice", **wanted)["reaches"] == reach


def test_a_backbone_that_ends_lower_is_used_as_far_as_it_reaches(npz, tmp_path, topwork: Command):
    plan = Plan("x", reused="0", input_size=(8, 8), phases=(Phase(frozen="input", epochs=1),))
    loaded = load_backbone(find_backbone("topwork:small_convnet"), plan)
    reach, top = loaded.chain.resolve("block2"), loaded.chain.top.name
    card = {REACHES: reach.name}
    save_backbone(tmp_path / "low", loaded, card, classifier=False, up_to=reach)
    low = ("--backbone", tmp_path / "low", "--runtime", "eager", "--json")
    found = topwork("profile", npz, *low)
    assert json.loads(found.out)["depths"][-1]["name"] == reach.name
    run = ("--plan", "features", "--out", tmp_path / "run")
    assert json.loads(topwork("fit", npz, *low, *run).out)["plan"]["kept"] == reach.name
    assert reach.name in topwork("inspect", tmp_path / "low").err.partition("reach up to ")[2]
    above = (*run[:3], tmp_path / "none", "--frozen", top)
    refused = topwork("fit", npz, *low, *above)
    assert (refused.code, f"has weights up to {reach.name} only" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("start", "teacher", "said"),
    [
        ("mit", None, "mit"),
        (None, "mit", "mit"),
        ("mit", "apache-2.0", "apache-2.0 and mit"),
        ("mit", "", "mit and one that is not known"),
        ("", None, ""),
        (None, None, ""),
    ],
)
def test_licenses_of_all_that_weights_are_made_from(start, teacher, said):
    def source(license: str | None) -> SimpleNamespace:
        """Return a network with weights of this license, "" for an unknown one, or without any."""
        about = SimpleNamespace(about={"license": license or None})
        return SimpleNamespace(weights=None if license is None else {"file": "x"}, backbone=about)

    taught = SimpleNamespace(loaded=source(teacher)) if teacher is not None else None
    assert license_of(SimpleNamespace(loaded=source(start), teacher=taught)) == said


def test_a_model_that_keeps_few_layers_is_where_it_starts(npz, tmp_path, topwork: Command):
    run = tmp_path / "run"
    plan = ("--plan", "scratch", "--kept", "1", "--epochs", 1, "--size", 8)
    result = topwork("fit", npz, "--backbone", "topwork:small_convnet", *plan, "--out", run)
    assert result.code == 0, result.err
    wanted = {"method": "rotation", "backbone": str(run / "model"), "epochs": 1, "size": (8, 8)}
    record = pretrain(npz, tmp_path / "made", **wanted)
    kept = record["started_from"]["up_to"]
    assert kept == load_backbone(find_backbone(str(run / "model")), Plan("x", kept="1")).plan.kept
    assert f"`{run / 'model'}`" in (tmp_path / "made" / "README.md").read_text()


def test_what_is_there_to_judge_by_is_not_learned_from(tmp_path, topwork: Command):
    for side, count in (("train", 12), ("test", 8)):
        (tmp_path / "photos" / side).mkdir(parents=True)
        for number, pixels in enumerate(drawings(count, seed=count)):
            Image.fromarray(pixels).save(tmp_path / "photos" / side / f"{number}.png")
    result = topwork(
        *("pretrain", tmp_path / "photos", "--method", "rotation", "--size", 8, "--epochs", 1),
        *("--backbone", "topwork:small_convnet", "--out", tmp_path / "made", "--json"),
    )
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["images"] + record["held_out"] == 12
    assert "8 in test/ or val/ left out" in result.err


def test_what_a_fit_chooses_by_is_not_learned_from(tmp_path, caplog):
    images = images_from_arrays(
        drawings(30), [0, 1] * 15, split=["train"] * 20 + ["val"] * 4 + ["test"] * 6
    )
    wanted = {"method": "supervised", "backbone": "topwork:small_convnet"}
    wanted |= {"size": (8, 8), "epochs": 1}
    record = pretrain(images, tmp_path / "made", **wanted)
    assert record["images"] + record["held_out"] == 20
    assert record["left_aside"] == 10
    assert "give a val/ to choose by" not in caplog.text
    without = replace(images, items=tuple(i for i in images.items if i.split != "val"))
    pretrain(without, tmp_path / "other", **wanted)
    assert "give a val/ to choose by" in caplog.text


def test_weights_that_are_given_are_where_it_starts(npz, tmp_path):
    first = pretrain(npz, tmp_path / "a", method="rbm", backbone="topwork:dense", recipe=SMALL)
    weights = tmp_path / "a" / "model.safetensors"
    slow = {"phase": {**SMALL["phase"], "epochs": 1, "rate": 1e-9, "weight_decay": 0.0}}
    again = pretrain(npz, tmp_path / "b", method="rbm", backbone=str(tmp_path / "a"), recipe=slow)
    before, after = (read_state(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert first["started_from"] is None
    assert again["started_from"]["file"] == str(weights)
    found = find_backbone("topwork:dense")
    with pytest.raises(UsageError, match="give them to find_backbone"):
        pretrain(npz, tmp_path / "c", method="rbm", backbone=found, weights=weights)


def test_half_precision_is_half_the_size(npz, tmp_path, topwork: Command):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(SMALL))
    options = ("--method", "rbm", "--backbone", "topwork:dense", "--recipe", recipe)
    for name, more in (("whole", ()), ("half", ("--half",))):
        result = topwork("pretrain", npz, *options, *more, "--out", tmp_path / name)
        assert result.code == 0, result.err
    whole, half = (tmp_path / name / "model.safetensors" for name in ("whole", "half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    given, got = read_state(whole), read_state(half)
    for name, value in given.items():
        exact = value if value.ndim < 2 else value.half().float()
        assert torch.equal(got[name], exact)
    loaded = load_backbone(find_backbone(str(half.parent)), Plan(str(half.parent)))
    assert card_of(loaded) is not None  # the statistics are those of the weights as written


def test_what_half_precision_cannot_hold_is_not_lost(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "half", lambda value: torch.full_like(value, torch.inf))
    wanted = {"method": "rbm", "backbone": "topwork:dense", "recipe": SMALL}
    with pytest.raises(WeightsError, match="--resume without --half"):
        pretrain(npz, tmp_path / "made", **wanted, half=True)
    assert not (tmp_path / "made").exists()
    record = pretrain(npz, tmp_path / "made", **wanted, resume=True)
    assert len(record["epochs"]) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "rbn", "--backbone", "topwork:dense"), "rbm"),
        (("--method", "rbm", "--backbone", "topwork:cifar_resnet20"), "topwork:dense"),
        (("--method", "rbm", "--backbone", "topwork:densse"), "'dense'"),
    ],
)
def test_a_mistake_is_one_line(npz, tmp_path, topwork: Command, options, said):
    result = topwork("pretrain", npz, *options, "--out", tmp_path / "made")
    assert result.code == 2
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("method", RECIPES)
def test_a_recipe_says_what_was_done_and_can_be_given_again(method):
    recipe = recipe_of(method)
    told = json.loads(json.dumps(recipe.to_dict()))
    assert recipe.changed(told) == recipe
    other = recipe.changed({"phase": {"weight_decay": 0.01, "momentum": 0.9}})
    assert recipe.changed(json.loads(json.dumps(other.to_dict()))) == other
    assert recipe.changed({"phase": {"epochs": 3}}).phase == replace(recipe.phase, epochs=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepps": 2}, "steps"),
        ({"phase": {"epoch": 2}}, "epochs"),
        ({"phase": 3}, "object"),
        ({"steps": "two"}, "steps"),
        ({"visible": "gauss"}, "gaussian"),
        ({"arguments": 3}, "arguments"),
        ({"steps": 1.5}, "steps"),
        ({"sparsity_cost": float("nan")}, "sparsity_cost"),
        ({"phase": [1]}, "object"),
        ({"phase": {"mix": "mixup"}}, "mix"),
        ({"phase": {"epochs": 1.5}}, "epochs"),
        ({"method": "gan"}, "gan"),
        ({"phase": {"at_once": 1.5}}, "at_once is 1.5"),
        ({"phase": {"at_once": True}}, "at_once is True"),
        ({"phase": {"clip": "1"}}, "clip"),
        ({"phase": {"batch": None}}, "batch is None"),
        ({"phase": {"epochs": 0}}, "epochs is 0; give 1 or more"),
    ],
)
def test_a_recipe_is_strict(changes, said):
    with pytest.raises(PlanError, match=said):
        settle_recipe("rbm", RbmRecipe(), changes, None, None)


def test_a_recipe_is_judged_with_the_epochs_that_are_asked_for():
    changes = {"phase": {"warmup": 30, "clip": None}}
    recipe, _ = settle_recipe("rbm", RbmRecipe(), changes, 40, 0.5)
    assert (recipe.phase.warmup, recipe.phase.epochs, recipe.phase.rate) == (30, 40, 0.5)


def test_no_twin_of_what_is_held_out_is_learned_from(tmp_path):
    scenes = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    big = [
        np.asarray(Image.fromarray(s).resize((32, 32), Image.Resampling.BICUBIC)) for s in scenes
    ]
    touched = [np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8) for pixels in big]
    material = tiny_material(tmp_path, recipe_of("rotation"), images=np.stack(big + touched))
    assert len(material.held_out) == 4
    assert {(n + 40) % 80 for n in material.held_out} == set(material.held_out)
    assert sorted(material.held_out + material.indices) == list(range(80))


def test_groups_are_held_out_whole(tmp_path):
    images = images_from_arrays(drawings(60), [0, 1] * 30)
    items = [replace(item, group=f"person {n % 20}") for n, item in enumerate(images.items)]
    images = replace(images, items=tuple(items), number_names=())
    chosen, _ = settle_recipe("rotation", recipe_of("rotation"), None, 1, None)
    plan = Plan("topwork:small_convnet", reused="0", phases=(Phase(frozen="input", epochs=1),))
    request = Request(
        *("rotation", chosen, replace(plan, input_size=(8, 8)), find_backbone(plan.backbone)),
        *(images, Execution(torch.device("cpu")), 0),
    )
    networks, audited = load_networks(request), look_over(images)
    material = make_material(request, networks, audited, Checkpoints(tmp_path), untracked)
    persons = [{n % 20 for n in side} for side in (material.held_out, material.indices)]
    assert len(material.held_out) == 3
    assert not persons[0] & persons[1]


def test_groups_are_divided_where_every_one_is_large():
    assert set_aside(np.repeat([0, 1], 20), 2, seed=0).sum() == 2
    assert set_aside(np.array([0] * 20 + [1, 1, 1]), 3, seed=5).nonzero()[0].tolist() == [
        20,
        21,
        22,
    ]
