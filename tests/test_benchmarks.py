"""The benchmarks keep step with the library, and can fail: they import, parse, divide and judge."""

import csv
import importlib
import importlib.util
import json
import random
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from topwork.data.items import images_from_arrays, open_images
from topwork.phase import Phase
from topwork.plan import Plan

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARED = Path(__file__).parents[2] / "shared"
SCRIPTS = sorted([*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("peers/*.py")])

# Images per class, by folder; enough of them for every set that is divided by the benchmarks.
FAKE = {
    "hymenoptera/train": 4,
    "hymenoptera/val": 3,
    "flowers12/train": 4,
    "flowers12/test": 3,
    "neu_steel": 30,
    "pacs/photo": 4,
    "pacs/art_painting": 4,
    "pacs/cartoon": 4,
    "pacs/sketch": 4,
}


@pytest.fixture(autouse=True)
def findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_imports_and_says_how_it_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "fastai" in path.stem and importlib.util.find_spec("fastai") is None:
        pytest.skip("fastai is not installed (extra bench)")
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # dataclasses look there
    spec.loader.exec_module(script)
    if not hasattr(script, "main"):
        return
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as left:
        script.main()
    assert left.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.fixture(scope="module")
def fake_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder laid out as ../shared/data is, of empty files."""
    data = tmp_path_factory.mktemp("data")
    for folder, count in FAKE.items():
        for label in ("one", "two"):
            for number in range(count):
                touch(data / folder / label / f"{label}_{number}.jpg")
    for number in range(200):
        touch(data / "sign_digits" / str(number % 10) / f"IMG_{1118 + number}.jpg")
    kinds = ["A"] * 40 + ["B, B"] * 20 + ["A,B"] * 10 + ["RARE"] * 3 + [""] * 2 + ["A"] * 2
    rows = "".join(f',{number},"{kind}"\n' for number, kind in enumerate(kinds))
    for number in range(len(kinds) - 2):  # the last two are listed and not there
        touch(data / "wbc/images" / f"BloodImage_{number:05}.jpg")
    (data / "wbc/labels.csv").write_text(f",Image,Category\n{rows}", encoding="utf-8")
    return data


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sides(manifest: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows_of(manifest):
        found[row["split"]].add(row["path"])
    return found


NAMES = (
    *("hymenoptera", "flowers12", "neu_steel", "sign_digits", "wbc", "wbc_multilabel", "pacs"),
    "pacs_photo",
)


def test_all_sets_are_tested() -> None:
    assert set(module("sets").SETS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_the_same_for_the_same_seed(name: str, fake_data: Path, tmp_path: Path) -> None:
    write = module("sets").write_set
    first = write(name, fake_data, tmp_path / "a", 3).read_bytes()
    assert write(name, fake_data, tmp_path / "b", 3).read_bytes() == first
    other = write(name, fake_data, tmp_path / "c", 4).read_bytes()
    assert (other == first) == (name in ("hymenoptera", "flowers12", "pacs"))


@pytest.mark.parametrize("name", NAMES)
def test_a_cap_takes_images_away_and_moves_none(name: str, fake_data: Path, tmp_path: Path) -> None:
    write = module("sets").write_set
    whole = sides(write(name, fake_data, tmp_path / "whole"))
    assert not whole["train"] & whole["test"]
    less = sides(write(name, fake_data, tmp_path / "less", train=2))
    assert less["test"] == whole["test"]
    few = name in ("neu_steel", "pacs_photo")  # no more than 2 of a class are for training
    assert (less["train"] == whole["train"]) if few else (less["train"] < whole["train"])
    tested = write(name, fake_data, tmp_path / "tested", test=1)
    assert sides(tested)["train"] == whole["train"]
    if name != "wbc_multilabel":
        per_class = Counter(r["label"] for r in rows_of(tested) if r["split"] == "test")
        assert set(per_class.values()) == {1}


def test_sets_are_what_they_say(fake_data: Path, tmp_path: Path) -> None:
    write = module("sets").write_set
    steel = Counter(
        (row["label"], row["split"]) for row in rows_of(write("neu_steel", fake_data, tmp_path))
    )
    assert set(steel.items()) == {
        (("one", "train"), 2),
        (("two", "train"), 2),
        (("one", "test"), 28),
        (("two", "test"), 28),
    }
    styles = {(r["group"], r["split"]) for r in rows_of(write("pacs", fake_data, tmp_path))}
    assert styles == {("photo", "train"), ("art_painting", "train"), ("sketch", "test")}
    cells = Counter((r["label"], r["split"]) for r in rows_of(write("wbc", fake_data, tmp_path)))
    assert cells == {("A", "train"): 24, ("A", "test"): 16, ("B", "train"): 12, ("B", "test"): 8}
    several = rows_of(write("wbc_multilabel", fake_data, tmp_path))
    assert Counter((r["A"], r["B"]) for r in several) == {
        ("1", "0"): 40,
        ("0", "1"): 20,
        ("1", "1"): 10,
    }


def test_no_signer_is_on_both_sides(fake_data: Path, tmp_path: Path) -> None:
    rows = rows_of(module("sets").write_set("sign_digits", fake_data, tmp_path))
    signers = defaultdict(set)
    for row in rows:
        number = int(Path(row["path"]).stem.removeprefix("IMG_"))
        signers[(number - 1118) // 10].add((row["group"], row["split"]))
    assert len(signers) == 20
    assert all(len(found) == 1 for found in signers.values())
    assert len({group for ((group, _),) in signers.values()}) == 20


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_real_sets_open(tmp_path: Path) -> None:
    write = module("sets").write_set
    counts = {}
    for name in set(NAMES) - {"wbc_multilabel"}:
        images = open_images(write(name, SHARED / "data", tmp_path))
        assert not images.skipped
        split = Counter(item.split for item in images.items)
        counts[name] = (split["train"], split["test"], len(images.classes))
    assert counts == {
        "hymenoptera": (245, 153, 2),
        "flowers12": (720, 240, 12),
        "neu_steel": (60, 840, 6),
        "sign_digits": (1235, 827, 10),
        "wbc": (213, 142, 4),
        "pacs": (935, 983, 7),
        "pacs_photo": (253, 167, 7),
    }


def a_row(who: str, job: str, seconds: float, epoch: float | None, accuracy: float) -> object:
    return module("peers").Row("net", job, who, 3, seconds, epoch, accuracy, 0.0, "today")


def test_peers_are_judged_by_time_and_accuracy() -> None:
    judge = module("peers").as_wanted
    own = a_row("topwork", "fixed", 10, None, 0.95)
    tutorial = a_row("tutorial", "fixed", 301, 12, 0.95)
    assert judge(tutorial, own) is True
    assert judge(replace(tutorial, seconds=299), own) is False
    assert judge(replace(tutorial, accuracy=0.96), own) is False
    own = a_row("topwork", "top", 10, 2.0, 0.95)
    timm = a_row("timm", "top", 20, 6.1, 0.95)
    assert judge(timm, own) is True
    assert judge(replace(timm, seconds_per_epoch=5.9), own) is False
    assert judge(replace(timm, who="tutorial"), own) is None


def test_peers_summary_fails_where_a_figure_is_not_as_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, peer = a_row("topwork", "top", 10, 2.0, 0.95), a_row("timm", "top", 20, 6.1, 0.95)
    summary = module("peers").summary
    assert summary({row.name: row for row in (own, peer)}) == 0
    assert "2.0x" in (table := capsys.readouterr().out)
    assert "3.0x   PASS" in table
    slow = replace(peer, seconds_per_epoch=5.0)
    assert summary({row.name: row for row in (own, slow)}) == 1


@pytest.mark.parametrize("job", ["top", "finetune"])
def test_plans_beside_the_peers_can_be_read(job: str, tmp_path: Path) -> None:
    peers = module("peers")
    for network in peers.NETWORKS:
        command = peers.topwork_command(network, job, "data", "model", tmp_path)
        plan = Plan.load(command[command.index("--plan") + 1])
        assert plan.phases[-1].epochs == peers.EPOCHS


def test_epochs_of_a_record_are_those_of_the_peers_scripts(
    topwork: object, pictures: Path, backbone: Path, tmp_path: Path
) -> None:
    phases = (Phase(), Phase(frozen="layer3", epochs=2, rate=1e-3))
    Plan(str(backbone), phases=phases).save(tmp_path / "plan.json")
    arguments = ("--plan", tmp_path / "plan.json", "--out", tmp_path / "run", "--json")
    result = topwork("fit", pictures, *arguments)  # type: ignore[operator]
    record = json.loads(result.out)
    facts = module("peers").facts_of_record(record)
    assert facts["epochs"] == facts["epochs_run"] == 2
    assert 0 < facts["seconds_per_epoch"] < record["seconds"]
    assert facts["accuracy"] == record["value"]


# Stands for a fit: resumable, ends by itself, and says 143 to SIGTERM.
FAKE_FIT = """
import pathlib, signal, sys, time
run, weights, code, resumed = pathlib.Path(sys.argv[1]), *sys.argv[2:4], len(sys.argv) > 4
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(code)))
time.sleep(0.05 if resumed else 30)
(run / "model").mkdir(parents=True)
(run / "model/model.safetensors").write_text(weights)
"""


@pytest.mark.parametrize(
    ("sent", "weights", "code", "passes"),
    [
        (signal.SIGKILL, "right", 143, True),
        (signal.SIGTERM, "right", 143, True),
        (signal.SIGKILL, "wrong", 143, False),
        (signal.SIGTERM, "right", 1, False),
    ],
)
def test_interruptions_are_judged(
    sent: signal.Signals,
    weights: str,
    code: int,
    passes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill = module("kill_resume")

    def begin(data: Path, plan: Path, run: Path, *more: str) -> subprocess.Popen[bytes]:
        kill.beside(run, ".log").touch()
        command = [sys.executable, "-c", FAKE_FIT, run, weights, str(code), *more]
        return subprocess.Popen(command)

    monkeypatch.setattr(kill, "begin", begin)
    fit = kill.Fit(tmp_path, tmp_path, tmp_path, b"right", 0.5, 0.6)
    assert kill.trial(fit, 1, sent, random.Random(0)) is passes


def test_a_backbone_that_is_there_is_taken_again(tmp_path: Path) -> None:
    """With as many outputs as its classes, not as the architecture has by itself."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    images = images_from_arrays(pixels, [number % 3 for number in range(40)])
    make = partial(
        module("backbones").made,
        tmp_path / "made",
        images,
        "supervised",
        backbone="topwork:small_convnet",
        size=(8, 8),
    )
    recipe = {"phase": {"epochs": 1}}
    assert make(recipe) == make(recipe)
    with pytest.raises(SystemExit, match="made in another way; remove it and its rows"):
        make({"phase": {"epochs": 2}})


def test_a_row_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    rows = module("kept_rows")
    file = tmp_path / "rows.jsonl"
    assert rows.rows_of(file) == []
    rows.append(file, {"set": "a", "value": 1})
    file.write_text(file.read_text() + '{"set": "b", "va')
    assert rows.row_of(file, {"set": "b"}) is None
    rows.append(file, {"set": "b", "value": 2})
    rows.append(file, {"set": "b", "value": 3})
    assert [row["value"] for row in rows.rows_of(file)] == [1, 2, 3]
    assert rows.row_of(file, {"set": "b"}) == {"set": "b", "value": 2}
