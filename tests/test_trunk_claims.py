"""Claims keep processes out of each other's way, and never hold one up for good."""

import os
import threading
import time
from pathlib import Path

import pytest

from topwork.trunk import claims
from topwork.trunk.claims import Claims, open_claims


def grow_old(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_one_has_claimed_another_leaves_alone(tmp_path: Path) -> None:
    with open_claims(tmp_path) as mine, open_claims(tmp_path) as theirs:
        assert mine.take("a")
        assert not theirs.take("a")
        assert theirs.take("b")
        mine.release("a")
        assert theirs.take("a")
    assert list(tmp_path.iterdir()) == []  # released at the end, whoever had them


def test_a_claim_that_nobody_keeps_fresh_counts_for_nothing(tmp_path: Path) -> None:
    dead, alive = Claims(tmp_path), Claims(tmp_path)
    assert dead.take("a")
    grow_old(dead.path("a"), claims.STALE - 2)
    assert not alive.take("a")
    grow_old(dead.path("a"), claims.STALE + 1)
    assert alive.take("a")
    assert not Claims(tmp_path).take("a")  # it is fresh again


def test_a_long_work_keeps_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TOUCHED_EVERY", 0.01)
    with open_claims(tmp_path) as mine:
        mine.take("a")
        grow_old(mine.path("a"), 1000)
        other, end = Claims(tmp_path), time.monotonic() + 10
        while other.age(mine.path("a")) > 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert not other.take("a")


def test_a_clock_that_is_wrong_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Claims(tmp_path)
    mine.take("a")
    monkeypatch.setattr(time, "time", lambda: 1e10)
    assert not Claims(tmp_path).take("a")


def test_where_no_claim_can_be_made_everything_may_be_worked_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with open_claims(tmp_path / "file") as some:
        assert some.take("a")
        assert some.take("a")


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    taken: list[bool] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        some = Claims(tmp_path)
        barrier.wait()
        taken.append(some.take("a"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 7 + [True]
