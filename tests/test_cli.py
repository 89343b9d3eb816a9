"""The commands from end to end: fit, predict, eval, export, and what the others print."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from topwork import api, cli
from topwork.data.augment import View, render_view
from topwork.data.decode import decode
from topwork.network.predictor import load

COMMANDS = (
    *("demo", "fit", "profile", "advise", "report", "predict"),
    *("eval", "inspect", "zoo", "cache", "export"),
)


def strict_json(text: str) -> dict:
    """Return the one object that a text holds; NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_headline(found: dict, count: int) -> None:
    low, high = found["interval"]
    assert 0 <= low <= found["value"] <= high <= 1
    assert low < high, f"{count} images do not make certain"
    assert found["metric"] == "accuracy"
    assert found["accuracy"] == found["value"]
    assert found["n"] == count
    assert found["seconds"] > 0


# --- fit ----------------------------------------------------------------------------------------


def test_fit_prints_the_record_and_writes_the_run(fitted) -> None:
    assert fitted.result.code == 0
    record = strict_json(fitted.result.out)
    assert_headline(record, 24)
    assert record["accuracy"] >= 0.9  # discs, squares and stripes are easy
    assert record["seed"] == 0
    assert record["plan"]["kept"] == "layer4"
    assert record["command"][:2] == ["topwork", "fit"]
    assert record["cached_codes"]["computed"] == record["cached_codes"]["images"] == 72
    assert record["cached_codes"]["value"] == record["accuracy"]
    assert record["why_not_timm"] is None
    assert record == strict_json(read(fitted.folder / "record.json"))
    assert files_in(fitted.folder) == {
        "record.json",
        "split.csv",
        "predictions.csv",
        "report.html",
        "report.json",
        "report.md",
        "model/config.json",
        "model/model.safetensors",
        "model/topwork.json",
    }
    assert record["advice"] is None
    assert fitted.result.err == ""


def test_the_run_lists_every_image(fitted, pictures) -> None:
    rows = table(read(fitted.folder / "split.csv"))
    assert {row["name"] for row in rows} == files_in(pictures)
    for row in rows:
        side, label, _ = row["name"].split("/")
        assert (row["side"], row["label"]) == (side, label)
        assert row["sha256"] == hashlib.sha256((pictures / row["name"]).read_bytes()).hexdigest()


def test_the_runs_predictions_give_its_accuracy(fitted) -> None:
    rows = table(read(fitted.folder / "predictions.csv"))
    assert all(row["name"].startswith("test/") for row in rows)
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert (right / len(rows), len(rows)) == (strict_json(fitted.result.out)["accuracy"], 24)


