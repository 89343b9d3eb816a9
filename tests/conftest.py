"""Every test is hermetic: its own cache, no network. And what the tests of the commands share."""

import io
import json
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

# Both are looked at once, when huggingface_hub and torch are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # on tiny networks several threads mostly wait for each other

CLASSES = ("disc", "square", "stripes")


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a test reaches for the network: {arguments}")

    cache = tmp_path_factory.getbasetemp() / "caches" / uuid.uuid4().hex  # made where needed
    monkeypatch.setenv("TOPWORK_CACHE", str(cache))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@dataclass(frozen=True)
class Result:
    """What a run of the command line gave."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def topwork(capfd: pytest.CaptureFixture[str]) -> Command:
    """Return the command line as a function; it runs in this process, which saves imports."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = exit_code(arguments)
        return Result(code, *capfd.readouterr())

    return run


def exit_code(arguments: Sequence[object]) -> int:
    from topwork import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["topwork", *map(str, arguments)])
        patch.setattr(logging.root, "handlers", [])  # logs go to stderr, as in real life
        patch.setattr(cli, "stop_on_sigterm", lambda: None)  # this process is pytest's
        with pytest.raises(SystemExit) as left:
            cli.main()
    return int(left.value.code or 0)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of drawings of three classes, 16 each under train/ and 8 under test/."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for side, count in (("train", 16), ("test", 8)):
        for label in CLASSES:
            (folder / side / label).mkdir(parents=True)
            for number in range(count):
                draw(label, generator).save(folder / side / label / f"{number:02}.png")
    return folder


def draw(label: str, generator: np.random.Generator) -> Image.Image:
    """Draw a class on noise."""
    image = Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    brush = ImageDraw.Draw(image)
    if label == "disc":
        brush.ellipse((8, 8, 36, 32), fill=(200, 30, 30))
    elif label == "square":
        brush.rectangle((8, 8, 36, 32), fill=(30, 200, 30))
    else:
        for left in range(0, 48, 8):
            brush.rectangle((left, 0, left + 3, 40), fill=(30, 30, 200))
    return image


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in timm's format: a tiny residual network for 64 pixels, random weights."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=10)
    save_file(network.state_dict(), folder / "model.safetensors")
    view = {"input_size": [3, 64, 64], "crop_pct": 1.0, "interpolation": "bilinear"}
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": view}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Fitted:
    """A run of ``topwork fit`` on the pictures, and the cache that it filled."""

    folder: Path
    cache: Path
    result: Result


@pytest.fixture(scope="session")
def fitted(pictures: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Fit once for all tests that need a model; they must not change it."""
    folder = tmp_path_factory.mktemp("fitted")
    return fit(pictures, backbone, folder)


@pytest.fixture(scope="session")
def fitted_lower(
    pictures: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Fitted:
    """The same on an earlier stage: the layers above layer3 are dropped."""
    return fit(pictures, backbone, tmp_path_factory.mktemp("fitted_lower"), "--kept", "layer3")


def fit(data: Path, backbone: Path, folder: Path, *options: str) -> Fitted:
    run, cache = folder / "run", folder / "cache"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("TOPWORK_CACHE", str(cache))
        code = exit_code(
            (
                "fit",
                data,
                "--plan",
                "features",
                "--backbone",
                backbone,
                "--out",
                run,
                "--json",
                *options,
            )
        )
    return Fitted(run, cache, Result(code, out.getvalue(), err.getvalue()))
