"""The demo's study in miniature: its structure, its pairing, its statistics, its picture."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from PIL import Image

from topwork.phase import Phase
from topwork.report.pictures import draw_transfer
from topwork.study.digits import draw, load_images, load_tasks, run_trial
from topwork.study.transfer import (
    Score,
    Transfer,
    Trial,
    describe,
    finding,
    mean_and_interval,
    summarize,
)

SHORT = Phase(epochs=1, batch=256, optimizer="sgd", rate=0.05)
MINIATURE = {"labels_per_class": (3, 2), "source_training": SHORT, "target_training": SHORT}
BLOCKS = ["block1", "block2", "block3"]


@pytest.fixture(scope="module")
def trial() -> Trial:
    return run_trial(0, **MINIATURE)


def made_up(gains: dict[int, list[float]]) -> Transfer:
    """Return a result whose reused rows gain what is given over a scratch that moves by seed."""
    trials = []
    for seed in range(len(next(iter(gains.values())))):
        scratch, scores = 0.5 + 0.1 * seed, []
        for count, by_seed in gains.items():
            scores += [Score("pixels", "input", count, 0.4)]
            scores += [Score("random", block, count, 0.45) for block in BLOCKS]
            scores += [Score("reused", block, count, scratch + by_seed[seed]) for block in BLOCKS]
            scores += [Score("fine-tuned", "input", count, scratch)]
            scores += [Score("scratch", "input", count, scratch)]
        trials.append(Trial(seed, 0.9, ("input", *BLOCKS), 451, tuple(scores), 1.0))
    return summarize(trials)


def test_tasks_divide_the_data_set():
    images, digits = load_images()
    source, target = load_tasks()
    assert len(source.labels) / 4 + len(target.labels) == 1797 // 2
    assert len(source.test_labels) / 4 + len(target.test_labels) == 1797 - 1797 // 2
    assert sorted(source.labels.unique().tolist()) == list(range(20))
    assert sorted(target.labels.unique().tolist()) == list(range(5))
    assert source.images.shape[1:] == target.images.shape[1:] == (3, 16, 16)
    first = int((digits >= 5).nonzero()[0])
    assert torch.equal(target.images[0, 0, ::2, ::2], images[first, 0])
    assert target.labels[0] == digits[first] - 5
    assert (target.images.min(), target.images.max()) == (0, 1)


def test_source_labels_name_the_digit_and_the_quarter_turns():
    images, digits = load_images()
    source, _ = load_tasks()
    n = len(source.labels) // 4
    upright = images[: 1797 // 2][digits[: 1797 // 2] < 5]
    for turns in range(4):
        part = slice(turns * n, (turns + 1) * n)
        assert torch.equal(source.labels[part] % 5, source.labels[:n])
        assert (source.labels[part] // 5 == turns).all()
        small = source.images[part, :1, ::2, ::2]
        assert torch.equal(small, torch.rot90(upright, turns, dims=(2, 3)))


def test_draw_is_balanced_nested_and_of_the_seed():
    labels = torch.arange(100) % 5
    few, more = draw(labels, 2, seed=1), draw(labels, 7, seed=1)
    assert labels[more].bincount().tolist() == [7] * 5
    assert set(few.tolist()) < set(more.tolist())
    assert len(set(more.tolist())) == 35
    assert not torch.equal(more, draw(labels, 7, seed=2))


def test_trial_has_every_way_once(trial: Trial):
    keys = [(score.labels_per_class, score.way, score.depth) for score in trial.scores]
    expected = [
        (count, way, depth)
        for count in (2, 3)
        for way, depths in (
            ("pixels", ["input"]),
            ("random", BLOCKS),
            ("reused", BLOCKS),
            ("fine-tuned", ["input"]),
            ("scratch", ["input"]),
        )
        for depth in depths
    ]
    assert keys == expected
    assert trial.depths == ("input", *BLOCKS)
    assert trial.test_count == 451
    assert all(0 <= score.accuracy <= 1 for score in trial.scores)


def test_trial_repeats_bit_for_bit_and_leaves_no_trace(trial: Trial):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(99)
    expected = torch.rand(2)
    torch.manual_seed(99)
    again = run_trial(0, **MINIATURE)
    assert replace(again, seconds=trial.seconds) == trial
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert torch.is_grad_enabled()


def test_gain_is_taken_seed_by_seed():
    result = made_up({5: [0.02, 0.04, 0.03], 20: [-0.02, -0.04, -0.03]})
    row = result.select("reused", 5)[-1]
    assert row.accuracies == pytest.approx([0.52, 0.64, 0.73])
    half = 4.302653 * statistics.stdev([0.02, 0.04, 0.03]) / math.sqrt(3)
    assert row.gain == pytest.approx(0.03)
    assert row.gain_interval == pytest.approx((0.03 - half, 0.03 + half))
    assert row.interval is not None
    assert row.interval[1] - row.interval[0] > 10 * half
    assert result.select("scratch", 5)[0].gain_interval == (0, 0)


def test_finding_says_what_the_numbers_say():
    result = made_up({5: [0.02, 0.04, 0.03], 20: [-0.02, -0.04, -0.03]})
    assert finding(result) == (
        "With 5 labels per class, reused layers beat training from scratch by 3.0 points;"
        " with 20 they fall 3.0 points behind training from scratch"
    )
    undecided = made_up({5: [0.02, -0.04, 0.03]})
    assert finding(undecided) == (
        "With 5 labels per class, reused layers cannot be told from training from scratch"
    )
    assert "cannot be told" in finding(made_up({5: [0.2]}))


def test_interval_of_one_seed_is_unknown():
    assert mean_and_interval([0.5]) == (0.5, None)


def test_description_has_both_tables():
    gains = {2: [0.1, 0.3], 5: [0.02, 0.04], 20: [0.0, 0.0]}
    result = made_up(gains)
    lines = describe(result).splitlines()
    assert lines[0] == finding(result) + "."
    assert max(map(len, lines[1:])) < 80
    reused = [line.split() for line in lines if line.startswith("  reused to block2, frozen")]
    (accuracy,), (gain,) = [line[4:] for line in reused[:1]], [line[4:] for line in reused[1:]]
    assert accuracy[::3] == ["75.0", "58.0", "55.0"]
    assert gain[::3] == ["+20.0", "+3.0", "+0.0"]
    assert gain[2] == f"{12.706205 * 10:.1f}"
    assert sum("from scratch  " in line for line in lines) == 1


def test_result_is_plain_data(trial: Trial):
    record = summarize([trial]).record()
    assert json.loads(json.dumps(record))["rows"][0]["way"] == "pixels"
    assert len(record["rows"]) == 2 * 9


@pytest.mark.parametrize("counts", [(5,), (5, 20), (2, 5, 20)])
def test_picture_is_a_png_of_the_stated_size(tmp_path, counts: tuple[int, ...]):
    path = tmp_path / "transfer.png"
    draw_transfer(made_up({count: [0.02, 0.04, 0.03] for count in counts}), path)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1000, 560))
        colors = image.convert("RGB").getcolors(100_000)
    assert (0, 114, 178) in {color for _, color in colors}  # the line of reused layers


def test_picture_of_a_single_seed(tmp_path, trial: Trial):
    draw_transfer(summarize([trial]), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
