"""Reports: what they show is what was measured, and other people's text stays text."""

import base64
import io
import json
import math
import re
import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reports import HOSTILE, made_up, scored
from topwork.data.augment import PLAIN, View
from topwork.data.loading import read_view
from topwork.errors import DataError, UsageError
from topwork.learn.ranking import rank
from topwork.learn.targets import Targets
from topwork.report.evidence import calibration, evidence_of, judge_each
from topwork.report.markdown import escaped
from topwork.report.page import (
    EVIDENCE,
    MARKDOWN,
    PAGE,
    rebuild,
    render_markdown,
    render_page,
    write_report,
)
from topwork.report.record import given_groups, results
from topwork.report.scales import Scale, linear, logarithmic, named
from topwork.report.sections import chance_precision, guessing, sections
from topwork.report.terminal import trunk_use
from topwork.report.words import amount, limits, percent

KINDS: dict[str, dict[str, Any]] = {
    "two classes": {},
    "hostile classes": {"names": HOSTILE, "advised": True, "phases": "trained", "views": 3},
    "forty classes": {"names": tuple(f"class {n}" for n in range(40)), "count": 640},
    "step by step": {"phases": "gradual"},
    "labels": {"kind": "labels", "names": HOSTILE[:4], "advised": True},
    "numbers": {"kind": "numbers", "names": HOSTILE[:3], "advised": True, "phases": "trained"},
}


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, the words, the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.cell = False
        self.style = ""
        self.feed(text.replace("\N{NO-BREAK SPACE}", " "))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.style += data
            return
        self.words.append(data)
        if self.cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict, str, str]]:
    """Return for each kind its evidence, its page and its Markdown."""
    found = {}
    for kind, options in KINDS.items():
        folder = tmp_path_factory.mktemp("run")
        evidence = made_up(**options)
        paths = write_report(evidence, folder)
        assert paths == {"html": str(folder / PAGE), "markdown": str(folder / MARKDOWN)}
        page, markdown = ((folder / name).read_text(encoding="utf-8") for name in (PAGE, MARKDOWN))
        assert json.loads((folder / EVIDENCE).read_text(encoding="utf-8")) == evidence
        found[kind] = evidence, page, markdown
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_page_runs_nothing_and_fetches_nothing(reports: dict, kind: str) -> None:
    _, text, _ = reports[kind]
    page = Page(text)
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "style2"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert str(attributes.get("href", "#")).startswith("#")
        assert str(attributes.get("src", "data:image/jpeg;base64,")).startswith("data:image/jpeg")
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert len(text) < 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_well_formed(reports: dict, kind: str) -> None:
    _, text, _ = reports[kind]
    ids = [a["id"] for _, a in Page(text).elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for tag, a in Page(text).elements if tag == "a"}
    assert links <= set(ids)
    void = {"meta", "img", "path"}
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            if tag not in void:
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in void:
                assert opened.pop() == tag

    Balance().feed(text)
    assert opened == []


@pytest.mark.parametrize("kind", ["hostile classes", "labels"])
def test_names_are_shown_as_they_are(reports: dict, kind: str) -> None:
    evidence, text, _ = reports[kind]
    page = Page(text)
    for name in evidence["record"]["classes"]:
        if name not in evidence["record"]["test"]["absent"]:
            name = name.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")
            assert any(name.replace("\r\n", "\n") in word.replace("\r", "") for word in page.words)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_record(reports: dict, kind: str) -> None:
    evidence, text, markdown = reports[kind]
    page, record = Page(text), evidence["record"]
    value = amount(record["metric"], record["value"])
    assert value in page.text
    assert limits(record["metric"], record["interval"]) in page.text
    assert f"{value}**" in markdown
    for name, found in record["test"].items():
        if isinstance(found, dict) and "interval" in found:
            assert amount(name, found["value"]) in page.text
            assert limits(name, found["interval"]) in page.text
            assert f"| {limits(name, found['interval'])} |" in markdown


