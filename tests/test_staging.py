"""A folder that is there whole or not at all."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from topwork.errors import UsageError
from topwork.staging import STAGED, sole_worker, staged_folder

ANOTHER = """
import sys
from pathlib import Path
from topwork.staging import sole_worker
with sole_worker(Path(sys.argv[1])):
    print("at it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def unfinished(tmp_path: Path) -> Iterator[Path]:
    with sole_worker(tmp_path / "out") as folder:
        yield folder


def write(staged: Path) -> None:
    staged.mkdir()
    (staged / "file").write_text("whole")


def visible(unfinished: Path) -> list[Path]:
    return [path for path in unfinished.iterdir() if path.name != "lock"]


def test_it_appears_when_all_is_written(tmp_path, unfinished):
    out = tmp_path / "out"
    with staged_folder(out, unfinished) as staged:
        write(staged)
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert not list(unfinished.glob(f"{STAGED}*"))


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
    assert visible(unfinished) == [other]


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
    assert visible(unfinished) == [kept]


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


def test_what_killed_processes_left_goes(tmp_path, unfinished):
    (unfinished / f"{STAGED}dead" / "model").mkdir(parents=True)
    with staged_folder(tmp_path / "out", unfinished) as staged:
        write(staged)
    assert visible(unfinished) == []


def test_of_two_that_fill_the_same_folder_neither_is_lost(tmp_path, unfinished):
    out = tmp_path / "out"
    with (
        pytest.raises(UsageError, match=r"filled by another process meanwhile; .* in .*out-2"),
        staged_folder(out, unfinished) as late,
    ):
        write(late)
        write(out)  # as a process does where locks do nothing
        (out / "first").touch()
    assert [path.name for path in sorted(out.iterdir())] == ["file", "first"]
    assert [path.name for path in (tmp_path / "out-2").iterdir()] == ["file"]


def test_a_second_process_is_told_so_until_the_first_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", ANOTHER, str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout
        assert first.stdout.readline() == "at it\n"
        with pytest.raises(UsageError, match="another process is at work on it"), sole_worker(out):
            pass
        assert (tmp_path / "out.unfinished" / "lock").exists()
        first.kill()
    with sole_worker(out) as unfinished:
        (unfinished / "checkpoints").mkdir()
    assert list((tmp_path / "out.unfinished").iterdir()) == [unfinished / "checkpoints"]


def test_nothing_remains_of_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out in ("out", "new/newer/out", "there/out"):
        with pytest.raises(ZeroDivisionError), sole_worker(tmp_path / out):
            raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_where_nothing_can_be_written_it_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"--out .*out cannot be written: Not a directory"),
        sole_worker(tmp_path / "file" / "out"),
    ):
        pytest.fail("it began")


@pytest.mark.parametrize(("code", "begins"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, begins: bool
) -> None:
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_lock)
    done = False
    try:
        with sole_worker(tmp_path / "out"):
            done = True
    except UsageError:
        pass
    assert done == begins
