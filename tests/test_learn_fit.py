"""Fitting plans end to end on a tiny network: phases, frozen bytes, resuming, other heads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import topwork
from topwork import Augment, Hidden, Phase, Plan, Stop, TopworkError
from topwork.api import fit
from topwork.data.arrays import encode
from topwork.data.image_set import ImageSet, Item
from topwork.learn.checkpoints import Checkpoints
from topwork.learn.heads import NEVER
from topwork.network.state import read_state
from topwork.report.terminal import print_phase
from topwork.scoring import evaluate_model

TRAINED = Phase(frozen="layer2", epochs=2, rate=1e-3, batch=16)


def run(data: Any, backbone: Path, out: Path, *phases: Phase, **choices: Any) -> dict[str, Any]:
    fitted = {key: choices.pop(key) for key in ("seed", "resume", "track") if key in choices}
    return fit(data, out, plan=Plan(str(backbone), phases=phases, **choices), **fitted)


def weights(run_folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run_folder / "model" / "model.safetensors")


def below(name: str, stages: tuple[str, ...]) -> bool:
    return name.startswith(("conv1", "bn1", *stages))


def test_frozen_layers_keep_their_bytes_and_those_above_are_trained(pictures, backbone, tmp_path):
    source = {k: v.numpy() for k, v in read_state(backbone / "model.safetensors").items()}
    record = run(pictures, backbone, tmp_path / "run", Phase(), TRAINED)
    found = weights(tmp_path / "run")
    changed = {
        name for name in found if found[name].tobytes() != source.get(name, found[name]).tobytes()
    }
    assert not {name for name in changed if below(name, ("layer1", "layer2"))}
    assert any(name.startswith("layer3") for name in changed)
    assert any(name.startswith("layer4") for name in changed)
    assert [len(phase["epochs"]) for phase in record["phases"]] == [0, 2]
    assert record["cached_codes"]["largest_difference"] < 1e-4


def test_the_kept_source_statistics_are_the_sources_and_learned_ones_are_not(
    pictures, backbone, tmp_path
):
    source = {k: v.numpy() for k, v in read_state(backbone / "model.safetensors").items()}
    for policy, same in (("source", True), ("batch", False)):
        run(pictures, backbone, tmp_path / policy, replace(TRAINED, batch_norm=policy))
        mean = "layer4.0.bn1.running_mean"
        found = weights(tmp_path / policy)[mean]
        assert (found.tobytes() == source[mean].tobytes()) == same


def test_groups_are_told_with_layers_and_rates(pictures, backbone, tmp_path):
    phase = replace(TRAINED, depth_decay=0.5)
    record = run(pictures, backbone, tmp_path / "run", phase)
    rates = {}
    for group in record["phases"][0]["groups"]:
        rates |= dict.fromkeys(group["layers"], group["rate"])
    assert rates["fc"] == 1e-3
    assert rates["layer4.0.conv1"] == pytest.approx(1e-4)
    assert rates["layer3.0.conv1"] == pytest.approx(0.5e-4)
    assert not any(layer.startswith(("layer1", "layer2", "conv1")) for layer in rates)


def test_gradual_unfreezing_reports_its_curve_and_goes_back_to_the_best(
    pictures, backbone, tmp_path
):
    phase = Phase(frozen="input", gradual=True, epochs=1, rate=1e-3, stop=Stop(patience=9))
    record = run(pictures, backbone, tmp_path / "run", Phase(), phase)
    (curve,) = [p["curve"] for p in record["phases"] if p.get("gradual")]
    depths = [point["frozen"] for point in curve]
    assert depths[-1] == "input"
    assert len(depths) == len(set(depths)) >= 4
    losses = [point["loss"] for point in curve]
    assert losses == sorted(losses, reverse=True)  # each depth begins with the best so far


def test_gradual_unfreezing_gives_up_when_nothing_helps(pictures, backbone, tmp_path):
    phase = Phase(frozen="input", gradual=True, epochs=1, rate=1e-30)
    record = run(pictures, backbone, tmp_path / "run", Phase(), phase)
    gradual = next(p for p in record["phases"] if p.get("gradual"))
    assert [point["improved"] for point in gradual["curve"]] == [False, False]
    assert gradual["chosen"] is None
    assert record["phases"][-1]["images"] == 48  # the head learns from all, in the end


def test_a_phase_that_makes_things_worse_is_taken_back(pictures, backbone, tmp_path):
    wild = Phase(frozen="input", epochs=2, rate=1e-1, reused_rate=10.0, stop=Stop())
    features = run(pictures, backbone, tmp_path / "features", Phase())
    record = run(pictures, backbone, tmp_path / "wild", Phase(), wild)
    assert not record["phases"][1]["improved"]
    assert record["value"] == features["value"]
    for name, value in weights(tmp_path / "wild").items():
        assert value.tobytes() == weights(tmp_path / "features")[name].tobytes(), name


def test_a_head_solved_after_training_is_chosen_on_images_that_no_layer_saw(backbone, tmp_path):
    generator = np.random.default_rng(5)
    blocks = generator.integers(0, 256, (70, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    pictures = {f"{number:02}.png": encode(block) for number, block in enumerate(blocks)}
    labels = generator.integers(0, 2, 70)  # there is nothing to learn
    items = tuple(
        Item(name, (str(label),), "train" if number < 60 else "test")
        for number, (name, label) in enumerate(zip(pictures, labels, strict=True))
    )
    by_heart = Phase(
        frozen="input", epochs=15, rate=1e-2, reused_rate=1.0, batch=16, batch_norm="batch"
    )
    images = ImageSet("blocks", items, pictures.__getitem__)
    record = run(images, backbone, tmp_path / "run", by_heart, Phase())
    trained, solved = record["phases"]
    assert trained["epochs"][-1]["accuracy"] > 0.9
    assert trained["images"] == 48
    assert solved["images"] == 60
    found = solved["probe"]["out_of_fold"]
    assert found["n"] == 12
    assert found["interval"][0] < 0.5


def test_all_images_are_trained_on_where_no_head_follows_or_nothing_below_it_changed(
    pictures, backbone, tmp_path
):
    head = Phase(frozen="layer4", epochs=1, rate=1e-3, batch=16)
    for name, phases in (("after", (Phase(), TRAINED)), ("head", (head, Phase()))):
        record = run(pictures, backbone, tmp_path / name, *phases)
        assert [phase["images"] for phase in record["phases"]] == [48, 48]


def test_a_head_solved_between_phases_that_choose_leaves_them_their_held_out_images(
    pictures, backbone, tmp_path
):
    surely = replace(TRAINED, stop=SURELY)
    useless = replace(TRAINED, rate=1e-30, stop=Stop())
    record = run(pictures, backbone, tmp_path / "run", surely, Phase(), useless)
    first, solved, second, last = record["phases"]
    assert first["improved"]
    assert not second["improved"]
    assert first["images"] == solved["images"] == second["images"] == 48 - first["held_out"]
    # The second begins with the loss that the head was chosen by.
    assert solved["probe"]["out_of_fold"]["n"] == first["held_out"]
    chosen = solved["probe"]["table"][solved["probe"]["chosen"]]
    assert second["start"]["loss"] == pytest.approx(chosen["loss"], rel=1e-2)
    assert (last["at_last"], last["images"]) == (True, 48)
    assert last["probe"]["strength"] == solved["probe"]["strength"]


def test_a_first_phase_has_nothing_to_go_back_to(pictures, backbone, tmp_path):
    phase = replace(TRAINED, rate=1e-6, stop=Stop())  # too slow to be better beyond chance
    record = run(pictures, backbone, tmp_path / "run", phase)
    assert record["phases"][0]["improved"]
    assert record["phases"][0]["best"]["epoch"] > 0


def test_the_bar_for_held_out_images_takes_those_of_a_group_together(backbone, tmp_path):
    begun = Phase(epochs=1, rate=1e-4, batch=16)
    images, trained = brightness_set("two"), {}
    for name, size in (("alone", 1), ("groups", 4), ("one group", 99)):
        items = tuple(
            replace(item, group=f"{item.split} {number // (size if item.split == 'val' else 1)}")
            for number, item in enumerate(sorted(images.items, key=lambda item: item.split))
        )
        data, phase = replace(images, items=items), replace(begun, rate=1e-2, stop=Stop())
        trained[name] = run(data, backbone, tmp_path / name, begun, phase)["phases"][1]
    losses = [[epoch["tempered_loss"] for epoch in each["epochs"]] for each in trained.values()]
    assert losses[0] == losses[1]
    gains = {name: each["gain"] for name, each in trained.items()}
    assert gains["alone"] > 0
    assert gains["groups"] not in (0, pytest.approx(gains["alone"], rel=1e-3))
    assert (gains["one group"], trained["one group"]["improved"]) == (0, False)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_the_temperature_of_what_is_kept_lies_in_the_shipped_head(head, backbone, tmp_path):
    images = brightness_set("two")
    smoothing = 0.3 if head == "softmax" else 0.0
    phase = Phase(epochs=6, rate=1e-2, batch=16, stop=Stop(), label_smoothing=smoothing)
    record = run(images, backbone, tmp_path / "run", phase, head=head)
    (trained,) = record["phases"]
    best = trained["best"]
    assert abs(best["temperature"] - 1) > 0.1
    assert best["loss"] == min(epoch["tempered_loss"] for epoch in trained["epochs"])
    assert best["loss"] < trained["epochs"][best["epoch"] - 1]["validation_loss"]
    held_out = replace(images, items=tuple(i for i in images.items if i.split == "val"))
    shipped = evaluate_model(tmp_path / "run" / "model", held_out)
    assert shipped["n"] == trained["held_out"] > 0
    assert shipped["test"]["log_loss"]["value"] == pytest.approx(best["loss"], rel=1e-3)
    grouped = replace(held_out, items=tuple(replace(i, group="one") for i in held_out.items))
    assert evaluate_model(tmp_path / "run" / "model", grouped)["test"]["groups"] == 1


def test_a_class_without_training_images_still_never_wins(backbone, tmp_path):
    images = brightness_set("tested")
    phase = Phase(frozen="layer3", epochs=2, rate=1e-3, batch=16, stop=Stop(accuracy=0.0))
    record = run(images, backbone, tmp_path / "run", Phase(), phase)
    solved, trained = record["phases"]
    assert trained["improved"]
    assert trained["best"]["temperature"] != 1
    number = record["classes"].index("unseen")
    found = weights(tmp_path / "run")
    temperature = solved["probe"]["temperature"]
    assert found["fc.bias"][number] == pytest.approx(NEVER / temperature, rel=1e-6)
    assert not found["fc.weight"][number].any()


def test_records_are_strict_json(backbone, tmp_path):
    phase = Phase(epochs=2, rate=1e-3, batch=16, stop=Stop())
    for name, kind, head in (("a", "two", "softmax"), ("b", "numbers", "regression")):
        data = brightness_set(kind)
        run(data, backbone, tmp_path / name, phase, head=head)
        text = (tmp_path / name / "record.json").read_text(encoding="utf-8")
        json.loads(text, parse_constant=pytest.fail)


def test_an_accuracy_that_is_enough_ends_the_phase_with_that_epoch(pictures, backbone, tmp_path):
    phase = replace(TRAINED, epochs=5, stop=Stop(accuracy=0.0), label_smoothing=0.5)
    record = run(pictures, backbone, tmp_path / "run", Phase(), phase)
    trained = record["phases"][1]
    assert len(trained["epochs"]) == trained["best"]["epoch"] == 1
    assert trained["improved"]
    assert "reached 0" in trained["stopped"]


def test_a_class_is_never_held_out_whole(backbone, tmp_path):
    images = brightness_set("classes")
    record = run(images, backbone, tmp_path / "run", Phase(), replace(TRAINED, stop=Stop()))
    assert record["phases"][1]["images"] + record["phases"][1]["held_out"] == 60
    assert record["test"]["absent"] == []


def test_another_plan_leaves_the_checkpoints_of_an_interrupted_one(
    pictures, backbone, tmp_path, monkeypatch
):
    interrupt(pictures, backbone, tmp_path / "run", monkeypatch)
    left = sorted((tmp_path / "run.unfinished" / "checkpoints").iterdir())
    run(pictures, backbone, tmp_path / "run", Phase())
    assert sorted((tmp_path / "run.unfinished" / "checkpoints").iterdir()) == left != []


class Interrupting:
    """Shows no progress, and breaks off after some steps of training."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, sequence, description):
        for part in sequence:
            if "training" in description:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            yield part