def test_headline_counts_and_compares_with_guessing(reports: dict) -> None:
    evidence, text, markdown = reports["two classes"]
    counts = evidence["record"]["test"]["confusion"]["counts"]
    right, n = counts[0][0] + counts[1][1], sum(map(sum, counts))
    guess = max(map(sum, counts)) / n
    for shown in (Page(text).text, markdown):
        assert f"{right} of {n} test images right" in shown
        assert f"would be right for {percent(guess)}." in shown
        assert "nothing shows that the model has learned more" not in shown


def test_headline_says_when_nothing_was_learned(tmp_path: Path) -> None:
    evidence = made_up()
    evidence["record"]["interval"] = [0.4, 0.6]
    write_report(evidence, tmp_path)
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "nothing shows that the model has learned more" in text


def test_confusion_matrix_cell_by_cell(reports: dict) -> None:
    evidence, text, _ = reports["two classes"]
    rows = [row for row in Page(text).rows if row[0] in ("ants", "bees") and len(row) == 3]
    counts = evidence["record"]["test"]["confusion"]["counts"]
    assert [[int(cell.replace("·", "0")) for cell in row[1:]] for row in rows[:2]] == counts


def test_many_classes_show_what_was_confused_most(reports: dict) -> None:
    evidence, text, markdown = reports["forty classes"]
    confusion = evidence["record"]["test"]["confusion"]
    expected = sorted(
        (
            (-count, -count / sum(row), confusion["classes"][i], confusion["classes"][j])
            for i, row in enumerate(confusion["counts"])
            for j, count in enumerate(row)
            if i != j and count
        )
    )[:20]
    shown = [row for row in Page(text).rows if len(row) == 4 and row[1].startswith("class ")]
    assert [(true, said, int(count)) for true, said, count, _ in shown] == [
        (true, said, -count) for count, _, true, said in expected
    ]
    assert f"| {expected[0][2]} | {expected[0][3]} | {-expected[0][0]} |" in markdown
    assert "true ╲ said" not in text


def test_no_test_image_has_any_label(tmp_path: Path) -> None:
    fit = scored("labels", ("wet", "cold"))
    targets = replace(fit["targets"], values=np.zeros_like(fit["targets"].values))
    fit["record"] |= results(fit["answers"], targets, 0)
    evidence = evidence_of(**(fit | {"targets": targets}))
    assert evidence["record"]["value"] is None
    write_report(evidence, tmp_path)
    for name in (PAGE, MARKDOWN):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "No test image has any label." in text
        assert "nothing shows" not in text


def test_right_labels_are_right_in_any_order() -> None:
    fit = scored("labels", ("wet", "cold", "new"), count=120)
    names = fit["targets"].names
    given = {item.name: item.labels for item in fit["images"].items}
    assert any(list(labels) != sorted(labels, key=names.index) for labels in given.values())
    told = sections(evidence_of(**fit), "run")
    assert all(len(row["lines"]) == 1 for row in told["surest"])
    assert all(len(row["lines"]) == 3 for row in told["worst"])


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    evidence = made_up()
    evidence["record"]["data"]["location"] = evidence["worst"][0]["name"] = "photos\udcff"
    write_report(evidence, tmp_path)
    assert r"<h1>photos\udcff</h1>" in (tmp_path / PAGE).read_text(encoding="utf-8")
    rebuild(tmp_path)
    assert r"# photos\udcff" in (tmp_path / MARKDOWN).read_text(encoding="utf-8")


@pytest.mark.parametrize(("positives", "n"), [(1, 1), (1, 6), (3, 8), (8, 8), (20, 100)])
def test_chance_is_the_mean_average_precision_of_random_rankings(positives: int, n: int) -> None:
    generator, true = np.random.default_rng(0), np.arange(n) < positives
    once = np.ones((1, n))
    found = [rank(generator.random(n), true).average_precision(once)[0] for _ in range(3000)]
    error = max(np.std(found) / 3000**0.5, 1e-9)
    assert abs(chance_precision(positives, n) - np.mean(found)) < 4 * error


