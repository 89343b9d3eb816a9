"""The backbone that comes with topwork, for where none is named: nothing has to be fetched for it.

Its folder was made by ``recipes/rootstock``; its card says from what, and how good it is.
"""

from __future__ import annotations

import logging
from pathlib import Path

from topwork.errors import UsageError

log = logging.getLogger("topwork")

SHIPPED = "topwork:rootstock"
SHIPPED_FOLDER = Path(__file__).with_name("rootstock")


def name_or_shipped(name: str | None, weights: str | Path | None = None) -> str:
    """Return the name of the backbone that was asked for, or of the one that is taken instead.

    Args:
        name: what the user named, if anything.
        weights: a file with pretrained weights, which belongs to a backbone with a name.

    Raises:
        UsageError: if there are weights, but no name.
    """
    if name is not None:
        return name
    if weights is not None:
        raise UsageError(f"--weights {weights}: say with --backbone which network these are of")
    return SHIPPED


def say_shipped() -> None:
    """Say which backbone is taken, as none was named, and how to name one."""
    log.info(
        "backbone: none is named, so %s, a small one that comes with topwork; for a stronger one"
        " give --backbone, such as timm:mobilenetv2_100 (`topwork zoo` lists some)",
        SHIPPED,
    )
