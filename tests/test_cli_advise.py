"""The commands profile, advise and report: their options, files, errors; and end to end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Command
from test_report_profile import a_profile, a_ranking, an_advice
from topwork import advising
from topwork.cli_parts import parse_seconds
from topwork.errors import UsageError
from topwork.plan import Plan


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Return what the verbs are asked for; they answer at once with made-up results."""
    seen: dict[str, Any] = {}

    def profile(data: Path, **options: Any) -> dict[str, Any]:
        seen.update(options, data=data)
        if isinstance(options["backbone"], str):
            return a_profile()
        profiles = [a_profile(backbone=name) for name in options["backbone"]]
        ranking = a_ranking()
        return {"profiles": profiles, "ranking": ranking, "recommended": "b", "seconds": 1.0}

    def advise(data: Path, **options: Any) -> dict[str, Any]:
        seen.update(options, data=data)
        return an_advice() | {"recommended": Plan("timm:resnet18").to_dict()}

    monkeypatch.setattr(advising, "profile", profile)
    monkeypatch.setattr(advising, "advise", advise)
    monkeypatch.chdir(tmp_path)
    return seen


def test_profile_makes_a_picture_and_says_what_comes_next(topwork: Command, asked) -> None:
    result = topwork("profile", "my photos", "--backbone", "timm:resnet18", "--size", 128)
    assert result.code == 0, result.err
    with Image.open("profile.png") as picture:
        assert picture.format == "PNG"
    assert result.out.endswith(
        "picture: profile.png\n"
        "next: topwork advise 'my photos' --backbone timm:resnet18 --size 128\n"
    )
    assert asked["size"] == (128, 128)
    assert asked["backbone"] == "timm:resnet18"
    assert asked["data"] == Path("my photos")


def test_a_second_profile_overwrites_nothing(topwork: Command, asked) -> None:
    Path("profile.png").write_bytes(b"mine")
    assert "picture: profile-2.png\n" in topwork("profile", "d", "--backbone", "b").out
    assert "picture: profile-3.png\n" in topwork("profile", "d", "--backbone", "b").out
    assert Path("profile.png").read_bytes() == b"mine"
    asked.clear()
    result = topwork("profile", "d", "--backbone", "b", "--out", "profile.png")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "topwork: --out profile.png exists already; choose another name, or remove it first\n"
    )
    assert not asked, "it is refused before anything is computed"


@pytest.mark.parametrize(
    ("out", "wrong"),
    [
        ("picture.pdf", "must end in .png or .svg"),
        ("folder", "must end in .png or .svg"),
        ("file/profile.png", "cannot be made: "),
    ],
)
def test_a_picture_that_cannot_be_made(topwork: Command, asked, out: str, wrong: str) -> None:
    Path("file").touch()
    result = topwork("profile", "d", "--backbone", "b", "--out", out)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"topwork: --out {out} {wrong}")
    assert result.err.count("\n") == 1
    assert not asked


def test_profile_as_json_writes_only_what_is_asked_for(topwork: Command, asked) -> None:
    result = topwork("profile", "d", "--backbone", "b", "--json")
    assert json.loads(result.out) == {**a_profile(), "picture": None}
    assert not list(Path().iterdir())
    out = Path("made") / "here.svg"
    result = topwork("profile", "d", "--backbone", "b", "--json", "--out", out)
    assert json.loads(result.out)["picture"] == str(out)
    assert out.read_text(encoding="utf-8").startswith("<?xml")


def test_profile_of_several(topwork: Command, asked) -> None:
    result = topwork("profile", "d", "--backbone", "a", "--backbone", "b")
    assert result.code == 0, result.err
    assert asked["backbone"] == ("a", "b")
    assert result.out.endswith("next: topwork advise d --backbone b\n")


def test_advise_writes_the_plan_and_says_how_it_is_fitted(topwork: Command, asked) -> None:
    result = topwork("advise", "d", "--backbone", "b", "--time-budget", "5m")
    assert result.code == 0, result.err
    assert Plan.load("plan.json") == Plan("timm:resnet18")
    assert result.out.endswith("next: topwork fit d --plan plan.json --out RUN\n")
    assert asked["time_budget"] == 300
    assert asked["candidates"] == ()
    again = topwork("advise", "d", "--backbone", "b", "--weights", "w.pth")
    assert again.out.endswith("next: topwork fit d --plan plan-2.json --weights w.pth --out RUN\n")


def test_advise_as_json(topwork: Command, asked) -> None:
    names = ("--candidate", "fine-tune all", "--candidate", "from scratch")
    result = topwork("advise", "d", "--backbone", "b", "--json", *names)
    found = json.loads(result.out)
    assert found["recommended"] == Plan("timm:resnet18").to_dict()
    assert found["plan"] is None
    assert asked["candidates"] == ("fine-tune all", "from scratch")
    assert "time_budget" not in asked, "the default is the verb's"
    assert not list(Path().iterdir())


@pytest.mark.parametrize("budget", ["5", "m", "-5m", "0s", "nanm", "infh", "5 minutes", ""])
def test_a_budget_that_is_no_duration(topwork: Command, asked, budget: str) -> None:
    if budget:
        result = topwork("advise", "d", "--backbone", "b", "--time-budget", budget)
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            f"topwork: --time-budget {budget!r} is no duration; write it like 90s, 5m or 2h\n"
        )
        assert not asked
    with pytest.raises(UsageError):
        parse_seconds(budget, "--time-budget")


# --- end to end ---------------------------------------------------------------------------------


def test_profile_end_to_end(topwork: Command, pictures, backbone, tmp_path) -> None:
    out = tmp_path / "profile.png"
    result = topwork("profile", pictures, "--backbone", backbone, "--out", out, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["depths"][-1].keys() >= {"name", "depth", "accuracy", "interval"}
    assert found["images"] == 48, "the test part is not looked at"
    assert found["picture"] == str(out)
    printed = topwork("profile", pictures, "--backbone", backbone, "--out", tmp_path / "b.svg")
    assert printed.code == 0, printed.err
    for depth in found["depths"]:
        assert re.search(rf"{re.escape(depth['name'])}.* {depth['accuracy']:.3f} ", printed.out)


def test_advise_end_to_end(topwork: Command, pictures, backbone, tmp_path) -> None:
    plan = tmp_path / "plan.json"
    arguments = ("advise", pictures, "--backbone", backbone, "--time-budget", "1s", "--out", plan)
    result = topwork(*arguments)
    assert result.code == 0, result.err
    assert "recommended: " in result.out
    fitted = topwork("fit", pictures, "--plan", plan, "--out", tmp_path / "run", "--json")
    assert fitted.code == 0, fitted.err
    assert json.loads(fitted.out)["accuracy"] > 0.5


def test_bad_data_is_one_line(topwork: Command, backbone, tmp_path) -> None:
    for command in ("profile", "advise"):
        result = topwork(command, tmp_path / "absent", "--backbone", backbone, "--json")
        assert (result.code, result.out) == (2, "")
        assert result.err.count("\n") == 1
        assert "absent" in result.err