def test_labels_are_compared_with_random_rankings() -> None:
    rows = [{"n": 1}, {"n": 3}, {"n": 0}]
    record = {"metric": "mean_average_precision", "n": 8, "test": {"per_label": rows}}
    chance = (chance_precision(1, 8) + chance_precision(3, 8)) / 2
    assert guessing(record) == (chance, f"Ranking by chance would reach {chance:.3f}.")


def test_a_number_that_does_not_vary_hides_no_r2_of_others() -> None:
    numbers = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]], np.float32)
    targets = Targets("numbers", numbers, ("age", "rooms"))
    record = results(numbers + 0.1, targets, 0)
    assert "variance" in guessing(record)[1]
    same = Targets("numbers", numbers[:, 1:], ("rooms",))
    assert guessing(results(numbers[:, 1:], same, 0))[1] == "The true numbers are all the same."


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_given_groups_widen_every_headline_and_are_told(kind: str) -> None:
    fit = scored(kind, ("a", "b", "c"), count=96)
    # Every answer comes four times, as photos of one person do.
    answers, values = (
        np.repeat(rows[:12], 4, axis=0)
        for rows in (
            fit["answers"],
            fit["targets"].values,
        )
    )
    targets = replace(fit["targets"], values=values)
    groups = [f"person {row // 4}" for row in range(48)]
    items = tuple(replace(i, group=g) for i, g in zip(fit["images"].items, groups, strict=False))
    images = replace(fit["images"], items=items)
    together = given_groups(images, range(48))
    alone, found = results(answers, targets, 0), results(answers, targets, 0, together)
    assert found["test"]["groups"] == 12
    assert found["value"] == alone["value"]
    assert np.diff(found["interval"])[0] > 1.5 * np.diff(alone["interval"])[0]
    evidence = made_up(kind, ("a", "b", "c"), count=96)
    assert "groups together" not in sections(evidence, "run")["hero"]["sure"]
    evidence["record"]["test"]["groups"] = 12
    assert "each of 12 groups together" in sections(evidence, "run")["hero"]["sure"]


def test_images_without_a_group_stand_alone() -> None:
    images = scored("classes", ("a", "b"))["images"]
    assert given_groups(images, [0, 1, 2]) is None
    named = [
        replace(images.items[row], group=own) for row, own in enumerate(("x", None, "x", None))
    ]
    found = given_groups(replace(images, items=tuple(named)), [3, 2, 1, 0])
    assert len(set(found)) == 3
    assert found[1] == found[3]


def test_code_keeps_its_spaces() -> None:
    evidence = made_up()
    evidence["worst"][0]["name"] = "5 min/12 s.png"
    evidence["record"]["command"] = ["topwork", "fit", "5 min of 3 points"]
    page = render_page(sections(evidence, "5 min"))
    for code in ("topwork predict '5 min' IMAGE", "'5 min of 3 points'", "12 s.png<"):
        assert code in unescape(page)


def test_no_name_turns_what_follows_around(reports: dict) -> None:
    for kind in KINDS:
        for text in reports[kind][1:]:
            assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert "\\u202eright to left" in reports["hostile classes"][1]


def test_lost_images_share_a_note() -> None:
    evidence = made_up()
    lost = [[f"{number}.png", "no such file"] for number in range(103)]
    evidence["record"]["data"]["lost_later"] = lost
    evidence["record"]["notes"] += [f"lost after the audit: {n}: {why}" for n, why in lost]
    text = render_page(sections(evidence, "run"))
    note = "103 images lost after the audit: 0.png, 1.png, 2.png, 3.png, 4.png and 98 more"
    assert text.count('<p class="note">') == 3  # a note on codes, this one, the license
    assert note in text
    assert text.count(": no such file</li>") == 100
    assert "3 more are in record.json." in text


def test_views_of_an_image_share_a_row() -> None:
    for views, columns in ((1, None), (3, "3"), (9, "4")):
        text = render_page(sections(made_up(views=views), "run"))
        found = re.search(r"--views:(\d+)", text)
        assert (found and found.group(1)) == columns


