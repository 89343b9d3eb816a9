"""Bad input, one row each: one line on stderr that says what to do, exit code 2, nothing left."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


def write(path: str, content: str | bytes = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def nothing() -> None:
    pass


def empty_folder() -> None:
    Path("data").mkdir()


def one_class() -> None:
    shutil.copytree("pictures/train/disc", "data/disc")


def no_class_folders() -> None:
    shutil.copytree("pictures/train/disc", "data")


def a_run_folder() -> None:
    write("earlier/model/topwork.json", "{}")


def broken_images() -> None:
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/1.png"):
        write(f"data/{name}", "no image")


def one_class_broken() -> None:
    shutil.copytree("pictures/train/disc", "data/disc")
    for number in range(3):
        write(f"data/square/{number}.png", "no image")


def one_broken_image() -> None:
    shutil.copytree("pictures", "data")
    write("data/train/disc/broken.png", "no image")


def single_image() -> None:
    shutil.copy("pictures/train/disc/00.png", "disc.png")


def truncated_zip() -> None:
    with zipfile.ZipFile("data.zip", "w") as archive:
        archive.write("pictures/train/disc/00.png", "disc/00.png")
    content = Path("data.zip").read_bytes()
    Path("data.zip").write_bytes(content[: len(content) // 2])


def object_arrays() -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez("data.npz", x_train=images, y_train=np.array([Payload(), 1, 2, 3], dtype=object))


def manifest(header: str, *rows: str) -> Callable[[], None]:
    return lambda: write("data.csv", "\n".join((header, *rows)))


def plan_file(**changes: object) -> Callable[[], None]:
    plan = {"version": 1, "backbone": "backbone", **changes}
    return lambda: write("plan.json", json.dumps(plan))


def pickled_weights() -> None:
    with open("weights.pth", "wb") as file:
        pickle.dump(Payload(), file)


def pickle_among_weights() -> None:
    torch.save({"conv1.weight": torch.zeros(2), "epoch": Payload()}, "weights.pth")


def weights_of_another_network() -> None:
    save_file({"stem.weight": torch.zeros(2), "stem.bias": torch.zeros(2)}, "weights.safetensors")


def weights_up_to_layer3() -> None:
    state = load_file("backbone/model.safetensors")
    lower = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}
    save_file(lower, "weights.safetensors")


def flipped_bit() -> None:
    shutil.copytree("fitted", "model")
    weights = Path("model/model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def weights_lost() -> None:
    shutil.copytree("fitted", "model")
    os.remove("model/model/model.safetensors")


def facts_changed(**changes: object) -> Callable[[], None]:
    def change() -> None:
        shutil.copytree("fitted", "model")
        facts = Path("model/model/topwork.json")
        content = json.loads(facts.read_text(encoding="utf-8"))
        facts.write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return change


def other_class() -> None:
    shutil.copytree("pictures/test", "data")
    os.rename("data/disc", "data/circle")


FIT = "fit pictures --plan features --backbone backbone --out run"
FIT_AUTO = "fit pictures --backbone backbone --out run"
FIT_DATA = "fit data --plan features --backbone backbone --out run"
NOT_FITTED = "(for 30 epochs), which is not fitted yet; use --plan features"

ROWS = {
    # Data.
    "data absent": (
        nothing,
        "fit picturs --backbone backbone --out run",
        "picturs: no such file or folder; did you mean 'pictures'?",
    ),
    "empty folder": (
        empty_folder,
        FIT_DATA,
        "data: empty; put one sub-folder of images per class into it",
    ),
    "empty folder, JSON asked for": (
        empty_folder,
        f"{FIT_DATA} --json",
        "data: empty; put one sub-folder of images per class into it",
    ),
    "empty folder, run folder two deep": (
        empty_folder,
        "fit data --plan features --backbone backbone --out two/deep",
        "data: empty; put one sub-folder of images per class into it",
    ),
    "one class": (one_class, FIT_DATA, "data: only one class, 'disc'; give at least two classes"),
    "no class folders": (
        no_class_folders,
        FIT_DATA,
        "data: no class sub-folders, the images lie directly in it; sort them into one sub-folder"
        " per class",
    ),
    "single image": (
        single_image,
        "fit disc.png --backbone backbone --out run",
        "disc.png: a single image; give the folder that holds the class folders",
    ),
    "unknown kind of data": (
        lambda: write("notes.txt"),
        "fit notes.txt --backbone backbone --out run",
        "notes.txt: unknown kind of data .txt; give a folder, .zip, .npz, .csv, .tsv or .parquet",
    ),
    "truncated zip": (
        truncated_zip,
        "fit data.zip --backbone backbone --out run",
        "data.zip: not a zip archive, or damaged; download or pack it again",
    ),
    "object arrays": (
        object_arrays,
        "fit data.npz --backbone backbone --out run",
        "data.npz: array 'y_train' holds Python objects (pickle), which can run code when opened"
        " and is refused; save it as plain numbers or strings",
    ),
    "no label column": (
        manifest("path,kind", "a.png,disc"),
        "fit data.csv --backbone backbone --out run",
        "data.csv: no column for the label (tried label, class, category, target); its columns"
        " are path, kind; rename one to label, or from Python name it with label_columns",
    ),
    "no path column": (
        manifest("label,number", "disc,1"),
        "fit data.csv --backbone backbone --out run",
        "data.csv: no column for the image path (tried path, file, filename, file_name, filepath,"
        " image_path, image); its columns are label, number; rename one to path, or from Python"
        " name it with path_column",
    ),
    "all files of a manifest missing": (
        manifest("path,label", "a.png,disc", "b.png,square"),
        "fit data.csv --backbone backbone --out run",
        "data.csv: none of its 2 images is there; the first would be ./a.png; paths are relative"
        " to the manifest's folder",
    ),
    "only broken images": (
        broken_images,
        FIT_DATA,
        "data: none of 3 images can be read; the first: cats/1.jpg: not an image, or its header is"
        " damaged; mend or replace them",
    ),
    "all images of a class broken": (
        one_class_broken,
        FIT_DATA,
        "data: no training image of square is left (3 images unreadable, 0 dropped as duplicates);"
        " add images, or take the class out",
    ),
    "one broken image, strict": (
        one_broken_image,
        f"{FIT_DATA} --strict",
        "data: 1 unreadable: train/disc/broken.png: not an image, or its header is damaged; mend"
        " the data, or do without strict",
    ),
    # The backbone.
    "weights of no backbone": (
        nothing,
        "fit pictures --weights own.safetensors --out run",
        "--weights own.safetensors: say with --backbone which network these are of",
    ),
    "unknown backbone": (
        nothing,
        "fit pictures --backbone resnet81 --out run",
        "no network is called 'resnet81'; did you mean 'resnet18'?",
    ),
    "unknown tag": (
        nothing,
        "zoo timm:resnet18.a9",
        "timm has no weights 'a9' for resnet18; did you mean 'resnet18.a3_in1k'?",
    ),
    "no such folder": (
        nothing,
        "inspect ./bakbone",
        "./bakbone: no such folder; a repository of the Hugging Face hub is written"
        " hf-hub:ORG/NAME",
    ),
    "folder without config.json": (
        nothing,
        "fit pictures --backbone pictures --out run",
        "pictures: has no config.json and no backbone.json; give a folder in timm's format, one"
        " that `topwork pretrain` made, or a model of `topwork fit`",
    ),
    "a data error where no backbone is named": (
        nothing,
        "fit picturs --out run",
        "picturs: no such file or folder; did you mean 'pictures'?",
    ),
    "a run folder as a backbone": (
        a_run_folder,
        "fit pictures --backbone earlier --out run",
        "earlier: is a run folder; the model in it is earlier/model",
    ),
    "gpu is called cuda": (
        nothing,
        f"{FIT} --device gpu",
        "--device 'gpu' is unknown; did you mean 'cuda'?; known are auto, cpu, cuda, mps",
    ),
    # Its weights.
    "no weights known": (
        nothing,
        "fit pictures --backbone topwork:small_convnet --out run",
        "topwork:small_convnet: no pretrained weights are known for it; give a file with --weights",
    ),
    "weights absent": (
        nothing,
        f"{FIT} --weights absent.safetensors",
        "absent.safetensors: does not exist; check the path",
    ),
    "weights of another network": (
        weights_of_another_network,
        f"{FIT} --weights weights.safetensors",
        "weights.safetensors does not fit the network: 75 missing (conv1.0.weight,"
        " conv1.1.weight, conv1.1.bias and 72 more); 2 unknown to the network (stem.bias,"
        " stem.weight); is it the file of another network?",
    ),
    "weights up to layer3": (
        weights_up_to_layer3,
        f"{FIT} --weights weights.safetensors",
        "weights.safetensors holds weights only up to layer3; keep that much with --kept layer3 or"
        " reuse that much with --reused layer3",
    ),
    "a pickle as weights": (
        pickled_weights,
        f"{FIT} --weights weights.pth",
        "weights.pth: holds pickled objects besides tensors, and opening those would run code from"
        " the file; convert it to safetensors where you trust it",
    ),
    "a pickle among the weights": (
        pickle_among_weights,
        f"{FIT} --weights weights.pth",
        "weights.pth: holds pickled objects besides tensors, and opening those would run code from"
        " the file; convert it to safetensors where you trust it",
    ),
    # Depths.
    "kept out of range": (
        nothing,
        f"{FIT} --kept 99",
        "kept: depth 99 does not exist: give 0 (the input) to 7 (layer4)",
    ),
    "kept unknown": (
        nothing,
        f"{FIT} --kept layr2",
        "kept: no cut point is named 'layr2'; did you mean 'layer2'?; `topwork inspect` prints the"
        " names",
    ),
    "kept nothing": (
        nothing,
        f"{FIT} --kept 0",
        "kept is the input: that keeps no layer; the lowest is depth 1",
    ),
    "reused above kept": (
        nothing,
        f"{FIT} --kept layer2 --reused layer3",
        "reused (layer3) lies above kept (layer2): layers that are dropped cannot be reused; give"
        " --reused layer2 or lower",
    ),
    "an epoch count for a plan that is found out": (
        nothing,
        f"{FIT_AUTO} --epochs 3",
        "--epochs is found out with --plan auto; leave it out, or name a plan (features, warmup,"
        " partial, finetune, scratch, or a file)",
    ),
    "a rate of nothing": (
        nothing,
        f"{FIT} --plan warmup --rate 0",
        "rate is 0.0; give a finite number above 0, or null",
    ),
    "a rate of nothing for a plan that is found out": (
        nothing,
        f"{FIT_AUTO} --rate 0",
        "--rate is found out with --plan auto; leave it out, or name a plan (features, warmup,"
        " partial, finetune, scratch, or a file)",
    ),
    "nothing left to unfreeze after what is trained before": (
        nothing,
        f"{FIT} --plan partial --frozen layer1,layer2",
        "phase 3 unfreezes step by step, but there is nothing between layer1, where it begins, and"
        " layer2; give a lower frozen",
    ),
    "an SVM for a plan that is found out": (
        nothing,
        f"{FIT_AUTO} --head svm",
        "--head svm is for frozen features: give --plan features with it",
    ),
    "a time budget for a plan that is named": (
        nothing,
        f"{FIT} --time-budget 5m",
        "--time-budget is for finding a plan; leave it out, or give --plan auto",
    ),
    "a time budget without a unit": (
        nothing,
        f"{FIT_AUTO} --time-budget 5",
        "--time-budget '5' is no duration; write it like 90s, 5m or 2h",
    ),
    "frozen above reused": (
        nothing,
        f"{FIT} --reused layer2 --frozen layer3",
        "frozen (layer3) lies above reused (layer2): layers with random weights would be frozen;"
        ' freeze up to layer2, or ask for that control by name with "frozen_random": true in a'
        " plan file",
    ),
    "frozen below kept": (
        nothing,
        f"{FIT} --frozen layer3",
        "phase 1 freezes only up to layer3, but has no epochs to train the layers up to layer4 in;"
        " give it epochs in a plan file, drop those layers with --kept layer3, or leave out"
        " --frozen",
    ),
    # The plan.
    "unknown plan": (
        nothing,
        f"{FIT} --plan feature",
        "no plan is named 'feature'; did you mean 'features'?; known are auto, features, warmup,"
        " partial, finetune, scratch",
    ),
    "trained SVM": (
        nothing,
        f"{FIT} --plan finetune --head svm",
        "phase 1 trains by gradient descent, which a svm head is not made for; choose from softmax,"
        " sigmoid, regression, or leave out its epochs",
    ),
    "epochs beside a plan file": (
        plan_file(),
        f"{FIT} --plan plan.json --epochs 3",
        "--epochs contradicts a complete plan; change it there instead",
    ),
    "regression of names": (
        nothing,
        f"{FIT} --head regression",
        "pictures: the label 'disc' of test/disc/00.png is no number; correct it, or learn classes"
        " with another --head than regression",
    ),
    "plan file absent": (
        nothing,
        f"{FIT} --plan plan.json",
        "cannot read plan plan.json: No such file or directory; check the path",
    ),
    "plan file no JSON": (
        lambda: write("plan.json", "features"),
        f"{FIT} --plan plan.json",
        "plan plan.json is no JSON (Expecting value: line 1 column 1 (char 0)); correct it, or save"
        " one with Plan.save",
    ),
    "plan file with an unknown key": (
        plan_file(keept="layer3"),
        f"{FIT} --plan plan.json",
        "plan plan.json: unknown key 'keept' in plan; did you mean 'kept'?; known are backbone,"
        " kept, reused, codes, pool, added, head, input_size, channels, views, augment, phases,"
        " frozen_random",
    ),
    "plan file with a number for a name": (
        plan_file(kept=3),
        f"{FIT} --plan plan.json",
        "plan plan.json: kept in plan is 3; it must be text in quotes or null",
    ),
    "plan file and an option": (
        plan_file(),
        f"{FIT} --plan plan.json --kept layer3",
        "--kept contradicts a complete plan; change it there instead",
    ),
    "added layers": (
        plan_file(added=[{"width": 64}]),
        f"{FIT} --plan plan.json",
        "phase 1 solves for the head alone, but the added hidden layers below it must be trained;"
        ' give the phase epochs, or leave "added" empty',
    ),
    "unknown head": (
        nothing,
        f"{FIT} --head softmx",
        "head is 'softmx'; did you mean 'softmax'?; known are softmax, svm, ridge, sigmoid,"
        " regression",
    ),
    # Where to write.
    "run exists": (
        lambda: write("run/notes.txt", "precious"),
        FIT,
        "--out run exists already; choose another name, or remove it first",
    ),
    "run below a file": (
        lambda: write("run", "precious"),
        "fit pictures --backbone backbone --out run/here",
        "--out run/here cannot be made: {here}/run is a file; choose another name",
    ),
    "export exists": (
        lambda: write("model.onnx", "precious"),
        "export fitted --format onnx --out model.onnx",
        "model.onnx exists already; choose another name with --out",
    ),
    "export below a file": (
        lambda: write("here", "precious"),
        "export fitted --format pt2 --out here/model.pt2",
        "here/model.pt2 cannot be written: File exists; choose another --out",
    ),
    # Models.
    "no model": (
        empty_folder,
        "predict data pictures",
        "data holds no topwork.json; give a run folder, or the model/ in one",
    ),
    "model absent": (
        nothing,
        "eval runn pictures",
        "runn does not exist; give a run folder, or the model/ in one",
    ),
    "model damaged": (
        flipped_bit,
        "predict model pictures",
        "model/model/model.safetensors is damaged: its bytes are not those written; copy it again",
    ),
    "model without weights": (
        weights_lost,
        "predict model pictures",
        "model/model has no model.safetensors; copy the whole folder",
    ),
    "model of another format": (
        facts_changed(format=2),
        "predict model pictures",
        "model/model: has format 2, this topwork reads 1; use the version that wrote it",
    ),
    "model's facts of another model": (
        facts_changed(labels=["disc"]),
        "predict model pictures",
        "model/model/topwork.json has 1 labels for 3 outputs; copy the whole folder again",
    ),
    "image absent": (
        nothing,
        "predict fitted picture.png",
        "picture.png: no such file or folder; did you mean 'pictures'?",
    ),
    "no images": (
        empty_folder,
        "predict fitted data",
        "data: no images there; give image files or folders",
    ),
    "class unknown to the model": (
        other_class,
        "eval fitted data",
        "data: the model does not know the class 'circle'; it knows disc, square, stripes",
    ),
    "unknown format of predictions": (
        nothing,
        "predict fitted pictures --format xml",
        "--format 'xml' is unknown; choose csv or jsonl",
    ),
    "unknown format of export": (
        nothing,
        "export fitted --format tflite",
        "--format 'tflite' is unknown; choose from onnx, pt2, timm",
    ),
    "timm cannot open it": (
        nothing,
        "export lower --format timm",
        "timm cannot open this model: the head reads layer3, not L (layer4) alone; export it as"
        " onnx or pt2",
    ),
    # The command line itself.
    "seed is no number": (
        nothing,
        f"{FIT} --seed x",
        "Invalid value for '--seed': Input should be a valid integer, unable to parse string as an"
        " integer; see topwork fit --help",
    ),
    "unknown device": (
        nothing,
        f"{FIT} --device cpuu",
        "--device 'cpuu' is unknown; did you mean 'cpu'?; known are auto, cpu, cuda, mps",
    ),
    "size that the network cannot take": (
        nothing,
        "inspect timm:test_vit --size 100",
        "test_vit cannot take images of 100x100 pixels (Input height (100) should be divisible by"
        " patch size (16).); choose another size",
    ),
    "top is zero": (
        nothing,
        "predict fitted pictures --top 0",
        "Invalid value for '--top': Input should be greater than or equal to 1; see topwork predict"
        " --help",
    ),
    "unknown option": (
        nothing,
        f"{FIT} --keep 3",
        "No such option: --keep (Possible options: --help, --kept, --seed); see topwork fit --help",
    ),
    "unknown command": (
        nothing,
        "fti pictures",
        "No such command 'fti'. Did you mean 'fit'?; see topwork --help",
    ),
    "no method": (
        nothing,
        "pretrain pictures --backbone topwork:dense --out made",
        "Missing option '--method'; see topwork pretrain --help",
    ),
}


@pytest.fixture
def folder(pictures, backbone, fitted, fitted_lower, tmp_path, monkeypatch) -> Path:
    """Work in a folder where good data, a good backbone and good models are at hand."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").symlink_to(pictures)
    Path("backbone").symlink_to(backbone)
    Path("fitted").symlink_to(fitted.folder)
    Path("lower").symlink_to(fitted_lower.folder)
    return tmp_path


