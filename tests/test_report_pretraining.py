"""A pretraining's pictures and tables: one panel and one cell to a measure, nothing empty."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from topwork.cli_pretrain import METHODS as NAMED
from topwork.pretraining.methods import METHODS
from topwork.report.pretraining_pictures import draw_pretraining
from topwork.report.pretraining_words import card_in_words, print_pretraining


def epochs_of(stage: str, count: int, *, loss: bool = True, **found: float) -> list[dict[str, Any]]:
    """Return records of epochs in which everything grows by its own size."""
    return [
        {
            "stage": stage,
            "epoch": number,
            "epochs": count,
            "loss": 2.0 * number if loss else None,
            "held_out": 3.0 * number,
            "seconds": 1.5,
            **{key: value * number for key, value in found.items()},
        }
        for number in range(1, count + 1)
    ]


PROBED = {"probe": 0.1, "probe_low": 0.05, "probe_high": 0.15, "probe_n": 500}
MACHINES = [
    *epochs_of("layer 1", 12, loss=False, free_energy_gap=900.0),
    *epochs_of("layer 2", 12, loss=False, free_energy_gap=0.01),
    *epochs_of("layer 3", 12, loss=False, free_energy_gap=1.0),
]
VIEWS = epochs_of("two views", 3, found_again=0.2, **PROBED)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function from records to the panels that are drawn of them, by title."""
    figures = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: Any, **how: Any) -> None:
        save(figure, *arguments, **how)
        figures.append(figure)

    def panels(records: list[dict[str, Any]]) -> dict[str, Any]:
        assert draw_pretraining(records, {}, tmp_path) == ["losses.png"]
        assert (tmp_path / "losses.png").stat().st_size > 1000
        visible = [panel for panel in figures[-1].axes if panel.get_visible()]
        found = {panel.get_title(loc="left"): panel for panel in visible}
        assert len(found) == len(visible)
        return found

    monkeypatch.setattr(Figure, "savefig", kept)
    return panels


def test_an_interval_is_a_band_and_no_panel(drawn: Any) -> None:
    panels = drawn(VIEWS)
    title = "probe, with 95 % interval"
    assert list(panels) == ["two views: loss", "found again", title]
    (line,) = panels[title].lines
    np.testing.assert_allclose(line.get_xydata(), [(1, 0.1), (2, 0.2), (3, 0.3)])
    (band,) = panels[title].collections
    corners = {tuple(np.round(corner, 9)) for corner in band.get_paths()[0].vertices}
    assert corners == {(n, round(n * side, 9)) for n in (1, 2, 3) for side in (0.05, 0.15)}
    assert not panels["found again"].collections


def test_a_legend_only_where_there_are_two_lines(drawn: Any) -> None:
    (panel,) = drawn(epochs_of("classes", 3)).values()
    legend = [text.get_text() for text in panel.get_legend().get_texts()]
    assert legend == ["trained on", "held out"]
    assert [line.get_ydata()[0] for line in panel.lines] == [2.0, 3.0]

    (alone,) = drawn(epochs_of("layer 1", 3, loss=False)).items()
    assert alone[0] == "layer 1: held out"
    assert alone[1].get_legend() is None
    assert len(alone[1].lines) == 1

    never_held_out = [{**record, "held_out": None} for record in epochs_of("two views", 3)]
    ((title, panel),) = drawn(never_held_out).items()
    assert (title, panel.get_legend(), len(panel.lines)) == ("two views: loss", None, 1)


def test_each_stage_has_its_own_scale(drawn: Any) -> None:
    panels = drawn(MACHINES)
    stages = ("layer 1", "layer 2", "layer 3")
    kinds = ("held out", "free energy gap")
    assert list(panels) == [f"{stage}: {kind}" for stage in stages for kind in kinds]
    for stage, size in zip(stages, (900.0, 0.01, 1.0), strict=True):
        panel = panels[f"{stage}: free energy gap"]
        low, high = panel.get_ylim()
        assert high - low < 1.2 * 11 * size
        rows = {panels[f"{stage}: {kind}"].get_subplotspec().rowspan.start for kind in kinds}
        assert len(rows) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 25])