def test_calibration_by_hand() -> None:
    fit = scored("classes", ("a", "b", "c"), count=200)
    answers, targets = fit["answers"], fit["targets"]
    for found in calibration(answers, targets):
        members = [
            (row.max(), row.argmax() == true)
            for row, true in zip(answers, targets.values, strict=True)
            if found["low"] < row.max() <= found["high"]
        ]
        assert found["n"] == len(members) > 0
        assert found["value"] == pytest.approx(sum(so for _, so in members) / len(members))
        assert found["probability"] == pytest.approx(sum(p for p, _ in members) / len(members))
    assert sum(found["n"] for found in calibration(answers, targets)) == len(answers)


def test_calibration_of_labels_counts_every_label() -> None:
    fit = scored("labels", ("wet", "cold", "new"), count=120)
    found = calibration(fit["answers"], fit["targets"])
    assert sum(bin_["n"] for bin_ in found) == fit["answers"].size
    applies = sum(bin_["n"] * bin_["value"] for bin_ in found)
    assert applies == pytest.approx(fit["targets"].values.sum())


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_worst_and_surest_by_hand(kind: str) -> None:
    fit = scored(kind, ("a", "b", "c"), count=200)
    evidence = evidence_of(**fit)
    losses = []
    for answer, true in zip(fit["answers"], fit["targets"].values, strict=True):
        if kind == "classes":
            losses.append((-math.log(answer[true]), answer.argmax() == true))
        elif kind == "labels":
            own = [p if t else 1 - p for p, t in zip(answer, true, strict=True)]
            losses.append((-sum(map(math.log, own)), all(p >= 0.5 for p in own)))
        else:
            spread = fit["targets"].values.std(axis=0)
            losses.append((float(np.mean(np.abs(answer - true) / spread)), False))
    wrong = sorted((loss for loss, right in losses if not right), reverse=True)
    assert [row["loss"] for row in evidence["worst"]] == pytest.approx(wrong[:12])
    right = sorted(loss for loss, right in losses if right)
    shown = [row["loss"] for row in evidence["surest"]]
    assert len(shown) == min(6, len(right))
    if kind == "classes":
        assert min(shown) == pytest.approx(right[0])
        assert [row["true"] for row in evidence["surest"]].count("a") == 2  # of each class
    names = [fit["images"].items[index].name for index in fit["tested"]]
    by_name = dict(zip(names, judge_each(fit["answers"], fit["targets"])[0], strict=True))
    assert all(by_name[row["name"]] == row["loss"] for row in evidence["worst"])


def test_pictures_are_what_the_network_sees() -> None:
    fit = scored("classes", ("a", "b"), views=5)
    evidence = evidence_of(**fit)
    indices = {item.name: index for index, item in enumerate(fit["images"].items)}
    view = fit["loaded"].backbone.preprocessing
    assert [len(row) for row in evidence["views"]] == [4, 4, 4]
    assert {row[0]["labels"] for row in evidence["views"]} == {"a", "b"}
    shown = [picture for row in evidence["views"] for picture in row]
    assert [picture["view"] for picture in shown] == [0, 1, 2, 3] * 3
    for picture in (*shown, *evidence["worst"], *evidence["surest"]):
        which = picture.get("view", 0)
        way = View(which, fit["loaded"].plan.augment) if which else PLAIN
        expected = read_view(fit["images"], indices[picture["name"]], None, view, way, "fast")
        made = Image.open(io.BytesIO(base64.b64decode(picture["image"])))
        assert made.format == "JPEG"
        assert np.abs(np.asarray(made, int) - expected).mean() < 12  # another one is at 85
    train = {fit["images"].items[index].name for index in fit["audited"].split.train}
    assert {picture["name"] for picture in shown} <= train


def test_large_views_are_made_small_and_lost_images_leave_a_gap() -> None:
    fit = scored("classes", ("a", "b"))
    big = fit["loaded"].backbone.preprocessing.adapted((300, 480), None)
    fit["loaded"].backbone.preprocessing = big
    made = Image.open(io.BytesIO(base64.b64decode(evidence_of(**fit)["views"][0][0]["image"])))
    assert made.size == (160, 100)
    object.__setattr__(fit["images"], "source", lambda name: b"gone")
    assert all(row["image"] is None for row in evidence_of(**fit)["worst"])


