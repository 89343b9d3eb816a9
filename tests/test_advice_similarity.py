"""Distances from the source against plain sums; verdicts on similarity and size."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.stats import norm, t
from torch import nn

from networks import build, snapshot
from topwork.advice.comparison import paired_difference, standard_errors_above
from topwork.advice.distances import LIMITS, CutDistance, Distances, frechet_distance
from topwork.advice.learning_curve import LearningCurve
from topwork.advice.norm_distances import batch_norm_distances, sample_pixels
from topwork.advice.profile import DepthResult, Profile
from topwork.advice.ranking import Entry, Scores, rank_backbones
from topwork.advice.shape import of_one_answer, shape_of
from topwork.advice.similarity import similarity_of
from topwork.advice.size import size_of
from topwork.advice.source_card import (
    CARD,
    card_distances,
    card_of,
    read_card,
    statistics_of,
    write_card,
)
from topwork.data.items import images_from_arrays, images_from_paths
from topwork.data.views import Preprocessing, to_tensor
from topwork.errors import UsageError, WeightsError
from topwork.learn.judging import Judged, StrengthResult
from topwork.learn.metrics import proportion
from topwork.learn.targets import Targets
from topwork.network.chain import CutPoint, trace_chain
from topwork.network.layout import Layout
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan

SHARED = Path(__file__).parents[1] / "../shared"
VIEW = Preprocessing((16, 16), 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def small_network() -> nn.Sequential:
    """Two convolutions with batch norms whose statistics are made up, and a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        layers += [nn.Conv2d(4, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
        for norm in (network[1], network[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.2, 2)
    return network.eval()


def frechet_by_definition(norm: nn.BatchNorm2d, values: np.ndarray) -> float:
    found = []
    for channel in range(values.shape[1]):
        of_one = values[:, channel].astype(np.float64).ravel()
        variance = float(norm.running_var[channel])
        moved = (of_one.mean() - float(norm.running_mean[channel])) ** 2
        widened = (math.sqrt(of_one.var()) - math.sqrt(variance)) ** 2
        found.append((moved + widened) / variance)
    return sum(found) / len(found)


def test_distances_at_batch_norms_are_those_of_what_goes_into_them() -> None:
    network, shown = small_network(), pixels(11)
    before = snapshot(network)
    chain = trace_chain(network, torch.zeros(1, 3, 16, 16))
    found = batch_norm_distances(chain, shown, VIEW)
    assert found is not None
    assert snapshot(network) == before
    assert not any(module._forward_pre_hooks for module in chain.network.modules())
    with torch.no_grad():
        images = to_tensor(shown, VIEW)
        inputs = [network[:1](images).numpy(), network[:4](images).numpy()]
    expected = [
        frechet_by_definition(norm, values)
        for norm, values in zip((network[1], network[4]), inputs, strict=True)
    ]
    assert [each.name for each in found.depths] == ["2", "5"]
    assert [each.distance for each in found.depths] == pytest.approx(expected, rel=1e-4)
    assert found.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.record()["source"] == "batch norms"
    assert found.images == 11


def test_images_of_the_source_lie_near_and_others_far() -> None:
    network, own = small_network(), pixels(32)
    images = to_tensor(own, VIEW)
    with torch.no_grad():
        for number in (1, 4):  # the second sees what the first, already set, makes of the images
            values = network[:number](images)
            network[number].running_mean = values.mean((0, 2, 3))
            network[number].running_var = values.var((0, 2, 3))
    chain = trace_chain(network, torch.zeros(1, 3, 16, 16))
    near = batch_norm_distances(chain, own, VIEW)
    far = batch_norm_distances(chain, own // 4 + 190, VIEW)
    assert near is not None
    assert far is not None
    assert near.value < 1e-4 < 0.5 < far.value


@pytest.mark.parametrize("name", ["timm:mobilenetv2_100", "timm:regnety_002"])
def test_real_architectures_have_distances_along_their_depth(name: str) -> None:
    network, _ = build(name)
    before = snapshot(network)
    chain = trace_chain(network, torch.zeros(1, 3, 64, 64))
    view = Preprocessing((64, 64), 1.0, "bilinear", VIEW.mean, VIEW.std)
    shown = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    found = batch_norm_distances(chain, shown, view)
    assert found is not None
    depths = [each.depth for each in found.depths]
    assert depths == sorted(set(depths))
    assert len(depths) > 5
    assert all(math.isfinite(each.distance) and each.distance > 0 for each in found.depths)
    assert snapshot(network) == before


def test_networks_without_batch_norms_and_no_images_give_no_distance() -> None:
    network, _ = build("torchvision:squeezenet1_1")
    chain = trace_chain(network, torch.zeros(1, 3, 64, 64))
    assert batch_norm_distances(chain, pixels(2), VIEW) is None
    own = trace_chain(small_network(), torch.zeros(1, 3, 16, 16))
    assert batch_norm_distances(own, pixels(2)[:0], VIEW) is None


def test_the_frechet_distance_has_no_unit() -> None:
    generator = np.random.default_rng(0)
    mean, other = generator.normal(size=(2, 6))
    variance, wider = generator.uniform(0.5, 3, (2, 6))
    found = frechet_distance(mean, variance, other, wider)
    scaled = frechet_distance(30 * mean, 900 * variance, 30 * other, 900 * wider)
    assert scaled == pytest.approx(found)
    assert frechet_distance(mean, variance, mean, variance) == 0.0
    assert frechet_distance(mean, variance, mean, 0 * variance) == pytest.approx(1.0)
    assert frechet_distance(mean, 0 * variance, other, wider) == 0.0


def test_a_silent_channel_does_not_drown_the_others() -> None:
    variance = np.array([1.0] * 9 + [1e-12])
    found = frechet_distance(np.zeros(10), variance, np.full(10, 0.1), variance)
    assert found < 2


def test_a_sample_is_spread_and_passes_over_what_cannot_be_read() -> None:
    shades = np.arange(200, dtype=np.uint8)[:, None, None] + np.zeros((1, 8, 8), np.uint8)
    images = images_from_arrays(shades, ["a", "b"] * 100)
    view = Preprocessing((8, 8), 1.0, "bilinear", VIEW.mean, VIEW.std)
    shown = sample_pixels(images, range(200), view)
    assert shown.shape == (32, 8, 8, 3)
    assert shown[[0, -1], 0, 0, 0].tolist() == [0, 199]
    assert np.diff(shown[:, 0, 0, 0].astype(int)).max() <= 7
    read = images.source
    object.__setattr__(images, "source", lambda n: b"" if n == "images[0]" else read(n))
    assert len(sample_pixels(images, range(3), view)) == 2
    assert sample_pixels(images, [0], view).shape == (0, 8, 8, 3)


def codes(seed: int = 0, shift: float = 0.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "2": generator.normal(3 + shift, 2, (40, 4)).astype(np.float32),
        "5": generator.normal(-1, 0.5, (40, 5)).astype(np.float32),
    }


POOLS = {"2": "avg", "5": "avg"}


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    own = codes()
    weights = {"file": str(tmp_path / "model.safetensors"), "sha256": "12ab"}
    path = write_card(SimpleNamespace(weights=weights), statistics_of(own, POOLS))
    assert path == tmp_path / CARD
    card = read_card(path)
    assert card.weights == "12ab"
    assert card.images == 40
    assert {name: cut.pool for name, cut in card.cuts.items()} == POOLS
    for name, values in own.items():
        np.testing.assert_allclose(card.cuts[name].mean, values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(card.cuts[name].std, values.std(0), rtol=1e-5)


def test_distances_by_card_are_those_of_the_codes() -> None:
    chain = trace_chain(small_network(), torch.zeros(1, 3, 16, 16))
    card = statistics_of(codes(), POOLS)
    same = card_distances(card, chain, codes(), POOLS)
    assert same is not None
    assert same.source == "card"
    assert [each.name for each in same.depths] == ["2", "5"]
    assert same.value == pytest.approx(0.0, abs=1e-6)
    moved = card_distances(card, chain, codes(shift=4.0), POOLS)
    assert moved is not None
    expected = 16 / (codes()["2"].astype(np.float64).var(0))
    assert moved.depths[0].distance == pytest.approx(expected.mean(), rel=1e-3)


def test_only_what_was_pooled_alike_is_compared() -> None:
    chain = trace_chain(small_network(), torch.zeros(1, 3, 16, 16))
    card = statistics_of(codes(), POOLS)
    found = card_distances(card, chain, codes(), POOLS | {"2": "flatten"})
    assert found is not None
    assert [each.name for each in found.depths] == ["5"]
    assert card_distances(card, chain, {}, {}) is None
    wider = {name: np.hstack([values, values]) for name, values in codes().items()}
    assert card_distances(card, chain, wider, POOLS) is None


def test_what_is_no_card_is_refused_by_name(tmp_path: Path) -> None:
    facts = {
        "format": "topwork source statistics 1",
        "images": "3",
        "pools": json.dumps({"2": "avg"}),
        "weights": "12ab",
    }
    ones = np.ones(4, np.float32)
    good = {"2.mean": ones, "2.std": ones}
    path = tmp_path / CARD
    wrong = [
        (good, {}),
        (good, facts | {"format": "another"}),
        (good, facts | {"images": "many"}),
        (good, facts | {"pools": "[1]"}),
        (good, facts | {"pools": "{"}),
        (good, {name: value for name, value in facts.items() if name != "weights"}),
        ({"2.mean": ones}, facts),
        (good | {"5.mean": ones}, facts),
        (good | {"2.std": -ones}, facts),
        (good | {"2.std": ones[:2]}, facts),
        (good | {"2.mean": ones * np.nan}, facts),
    ]
    save_file(good, path, facts)
    assert read_card(path).images == 3
    for tensors, metadata in wrong:
        save_file(tensors, path, metadata)
        with pytest.raises(WeightsError, match=f"{CARD}.*fetch it again"):
            read_card(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(WeightsError, match="no card of source statistics"):
        read_card(path)


def test_the_card_beside_the_weights_is_found(
    backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in backbone.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded = load_backbone(find_backbone(str(tmp_path)), Plan(str(tmp_path)))
    assert card_of(loaded) is None
    write_card(loaded, statistics_of(codes(), POOLS))
    card = card_of(loaded)
    assert card is not None
    assert sorted(card.cuts) == ["2", "5"]
    assert not caplog.records
    other = tmp_path / "other.safetensors"
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: np.asarray(value + 1) for name, value in state.items()}, other)
    beside = load_backbone(find_backbone(str(tmp_path), weights=other), Plan(str(tmp_path)))
    assert card_of(beside) is None
    assert len(caplog.messages) == 1
    assert f"{CARD} tells of other weights than {other}" in caplog.text
    with pytest.raises(WeightsError, match="these are random"):
        write_card(replace(loaded, weights=None), card)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_ants_and_bees_lie_near_to_photos_and_steel_far() -> None:
    folder = str(SHARED / "weights/mobilenetv2_100")
    loaded = load_backbone(find_backbone(folder), Plan(folder))
    said = []
    for data in ("hymenoptera/train/ants", "neu_steel"):
        paths = sorted((SHARED / "data" / data).rglob("*.jpg"))[::20][:8]
        images = images_from_paths(paths)
        shown = sample_pixels(images, range(len(images)), loaded.backbone.preprocessing)
        found = batch_norm_distances(loaded.chain, shown, loaded.backbone.preprocessing)
        assert found is not None
        said.append(found.says)
    assert said == ["similar", "different"]


def test_only_layers_with_the_source_weights_are_compared() -> None:
    chain = trace_chain(small_network(), torch.zeros(1, 3, 16, 16))
    found = batch_norm_distances(chain, pixels(3), VIEW, "2")
    assert found is not None
    assert [each.name for each in found.depths] == ["2"]
    assert batch_norm_distances(chain, pixels(3), VIEW, "input") is None


COUNT = 120
LABELS = np.arange(COUNT) % 4


def judged(losses: np.ndarray, right: np.ndarray | None, kind: str = "softmax") -> Judged:
    """What heads would say, given how they do on each row; rows in an order of their own."""
    rows = np.random.default_rng(9).permutation(len(losses))
    accuracy = None if right is None else float(right.mean())
    result = StrengthResult(0.1, float(losses.mean()), accuracy, 1.0)
    headline = {"metric": "mean_absolute_error", "value": 0.5, "interval": [0.4, 0.6], "n": COUNT}
    if right is not None:
        headline = {"metric": "accuracy", **proportion(int(right.sum()), len(right))}
    own = None if right is None else right[rows]
    return Judged(kind, (result,), 0, rows, losses[rows], own, headline, 5, 5, ())


def profile(
    mean_losses: Sequence[float],
    *,
    noise: float = 0.4,
    targets: Targets | None = None,
    name: str = "net",
    cost: int = 100,
    whole: bool = True,
    seed: int = 0,
) -> Profile:
    """A profile with these losses from the lowest depth up; rows vary alike at all depths."""
    targets = targets or Targets("classes", LABELS, ("a", "b", "c", "d"))
    common = np.random.default_rng(0).exponential(1.0, COUNT)
    common /= common.mean()
    generator = np.random.default_rng(1 + seed)
    depths = []
    for depth, mean in enumerate(mean_losses, start=1):
        own = generator.normal(0, noise, COUNT)
        losses = mean * common + own - own.mean()
        right = (losses < math.log(2)).astype(np.float64) if targets.kind == "classes" else None
        cut = CutPoint(
            depth, f"block{depth}", (8,), Layout("vector"), True, 10 * depth, cost * depth, None
        )
        depths.append(DepthResult(cut, "avg", 8, {"softmax": judged(losses, right)}, "softmax"))
    top = depths[-1].cut if whole else replace(depths[-1].cut, name="above")
    loaded = SimpleNamespace(
        chain=SimpleNamespace(top=top), backbone=SimpleNamespace(name=name), plan=None
    )
    curve = LearningCurve((), 0.0, 0.0, 1.0)
    groups = np.array([str(row) for row in range(COUNT)])
    return Profile(loaded, targets, groups, None, tuple(depths), curve, 0, {})


def distances(value: float, source: str = "batch norms") -> Distances:
    return Distances(source, (CutDistance("block1", 1, value),), 64)


NEAR_BY, FAR_OFF = distances(0.05), distances(0.4)
RISING = (1.2, 1.1, 0.9, 0.6, 0.4, 0.2)
PEAKED = (1.2, 0.9, 0.5, 0.2, 0.5, 0.8)
FLAT = (1.2, 0.6, 0.201, 0.2, 0.201, 0.205)


@pytest.mark.parametrize(
    ("losses", "found", "verdict"),
    [
        (RISING, None, "similar"),
        (RISING, NEAR_BY, "similar"),
        (RISING, distances(0.15), "similar"),
        (RISING, FAR_OFF, "cannot tell"),
        (PEAKED, None, "different"),
        (PEAKED, FAR_OFF, "different"),
        (PEAKED, NEAR_BY, "cannot tell"),
        (FLAT, None, "cannot tell"),
        (FLAT, NEAR_BY, "similar"),
        (FLAT, FAR_OFF, "different"),
        (FLAT, distances(0.4, "card"), "similar"),
        (FLAT, distances(2.0, "card"), "different"),
    ],
)
def test_the_verdict_is_what_signs_say_that_do_not_contradict(
    losses: Sequence[float], found: Distances | None, verdict: str
) -> None:
    similarity = similarity_of(profile(losses), found)
    assert similarity.verdict == verdict
    assert similarity.transfers is True
    json.dumps(similarity.record(), allow_nan=False)


def test_the_shape_gives_its_numbers() -> None:
    own = profile(PEAKED)
    shape = shape_of(own)
    assert (shape.best, shape.lowest, shape.middle, shape.top) == (
        "block4",
        "block1",
        "block3",
        "block6",
    )
    assert (shape.peak, shape.peak_depth) == (4 / 6, 4 / 6)
    best, top = own.depths[3].best, own.depths[5].best
    rises = top.losses - best.losses
    assert shape.fall.errors == pytest.approx(rises.mean() / (rises.std() / math.sqrt(COUNT)))
    assert shape.fall.accuracy is not None
    assert shape.fall.accuracy.value == pytest.approx(best.right.mean() - top.right.mean())
    record = shape.record()
    assert record["fall"]["told_apart"] is True
    assert record["says"] == "different"


def test_images_of_one_group_count_together() -> None:
    own = profile((1.2, 1.0, 0.6, 0.5, 0.7, 0.8))
    pairs = np.array([str(row // 2) for row in range(COUNT)])
    shape = shape_of(replace(own, groups=pairs))
    best, top = own.depths[3].best, own.depths[5].best
    by_row = np.argsort(best.rows)
    rises = (top.losses - best.losses)[by_row]
    sums = (rises - rises.mean()).reshape(-1, 2).sum(1)
    pairs_seen = len(sums)
    error = math.sqrt(pairs_seen / (pairs_seen - 1) * (sums @ sums)) / COUNT
    expected = norm.isf(t.sf(rises.mean() / error, pairs_seen - 1))
    assert shape.fall.errors == pytest.approx(expected)
    right = [judged.right[by_row] for judged in (best, top)]
    assert shape.fall.accuracy is not None
    assert shape.fall.accuracy.low == pytest.approx(paired_difference(*right, pairs).low)


def test_one_answer_is_compared_row_by_row() -> None:
    values = np.minimum(np.arange(COUNT) % 7, 2)
    own = profile((1.2, 0.9), targets=Targets("classes", values, ("a", "b", "c")))
    best, found = own.top.best, shape_of(own).over_nothing
    shares = np.bincount(values) / COUNT
    gains = [-math.log(shares[values[row]]) for row in best.rows] - best.losses
    assert found.errors == pytest.approx(gains.mean() / (gains.std() / math.sqrt(COUNT)))
    most_frequent = (values[best.rows] == 2).astype(float)
    assert found.accuracy is not None
    assert found.accuracy.low == pytest.approx(paired_difference(best.right, most_frequent).low)


@pytest.mark.parametrize(
    ("top", "says"), [(0.2, "similar"), (0.222, "cannot tell"), (0.4, "different")]
)
def test_between_as_good_and_told_apart_the_shape_says_nothing(top: float, says: str) -> None:
    own = profile((1.2, 1.0, 0.8, 0.7, 0.2, top), noise=0.1)
    errors = shape_of(own).fall.errors
    assert shape_of(own).says == says
    assert {"similar": errors <= 1, "cannot tell": 1 < errors <= 2, "different": errors > 2}[says]


def test_a_network_cut_down_shows_no_likeness_but_may_show_the_opposite() -> None:
    assert similarity_of(profile(RISING, whole=False), None).verdict == "cannot tell"
    assert "not used" in similarity_of(profile(RISING, whole=False), None).why
    assert similarity_of(profile(PEAKED, whole=False), None).verdict == "different"


def test_nothing_transfers_where_no_depth_beats_one_answer() -> None:
    chance = math.log(4)
    found = similarity_of(profile([chance] * 5, noise=0.3), NEAR_BY)
    assert (found.verdict, found.transfers) == ("cannot tell", False)
    assert "always saying the most frequent class, 25.0% right" in found.why


def test_nothing_transfers_where_no_depth_beats_the_lowest() -> None:
    found = similarity_of(profile([0.8, 0.9, 0.9, 1.0]), FAR_OFF)
    assert (found.verdict, found.transfers) == ("different", False)
    assert "edges and colors" in found.why
    single = similarity_of(profile([0.8]), None)
    assert (single.verdict, single.transfers) == ("cannot tell", None)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_groups_do_not_show_that_nothing_transfers(count: int) -> None:
    groups = np.array([str(row % count) for row in range(COUNT)])
    found = {}
    for name, losses in (("good", [1.3, 0.9, 0.3, 0.2]), ("useless", [math.log(4)] * 4)):
        said = profile(losses, noise=0.01)
        for depth in said.depths:  # the same features do less for one of the groups
            last = groups[depth.best.rows] == str(count - 1)
            depth.best.losses[last] += 0.7 if name == "good" else 0.05
        found[name] = similarity_of(replace(said, groups=groups), None)
    assert (found["good"].verdict, found["good"].transfers) == ("cannot tell", None)
    assert f"images of {count} group(s) show may be chance" in found["good"].why
    assert found["useless"].transfers is (None if count == 1 else False)


def test_where_the_lowest_features_do_nothing_is_left_to_gain() -> None:
    found = similarity_of(profile([0.01] * 5, noise=0.001), None)
    assert found.transfers is None


def test_words_have_the_numbers_in_them() -> None:
    own = profile(PEAKED)
    why = similarity_of(own, FAR_OFF).why
    for depth in (own.depths[0], own.depths[3], own.depths[5]):
        assert f"{depth.best.out_of_fold['value']:.1%}" in why
        assert depth.cut.name in why or depth is own.depths[5]
    assert "0.40" in why
    assert f"{LIMITS['batch norms'][1]}" in why
    assert "opposite" not in why
    assert "opposite" in similarity_of(own, NEAR_BY).why


def test_labels_and_numbers_have_a_likeness_too() -> None:
    generator = np.random.default_rng(0)
    columns = generator.normal(size=(COUNT, 2)).astype(np.float32)
    of_numbers = profile((1.0, 0.9, 0.5, 0.2), targets=Targets("numbers", columns, ("x", "y")))
    found = similarity_of(of_numbers, None)
    assert (found.verdict, found.transfers) == ("similar", True)
    assert "mean absolute error of 0.5" in found.why
    assert found.record()["shape"]["fall"]["value"] is None
    no_better = profile((1.1, 1.0, 1.05), targets=Targets("numbers", columns, ("x", "y")))
    assert similarity_of(no_better, None).transfers is False


def test_one_answer_for_all_costs_what_it_costs() -> None:
    labels = np.float32([[1, 0], [1, 1], [0, 0], [1, 0]])
    losses, right = of_one_answer(Targets("labels", labels, ("wet", "cold")))
    shares = [[0.75, 0.75], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert losses.tolist() == pytest.approx([-sum(map(math.log, row)) / 2 for row in shares])
    assert right is not None
    assert right.tolist() == [1.0, 0.5, 0.5, 1.0]
    more = np.hstack([labels, np.float32([[0, 1]] * 4)])  # that no image has, and that each one has
    assert of_one_answer(Targets("labels", more, ("wet", "cold", "no", "all")))[0] == pytest.approx(
        losses
    )
    assert not of_one_answer(Targets("labels", more[:, 2:], ("no", "all")))[0].any()
    numbers = np.float32([[1, 7, 0], [2, 7, 1], [6, 7, 2]])
    losses, right = of_one_answer(Targets("numbers", numbers, ("a", "constant", "b")))
    assert right is None
    assert losses.mean() == pytest.approx(1.0)
    assert losses[0] == pytest.approx((4 / (14 / 3) + 1 / (2 / 3)) / 2)


@pytest.mark.parametrize(
    ("doubling", "verdict"),
    [
        ((0.03, 0.01, 0.05), "small"),
        ((0.03, 0.0, 0.08), "cannot tell"),
        ((0.008, 0.004, 0.012), "cannot tell"),
        ((0.004, 0.0, 0.02), "large"),
        ((0.0, 0.0, 0.0), "large"),
    ],
)
def test_size_is_what_twice_the_images_would_add(
    doubling: tuple[float, float, float], verdict: str
) -> None:
    points = (None, None)
    found = size_of(LearningCurve(points, *doubling), 31.25)
    assert found.verdict == verdict
    assert f"{100 * doubling[0]:.1f} point" in found.why
    assert "31 images per class" in found.why
    assert found.record()["doubling"] == {"value": doubling[0], "interval": list(doubling[1:])}


def test_too_few_images_have_no_size() -> None:
    assert size_of(LearningCurve((), 0.0, 0.0, 1.0), 3).verdict == "cannot tell"


def entry(name: str, losses: Sequence[float], cost: int, noise: float = 0.05) -> Entry:
    own = profile(losses, noise=noise, name=name, cost=cost, seed=len(name))
    return Entry(own, Scores(1.0, -0.5, None, None), 12.0)


def test_the_cheapest_of_the_best_backbones_is_recommended() -> None:
    entries = [
        entry("slow", (1.0, 0.3001), cost=900),
        entry("bad", (1.0, 0.9), cost=1),
        entry("quick", (1.0, 0.3002), cost=100),
    ]
    ranking = rank_backbones(entries)
    records = [place.record() for place in ranking]
    assert [record["backbone"] for record in records] == ["slow", "quick", "bad"]
    assert [record["recommended"] for record in records] == [False, True, False]
    assert [record["told_apart"] for record in records] == [False, False, True]
    assert records[0]["multiply_adds"] == 1800
    assert "9.0 times the multiply-adds of quick" in records[0]["why"]
    assert "cheapest of 2" in records[1]["why"]
    assert "standard errors above that of slow" in records[2]["why"]
    assert records[1]["depth"] == "block2"
    assert records[1]["log_me"] == -0.5
    json.dumps(records, allow_nan=False)


def test_a_backbone_that_is_better_beyond_chance_is_recommended_at_any_cost() -> None:
    ranking = rank_backbones([entry("quick", (1.0, 0.5), 1), entry("good", (1.0, 0.2), 10**9)])
    assert [place.recommended for place in ranking] == [True, False]
    assert ranking[0].entry.name == "good"
    assert "no other one lies within one standard error" in ranking[0].why


def test_what_is_not_told_apart_may_be_too_far_behind_to_be_recommended() -> None:
    best, behind = entry("best", (1.0, 0.3), 900), entry("behind", (1.0, 0.308), 1)
    above = standard_errors_above(
        behind.profile.best.best.losses, best.profile.best.best.losses, np.arange(COUNT)
    )
    assert 1 < above < 2
    places = rank_backbones([behind, best])
    assert [place.entry.name for place in places] == ["best", "behind"]
    assert [place.recommended for place in places] == [True, False]
    assert [place.told_apart for place in places] == [False, False]


@pytest.mark.parametrize(("errors", "apart"), [(1.5, False), (2.5, True)])
def test_networks_for_numbers_are_told_apart_by_their_losses(errors: float, apart: bool) -> None:
    targets = Targets("numbers", np.ones((COUNT, 1), np.float32), ("x",))
    noise = np.random.default_rng(3).normal(0, 1, COUNT)
    noise = (noise - noise.mean()) / noise.std() / math.sqrt(COUNT)  # a standard error of 1 / COUNT
    base = entry("base", (0.5,), 1)
    losses = (np.full(COUNT, 0.5), 0.5 + noise + errors / COUNT)
    entries = []
    for name, own in zip(("first", "second"), losses, strict=True):
        depth = replace(base.profile.top, judged={"softmax": judged(own, None)})
        loaded = SimpleNamespace(**vars(base.profile.loaded))
        loaded.backbone = SimpleNamespace(name=name)
        changed = replace(base.profile, targets=targets, depths=(depth,), loaded=loaded)
        entries.append(replace(base, profile=changed))
    assert [place.told_apart for place in rank_backbones(entries)] == [False, apart]


def test_backbones_on_other_images_are_not_ranked() -> None:
    first = entry("first", RISING, 1)
    other = first.profile.top.best
    moved = replace(other, rows=other.rows[::-1].copy())
    depths = (replace(first.profile.top, judged={"softmax": moved}),)
    second = replace(first, profile=replace(first.profile, depths=depths))
    with pytest.raises(UsageError, match="same data"):
        rank_backbones([first, second])