def test_epochs_are_whole_numbers(drawn: Any, count: int) -> None:
    for panel in drawn(epochs_of("classes", count, **PROBED)).values():
        low, high = panel.get_xlim()
        ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)


def record_of(records: list[dict[str, Any]], method: str) -> dict[str, Any]:
    last = {record["stage"]: record for record in records}
    told = ("stage", "epoch", "epochs")
    return {
        "method": method,
        "paper": "Somebody 2020",
        "source": "photos",
        "images": 100,
        "held_out": 5,
        "left_aside": 20,
        "measures": METHODS[method].measures,
        "recipe": {"steps": 1},
        "architecture": {"arguments": {"widths": [8]}},
        "preprocessing": {"size": [28, 32], "mean": [0.0]},
        "started_from": None,
        "reaches": None,
        "data": {"summary": ["125 images"], "lost_later": []},
        "seed": 0,
        "machine": "a machine",
        "date": "2026-01-01",
        "results": {
            stage: {key: value for key, value in row.items() if key not in told}
            for stage, row in last.items()
        },
        "training_seconds": 54.0,
        "seconds": 60.0,
        "backbone": "made",
        "pictures": ["losses.png"],
    }


def test_a_card_has_a_row_for_each_stage() -> None:
    lines = card_in_words(record_of(MACHINES, "rbm"), "dense").splitlines()
    assert [line for line in lines if line.startswith("|")] == [
        "| stage | held out | free energy gap |",
        "| --- | ---: | ---: |",
        "| layer 1 | 36 | 1.08e+04 |",
        "| layer 2 | 36 | 0.12 |",
        "| layer 3 | 36 | 12 |",
    ]
    assert any(line.startswith("Here held out is the error of rebuilding") for line in lines)
    assert "![losses.png](losses.png)" in lines


def test_a_measure_is_one_cell_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    records = [{**record, "held_out": None, "probe_n": 500} for record in VIEWS]
    print_pretraining(record_of(records, "contrastive"))
    header, row = capsys.readouterr().out.splitlines()[1:3]
    assert header.split() == ["stage", "loss", "found", "again", "probe"]
    assert row.split("  ")[0] == "two views"
    assert row.endswith(" 0.6  0.300 (0.150 to 0.450, n 500)")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_measures(method: str) -> None:
    card = card_in_words(record_of(VIEWS, method), "dense")
    (legend,) = [line for line in card.splitlines() if line.startswith("Here ")]
    assert METHODS[method].measures in legend
    assert "loss is" in legend or "held out is" in legend
    assert method in NAMED.replace(".", "").replace(",", "").split()


def test_a_card_says_what_the_weights_began_with_and_what_was_found() -> None:
    plain = card_in_words(record_of(VIEWS, "masked"), "dense")
    assert "- Images: 28 x 32 pixels, 1 channel\n" in plain
    assert "- Started from random weights" in plain
    assert "Teacher" not in plain
    assert "Weights reach up to" not in plain
    record = record_of(VIEWS, "distill") | {
        "started_from": {"name": "made", "up_to": "layer2", "file": "x", "sha256": "abcdef" * 10},
        "license": "apache-2.0",
        "teacher": {
            "name": "timm:resnet18",
            "weights_sha256": "0123456789abcdef",
            "license": "mit",
        },
        "reaches": "layer3",
        "data": {
            "summary": ["125 images", "1 unreadable, left out: a.png: empty"],
            "lost_later": [["b.png", "cut off"]],
        },
    }
    lines = card_in_words(record, "dense").splitlines()
    for line in (
        "- Started from `made` (SHA-256 abcdefabcdef), up to layer2",
        "- Teacher: `timm:resnet18` (SHA-256 0123456789ab, mit)",
        "- License of the weights that it was made from: apache-2.0",
        "- Found: 1 unreadable, left out: a.png: empty",
        "- Found: 1 cannot be decoded, left out: b.png: cut off",
    ):
        assert line in lines
    assert any("Weights reach up to `layer3`" in line for line in lines)