def test_scatter_of_numbers_tells_how_errors_lie() -> None:
    fit = scored("numbers", ("age", "weight"), count=120)
    (age, _) = evidence_of(**fit)["numbers"]
    errors = fit["answers"][:, 0] - fit["targets"].values[:, 0]
    assert age["mean_error"] == pytest.approx(errors.mean())
    assert age["median_absolute_error"] == pytest.approx(np.median(np.abs(errors)))
    assert len(age["points"]) == len(errors)
    assert age["points"][0] == pytest.approx(
        [float(fit["targets"].values[0, 0]), float(fit["answers"][0, 0])], rel=1e-5
    )


def test_advice_is_told(reports: dict) -> None:
    evidence, text, markdown = reports["hostile classes"]
    advice = evidence["record"]["advice"]
    page = Page(text)
    for shown in (page.text, markdown.replace("\\", "")):
        for candidate in advice["candidates"]:
            assert candidate["name"] in shown
            assert candidate["reason"] in shown
        assert "Features at the top: It is <cheapest>." in shown
        assert "It is <flat>." in shown
        assert "Small and similar: a linear classifier. The measurement agrees." in shown
    depths = advice["profile"]["depths"]
    rows = [row for row in page.rows if row[0] in {depth["name"] for depth in depths}]
    assert [(row[0], row[1]) for row in rows] == [
        (depth["name"], percent(depth["value"])) for depth in reversed(depths)
    ]
    assert "Nothing that the network has learned seems to help" in page.text
    assert "Why this plan" not in reports["two classes"][1]


def test_candidates_are_grouped_by_what_their_figures_were_measured_on(reports: dict) -> None:
    evidence, text, markdown = reports["hostile classes"]
    page = Page(text)
    for shown in (page.text, markdown):
        shown = shown[shown.index("What was tried") :]
        words = ("On frozen features", "several depths", "features at the top", "In trials")
        words += ("views", "fine-tune all of", "Not judged", "from scratch")
        places = [shown.index(word) for word in words]
        assert places == sorted(places)  # as they were tried, cheapest first, not by loss
        assert "same folds" not in shown
        assert "unless a trial is better by more than two standard errors" in shown
    for count in (64, 26, 13):
        assert f" on {count} images" in page.text
        assert re.search(rf"\| 0\.\d+ \| {count} \|", markdown)
    assert evidence["record"]["advice"]["candidates"][0]["recommended"] is False


def test_candidates_of_labels_and_numbers(reports: dict) -> None:
    for shown in (Page(reports["labels"][1]).text, reports["labels"][2]):
        told = shown[shown.index("What was tried") : shown.index("The textbook's rule")]
        assert "right labels" in told
        assert "90.0 %" in told  # a share, not an average precision
        assert "mean average precision" not in told
    for shown in (Page(reports["numbers"][1]).text, reports["numbers"][2]):
        told = shown[shown.index("What was tried") : shown.index("The textbook's rule")]
        assert "the loss alone" in told
        assert "0.100" in told
        assert "%" not in told
        assert "none" not in told
    assert "loss 0.100" in Page(reports["numbers"][1]).text


def test_curves_of_training_go_through_what_was_recorded(reports: dict) -> None:
    _, text, _ = reports["hostile classes"]
    titles = re.findall(r"<title>(epoch [^<]*)</title>", text.replace("\N{NO-BREAK SPACE}", " "))
    assert titles == [
        *("epoch 1: 1.000", "epoch 2: 0.500", "epoch 3: 0.333"),
        *("epoch 0: 0.900", "epoch 1: 0.600", "epoch 2: 0.500", "epoch 3: 0.600"),
        *("epoch 1: 50.0 %", "epoch 2: 75.0 %", "epoch 3: 83.3 %"),
        *("epoch 0: 62.5 %", "epoch 1: 75.0 %", "epoch 2: 75.0 %", "epoch 3: 75.0 %"),
    ]
    assert "75.0\N{NO-BREAK SPACE}% right after epoch 2, the best." in text
    numbers = reports["numbers"][1]
    assert "Loss by epoch" in numbers
    assert "Images right" not in numbers  # numbers are not right or wrong
    gradual = Page(reports["step by step"][1]).text
    assert "kept: frozen up to blocks.1." in gradual


