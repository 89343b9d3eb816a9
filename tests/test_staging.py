"""A folder that is there whole or not at all."""

import os
import time
from pathlib import Path

import pytest

from topwork.errors import UsageError
from topwork.staging import ABANDONED, STAGED, staged_folder


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    folder = tmp_path / "out.unfinished"
    folder.mkdir()
    return folder


def write(staged: Path) -> None:
    staged.mkdir()
    (staged / "file").write_text("whole")


def test_it_appears_when_all_is_written(tmp_path, unfinished):
    out = tmp_path / "out"
    with staged_folder(out, unfinished) as staged:
        write(staged)
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert not unfinished.exists()


def test_it_takes_the_place_of_an_empty_one(tmp_path, unfinished):
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out", unfinished) as staged:
        write(staged)
    assert (tmp_path / "out" / "file").is_file()


def test_what_is_needed_no_more_goes(tmp_path, unfinished):
    folder, file, other = (unfinished / name for name in ("checkpoints", "advice.json", "other"))
    folder.mkdir()
    file.touch()
    other.touch()
    with staged_folder(tmp_path / "out", unfinished, [folder, file, unfinished / "none"]) as staged:
        write(staged)
    assert list(unfinished.iterdir()) == [other]


def test_after_a_mistake_nothing_is_there_and_nothing_is_lost(tmp_path, unfinished):
    kept = unfinished / "checkpoints"
    kept.mkdir()
    with (
        pytest.raises(ZeroDivisionError),
        staged_folder(tmp_path / "out", unfinished, [kept]) as staged,
    ):
        write(staged)
        raise ZeroDivisionError
    assert not (tmp_path / "out").exists()
    assert list(unfinished.iterdir()) == [kept]


def test_a_full_disk_is_one_line(tmp_path, unfinished):
    kept = unfinished / "checkpoints"
    kept.mkdir()
    with (
        pytest.raises(UsageError, match=r"--out .*out cannot be written: No space left on device"),
        staged_folder(tmp_path / "out", unfinished, [kept]) as staged,
    ):
        write(staged)
        raise OSError(28, "No space left on device")
    assert kept.is_dir()
    assert not (tmp_path / "out").exists()


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path, unfinished):
    dead, alive = unfinished / f"{STAGED}dead", unfinished / f"{STAGED}alive"
    dead.mkdir()
    alive.mkdir()
    long_ago = time.time() - 2 * ABANDONED
    os.utime(dead, (long_ago, long_ago))
    with staged_folder(tmp_path / "out", unfinished) as staged:
        write(staged)
    assert list(unfinished.iterdir()) == [alive]


def test_of_two_that_fill_the_same_folder_neither_is_lost(tmp_path, unfinished):
    out = tmp_path / "out"
    with (
        pytest.raises(UsageError, match=r"filled by another process meanwhile; .* in .*out-2"),
        staged_folder(out, unfinished) as late,
    ):
        write(late)
        with staged_folder(out, unfinished) as early:
            write(early)
            (early / "first").touch()
    assert [path.name for path in sorted(out.iterdir())] == ["file", "first"]
    assert [path.name for path in (tmp_path / "out-2").iterdir()] == ["file"]
