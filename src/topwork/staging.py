"""A folder that is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from safetensors import SafetensorError

from topwork.errors import UsageError

STAGED = "staged-"
ABANDONED = 24 * 3600
"""Seconds after which a folder that is not in place yet belongs to nobody."""


@contextmanager
def staged_folder(asked: Path, unfinished: Path, done_with: Sequence[Path] = ()) -> Iterator[Path]:
    """Give the place of a folder to be made; once all is written, it becomes the one asked for.

    Args:
        asked: the folder as the user named it; must not exist, or be empty.
        unfinished: the folder beside it to write in; it goes unless something else is left in it.
        done_with: files and folders that nobody needs once all is written.

    Raises:
        UsageError: if it cannot be written; if another process has filled it meanwhile, with the
            name of the folder beside it that what was made is in.
    """
    out = asked.resolve()
    remove_abandoned(unfinished)
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
        with suppress(OSError):
            unfinished.rmdir()  # unless it holds more


def remove_abandoned(unfinished: Path) -> None:
    """Remove folders that processes left behind when they were killed."""
    for folder in unfinished.glob(f"{STAGED}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