def assert_refused(topwork, command: str, message: str) -> None:
    before = sorted(Path().rglob("*"))
    result = topwork(*command.split())
    assert result.err == f"topwork: {message.replace('{here}', str(Path().absolute()))}\n"
    assert (result.code, result.out) == (2, "")
    assert sorted(Path().rglob("*")) == before, "something was left behind"


@pytest.mark.parametrize(("prepare", "command", "message"), ROWS.values(), ids=ROWS)
def test_bad_input(prepare, command, message, topwork, folder) -> None:
    prepare()
    assert_refused(topwork, command, message)


def test_no_permission_to_read(topwork, folder, monkeypatch) -> None:
    # Simulated, because the permissions of files do not bind the superuser.
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.isdir(path))
    assert_refused(
        topwork,
        FIT,
        "pictures: no permission to read any of its 72 images; change the files' permissions",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_no_permission_to_write(topwork, folder) -> None:
    Path("closed").mkdir(mode=0o500)
    assert_refused(
        topwork,
        "fit pictures --backbone backbone --out closed/run",
        "--out closed/run cannot be made: no permission to write in {here}/closed;"
        " choose another place",
    )


def test_no_such_device(topwork, folder, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(
        topwork,
        f"{FIT} --device cuda",
        "--device cuda: torch finds none on this machine; choose cpu or auto",
    )


def test_cache_that_cannot_be_written(topwork, folder, monkeypatch) -> None:
    write("cache")
    monkeypatch.setenv("TOPWORK_CACHE", "cache")
    before = sorted(folder.rglob("*"))
    result = topwork(*FIT.split())
    assert re.fullmatch(
        r"topwork: cannot write to the cache at cache/codes/[0-9a-f]{64}: Not a directory; free"
        r" some space, or set TOPWORK_CACHE to a folder that can be written\n",
        result.err,
    )
    assert (result.code, result.out) == (2, "")
    assert sorted(folder.rglob("*")) == before


def test_weights_that_would_have_to_be_fetched(topwork, folder) -> None:
    result = topwork("fit", "pictures", "--backbone", "timm:test_resnet", "--out", "run")
    assert re.fullmatch(
        r"topwork: cannot fetch model\.safetensors of huggingface\.co/timm/test_resnet\.\w+"
        r" \(.*\); give a local file with --weights FILE\n",
        result.err,
    )
    assert (result.code, result.out) == (2, "")
    assert not Path("run").exists()


def test_the_payload_would_run(folder) -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert Path("payload-ran").is_dir(), "then the rows with pickles prove nothing"


def test_bad_input_for_real(tmp_path) -> None:
    command = [sys.executable, "-m", "topwork", "fit", "absent", "--backbone", "b", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == "topwork: absent: no such file or folder; check the path\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_bad_options_for_real() -> None:
    program = Path(sys.executable).with_name("topwork")
    if not program.exists():
        pytest.skip("topwork is not installed as a program")
    done = subprocess.run([program, "zoo", "-x"], capture_output=True, text=True, check=False)
    assert done.stderr == "topwork: No such option: -x; see topwork zoo --help\n"
    assert (done.returncode, done.stdout) == (2, "")
