"""A folder that is there whole or not at all, whatever happens while it is written.

What is under way lies in a folder beside it, OUT.unfinished, which one process at a time works in.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from topwork.errors import UsageError

STAGED = "staged-"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP)
"""What file systems answer that have no locks; there the user is taken at their word."""


@contextmanager
def sole_worker(asked: Path) -> Iterator[Path]:
    """Give the folder for what is unfinished, which no other process works in meanwhile.

    It goes at the end unless something is left in it. The lock is the operating system's, so that
    of a process that dies, however it does, nothing remains.

    Args:
        asked: the folder to be made, as the user named it.

    Raises:
        UsageError: if another process is at it; if nothing can be written there.
    """
    out = asked.resolve()
    unfinished = out.with_name(f"{out.name}.unfinished")
    lock = FileLock(unfinished / "lock", timeout=0)
    new = [folder for folder in (unfinished, *unfinished.parents) if not folder.exists()]
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"--out {asked}: another process is at work on it; wait for it, stop it, or give"
            f" another folder (if none is, remove {lock.lock_file})"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            why = error.strerror or error
            raise UsageError(f"--out {asked} cannot be written: {why}") from error
    try:
        yield unfinished
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
        with suppress(OSError):
            for folder in new or [unfinished]:
                folder.rmdir()  # unless it holds more


@contextmanager
def staged_folder(asked: Path, unfinished: Path, done_with: Sequence[Path] = ()) -> Iterator[Path]:
    """Give the place of a folder to be made; once all is written, it becomes the one asked for.

    Args:
        asked: the folder as the user named it; must not exist, or be empty.
        unfinished: the folder beside it to write in.
        done_with: files and folders that nobody needs once all is written.

    Raises:
        UsageError: if it cannot be written; if another process has filled it meanwhile, with the
            name of the folder beside it that what was made is in.
    """
    out = asked.resolve()
    for abandoned in unfinished.glob(f"{STAGED}*"):  # by processes that were killed
        shutil.rmtree(abandoned, ignore_errors=True)
    staged = unfinished / f"{STAGED}{uuid.uuid4().hex}"
    try:
        yield staged
        if out.exists() and any(out.iterdir()):  # it was empty when this began
            beside = (out.with_name(f"{out.name}-{number}") for number in count(2))
            free = next(path for path in beside if not path.exists())
            staged.rename(free)
            raise UsageError(
                f"--out {asked} was filled by another process meanwhile; what was made lies in"
                f" {free}"
            )
        if out.exists():
            out.rmdir()
        staged.rename(out)
        for path in done_with:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out {asked} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
