"""Images as the top takes them: the same from the cache, from kept pixels and run anew."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from topwork.data.audit import audit
from topwork.data.items import open_images
from topwork.data.loading import untracked
from topwork.errors import DataError
from topwork.learn import samples as samples_module
from topwork.learn.samples import CachedInputs, LiveInputs, Samples
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.trunk.cache import cache_folder
from topwork.trunk.caching import Disk
from topwork.trunk.execution import Execution
from topwork.trunk.runtimes.runtime import Runtime
from topwork.trunk.shards import forget_checks

ROWS = [5, 0, 17, 3, 3]


def samples(pictures: Path, backbone: Path, cache: str = "auto") -> Samples:
    plan = Plan(str(backbone), phases=(Phase(frozen="layer2", epochs=2),))
    images = open_images(pictures)
    execution = Execution(torch.device("cpu"), runtime="eager", cache=cache)
    loaded = load_backbone(find_backbone(str(backbone)), plan)
    return Samples(loaded, images, audit(images), execution, untracked)


def inputs(of: Samples, views: int = 1) -> CachedInputs | LiveInputs:
    cut = of.loaded.chain.resolve("layer2")
    return of.at(cut, range(len(of.images.items)), views, epochs=2)


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_form_gives_the_same(pictures: Path, backbone: Path, epoch: int) -> None:
    cached = inputs(samples(pictures, backbone, "float32"), views=2)
    expected = cached.batch(ROWS, epoch)
    live = inputs(samples(pictures, backbone, "off"), views=2)
    assert (type(cached), type(live)) == (CachedInputs, LiveInputs)
    assert same(live.batch(ROWS, epoch), expected)
    of = samples(pictures, backbone)
    cut = of.loaded.chain.resolve("layer2")
    settled = {"form": "pixels", "runtime": "eager"}
    on_pixels = of.at(cut, range(len(of.images.items)), 2, 2, settled)
    assert same(on_pixels.batch(ROWS, epoch), expected)
    assert on_pixels.settled == settled


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, found, expected))


def test_half_precision_differs_by_its_rounding(pictures: Path, backbone: Path) -> None:
    full = inputs(samples(pictures, backbone, "float32")).batch(ROWS, 0)[0]
    half = inputs(samples(pictures, backbone, "float16")).batch(ROWS, 0)[0]
    assert half.dtype == torch.float32
    assert torch.equal(half, full.half().float())


def test_what_is_damaged_meanwhile_is_computed_again(pictures: Path, backbone: Path) -> None:
    of = samples(pictures, backbone, "float32")
    expected = inputs(of).batch(ROWS, 0)
    forget_checks()  # as in a new process
    again = inputs(of)
    assert isinstance(again, CachedInputs)
    again.view(0)
    (shard,) = shards()
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    count = of.computed
    assert same(again.batch(ROWS, 0), expected)
    assert of.computed == 2 * count


def shards() -> list[Path]:
    return sorted((cache_folder() / "codes").glob("*/*.safetensors"))


def test_the_form_goes_by_what_it_costs(
    pictures: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = samples(pictures, backbone)
    monkeypatch.setattr(samples_module, "measure_disk", lambda: Disk(1e9, 1e12, 1e12))
    assert inputs(of).settled["form"] == "float32"
    monkeypatch.setattr(samples_module, "measure_disk", lambda: Disk(1e9, 0, 1e12))
    assert inputs(of).settled["form"] == "nothing"


def test_pooled_codes_are_kept_unless_nothing_may_be(pictures: Path, backbone: Path) -> None:
    rows = []
    for cache, files in (("off", 0), ("auto", 1)):
        of = samples(pictures, backbone, cache)
        rows.append(of.codes(of.loaded.chain.top, [1, 2, 3], 1))
        assert len(shards()) == files
    np.testing.assert_array_equal(rows[0], rows[1])


def test_an_image_that_goes_missing_is_named(pictures: Path, backbone: Path) -> None:
    of = samples(pictures, backbone, "off")
    live = inputs(of)
    name = of.images.items[0].name
    source: Callable[[str], bytes] = of.images.source
    of.images = replace(of.images, source=lambda n: b"" if n == name else source(n))
    with pytest.raises(DataError, match=f"{name}.*could be read before"):
        live.batch([0], 0)


def test_one_runtime_is_settled_for_all_views_and_for_the_held_out(
    pictures: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would repay itself for some images alone."""
    of = samples(pictures, backbone)
    of.execution = replace(of.execution, runtime="auto")
    chosen = Runtime("onnxruntime", of.execution.device, 2, "1")
    monkeypatch.setattr(samples_module, "runtime_for", lambda *rest: chosen)
    cut = of.loaded.chain.resolve("layer2")
    trained = of.at(cut, range(10), 3, 5)
    assert trained.settled == {"form": "float32", "runtime": "onnxruntime"}
    held_out = of.at(cut, [11, 12], settled=trained.settled)
    assert held_out.settled == trained.settled
    for inputs in (trained, held_out):
        assert isinstance(inputs, CachedInputs)
        assert inputs.extractor.execution.runtime == "onnxruntime"


def test_work_goes_on_where_its_runtime_is_not_installed(
    pictures: Path, backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fit, and a distillation, which takes several depths at once."""
    settled = {"form": "float32", "runtime": "half"}
    of = samples(pictures, backbone)
    cut = of.loaded.chain.resolve("layer2")
    inputs = of.at(cut, [1, 2], settled=settled)
    assert inputs.batch([0], 0)[0].shape[0] == 1
    assert "with which this was begun" in caplog.text
    caplog.clear()
    depths = of.side_by_side(["layer1", "layer2"], ["mean", "mean"], [1, 2], 1, settled)
    assert [len(part) for part in depths.batch([0], 0)] == [1, 1]
    assert "with which this was begun" in caplog.text
    caplog.clear()
    of.execution = replace(of.execution, runtime="half")
    assert of.at_hand("half") == "half"  # the user asked for it: no other one goes on unasked
    assert not caplog.text


def test_kept_pixels_are_fetched_before_threads_begin(
    pictures: Path, backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Decoding puts aside the process's stderr, which several threads must not do at once."""
    of = samples(pictures, backbone)
    cut = of.loaded.chain.resolve("layer2")
    inputs = of.at(cut, range(40), 2, 2, {"form": "pixels", "runtime": "eager"})
    inputs.batch(list(range(40)), 1)
    os.write(2, b"still there")
    assert "still there" in capfd.readouterr().err
