"""Extraction: every image runs once, and the key moves with all that could change a code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from topwork.data.arrays import images_from_arrays
from topwork.data.audit import audit
from topwork.data.augment import PLAIN, View, render_view
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.views import Preprocessing, render, to_tensor
from topwork.errors import ChainError
from topwork.network.chain import trace_chain
from topwork.network.codes import pool_module
from topwork.network.cut import cut
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Augment, Plan
from topwork.trunk import building
from topwork.trunk.cache import CodeStore
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Codes, Extractor, extract, open_stores, prepare
from topwork.trunk.program import TrunkProgram
from topwork.trunk.shards import DamagedShard

EXACT = Execution(torch.device("cpu"), runtime="eager", decoding="exact")
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
    pool: str | tuple[str, ...] = "avg",
    view: Preprocessing = VIEW,
) -> Extractor:
    chain = trace_chain(network or small_network(), torch.zeros(1, view.channels, *view.size))
    return prepare(chain, depths, pool, view, EXACT)


def all_of(
    images: ImageSet, by: Extractor, indices: list[int] | None = None, view: View = PLAIN
) -> Codes:
    indices = list(range(len(images.items))) if indices is None else indices
    digests = audit(images).digests
    return extract(by, images, indices, [str(digests[i]) for i in indices], view=view)


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
    first = all_of(images, extractor()).rows
    (shard,) = store_of(extractor()).folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DamagedShard, match="block 0"):
        print(all_of(images, extractor()).rows)
    again = all_of(images, extractor())
    assert again.computed == len(images.items)
    np.testing.assert_array_equal(again.rows, first)


def test_a_run_that_dies_goes_on_from_its_last_shard(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(building, "SHARD_ROWS", 16)
    by = extractor()
    whole_run = building.compute
    fortieth = str(audit(images).digests[40])

    def dies(work: building.Work, digests: list[str]) -> building.Computed:
        if fortieth in digests:
            raise RuntimeError("the power fails")
        return whole_run(work, digests)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(building, "compute", dies)
        all_of(images, by)
    resumed = all_of(images, by)
    assert resumed.computed == len(images.items) - 32  # two shards; what came after was lost
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path))
    afresh = all_of(images, by)
    assert afresh.computed == len(images.items)
    np.testing.assert_array_equal(resumed.rows, afresh.rows)


def store_of(by: Extractor) -> CodeStore:
    (store,) = open_stores(by, by.eager.runtime)
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


def key(by: Extractor) -> str:
    return store_of(by).key


def test_extraction_changes_nothing_of_the_network(backbone: Path, images: ImageSet) -> None:
    loaded = load_backbone(find_backbone(str(backbone)), Plan(str(backbone), kept="layer2"))
    network = loaded.chain.network
    before = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    by = prepare(loaded.chain, ["layer2"], "avg", loaded.backbone.preprocessing, EXACT)
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


def pixels_of(images: ImageSet, view: View = PLAIN) -> np.ndarray:
    """Return the renderings of all images, made one by one."""
    rendered = []
    for index, digest in enumerate(audit(images).digests):
        with Image.open(Path(images.location) / images.items[index].name) as image:
            rendered.append(render_view(image.convert("RGB"), VIEW, view, str(digest)))
    return np.stack(rendered)


@pytest.mark.parametrize(
    ("name", "depth", "size"),
    [("", "2", 32), ("test_resnet", "layer2", 64), ("vit_tiny_patch16_224", "blocks.1", 48)],
)
def test_a_whole_tensor_goes_on_to_the_networks_own_scores(
    images: ImageSet, name: str, depth: str, size: int
) -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {"img_size": size, "depth": 3} if "vit" in name else {}
        network = timm.create_model(name, **settings).eval() if name else small_network()
    view = replace(VIEW, size=(size, size))
    chain = trace_chain(network, torch.zeros(1, 3, size, size))
    found = all_of(images, prepare(chain, [depth], "none", view, EXACT), [4, 7, 30])
    (part,) = found.parts
    assert (part.shape, part.dtype) == (chain.resolve(depth).shape, np.float32)
    assert found.rows.shape == (3, 0)
    with Image.open(Path(images.location) / images.items[7].name) as image:
        pixels = to_tensor(render(image.convert("RGB"), view)[None], view)
    with torch.no_grad():
        scores = cut(chain, depth)[1](torch.from_numpy(part.take([1])))
        expected = network(pixels)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_pixels_at_the_input_need_no_network(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(self: TrunkProgram, pixels: torch.Tensor) -> None:
        raise AssertionError("the trunk runs")

    monkeypatch.setattr(TrunkProgram, "forward", runs)
    found = all_of(images, extractor(depths=("input",), pool="none"))
    (part,) = found.parts
    assert (part.shape, part.dtype, part.at(0).dtype) == ((32, 32, 3), np.uint8, np.uint8)
    np.testing.assert_array_equal(part.take(range(len(part))), pixels_of(images))
    assert found.computed == len(images.items)
    other = extractor(
        small_network(1), ("input",), "none", replace(VIEW, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    )
    assert all_of(images, other).computed == 0
    for change in ({"size": (32, 36)}, {"crop": 0.9}, {"interpolation": "bicubic"}):
        changed_view = extractor(depths=("input",), pool="none", view=replace(VIEW, **change))
        assert key(changed_view) not in found.fingerprints


def test_one_pass_gives_codes_and_whole_tensors_of_any_cuts(images: ImageSet) -> None:
    depths, pools = ("4", "2", "2", "input", "2"), ("avg", "none", "avg", "none", "none")
    found = all_of(images, extractor(depths=depths, pool=pools))
    assert found.computed == len(images.items)
    alone = [
        all_of(images, extractor(depths=(depth,), pool=pool))
        for depth, pool in (("input", "none"), ("2", "none"), ("2", "avg"), ("4", "avg"))
    ]
    assert [one.computed for one in alone] == [0, 0, 0, 0]  # all were kept by the first pass
    assert found.fingerprints == tuple(key for one in alone for key in one.fingerprints)
    everything = range(len(images.items))
    for part, one in zip(found.parts, alone, strict=True):
        np.testing.assert_array_equal(part.take(everything), one.parts[0].take(everything))
    np.testing.assert_array_equal(found.rows, np.concatenate([one.rows for one in alone], axis=1))
    assert found.rows.shape == (len(images.items), 8 + 16)
    whole = found.parts[1].take(everything)
    np.testing.assert_allclose(whole.mean((2, 3)), found.rows[:, :8], rtol=0, atol=1e-5)


def test_only_what_a_store_lacks_is_added_to_it(images: ImageSet) -> None:
    codes, both = extractor(), extractor(depths=("4", "4"), pool=("avg", "none"))
    first = all_of(images, codes, list(range(10)))
    again = all_of(images, both, list(range(20)))
    assert again.computed == 20
    np.testing.assert_array_equal(again.rows[:10], first.rows)
    assert sum(len(shard.codes) for shard in store_of(codes).shards) == 20


@pytest.mark.parametrize("number", [1, 2])
def test_augmented_views_are_cached_beside_the_plain_one(images: ImageSet, number: int) -> None:
    view = View(number, Augment(0.3))
    by = extractor(pool=("avg",))
    plain, found = all_of(images, by), all_of(images, by, view=view)
    assert (plain.computed, found.computed) == (len(images.items), len(images.items))
    assert plain.fingerprints != found.fingerprints
    with torch.no_grad():
        expected = small_network()[:7](to_tensor(pixels_of(images, view), VIEW))
    np.testing.assert_allclose(found.rows, expected, rtol=0, atol=1e-5)
    assert all_of(images, by, view=view).computed == 0
    assert all_of(images, by, view=View(0, Augment(0.3))).computed == 0
    pixels = all_of(images, extractor(depths=("input",), pool="none"), view=view).parts[0]
    np.testing.assert_array_equal(pixels.take(range(len(pixels))), pixels_of(images, view))


@pytest.mark.parametrize("depth", ["4", "input"])
def test_number_and_recipe_of_a_view_change_the_key(
    depth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = extractor(depths=(depth,), pool="none")

    def key_at(view: View) -> str:
        (store,) = open_stores(by, by.eager.runtime, view)
        return store.key

    views = [PLAIN, View(1), View(2), View(1, Augment(0.4)), View(1, Augment(flip=False))]
    keys = [key_at(view) for view in views]
    assert len(set(keys)) == len(views)
    assert key_at(View(0, Augment(0.4))) == keys[0]
    monkeypatch.setattr("topwork.data.augment.VERSION", 2)
    assert key_at(views[1]) != keys[1]
    assert key_at(PLAIN) == keys[0]


def test_the_facts_of_plain_codes_have_kept_their_names(tmp_path: Path) -> None:
    """What is cached by an earlier version stays valid."""
    manifest = store_of(extractor()).folder / "manifest.json"
    facts = json.loads(manifest.read_text(encoding="utf-8"))["facts"]
    assert list(facts) == [
        "format",
        "decoding",
        "preprocessing",
        "view",
        "weights",
        "program",
        "code",
        "canary",
        "cut",
        "pool",
        "dtype",
        "runtime",
        "versions",
    ]
    assert facts["format"] == 3
    assert (facts["view"], facts["cut"], facts["pool"]) == ("plain", "4", "avg")
    assert facts["dtype"] == "float32"
    assert list(facts["preprocessing"]) == ["size", "crop", "interpolation", "mean", "std"]
    assert facts["runtime"] == {"name": "eager", "device": "cpu", "layout": "channels_last"}
    assert list(facts["versions"]) == ["torch", "torchvision", "timm", "numpy"]


def test_large_rows_are_written_in_smaller_shards(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = extractor(depths=("2",), pool="none")
    size = 4 * int(np.prod(by.trunk.cuts[0].shape))
    monkeypatch.setattr(building, "SHARD_BYTES", 20 * size)
    written = []
    monkeypatch.setattr(CodeStore, "merge", lambda store: written.extend(store.shards))
    all_of(images, by)
    assert [len(shard.codes) for shard in written] == [20] * (len(images.items) // 20) + [12]


def test_an_image_that_breaks_has_no_row(images: ImageSet, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    copied = open_images(tmp_path / "data")
    digests = [str(digest) for digest in audit(copied).digests]
    (tmp_path / "data" / copied.items[1].name).write_bytes(b"broken")
    by = extractor(depths=("2", "4"), pool=("none", "avg"))
    found = extract(by, copied, range(4), digests[:4])
    assert list(found.failed) == [1]
    assert not found.rows[1].any()
    assert found.rows[[0, 2, 3]].any(1).all()
    for part in found.parts:
        assert part.take([0, 2, 3]).any()
        with pytest.raises(IndexError, match="row 1 is absent"):
            part.at(1)


def test_images_of_other_channel_counts() -> None:
    generator = np.random.default_rng(0)
    for channels in (1, 5):
        pixels = generator.integers(0, 256, (6, 20, 20, channels), dtype=np.uint8)
        images = images_from_arrays(pixels, ["a", "b"] * 3)
        view = Preprocessing((20, 20), 1.0, "bilinear", (0.5,) * channels, (0.5,) * channels)
        first = nn.Conv2d(channels, 4, 3)
        network = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 18, 2)).eval()
        by = extractor(network, ("input", "1"), ("none", "none"), view)
        kept, maps = all_of(images, by).parts
        np.testing.assert_array_equal(kept.take(range(6)), pixels)
        with torch.no_grad():
            expected = network[:2](to_tensor(pixels, view))
        np.testing.assert_allclose(maps.take(range(6)), expected, rtol=0, atol=1e-5)