def test_strips_show_what_each_phase_trains(reports: dict) -> None:
    def strips(kind: str) -> list[list[str]]:
        return strips_of(reports[kind][1])

    def strips_of(text: str) -> list[list[str]]:
        found = re.findall(r'<div class="layers">(.*?)</div>', text, re.DOTALL)
        return [re.findall(r'flex:(\d+) 1 0" title="\d+ depths ([^"]*)"', each) for each in found]

    assert strips("two classes") == [[("4", "frozen")]]
    assert strips("hostile classes") == [[("4", "frozen")], [("1", "frozen"), ("3", "trained")]]
    assert strips("step by step")[1] == [("3", "frozen"), ("1", "trained")]  # what it kept
    for kind, lowest in (("trained", "1"), ("gradual", "2")):
        evidence = made_up(phases=kind)
        evidence["record"]["phases"][1] |= {"improved": False, "chosen": None}
        text = render_page(sections(evidence, "run"))
        tried = [("1" if kind == "trained" else "2", "frozen")]
        tried += [(str(4 - int(lowest)), "tried, not kept")]
        assert strips_of(text)[1] == tried
        assert '<span class="trained"' not in text


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_tables_hold_together(reports: dict, kind: str) -> None:
    _, _, markdown = reports[kind]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines()]
    tables = "".join("t" if count else " " for count in bars)
    for found in re.finditer("t+", tables):
        assert len(set(bars[found.start() : found.end()])) == 1
        lines = markdown.splitlines()
        assert re.fullmatch(r"\|(-+:?\|)+", lines[found.start() + 1])
        assert not lines[found.start() - 1].strip()
    assert not re.search(r"(?<!\\)<(?!/?br)", re.sub(r"(?m)^    .*", "", markdown))


def test_text_loses_its_power_in_markdown() -> None:
    assert escaped("# a\nb") == r"\# a b"
    assert escaped("_a_ b_c") == r"\_a\_ b_c"
    assert escaped("- a") == r"\- a"
    assert escaped("12. a") == r"12\. a"
    assert escaped("-1.5") == "-1.5"
    assert escaped("&lt; & b") == r"\&lt; & b"
    assert escaped(12.5) == "12.5"
    assert escaped("http://a.org and WWW.a.org") == r"http\://a.org and WWW\.a.org"
    assert escaped("\u2067a\u202eb") == r"\\u2067a\\u202eb"


def test_rebuild_gives_the_same_pages(reports: dict, tmp_path: Path) -> None:
    evidence, page, markdown = reports["hostile classes"]
    (tmp_path / EVIDENCE).write_text(json.dumps(evidence, indent=1), encoding="utf-8")
    (tmp_path / PAGE).write_text("old", encoding="utf-8")
    rebuild(tmp_path)
    folder, run = evidence["record"]["run"], str(tmp_path)
    for file, before in ((PAGE, page), (MARKDOWN, markdown)):
        after = (tmp_path / file).read_text(encoding="utf-8")
        assert [unescape(before).count(name) for name in (shlex.quote(folder), run)] == [3, 0]
        assert unescape(after).count(folder) == 0  # commands name where the run lies now
        assert f"topwork predict {shlex.quote(run)} IMAGE..." in after
    told = sections(evidence, folder)
    again = [text.replace("\r\n", "\n") for text in (render_page(told), render_markdown(told))]
    assert again == [page, markdown]
    assert sorted(path.name for path in tmp_path.iterdir()) == [PAGE, EVIDENCE, MARKDOWN]


def test_rebuild_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; give a run folder"):
        rebuild(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"is no run folder: it has no record\.json; give"):
        rebuild(tmp_path)
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"has no report\.json: .*; fit again"):
        rebuild(tmp_path)
    file = tmp_path / EVIDENCE
    for text, message in (
        ('{"format": 2, ', "is damaged .*; fit again"),
        ("[]", "is of format None, this topwork shows 2; fit again"),
        ('{"format": 99}', "is of format 99"),
        ('{"format": 2}', "lacks what a report needs .KeyError: 'record'.; fit again"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message) as raised:
            rebuild(tmp_path)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / PAGE).exists()


