"""Extraction: every image runs once, and the key moves with all that could change a code."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from topwork.data.audit import audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.views import Preprocessing, render, to_tensor
from topwork.errors import ChainError
from topwork.network.chain import trace_chain
from topwork.network.codes import pool_module
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk import extraction, fingerprint
from topwork.trunk.cache import CodeStore
from topwork.trunk.extraction import Codes, Extractor, extract, open_stores, prepare
from topwork.trunk.fingerprint import Runtime

RUNTIME = Runtime(torch.device("cpu"), batch=8)
VIEW = Preprocessing((32, 32), 1.0, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        ).eval()


def extractor(
    network: nn.Module | None = None,
    depths: tuple[str, ...] = ("4",),
    pool: str = "avg",
    view: Preprocessing = VIEW,
) -> Extractor:
    chain = trace_chain(network or small_network(), torch.zeros(1, 3, *view.size))
    return prepare(chain, depths, pool, view, RUNTIME)


def all_of(images: ImageSet, by: Extractor, indices: list[int] | None = None) -> Codes:
    indices = list(range(len(images.items))) if indices is None else indices
    digests = audit(images).digests
    return extract(by, images, indices, [str(digests[i]) for i in indices])


@pytest.fixture
def images(pictures: Path) -> ImageSet:
    return open_images(pictures)


def test_codes_are_those_of_the_plain_way(images: ImageSet) -> None:
    network, by = small_network(), extractor()
    found = all_of(images, by)
    expected = []
    for index in range(len(images.items)):
        with Image.open(Path(images.location) / images.items[index].name) as image:
            pixels = render(image.convert("RGB"), VIEW)
        with torch.no_grad():
            expected.append(network[:7](to_tensor(pixels[None], VIEW))[0].numpy())
    np.testing.assert_allclose(found.rows, np.stack(expected), rtol=0, atol=1e-5)
    assert (found.computed, found.failed) == (len(images.items), {})


def test_an_image_has_the_same_codes_in_any_company(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by = extractor()
    together = all_of(images, by).rows
    for indices in ([5], [5, 6, 7], list(range(40, 2, -1))):
        monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path / str(len(indices))))
        alone = all_of(images, by, indices)
        assert alone.computed == len(indices)
        np.testing.assert_array_equal(alone.rows, together[indices])


def test_what_is_cached_does_not_run_again(images: ImageSet) -> None:
    first = all_of(images, extractor(), list(range(10)))
    assert first.computed == 10
    again = all_of(images, extractor(), list(range(5, 20)))
    assert again.computed == 10  # of 15, of which 5 were there
    np.testing.assert_array_equal(again.rows[:5], first.rows[5:])
    assert all_of(images, extractor(), list(range(20))).computed == 0


def test_several_depths_in_one_pass_are_those_of_each_alone(images: ImageSet) -> None:
    both = all_of(images, extractor(depths=("2", "4")))
    low, high = all_of(images, extractor(depths=("2",))), all_of(images, extractor(depths=("4",)))
    np.testing.assert_array_equal(both.rows, np.concatenate([low.rows, high.rows], axis=1))
    assert both.fingerprints == low.fingerprints + high.fingerprints
    assert low.computed == high.computed == 0  # both were kept by the first pass


def test_a_damaged_shard_is_computed_again(images: ImageSet) -> None:
    first = all_of(images, extractor())
    (store,) = open_stores(extractor())
    (shard,) = store.folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-100] ^= 4
    shard.write_bytes(data)
    again = all_of(images, extractor())
    assert again.computed == len(images.items)
    np.testing.assert_array_equal(again.rows, first.rows)


def test_a_run_that_dies_goes_on_from_its_last_shard(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extraction, "SHARD_ROWS", 16)
    by = extractor()
    whole_run = by.codes
    calls = []

    def dies(self: Extractor, pixels: np.ndarray) -> list[np.ndarray]:
        calls.append(len(pixels))
        if len(calls) == 7:  # the first is the canary
            raise KeyboardInterrupt
        return whole_run(pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Extractor, "codes", dies)
        all_of(images, by)
    resumed = all_of(images, by)
    # Batches run side by side, so that when one died the first two or three shards were written.
    assert len(images.items) - 48 <= resumed.computed <= len(images.items) - 32
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path))
    afresh = all_of(images, by)
    assert afresh.computed == len(images.items)
    np.testing.assert_array_equal(resumed.rows, afresh.rows)


def store_of(by: Extractor) -> CodeStore:
    (store,) = open_stores(by)
    return store


def test_an_image_that_breaks_or_changes_after_the_audit_costs_only_itself(
    images: ImageSet, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    copied = open_images(tmp_path / "data")
    digests = [str(digest) for digest in audit(copied).digests]
    victims = [3, 9]
    (tmp_path / "data" / copied.items[3].name).write_bytes(b"broken")
    (tmp_path / "data" / copied.items[9].name).unlink()
    found = extract(extractor(), copied, range(len(digests)), digests)
    assert set(found.failed) == set(victims)
    assert "changed while it was being used" in found.failed[3]
    assert "no such file" in found.failed[9]
    rest = [i for i in range(len(digests)) if i not in victims]
    np.testing.assert_array_equal(found.rows[rest], all_of(images, extractor()).rows[rest])


class Activated(nn.Module):
    """The same modules, and code that differs."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc, self.act = nn.Linear(8, 2), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.conv2(self.act(self.conv1(x)))).mean((2, 3)))


