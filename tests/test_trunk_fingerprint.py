"""The key of the cache: what could change a bit of a code changes it, and nothing else does."""

import json
import locale
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional

from topwork.data import augment, decode, loading, rendering
from topwork.data.audit import audit
from topwork.data.augment import View
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.views import Preprocessing
from topwork.network.chain import Chain, trace_chain
from topwork.network.device import one_core_a_thread
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Augment, Plan
from topwork.trunk import fingerprint
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Codes, Extractor, extract, facts_of, open_stores, prepare
from topwork.trunk.fingerprint import digest_of_digests, digests_of_tensors, key_of
from topwork.trunk.runtimes.runtime import Runtime

CPU = torch.device("cpu")
RUNTIME = Runtime("eager", CPU, 2)
AUGMENTED = View(1, Augment(0.4))
EAGER = Execution(CPU, runtime="eager", decoding="fast", cache="float32")
VIEW = Preprocessing((24, 24), 0.9, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Block(nn.Module):
    """A residual block whose activation is in its code, not among its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = 1.0
        self.register_buffer("shift", torch.full((8, 1, 1), 0.1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + functional.relu(self.conv(x)) * self.scale + self.shift


class GeluBlock(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + functional.gelu(self.conv(x)) * self.scale + self.shift


class LimitedBlock(Block):
    """Differs from the block only where a value is above 60, which no fixed input reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + functional.relu(self.conv(x)).clamp(max=60) * self.scale + self.shift


class Network(nn.Module):
    """Stem, batch norm, block, group norm; above the cut a last map and a head."""

    def __init__(self, channels: int = 3, traceable: bool = True):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.block = Block()
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 4)
        self.traceable = traceable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.traceable and float(x.sum()) == float("inf"):
            x = x * 2
        x = self.norm(self.block(self.act(self.bn(self.stem(x)))))
        return self.head(self.pool(self.last(x)).flatten(1))


def network(**settings: Any) -> Network:
    """Return the network with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(**settings).eval()


def chain_of(network: nn.Module, channels: int, size: tuple[int, int]) -> Chain:
    return trace_chain(network, torch.zeros(1, channels, *size))


@cache
def plain_chain(channels: int, size: tuple[int, int]) -> Chain:
    """Return the chain of the network as it is; nobody may change it."""
    return chain_of(network(channels=channels), channels, size)


@dataclass(frozen=True)
class Case:
    """What is extracted, from what, and how; without a network, from the one as it is."""

    network: nn.Module | None = None
    depths: tuple[str, ...] = ("norm",)
    pools: tuple[str, ...] = ("avg",)
    view: Preprocessing = VIEW
    execution: Execution = EAGER
    runtime: Runtime = RUNTIME
    rendering: View = AUGMENTED

    def extractor(self) -> Extractor:
        channels, size = self.view.channels, self.view.size
        if self.network is None:
            chain = plain_chain(channels, size)
        else:
            chain = chain_of(self.network, channels, size)
        return prepare(chain, self.depths, self.pools, self.view, self.execution)

    def facts(self) -> list[dict[str, Any]]:
        """Return what identifies the codes of each output, as `extract` finds it."""
        with one_core_a_thread():
            return facts_of(self.extractor(), self.runtime, self.rendering)

    def keys(self) -> list[str]:
        return [key_of(facts) for facts in self.facts()]

    def extract(self, images: ImageSet, indices: list[int] | None = None) -> Codes:
        indices = list(range(len(images.items))) if indices is None else indices
        digests = [str(digest) for digest in audit(images).digests]
        taken = [digests[index] for index in indices]
        return extract(self.extractor(), images, indices, taken, view=self.rendering)


CASE = Case()
PIXELS = Case(depths=("input",), pools=("none",))


@cache
def facts_before(case: Case) -> dict[str, Any]:
    """Return the facts of a case with one output, before anything is changed."""
    (facts,) = case.facts()
    return facts


Change = Callable[[Case, pytest.MonkeyPatch], Case | None]
"""Returns the changed case; None where something else was changed."""


def edited(edit: Callable[..., object], of: str = "") -> Change:
    """Return a change of the network, or a part of it, made in place."""

    def change(case: Case, patch: pytest.MonkeyPatch) -> Case:
        changed = network()
        with torch.no_grad():
            edit(attrgetter(of)(changed) if of else changed)
        return replace(case, network=changed)

    return change


def given_value(of: str, name: str, value: object) -> Change:
    """Return a change of an attribute of a part of the network."""
    return edited(lambda part: setattr(part, name, value), of)


def asked(**settings: Any) -> Change:
    return lambda case, patch: replace(case, **settings)


def seen(**settings: Any) -> Change:
    return lambda case, patch: replace(case, view=replace(case.view, **settings))


def executed(**settings: Any) -> Change:
    return lambda case, patch: replace(case, execution=replace(case.execution, **settings))


def patched(target: object, name: str, value: object) -> Change:
    return lambda case, patch: patch.setattr(target, name, value)


def decoded(name: str) -> Change:
    return lambda case, patch: patch.setitem(decode.DECODING, name, "0")


def one_bit(tensor: torch.Tensor) -> None:
    """Flip the last bit of a tensor's first value."""
    tensor.view(-1)[:1].view(torch.int32).bitwise_xor_(1)