SURELY = Stop(patience=2, accuracy=0.01)  # the epoch is kept, its temperature folded
PHASES = {
    "two phases": (
        Phase(),
        Phase(frozen="layer3", epochs=2, rate=1e-3, batch=16, stop=SURELY, label_smoothing=0.2),
        Phase(frozen="layer1", epochs=1, rate=1e-3, batch=16, mix="mixup", average=0.9),
    ),
    "gradual": (Phase(frozen="layer1", gradual=True, epochs=1, batch=16, rate=1e-3),),
    "range test": (Phase(frozen="layer2", epochs=2, batch=16, optimizer="sgd"),),
}


def an_hour_later(save):
    """Let what is saved tell that all took an hour longer than it did."""

    def later(self, tensors, facts):
        told = {key: facts[key] + 3600 for key in ("elapsed", "seconds") if key in facts}
        save(self, tensors, facts | told)

    return later


@pytest.mark.parametrize("way", PHASES)
def test_resumed_after_any_step_gives_the_same_bytes(
    way, pictures, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    monkeypatch.setattr(Checkpoints, "save", an_hour_later(Checkpoints.save))
    plan = PHASES[way]
    run(pictures, backbone, tmp_path / "whole", *plan, views=2)
    expected = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    out, interruptions = tmp_path / "broken", 0
    for steps in (1, 2, 3, 1, 4, 2, 99):
        try:
            run(pictures, backbone, out, *plan, views=2, resume=True, track=Interrupting(steps))
            break
        except KeyboardInterrupt:
            interruptions += 1
            assert list((tmp_path / "broken.unfinished").glob("checkpoints/*"))
            assert not out.exists()
    assert interruptions >= 2
    record = json.loads((out / "record.json").read_text())
    # Interrupted ones took up an hour each, as far as the last save of theirs tells.
    assert record["seconds"] > record["timings"]["fit"] > 3600 * interruptions
    trained = [phase for phase in record["phases"] if phase["epochs"]]
    assert sum(phase["seconds"] for phase in trained) > 3600
    assert (out / "model" / "model.safetensors").read_bytes() == expected
    assert not (tmp_path / "broken.unfinished").exists()


def interrupt(pictures, backbone, out, monkeypatch, phase=TRAINED, **choices):
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    with pytest.raises(KeyboardInterrupt):
        run(pictures, backbone, out, phase, track=Interrupting(4), **choices)


def test_an_interrupted_fit_is_not_begun_anew_by_accident(
    pictures, backbone, tmp_path, monkeypatch
):
    interrupt(pictures, backbone, tmp_path / "run", monkeypatch)
    with pytest.raises(TopworkError, match="was interrupted or failed; --resume goes on"):
        run(pictures, backbone, tmp_path / "run", TRAINED)


@pytest.mark.parametrize(
    ("phase", "choices", "what"),
    [
        (replace(TRAINED, rate=2e-3), {}, "plan"),
        (TRAINED, {"seed": 5}, "seed"),
    ],
)
def test_another_fit_is_not_resumed(
    phase, choices, what, pictures, backbone, tmp_path, monkeypatch
):
    interrupt(pictures, backbone, tmp_path / "run", monkeypatch)
    with pytest.raises(TopworkError, match=f"had another {what}"):
        run(pictures, backbone, tmp_path / "run", phase, resume=True, **choices)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    pictures, backbone, tmp_path, monkeypatch, caplog
):
    run(pictures, backbone, tmp_path / "whole", TRAINED)
    interrupt(pictures, backbone, tmp_path / "run", monkeypatch)
    newest = max((tmp_path / "run.unfinished" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    run(pictures, backbone, tmp_path / "run", TRAINED, resume=True)
    assert f"{newest} is damaged" in caplog.text
    files = [
        folder / "model" / "model.safetensors" for folder in (tmp_path / "whole", tmp_path / "run")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_codes_from_several_depths_with_the_cut_between_them(pictures, backbone, tmp_path):
    phase = replace(TRAINED, frozen="layer3")
    record = run(pictures, backbone, tmp_path / "run", phase, codes=("layer2", "layer3", "layer4"))
    assert record["cached_codes"]["largest_difference"] < 1e-4
    shapes = {cut["name"]: cut["shape"] for cut in topwork.inspect(str(backbone))["cuts"]}
    head = topwork.load(tmp_path / "run").opened.model.head
    assert head.in_features == sum(shapes[name][0] for name in record["plan"]["codes"])


def test_added_layers_are_trained_saved_and_opened_again(pictures, backbone, tmp_path):
    added = (Hidden(12, norm="batch", dropout=0.1), Hidden(8, activation="gelu", norm="layer"))
    phase = Phase(epochs=3, rate=1e-2, batch=16)
    record = run(pictures, backbone, tmp_path / "run", phase, added=added)
    assert record["why_not_timm"] == "hidden layers were added"
    found = weights(tmp_path / "run")
    assert found["added.0.weight"].shape[0] == 12
    assert found["added.1.num_batches_tracked"] == 9
    image = next((pictures / "test").glob("*/*.png"))
    assert topwork.load(tmp_path / "run").predict([image])[0] in record["classes"]


def test_layers_above_reused_start_from_random_weights(pictures, backbone, tmp_path):
    source = {k: v.numpy() for k, v in read_state(backbone / "model.safetensors").items()}
    phase = Phase(frozen="layer2", epochs=1, rate=1e-9, batch=48)
    run(pictures, backbone, tmp_path / "run", phase, reused="layer2", seed=5)
    found = weights(tmp_path / "run")
    assert np.array_equal(found["layer2.0.conv1.weight"], source["layer2.0.conv1.weight"])
    assert not np.allclose(
        found["layer3.0.conv1.weight"], source["layer3.0.conv1.weight"], atol=1e-3
    )
    assert found["layer3.0.bn1.num_batches_tracked"] == 1


def test_random_frozen_layers_get_statistics_of_their_own_first(pictures, backbone, tmp_path):
    run(pictures, backbone, tmp_path / "run", Phase(), reused="input", frozen_random=True)
    found = weights(tmp_path / "run")
    assert found["bn1.num_batches_tracked"] == 1
    assert not np.allclose(found["layer4.0.bn1.running_mean"], 0)


def test_views_are_taken_in_turn(pictures, backbone, tmp_path):
    plain = run(pictures, backbone, tmp_path / "plain", TRAINED)
    varied = run(
        pictures, backbone, tmp_path / "varied", TRAINED, views=2, augment=Augment(least_area=0.3)
    )
    first = [record["phases"][0]["epochs"][0]["loss"] for record in (plain, varied)]
    assert first[0] == first[1]  # view 0 is the plain one
    losses = [record["phases"][0]["epochs"][1]["loss"] for record in (plain, varied)]
    assert losses[0] != losses[1]


def test_a_head_solved_on_several_views_counts_images(pictures, backbone, tmp_path):
    augment = Augment(least_area=0.3)
    record = run(pictures, backbone, tmp_path / "run", Phase(), views=3, augment=augment)
    (solved,) = record["phases"]
    assert solved["images"] == solved["probe"]["out_of_fold"]["n"] == 48


def brightness_set(kind: str) -> ImageSet:
    """Return flat gray images whose labels follow from their brightness."""
    generator = np.random.default_rng(3)
    levels = generator.integers(0, 256, 80)
    pictures = {}
    items = []
    for number, level in enumerate(levels):
        name = f"{number:02}.png"
        noise = generator.integers(-20, 20, (32, 32))
        pictures[name] = encode(np.clip(level + noise, 0, 255).astype(np.uint8))
        labels: tuple[str, ...] = (str(level),)
        if kind == "classes":  # one image alone is of the third class that is trained on
            labels = ("rare",) if number in (0, 70) else ("bright" if level > 127 else "dark",)
        if kind in ("two", "tested"):
            labels = ("bright" if level > 127 else "dark",)
        if kind == "tested" and number == 70:
            labels = ("unseen",)
        if kind == "labels":
            labels = ("bright",) * int(level > 127) + ("light",) * int(level > 64)
        side = "train" if number < 60 else "test"
        if kind == "two" and number % 3 == 0 and number < 60:
            side = "val"
        items.append(Item(name, labels, side))
    return ImageSet("brightness", tuple(items), pictures.__getitem__, multilabel=kind == "labels")


def test_several_labels_are_learned(backbone, tmp_path):
    phases = (Phase(), Phase(frozen="layer3", epochs=3, rate=1e-3, batch=16))
    record = run(brightness_set("labels"), backbone, tmp_path / "run", *phases, head="sigmoid")
    assert record["metric"] == "mean_average_precision"
    assert record["value"] > 0.9


def test_numbers_are_learned_in_their_own_units(backbone, tmp_path):
    for name, phases in {
        "solved": (Phase(),),
        "trained": (Phase(), Phase(frozen="layer3", epochs=8, rate=1e-2, batch=16)),
        "from nothing": (Phase(epochs=60, rate=3e-2, batch=16),),
    }.items():
        data = replace(brightness_set("numbers"), number_names=("level",))
        record = run(data, backbone, tmp_path / name, *phases, head="regression")
        assert record["metric"] == "mean_absolute_error"
        assert record["value"] < 30, name  # guessing the mean errs by about 64


def test_of_numbers_no_share_is_told(backbone, tmp_path, capsys):
    data = replace(brightness_set("numbers"), number_names=("level",))
    gradual = Phase(frozen="layer3", gradual=True, epochs=1, rate=1e-3, batch=16)
    record = run(data, backbone, tmp_path / "run", Phase(), gradual, head="regression")
    (phase,) = (phase for phase in record["phases"] if phase.get("gradual"))
    assert phase["start"]["accuracy"] is None
    print_phase(phase, 2)
    (before,) = (line for line in capsys.readouterr().out.splitlines() if "before it" in line)
    assert "0.0" not in before


@pytest.mark.parametrize(
    ("phase", "choices", "message"),
    [
        (TRAINED, {"head": "svm"}, "phase 1 trains by gradient descent, which a svm head is not"),
        (Phase(), {"added": (Hidden(8),)}, "phase 1 solves for the head alone, but the added"),
        (Phase(frozen="layer2"), {}, "phase 1 freezes only up to layer2, but has no epochs"),
        (Phase(epochs=1, mix="cutmix", rate=1e-3), {}, "phase 1: cutmix needs a map"),
        (Phase(epochs=1, gradual=True), {}, "there is nothing between layer4"),
        (
            Phase(epochs=1, label_smoothing=0.1, rate=1e-3),
            {"head": "sigmoid"},
            "phase 1: label_smoothing spreads a label over classes; it needs head softmax",
        ),
        (
            Phase(epochs=1, label_smoothing=0.1, rate=1e-3),
            {"head": "regression"},
            "phase 1: label_smoothing spreads",
        ),
        (
            Phase(epochs=1, stop=Stop(accuracy=0.9)),
            {"head": "regression"},
            "phase 1: numbers have no accuracy to stop at",
        ),
    ],
)
def test_plans_that_contradict_themselves(phase, choices, message, pictures, backbone, tmp_path):
    with pytest.raises(TopworkError) as raised:
        run(pictures, backbone, tmp_path / "run", phase, **choices)
    assert message in str(raised.value)
    assert not (tmp_path / "run.unfinished").exists()


def test_a_plan_file_is_all_it_takes(pictures, backbone, tmp_path, topwork):
    Plan(str(backbone), phases=(Phase(), TRAINED)).save(tmp_path / "plan.json")
    result = topwork(
        "fit", pictures, "--plan", tmp_path / "plan.json", "--out", tmp_path / "run", "--json"
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["phases"][1]["frozen"] == "layer2"
    assert "phase 2: training what lies above layer2" in result.err
