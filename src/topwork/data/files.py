"""Writing files so that they are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from typing_extensions import Buffer


def write_atomically(path: Path, *parts: Buffer) -> None:
    """Write a file so that it is there whole or not at all, even after a crash.

    Args:
        path: where; a file that is there is replaced.
        parts: its bytes, one after the other: bytes, or contiguous arrays.

    Raises:
        OSError: if it cannot be written; nothing is left behind, and what was there before stays.
    """
    temporary = path.with_name(f"{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that what was renamed in a folder stays so after a crash, where that can be."""
    if os.name != "posix":
        return
    with suppress(OSError):  # some file systems know no such thing
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