def activated(act: Callable[[torch.Tensor], torch.Tensor]) -> Extractor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return extractor(Activated(act).eval(), depths=("conv2",))


def key(by: Extractor) -> str:
    return store_of(by).key


CHANGES: dict[str, Callable[[], Extractor]] = {
    "a weight": lambda: extractor(changed(lambda n: n[0].weight.data.view(-1)[7:8].add_(1e-3))),
    "a buffer": lambda: extractor(changed(lambda n: n[1].running_mean[:1].add_(1e-3))),
    "another stride": lambda: extractor(changed(lambda n: setattr(n[3], "stride", (1, 1)))),
    "epsilon": lambda: extractor(changed(lambda n: setattr(n[1], "eps", 1e-3))),
    "the cut": lambda: extractor(depths=("2",)),
    "pooling": lambda: extractor(pool="flatten"),
    "size": lambda: extractor(view=replace(VIEW, size=(36, 32))),
    "crop": lambda: extractor(view=replace(VIEW, crop=0.9)),
    "interpolation": lambda: extractor(view=replace(VIEW, interpolation="bicubic")),
    "mean": lambda: extractor(view=replace(VIEW, mean=(0.5, 0.5, 0.4))),
    "std": lambda: extractor(view=replace(VIEW, std=(0.25, 0.25, 0.2))),
}


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    network = small_network()
    with torch.no_grad():
        change(network)
    return network


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_code_changes_the_key(change: str) -> None:
    assert key(CHANGES[change]()) != key(extractor())


def test_the_code_of_a_module_changes_the_key() -> None:
    relu, gelu = activated(torch.relu), activated(nn.functional.gelu)
    assert relu.trunk.state().keys() == gelu.trunk.state().keys()
    assert key(relu) != key(gelu)


@pytest.mark.parametrize("what", ["FORMAT", "DECODING", "torch.__version__"])
def test_versions_and_decoding_change_the_key(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(extractor())
    if what == "DECODING":
        monkeypatch.setitem(fingerprint.DECODING, "rules", "changed")
    else:
        monkeypatch.setattr(f"topwork.trunk.fingerprint.{what}", "changed")
    assert key(extractor()) != before


def test_what_changes_no_code_keeps_the_key() -> None:
    expected = key(extractor())
    trained = small_network()
    trained.train()
    assert key(extractor(trained)) == expected  # the mode of the caller's network
    last = changed(lambda n: n[7].weight.data.add_(1))
    assert key(extractor(last)) == expected  # a layer above the cut
    laid_out = small_network().to(memory_format=torch.channels_last)
    assert key(extractor(laid_out)) == expected
    torch.manual_seed(7)
    assert key(extractor()) == expected


def test_extraction_changes_nothing_of_the_network(backbone: Path, images: ImageSet) -> None:
    loaded = load_backbone(find_backbone(str(backbone)), Plan(str(backbone), kept="layer2"))
    network = loaded.chain.network
    before = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    by = prepare(loaded.chain, ["layer2"], "avg", loaded.backbone.preprocessing, RUNTIME)
    all_of(images, by)
    after = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    assert after == before


def test_pooling_at_the_top_is_the_source_networks_own() -> None:
    chain = trace_chain(small_network(), torch.zeros(1, 3, 32, 32))
    module = pool_module(chain, chain.top, "avg")
    values = torch.randn(2, *chain.top.shape)
    assert torch.equal(module(values), small_network()[5:7](values))


def test_a_network_that_mixes_the_images_of_a_batch_is_refused(images: ImageSet) -> None:
    mixing = small_network()
    mixing[1] = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(ChainError, match="mixes the images of a batch"):
        all_of(images, extractor(mixing.eval()))