def test_fit_for_people(topwork, pictures, backbone, fitted, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOPWORK_CACHE", str(fitted.cache))
    result = topwork(
        "fit", pictures, "--plan", "features", "--backbone", backbone, "--out", tmp_path / "run"
    )
    assert result.code == 0
    accuracy = strict_json(fitted.result.out)["accuracy"]
    assert re.search(rf"^ accuracy +{accuracy:.3f} +0\.\d+ to [01]\.\d+ +24", result.out, re.M)
    assert f"run folder: {tmp_path}/run\n" in result.out
    assert f"next: topwork predict {tmp_path}/run IMAGE...\n" in result.out
    assert "72 images, 3 classes: 48 train, 24 test (as given)\n" in result.err


def test_a_second_fit_computes_nothing_and_gives_the_same_bytes(
    topwork, pictures, backbone, fitted, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TOPWORK_CACHE", str(fitted.cache))
    run = tmp_path / "made" / "here"
    result = topwork(
        "fit", pictures, "--plan", "features", "--backbone", backbone, "--out", run, "--json"
    )
    first, second = strict_json(fitted.result.out), strict_json(result.out)
    assert second["cached_codes"]["computed"] == 0
    assert second["test"] == first["test"]
    for name in ("model/model.safetensors", "model/config.json", "split.csv", "predictions.csv"):
        assert (run / name).read_bytes() == (fitted.folder / name).read_bytes(), name


def test_a_zip_of_the_folder_gives_the_same_from_the_same_cache(
    topwork, pictures, backbone, fitted, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TOPWORK_CACHE", str(fitted.cache))
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", pictures)
    run = tmp_path / "run"
    result = topwork(
        "fit", packed, "--plan", "features", "--backbone", backbone, "--out", run, "--json"
    )
    first, second = strict_json(fitted.result.out), strict_json(result.out)
    assert second["cached_codes"]["computed"] == 0
    assert second["test"] == first["test"]
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (fitted.folder / weights).read_bytes()


def test_images_that_are_new_are_the_only_ones_computed(
    topwork, pictures, backbone, fitted, tmp_path, monkeypatch
) -> None:
    cache = shutil.copytree(fitted.cache, tmp_path / "cache")
    monkeypatch.setenv("TOPWORK_CACHE", str(cache))
    data = shutil.copytree(pictures, tmp_path / "data")
    picture = data / "train" / "disc" / "00.png"
    picture.rename(picture.with_name("renamed.png"))
    (data / "train" / "square" / "new.png").write_bytes(changed_pixel(picture.with_name("01.png")))
    result = topwork(
        "fit",
        data,
        "--plan",
        "features",
        "--backbone",
        backbone,
        "--out",
        tmp_path / "run",
        "--json",
        "--head",
        "ridge",
    )
    assert strict_json(result.out)["cached_codes"]["computed"] == 1


def changed_pixel(path: Path) -> bytes:
    from PIL import Image, ImageOps

    changed = io.BytesIO()
    ImageOps.mirror(Image.open(path)).save(changed, "PNG")
    return changed.getvalue()


def test_an_earlier_stage(fitted_lower) -> None:
    record = strict_json(fitted_lower.result.out)
    assert_headline(record, 24)
    assert record["plan"]["kept"] == "layer3"
    assert not (fitted_lower.folder / "model" / "config.json").exists()
    facts = strict_json(read(fitted_lower.folder / "model" / "topwork.json"))
    assert facts["why_not_timm"] == "the head reads layer3, not L (layer4) alone"
    assert facts["plan"] == record["plan"]


def test_a_broken_image_is_named_and_left_out(topwork, pictures, backbone, tmp_path) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    (data / "test" / "disc" / "broken.png").write_bytes(b"no image")
    result = topwork(
        "fit", data, "--plan", "features", "--backbone", backbone, "--out", tmp_path / "run"
    )
    assert result.code == 0
    reason = "not an image, or its header is damaged"
    assert f"1 unreadable, left out: test/disc/broken.png: {reason}\n" in result.err
    rows = {row["name"]: row["side"] for row in table(read(tmp_path / "run" / "split.csv"))}
    assert rows["test/disc/broken.png"] == "none"
    assert strict_json(read(tmp_path / "run" / "record.json"))["n"] == 24


def test_an_empty_run_folder_is_taken(topwork, pictures, backbone, fitted, tmp_path, monkeypatch):
    monkeypatch.setenv("TOPWORK_CACHE", str(fitted.cache))
    (tmp_path / "run").mkdir()
    result = topwork(
        "fit", pictures, "--plan", "features", "--backbone", backbone, "--out", tmp_path / "run"
    )
    assert result.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- predict ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(pictures, tmp_path, monkeypatch) -> list[str]:
    """Return the names of a few pictures, a broken one among them; they lie where we are."""
    monkeypatch.chdir(tmp_path)
    for number, label in enumerate(("disc", "square", "stripes")):
        shutil.copy(pictures / "test" / label / "00.png", f"{number}-{label}.png")
    Path("1-broken.png").write_bytes(b"no image")
    return sorted(path.name for path in tmp_path.iterdir())


def test_predict_csv(topwork, fitted, mixed) -> None:
    result = topwork("predict", fitted.folder, *mixed, "--top", 2)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "path,label,probability,label_2,probability_2,error"
    assert lines[2] == '1-broken.png,,,,,"not an image, or its header is damaged"'
    rows = table(result.out)
    assert [row["path"] for row in rows] == mixed
    assert [row["label"] for row in rows] == ["disc", "", "square", "stripes"]
    for row in (rows[0], *rows[2:]):
        assert row["error"] == ""
        assert row["label_2"] in {"disc", "square", "stripes"} - {row["label"]}
        assert 1 >= float(row["probability"]) >= float(row["probability_2"]) >= 0
    assert result.err == "1-broken.png: not an image, or its header is damaged\n"


def test_predict_json_lines(topwork, fitted, mixed) -> None:
    result = topwork("predict", fitted.folder, *mixed, "--top", 2, "--format", "jsonl")
    assert result.code == 0
    rows = [strict_json(line) for line in result.out.splitlines()]
    assert [row["path"] for row in rows] == mixed
    assert rows[1] == {
        "path": "1-broken.png",
        "error": "not an image, or its header is damaged",
    }
    for row in (rows[0], *rows[2:]):
        assert row.keys() == {"path", "top"}
        assert [best.keys() for best in row["top"]] == [{"label", "probability"}] * 2
        assert row["path"].endswith(f"-{row['top'][0]['label']}.png")


def test_predict_one_json_object(topwork, fitted, mixed) -> None:
    lines = topwork("predict", fitted.folder, *mixed, "--format", "jsonl").out.splitlines()
    result = topwork("predict", fitted.folder / "model", *mixed, "--json")
    assert strict_json(result.out) == {
        "model": f"{fitted.folder}/model",
        "predictions": [strict_json(line) for line in lines],
    }


def test_predict_takes_the_mean_over_views(topwork, fitted, mixed) -> None:
    result = topwork("predict", fitted.folder, *mixed, "--views", 3, "--top", 3, "--json")
    model = load(fitted.folder)
    found = [row for row in strict_json(result.out)["predictions"] if "error" not in row]
    assert found
    for row in found:
        data = Path(row["path"]).read_bytes()
        picture, digest = decode(data, "it"), hashlib.sha256(data).hexdigest()
        answers = [
            model.answers(render_view(picture, model.opened.preprocessing, View(n), digest)[None])
            for n in range(3)
        ]
        assert len(np.unique(answers, axis=0)) == 3
        mean = dict(zip(model.labels, np.mean(answers, axis=0)[0], strict=True))
        assert {p["label"]: p["probability"] for p in row["top"]} == pytest.approx(mean, abs=1e-6)


def test_predict_asks_for_more_classes_than_there_are(topwork, fitted, mixed) -> None:
    result = topwork("predict", fitted.folder, mixed[0], "--top", 9, "--json")
    (row,) = strict_json(result.out)["predictions"]
    assert sum(best["probability"] for best in row["top"]) == pytest.approx(1, abs=1e-5)
    assert {best["label"] for best in row["top"]} == {"disc", "square", "stripes"}


def test_predict_a_folder_as_the_run_did(topwork, fitted, pictures) -> None:
    result = topwork("predict", fitted.folder, pictures / "test")
    assert result.code == 0
    found = {
        Path(row["path"]).relative_to(pictures).as_posix(): (row["label"], row["probability"])
        for row in table(result.out)
    }
    noted = table(read(fitted.folder / "predictions.csv"))
    assert found.keys() == {row["name"] for row in noted}
    for row in noted:
        label, probability = found[row["name"]]
        assert label == row["predicted"]
        assert float(probability) == pytest.approx(float(row["probability"]), abs=2e-6)


def test_a_name_that_the_terminal_cannot_show_ends_no_run(fitted, mixed) -> None:
    Path(mixed[0]).rename("blåbär.png")
    done = subprocess.run(
        [sys.executable, "-m", "topwork", "predict", fitted.folder, "blåbär.png"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[1].startswith(b"bl\\xe5b\\xe4r.png,")


def test_predict_nothing_that_can_be_read(topwork, fitted, mixed) -> None:
    result = topwork("predict", fitted.folder, "1-broken.png")
    assert result.code == 2
    assert len(table(result.out)) == 1
    assert result.err.splitlines()[-1] == "topwork: none of the 1 images can be read"


# --- eval and export ----------------------------------------------------------------------------


def test_eval(topwork, fitted, pictures) -> None:
    result = topwork("eval", fitted.folder, pictures / "test", "--json")
    found = strict_json(result.out)
    assert_headline(found, 24)
    assert found["test"] == strict_json(fitted.result.out)["test"]
    assert (found["unreadable"], found["left_out"], result.err) == (0, [], "")
    assert found["learned_from"] == 0


def test_eval_says_that_images_were_learned_from(topwork, fitted, pictures, tmp_path) -> None:
    result = topwork("eval", fitted.folder, pictures)
    assert result.err == (
        "48 of these images were there when the model was fitted, which flatters it; its own test"
        " score is in the run's record.json\n"
    )
    found = strict_json(topwork("eval", fitted.folder / "model", pictures, "--json").out)
    assert (found["learned_from"], found["n"]) == (48, 72)
    alone = shutil.copytree(fitted.folder / "model", tmp_path / "alone")
    assert strict_json(topwork("eval", alone, pictures, "--json").out)["learned_from"] is None


def test_eval_names_what_it_leaves_out(topwork, fitted, pictures, tmp_path) -> None:
    shutil.copytree(pictures / "test", tmp_path / "test")
    rows = [f"test/{label}/{n:02}.png,{label}" for label in ("disc", "stripes") for n in range(10)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *rows]))
    result = topwork("eval", fitted.folder, table, "--json")
    found = strict_json(result.out)
    assert (found["n"], found["unreadable"]) == (16, 0)
    missing = [f"test/{label}/{n:02}.png" for label in ("disc", "stripes") for n in (8, 9)]
    assert found["left_out"] == [[name, "no such file"] for name in missing]
    assert (
        "not scored: test/disc/08.png: no such file\n" in topwork("eval", fitted.folder, table).err
    )


def test_eval_of_some_classes_with_a_broken_image(topwork, fitted, pictures, tmp_path) -> None:
    for label in ("disc", "stripes"):
        shutil.copytree(pictures / "test" / label, tmp_path / label)
    (tmp_path / "disc" / "broken.png").write_bytes(b"no image")
    result = topwork("eval", fitted.folder, tmp_path, "--json")
    found = strict_json(result.out)
    assert_headline(found, 16)
    assert found["unreadable"] == 1
    result = topwork("eval", fitted.folder, tmp_path)
    assert result.err.startswith(f"not scored: {found['left_out'][0][0]}: ")
    assert len(result.err.splitlines()) == 1
    assert re.search(r"^ accuracy +[01]\.\d+ .* 16", result.out, re.M)


def test_eval_of_one_class(topwork, fitted, pictures, tmp_path) -> None:
    shutil.copytree(pictures / "test" / "disc", tmp_path / "new" / "disc")
    found = strict_json(topwork("eval", fitted.folder, tmp_path / "new", "--json").out)
    assert_headline(found, 8)
    whole = strict_json(topwork("eval", fitted.folder, pictures / "test", "--json").out)
    assert found["value"] == whole["test"]["per_class"][0]["recall"]["value"]
    shutil.move(tmp_path / "new" / "disc", tmp_path / "new" / "disk")
    assert "'disk'" in topwork("eval", fitted.folder, tmp_path / "new").err


def test_export(topwork, fitted, tmp_path) -> None:
    for form, name in (("timm", "model"), ("pt2", "model.pt2")):
        out = tmp_path / name
        result = topwork("export", fitted.folder, "--format", form, "--out", out, "--json")
        expected = {"model": str(fitted.folder), "format": form, "path": str(out)}
        assert strict_json(result.out) == expected
        assert out.exists()
    assert files_in(tmp_path / "model") == {"config.json", "model.safetensors"}


def test_an_export_makes_its_folder(topwork, fitted, tmp_path) -> None:
    out = tmp_path / "made" / "here" / "model.pt2"
    assert topwork("export", fitted.folder, "--format", "pt2", "--out", out).code == 0
    assert out.stat().st_size > 0


def test_the_export_is_named_after_the_run(topwork, fitted, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = topwork("export", fitted.folder, "--format", "timm")
    assert result.out == "wrote run-timm\n"
    assert files_in(tmp_path / "run-timm") == {"config.json", "model.safetensors"}


# --- what the other commands print --------------------------------------------------------------


def test_inspect(topwork, backbone) -> None:
    found = strict_json(topwork("inspect", backbone, "--json").out)
    assert [cut["depth"] for cut in found["cuts"]] == list(range(8))
    assert (found["cuts"][0]["name"], found["cuts"][-1]["name"]) == ("input", "layer4")
    assert (found["head"], found["input_size"]) == ("fc", [64, 64])
    half = strict_json(topwork("inspect", backbone, "--size", 32, "--json").out)
    assert half["cuts"][3]["shape"] == [32, 16, 16]
    printed = topwork("inspect", backbone).out
    assert all(cut["name"] in printed for cut in found["cuts"])


def test_zoo(topwork) -> None:
    found = strict_json(topwork("zoo", "--json").out)
    assert found["backbones"][0]["name"] == "topwork:rootstock"
    printed = topwork("zoo").out
    assert all(entry["name"] in printed for entry in found["backbones"])
    one = strict_json(topwork("zoo", "topwork:small_convnet", "--json").out)
    assert (one["name"], one["weights"]) == ("topwork:small_convnet", None)


def test_cache_ls(topwork, fitted, monkeypatch) -> None:
    result = topwork("cache", "ls", "--json")
    assert strict_json(result.out)["stores"] == []
    monkeypatch.setenv("TOPWORK_CACHE", str(fitted.cache))
    found = strict_json(topwork("cache", "ls", "--json").out)
    assert found["folder"] == str(fitted.cache)
    (store,) = found["stores"]
    assert [store["key"]] == strict_json(fitted.result.out)["cached_codes"]["keys"]
    assert (store["cut"], store["pool"], store["images"]) == ("layer4", "avg", 72)
    on_disk = sum(path.stat().st_size for path in fitted.cache.rglob("*.safetensors"))
    assert store["bytes"] == on_disk
    assert store["key"][:12] in topwork("cache", "ls").out


def test_help_names_every_command(topwork) -> None:
    result = topwork("--help")
    assert (result.code, result.err) == (0, "")
    assert [name for name in COMMANDS if not re.search(rf"^\W+{name}\b", result.out, re.M)] == []


def test_no_command_is_help_too(topwork) -> None:
    result = topwork()
    assert (result.code, result.err) == (2, "")
    assert "Usage" in result.out


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "torchvision", "timm", "sklearn", "matplotlib", "numpy", "PIL")
    script = f"import topwork.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# --- stopping -----------------------------------------------------------------------------------


def test_interrupted(topwork, tmp_path, monkeypatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "fit", interrupt)
    result = topwork("fit", tmp_path, "--backbone", "b", "--out", tmp_path / "run")
    assert result.code == 130
    assert result.err == "topwork: interrupted; what was cached stays\n"
    assert result.out == ""


STOPPED = """
import sys, time
from topwork import api, cli

def score(*arguments):
    print("scoring", flush=True)
    time.sleep(60)

api.score = score  # by then the run folder is half written
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGTERM to catch")
def test_terminated_half_way(pictures, backbone, fitted, tmp_path) -> None:
    command = [
        "fit",
        pictures,
        "--plan",
        "features",
        "--backbone",
        backbone,
        "--out",
        tmp_path / "run",
    ]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, *command],
        env={**os.environ, "TOPWORK_CACHE": str(fitted.cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "scoring\n"
        assert [path.name for path in tmp_path.iterdir()] == ["run.unfinished"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_traceback(tmp_path) -> None:
    command = [sys.executable, "-m", "topwork", "zoo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("kind", ["a link to an empty folder", "a link to nothing", "."])
def test_a_run_folder_may_be_a_link_or_the_folder_one_is_in(
    kind, topwork, pictures, backbone, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    if kind == ".":
        monkeypatch.chdir(tmp_path / "real")
        out = Path()
    else:
        if kind == "a link to nothing":
            (tmp_path / "real").rmdir()
        out = Path("link")
        out.symlink_to(tmp_path / "real")
    result = topwork("fit", pictures, "--plan", "features", "--backbone", backbone, "--out", out)
    assert result.code == 0, result.err
    assert (tmp_path / "real" / "record.json").is_file()


def test_files_that_are_lost_during_a_run_are_named(
    pictures, backbone, tmp_path, monkeypatch
) -> None:
    from topwork import api

    shutil.copytree(pictures, tmp_path / "data")
    audit = api.audit

    def then_lose(images, **options):
        audited = audit(images, **options)
        (tmp_path / "data" / "train" / "disc" / "03.png").unlink()
        (tmp_path / "data" / "test" / "disc" / "02.png").unlink()
        other = tmp_path / "data" / "test" / "stripes" / "01.png"
        (tmp_path / "data" / "test" / "square" / "01.png").write_bytes(other.read_bytes())
        return audited

    monkeypatch.setattr(api, "audit", then_lose)
    record = api.fit(tmp_path / "data", tmp_path / "run", backbone=str(backbone))
    assert sorted(name for name, _ in record["data"]["lost_later"]) == [
        "test/disc/02.png",
        "test/square/01.png",
        "train/disc/03.png",
    ]
    assert record["n"] == 22
    assert sum("lost after the audit" in note for note in record["notes"]) == 3


@pytest.mark.parametrize(
    ("raised", "is_ours"),
    [
        (lambda: torch.empty(2**60), True),
        (lambda: np.empty(2**48), True),
        (lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")), True),
        (lambda: torch.ones(2) @ torch.ones(3), False),
    ],
    ids=["torch", "numpy", "cuda", "a bug"],
)
def test_where_memory_runs_out_it_is_one_line(monkeypatch, capsys, raised, is_ours) -> None:
    def app(**how: object) -> None:
        list(raised())

    monkeypatch.setattr(cli, "app", app)
    if not is_ours:
        with pytest.raises(RuntimeError, match="size"):
            cli.main()
        return
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("topwork: out of memory (")
    assert "give a smaller --size or network" in line
