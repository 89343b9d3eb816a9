"""A profile's picture and tables: right numbers, nothing cut off, nothing on top of another."""

import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from topwork.report.advice_terminal import print_advice, print_profile, print_ranking
from topwork.report.profile_picture import draw_profile
from topwork.report.profile_words import headline, headline_of_several
from topwork.report.terminal import out_console
from topwork.report.words import gain_in_words

MOBILENET = [
    *("bn1", "blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1", "blocks.2.2"),
    *("blocks.3.0", "blocks.3.1", "blocks.3.2", "blocks.3.3", "blocks.4.0", "blocks.4.1"),
    *("blocks.4.2", "blocks.5.0", "blocks.5.1", "blocks.5.2", "blocks.6.0", "bn2"),
]
RISING = [0.55 + 0.4 * (place / 18) ** 0.5 for place in range(19)]
PEAKED = [0.5 + 0.37 * (1 - (place - 11) ** 2 / 121) for place in range(19)]


def a_profile(
    values: list[float] = RISING,
    names: list[str] = MOBILENET,
    backbone: str = "mobilenetv2_100",
    metric: str = "accuracy",
    verdict: str = "similar",
    told_apart: bool = True,
    majority: float | None = 0.506,
) -> dict[str, Any]:
    """Return a profile as `topwork.api.profile` gives it."""
    less = metric.endswith("error")
    best = (min if less else max)(range(len(values)), key=values.__getitem__)
    width = 0.04 if metric == "accuracy" else 0.05 * max(values)
    classes = metric == "accuracy"
    depths = [
        {
            "name": name,
            "depth": place + 1,
            "stage_end": place % 3 == 2 or place == len(names) - 1,
            "parameters": 1234 * (place + 1),
            "multiply_adds": 10_000_000 * (place + 1),
            "pool": "avg",
            "columns": 16 * (place + 1),
            "head": "ridge" if classes else "regression",
            "value": value,
            "interval": [value - width, min(value + width, 1.0) if classes else value + width],
            "n": 245,
            "loss": 1 - value if classes else value,
            "heads": {},
        }
        for place, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    points = [
        {
            "images": 25 * 2**k,
            "images_per_class": 12.5 * 2**k,
            "value": values[best] - 0.03 * (3 - k),
            "interval": [values[best] - 0.03 * (3 - k) - width, values[best]],
            "loss": 0.5,
        }
        for k in range(4)
    ]
    gain = values[best] - values[-1]
    return {
        "backbone": backbone,
        "metric": metric,
        "input_size": [224, 224],
        "images": 245,
        "classes": ["ants", "bees"] if classes else ["age"],
        "majority": majority if classes else None,
        "folds": 5,
        "license": None,
        "parameters": 2_000_000,
        "depths": depths,
        "top": names[-1],
        "best": names[best],
        "gain": {"value": gain, "interval": [gain - 0.05, gain + 0.05], "told_apart": told_apart}
        if classes
        else None,
        "learning_curve": {
            "depth": names[best],
            "head": "ridge",
            "points": points,
            "doubling": {"value": 0.012, "interval": [-0.003, 0.03]},
        },
        "similarity": {"verdict": verdict, "transfers": True, "why": "it [peaks] at the top"},
        "size": {"verdict": "small", "images_per_class": 122.5, "why": "with 122 images per class"},
        "notes": ["at bn1: a note"],
        "seconds": 5.1,
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return what draws profiles and hands out the figure that was saved."""

    def draw(*profiles: dict[str, Any]) -> Figure:
        figures = []
        save = Figure.savefig

        def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
            save(figure, *arguments, **options)
            figures.append(figure)

        monkeypatch.setattr(Figure, "savefig", keep)
        draw_profile(list(profiles), tmp_path / "profile.png")
        monkeypatch.setattr(Figure, "savefig", save)
        return figures[0]

    return draw


def texts_of(figure: Figure) -> list:
    """Return all texts that are shown."""
    found = [*figure.texts]
    for panel in figure.axes:
        low, high = sorted(panel.get_ylim())
        beside = zip(panel.get_yticklabels(), panel.get_yticks(), strict=False)  # none, or all
        beside = [text for text, place in beside if low <= place <= high]
        titles = (panel._left_title, panel.xaxis.label)
        found += [*panel.texts, *titles, *panel.get_xticklabels(), *beside]
    return [text for text in found if text.get_text() and text.get_visible()]


def words_on(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts_of(figure))


LONG = [f"features.denseblock{1 + k // 16}.denselayer{k % 16 + 1}" for k in range(58)]
FORTY = [f"layer{1 + k // 10}.{k % 10}" for k in range(40)]


def spread(count: int, peak: float = 1.0) -> list[float]:
    return [0.3 + 0.6 * (1 - abs(k / (count - 1) - peak)) for k in range(count)]


def several(count: int) -> list[dict[str, Any]]:
    names = ["mobilenetv2_100", "vit_tiny_patch16_224", "resnet18", "a" * 24]
    return [
        a_profile([value - 0.004 * k for value in RISING], backbone=f"{names[k % 4]}{k}")
        for k in range(count)
    ]


CASES = {
    "best at the top": [a_profile()],
    "best in the middle": [a_profile(PEAKED, verdict="different", majority=0.3)],
    "best at the stem": [a_profile(PEAKED[11:], MOBILENET[11:])],
    "much above chance": [a_profile([v - 0.001 for v in RISING], majority=0.05)],
    "forty": [a_profile(spread(40, 0.5), FORTY)],
    "long names": [a_profile(spread(58, 0.7), LONG)],
    "few": [a_profile([0.5, 0.8, 0.7, 0.9], ["conv1", "layer1", "layer2", "layer3"])],
    "one": [a_profile([0.9], ["layer4"])],
    "numbers": [a_profile(spread(19, 0.2), metric="mean_absolute_error")],
    "labels": [a_profile(metric="mean_average_precision")],
    "two": several(2),
    "eight": several(8),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_lies_on_top_of_another_or_beyond_the_page(case: str, drawn) -> None:
    figure = drawn(*CASES[case])
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts_of(figure)]
    for words, box in boxes:
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{words!r} is cut off: {box}"
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), f"{one!r} lies on {other!r}"


def test_the_lines_are_the_numbers(drawn) -> None:
    profile = a_profile(PEAKED)
    main, side = drawn(profile).axes
    assert list(main.lines[0].get_ydata()) == pytest.approx([100 * value for value in PEAKED])
    band = main.collections[0].get_paths()[0].vertices[:, 1]
    for depth in profile["depths"]:
        for end in depth["interval"]:
            assert min(abs(band - 100 * end)) < 1e-9
    points = profile["learning_curve"]["points"]
    assert list(side.lines[0].get_xdata()) == [12.5, 25, 50, 100]
    assert list(side.lines[0].get_ydata()) == pytest.approx([100 * p["value"] for p in points])
    forecast, error, dot = side.lines[1:4]
    last = 100 * points[-1]["value"]
    assert list(forecast.get_xdata()) == [100, 200]
    assert list(forecast.get_ydata()) == pytest.approx([last, last + 1.2])
    assert list(error.get_ydata()) == pytest.approx([last - 0.3, last + 3])
    assert list(dot.get_xdata()) == [200]


def test_every_cut_point_is_named_and_the_ends_of_stages_stand_out(drawn) -> None:
    labels = drawn(a_profile()).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == MOBILENET
    assert [label.get_weight() == "bold" for label in labels] == [
        place % 3 == 2 or place == 18 for place in range(19)
    ]


def test_of_very_many_the_best_the_top_and_stage_ends_are_named(drawn) -> None:
    names = [f"stage{k // 15}.block{k % 15}" for k in range(90)]
    profile = a_profile(spread(90, 0.61), names)
    shown = [label.get_text() for label in drawn(profile).axes[0].get_xticklabels()]
    assert {profile["best"], profile["top"]} <= set(shown)
    assert 20 < len(shown) < 60
    ends = sum(profile["depths"][names.index(name)]["stage_end"] for name in shown)
    assert ends > len(shown) / 3


def test_chance_is_drawn_where_it_is_near(drawn) -> None:
    near = drawn(a_profile(majority=0.506))
    for panel in near.axes:
        assert [50.6, 50.6] in [list(line.get_ydata()) for line in panel.lines]
    assert "dashed: the most frequent class, 50.6 %" in words_on(near)
    far = drawn(a_profile(majority=0.05))
    assert "; the most frequent class, 5.0 %" in words_on(far)
    assert far.axes[0].get_ylim()[0] > 40


def test_less_is_better_upside_down(drawn) -> None:
    figure = drawn(a_profile(spread(19, 0.2), metric="mean_absolute_error"))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top
    assert "less is better" in words_on(figure)
    assert "labeled images" in words_on(figure)


def test_several_are_named_at_their_ends_in_their_colors(drawn) -> None:
    profiles = several(3)
    main = drawn(*profiles).axes[0]
    named = {text.get_text(): text.get_color() for text in main.texts}
    for number, profile in enumerate(profiles):
        assert named[profile["backbone"]] == main.lines[2 * number].get_color()
    assert main.lines[0].get_xdata()[-1] == 1


def test_headlines() -> None:
    assert headline(a_profile()) == (
        "Best at the top (95.0 %): the data is like what the network was pretrained on"
    )
    middle = a_profile(PEAKED, verdict="different")
    assert headline(middle) == (
        "Best at blocks.4.0 (87.0 %), 15.0 points above the top:"
        " the data is unlike what the network was pretrained on"
    )
    equal = a_profile(PEAKED, verdict="cannot tell", told_apart=False)
    assert headline(equal) == ("Best at blocks.4.0 (87.0 %; 72.0 % at the top)")
    by_loss = a_profile(PEAKED, verdict="cannot tell")
    by_loss["best"], by_loss["gain"]["value"] = "bn1", -0.22
    assert headline(by_loss) == "Least loss at bn1 (50.0 %), 22.0 points below the top"
    nothing = a_profile()
    nothing["similarity"]["transfers"] = False
    assert headline(nothing).startswith("Nothing transfers: even at its best depth, bn2")
    unmeasured = a_profile(PEAKED, metric="mean_average_precision", told_apart=False)
    for depth in unmeasured["depths"][:-1]:
        depth["value"] = None
    assert headline(unmeasured).startswith("Least loss at blocks.4.0 (-; 0.720 at the top)")
    unmeasured["depths"][-1]["value"] = None
    assert headline(unmeasured).startswith("Nothing could be measured")
    assert headline_of_several(several(3)) == (
        "Best of 3: mobilenetv2_1000 at bn2 (95.0 %), then vit_tiny_patch16_2241 at bn2 (94.6 %)"
        " and 1 more"
    )


def test_png_and_svg(tmp_path: Path) -> None:
    draw_profile([a_profile()], tmp_path / "profile.png")
    with Image.open(tmp_path / "profile.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1320
    for name in ("a.svg", "b.SVG"):
        draw_profile([a_profile()], tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<!-- blocks.4.0 -->" in text


def test_dollars_are_no_formula(drawn) -> None:
    names = ["in$put", "$a_{1", r"b$\nonsense$", "top"]
    profile = a_profile([0.5, 0.6, 0.8, 0.7], names, backbone="$net$", told_apart=False)
    figure = drawn(profile)
    assert set(names) <= set(words_on(figure).split("\n"))
    assert not any(text.get_parse_math() for text in texts_of(figure))


def test_a_picture_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "profile.png"
    file.write_bytes(b"before")

    def fail(figure: Figure, target: Any, **options: Any) -> None:
        target.write(b"half")
        raise OSError("no space is left")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space"):
        draw_profile([a_profile()], file)
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_candidates_of_labels_and_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    advice = an_advice()
    for metric, title in (("label_accuracy", "right labels"), ("none", "value")):
        advice["metric"] = metric
        print_advice(advice)
        assert re.search(
            rf"^ +plan +{title} +95 % interval +loss +images", capfd.readouterr().out, re.M
        )


def test_gains_of_labels_say_so() -> None:
    profile = a_profile(PEAKED, metric="mean_average_precision")
    profile["gain"] = {"value": 0.02, "interval": [0.01, 0.03], "told_apart": True}
    assert gain_in_words(profile).endswith("bn2: +2.0 points (+1.0 to +3.0) of right labels")
    assert headline(profile).startswith(
        "Best at blocks.4.0 (0.870), 2.0 points of right labels above"
    )


def test_it_uses_no_global_state() -> None:
    script = (
        "import sys, topwork.report.profile_picture, topwork.report.advice_terminal;"
        "print([name for name in ('matplotlib', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# --- tables -------------------------------------------------------------------------------------


def test_a_profile_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    print_profile(a_profile(PEAKED, verdict="different"))
    out, err = capfd.readouterr()
    for depth in a_profile(PEAKED)["depths"]:
        low, high = (f"{end:.3f}" for end in depth["interval"])
        row = rf"{re.escape(depth['name'])}( \*)? +{depth['value']:.3f} +{low} to {high} "
        assert re.search(row, out), depth["name"]
    assert re.search(r"^ > +blocks\.4\.0", out, re.M)
    assert len(re.findall(r"^ > ", out, re.M)) == 1
    assert "245 images of 2 classes, the most frequent 0.506" in out
    assert "gain over the top, bn2: +15.0 points (+10.0 to +20.0)\n" in out
    assert "similarity: different. It [peaks] at the top.\n" in out
    assert "size: small. With 122 images per class.\n" in out
    assert re.search(r"^ 12\.5 +0\.780 ", out, re.M)
    assert err == "at bn1: a note\n"


def test_a_gain_that_may_be_none_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    print_profile(a_profile(PEAKED, told_apart=False))
    assert ", not to be told apart from none\n" in capfd.readouterr().out
    print_profile(a_profile(spread(19, 0.2), metric="mean_absolute_error"))
    out = capfd.readouterr().out
    assert "> least loss: blocks" not in out.split("with fewer")[1]
    assert "mean absolute error" in out


def a_ranking() -> list[dict[str, Any]]:
    return [
        {
            "backbone": f"network{k}",
            "value": 0.9 - k / 10,
            "interval": [0.8 - k / 10, 0.95 - k / 10],
            "loss": 0.2 + k,
            "depth": "blocks.5",
            "h_score": 1.25,
            "log_me": -0.5,
            "leep": None if k else -0.75,
            "nce": None,
            "milliseconds": 12.5,
            "parameters": 2_200_000,
            "multiply_adds": 300_000_000,
            "told_apart": bool(k),
            "recommended": not k,
            "why": f"it is number {k}",
        }
        for k in range(2)
    ]


def test_several_profiles_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    profiles = [a_profile(backbone=f"network{k}") for k in range(2)]
    print_profile(
        {"profiles": profiles, "ranking": a_ranking(), "recommended": "network0", "seconds": 9.0}
    )
    out = capfd.readouterr().out
    first = (
        r"^ > +network0 +blocks\.5 +0\.900 +0\.800 to 0\.950 +0\.200 +1\.25 +-0\.500 +-0\.750 +-"
    )
    assert re.search(first, out, re.M)
    assert re.search(r"^ +network1 .* 2\.2 M +300 M", out, re.M)
    assert "> network0: It is number 0.\n  network1: It is number 1.\n" in out


def an_advice() -> dict[str, Any]:
    def row(name: str, state: str, **more: Any) -> dict[str, Any]:
        blank = dict.fromkeys(("value", "interval", "n", "loss", "difference"))
        facts = {
            "name": name,
            "plan": {},
            "plan_in_words": [],
            "why": f"why {name}",
            "corner": "",
            "state": state,
            "reason": f"reason of {name}, which is so long that a narrow table would break it",
            "seconds": 0.0,
            "seconds_to_fit": 30.0,
            "recommended": False,
        }
        return {**facts, **blank, **more}

    return {
        "backbone": "mobilenetv2_100",
        "recommended": {},
        "recommended_name": "features [top]",
        "plan_in_words": ["keep all", "freeze all"],
        "why": "it is the cheapest of those that cannot be told apart",
        "metric": "accuracy",
        "images": 245,
        "folds": 5,
        "candidates": [
            row(
                "features [top]",
                "compared",
                value=0.95,
                interval=[0.92, 0.97],
                loss=0.15,
                n=245,
                difference={"value": 0.0, "interval": [-0.01, 0.01], "told_apart": False},
                seconds=1.2,
                recommended=True,
            ),
            row(
                "fine-tune all",
                "dropped",
                value=0.9,
                interval=[0.86, 0.93],
                loss=0.31,
                n=98,
                difference={"value": -0.05, "interval": [-0.08, -0.02], "told_apart": True},
                seconds=20.0,
            ),
            row("from scratch", "not tried"),
        ],
        "compared_with": "features [top]",
        "textbook": {
            "size": "small",
            "similarity": "similar",
            "says": ["features [top]"],
            "words": "Small and similar: a linear classifier.",
            "agrees": True,
        },
        "profile": a_profile(),
        "time_budget": 120.0,
        "seconds": 64.0,
    }


def test_advice_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    print_advice(an_advice())
    out = capfd.readouterr().out
    assert re.search(
        r"^ > +features \[top\] +0\.950 +0\.920 to 0\.970 +0\.150 +245 +0\.0 points", out, re.M
    )
    assert re.search(r"fine-tune all .* .5\.0 points \(.8\.0 to .2\.0\), told apart +20\.0 s", out)
    assert re.search(r"^ +from scratch +- +- +- +- +- +- +30\.0 s +not tried: reason of", out, re.M)
    assert "Difference: from features [top], on the same images.\n" in out
    assert "textbook: Small and similar: a linear classifier; the measurement agrees.\n" in out
    assert "recommended: features [top]\n  It is the cheapest of those that cannot be" in out
    assert "told apart.\n  keep all\n  freeze all\n" in out
    assert "64.0 s of 2 min" in out
    for row in an_advice()["candidates"]:  # whole, if broken over lines
        words = row["reason"].split()
        assert all(word in out for word in words)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_cuts_nothing_off(
    width: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_console, "_width", width)
    advice = an_advice()
    for shown, wanted in (
        (lambda: print_advice(advice), advice["candidates"][1]["reason"]),
        (lambda: print_ranking(a_ranking()), "network0 blocks.5 -0.750 12.5 2.2M 300M"),
        (lambda: print_profile(a_profile(PEAKED)), "".join(MOBILENET)),
    ):
        shown()
        out = capfd.readouterr().out
        assert "…" not in out
        missing = Counter("".join(wanted.split())) - Counter(out)
        assert not missing, "a column is lost"


@pytest.mark.parametrize(
    ("agrees", "said"),
    [(False, "the measurement disagrees"), (None, "whether that holds cannot be told")],
)
def test_the_textbook_is_held_against_the_measurement(
    agrees: bool | None, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    advice = an_advice()
    advice["textbook"]["agrees"] = agrees
    print_advice(advice)
    assert f"a linear classifier; {said}.\n" in capfd.readouterr().out