def swap_outputs(conv: nn.Conv2d) -> None:
    conv.weight[[0, 1]] = conv.weight[[1, 0]]


def patch_forward(part: nn.Module) -> None:
    forward = part.forward
    part.forward = lambda x: forward(x) * 1.0001  # type: ignore[method-assign]


def leaky(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(x, 0.01)


def gray(case: Case, patch: pytest.MonkeyPatch) -> Case:
    return replace(case, view=replace(case.view, mean=(0.5,), std=(0.25,)))


def pad_by_reflection(conv: nn.Conv2d) -> None:
    conv.padding_mode = "reflect"
    conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def dilate(conv: nn.Conv2d) -> None:
    conv.dilation = conv.padding = (2, 2)


def contiguous(self: Runtime) -> dict[str, Any]:
    return {"name": "eager", "device": "cpu", "layout": "contiguous"}


# Each change, and one of the facts that must tell of it. Only the canary can tell of some.
MUST: dict[str, tuple[str, Change]] = {
    "the decoder": ("decoding", executed(decoding="exact")),
    "the version of simplejpeg": ("decoding", patched(simplejpeg, "__version__", "0")),
    "the version of Pillow": ("decoding", decoded("version")),
    "the version of libjpeg": ("decoding", decoded("jpeg")),
    "the rules of decoding": ("decoding", decoded("rules")),
    "the rules of fast decoding": ("decoding", patched(rendering, "RULES", 0)),
    "size": ("preprocessing", seen(size=(24, 28))),
    "crop": ("preprocessing", seen(crop=0.95)),
    "interpolation": ("preprocessing", seen(interpolation="bicubic")),
    "mean": ("preprocessing", seen(mean=(0.5, 0.5, 0.501))),
    "std": ("preprocessing", seen(std=(0.25, 0.25, 0.251))),
    "the number of channels": ("preprocessing", gray),
    "the number of the view": ("view", asked(rendering=View(2, Augment(0.4)))),
    "the plain view": ("view", asked(rendering=View(0, Augment(0.4)))),
    "the recipe of the view": ("view", asked(rendering=View(1, Augment(0.41)))),
    "flips": ("view", asked(rendering=View(1, Augment(0.4, flip=False)))),
    "the rules of views": ("view", patched(augment, "VERSION", 0)),
    "a bit of a weight": ("weights", edited(one_bit, "stem.weight")),
    "a bit of a bias": ("weights", edited(one_bit, "block.conv.bias")),
    "a bit of a norm's weight": ("weights", edited(one_bit, "norm.weight")),
    "a bit of a running variance": ("weights", edited(one_bit, "bn.running_var")),
    "a running mean": ("weights", edited(lambda mean: mean.fill_(1e-30), "bn.running_mean")),
    "filters changing places": ("weights", edited(swap_outputs, "stem")),
    "a buffer that is not saved": ("canary", edited(lambda it: it.fill_(0.2), "block.shift")),
    "eps of a norm": ("program", given_value("bn", "eps", 1e-3)),
    "the groups of a norm": ("program", given_value("norm", "num_groups", 4)),
    "stride": ("program", given_value("stem", "stride", (1, 1))),
    "padding": ("program", given_value("stem", "padding", (0, 0))),
    "the mode of padding": ("program", edited(pad_by_reflection, "block.conv")),
    "dilation": ("program", edited(dilate, "block.conv")),
    "ReLU to GELU": ("program", given_value("", "act", nn.GELU())),
    "another class of block": ("program", given_value("block", "__class__", GeluBlock)),
    "ReLU to GELU in a block's code": ("code", patched(Block, "forward", GeluBlock.forward)),
    "a number that a block holds": ("code", given_value("block", "scale", 1.001)),
    "a limit in a block's code": ("code", patched(Block, "forward", LimitedBlock.forward)),
    "a layer added below the cut": ("program", given_value("", "act", nn.Sequential(nn.ReLU()))),
    "the forward of a module": ("canary", edited(patch_forward, "act")),
    "the code of torch": ("canary", patched(nn.ReLU, "forward", leaky)),
    "the cut": ("cut", asked(depths=("act",))),
    "pooling": ("pool", asked(pools=("flatten",))),
    "no pooling": ("pool", asked(pools=("none",))),
    "the dtype": ("dtype", executed(cache="float16")),
    "the runtime": ("runtime", asked(runtime=Runtime("onnxruntime", CPU, 2, "1"))),
    "half precision": ("runtime", asked(runtime=Runtime("half", CPU, 2))),
    "the runtime's version": ("runtime", asked(runtime=Runtime("eager", CPU, 2, "1"))),
    "the device": ("runtime", asked(runtime=Runtime("eager", torch.device("cuda"), 2))),
    "the memory layout": ("runtime", patched(Runtime, "facts", contiguous)),
    "the version of torch": ("versions", patched(torch, "__version__", "0")),
    "the version of torchvision": ("versions", patched(torchvision, "__version__", "0")),
    "the version of timm": ("versions", patched(timm, "__version__", "0")),
    "the version of NumPy": ("versions", patched(np, "__version__", "0")),
    "the format": ("format", patched(fingerprint, "FORMAT", 0)),
}


@pytest.mark.parametrize("name", MUST)
def test_the_key_changes_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fact, change = MUST[name]
    before = facts_before(CASE)
    (after,) = (change(CASE, monkeypatch) or CASE).facts()
    monkeypatch.undo()  # pytest's own work may want the real things
    assert key_of(after) != key_of(before)
    differing = {key for key in before | after if before.get(key) != after.get(key)}
    assert fact in differing
    if fact == "canary":
        assert differing == {"canary"}


def move_above(net: Network) -> None:
    """Change all that lies above the cut."""
    net.last = nn.Sequential(nn.Conv2d(8, 5, 1), nn.Tanh())
    net.head = nn.Linear(5, 9)


def unlike_inference(net: Network) -> None:
    net.train().requires_grad_(True)
    net.stem.requires_grad_(False)


def other_threads(case: Case, patch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


def other_randomness(case: Case, patch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    np.random.seed(7)


def other_time_zone(case: Case, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()


def other_locale(case: Case, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("LC_ALL", "C.UTF-8")
    locale.setlocale(locale.LC_ALL, "")


def as_double(case: Case, patch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)


MUST_NOT: dict[str, Change] = {
    "tracing it again": edited(lambda net: None),
    "batch size": asked(runtime=Runtime("eager", CPU, 64)),
    "the number of workers": patched(os, "cpu_count", lambda: 7),
    "torch's threads": other_threads,
    "train mode and gradients of the caller's network": edited(unlike_inference),
    "memory format of the caller's weights": edited(
        lambda net: net.to(memory_format=torch.channels_last)
    ),
    "layers above the cut": edited(move_above),
    "verifying always": executed(verify="always"),
    "the choice of the runtime": executed(runtime="auto"),
    "random states": other_randomness,
    "the time zone": other_time_zone,
    "the locale": other_locale,
    "torch's default dtype": as_double,
    "the folder of the cache": lambda case, patch: patch.setenv("TOPWORK_CACHE", "/nowhere"),
    "the current folder": lambda case, patch: patch.chdir("/"),
}


@pytest.fixture
def restored() -> Iterator[None]:
    """Undo what changes of a whole process leave."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    place = locale.setlocale(locale.LC_ALL)
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    locale.setlocale(locale.LC_ALL, place)
    np.random.set_state(state)
    time.tzset()


@pytest.mark.parametrize("name", MUST_NOT)
def test_the_key_stays_whatever(name: str, monkeypatch: pytest.MonkeyPatch, restored: None) -> None:
    before = facts_before(CASE)
    assert (MUST_NOT[name](CASE, monkeypatch) or CASE).facts() == [before]


def test_the_recipe_decides_nothing_of_a_plain_view() -> None:
    keys = {
        tuple(replace(CASE, rendering=View(0, recipe)).keys())
        for recipe in (Augment(), Augment(0.3), Augment(flip=False))
    }
    assert len(keys) == 1


def test_the_key_of_a_cut_stays_with_further_cuts() -> None:
    (alone,) = CASE.keys()
    asked = replace(
        CASE, depths=("act", "norm", "norm", "last"), pools=("avg", "none", "avg", "avg")
    )
    keys = asked.keys()
    assert keys[2] == alone
    assert len(set(keys)) == 4


def test_the_code_of_a_network_that_cannot_be_traced_is_among_the_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untraced = Case(network(traceable=False), depths=("1",), pools=("flatten",))
    assert untraced.extractor().trunk.cuts[0].depth == 1
    (before,) = untraced.facts()
    assert untraced.facts() == [before]
    monkeypatch.setattr(Block, "forward", GeluBlock.forward)
    (after,) = untraced.facts()
    assert {name for name in before if before[name] != after[name]} == {"code", "canary"}


def test_stores_are_kept_under_the_key() -> None:
    asked = replace(CASE, depths=("act", "norm"), pools=("none", "avg"))
    stores = open_stores(asked.extractor(), asked.runtime, asked.rendering)
    assert [store.key for store in stores] == asked.keys()


PIXEL_CHANGES = {
    name: MUST[name][1]
    for name in (
        "the decoder",
        "the version of simplejpeg",
        "the version of Pillow",
        "size",
        "crop",
        "interpolation",
        "the number of channels",
        "the number of the view",
        "the recipe of the view",
        "the format",
    )
}


@pytest.mark.parametrize("name", PIXEL_CHANGES)
def test_the_key_of_pixels_changes_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts_before(PIXELS)
    assert (PIXEL_CHANGES[name](PIXELS, monkeypatch) or PIXELS).facts() != [before]


@pytest.mark.parametrize(
    "name", ["mean", "std", "a bit of a weight", "stride", "the runtime", "the version of timm"]
)
def test_the_key_of_pixels_stays_whatever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts_before(PIXELS)
    assert (MUST[name][1](PIXELS, monkeypatch) or PIXELS).facts() == [before]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two classes of JPEG files."""
    generator = np.random.default_rng(0)
    for label in ("one", "two"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (30, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.jpg")
    return tmp_path / "photos"


def test_a_byte_of_an_image_changes_its_row_alone(photos: Path) -> None:
    first = CASE.extract(open_images(photos))
    changed = photos / "one" / "2.jpg"
    changed.write_bytes(changed.read_bytes() + b"\0")  # what follows the end: no pixel changes
    again = CASE.extract(open_images(photos))
    assert (first.computed, again.computed) == (8, 1)
    assert again.fingerprints == first.fingerprints
    np.testing.assert_array_equal(again.rows[[0, 1, 3]], first.rows[[0, 1, 3]])


def moved(photos: Path) -> Path:
    """Return the same images elsewhere, under other names, of another class and time."""
    other = photos.parent / "elsewhere"
    (other / "three").mkdir(parents=True)
    for file in photos.rglob("*.jpg"):
        target = other / "three" / f"{file.parent.name}-{9 - int(file.stem)}.jpeg"
        shutil.copy(file, target)
        os.utime(target, (1, 1))
    (other / "four").mkdir()
    shutil.move(next((other / "three").iterdir()), other / "four")
    return other


def test_rows_stay_whatever_place_name_label_time_and_order(photos: Path) -> None:
    first = CASE.extract(open_images(photos))
    again = CASE.extract(open_images(moved(photos)), [5, 3, 7, 1, 0, 2, 6, 4])
    assert (first.computed, again.computed) == (8, 0)
    assert again.fingerprints == first.fingerprints
    assert sorted(map(bytes, again.rows)) == sorted(map(bytes, first.rows))


def test_rows_are_equal_whatever_company_and_workers(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = open_images(photos)
    first = CASE.extract(images)
    for count in (1, 3):
        monkeypatch.setattr(loading, "workers", lambda count=count: count)
        monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path / f"cache {count}"))
        for indices in ([3], [7, 0, 1]):
            found = CASE.extract(images, indices)
            assert found.computed == len(indices)
            assert found.fingerprints == first.fingerprints
            np.testing.assert_array_equal(found.rows, first.rows[indices])


def test_the_name_of_the_backbone_decides_nothing(backbone: Path, tmp_path: Path) -> None:
    other = tmp_path / "of another name"
    shutil.copytree(backbone, other)
    keys = []
    for folder in (backbone, other):
        loaded = load_backbone(find_backbone(str(folder)), Plan(str(folder)))
        by = prepare(loaded.chain, ["layer3"], "avg", loaded.backbone.preprocessing, EAGER)
        keys += [key_of(facts) for facts in facts_of(by, RUNTIME)]
    assert keys[0] == keys[1]


def test_another_process_finds_the_same_key(tmp_path: Path) -> None:
    """With another hash seed, folder, time zone and locale, and torch's own number of threads."""
    code = "import json, test_trunk_fingerprint as t; print(json.dumps(t.CASE.keys()))"
    environment = {name: value for name, value in os.environ.items() if "_THREADS" not in name}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parent),
        "PYTHONHASHSEED": "12345",
        "TOPWORK_CACHE": str(tmp_path / "cache"),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == CASE.keys()


TENSORS = st.dictionaries(
    st.sampled_from(["a", "b", "a.b"]),
    st.sampled_from([[0.0], [-0.0], [1.0], [0.0, 1.0], [1.0, 0.0], [[0.0, 1.0]]]),
    min_size=1,
)


@given(TENSORS, TENSORS)
def test_digests_of_tensors_are_equal_only_for_equal_ones(one: dict, other: dict) -> None:
    def content(tensors: dict) -> list[tuple[str, tuple[int, ...], bytes]]:
        arrays = {name: np.array(values, np.float32) for name, values in tensors.items()}
        return sorted((name, array.shape, array.tobytes()) for name, array in arrays.items())

    def digest(tensors: dict) -> str:
        found = {name: torch.tensor(values) for name, values in tensors.items()}
        return digest_of_digests(digests_of_tensors(found))

    assert (digest(one) == digest(other)) == (content(one) == content(other))


def limited(limit: float = 61.0) -> object:
    """Return a function whose default differs, and nothing else."""

    def forward(x: torch.Tensor, most: float = limit) -> torch.Tensor:
        return x.clamp(max=most)

    return forward


def test_what_code_is_made_of() -> None:
    facts = fingerprint.facts_of
    assert facts(limited(61.0)) != facts(limited(62.0))
    assert facts(limited(61.0)) == facts(limited(61.0))
    assert facts(staticmethod(limited(61.0))) == facts(limited(61.0))
    assert facts(property(limited(61.0))) != facts(property(limited(62.0)))
    assert facts({"b", "a"}) == facts({"a", "b"}) == ["\"'a'\"", "\"'b'\""]
    assert facts((1, [2.0, None])) == ["1", ["2.0", "None"]]
    assert facts(torch.ones(2)) == "Tensor"
