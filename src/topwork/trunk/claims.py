"""Claims: telling other processes what this one is at work on, so that they do something else.

A claim is an empty file that is touched every few seconds. It is a courtesy and no lock: one that
has not been touched for 30 s counts for nothing, where none can be made everybody computes
everything, and what two processes compute at once is the same anyway. So a process that dies blocks
nobody, and correctness rests on nothing in here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STALE = 30.0
"""Seconds after which a claim that was not touched counts for nothing."""

TOUCHED_EVERY = 5.0


class Claims:
    """The claims of one process in a folder; made by `open_claims`.

    Attributes:
        folder: where the files lie.
        held: names of the claims that this process has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: set[str] = set()

    def take(self, name: str) -> bool:
        """Claim something; say whether to work on it, because no other process is at it."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("x").close()
        except FileExistsError:
            if path.is_file() and self.age(path) < STALE:
                return False
            with suppress(OSError):
                path.touch()  # its holder is dead, or has been asleep
        except OSError:
            return True  # where no claim can be made, everything is computed
        self.held.add(name)
        return True

    def release(self, name: str) -> None:
        """Give up a claim, its work being done or given up."""
        self.held.discard(name)
        with suppress(OSError):
            self.path(name).unlink()

    def touch_all(self) -> None:
        """Show that this process is alive."""
        for name in tuple(self.held):
            with suppress(OSError):  # released meanwhile: it must not come back
                os.utime(self.path(name))

    def path(self, name: str) -> Path:
        """Return the file of a claim."""
        return self.folder / f"{name}.claim"

    def age(self, path: Path) -> float:
        """Return the seconds since a claim was touched, by the clock of its file system.

        The clocks of two machines that share a file system may differ by more than 30 s.
        """
        now = self.folder / f"{os.getpid()}-{threading.get_ident()}.now"
        try:
            now.touch()
            return now.stat().st_mtime - path.stat().st_mtime
        except OSError:
            return STALE  # released meanwhile, or not to be read: not worth waiting for
        finally:
            with suppress(OSError):
                now.unlink()


@contextmanager
def open_claims(folder: Path) -> Iterator[Claims]:
    """Keep the claims of this process fresh while the block runs, then release them."""
    claims, done = Claims(folder), threading.Event()

    def keep_fresh() -> None:
        while not done.wait(TOUCHED_EVERY):
            claims.touch_all()

    thread = threading.Thread(target=keep_fresh, daemon=True)
    thread.start()
    try:
        yield claims
    finally:
        done.set()
        thread.join()
        for name in tuple(claims.held):
            claims.release(name)