def test_rebuild_tells_templates_from_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = made_up(advised=True)
    evidence["record"]["advice"]["textbook"] = {}
    (tmp_path / EVIDENCE).write_text(json.dumps(evidence), encoding="utf-8")
    with pytest.raises(DataError, match=r"lacks what a report needs .UndefinedError: .*words"):
        rebuild(tmp_path)
    monkeypatch.setattr("topwork.report.page.TEMPLATES", tmp_path)
    with pytest.raises(DataError, match="TemplateNotFound"):
        rebuild(tmp_path)


def test_evidence_from_strangers_cannot_reach_out(tmp_path: Path) -> None:
    evidence = made_up()
    evidence["worst"][0]["image"] = '" src="https://example.org/x.jpg'
    evidence["record"]["why_not_timm"] = "<img src=x onerror=alert(1)>"
    (tmp_path / EVIDENCE).write_text(json.dumps(evidence), encoding="utf-8")
    rebuild(tmp_path)
    page = Page((tmp_path / PAGE).read_text(encoding="utf-8"))
    for tag, attributes in page.elements:
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
            assert "onerror" not in attributes


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(values)
def test_linear_scales_hold_all_values(found: list[float]) -> None:
    scale = linear(found)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low - slack <= min(found)
    assert max(found) <= scale.high + slack
    places = [tick.place for tick in scale.ticks]
    assert places == sorted(places)
    assert 2 <= len(places) <= 8
    labels = [tick.label for tick in scale.ticks]
    assert len(set(labels)) == len(labels)
    for tick in scale.ticks:
        value = float(tick.label.replace(",", ""))
        assert scale.place(value) == pytest.approx(tick.place, abs=15)


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        ([0.0, 0.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.25, 1.0], ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([12_000, 14_000], ["12,000", "12,500", "13,000", "13,500", "14,000"]),
        ([1_234_568, 1_234_570], ["1234568", "1234568.5", "1234569", "1234569.5", "1234570"]),
        ([3e9, 8e9], ["3e+09", "4e+09", "5e+09", "6e+09", "7e+09", "8e+09"]),
    ],
)
def test_ticks_are_told_apart(found: list[float], labels: list[str]) -> None:
    scale = linear(found, least=0)
    assert [tick.label for tick in scale.ticks] == labels
    assert scale.place(found[0]) == scale.ticks[0].place or found[0] == 0.25


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_scales_of_shares_stay_between_nothing_and_all(found: list[float]) -> None:
    scale = linear(found, least=0, most=1)
    assert scale.low >= 0
    assert scale.high <= 1
    assert scale.low < scale.high
    assert all(0 <= scale.place(value) <= 1000 for value in found)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8))
def test_logarithmic_scales_keep_the_order(found: list[float]) -> None:
    scale = logarithmic(found, "{:g}".format)
    places = [scale.place(value) for value in sorted(found)]
    assert places == sorted(places)
    assert len(scale.ticks) <= 20


@pytest.mark.parametrize("count", [1, 2, 24, 25, 60, 300])
def test_names_are_thinned_but_the_chosen_stay(count: int) -> None:
    chosen = count // 3
    scale = named([f"name {number}" for number in range(count)], [chosen])
    labels = [tick.label for tick in scale.ticks]
    assert f"name {chosen}" in labels
    assert len(labels) <= 26
    assert Scale(-0.5, count - 0.5).place(chosen) in [tick.place for tick in scale.ticks]


@pytest.mark.parametrize("advised", [False, True])
@pytest.mark.parametrize("computed", [0, 7])
def test_finding_the_plan_is_not_counted(advised: bool, computed: int) -> None:
    record = {
        "advice": {"seconds": 1.0} if advised else None,
        "cached_codes": {"computed": computed},
    }

    said = trunk_use(record)

    assert ("once the plan was found" in said) == advised
    assert ("7 views" in said) == (computed == 7)
